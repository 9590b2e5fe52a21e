// Context: what every op of a device needs: the stream, the properties of the device, launching with errors
// reported, scratch memory, and the matrix products of the vendor's library.
#pragma once
#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "core/base/check.h"
#include "kernels/cuda/device.h"

namespace carousel::CAROUSEL_DEVICE_NS {

class MatmulEngine;  // matmul_engine.h

struct DeviceInfo {
  std::string name;
  int compute_capability = 0;  // 80, 90, ...
  int num_sms = 0;
  int64_t max_shared_bytes = 0;  // per block, with opt-in
  int64_t memory_bytes = 0;
  bool portable_kernels = false;  // leave out kernels for one architecture alone, to compare with them
};

// Reports a failed call of the CUDA runtime (`what`, e.g. "launch of RmsNormForwardKernel") with the rank and
// the step, and aborts. Returns at once on success.
void CheckCuda(cudaError_t status, const char* what);

class Context {
 public:
  // Uses the calling thread's current device. The stream must outlive the context, and so must
  // *scratch_generation, which all contexts of a device share.
  Context(const DeviceInfo& info, cudaStream_t stream, int64_t* scratch_generation);
  ~Context();
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  const DeviceInfo& info() const { return info_; }
  cudaStream_t stream() const { return stream_; }
  MatmulEngine& matmul();  // made, with its workspace, at the first call

  // Enqueues a kernel on the stream. config.stream is set here; config.name appears in error messages and
  // must live as long as the program.
  template <class... P, class... A>
  void Launch(void (*kernel)(P...), gpu::LaunchCfg config, A&&... args) {
    constexpr unsigned kMaxGridYz = 65535;
    CAROUSEL_CHECK_MSG(config.grid.y <= kMaxGridYz && config.grid.z <= kMaxGridYz,
                       std::string("too large a grid for ") + config.name);
    config.stream = stream_;
    CheckLaunch(gpu::launch(kernel, config, std::forward<A>(args)...), config.name);
  }

  // Device memory that one call of an op uses between its kernels: valid until the next call of Scratch, its
  // contents undefined. It grows when needed (which waits for the device), except while a graph is captured:
  // then a size that no earlier call asked for is a programmer's error.
  void* Scratch(int64_t bytes);
  int64_t scratch_bytes() const { return scratch_bytes_; }
  // Changes when scratch memory of any stream of the device moves: what was captured before is then of no
  // use.
  int64_t scratch_generation() const { return scratch_generation_; }

  // Waits for the stream. An error of a kernel shows here or in any later call; the message names the kernels
  // that were launched last.
  void Synchronize();
  // CheckCuda with those kernels.
  void Check(cudaError_t status, const char* what) const;

 private:
  static constexpr int kNumRecent = 8;
  void CheckLaunch(cudaError_t status, const char* kernel);
  void GrowScratch(int64_t bytes);

  const DeviceInfo info_;
  const cudaStream_t stream_;
  std::unique_ptr<MatmulEngine> matmul_;
  void* scratch_ = nullptr;
  int64_t scratch_bytes_ = 0;
  int64_t& scratch_generation_;
  std::array<const char*, kNumRecent> recent_{};  // names of the last launches, a ring
  uint64_t num_launches_ = 0;
};
}  // namespace carousel::CAROUSEL_DEVICE_NS
