// StagedCommunicator: collectives on the tensors of a device whose memory the host cannot read, through host
// memory and a communicator of the host. Every byte crosses the bus twice and nothing overlaps: it makes
// several ranks with a device each possible wherever ranks can talk at all, not fast.
#pragma once
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/comm/communicator.h"
#include "core/device.h"

namespace carousel {

class StagedCommunicator final : public Communicator {
 public:
  // Both must outlive this. Results are those of `host`, to the bit.
  StagedCommunicator(Communicator& host, Device& device) : host_(host), device_(device) {}
  // The same, owning `host`: what a split gives.
  StagedCommunicator(std::unique_ptr<Communicator> host, Device& device)
      : own_host_(std::move(host)), host_(*own_host_), device_(device) {}

  int rank() const override { return host_.rank(); }
  int size() const override { return host_.size(); }
  int WorldRank(int rank) const override { return host_.WorldRank(rank); }
  void set_name(const std::string& name) override;  // of an owned host too
  [[noreturn]] void Abort(int exit_code) override;

 private:
  void DoAllReduceSum(Tensor x) override;
  void DoAllGather(Tensor all, Tensor mine) override;
  void DoReduceScatterSum(Tensor mine, Tensor all) override;
  void DoAllToAll(Tensor out, Tensor in) override;
  void DoBroadcast(Tensor x, int root) override;
  void DoSend(Tensor x, int destination) override;
  void DoRecv(Tensor x, int source) override;
  void DoSendRecv(Tensor out, int destination, Tensor in, int source) override;
  void DoBarrier() override { host_.Barrier(site()); }
  std::unique_ptr<Communicator> DoSplit(int color) override;
  void DoExchangeForVerify(void* all, const void* mine, int64_t bytes) override;

  // A tensor of x's shape in host memory; the next call with the same buffer takes its place.
  static Tensor Place(std::vector<std::byte>* buffer, Tensor x);
  Tensor Fetch(std::vector<std::byte>* buffer, Tensor x);  // the same with x's values: waits for the device
  void Put(Tensor x, Tensor from);

  std::unique_ptr<Communicator> own_host_;
  Communicator& host_;
  Device& device_;
  std::vector<std::byte> in_, out_;
};
}  // namespace carousel
