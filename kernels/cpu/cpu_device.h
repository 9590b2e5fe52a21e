// CpuDevice: host memory and the CPU implementation of Ops. Calls run at once on the calling thread and the
// device's own threads; results have the same bits for every number of threads.
#pragma once
#include <memory>
#include <mutex>
#include <optional>
#include <unordered_map>

#include "core/device.h"
#include "kernels/cpu/simd_level.h"

namespace carousel::cpu {

struct CpuOptions {
  int num_threads = 1;  // >= 1, the caller included
  // Every op in plain loops for every dtype: the specification that the fast paths are tested against.
  bool reference = false;
  // A level at or below DetectSimdLevel(); default the highest.
  std::optional<SimdLevel> simd_level = {};
  // Whether bf16 products may use the processor's matrix tiles (AMX), where it has them and the level is kV4.
  bool use_tiles = true;
};

class CpuDevice final : public Device {
 public:
  explicit CpuDevice(const CpuOptions& options);
  // Frees what is still allocated.
  ~CpuDevice() override;

  std::string name() const override { return "cpu"; }
  bool host_accessible() const override { return true; }
  void* Allocate(int64_t bytes) override;  // may be called from several threads, like Free
  void Free(void* memory) override;        // null is allowed; anything else must come from Allocate
  void CopyToDevice(void* device_destination, const void* host_source, int64_t bytes) override;
  void CopyToHost(void* host_destination, const void* device_source, int64_t bytes) override;
  void Synchronize() override {}
  Ops& ops() override { return *ops_; }

  int64_t allocated_bytes() const;
  int64_t peak_allocated_bytes() const;

 private:
  mutable std::mutex mutex_;
  std::unordered_map<void*, int64_t> bytes_of_;
  int64_t allocated_bytes_ = 0;
  int64_t peak_allocated_bytes_ = 0;
  std::unique_ptr<Ops> ops_;
};
}  // namespace carousel::cpu
