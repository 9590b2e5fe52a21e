// In a program without CUDA.
#include "kernels/cuda/profiler.h"

namespace carousel::cuda {
void StartProfiler() {}
void StopProfiler() {}
std::string ModelName(const std::string&) { return {}; }
}  // namespace carousel::cuda
