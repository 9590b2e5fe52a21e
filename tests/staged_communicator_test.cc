// Collectives on the tensors of a device whose memory only the device touches.
#include "parallel/staged_communicator.h"

#include <gtest/gtest.h>

#include <cstring>

#include "communicator_contract.h"
#include "parallel/local_communicator.h"

namespace carousel {
namespace {

// Memory that looks foreign: an address is the real one plus kFar, so that whoever reads it directly crashes.
class FarDevice final : public Device {
 public:
  static constexpr uintptr_t kFar = uintptr_t{1} << 62;
  static void* Near(const void* far) {
    return reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(far) - kFar);
  }
  static void* Far(void* near) { return reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(near) + kFar); }

  std::string name() const override { return "far"; }
  bool host_accessible() const override { return false; }
  void* Allocate(int64_t) override { return nullptr; }
  void Free(void*) override {}
  void CopyToDevice(void* to, const void* from, int64_t bytes) override {
    if (bytes > 0) std::memcpy(Near(to), from, static_cast<size_t>(bytes));
  }
  void CopyToHost(void* to, const void* from, int64_t bytes) override {
    if (bytes > 0) std::memcpy(to, Near(from), static_cast<size_t>(bytes));
  }
  void Synchronize() override {}
  Ops& ops() override { CheckFailed(__FILE__, __LINE__, "this device computes nothing"); }
};

// A communicator of host tensors over one of device tensors: what the contract's checks are written for.
class OnFarDevice final : public Communicator {
 public:
  explicit OnFarDevice(std::unique_ptr<Communicator> staged) : own_(std::move(staged)), staged_(*own_) {}
  int rank() const override { return staged_.rank(); }
  int size() const override { return staged_.size(); }
  [[noreturn]] void Abort(int exit_code) override {
    staged_.Abort(exit_code);
    std::abort();
  }
  void set_name(const std::string& name) override { staged_.set_name(name); }

 private:
  static Tensor Far(Tensor x) {
    if (x.defined()) x.data = FarDevice::Far(x.data);
    return x;
  }
  void DoAllReduceSum(Tensor x) override { staged_.AllReduceSum(Far(x)); }
  void DoAllGather(Tensor all, Tensor mine) override { staged_.AllGather(Far(all), Far(mine)); }
  void DoReduceScatterSum(Tensor mine, Tensor all) override { staged_.ReduceScatterSum(Far(mine), Far(all)); }
  void DoAllToAll(Tensor out, Tensor in) override { staged_.AllToAll(Far(out), Far(in)); }
  void DoBroadcast(Tensor x, int root) override { staged_.Broadcast(Far(x), root); }
  void DoSend(Tensor x, int destination) override { staged_.Send(Far(x), destination); }
  void DoRecv(Tensor x, int source) override { staged_.Recv(Far(x), source); }
  void DoSendRecv(Tensor out, int destination, Tensor in, int source) override {
    staged_.SendRecv(Far(out), destination, Far(in), source);
  }
  void DoBarrier() override { staged_.Barrier(); }
  std::unique_ptr<Communicator> DoSplit(int color) override {
    std::unique_ptr<Communicator> part = staged_.Split(color);
    return part == nullptr ? nullptr : std::make_unique<OnFarDevice>(std::move(part));
  }

  std::unique_ptr<Communicator> own_;
  Communicator& staged_;
};

TEST(StagedCommunicator, KeepsTheContractOfItsHost) {
  for (const int P : {1, 2, 3}) {
    for (const bool verify : {false, true}) {
      RunLocalRanks(P, [verify](Communicator& host) {
        FarDevice device;
        auto staged = std::make_unique<StagedCommunicator>(host, device);
        staged->set_verify_calls(verify);
        OnFarDevice c(std::move(staged));
        for (const int64_t n : {0, 1, 1025}) {
          CheckSums<float>(c, n);
          CheckMoves<bfloat16>(c, n);
          CheckSendRecv<float>(c, n);
        }
        CheckSums<bfloat16>(c, 100);
        CheckSplits(c);
      });
    }
  }
}

TEST(StagedCommunicator, MessagesNameItsPartAndTheCallersLine) {
  RunLocalRanks(2, [](Communicator& host) {
    FarDevice device;
    StagedCommunicator staged(host, device);
    staged.Barrier();
    EXPECT_EQ(host.recorder().Entries().back().site.ToString().find("tests/staged_communicator_test.cc"), 0u);
    const std::unique_ptr<Communicator> part = staged.Split(host.rank());
    EXPECT_EQ(part->WorldRank(0), host.rank());
  });
}
}  // namespace
}  // namespace carousel
