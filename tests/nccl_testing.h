// For tests of the NCCL communicator: an emulated GPU for each rank, and a communicator for tensors on the
// host on top of one for tensors on a GPU.
#pragma once
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/device.h"
#include "kernels/cuda/make_cuda_device.h"
#include "kernels/simt/fake_cudart.h"
#include "kernels/simt/fake_nccl.h"
#include "parallel/nccl_communicator.h"
#include "tests/process_ranks.h"

namespace carousel::testing {

// The GPU number `rank` of the machine, in a process of its own.
inline std::unique_ptr<Device> MakeGpu(int rank, uint64_t seed = 1) {
  fake_cuda::SetOptions({.first_gpu = rank, .seed = seed});
  fake_nccl::SetOptions({.seed = seed + 100 * static_cast<uint64_t>(rank)});
  std::string error;
  std::unique_ptr<Device> device = simt::MakeCudaDevice(0, &error);
  CAROUSEL_CHECK_MSG(device != nullptr, error);
  return device;
}
inline std::unique_ptr<Communicator> MakeCommunicator(Communicator& host, Device& device,
                                                      const NcclOptions& options = {}) {
  auto communicator = MakeNcclCommunicator(host, device, options);
  CAROUSEL_CHECK_MSG(communicator.ok(), std::string(communicator.status().message()));
  return *std::move(communicator);
}
inline Tensor MakeTensor(Device& device, int64_t n, DType dtype = DType::kF32) {
  return Tensor(device.Allocate(n * SizeOf(dtype)), dtype, {n});
}
inline std::vector<float> Read(Device& device, Tensor x) {
  std::vector<float> values(static_cast<size_t>(x.num_elems()));
  device.CopyToHost(values.data(), x.data, x.num_bytes());
  return values;
}

// Every call on copies of the tensors in device memory.
class OnDevice final : public Communicator {
 public:
  OnDevice(Communicator& communicator, Device& device) : communicator_(communicator), device_(device) {}
  OnDevice(std::unique_ptr<Communicator> communicator, Device& device)
      : own_(std::move(communicator)), communicator_(*own_), device_(device) {}
  int rank() const override { return communicator_.rank(); }
  int size() const override { return communicator_.size(); }
  [[noreturn]] void Abort(int exit_code) override {
    communicator_.Abort(exit_code);
    std::abort();
  }

 protected:
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
  void DoSendRecv(Tensor out, int destination, Tensor in, int source) override {
    Call({out, in},
         [&](const std::vector<Tensor>& t) { communicator_.SendRecv(t[0], destination, t[1], source); });
  }
  void DoBarrier() override { communicator_.Barrier(); }
  std::unique_ptr<Communicator> DoSplit(int color) override {
    std::unique_ptr<Communicator> part = communicator_.Split(color);
    return part == nullptr ? nullptr : std::make_unique<OnDevice>(std::move(part), device_);
  }

 private:
  // A tensor that lies in the first one lies at the same place of its copy.
  template <class Body>
  void Call(const std::vector<Tensor>& host, const Body& body) {
    std::vector<Tensor> copies = host;
    std::vector<void*> memory;
    const char *begin = static_cast<char*>(host[0].data), *end = begin + host[0].num_bytes();
    for (size_t i = 0; i < host.size(); ++i) {
      const char* data = static_cast<char*>(host[i].data);
      if (i > 0 && data >= begin && data < end) {
        copies[i].data = static_cast<char*>(copies[0].data) + (data - begin);
      } else {
        copies[i].data = device_.Allocate(host[i].num_bytes());
        memory.push_back(copies[i].data);
        device_.CopyToDevice(copies[i].data, data, host[i].num_bytes());
      }
    }
    body(copies);
    for (size_t i = host.size(); i-- > 0;)
      device_.CopyToHost(host[i].data, copies[i].data, host[i].num_bytes());
    for (void* block : memory) device_.Free(block);
  }

  const std::unique_ptr<Communicator> own_;
  Communicator& communicator_;
  Device& device_;
};

inline void ExpectAllPass(const std::vector<RankResult>& results) {
  for (size_t r = 0; r < results.size(); ++r) {
    EXPECT_EQ(results[r].exit_code, 0)
        << "rank " << r << ", signal " << results[r].signal << ": " << results[r].errors;
  }
}
}  // namespace carousel::testing
