// The NCCL without GPUs: what it does with calls that do not block, with splits, and which mistakes of a
// program it makes visible.
#include "kernels/simt/fake_nccl.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "kernels/simt/fake_cudart.h"
#include "tests/process_ranks.h"

namespace carousel::testing {
namespace {
constexpr int kSeeds = 12;

#define EXPECT_OK(call) EXPECT_EQ(call, cudaSuccess)
#define EXPECT_NCCL(call) EXPECT_EQ(call, ncclSuccess)

// Asks until the communicator has an answer; how often, in *polls.
ncclResult_t Await(ncclComm_t communicator, int* polls = nullptr) {
  ncclResult_t result = ncclInProgress;
  for (int i = 0; result == ncclInProgress; ++i) {
    if (polls != nullptr) *polls = i;
    EXPECT_NCCL(ncclCommGetAsyncError(communicator, &result));
  }
  return result;
}
ncclComm_t Begin(Communicator& host, bool blocking) {
  ncclUniqueId id = {};
  if (host.rank() == 0) {
    EXPECT_NCCL(ncclGetUniqueId(&id));
  }
  host.Broadcast(Tensor(&id, DType::kU8, {static_cast<int64_t>(sizeof id)}), 0);
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = blocking;
  ncclComm_t communicator = nullptr;
  EXPECT_EQ(ncclCommInitRankConfig(&communicator, host.size(), id, host.rank(), &config),
            blocking ? ncclSuccess : ncclInProgress);
  return communicator;
}
ncclComm_t Make(Communicator& host, uint64_t seed = 1) {
  fake_cuda::SetOptions({.seed = seed});
  fake_nccl::SetOptions({.seed = seed + 100 * static_cast<uint64_t>(host.rank())});
  const ncclComm_t communicator = Begin(host, /*blocking=*/false);
  EXPECT_NCCL(Await(communicator));
  return communicator;
}
void Leave(ncclComm_t communicator) {
  const ncclResult_t result = ncclCommFinalize(communicator);
  EXPECT_TRUE(result == ncclSuccess || result == ncclInProgress);
  EXPECT_NCCL(Await(communicator));
  EXPECT_NCCL(ncclCommDestroy(communicator));
}
cudaStream_t MakeStream() {
  cudaStream_t stream = nullptr;
  EXPECT_OK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  return stream;
}
int32_t* DeviceInts(const std::vector<int32_t>& values) {
  void* memory = nullptr;
  EXPECT_OK(cudaMalloc(&memory, values.size() * sizeof(int32_t)));
  EXPECT_OK(cudaMemcpy(memory, values.data(), values.size() * sizeof(int32_t), cudaMemcpyHostToDevice));
  return static_cast<int32_t*>(memory);
}
int32_t ReadInt(const int32_t* x) {
  int32_t value = 0;
  EXPECT_OK(cudaMemcpy(&value, x, sizeof value, cudaMemcpyDeviceToHost));
  return value;
}
void ExpectAllPass(const std::vector<RankResult>& results) {
  for (const RankResult& result : results) EXPECT_EQ(result.exit_code, 0) << result.signal << result.errors;
}

TEST(FakeNccl, SixteenRanksSum) {
  ExpectAllPass(RunProcesses(16, [](Communicator& host) {
    const ncclComm_t communicator = Make(host);
    const cudaStream_t stream = MakeStream();
    int32_t* x = DeviceInts(std::vector<int32_t>(1000, host.rank()));
    const ncclResult_t result = ncclAllReduce(x, x, 1000, ncclInt32, ncclSum, communicator, stream);
    EXPECT_TRUE(result == ncclSuccess || result == ncclInProgress);
    EXPECT_NCCL(Await(communicator));
    EXPECT_OK(cudaStreamSynchronize(stream));
    EXPECT_EQ(ReadInt(x + 999), 120);
    Leave(communicator);
  }));
}

TEST(FakeNccl, CallsThatBlockReturnWhenTheyHaveEnded) {
  ExpectAllPass(RunProcesses(3, [](Communicator& host) {
    fake_cuda::SetOptions({});
    fake_nccl::SetOptions({});
    const ncclComm_t communicator = Begin(host, /*blocking=*/true);
    int polls = -1;
    EXPECT_NCCL(Await(communicator, &polls));
    EXPECT_EQ(polls, 0);
    ncclComm_t part = nullptr;
    EXPECT_NCCL(ncclCommSplit(communicator, host.rank() == 1 ? NCCL_SPLIT_NOCOLOR : 4, 0, &part, nullptr));
    EXPECT_EQ(part == nullptr, host.rank() == 1);
    if (part != nullptr) {
      EXPECT_NCCL(ncclCommDestroy(part));
    }
    EXPECT_NCCL(ncclCommFinalize(communicator));
    EXPECT_NCCL(ncclCommDestroy(communicator));
  }));
}

TEST(FakeNccl, HowOftenACommunicatorHasToBeAskedDependsOnTheSeed) {
  ExpectAllPass(RunProcesses(2, [](Communicator& host) {
    std::vector<int> polls;
    for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
      fake_nccl::SetOptions({.seed = seed});
      const ncclComm_t communicator = Begin(host, /*blocking=*/false);
      host.Barrier();  // both have come
      polls.push_back(-1);
      EXPECT_NCCL(Await(communicator, &polls.back()));
      host.Barrier();
      EXPECT_NCCL(ncclCommAbort(communicator));
    }
    EXPECT_NE(*std::min_element(polls.begin(), polls.end()), *std::max_element(polls.begin(), polls.end()));
  }));
}

TEST(FakeNccl, KeysOrderTheRanksOfAPart) {
  ExpectAllPass(RunProcesses(4, [](Communicator& host) {
    const ncclComm_t whole = Make(host);
    ncclComm_t part = nullptr;
    EXPECT_EQ(ncclCommSplit(whole, host.rank() % 2, /*key=*/-host.rank(), &part, nullptr), ncclInProgress);
    EXPECT_NCCL(Await(whole));
    ASSERT_NE(part, nullptr);
    EXPECT_NCCL(Await(part));
    int size = 0, rank = -1;
    EXPECT_NCCL(ncclCommCount(part, &size));
    EXPECT_NCCL(ncclCommUserRank(part, &rank));
    EXPECT_EQ(size, 2);
    EXPECT_EQ(rank, host.rank() < 2 ? 1 : 0);
    Leave(part);
    Leave(whole);
  }));
}

// A program that goes on without asking: its next call is refused, and what it gives the stream meanwhile
// runs before the sum.
TEST(FakeNccl, WorkGivenToAStreamBeforeACallHasEndedIsSeenInSomeSeeds) {
  ExpectAllPass(RunProcesses(2, [](Communicator& host) {
    int num_wrong = 0, num_refused = 0;
    for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
      const ncclComm_t communicator = Make(host, seed);
      const cudaStream_t stream = MakeStream();
      int32_t *x = DeviceInts({1}), *y = DeviceInts({0});
      ncclAllReduce(x, x, 1, ncclInt32, ncclSum, communicator, stream);
      EXPECT_OK(cudaMemcpyAsync(y, x, sizeof *x, cudaMemcpyDeviceToDevice, stream));
      num_refused += ncclCommFinalize(communicator) == ncclInvalidUsage;
      EXPECT_NCCL(Await(communicator));
      EXPECT_OK(cudaStreamSynchronize(stream));
      num_wrong += ReadInt(y) != 2;
      EXPECT_EQ(ReadInt(x), 2);
      EXPECT_NCCL(ncclCommDestroy(communicator));
    }
    EXPECT_EQ(num_wrong, num_refused);
    EXPECT_GT(num_wrong, 0);
    EXPECT_LT(num_wrong, kSeeds);
  }));
}

