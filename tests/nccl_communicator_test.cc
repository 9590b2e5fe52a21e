// NcclCommunicator on the emulated GPU and the NCCL without GPUs: ranks are processes.
#include "parallel/nccl_communicator.h"

#include <gtest/gtest.h>
#include <signal.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/cuda/make_cuda_device.h"
#include "kernels/simt/fake_cudart.h"
#include "kernels/simt/fake_nccl.h"
#include "parallel/local_communicator.h"
#include "tests/communicator_contract.h"
#include "tests/process_ranks.h"

namespace carousel::testing {
namespace {

// The GPU number `rank` of the machine.
std::unique_ptr<Device> MakeDevice(int rank, uint64_t seed = 1) {
  fake_cuda::SetOptions({.first_gpu = rank, .seed = seed});
  fake_nccl::SetOptions({.seed = seed + 100 * static_cast<uint64_t>(rank)});
  std::string error;
  std::unique_ptr<Device> device = simt::MakeCudaDevice(0, &error);
  CAROUSEL_CHECK_MSG(device != nullptr, error);
  return device;
}
std::unique_ptr<Communicator> MakeCommunicator(Communicator& host, Device& device,
                                               const NcclOptions& options = {}) {
  auto communicator = MakeNcclCommunicator(host, device, options);
  CAROUSEL_CHECK_MSG(communicator.ok(), std::string(communicator.status().message()));
  return *std::move(communicator);
}

// Every call on copies of the tensors in device memory.
class OnDevice final : public Communicator {
 public:
  OnDevice(Communicator& communicator, Device& device) : communicator_(communicator), device_(device) {}
  int rank() const override { return communicator_.rank(); }
  int size() const override { return communicator_.size(); }
  void DoAllReduceSum(Tensor x) override {
    Call({x}, [&](const std::vector<Tensor>& t) { communicator_.AllReduceSum(t[0]); });
  }
  void DoAllGather(Tensor all, Tensor mine) override {
    Call({all, mine}, [&](const std::vector<Tensor>& t) { communicator_.AllGather(t[0], t[1]); });
  }
  void DoReduceScatterSum(Tensor mine, Tensor all) override {
    Call({all, mine}, [&](const std::vector<Tensor>& t) { communicator_.ReduceScatterSum(t[1], t[0]); });
  }
  void DoAllToAll(Tensor out, Tensor in) override {
    Call({out, in}, [&](const std::vector<Tensor>& t) { communicator_.AllToAll(t[0], t[1]); });
  }
  void DoBroadcast(Tensor x, int root) override {
    Call({x}, [&](const std::vector<Tensor>& t) { communicator_.Broadcast(t[0], root); });
  }
  void DoSend(Tensor x, int destination) override {
    Call({x}, [&](const std::vector<Tensor>& t) { communicator_.Send(t[0], destination); });
  }
  void DoRecv(Tensor x, int source) override {
    Call({x}, [&](const std::vector<Tensor>& t) { communicator_.Recv(t[0], source); });
  }
  void DoBarrier() override { communicator_.Barrier(); }
  [[noreturn]] void Abort(int exit_code) override {
    communicator_.Abort(exit_code);
    std::abort();
  }

