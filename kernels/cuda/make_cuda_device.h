// The entry points of the GPU backend: the same sources for GPUs and for the emulation on the host. A build
// without CUDA links no_cuda.cc for the first.
#pragma once
#include <memory>
#include <string>

#include "core/device.h"

namespace carousel {
// Which kernels a GPU backend takes: the ones for its GPU, or only those that every GPU runs (sm_80), to
// compare.
enum class GpuKernels { kBest, kPortable };
}  // namespace carousel

namespace carousel::cuda {

// "cuda:<index>": that GPU of this machine, which becomes the calling thread's current device. Null and
// *error, with what to do about it, if it cannot be had.
std::unique_ptr<Device> MakeCudaDevice(int index, std::string* error, GpuKernels kernels = GpuKernels::kBest);
}  // namespace carousel::cuda

namespace carousel::simt {

// "simt:<index>": the same code on the emulated GPU.
std::unique_ptr<Device> MakeCudaDevice(int index, std::string* error, GpuKernels kernels = GpuKernels::kBest);
}  // namespace carousel::simt
