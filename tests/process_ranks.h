// Ranks as forked processes, for tests in which a rank may die, and their host communicator: set-up and small
// messages through shared memory.
#pragma once
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "core/base/check.h"
#include "core/base/exit_code.h"
#include "core/comm/communicator.h"

namespace carousel::testing {

// AllGather, Broadcast, Barrier, Send, Recv and Split. A rank that waits for one that has ended says so and
// ends with kExitTransport, as transports must. Abort ends this process alone.
class SharedMemoryCommunicator final : public Communicator {
 public:
  static constexpr int kMaxRanks = 16, kMaxGroups = 64;
  static constexpr int64_t kMaxBytes = 4096;  // of one message, or one rank's part
  struct Message {
    std::atomic<bool> full;
    char bytes[kMaxBytes];
  };
  // Ranks that talk with each other. Zero at first, as all of the shared memory.
  struct Group {
    std::atomic<int> arrived, generation;  // of the barrier
    char part[kMaxRanks][kMaxBytes];
    Message message[kMaxRanks][kMaxRanks];  // [from][to]
  };
  struct World {
    std::atomic<bool> ended[kMaxRanks];  // set by the parent
    std::atomic<int> num_groups;
    Group group[kMaxGroups];  // the first one is of all ranks
  };
  // In the parent, before any rank starts.
  static World* MakeWorld() {
    void* memory = mmap(nullptr, sizeof(World), PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CAROUSEL_CHECK(memory != MAP_FAILED);
    World* world = static_cast<World*>(memory);
    world->num_groups = 1;
    return world;
  }
  // `members[r]`: the number among all ranks of the group's rank r.
  SharedMemoryCommunicator(World* world, int group, std::vector<int> members, int rank)
      : world_(*world), group_(world->group[group]), members_(std::move(members)), rank_(rank) {}

  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(members_.size()); }
  int WorldRank(int rank) const override { return members_[static_cast<size_t>(rank)]; }

 protected:
  void DoAllGather(Tensor all, Tensor mine) override {
    Put(mine);
    for (int r = 0; r < size(); ++r) {
      std::memcpy(static_cast<char*>(all.data) + r * mine.num_bytes(), group_.part[r],
                  static_cast<size_t>(mine.num_bytes()));
    }
    DoBarrier();
  }
  void DoBroadcast(Tensor x, int root) override {
    Put(x);
    std::memcpy(x.data, group_.part[root], static_cast<size_t>(x.num_bytes()));
    DoBarrier();
  }
  void DoBarrier() override {
    const int generation = group_.generation;
    if (++group_.arrived == size()) {
      group_.arrived = 0;
      ++group_.generation;
      return;
    }
    WaitUntil([&] { return group_.generation != generation; });
  }
  void DoSend(Tensor x, int destination) override {
    CAROUSEL_CHECK_LE(x.num_bytes(), kMaxBytes);
    Message& message = group_.message[rank_][destination];
    WaitUntil([&] { return !message.full; });
    std::memcpy(message.bytes, x.data, static_cast<size_t>(x.num_bytes()));
    message.full = true;
  }
  void DoRecv(Tensor x, int source) override {
    Message& message = group_.message[source][rank_];
    WaitUntil([&] { return message.full.load(); });
    std::memcpy(x.data, message.bytes, static_cast<size_t>(x.num_bytes()));
    message.full = false;
  }
  std::unique_ptr<Communicator> DoSplit(int color) override {
    struct Choice {
      int color, group;
    };
    std::vector<Choice> choices(members_.size());
    const auto gather = [&](Choice mine) {
      DoAllGather(Tensor(choices.data(), DType::kU8, {static_cast<int64_t>(sizeof mine) * size()}),
                  Tensor(&mine, DType::kU8, {sizeof mine}));
    };
    gather({color, 0});
    std::vector<int> members;
    int part_rank = 0;
    for (int r = 0; r < size(); ++r) {
      if (choices[static_cast<size_t>(r)].color != color) continue;
      part_rank += r < rank_;
      members.push_back(members_[static_cast<size_t>(r)]);
    }
    // Its first rank takes a group for each color.
    const bool takes = color >= 0 && part_rank == 0;
    gather({color, takes ? world_.num_groups++ : 0});
    if (color < 0) return nullptr;
    int group = 0;
    for (const Choice& choice : choices) {
      if (choice.color == color) group = std::max(group, choice.group);
    }
    CAROUSEL_CHECK_LT(group, kMaxGroups);
    return std::make_unique<SharedMemoryCommunicator>(&world_, group, std::move(members), part_rank);
  }
  void DoExchangeForVerify(void* all, const void* mine, int64_t bytes) override {
    DoAllGather(Tensor(all, DType::kU8, {bytes * size()}),
                Tensor(const_cast<void*>(mine), DType::kU8, {bytes}));
  }
  void DoAllReduceSum(Tensor) override { NotHere(); }
  void DoReduceScatterSum(Tensor, Tensor) override { NotHere(); }
  void DoAllToAll(Tensor, Tensor) override { NotHere(); }

