// What cuda_runtime.h and nccl.h say: compiled once with NVIDIA's headers and once with those of include/, so
// that a test can compare them (tests/simt_header_test.cc).
#include <cuda_runtime.h>
#include <nccl.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace carousel::CAROUSEL_HEADER_NS {

// Name and value of every constant, name, size and alignment of every type.
std::vector<std::pair<std::string, int64_t>> HeaderValues() {
  std::vector<std::pair<std::string, int64_t>> values;
#define CAROUSEL_VALUE(name) values.emplace_back(#name, static_cast<int64_t>(name));
#define CAROUSEL_TYPE(name)                            \
  values.emplace_back("size of " #name, sizeof(name)); \
  values.emplace_back("alignment of " #name, alignof(name));
  CAROUSEL_VALUE(cudaSuccess)
  CAROUSEL_VALUE(cudaErrorInvalidValue)
  CAROUSEL_VALUE(cudaErrorMemoryAllocation)
  CAROUSEL_VALUE(cudaErrorInvalidConfiguration)
  CAROUSEL_VALUE(cudaErrorInsufficientDriver)
  CAROUSEL_VALUE(cudaErrorDevicesUnavailable)
  CAROUSEL_VALUE(cudaErrorNoDevice)
  CAROUSEL_VALUE(cudaErrorInvalidDevice)
  CAROUSEL_VALUE(cudaErrorNoKernelImageForDevice)
  CAROUSEL_VALUE(cudaErrorInvalidResourceHandle)
  CAROUSEL_VALUE(cudaErrorIllegalState)
  CAROUSEL_VALUE(cudaErrorNotReady)
  CAROUSEL_VALUE(cudaErrorLaunchTimeout)
  CAROUSEL_VALUE(cudaErrorLaunchFailure)
  CAROUSEL_VALUE(cudaErrorCooperativeLaunchTooLarge)
  CAROUSEL_VALUE(cudaErrorNotPermitted)
  CAROUSEL_VALUE(cudaErrorNotSupported)
  CAROUSEL_VALUE(cudaErrorStreamCaptureUnsupported)
  CAROUSEL_VALUE(cudaErrorStreamCaptureInvalidated)
  CAROUSEL_VALUE(cudaErrorStreamCaptureMerge)
  CAROUSEL_VALUE(cudaErrorStreamCaptureUnmatched)
  CAROUSEL_VALUE(cudaErrorStreamCaptureUnjoined)
  CAROUSEL_VALUE(cudaErrorStreamCaptureIsolation)
  CAROUSEL_VALUE(cudaErrorStreamCaptureImplicit)
  CAROUSEL_VALUE(cudaErrorCapturedEvent)
  CAROUSEL_VALUE(cudaErrorStreamCaptureWrongThread)
  CAROUSEL_VALUE(cudaErrorInvalidClusterSize)
  CAROUSEL_VALUE(cudaErrorUnknown)
  CAROUSEL_VALUE(cudaMemcpyHostToHost)
  CAROUSEL_VALUE(cudaMemcpyHostToDevice)
  CAROUSEL_VALUE(cudaMemcpyDeviceToHost)
  CAROUSEL_VALUE(cudaMemcpyDeviceToDevice)
  CAROUSEL_VALUE(cudaMemcpyDefault)
  CAROUSEL_VALUE(cudaMemoryTypeUnregistered)
  CAROUSEL_VALUE(cudaMemoryTypeHost)
  CAROUSEL_VALUE(cudaMemoryTypeDevice)
  CAROUSEL_VALUE(cudaStreamCaptureStatusNone)
  CAROUSEL_VALUE(cudaStreamCaptureStatusActive)
  CAROUSEL_VALUE(cudaStreamCaptureStatusInvalidated)
  CAROUSEL_VALUE(cudaStreamCaptureModeGlobal)
  CAROUSEL_VALUE(cudaStreamCaptureModeThreadLocal)
  CAROUSEL_VALUE(cudaStreamCaptureModeRelaxed)
  CAROUSEL_VALUE(cudaFuncAttributeMaxDynamicSharedMemorySize)
  CAROUSEL_VALUE(cudaDevAttrMaxThreadsPerBlock)
  CAROUSEL_VALUE(cudaDevAttrMaxSharedMemoryPerBlock)
  CAROUSEL_VALUE(cudaDevAttrWarpSize)
  CAROUSEL_VALUE(cudaDevAttrMultiProcessorCount)
  CAROUSEL_VALUE(cudaDevAttrMaxThreadsPerMultiProcessor)
  CAROUSEL_VALUE(cudaDevAttrComputeCapabilityMajor)
  CAROUSEL_VALUE(cudaDevAttrComputeCapabilityMinor)
  CAROUSEL_VALUE(cudaDevAttrMaxSharedMemoryPerMultiprocessor)
  CAROUSEL_VALUE(cudaDevAttrCooperativeLaunch)
  CAROUSEL_VALUE(cudaDevAttrMaxSharedMemoryPerBlockOptin)
  CAROUSEL_VALUE(cudaDevAttrMaxBlocksPerMultiprocessor)
  CAROUSEL_VALUE(cudaStreamDefault)
  CAROUSEL_VALUE(cudaStreamNonBlocking)
  CAROUSEL_VALUE(cudaEventDefault)
  CAROUSEL_VALUE(cudaEventDisableTiming)
  CAROUSEL_VALUE(cudaHostAllocDefault)
  CAROUSEL_VALUE(ncclSuccess)
  CAROUSEL_VALUE(ncclUnhandledCudaError)
  CAROUSEL_VALUE(ncclSystemError)
  CAROUSEL_VALUE(ncclInternalError)
  CAROUSEL_VALUE(ncclInvalidArgument)
  CAROUSEL_VALUE(ncclInvalidUsage)
  CAROUSEL_VALUE(ncclRemoteError)
  CAROUSEL_VALUE(ncclInProgress)
  CAROUSEL_VALUE(NCCL_SPLIT_NOCOLOR)
  CAROUSEL_VALUE(NCCL_CONFIG_UNDEF_INT)
  CAROUSEL_VALUE(ncclSum)
  CAROUSEL_VALUE(ncclProd)
  CAROUSEL_VALUE(ncclMax)
  CAROUSEL_VALUE(ncclMin)
  CAROUSEL_VALUE(ncclAvg)
  CAROUSEL_VALUE(ncclInt8)
  CAROUSEL_VALUE(ncclUint8)
  CAROUSEL_VALUE(ncclInt32)
  CAROUSEL_VALUE(ncclUint32)
  CAROUSEL_VALUE(ncclInt64)
  CAROUSEL_VALUE(ncclUint64)
  CAROUSEL_VALUE(ncclFloat16)
  CAROUSEL_VALUE(ncclFloat32)
  CAROUSEL_VALUE(ncclFloat64)
  CAROUSEL_VALUE(ncclBfloat16)
  CAROUSEL_VALUE(NCCL_UNIQUE_ID_BYTES)
  CAROUSEL_TYPE(dim3)
  CAROUSEL_TYPE(uint3)
  CAROUSEL_TYPE(int2)
  CAROUSEL_TYPE(int3)
  CAROUSEL_TYPE(int4)
  CAROUSEL_TYPE(uint2)
  CAROUSEL_TYPE(uint4)
  CAROUSEL_TYPE(float2)
  CAROUSEL_TYPE(float3)
  CAROUSEL_TYPE(float4)
  CAROUSEL_TYPE(double2)
  CAROUSEL_TYPE(double3)
  CAROUSEL_TYPE(ncclUniqueId)
  CAROUSEL_TYPE(cudaError_t)
  CAROUSEL_TYPE(cudaStream_t)
#undef CAROUSEL_VALUE
#undef CAROUSEL_TYPE
  return values;
}
}  // namespace carousel::CAROUSEL_HEADER_NS
