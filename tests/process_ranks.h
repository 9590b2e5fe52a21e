// Ranks as forked processes, for tests in which a rank may die, and their host communicator: set-up and small
// messages through shared memory.
#pragma once
#include <gtest/gtest.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "core/base/check.h"
#include "core/comm/communicator.h"

namespace carousel::testing {

// AllGather, Broadcast and Barrier; Abort ends this process alone.
class SharedMemoryCommunicator final : public Communicator {
 public:
  static constexpr int kMaxRanks = 8;
  static constexpr int64_t kMaxBytes = 4096;  // of one rank's part
  struct Area {
    pthread_barrier_t barrier;
    char part[kMaxRanks][kMaxBytes];
  };
  // In the parent, before any rank starts.
  static Area* MakeArea(int size) {
    void* memory = mmap(nullptr, sizeof(Area), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CAROUSEL_CHECK(memory != MAP_FAILED);
    Area* area = static_cast<Area*>(memory);
    pthread_barrierattr_t shared;
    pthread_barrierattr_init(&shared);
    pthread_barrierattr_setpshared(&shared, PTHREAD_PROCESS_SHARED);
    pthread_barrier_init(&area->barrier, &shared, static_cast<unsigned>(size));
    return area;
  }
  SharedMemoryCommunicator(Area* area, int rank, int size) : area_(*area), rank_(rank), size_(size) {}

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  void DoAllGather(Tensor all, Tensor mine) override {
    Put(mine);
    for (int r = 0; r < size_; ++r) {
      std::memcpy(static_cast<char*>(all.data) + r * mine.num_bytes(), area_.part[r],
                  static_cast<size_t>(mine.num_bytes()));
    }
    Barrier();
  }
  void DoBroadcast(Tensor x, int root) override {
    Put(x);
    std::memcpy(x.data, area_.part[root], static_cast<size_t>(x.num_bytes()));
    Barrier();
  }
  void DoBarrier() override { pthread_barrier_wait(&area_.barrier); }
  void DoAllReduceSum(Tensor) override { NotHere(); }
  void DoReduceScatterSum(Tensor, Tensor) override { NotHere(); }
  void DoAllToAll(Tensor, Tensor) override { NotHere(); }
  void DoSend(Tensor, int) override { NotHere(); }
  void DoRecv(Tensor, int) override { NotHere(); }
  [[noreturn]] void Abort(int exit_code) override {
    std::fflush(nullptr);
    _exit(exit_code);
  }

 private:
  void Put(Tensor x) {
    CAROUSEL_CHECK_LE(x.num_bytes(), kMaxBytes);
    std::memcpy(area_.part[rank_], x.data, static_cast<size_t>(x.num_bytes()));
    Barrier();
  }
  [[noreturn]] static void NotHere() { CheckFailed(__FILE__, __LINE__, "for control messages only"); }

  Area& area_;
  const int rank_, size_;
};

struct RankResult {
  int exit_code = -1;  // -1: killed by a signal
  int signal = 0;
  std::string errors;  // what it printed to stderr
};

// Runs `body` in `size` processes. A rank's exit code is 0, 9 if an expectation of GoogleTest failed in it,
// or what it exits with.
inline std::vector<RankResult> RunProcesses(int size, const std::function<void(Communicator& host)>& body) {
  auto* area = SharedMemoryCommunicator::MakeArea(size);
  std::vector<RankResult> results(static_cast<size_t>(size));
  std::vector<pid_t> processes;
  std::vector<std::FILE*> outputs;
  std::fflush(nullptr);
  for (int rank = 0; rank < size; ++rank) {
    outputs.push_back(std::tmpfile());
    CAROUSEL_CHECK(outputs.back() != nullptr);
    const pid_t process = fork();
    CAROUSEL_CHECK(process >= 0);
    if (process == 0) {
      dup2(fileno(outputs.back()), STDERR_FILENO);
      SetProcessRank(rank);
      SharedMemoryCommunicator host(area, rank, size);
      body(host);
      std::fflush(nullptr);
      _exit(::testing::Test::HasFailure() ? 9 : 0);
    }
    processes.push_back(process);
  }
  for (int left = size; left > 0; --left) {
    int status = 0;
    const pid_t ended = wait(&status);
    for (size_t r = 0; r < processes.size(); ++r) {
      if (processes[r] != ended) continue;
      if (WIFEXITED(status)) results[r].exit_code = WEXITSTATUS(status);
      if (WIFSIGNALED(status)) results[r].signal = WTERMSIG(status);
    }
  }
  for (size_t r = 0; r < outputs.size(); ++r) {
    std::rewind(outputs[r]);
    char text[4096];
    for (size_t n; (n = std::fread(text, 1, sizeof text, outputs[r])) > 0;) results[r].errors.append(text, n);
    std::fclose(outputs[r]);
  }
  munmap(area, sizeof *area);
  return results;
}
}  // namespace carousel::testing
