// Ranks over TCP: threads of this process, each with a session of its own, or forked processes.
#pragma once
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "parallel/tcp_communicator.h"
#include "process_ranks.h"
#include "temp_dir.h"

namespace carousel::testing {

constexpr char kTestSecret[] = "a secret for tests only";

inline TcpOptions TestTcpOptions(const std::string& rendezvous, int rank, int size) {
  return {
      .node = {
          .rendezvous = rendezvous, .rank = rank, .size = size, .secret = kTestSecret, .meet_seconds = 30}};
}

// Runs `body` on `size` threads that meet over a directory.
inline void RunTcpRanks(int size, const std::function<void(Session&)>& body,
                        const PeerOptions& options = {}) {
  const TempDir directory;
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) {
    threads.emplace_back([&, rank] {
      TcpOptions tcp = TestTcpOptions("file:" + directory.path(), rank, size);
      tcp.peer = options;
      absl::StatusOr<std::unique_ptr<Session>> session = StartTcpSession(tcp);
      ASSERT_TRUE(session.ok()) << session.status();
      body(**session);
      EXPECT_EQ((*session)->Finish(0), 0);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// Runs `body` in `size` processes; a rank's exit code is what `body` returns, unless the job ends before.
inline std::vector<RankResult> RunTcpProcesses(int size, const std::function<int(Session&)>& body,
                                               const PeerOptions& options = {}) {
  const TempDir directory;
  return RunProcesses(size, [&](Communicator& host) {
    TcpOptions tcp = TestTcpOptions("file:" + directory.path(), host.rank(), size);
    tcp.peer = options;
    absl::StatusOr<std::unique_ptr<Session>> session = StartTcpSession(tcp);
    ASSERT_TRUE(session.ok()) << session.status();
    const int exit_code = (*session)->Finish(body(**session));
    std::fflush(nullptr);
    _exit(::testing::Test::HasFailure() ? 9 : exit_code);
  });
}
}  // namespace carousel::testing
