// The emulation's host side: options, device memory, running a grid, and what tests use to remove a
// synchronisation. A block's threads are fibers of one OS thread. Every fiber runs until it waits in a
// barrier, a warp collective or an mbarrier; the schedule chooses who runs next. Warp collectives are
// computed for all lanes by the last to arrive; asynchronous copies leave NaN in their destination until they
// are waited for; results start as NaN. What CUDA leaves undefined (a divergent barrier, a deadlock, a lane
// outside the mask, ...) throws KernelError from run_grid.
//
// With CAROUSEL_SIMT_CHECK the kernels' memory accesses are checked too (checker.h).
#pragma once
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/cuda/device.h"

namespace carousel::emulator {

// Text: "kernel name: what happened, with places  [block (x,y,z) thread (x,y,z)]".
struct KernelError : std::runtime_error {
  using runtime_error::runtime_error;
};

enum class Order {
  kLifo,    // one warp runs as far ahead as barriers allow
  kFifo,    // warps take turns
  kRandom,  // bursts of both, blocks in another order
};
struct Options {
  Order order = Order::kLifo;
  uint64_t seed = 1;
  int workers = 1;                // OS threads that share the blocks of a grid; the checker uses one
  size_t stack_bytes = 64 << 10;  // per CUDA thread
  bool name_lines = true;         // of accesses in the checker's reports; takes some 0.1 s each
  int64_t only_block = -1;        // run this block of every grid alone: makes 64-bit indexing testable
};
// Changes apply to grids started later.
Options& options();
// "lifo", "fifo", "random" or "random:SEED"; false for anything else.
bool SetSchedule(const std::string& name);

struct Stats {
  uint64_t switches, collectives, mma, blocks;
};
Stats stats();  // since the program's start

// ---- launches
// Runs the whole grid before it returns; throws KernelError. Any number of OS threads may call it.
void run_grid(const gpu::LaunchCfg& config, Thunk thunk, void* pack);
// What gpu::launch calls. The default runs the grid at once and throws; a CUDA runtime puts its own in, which
// queues the work on config.stream.
using SubmitFn = cudaError_t (*)(const gpu::LaunchCfg& config, Thunk thunk, std::shared_ptr<void> pack);
extern SubmitFn submit;

// ---- device memory: one reserved address range; addresses are never used twice
// Filled with 0xff (NaN in every floating-point format) if `poison`. Throws KernelError if nothing is left.
void* device_alloc(size_t bytes, bool poison = true);
// Throws KernelError if p is not the start of a live allocation.
void device_free(void* p);
// [p, p + bytes) lies inside one live allocation.
bool device_owns(const void* p, size_t bytes);
// The host wrote there (cudaMemcpy, cudaMemset): tells the checker.
void mark_initialized(const void* p, size_t bytes);
// Whether the device has written [p, p + bytes); always true without the checker.
bool is_initialized(const void* p, size_t bytes);

// ---- planted bugs: synchronisations as places in the source
struct Site {
  std::string kernel;  // LaunchCfg::name
  std::string file;    // as __builtin_FILE gives it
  unsigned line = 0;
  std::string kind;  // "__syncthreads", "cp_async_wait", ...
  bool operator==(const Site&) const = default;
};
// Collects the sites that launches execute, until ListSites is called; it returns each once, in order of
// first use.
void RecordSites();
std::vector<Site> ListSites();
// From now on the site's synchronisation does nothing (a barrier that also computes a value computes it but
// orders no memory). One site at a time.
void RemoveSite(const Site& site);
void RestoreSites();
}  // namespace carousel::emulator