 public:
  [[noreturn]] void Abort(int exit_code) override {
    std::fflush(nullptr);
    _exit(exit_code);
  }

 private:
  void Put(Tensor x) {
    CAROUSEL_CHECK_LE(x.num_bytes(), kMaxBytes);
    std::memcpy(group_.part[rank_], x.data, static_cast<size_t>(x.num_bytes()));
    DoBarrier();
  }
  template <class Done>
  void WaitUntil(const Done& done) {
    for (int polls = 0; !done(); ++polls) {
      for (const int member : members_) {
        if (!world_.ended[member] || done()) continue;
        std::fprintf(stderr, "[rank %d] %s: rank %d has ended\n", ProcessRank(), DescribeCurrent().c_str(),
                     member);
        Abort(kExitTransport);
      }
      if (polls < 100) {
        sched_yield();
      } else {
        usleep(100);
      }
    }
  }
  [[noreturn]] static void NotHere() { CheckFailed(__FILE__, __LINE__, "for control messages only"); }

  World& world_;
  Group& group_;
  const std::vector<int> members_;
  const int rank_;
};

struct RankResult {
  int exit_code = -1;  // -1: killed by a signal
  int signal = 0;
  double seconds = 0;  // from the start of all to its end
  std::string errors;  // what it printed to stderr
};

// Runs `body` in `size` processes. A rank's exit code is 0, 9 if an expectation of GoogleTest failed in it,
// or what it exits with.
inline std::vector<RankResult> RunProcesses(int size, const std::function<void(Communicator& host)>& body) {
  auto* world = SharedMemoryCommunicator::MakeWorld();
  std::vector<RankResult> results(static_cast<size_t>(size));
  std::vector<pid_t> processes;
  std::vector<std::FILE*> outputs;
  std::fflush(nullptr);
  const auto seconds = [] {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
  };
  const double start = seconds();
  for (int rank = 0; rank < size; ++rank) {
    outputs.push_back(std::tmpfile());
    CAROUSEL_CHECK(outputs.back() != nullptr);
    const pid_t process = fork();
    CAROUSEL_CHECK(process >= 0);
    if (process == 0) {
      dup2(fileno(outputs.back()), STDERR_FILENO);
      SetProcessRank(rank);
      std::vector<int> members;
      for (int r = 0; r < size; ++r) members.push_back(r);
      SharedMemoryCommunicator host(world, 0, members, rank);
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
      results[r].seconds = seconds() - start;
      world->ended[r] = true;
    }
  }
  for (size_t r = 0; r < outputs.size(); ++r) {
    std::rewind(outputs[r]);
    char text[4096];
    for (size_t n; (n = std::fread(text, 1, sizeof text, outputs[r])) > 0;) results[r].errors.append(text, n);
    std::fclose(outputs[r]);
  }
  munmap(world, sizeof *world);
  // What ranks left that died while a communicator of the emulated NCCL was made.
  for (const auto& entry : std::filesystem::directory_iterator("/dev/shm")) {
    for (const pid_t process : processes) {
      const std::string name = "emulated-nccl-" + std::to_string(process) + "-";
      if (entry.path().filename().string().rfind(name, 0) == 0) std::filesystem::remove(entry.path());
    }
  }
  return results;
}
}  // namespace carousel::testing
