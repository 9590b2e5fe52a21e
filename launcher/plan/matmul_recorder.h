// A Device whose Ops passes every call on and remembers the matrix multiplications: which ones a training
// step really makes. Replayed alone, they give the matmul rate that a step of the same shapes could reach at
// best.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "core/device.h"

namespace carousel {

class MatmulRecorder final : public Device {
 public:
  explicit MatmulRecorder(Device& device);  // must outlive this
  ~MatmulRecorder() override;

  // While on, every Matmul is appended to calls(). Off at first.
  void Record(bool on);
  const std::vector<MatmulArgs>& calls() const;
  // 2 M N K summed over calls().
  double flops() const;
  // Makes the recorded calls again, on the same memory (whose contents change).
  void Replay();

  std::string name() const override { return device_.name(); }
  bool host_accessible() const override { return device_.host_accessible(); }
  void* Allocate(int64_t bytes) override { return device_.Allocate(bytes); }
  void Free(void* memory) override { device_.Free(memory); }
  MemoryInfo memory() const override { return device_.memory(); }
  std::string allocation_error() const override { return device_.allocation_error(); }
  void CopyToDevice(void* destination, const void* source, int64_t bytes) override {
    device_.CopyToDevice(destination, source, bytes);
  }
  void CopyToHost(void* destination, const void* source, int64_t bytes) override {
    device_.CopyToHost(destination, source, bytes);
  }
  void Synchronize() override { device_.Synchronize(); }
  Ops& ops() override;
  bool records() const override { return device_.records(); }
  // While calls are recorded, what it stands for is issued anew.
  std::unique_ptr<Recording> MakeRecording() override;

 private:
  class RecordingOps;
  class WatchedRecording;
  Device& device_;
  std::unique_ptr<RecordingOps> ops_;
};
}  // namespace carousel
