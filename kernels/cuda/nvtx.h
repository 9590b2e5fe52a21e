// Named ranges for profilers (Nsight Systems). NVTX is header-only and does nothing while no profiler
// listens; the emulation has no ranges.
#pragma once

#ifdef __CUDACC__
#include <nvtx3/nvToolsExt.h>
#endif

namespace carousel::nvtx {

// Of the calling thread; ranges nest. `name` is copied.
inline void Push([[maybe_unused]] const char* name) {
#ifdef __CUDACC__
  nvtxRangePushA(name);
#endif
}
inline void Pop() {
#ifdef __CUDACC__
  nvtxRangePop();
#endif
}
}  // namespace carousel::nvtx
