// A device on the host that behaves as one far away: its memory cannot be read or written between calls, its
// ops run only when something waits for them, and it records sequences of ops. Whatever touches device memory
// from the host, or hands an op something that does not live until the op runs, ends the test with a crash.
#pragma once
#include <sys/mman.h>

#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/arena.h"
#include "core/device.h"

namespace carousel::testing {

class DeferredDevice final : public Device {
 public:
  explicit DeferredDevice(std::unique_ptr<Device> device) : device_(std::move(device)), ops_(*this) {}
  ~DeferredDevice() override {
    for (const auto& [memory, bytes] : memory_) munmap(memory, bytes);
  }

  std::string name() const override { return "deferred"; }
  bool host_accessible() const override { return false; }
  void* Allocate(int64_t bytes) override {
    if (bytes == 0) return nullptr;
    if (bytes > limit_bytes) return nullptr;
    const size_t size = static_cast<size_t>(bytes);
    void* memory = mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return nullptr;
    memory_[memory] = size;
    return memory;
  }
  void Free(void* memory) override {
    Synchronize();
    const auto found = memory_.find(memory);
    if (found == memory_.end()) return;
    munmap(found->first, found->second);
    memory_.erase(found);
  }
  MemoryInfo memory() const override { return {.total_bytes = limit_bytes, .free_bytes = limit_bytes / 2}; }
  std::string allocation_error() const override { return "the fake is full"; }
  void CopyToDevice(void* destination, const void* source, int64_t bytes) override {
    CAROUSEL_CHECK_MSG(record_ == nullptr, "a copy while ops are recorded");
    ++num_copies;
    Later([=] { std::memcpy(destination, source, static_cast<size_t>(bytes)); });
    Synchronize();
  }
  void CopyToHost(void* destination, const void* source, int64_t bytes) override {
    CAROUSEL_CHECK_MSG(record_ == nullptr, "a copy while ops are recorded");
    ++num_copies;
    Later([=] { std::memcpy(destination, source, static_cast<size_t>(bytes)); });
    Synchronize();
  }
  void Synchronize() override {
    CAROUSEL_CHECK_MSG(record_ == nullptr, "waiting while ops are recorded");
    if (queue_.empty()) return;
    Protect(PROT_READ | PROT_WRITE);
    for (const std::function<void()>& op : queue_) op();
    queue_.clear();
    Protect(PROT_NONE);
  }
  Ops& ops() override { return ops_; }
  std::unique_ptr<Stream> ComputeStream() override { return std::make_unique<OneQueue>(*this); }
  std::unique_ptr<Stream> MakeStream() override { return std::make_unique<OneQueue>(*this); }
  bool records() const override { return true; }
  std::unique_ptr<Recording> MakeRecording() override {
    ++num_recordings;
    return std::make_unique<Record>(*this);
  }

  int64_t limit_bytes = int64_t{1} << 40;
  int num_recordings = 0, num_replays = 0, num_copies = 0;

 private:
  using Queue = std::vector<std::function<void()>>;

  // All streams are the one queue.
  class OneQueue final : public Stream {
   public:
    explicit OneQueue(DeferredDevice& device) : Stream(device.ops_), device_(device) {}
    void CopyToHost(void* destination, const void* source, int64_t bytes) override {
      device_.Later([=] { std::memcpy(destination, source, static_cast<size_t>(bytes)); });
    }
    void Synchronize() override { device_.Synchronize(); }

   private:
    DeferredDevice& device_;
  };

  // The first run is eager, the second one is recorded.
  class Record final : public Recording {
   public:
    explicit Record(DeferredDevice& device) : device_(device) {}
    void Run(const std::function<void()>& enqueue) override {
      if (num_runs_++ == 0) return enqueue();
      if (num_runs_ == 2) {
        device_.record_ = &record_;
        enqueue();
        device_.record_ = nullptr;
      } else {
        ++device_.num_replays;
      }
      device_.queue_.insert(device_.queue_.end(), record_.begin(), record_.end());
    }

   private:
    DeferredDevice& device_;
    int num_runs_ = 0;
    Queue record_;
  };

