// The one place that knows which backends exist.
#pragma once
#include <memory>
#include <string>

#include "core/device.h"

namespace carousel {

// name: "cpu" (threads: number of CPU threads of this rank, >= 1), "cuda:N", or "simt": the CUDA backend's
// sources on an emulated GPU, some thousand times slower than a real one, for checks. "cuda:N:portable" and
// "simt:portable" leave out the kernels for one architecture alone, to compare with them. Null and *error,
// with what to do about it, if it cannot be had.
std::unique_ptr<Device> MakeDevice(const std::string& name, int threads, std::string* error);
}  // namespace carousel