TEST(FakeNccl, ACommunicatorThatIsLeftWaitsForTheOthers) {
  ExpectAllPass(RunProcesses(2, [](Communicator& host) {
    const ncclComm_t communicator = Make(host);
    if (host.rank() == 0) {
      EXPECT_EQ(ncclCommFinalize(communicator), ncclInProgress);
      for (int i = 0; i < 100; ++i) {
        ncclResult_t result = ncclSuccess;
        EXPECT_NCCL(ncclCommGetAsyncError(communicator, &result));
        EXPECT_EQ(result, ncclInProgress);
      }
    }
    host.Barrier();
    if (host.rank() == 1) {
      EXPECT_EQ(ncclCommFinalize(communicator), ncclInProgress);
    }
    EXPECT_NCCL(Await(communicator));
    EXPECT_NCCL(ncclCommDestroy(communicator));
  }));
}

// The host of rank 0 waits for a message of rank 1's, whose host waits for its GPU, and that for the GPU of
// rank 0: it goes on, if somebody looks after the communicator.
TEST(FakeNccl, AGpuGoesOnWhileItsHostWaitsForAnotherRank) {
  for (const RankResult& result : RunProcesses(2, [](Communicator& host) {
         const ncclComm_t communicator = Make(host);
         const cudaStream_t stream = MakeStream();
         float* x = nullptr;
         EXPECT_OK(cudaMalloc(reinterpret_cast<void**>(&x), 2 * sizeof(float)));
         EXPECT_OK(cudaMemsetAsync(x, 0, 2 * sizeof(float), stream));
         const ncclResult_t issued = ncclAllGather(x + host.rank(), x, 1, ncclFloat32, communicator, stream);
         EXPECT_NCCL(issued == ncclInProgress ? Await(communicator) : issued);
         std::atomic<bool> ends = false;
         std::thread watch([&] {
           for (; !ends; usleep(10000)) Await(communicator);
         });
         int64_t message = 7;
         const Tensor text(&message, DType::kI64, {1});
         if (host.rank() == 0) {
           host.Recv(text, 1);
         } else {
           EXPECT_OK(cudaStreamSynchronize(stream));
           host.Send(text, 0);
         }
         ends = true;
         watch.join();
         EXPECT_OK(cudaStreamSynchronize(stream));
         Leave(communicator);
       })) {
    EXPECT_EQ(result.exit_code, 0) << result.errors;
    EXPECT_LT(result.seconds, 10);
  }
}

