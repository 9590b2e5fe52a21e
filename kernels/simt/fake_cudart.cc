// The fake CUDA runtime: options, devices, errors, functions. Streams, graphs and memory have files of their
// own.
#include "kernels/simt/fake_cudart.h"

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "kernels/simt/emulator.h"
#include "kernels/simt/fake_cudart_state.h"

namespace carousel::fake_cuda {
namespace {
thread_local int current_device = 0;
thread_local cudaError_t last_error = cudaSuccess;
thread_local bool in_operation = false;

constexpr int kThreadsPerSm = 2048, kBlocksPerSm = 32, kMaxThreadsPerBlock = 1024, kMaxClusterBlocks = 8;
constexpr int64_t kDefaultSharedBytes = 48 << 10, kReservedSharedBytes = 1 << 10;
constexpr unsigned kMaxGridYz = 65535, kMaxBlockZ = 64, kMaxGridX = 0x7fffffff;

int64_t SharedBytesPerSm() { return GetState().options.max_shared_bytes + kReservedSharedBytes; }

int BlocksPerSm(int64_t block_threads, int64_t shared_bytes) {
  if (block_threads < 1 || block_threads > kMaxThreadsPerBlock) return 0;
  if (shared_bytes > GetState().options.max_shared_bytes) return 0;
  const int64_t by_threads = kThreadsPerSm / ((block_threads + 31) / 32 * 32);
  const int64_t by_memory = SharedBytesPerSm() / (shared_bytes + kReservedSharedBytes);
  return static_cast<int>(std::min({by_threads, by_memory, int64_t{kBlocksPerSm}}));
}
}  // namespace

State& GetState() {
  static State& state = *new State;  // never destroyed: other statics may still use it
  return state;
}
int& CurrentDevice() { return current_device; }
bool& InOperation() { return in_operation; }

cudaError_t Return(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

cudaError_t Enter(const char* function, Needs needs) {
  if (in_operation) return cudaErrorNotPermitted;  // a host function on a stream must not call CUDA
  State& s = GetState();
  const int64_t call = s.calls[function]++;
  s.last_call = Seconds();
  if (s.options.fail_function == function && s.options.fail_call == call) return s.options.fail_error;
  if (needs == Needs::kNothing) return cudaSuccess;
  if (!s.options.has_driver || s.options.driver_version / 1000 < CUDART_VERSION / 1000) {
    return cudaErrorInsufficientDriver;
  }
  if (s.options.num_devices < 1) return cudaErrorNoDevice;
  while (static_cast<int>(s.default_streams.size()) < s.options.num_devices) {
    s.default_streams.push_back(std::make_unique<CUstream_st>());
    s.default_streams.back()->device = static_cast<int>(s.default_streams.size()) - 1;
  }
  return s.sticky;
}

void SetOptions(const Options& options) {
  State& s = GetState();
  const Lock lock(s.mutex);
  ForgetWork();
  s.options = options;
  s.random = (options.seed * 0x9e3779b97f4a7c15u) | 1;
  s.calls.clear();
  s.event_waits = 0;
  last_error = cudaSuccess;
}
const Options& GetOptions() { return GetState().options; }

LiveObjects CountLiveObjects() {
  State& s = GetState();
  const Lock lock(s.mutex);
  LiveObjects live;
  for (const auto& stream : s.streams) live.streams += !stream->destroyed;
  live.events = static_cast<int64_t>(s.events.size());
  live.graphs = static_cast<int64_t>(s.graphs.size());
  live.executable_graphs = static_cast<int64_t>(s.executable_graphs.size());
  live.device_allocations = static_cast<int64_t>(s.device_memory.size());
  for (const auto& [begin, allocation] : s.device_memory) live.device_bytes += allocation.bytes;
  live.pinned_allocations = static_cast<int64_t>(s.pinned_memory.size());
  return live;
}

int64_t CountCalls(const std::string& function) {
  State& s = GetState();
  const Lock lock(s.mutex);
  const auto it = s.calls.find(function);
  return it == s.calls.end() ? 0 : it->second;
}

namespace {
// Whether the hardware would take this launch.
cudaError_t CheckLaunch(const gpu::LaunchCfg& c) {
  const Options& o = GetState().options;
  if (!o.has_kernel_images) return cudaErrorNoKernelImageForDevice;
  const int64_t threads = int64_t{c.block.x} * c.block.y * c.block.z;
  const int64_t blocks = int64_t{c.grid.x} * c.grid.y * c.grid.z;
  if (threads < 1 || threads > kMaxThreadsPerBlock || c.block.z > kMaxBlockZ)
    return cudaErrorInvalidConfiguration;
  if (blocks < 1 || c.grid.x > kMaxGridX || c.grid.y > kMaxGridYz || c.grid.z > kMaxGridYz) {
    return cudaErrorInvalidConfiguration;
  }
  if (static_cast<int64_t>(c.smem) > o.max_shared_bytes) return cudaErrorInvalidValue;
  const int64_t cluster = int64_t{c.cluster.x} * c.cluster.y * c.cluster.z;
  if (cluster > 1) {
    if (o.compute_capability < 90) return cudaErrorNotSupported;
    if (cluster > kMaxClusterBlocks || c.grid.x % c.cluster.x || c.grid.y % c.cluster.y ||
        c.grid.z % c.cluster.z) {
      return cudaErrorInvalidClusterSize;
    }
  }
  if (c.cooperative && blocks > int64_t{o.num_sms} * BlocksPerSm(threads, static_cast<int64_t>(c.smem))) {
    return cudaErrorCooperativeLaunchTooLarge;
  }
  return cudaSuccess;
}

cudaError_t Launch(const gpu::LaunchCfg& config, emulator::Thunk thunk, std::shared_ptr<void> pack) {
  FAKE_CUDA_ENTER_AS("cudaLaunchKernel", Needs::kDevice);
  CUstream_st* stream = FindStream(config.stream);
  if (stream == nullptr || stream->device != CurrentDevice()) return Return(cudaErrorInvalidResourceHandle);
  if (const cudaError_t error = CheckLaunch(config)) return Return(error);
  return Return(EnqueueLocked(stream, [config, thunk, pack] {
    emulator::run_grid(config, thunk, pack.get());
    return Progress::kDone;
  }));
}
// Every program that calls a function of this file has the emulator's launches come here.
[[maybe_unused]] const bool installed = [] {
  emulator::submit = Launch;
  return true;
}();
}  // namespace
}  // namespace carousel::fake_cuda

namespace fake = carousel::fake_cuda;
using fake::Needs;
using fake::Return;

extern "C" {

// ---- versions and devices

cudaError_t cudaDriverGetVersion(int* version) {
  FAKE_CUDA_ENTER(Needs::kNothing);
  const fake::Options& o = fake::GetOptions();
  *version = o.has_driver ? o.driver_version : 0;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  FAKE_CUDA_ENTER(Needs::kNothing);
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int* count) {
  *count = 0;
  FAKE_CUDA_ENTER(Needs::kDevice);
  *count = fake::GetOptions().num_devices;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  FAKE_CUDA_ENTER(Needs::kDevice);
  if (device < 0 || device >= fake::GetOptions().num_devices) return Return(cudaErrorInvalidDevice);
  fake::CurrentDevice() = device;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  FAKE_CUDA_ENTER(Needs::kDevice);
  *device = fake::CurrentDevice();
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  FAKE_CUDA_ENTER(Needs::kDevice);
  const fake::Options& o = fake::GetOptions();
  if (device < 0 || device >= o.num_devices) return Return(cudaErrorInvalidDevice);
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = o.num_sms;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = o.compute_capability / 10;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = o.compute_capability % 10;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = fake::kDefaultSharedBytes;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(o.max_shared_bytes);
      break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = static_cast<int>(fake::SharedBytesPerSm());
      break;
    case cudaDevAttrMaxThreadsPerBlock:
      *value = fake::kMaxThreadsPerBlock;
      break;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *value = fake::kThreadsPerSm;
      break;
    case cudaDevAttrMaxBlocksPerMultiprocessor:
      *value = fake::kBlocksPerSm;
      break;
    case cudaDevAttrWarpSize:
      *value = 32;
      break;
    case cudaDevAttrCooperativeLaunch:
      *value = 1;
      break;
    default:
      return Return(cudaErrorNotSupported);  // not modelled: better an error than a number made up
  }
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  FAKE_CUDA_ENTER(Needs::kDevice);
  const fake::Options& o = fake::GetOptions();
  if (device < 0 || device >= o.num_devices) return Return(cudaErrorInvalidDevice);
  *properties = {};
  std::snprintf(properties->name, sizeof properties->name, "emulated sm_%d", o.compute_capability);
  properties->major = o.compute_capability / 10;
  properties->minor = o.compute_capability % 10;
  properties->multiProcessorCount = o.num_sms;
  properties->totalGlobalMem = static_cast<size_t>(o.memory_bytes);
  properties->sharedMemPerBlock = fake::kDefaultSharedBytes;
  properties->sharedMemPerBlockOptin = static_cast<size_t>(o.max_shared_bytes);
  properties->sharedMemPerMultiprocessor = static_cast<size_t>(fake::SharedBytesPerSm());
  properties->maxThreadsPerBlock = fake::kMaxThreadsPerBlock;
  properties->maxThreadsPerMultiProcessor = fake::kThreadsPerSm;
  properties->warpSize = 32;
  const int gpu = o.first_gpu + device;  // of the machine
  std::snprintf(properties->uuid.bytes, sizeof properties->uuid.bytes, "emulated %d", gpu);
  properties->pciBusID = gpu + 1;
  return cudaSuccess;
}

// ---- errors

cudaError_t cudaGetLastError() {
  const cudaError_t error = fake::last_error;
  fake::last_error = fake::GetState().sticky;  // such an error stays
  return error;
}
cudaError_t cudaPeekAtLastError() { return fake::last_error; }

const char* cudaGetErrorName(cudaError_t error) {
#define FAKE_CUDA_NAME(name) \
  case name:                 \
    return #name
  switch (error) {
    FAKE_CUDA_NAME(cudaSuccess);
    FAKE_CUDA_NAME(cudaErrorInvalidValue);
    FAKE_CUDA_NAME(cudaErrorMemoryAllocation);
    FAKE_CUDA_NAME(cudaErrorInvalidConfiguration);
    FAKE_CUDA_NAME(cudaErrorInsufficientDriver);
    FAKE_CUDA_NAME(cudaErrorNoDevice);
    FAKE_CUDA_NAME(cudaErrorInvalidDevice);
    FAKE_CUDA_NAME(cudaErrorDevicesUnavailable);
    FAKE_CUDA_NAME(cudaErrorNoKernelImageForDevice);
    FAKE_CUDA_NAME(cudaErrorInvalidResourceHandle);
    FAKE_CUDA_NAME(cudaErrorIllegalState);
    FAKE_CUDA_NAME(cudaErrorNotReady);
    FAKE_CUDA_NAME(cudaErrorNotPermitted);
    FAKE_CUDA_NAME(cudaErrorNotSupported);
    FAKE_CUDA_NAME(cudaErrorLaunchFailure);
    FAKE_CUDA_NAME(cudaErrorLaunchTimeout);
    FAKE_CUDA_NAME(cudaErrorInvalidClusterSize);
    FAKE_CUDA_NAME(cudaErrorCooperativeLaunchTooLarge);
    FAKE_CUDA_NAME(cudaErrorStreamCaptureUnsupported);
    FAKE_CUDA_NAME(cudaErrorStreamCaptureInvalidated);
    FAKE_CUDA_NAME(cudaErrorStreamCaptureMerge);
    FAKE_CUDA_NAME(cudaErrorStreamCaptureUnmatched);
    FAKE_CUDA_NAME(cudaErrorStreamCaptureUnjoined);
    FAKE_CUDA_NAME(cudaErrorStreamCaptureIsolation);
    FAKE_CUDA_NAME(cudaErrorStreamCaptureImplicit);
    FAKE_CUDA_NAME(cudaErrorStreamCaptureWrongThread);
    FAKE_CUDA_NAME(cudaErrorCapturedEvent);
    default:
      return "cudaError";
  }
#undef FAKE_CUDA_NAME
}
const char* cudaGetErrorString(cudaError_t error) {
  const fake::State& s = fake::GetState();
  if (error != cudaSuccess && error == s.sticky) return s.sticky_text.c_str();
  return error == cudaSuccess ? "no error" : cudaGetErrorName(error);
}

// ---- functions

cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute attribute, int value) {
  FAKE_CUDA_ENTER(Needs::kDevice);
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  const bool fits = value >= 0 && value <= fake::GetOptions().max_shared_bytes;
  return Return(fits ? cudaSuccess : cudaErrorInvalidValue);
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  FAKE_CUDA_ENTER(Needs::kDevice);
  if (!fake::GetOptions().has_kernel_images) return Return(cudaErrorNoKernelImageForDevice);
  *attributes = {};
  attributes->maxThreadsPerBlock = fake::kMaxThreadsPerBlock;
  attributes->maxDynamicSharedSizeBytes = static_cast<int>(fake::kDefaultSharedBytes);
  attributes->binaryVersion = attributes->ptxVersion = fake::GetOptions().compute_capability;
  return cudaSuccess;
}
// By threads and shared memory: registers are not known here.
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int block_threads,
                                                          size_t shared_bytes) {
  FAKE_CUDA_ENTER(Needs::kDevice);
  *blocks = fake::BlocksPerSm(block_threads, static_cast<int64_t>(shared_bytes));
  return Return(block_threads > 0 ? cudaSuccess : cudaErrorInvalidValue);
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void* function,
                                                                   int block_threads, size_t shared_bytes,
                                                                   unsigned) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, function, block_threads, shared_bytes);
}
}  // extern "C"