 private:
  // A tensor that lies in the first one lies at the same place of its copy.
  template <class Body>
  void Call(const std::vector<Tensor>& host, const Body& body) {
    std::vector<Tensor> copies = host;
    const char *begin = static_cast<char*>(host[0].data), *end = begin + host[0].num_bytes();
    for (size_t i = 0; i < host.size(); ++i) {
      const char* data = static_cast<char*>(host[i].data);
      if (i > 0 && data >= begin && data < end) {
        copies[i].data = static_cast<char*>(copies[0].data) + (data - begin);
      } else {
        copies[i].data = device_.Allocate(host[i].num_bytes());
        device_.CopyToDevice(copies[i].data, data, host[i].num_bytes());
      }
    }
    body(copies);
    for (size_t i = host.size(); i-- > 0;)
      device_.CopyToHost(host[i].data, copies[i].data, host[i].num_bytes());
  }
  Communicator& communicator_;
  Device& device_;
};

void ExpectAllPass(const std::vector<RankResult>& results) {
  for (size_t r = 0; r < results.size(); ++r) {
    EXPECT_EQ(results[r].exit_code, 0)
        << "rank " << r << ", signal " << results[r].signal << ": " << results[r].errors;
  }
}

TEST(NcclCommunicator, KeepsTheContractForEveryNumberOfRanks) {
  for (const int size : {1, 2, 3, 4}) {
    ExpectAllPass(RunProcesses(size, [&](Communicator& host) {
      const auto device = MakeDevice(host.rank(), static_cast<uint64_t>(size));
      const auto communicator = MakeCommunicator(host, *device);
      OnDevice on_device(*communicator, *device);
      for (const int64_t n : {0, 1, 5, 1025, 20000}) CheckCommunicatorContract(on_device, n);
    }));
  }
}

TEST(NcclCommunicator, KeepsTheContractWithLittleStagingMemoryAndVerifiedCalls) {
  ExpectAllPass(RunProcesses(3, [&](Communicator& host) {
    const auto device = MakeDevice(host.rank());
    const auto communicator = MakeCommunicator(host, *device, {.staging_bytes = 100});
    communicator->set_verify_calls(true);
    OnDevice on_device(*communicator, *device);
    for (const int64_t n : {3, 90}) CheckCommunicatorContract(on_device, n);
  }));
}

TEST(NcclCommunicator, WorksForThreadsOfOneProcessWithAGpuEach) {
  fake_cuda::SetOptions({.num_devices = 2});
  RunLocalRanks(2, [](Communicator& host) {
    std::string error;
    const auto device = simt::MakeCudaDevice(host.rank(), &error);
    ASSERT_NE(device, nullptr) << error;
    const auto communicator = MakeCommunicator(host, *device);
    OnDevice on_device(*communicator, *device);
    CheckCommunicatorContract(on_device, 77);
  });
}

// Calls are enqueued: ops before and after them need no waiting, in any interleaving.
TEST(NcclCommunicator, CallsAreOrderedWithTheOpsOfTheDevice) {
  ExpectAllPass(RunProcesses(2, [](Communicator& host) {
    for (uint64_t seed = 1; seed <= 5; ++seed) {
      const auto device = MakeDevice(host.rank(), seed);
      const auto communicator = MakeCommunicator(host, *device);
      constexpr int64_t kN = 3000;
      const Tensor x(device->Allocate(4 * kN), DType::kF32, {kN}),
          all(device->Allocate(8 * kN), DType::kF32, {2 * kN});
      for (int step = 1; step <= 4; ++step) {
        device->ops().Fill({.y = x, .value = 10.0 * step + host.rank()});
        communicator->AllGather(all, x);
        device->ops().Fill({.y = x, .value = -1});  // after the call has read x
        communicator->AllReduceSum(all);
        std::vector<float> values(2 * kN), want(2 * kN);
        device->CopyToHost(values.data(), all.data, all.num_bytes());
        for (int64_t i = 0; i < 2 * kN; ++i) {
          want[static_cast<size_t>(i)] = 2 * (10.0f * static_cast<float>(step) + static_cast<float>(i / kN));
        }
        EXPECT_TRUE(values == want) << "seed " << seed << ", step " << step;
      }
    }
  }));
}

// ---- failures: every rank ends by itself, with a message

std::vector<RankResult> RunFailing(int size, const NcclOptions& options,
                                   const std::function<void(Communicator&, Tensor x)>& body) {
  return RunProcesses(size, [&](Communicator& host) {
    const auto device = MakeDevice(host.rank());
    const auto communicator = MakeCommunicator(host, *device, options);
    SetProcessStep(12);
    const Tensor x(device->Allocate(4 * 1000), DType::kF32, {1000});
    body(*communicator, x);
    device->Synchronize();
  });
}
void ExpectErrors(const std::vector<RankResult>& results, int except, const std::string& part) {
  for (size_t r = 0; r < results.size(); ++r) {
    if (static_cast<int>(r) == except) continue;
    EXPECT_EQ(results[r].exit_code, 1) << "rank " << r << ": " << results[r].errors;
    EXPECT_NE(results[r].errors.find(part), std::string::npos) << "rank " << r << ": " << results[r].errors;
    EXPECT_NE(results[r].errors.find("[rank " + std::to_string(r) + "] [step 12]"), std::string::npos)
        << results[r].errors;
  }
}

TEST(NcclCommunicator, AKilledRankEndsTheOthersWithTheCallThatWaitsForIt) {
  for (const int size : {2, 4}) {
    const auto results = RunFailing(size, {}, [](Communicator& c, Tensor x) {
      if (c.rank() == 1) raise(SIGKILL);
      c.AllReduceSum(x);
    });
    EXPECT_EQ(results[1].signal, SIGKILL);
    ExpectErrors(results, 1, ": NCCL: remote process exited or there was a network error: rank 1 is gone");
  }
}

TEST(NcclCommunicator, DifferentCountsEndAllRanks) {
  for (const int size : {2, 4}) {
    const auto results = RunFailing(size, {}, [&](Communicator& c, Tensor x) {
      const int64_t n = c.rank() == 1 ? 100 : 200;
      c.AllGather(x.Rows(0, n * size), x.Rows(n * c.rank(), n));
    });
    ExpectErrors(results, -1, "invalid usage: rank ");
    ExpectErrors(results, -1, "called another collective, or with another count");
  }
}

TEST(NcclCommunicator, DifferentCallsAreNamedWhenTheyAreVerified) {
  const auto results = RunFailing(2, {}, [](Communicator& c, Tensor x) {
    c.set_verify_calls(true);
    if (c.rank() == 0) c.Broadcast(x, 0);
    if (c.rank() == 1) c.AllReduceSum(x);
  });
  for (int r = 0; r < 2; ++r) {
    EXPECT_EQ(results[static_cast<size_t>(r)].exit_code, 1);
    EXPECT_NE(results[static_cast<size_t>(r)].errors.find("the ranks' calls do not match"),
              std::string::npos);
  }
  EXPECT_NE(results[0].errors.find("but rank 1 called AllReduceSum(1000 x f32) at tests/"),
            std::string::npos);
  EXPECT_NE(results[1].errors.find("but rank 0 called Broadcast(1000 x f32, root 0) at tests/"),
            std::string::npos);
}

TEST(NcclCommunicator, ACallThatDoesNotEndEndsTheJobAfterTheTimeout) {
  const auto results = RunFailing(2, {.timeout_seconds = 0.3}, [](Communicator& c, Tensor x) {
    c.Recv(x, 1 - c.rank());  // nobody sends
  });
  ExpectErrors(results, -1, "Recv(1000 x f32 from rank ");
  // The other rank may see first that this one has gone.
  const std::string text = "has not ended after 0 s; another rank hangs, or makes other calls";
  EXPECT_NE((results[0].errors + results[1].errors).find(text), std::string::npos);
}

TEST(NcclCommunicator, AFailedOperationOfOneRankEndsAll) {
  const auto results = RunProcesses(2, [](Communicator& host) {
    const auto device = MakeDevice(host.rank());
    const auto communicator = MakeCommunicator(host, *device);
    SetProcessStep(12);
    if (host.rank() == 0) fake_nccl::SetOptions({.fail_operation = 2});
    const Tensor x(device->Allocate(400), DType::kF32, {100});
    for (int i = 0; i < 5; ++i) {
      communicator->Broadcast(x, 0);
      device->Synchronize();
    }
    sleep(30);  // the watching thread ends the process
  });
  ExpectErrors(results, 1, "this operation was made to fail");
  ExpectErrors(results, 0, "another rank aborted the communicator");
}

TEST(NcclCommunicator, ADeviceThatIsNoGpuIsAnErrorOnEveryRank) {
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
    const auto gpu = MakeDevice(host.rank());
    HostDevice other;
    Device& device = host.rank() == 0 ? *gpu : static_cast<Device&>(other);
    const auto communicator = MakeNcclCommunicator(host, device);
    ASSERT_FALSE(communicator.ok());
    EXPECT_EQ(communicator.status().message(), "NCCL cannot be used: rank 1: device 'other' is not a GPU");
  }));
}
}  // namespace
}  // namespace carousel::testing
