// NcclCommunicator on the emulated GPU and the NCCL without GPUs: ranks are processes. What it does when
// something fails is in nccl_failure_test.cc, how streams go side by side in nccl_streams_test.cc.
#include "parallel/nccl_communicator.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "parallel/local_communicator.h"
#include "tests/communicator_contract.h"
#include "tests/nccl_testing.h"

namespace carousel::testing {
namespace {

TEST(NcclCommunicator, KeepsTheContractForEveryNumberOfRanks) {
  for (const int size : {1, 2, 3, 4}) {
    ExpectAllPass(RunProcesses(size, [&](Communicator& host) {
      const auto device = MakeGpu(host.rank(), static_cast<uint64_t>(size));
      const auto communicator = MakeCommunicator(host, *device);
      OnDevice on_device(*communicator, *device);
      for (const int64_t n : {0, 1, 5, 1025, 20000}) CheckCommunicatorContract(on_device, n);
    }));
  }
}

TEST(NcclCommunicator, KeepsTheContractOnEightRanks) {
  ExpectAllPass(RunProcesses(8, [&](Communicator& host) {
    const auto device = MakeGpu(host.rank(), 8);
    const auto communicator = MakeCommunicator(host, *device);
    OnDevice on_device(*communicator, *device);
    for (const int64_t n : {1, 300}) CheckCommunicatorContract(on_device, n);
    CheckSplits(on_device);
  }));
}

TEST(NcclCommunicator, SplitsKeepTheContractOfGroups) {
  for (const int size : {2, 3, 4}) {
    ExpectAllPass(RunProcesses(size, [&](Communicator& host) {
      const auto device = MakeGpu(host.rank(), static_cast<uint64_t>(size));
      const auto communicator = MakeCommunicator(host, *device);
      OnDevice on_device(*communicator, *device);
      CheckSplits(on_device);
    }));
  }
}

TEST(NcclCommunicator, APartKeepsTheWholeContract) {
  ExpectAllPass(RunProcesses(4, [&](Communicator& host) {
    const auto device = MakeGpu(host.rank());
    const auto communicator = MakeCommunicator(host, *device);
    communicator->set_verify_calls(true);
    OnDevice part(communicator->Split(host.rank() / 2), *device);
    EXPECT_EQ(part.size(), 2);
    for (const int64_t n : {1, 77}) CheckCommunicatorContract(part, n);
  }));
}

TEST(NcclCommunicator, KeepsTheContractWithLittleStagingMemoryAndVerifiedCalls) {
  ExpectAllPass(RunProcesses(3, [&](Communicator& host) {
    const auto device = MakeGpu(host.rank());
    const auto communicator = MakeCommunicator(host, *device, {.staging_bytes = 100});
    communicator->set_verify_calls(true);
    OnDevice on_device(*communicator, *device);
    for (const int64_t n : {3, 90}) CheckCommunicatorContract(on_device, n);
  }));
}

TEST(NcclCommunicator, VerifiesCallsWhereItsHostDoes) {
  ExpectAllPass(RunProcesses(2, [&](Communicator& host) {
    const auto device = MakeGpu(host.rank());
    EXPECT_FALSE(MakeCommunicator(host, *device)->verify_calls());
    host.set_verify_calls(true);
    const auto communicator = MakeCommunicator(host, *device);
    EXPECT_TRUE(communicator->verify_calls());
    EXPECT_TRUE(communicator->Split(0)->verify_calls());
  }));
}

TEST(NcclCommunicator, WorksForThreadsOfOneProcessWithAGpuEach) {
  fake_cuda::SetOptions({.num_devices = 2});
  fake_nccl::SetOptions({});
  RunLocalRanks(2, [](Communicator& host) {
    std::string error;
    const auto device = simt::MakeCudaDevice(host.rank(), &error);
    ASSERT_NE(device, nullptr) << error;
    const auto communicator = MakeCommunicator(host, *device);
    OnDevice on_device(*communicator, *device);
    CheckCommunicatorContract(on_device, 77);
    CheckSplits(on_device);
  });
}

// Calls are enqueued: ops before and after them need no waiting, in any interleaving.
TEST(NcclCommunicator, CallsAreOrderedWithTheOpsOfTheDevice) {
  ExpectAllPass(RunProcesses(2, [](Communicator& host) {
    for (uint64_t seed = 1; seed <= 5; ++seed) {
      const auto device = MakeGpu(host.rank(), seed);
      const auto communicator = MakeCommunicator(host, *device);
      constexpr int64_t kN = 3000;
      const Tensor x = MakeTensor(*device, kN), all = MakeTensor(*device, 2 * kN);
      for (int step = 1; step <= 4; ++step) {
        device->ops().Fill({.y = x, .value = 10.0 * step + host.rank()});
        communicator->AllGather(all, x);
        device->ops().Fill({.y = x, .value = -1});  // after the call has read x
        communicator->AllReduceSum(all);
        std::vector<float> want(2 * kN);
        for (int64_t i = 0; i < 2 * kN; ++i) {
          want[static_cast<size_t>(i)] = 2 * (10.0f * static_cast<float>(step) + static_cast<float>(i / kN));
        }
        EXPECT_TRUE(Read(*device, all) == want) << "seed " << seed << ", step " << step;
      }
    }
  }));
}

TEST(NcclCommunicator, TheRecorderNotesEveryCallWithItsPlace) {
  ExpectAllPass(RunProcesses(2, [](Communicator& host) {
    const auto device = MakeGpu(host.rank());
    const auto communicator = MakeCommunicator(host, *device);
    communicator->set_name("tensor");
    const Tensor x = MakeTensor(*device, 8);
    communicator->AllReduceSum(x);
    communicator->SendRecv(x.Rows(0, 4), 1 - host.rank(), x.Rows(4, 4), 1 - host.rank());
    const auto entries = communicator->recorder().Entries();
    ASSERT_EQ(entries.size(), 2u);
    EXPECT_EQ(entries[0].call.op, CollectiveOp::kAllReduceSum);
    EXPECT_EQ(entries[1].call.op, CollectiveOp::kSendRecv);
    EXPECT_FALSE(entries[1].in_progress());
    EXPECT_NE(communicator->recorder().Dump().find("tensor #0 AllReduceSum(8 x f32) 32 B tests/nccl_"),
              std::string::npos);
  }));
}
}  // namespace
}  // namespace carousel::testing
