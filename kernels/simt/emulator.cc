// Options, and running a grid: groups of blocks, each in one OS thread.
#include "kernels/simt/emulator.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <mutex>
#include <thread>

#include "kernels/simt/checker.h"
#include "kernels/simt/emulator_internal.h"
#include "kernels/simt/fiber.h"

namespace carousel::emulator {
namespace {

std::mutex pool_mutex;
std::vector<std::unique_ptr<Worker>> pool;  // workers that no launch uses
std::mutex stats_mutex;
Stats total{};
std::mutex check_mutex;  // the checker's tables serve one launch at a time
std::atomic<uint32_t> next_sequence{1};

char* Map(size_t bytes) {
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) throw KernelError("the emulation cannot map " + std::to_string(bytes) + " bytes");
  return static_cast<char*>(p);
}

void PrepareBlock(Worker& w, Block& b, unsigned rank, uint64_t id, unsigned cluster_rank,
                  unsigned num_threads) {
  const gpu::LaunchCfg& c = *w.config;
  Group& g = w.group;
  const uint64_t gx = c.grid.x, gy = c.grid.y;
  b.index = make_uint3(static_cast<unsigned>(id % gx), static_cast<unsigned>(id / gx % gy),
                       static_cast<unsigned>(id / (gx * gy)));
  b.rank = rank;
  b.live = b.num_threads = num_threads;
  b.threads = &g.threads[size_t{rank} * num_threads];
  b.shared = g.shared + rank * kSharedStride;
  b.dynamic = b.used = c.smem;
  b.variables.clear();
  b.mbarriers.clear();
  b.foreign.clear();
  for (Barrier& barrier : b.barrier) {
    barrier.arrived = barrier.sum = 0;
    barrier.waiters.clear();
  }
  b.pending.resize((num_threads + 31) / 32);
  for (auto& pending : b.pending) pending.clear();
  b.exited.assign(b.pending.size(), 0);
  b.base = 0;
  b.warp_base.assign(b.pending.size(), 0);
  PoisonMemory(b.shared, kSharedStride);
  UnpoisonMemory(b.shared, b.dynamic);
  std::memset(b.shared, 0xff, b.dynamic);
  for (unsigned i = 0; i < num_threads; ++i) {
    Thread& t = b.threads[i];
    t.index = rank * num_threads + i;
    t.thread_idx = make_uint3(i % c.block.x, i / c.block.x % c.block.y, i / (c.block.x * c.block.y));
    t.block_idx = b.index;
    t.block_dim = c.block;
    t.grid_dim = c.grid;
    t.lane = i % 32;
    t.warp = i / 32;
    t.cluster_rank = cluster_rank;
    t.cluster_size = g.cluster_size;
    t.block = &b;
    t.state = Thread::kReady;
    t.mbar = nullptr;
    t.fake_stack = nullptr;
    t.copy_group = t.wgmma_group = t.store_group = 0;
    t.wgmma_fenced = false;
    t.copies.clear();
    t.wgmmas.clear();
    t.stores.clear();
    t.clock.clear();
    t.weak_clock.clear();
    t.foreign.clear();
    t.clock_dirty = t.warp_dirty = false;
    t.proxy_fence = 0;
    t.stack = w.stacks + t.index * w.stack_bytes;
    // Tops are staggered: equal ones would fall into the same cache sets.
    t.stack_pointer = PrepareFiber(t.stack, t.stack + w.stack_bytes - 192 * (t.index % 64), FiberEntry);
    w.ready.PushBack(&t);
  }
}

// The group of blocks first_block, ..., first_block + num_blocks - 1 in the order of clusters.
void PrepareGroup(Worker& w, uint64_t first_block, unsigned num_blocks, uint32_t launch_base) {
  const gpu::LaunchCfg& c = *w.config;
  Group& g = w.group;
  const unsigned per_block = c.block.x * c.block.y * c.block.z;
  const size_t num_threads = size_t{per_block} * num_blocks, stack_bytes = options().stack_bytes;
  if (w.num_stacks < num_threads || w.stack_bytes != stack_bytes) {
    if (w.stacks) {
      UnregisterRoots(w.stacks, w.num_stacks * w.stack_bytes);
      munmap(w.stacks, w.num_stacks * w.stack_bytes);
    }
    w.stacks = Map(num_threads * stack_bytes);
    w.num_stacks = num_threads;
    w.stack_bytes = stack_bytes;
    RegisterRoots(w.stacks, num_threads * stack_bytes);
  }
  if (w.num_shared < num_blocks) {
    if (g.shared) munmap(g.shared, w.num_shared * kSharedStride);
    g.shared = Map(num_blocks * kSharedStride);
    w.num_shared = num_blocks;
  }
  if (g.threads.size() < num_threads) g.threads.resize(num_threads);
  if (g.blocks.size() < num_blocks) g.blocks.resize(num_blocks);
  g.num_threads = g.live = static_cast<unsigned>(num_threads);
  g.num_blocks = num_blocks;
  g.cooperative = c.cooperative;
  g.cluster_size = c.cluster.x * c.cluster.y * c.cluster.z;
  g.loads.clear();
  g.grid_barrier = {};
  g.cluster_barriers.assign(num_blocks / g.cluster_size, {});
  g.cluster_live.assign(num_blocks / g.cluster_size, g.cluster_size * per_block);
  g.sequence = next_sequence.fetch_add(1, std::memory_order_relaxed);
  g.launch_base = launch_base;
  g.now = 1;
  w.spins = 0;
  g.base = 0;
  w.ready.Reset(num_threads);
  UnpoisonMemory(w.stacks, num_threads * stack_bytes);
  for (unsigned i = 0; i < num_blocks; ++i) {
    PrepareBlock(w, g.blocks[i], i, first_block + i, i % g.cluster_size, per_block);
  }
  check::GroupBegin(g);
  if (check::kOn) {
    for (unsigned i = 0; i < num_blocks; ++i) {
      check::SetState(g.blocks[i].shared, kSharedStride, check::State::kFree);
      check::SetState(g.blocks[i].shared, c.smem, check::State::kAllocated);
    }
  }
}

void CheckConfig(const gpu::LaunchCfg& c) {
  const uint64_t num_blocks = uint64_t{c.grid.x} * c.grid.y * c.grid.z;
  const uint64_t num_threads = uint64_t{c.block.x} * c.block.y * c.block.z;
  const uint64_t cluster = uint64_t{c.cluster.x} * c.cluster.y * c.cluster.z;
  const auto fail = [&](const std::string& what) { throw KernelError(std::string(c.name) + ": " + what); };
  const auto text = [](const dim3& d) {
    return std::to_string(d.x) + " x " + std::to_string(d.y) + " x " + std::to_string(d.z);
  };
  if (num_blocks == 0 || c.grid.x > 0x7fffffffu || c.grid.y > 65535 || c.grid.z > 65535) {
    fail("a grid of " + text(c.grid) + " blocks cannot be launched");
  }
  if (num_threads == 0 || num_threads > 1024 || c.block.z > 64) {
    fail("a block of " + text(c.block) + " threads cannot be launched");
  }
  if (c.smem > kSharedMax) {
    fail(std::to_string(c.smem) + " bytes of dynamic shared memory; a block has " +
         std::to_string(kSharedMax));
  }
  if (cluster == 0 || cluster > 8 || c.cluster.y > 1 || c.cluster.z > 1 || c.grid.x % c.cluster.x) {
    fail("clusters of " + text(c.cluster) + " blocks do not fit a grid of " + text(c.grid) +
         " (up to 8 blocks, along x)");
  }
  // The emulated device has room for this many threads at once.
  if (c.cooperative && num_blocks * num_threads > 64 * 1024) {
    fail("a cooperative grid of " + std::to_string(num_blocks) +
         " blocks is too large to be resident at once");
  }
}

cudaError_t RunNow(const gpu::LaunchCfg& config, Thunk thunk, std::shared_ptr<void> pack) {
  run_grid(config, thunk, pack.get());
  return cudaSuccess;
}
}  // namespace

