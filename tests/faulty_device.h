// A device on the host that computes like another one, but for one wrong bit: for tests of what is done about
// hardware that fails.
#pragma once
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "core/device.h"
#include "launcher/plan/forwarding_ops.h"

namespace carousel::testing {

class FaultyDevice final : public Device {
 public:
  enum class Where {
    kGradient,  // a matmul that makes a gradient of weights: the only ones that sum over tokens
    kForward,   // a matmul of activations
    kSum,       // the additions of gradients after this rank has given its own
  };
  struct Fault {
    Where where = Where::kGradient;
    int64_t call = 0;  // which such call since Arm, from 0
    uint32_t mask =
        1u << 22;             // bits of the first element of its result (f32), or of the upper half of an f64
    bool nan = false;         // the element becomes NaN instead
    bool every_time = false;  // every such call from then on is wrong in a new way
  };

  explicit FaultyDevice(std::unique_ptr<Device> device) : device_(std::move(device)), ops_(*this) {}

  // From now on calls count.
  void Arm(const Fault& fault) {
    fault_ = fault;
    armed_ = true;
    calls_ = 0;
    digested_ = false;
  }
  int64_t num_faults() const { return num_faults_; }

  std::string name() const override { return "faulty " + device_->name(); }
  bool host_accessible() const override { return device_->host_accessible(); }
  void* Allocate(int64_t bytes) override { return device_->Allocate(bytes); }
  void Free(void* memory) override { device_->Free(memory); }
  void CopyToDevice(void* to, const void* from, int64_t bytes) override {
    device_->CopyToDevice(to, from, bytes);
  }
  void CopyToHost(void* to, const void* from, int64_t bytes) override {
    device_->CopyToHost(to, from, bytes);
  }
  void Synchronize() override { device_->Synchronize(); }
  Ops& ops() override { return ops_; }

 private:
  class WrongOps final : public ForwardingOps {
   public:
    explicit WrongOps(FaultyDevice& device) : ForwardingOps(device.device_->ops()), device_(device) {}
    void Matmul(const MatmulArgs& a) override {
      ForwardingOps::Matmul(a);
      device_.Called(a.transpose_a ? Where::kGradient : Where::kForward, a.c);
    }
    void Digest(const DigestArgs& a) override {
      ForwardingOps::Digest(a);
      device_.digested_ = true;
    }
    void Add(const AddArgs& a) override {
      ForwardingOps::Add(a);
      if (device_.digested_) device_.Called(Where::kSum, a.y);
    }
    void AdamW(const AdamWArgs& a) override {
      ForwardingOps::AdamW(a);
      device_.digested_ = false;
    }

   private:
    FaultyDevice& device_;
  };

  void Called(Where where, const Tensor& result) {
    if (!armed_ || where != fault_.where || result.num_elems() == 0) return;
    const int64_t call = calls_++;
    if (fault_.every_time ? call < fault_.call : call != fault_.call) return;
    ++num_faults_;
    auto* bytes = static_cast<unsigned char*>(result.data);
    if (result.dtype == DType::kF64) bytes += 4;
    uint32_t bits;
    std::memcpy(&bits, bytes, sizeof(bits));
    bits = fault_.nan ? 0x7fffffffu
                      : bits ^ (fault_.mask + (fault_.every_time ? static_cast<uint32_t>(call) : 0));
    std::memcpy(bytes, &bits, sizeof(bits));
  }

  std::unique_ptr<Device> device_;
  WrongOps ops_;
  Fault fault_;
  bool armed_ = false, digested_ = false;
  int64_t calls_ = 0, num_faults_ = 0;
};
}  // namespace carousel::testing
