// A communicator for tensors of the host on top of one for tensors of a device: the contract of
// communicators, which is written for the host, then holds for both.
#pragma once
#include <cstdlib>
#include <memory>
#include <utility>
#include <vector>

#include "core/comm/communicator.h"
#include "core/device.h"

namespace carousel::testing {

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
}  // namespace carousel::testing
