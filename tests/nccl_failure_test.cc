// What a NCCL communicator does when something fails: every rank ends by itself within seconds, with a
// message that names rank and call. Ranks are processes on emulated GPUs.
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "core/base/exit_code.h"
#include "tests/nccl_testing.h"

namespace carousel::testing {
namespace {
constexpr double kEndsWithinSeconds = 10;

std::vector<RankResult> RunFailing(int size, const NcclOptions& options,
                                   const std::function<void(Communicator&, Tensor x)>& body) {
  return RunProcesses(size, [&](Communicator& host) {
    const auto device = MakeGpu(host.rank());
    const auto communicator = MakeCommunicator(host, *device, options);
    communicator->set_name("shard");
    SetProcessStep(12);
    const Tensor x = MakeTensor(*device, 1000);
    body(*communicator, x);
    device->Synchronize();
  });
}

// All ranks but `except` ended with code 1 and said each of these.
void ExpectErrors(const std::vector<RankResult>& results, int except, const std::vector<std::string>& parts) {
  for (size_t r = 0; r < results.size(); ++r) {
    if (static_cast<int>(r) == except) continue;
    EXPECT_EQ(results[r].exit_code, kExitTransport) << "rank " << r << ": " << results[r].errors;
    EXPECT_LT(results[r].seconds, kEndsWithinSeconds) << "rank " << r;
    for (const std::string& part : parts) {
      EXPECT_NE(results[r].errors.find(part), std::string::npos)
          << "rank " << r << " did not say '" << part << "': " << results[r].errors;
    }
  }
}
void ExpectErrorsInCall(const std::vector<RankResult>& results, int except,
                        const std::vector<std::string>& parts) {
  ExpectErrors(results, except, parts);
  for (size_t r = 0; r < results.size(); ++r) {
    if (static_cast<int>(r) == except) continue;
    EXPECT_NE(results[r].errors.find("[rank " + std::to_string(r) + "] [step 12] "), std::string::npos)
        << results[r].errors;
  }
}

// ---- in a call

TEST(NcclFailure, AKilledRankEndsTheOthersWithTheCallThatWaitsForIt) {
  for (const int size : {2, 4, 8}) {
    const auto results = RunFailing(size, {}, [](Communicator& c, Tensor x) {
      c.Broadcast(x, 0);
      c.Barrier();
      if (c.rank() == 1) raise(SIGKILL);
      c.AllReduceSum(x);
    });
    EXPECT_EQ(results[1].signal, SIGKILL);
    ExpectErrorsInCall(
        results, 1,
        {"AllReduceSum(1000 x f32) on 'shard' at tests/nccl_failure_test.cc:",
         ": NCCL: remote process exited or there was a network error: ",
         "the last calls of this rank:\nshard #0 step 12 Broadcast(1000 x f32, root 0) 4000 B tests/nccl_"});
    // Who looks when another one has ended already may see that one first.
    std::string all;
    for (const RankResult& result : results) all += result.errors;
    EXPECT_NE(all.find(": rank 1 is gone\n"), std::string::npos) << all;
  }
}

TEST(NcclFailure, AKilledRankOfAPartEndsAll) {
  const auto results = RunFailing(4, {}, [](Communicator& c, Tensor x) {
    const auto part = c.Split(c.rank() / 2);
    part->set_name("pair");
    if (c.rank() == 3) raise(SIGKILL);
    part->AllReduceSum(x);
    c.AllReduceSum(x);
  });
  EXPECT_EQ(results[3].signal, SIGKILL);
  ExpectErrors(results, 3, {"rank "});
  EXPECT_NE(results[2].errors.find("AllReduceSum(1000 x f32) on 'pair'"), std::string::npos)
      << results[2].errors;
  EXPECT_NE(results[2].errors.find(" (ranks 0 to 1 of 'pair' are ranks 2, 3 of the job)\n"),
            std::string::npos)
      << results[2].errors;
}

// What a watchdog does before it ends the process: the device comes free of a call that would wait for ever.
TEST(NcclFailure, AbandonFreesTheDeviceOfACallThatWaitsForAnotherRank) {
  const auto results = RunProcesses(2, [](Communicator& host) {
    const auto device = MakeGpu(host.rank());
    const auto communicator = MakeCommunicator(host, *device);
    Communicator& c = *communicator;
    const Tensor x = MakeTensor(*device, 1000);
    c.Barrier();
    device->Synchronize();
    if (c.rank() == 1) {  // does not come
      std::this_thread::sleep_for(std::chrono::seconds(8));
      _exit(0);
    }
    std::atomic<bool> returned = false;
    std::thread watchdog([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(500));
      if (returned) _exit(1);
      AbandonNcclCalls(c);
      for (int i = 0; i < 500 && !returned; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(10));
      _exit(returned ? kExitTransport : 2);
    });
    c.AllReduceSum(x);
    device->Synchronize();
    returned = true;
    watchdog.join();
  });
  EXPECT_EQ(results[0].exit_code, kExitTransport) << results[0].errors;
  EXPECT_LT(results[0].seconds, 7) << "it should not have waited for the other rank's end";
}

TEST(NcclFailure, ARankThatLeavesTooEarlyEndsTheOthers) {
  const auto results = RunProcesses(2, [&](Communicator& host) {
    const auto device = MakeGpu(host.rank());
    auto communicator = MakeCommunicator(host, *device);
    SetProcessStep(12);
    const Tensor x = MakeTensor(*device, 10);
    if (host.rank() == 0) communicator.reset();
    if (host.rank() == 1) {
      communicator->AllGather(x, x.Rows(5, 5));
      device->Synchronize();
    }
  });
  ExpectErrors({results[1]}, -1, {"AllGather(10 x f32) at ", "rank 0 has destroyed its communicator"});
  ExpectErrors({results[0]}, -1, {"leaving the other ranks, after "});
}

TEST(NcclFailure, DifferentCountsEndAllRanks) {
  for (const int size : {2, 4}) {
    const auto results = RunFailing(size, {}, [&](Communicator& c, Tensor x) {
      const int64_t n = c.rank() == 1 ? 100 : 200;
      c.AllGather(x.Rows(0, n * size), x.Rows(n * c.rank(), n));
    });
    ExpectErrorsInCall(results, -1, {"AllGather(", "invalid usage: rank "});
    ExpectErrorsInCall(results, -1, {"called another collective, or with another count"});
  }
}

TEST(NcclFailure, DifferentCallsAreNamedWithBothPlacesWhenTheyAreVerified) {
  const auto results = RunFailing(2, {}, [](Communicator& c, Tensor x) {
    c.set_verify_calls(true);
    c.Barrier();
    if (c.rank() == 0) c.Broadcast(x, 0);
    if (c.rank() == 1) c.AllReduceSum(x);
  });
  for (const RankResult& result : results) EXPECT_EQ(result.exit_code, kExitFailure) << result.errors;
  // Who sees it first ends; the other one sees at least that.
  const std::string all = results[0].errors + results[1].errors;
  EXPECT_NE(all.find("the ranks' calls do not match"), std::string::npos) << all;
  EXPECT_TRUE(all.find("but rank 1 called AllReduceSum(1000 x f32) at tests/nccl_failure_test.cc:") !=
                  std::string::npos ||
              all.find("but rank 0 called Broadcast(1000 x f32, root 0) at tests/nccl_failure_test.cc:") !=
                  std::string::npos)
      << all;
}

TEST(NcclFailure, DifferentCallsInAPartAreNamedByTheRanksOfTheJob) {
  const auto results = RunFailing(4, {}, [](Communicator& c, Tensor x) {
    c.set_verify_calls(true);
    const auto part = c.Split(c.rank() / 2);
    part->set_name("pair");
    EXPECT_EQ(part->WorldRank(0), c.rank() / 2 * 2);
    EXPECT_EQ(part->WorldRank(1), c.rank() / 2 * 2 + 1);
    if (c.rank() == 3) part->Broadcast(x, 0);
    if (c.rank() != 3) part->AllReduceSum(x);
  });
  const std::string all = results[2].errors + results[3].errors;
  EXPECT_TRUE(all.find("[rank 2] the ranks' calls do not match: ") != std::string::npos ||
              all.find("[rank 3] the ranks' calls do not match: ") != std::string::npos)
      << all;
  EXPECT_TRUE(all.find("but rank 3 called Broadcast(1000 x f32, root 0) at tests/") != std::string::npos ||
              all.find("but rank 2 called AllReduceSum(1000 x f32) at tests/") != std::string::npos)
      << all;
}

TEST(NcclFailure, ACallThatDoesNotEndEndsTheJobAfterTheTimeoutWithTheLastCalls) {
  const auto results = RunFailing(2, {.timeout_seconds = 0.3}, [](Communicator& c, Tensor x) {
    c.AllReduceSum(x);
    c.Recv(x, 1 - c.rank());  // nobody sends
  });
  ExpectErrorsInCall(results, -1,
                     {"Recv(1000 x f32 from rank ", "shard #0 step 12 AllReduceSum(1000 x f32)"});
  // The other rank may see first that this one has gone.
  const std::string all = results[0].errors + results[1].errors;
  EXPECT_NE(all.find("has not ended after "), std::string::npos) << all;
  EXPECT_NE(all.find(" s; another rank hangs, or makes other calls"), std::string::npos) << all;
}

TEST(NcclFailure, ASendOfAnotherSizeIsNamed) {
  const auto results = RunFailing(2, {}, [](Communicator& c, Tensor x) {
    if (c.rank() == 0) c.Send(x.Rows(0, 10), 1);
    if (c.rank() == 1) c.SendRecv(x.Rows(0, 10), 0, x.Rows(20, 30), 0);
  });
  ExpectErrors({results[1]}, -1,
               {"SendRecv(10 x f32 to rank 0, from rank 0)", "rank 0 sends another number"});
}

TEST(NcclFailure, AFailedOperationOfOneRankEndsAll) {
  const auto results = RunProcesses(2, [](Communicator& host) {
    const auto device = MakeGpu(host.rank());
    const auto communicator = MakeCommunicator(host, *device);
    SetProcessStep(12);
    if (host.rank() == 0) fake_nccl::SetOptions({.fail_operation = 2});
    const Tensor x = MakeTensor(*device, 100);
    for (int i = 0; i < 5; ++i) {
      communicator->Broadcast(x, 0);
      device->Synchronize();
    }
    sleep(30);  // the watching thread ends the process
  });
  ExpectErrors({results[0]}, -1,
               {"[step 12] Broadcast(100 x f32, root 0) at ", "this operation was made to fail"});
  ExpectErrors({results[1]}, -1, {"[rank 1] [step 12] ", "another rank aborted the communicator"});
}

// ---- while it is made

// Error messages of MakeNcclCommunicator, which is to fail alike on all ranks.
std::string SetupError(int size, const NcclOptions& options, const std::function<void(int rank)>& before) {
  const auto results = RunProcesses(size, [&](Communicator& host) {
    const auto device = MakeGpu(host.rank());
    before(host.rank());
    const auto communicator = MakeNcclCommunicator(host, *device, options);
    ASSERT_FALSE(communicator.ok());
    std::fprintf(stderr, "error: %s\n", std::string(communicator.status().message()).c_str());
  });
  std::vector<std::string> errors;
  for (const RankResult& result : results) {
    EXPECT_EQ(result.exit_code, 0) << result.errors;
    EXPECT_LT(result.seconds, kEndsWithinSeconds);
    const size_t begin = result.errors.find("error: ");
    errors.push_back(begin == std::string::npos ? "" : result.errors.substr(begin));
    EXPECT_EQ(errors.back(), errors[0]);
  }
  return errors[0];
}

TEST(NcclSetup, AFailureOfOneRankIsTheErrorOfAll) {
  const std::string error = SetupError(3, {}, [](int rank) {
    if (rank == 1) fake_nccl::SetOptions({.fail_setup = 0});
  });
  EXPECT_EQ(error,
            "error: ncclCommInitRankConfig: rank 1: NCCL: unhandled system error: this communicator was made "
            "to fail; NCCL_DEBUG=INFO in the environment says more\n");
}

TEST(NcclSetup, WhatDoesNotEndInTimeNamesTheRanks) {
  const std::string error = SetupError(4, {.init_timeout_seconds = 0.5}, [](int rank) {
    if (rank == 2) fake_nccl::SetOptions({.stall_setup = 0});
  });
  EXPECT_NE(
      error.find("ncclCommInitRankConfig has not ended after 0.5 s on ranks 0, 1, 2, 3, though all ranks "
                 "have come"),
      std::string::npos)
      << error;
}

// The host's communicator of a rank to which something happens when all have told each other of their GPUs
// and begin to wait for NCCL.
class Unlucky final : public Communicator {
 public:
  Unlucky(Communicator& host, std::function<void()> happens) : host_(host), happens_(std::move(happens)) {}
  int rank() const override { return host_.rank(); }
  int size() const override { return host_.size(); }
  [[noreturn]] void Abort(int exit_code) override {
    host_.Abort(exit_code);
    std::abort();
  }