SubmitFn submit = RunNow;
cudaError_t Submit(const gpu::LaunchCfg& config, Thunk thunk, std::shared_ptr<void> pack) {
  return submit(config, thunk, std::move(pack));
}

Options& options() {
  static Options instance;
  return instance;
}
bool SetSchedule(const std::string& name) {
  Options& o = options();
  if (name == "lifo") {
    o.order = Order::kLifo;
  } else if (name == "fifo") {
    o.order = Order::kFifo;
  } else if (name == "random") {
    o.order = Order::kRandom;
  } else if (name.rfind("random:", 0) == 0 && name.size() > 7 && name.size() < 26 &&
             name.find_first_not_of("0123456789", 7) == std::string::npos) {
    o.order = Order::kRandom;
    o.seed = std::stoull(name.substr(7));
  } else {
    return false;
  }
  return true;
}
Stats stats() {
  std::lock_guard lock(stats_mutex);
  return total;
}

void run_grid(const gpu::LaunchCfg& c, Thunk thunk, void* pack) {
  CheckConfig(c);
  std::unique_lock<std::mutex> check_lock(check_mutex, std::defer_lock);
  if (check::kOn) check_lock.lock();
  check::LaunchBegin();
  const uint64_t num_blocks = uint64_t{c.grid.x} * c.grid.y * c.grid.z;
  const unsigned group_size = c.cooperative ? static_cast<unsigned>(num_blocks) : c.cluster.x;
  const uint64_t num_groups = num_blocks / group_size;
  uint64_t first = 0, last = num_groups;
  if (options().only_block >= 0) {
    first = static_cast<uint64_t>(options().only_block) / group_size;
    last = first + 1;
    if (last > num_groups) throw KernelError(std::string(c.name) + ": only_block names no block of the grid");
  }
  // kRandom: blocks in another order.
  uint64_t stride = options().order == Order::kRandom ? 7919 : 1;
  while (stride > 1 && num_groups % stride == 0) stride += 2;
  std::atomic<uint64_t> next{first};
  std::atomic<bool> stop{false};
  std::exception_ptr error;
  std::mutex error_mutex;
  const uint32_t launch_base = next_sequence.load();

  const auto body = [&](uint64_t salt) {
    std::unique_ptr<Worker> w;
    {
      std::lock_guard lock(pool_mutex);
      if (!pool.empty()) {
        w = std::move(pool.back());
        pool.pop_back();
      }
    }
    if (!w) w = std::make_unique<Worker>();
    w->thunk = thunk;
    w->pack = pack;
    w->config = &c;
    w->random_state = options().seed * 0x9e3779b97f4a7c15u + salt + 1;
    if (w->random_state == 0) w->random_state = 1;
    Stats counts{};
    for (uint64_t i; !stop && (i = next++) < last;) {
      const uint64_t g = last - first == num_groups ? i * stride % num_groups : i;
      try {
        PrepareGroup(*w, g * group_size, group_size, launch_base);
        RunGroup(*w);
      } catch (...) {
        std::lock_guard lock(error_mutex);
        if (!error) error = std::current_exception();
        stop = true;
      }
      counts.switches += w->counts.switches;
      counts.collectives += w->counts.collectives;
      counts.mma += w->counts.mma;
      counts.blocks += w->counts.blocks;
    }
    {
      std::lock_guard lock(stats_mutex);
      total.switches += counts.switches;
      total.collectives += counts.collectives;
      total.mma += counts.mma;
      total.blocks += counts.blocks;
    }
    std::lock_guard lock(pool_mutex);
    pool.push_back(std::move(w));
  };
  const uint64_t wanted = check::kOn ? 1 : static_cast<uint64_t>(std::max(1, options().workers));
  const int num_workers = static_cast<int>(std::min<uint64_t>(wanted, last - first));
  std::vector<std::thread> threads;
  for (int i = 1; i < num_workers; ++i) threads.emplace_back(body, static_cast<uint64_t>(i));
  body(0);
  for (std::thread& t : threads) t.join();
  if (error) std::rethrow_exception(error);
}
}  // namespace carousel::emulator
