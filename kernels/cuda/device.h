// device.h - the one header through which a kernel reaches the hardware. The same source has two targets:
//   nvcc           the functions below are thin PTX (device_ptx.h);
//   host compiler  they call the emulation (kernels/simt/device_emulation.h), where a CUDA thread is a fiber.
//
// Kernels use CUDA's own names where C++ allows it (threadIdx, __syncthreads, __shfl_xor_sync, integer
// atomicAdd,
// __launch_bounds__, ...), and these instead of what it does not allow:
//   SHARED_ARRAY(T, name, [N][M]);   for  __shared__ T name[N][M];
//   gpu::dyn_shared<T>()             for  extern __shared__ T name[];
//   gpu::launch(kernel, cfg, ...)    for  kernel<<<...>>>(...)
//   gpu::...                         for  everything that needs PTX; asm stands nowhere else.
// Device code may use <cmath>'s functions of float and double, and CUDA's intrinsics listed in
// kernels/simt/device_intrinsics.h.
#pragma once
#include <cuda_runtime.h>  // before the emulation's macros threadIdx ...: it has parameters of those names

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "core/base/bfloat16.h"

#ifdef __CUDACC__
#define CAROUSEL_DEVICE_NS cuda
#define CAROUSEL_GPU_HD __host__ __device__ __forceinline__
#else
#define CAROUSEL_DEVICE_NS simt
#define CAROUSEL_GPU_HD inline
#endif

// Clusters, mbarriers and TMA exist from compute capability 9.0 on, wgmma and setmaxnreg on sm_90a alone.
// Kernels for them stand inside #if CAROUSEL_DEVICE_HAS_HOPPER and CAROUSEL_DEVICE_HAS_WGMMA, with an empty
// body otherwise; the emulation has them.
#if !defined(__CUDACC__) || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900)
#define CAROUSEL_DEVICE_HAS_HOPPER 1
#else
#define CAROUSEL_DEVICE_HAS_HOPPER 0
#endif
#if !defined(__CUDACC__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define CAROUSEL_DEVICE_HAS_WGMMA 1
#else
#define CAROUSEL_DEVICE_HAS_WGMMA 0
#endif

namespace carousel::gpu {

struct LaunchCfg {
  dim3 grid{1}, block{1};
  size_t smem = 0;  // bytes of dynamic shared memory
  cudaStream_t stream = nullptr;
  dim3 cluster{1};              // blocks per cluster
  bool cooperative = false;     // all blocks are resident at once: grid_sync() is allowed
  const char* name = "kernel";  // for error messages; must outlive the launch
};

CAROUSEL_GPU_HD float bits_to_float(uint32_t u) {
  float f;
  memcpy(&f, &u, 4);
  return f;
}
CAROUSEL_GPU_HD uint32_t float_to_bits(float f) {
  uint32_t u;
  memcpy(&u, &f, 4);
  return u;
}
CAROUSEL_GPU_HD float to_float(bfloat16 v) { return bits_to_float(static_cast<uint32_t>(v.bits) << 16); }
// The two bf16 of a 32-bit register: .x from the low half.
CAROUSEL_GPU_HD float2 unpack_bf16(uint32_t v) {
  return make_float2(bits_to_float(v << 16), bits_to_float(v & 0xffff0000u));
}

// 64-bit descriptor of a wgmma operand in shared memory. swizzle: 0 none, 1 128 bytes, 2 64 bytes, 3 32
// bytes.
CAROUSEL_GPU_HD uint64_t make_smem_desc(uint32_t addr, uint32_t lbo_bytes, uint32_t sbo_bytes,
                                        uint32_t swizzle) {
  return static_cast<uint64_t>((addr & 0x3ffff) >> 4) |
         static_cast<uint64_t>((lbo_bytes & 0x3ffff) >> 4) << 16 |
         static_cast<uint64_t>((sbo_bytes & 0x3ffff) >> 4) << 32 | static_cast<uint64_t>(swizzle) << 62;
}
}  // namespace carousel::gpu

#ifdef __CUDACC__
#include "kernels/cuda/device_launch.h"
#include "kernels/cuda/device_ptx.h"
#else
#include "kernels/simt/device_emulation.h"
#endif

namespace carousel::gpu {

// Round to nearest even; NaN becomes 0x7fff, as cvt.rn.bf16.f32 does.
CAROUSEL_GPU_HD bfloat16 to_bf16(float v) {
  bfloat16 r;
  r.bits = static_cast<uint16_t>(pack_bf16(v, 0.0f));
  return r;
}
// Between the storage types bfloat16, float and double (through float for bfloat16).
template <class To, class From>
CAROUSEL_GPU_HD To convert(From v) {
  if constexpr (sizeof(To) == 2 && sizeof(From) == 2) {
    return v;
  } else if constexpr (sizeof(From) == 2) {
    return static_cast<To>(to_float(v));
  } else if constexpr (sizeof(To) == 2) {
    return to_bf16(static_cast<float>(v));
  } else {
    return static_cast<To>(v);
  }
}
}  // namespace carousel::gpu