 protected:
  void DoAllGather(Tensor all, Tensor mine) override { host_.AllGather(all, mine); }
  void DoBroadcast(Tensor x, int root) override { host_.Broadcast(x, root); }
  void DoBarrier() override { host_.Barrier(); }
  void DoSend(Tensor x, int destination) override {
    happens_();
    host_.Send(x, destination);
  }
  void DoRecv(Tensor x, int source) override {
    happens_();
    host_.Recv(x, source);
  }
  void DoAllReduceSum(Tensor) override { std::abort(); }
  void DoReduceScatterSum(Tensor, Tensor) override { std::abort(); }
  void DoAllToAll(Tensor, Tensor) override { std::abort(); }

 private:
  Communicator& host_;
  const std::function<void()> happens_;
};

// The communicator is made; `happens` to rank `unlucky` meanwhile.
std::vector<RankResult> RunUnlucky(int unlucky, const NcclOptions& options,
                                   const std::function<void()>& happens) {
  return RunProcesses(4, [&](Communicator& host) {
    const auto device = MakeGpu(host.rank());
    Unlucky its_host(host, [&] {
      if (host.rank() == unlucky) happens();
    });
    if (host.rank() == 3) fake_nccl::SetOptions({.stall_setup = 0});  // keeps the others waiting
    MakeNcclCommunicator(its_host, *device, options).IgnoreError();
    FAIL() << "the communicator was made, or an error was returned";
  });
}

TEST(NcclSetup, ARankThatDiesMeanwhileIsNamed) {
  for (const int dies : {0, 2}) {
    const auto results = RunUnlucky(dies, {}, [] { raise(SIGKILL); });
    EXPECT_EQ(results[static_cast<size_t>(dies)].signal, SIGKILL);
    // A rank that ends so ends those that wait for it in turn.
    std::string all;
    for (const RankResult& result : results) all += result.errors;
    EXPECT_NE(all.find("rank " + std::to_string(dies) + " has ended"), std::string::npos) << all;
    ExpectErrors(results, dies, {" has ended"});
  }
}

TEST(NcclSetup, ARankThatDoesNotComeIsNamed) {
  const auto results = RunUnlucky(2, {.init_timeout_seconds = 0.5}, [] { sleep(8); });
  ExpectErrors(results, -1, {"[rank "});
  EXPECT_NE(results[0].errors.find("[rank 0] ncclCommInitRankConfig: rank 2 of 4 has not come within 0.5 s "
                                   "(ranks after it were not asked)"),
            std::string::npos)
      << results[0].errors;
}

TEST(NcclSetup, ASplitThatFailsEndsAllWithItsCall) {
  const auto results = RunFailing(3, {}, [](Communicator& c, Tensor) {
    if (c.rank() == 2) fake_nccl::SetOptions({.fail_setup = 0});
    c.Split(0);
  });
  ExpectErrorsInCall(results, -1,
                     {"Split() on 'shard' at tests/nccl_failure_test.cc:", "ncclCommSplit: rank 2: NCCL: "});
}

TEST(NcclSetup, TwoRanksOnOneGpuAreRefusedByName) {
  char host_name[256] = "";
  gethostname(host_name, sizeof host_name - 1);
  ExpectAllPass(RunProcesses(4, [&](Communicator& host) {
    const auto device = MakeGpu(host.rank() == 3 ? 1 : host.rank());
    const auto communicator = MakeNcclCommunicator(host, *device);
    ASSERT_FALSE(communicator.ok());
    EXPECT_EQ(communicator.status().message(),
              std::string("ranks 1 and 3 are both on emulated sm_90 at PCI address 0000:02:00.0 of host '") +
                  host_name +
                  "', but NCCL needs a GPU for each rank: start at most as many ranks on a host as it has "
                  "GPUs, give each rank a GPU of its own, or let ranks that share a GPU talk through the "
                  "host's memory");
  }));
  ExpectAllPass(RunProcesses(3, [&](Communicator& host) {
    const auto device = MakeGpu(0);
    const auto communicator = MakeNcclCommunicator(host, *device);
    ASSERT_FALSE(communicator.ok());
    EXPECT_NE(communicator.status().message().find("ranks 0, 1, 2 are all on"), std::string::npos);
  }));
}

TEST(NcclSetup, RanksMayShareAGpuWhereTheyAreAllowedTo) {
  ExpectAllPass(RunProcesses(2, [&](Communicator& host) {
    const auto device = MakeGpu(0);
    const auto communicator = MakeCommunicator(host, *device, {.ranks_may_share_gpu = true});
    const Tensor x = MakeTensor(*device, 3);
    device->ops().Fill({.y = x, .value = 1.0 + host.rank()});
    communicator->AllReduceSum(x);
    EXPECT_EQ(Read(*device, x), std::vector<float>(3, 3.0f));
  }));
}

TEST(NcclSetup, ADeviceThatIsNoGpuIsAnErrorOnEveryRank) {
  class HostDevice final : public Device {
   public:
    std::string name() const override { return "other"; }
    bool host_accessible() const override { return true; }
    void* Allocate(int64_t) override { return nullptr; }
    void Free(void*) override {}
    void CopyToDevice(void*, const void*, int64_t) override {}
    void CopyToHost(void*, const void*, int64_t) override {}
    void Synchronize() override {}
    Ops& ops() override { std::abort(); }
  };
  ExpectAllPass(RunProcesses(2, [](Communicator& host) {
    const auto gpu = MakeGpu(host.rank());
    HostDevice other;
    Device& device = host.rank() == 0 ? *gpu : static_cast<Device&>(other);
    const auto communicator = MakeNcclCommunicator(host, device);
    ASSERT_FALSE(communicator.ok());
    EXPECT_EQ(communicator.status().message(), "NCCL cannot be used: rank 1: device 'other' is not a GPU");
  }));
}
}  // namespace
}  // namespace carousel::testing
