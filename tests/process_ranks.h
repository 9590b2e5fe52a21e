// Ranks as forked processes, for tests in which a rank may die, and their host communicator: set-up and small
// messages through shared memory.
#pragma once
#include <gtest/gtest.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "core/base/check.h"
#include "core/comm/communicator.h"

namespace carousel::testing {

// AllGather, Broadcast, Barrier and Split; Abort ends this process alone.
class SharedMemoryCommunicator final : public Communicator {
 public:
  static constexpr int kMaxRanks = 8, kMaxGroups = 64;
  static constexpr int64_t kMaxBytes = 4096;  // of one rank's part
  struct Group {
    pthread_barrier_t barrier;
    char part[kMaxRanks][kMaxBytes];
  };
  struct Area {
    std::atomic<int> num_groups{0};
    Group groups[kMaxGroups];

    // A group that was not used before; by one of its ranks.
    int MakeGroup(int size) {
      const int index = num_groups++;
      CAROUSEL_CHECK_LT(index, kMaxGroups);
      pthread_barrierattr_t shared;
      pthread_barrierattr_init(&shared);
      pthread_barrierattr_setpshared(&shared, PTHREAD_PROCESS_SHARED);
      pthread_barrier_init(&groups[index].barrier, &shared, static_cast<unsigned>(size));
      return index;
    }
  };
  // In the parent, before any rank starts. The world is group 0.
  static Area* MakeArea(int size) {
    CAROUSEL_CHECK_LE(size, kMaxRanks);
    void* memory = mmap(nullptr, sizeof(Area), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CAROUSEL_CHECK(memory != MAP_FAILED);
    Area* area = new (memory) Area;
    area->MakeGroup(size);
    return area;
  }
  SharedMemoryCommunicator(Area* area, int rank, int size, int group = 0)
      : area_(*area), group_(area->groups[group]), rank_(rank), size_(size) {}

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  [[noreturn]] void Abort(int exit_code) override {
    std::fflush(nullptr);
    _exit(exit_code);
  }

 private:
  void DoAllGather(Tensor all, Tensor mine) override {
    DoExchangeForVerify(all.data, mine.data, mine.num_bytes());
  }
  void DoBroadcast(Tensor x, int root) override {
    Put(x.data, x.num_bytes());
    std::memcpy(x.data, group_.part[root], static_cast<size_t>(x.num_bytes()));
    DoBarrier();
  }
  void DoBarrier() override { pthread_barrier_wait(&group_.barrier); }
  void DoAllReduceSum(Tensor) override { NotHere(); }
  void DoReduceScatterSum(Tensor, Tensor) override { NotHere(); }
  void DoAllToAll(Tensor, Tensor) override { NotHere(); }
  void DoSend(Tensor, int) override { NotHere(); }
  void DoRecv(Tensor, int) override { NotHere(); }
  void DoExchangeForVerify(void* all, const void* mine, int64_t bytes) override {
    Put(mine, bytes);
    for (int r = 0; r < size_; ++r) {
      std::memcpy(static_cast<char*>(all) + r * bytes, group_.part[r], static_cast<size_t>(bytes));
    }
    DoBarrier();
  }
  std::unique_ptr<Communicator> DoSplit(int color) override {
    int colors[kMaxRanks], groups[kMaxRanks];
    DoExchangeForVerify(colors, &color, sizeof color);
    int part_rank = 0, part_size = 0, first = -1, group = -1;
    for (int r = 0; r < size_; ++r) {
      if (colors[r] != color) continue;
      if (first < 0) first = r;
      part_rank += r < rank_;
      ++part_size;
    }
    if (color >= 0 && first == rank_) group = area_.MakeGroup(part_size);
    DoExchangeForVerify(groups, &group, sizeof group);
    if (color < 0) return nullptr;
    return std::make_unique<SharedMemoryCommunicator>(&area_, part_rank, part_size, groups[first]);
  }
  void Put(const void* data, int64_t bytes) {
    CAROUSEL_CHECK_LE(bytes, kMaxBytes);
    std::memcpy(group_.part[rank_], data, static_cast<size_t>(bytes));
    DoBarrier();
  }
  [[noreturn]] static void NotHere() { CheckFailed(__FILE__, __LINE__, "for control messages only"); }

  Area& area_;
  Group& group_;
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
