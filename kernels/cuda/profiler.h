// What profilers of CUDA capture, and what the GPU is called. In programs without CUDA there is neither.
#pragma once
#include <string>

namespace carousel::cuda {

// cudaProfilerStart and cudaProfilerStop: the part of the program that nsys and ncu capture when told so
// (--capture-range=cudaProfilerApi). Nothing happens without them.
void StartProfiler();
void StopProfiler();
// Of "cuda:N": "NVIDIA H100 80GB HBM3". Empty for any other device, or if the driver does not say.
std::string ModelName(const std::string& device_name);
}  // namespace carousel::cuda