TEST(FakeNccl, ARankThatDiesIsAnErrorOfThoseThatWaitForIt) {
  for (const char* when : {"made", "split", "left"}) {
    const auto results = RunProcesses(3, [when = std::string(when)](Communicator& host) {
      fake_cuda::SetOptions({});
      fake_nccl::SetOptions({});
      if (when == "made") {
        if (host.rank() == 2) fake_nccl::SetOptions({.stall_setup = 0});
        const ncclComm_t communicator = Begin(host, /*blocking=*/false);
        host.Barrier();
        if (host.rank() == 1) raise(SIGKILL);
        if (host.rank() == 0) {
          EXPECT_EQ(Await(communicator), ncclRemoteError);
        }
        return;
      }
      const ncclComm_t communicator = Make(host);
      host.Barrier();
      if (host.rank() == 1) raise(SIGKILL);
      ncclComm_t part = nullptr;
      if (when == "split") ncclCommSplit(communicator, 0, 0, &part, nullptr);
      if (when == "left") ncclCommFinalize(communicator);
      EXPECT_EQ(Await(communicator), ncclRemoteError);
      EXPECT_NE(std::string(ncclGetLastError(communicator)), "");
      EXPECT_NCCL(ncclCommAbort(communicator));
    });
    // The other one may see first that this one has aborted.
    EXPECT_NE((results[0].errors + results[2].errors).find("rank 1 is gone"), std::string::npos) << when;
    EXPECT_EQ(results[1].signal, SIGKILL);
    for (const int r : {0, 2}) {
      EXPECT_EQ(results[static_cast<size_t>(r)].exit_code, 0)
          << when << ": " << results[static_cast<size_t>(r)].errors;
    }
  }
}

TEST(FakeNccl, WhatADeadProgramLeftIsRemovedByTheNextOne) {
  const std::string of_living = "/emulated-nccl-" + std::to_string(getpid()) + "-77";
  const auto make = [](const std::string& name) {
    const int file = shm_open(name.c_str(), O_RDWR | O_CREAT, 0600);
    EXPECT_GE(file, 0);
    close(file);
  };
  const auto exists = [](const std::string& name) { return access(("/dev/shm" + name).c_str(), F_OK) == 0; };
  const pid_t dead = fork();
  if (dead == 0) _exit(0);
  EXPECT_EQ(waitpid(dead, nullptr, 0), dead);
  const std::string of_dead = "/emulated-nccl-" + std::to_string(dead) + "-0";
  make(of_dead);
  make(of_living);
  ncclUniqueId id;
  EXPECT_NCCL(ncclGetUniqueId(&id));
  EXPECT_FALSE(exists(of_dead));
  EXPECT_TRUE(exists(of_living));
  shm_unlink(of_living.c_str());
}

TEST(FakeNccl, MistakesAreRefused) {
  ExpectAllPass(RunProcesses(1, [](Communicator& host) {
    const ncclComm_t communicator = Make(host);
    const cudaStream_t stream = MakeStream();
    int32_t* x = DeviceInts({1, 2});
    int32_t on_host = 0;
    ncclConfig_t config = {};
    ncclUniqueId id = {};
    ncclComm_t other = nullptr;
    EXPECT_EQ(ncclCommInitRankConfig(&other, 1, id, 0, &config), ncclInvalidArgument);  // not initialized
    EXPECT_EQ(ncclCommInitRankConfig(&other, 17, id, 0, nullptr), ncclInvalidArgument);
    EXPECT_EQ(ncclCommSplit(communicator, -2, 0, &other, nullptr), ncclInvalidArgument);
    EXPECT_EQ(ncclAllReduce(x, x, 3, ncclInt32, ncclSum, communicator, stream), ncclInvalidArgument);
    EXPECT_EQ(ncclAllReduce(&on_host, x, 1, ncclInt32, ncclSum, communicator, stream), ncclInvalidArgument);
    EXPECT_EQ(ncclSend(x, 1, ncclInt32, 1, communicator, stream), ncclInvalidArgument);
    EXPECT_EQ(ncclGroupEnd(), ncclInvalidUsage);
    Leave(communicator);
    EXPECT_EQ(ncclCommDestroy(communicator), ncclInvalidArgument);
  }));
}
}  // namespace
}  // namespace carousel::testing
