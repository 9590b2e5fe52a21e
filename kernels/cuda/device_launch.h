// nvcc's half of kernels/cuda/device.h, host side: tensor maps and launches.
#pragma once
#include "kernels/cuda/device_ptx.h"

namespace carousel::gpu {

// An encoding that the driver refuses leaves a map of zeros, and the first use of it fails.
inline TensorMap make_tensor_map(const void* base, unsigned rank, const cuuint64_t* dim,
                                 const cuuint64_t* stride_bytes, const cuuint32_t* box) {
  TensorMap t{};
  void* encode = nullptr;
  cudaDriverEntryPointQueryResult found;
  if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &encode, 12000, cudaEnableDefault, &found) !=
          cudaSuccess ||
      found != cudaDriverEntryPointSuccess) {
    return t;
  }
  const cuuint32_t element_strides[4] = {1, 1, 1, 1};
  const CUresult result = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(encode)(
      &t.map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, rank, const_cast<void*>(base), dim, stride_bytes, box,
      element_strides, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
      CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? t : TensorMap{};
}
inline TensorMap make_tensor_map_2d(const void* base, uint64_t cols, uint64_t rows, uint64_t pitch_bytes,
                                    uint32_t box_cols, uint32_t box_rows) {
  const cuuint64_t dim[2] = {cols, rows}, stride[1] = {pitch_bytes};
  const cuuint32_t box[2] = {box_cols, box_rows};
  return make_tensor_map(base, 2, dim, stride, box);
}
inline TensorMap make_tensor_map_4d(const void* base, const uint64_t (&dim)[4],
                                    const uint64_t (&stride_bytes)[3], const uint32_t (&box)[4]) {
  return make_tensor_map(base, 4, dim, stride_bytes, box);
}

template <class... P, class... A>
cudaError_t launch(void (*kernel)(P...), const LaunchCfg& config, A&&... args) {
  static_assert(sizeof...(P) == sizeof...(A), "wrong number of kernel arguments");
  // Beyond 48 KB of static and dynamic shared memory a kernel must ask.
  constexpr size_t kStaticAtMost = 32 * 1024;
  if (config.smem + kStaticAtMost > 48 * 1024) {
    const cudaError_t status = cudaFuncSetAttribute(
        reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, int(config.smem));
    if (status != cudaSuccess) return status;
  }
  cudaLaunchAttribute attributes[2];
  unsigned num_attributes = 0;
  if (config.cluster.x * config.cluster.y * config.cluster.z > 1) {
    cudaLaunchAttribute& a = attributes[num_attributes++];
    a.id = cudaLaunchAttributeClusterDimension;
    a.val.clusterDim.x = config.cluster.x;
    a.val.clusterDim.y = config.cluster.y;
    a.val.clusterDim.z = config.cluster.z;
  }
  if (config.cooperative) {
    cudaLaunchAttribute& a = attributes[num_attributes++];
    a.id = cudaLaunchAttributeCooperative;
    a.val.cooperative = 1;
  }
  cudaLaunchConfig_t launch_config{};
  launch_config.gridDim = config.grid;
  launch_config.blockDim = config.block;
  launch_config.dynamicSmemBytes = config.smem;
  launch_config.stream = config.stream;
  launch_config.attrs = attributes;
  launch_config.numAttrs = num_attributes;
  return cudaLaunchKernelEx(&launch_config, kernel, static_cast<P>(args)...);
}
}  // namespace carousel::gpu