  class LaterOps final : public Ops {
   public:
    explicit LaterOps(DeferredDevice& device) : device_(device), ops_(device.device_->ops()) {}
    void Fill(const FillArgs& a) override { Later(&Ops::Fill, a); }
    void Cast(const CastArgs& a) override { Later(&Ops::Cast, a); }
    void Add(const AddArgs& a) override { Later(&Ops::Add, a); }
    void Matmul(const MatmulArgs& a) override { Later(&Ops::Matmul, a); }
    void ColumnSum(const ColumnSumArgs& a) override { Later(&Ops::ColumnSum, a); }
    void EmbeddingForward(const EmbeddingForwardArgs& a) override { Later(&Ops::EmbeddingForward, a); }
    void EmbeddingBackward(const EmbeddingBackwardArgs& a) override { Later(&Ops::EmbeddingBackward, a); }
    void RmsNormForward(const RmsNormForwardArgs& a) override { Later(&Ops::RmsNormForward, a); }
    void RmsNormBackward(const RmsNormBackwardArgs& a) override { Later(&Ops::RmsNormBackward, a); }
    void LayerNormForward(const LayerNormForwardArgs& a) override { Later(&Ops::LayerNormForward, a); }
    void LayerNormBackward(const LayerNormBackwardArgs& a) override { Later(&Ops::LayerNormBackward, a); }
    void SoftCapForward(const SoftCapForwardArgs& a) override { Later(&Ops::SoftCapForward, a); }
    void SoftCapBackward(const SoftCapBackwardArgs& a) override { Later(&Ops::SoftCapBackward, a); }
    int64_t MlstmWorkspaceBytes(const MlstmShape& shape, DType compute) const override {
      return ops_.MlstmWorkspaceBytes(shape, compute);
    }
    void MlstmForward(const MlstmForwardArgs& a) override { Later(&Ops::MlstmForward, a); }
    void MlstmBackward(const MlstmBackwardArgs& a) override { Later(&Ops::MlstmBackward, a); }
    void MlstmFoldBackward(const MlstmFoldBackwardArgs& a) override { Later(&Ops::MlstmFoldBackward, a); }
    void MlstmSummaryBackward(const MlstmSummaryBackwardArgs& a) override {
      Later(&Ops::MlstmSummaryBackward, a);
    }
    void MlstmFold(const MlstmFoldArgs& a) override { Later(&Ops::MlstmFold, a); }
    void MlstmSummary(const MlstmSummaryArgs& a) override { Later(&Ops::MlstmSummary, a); }
    void HeadNormGateForward(const HeadNormGateForwardArgs& a) override {
      Later(&Ops::HeadNormGateForward, a);
    }
    void HeadNormGateBackward(const HeadNormGateBackwardArgs& a) override {
      Later(&Ops::HeadNormGateBackward, a);
    }
    void Dropout(const DropoutArgs& a) override { Later(&Ops::Dropout, a); }
    void GluForward(const GluForwardArgs& a) override { Later(&Ops::GluForward, a); }
    void GluBackward(const GluBackwardArgs& a) override { Later(&Ops::GluBackward, a); }
    void BlockLinearForward(const BlockLinearForwardArgs& a) override { Later(&Ops::BlockLinearForward, a); }
    void BlockLinearBackward(const BlockLinearBackwardArgs& a) override {
      Later(&Ops::BlockLinearBackward, a);
    }
    void CausalConvForward(const CausalConvForwardArgs& a) override { Later(&Ops::CausalConvForward, a); }
    void CausalConvBackward(const CausalConvBackwardArgs& a) override { Later(&Ops::CausalConvBackward, a); }
    int64_t SlstmWorkspaceBytes(const SlstmShape& shape, DType compute) const override {
      return ops_.SlstmWorkspaceBytes(shape, compute);
    }
    void SlstmForward(const SlstmForwardArgs& a) override { Later(&Ops::SlstmForward, a); }
    void SlstmBackward(const SlstmBackwardArgs& a) override { Later(&Ops::SlstmBackward, a); }
    void CrossEntropy(const CrossEntropyArgs& a) override { Later(&Ops::CrossEntropy, a); }
    void CrossEntropyFromStats(const CrossEntropyFromStatsArgs& a) override {
      Later(&Ops::CrossEntropyFromStats, a);
    }
    void CrossEntropyStats(const CrossEntropyStatsArgs& a) override { Later(&Ops::CrossEntropyStats, a); }
    void AdamW(const AdamWArgs& a) override { Later(&Ops::AdamW, a); }
    void SquaredNorm(const SquaredNormArgs& a) override { Later(&Ops::SquaredNorm, a); }
    void SumExactly(const ExactSumArgs& a) override { Later(&Ops::SumExactly, a); }
    void TensorStats(const TensorStatsArgs& a) override { Later(&Ops::TensorStats, a); }
    void Digest(const DigestArgs& a) override { Later(&Ops::Digest, a); }

   private:
    template <class Args>
    void Later(void (Ops::*op)(const Args&), const Args& args) {
      device_.Later([&ops = ops_, op, args] { (ops.*op)(args); });
    }
    DeferredDevice& device_;
    Ops& ops_;
  };

  void Later(std::function<void()> op) { (record_ != nullptr ? *record_ : queue_).push_back(std::move(op)); }
  void Protect(int rights) {
    for (const auto& [memory, bytes] : memory_) CAROUSEL_CHECK(mprotect(memory, bytes, rights) == 0);
  }

  std::unique_ptr<Device> device_;
  LaterOps ops_;
  std::map<void*, size_t> memory_;
  Queue queue_;
  Queue* record_ = nullptr;
};
}  // namespace carousel::testing
