// Barriers of blocks, parts of blocks, clusters and grids; fences.
#include <cstddef>

#include "kernels/simt/checker.h"
#include "kernels/simt/emulator_internal.h"

namespace carousel::emulator {

unsigned BlockBarrier(unsigned pred, bool reduces, const Loc& loc) {
  const check::InEmulation inside;
  const bool removed = Removed("__syncthreads", loc);
  if (removed && !reduces) return pred;
  Thread& t = *Current();
  Block& k = *t.block;
  Barrier& b = k.barrier[0];
  if (k.live != k.num_threads) {
    Fail("__syncthreads at %s after %u threads of the block have exited", LocName(loc).c_str(),
         k.num_threads - k.live);
  }
  if (b.arrived && !SameLoc(b.loc, loc)) {
    Fail("divergent __syncthreads: this thread is at %s, others wait at %s", LocName(loc).c_str(),
         LocName(b.loc).c_str());
  }
  b.loc = loc;
  b.sum += pred;
  b.expected = k.live;
  if (++b.arrived == b.expected) {
    const unsigned result = b.sum;
    for (Thread* w : b.waiters) w->result = result;
    if (!removed) check::BlockBarrier(k);
    CompleteBarrier(b);
    return result;
  }
  b.waiters.push_back(&t);
  Wait("__syncthreads", loc);
  return t.result;
}

void NamedBarrier(int id, int num_threads, bool wait, const Loc& loc) {
  const check::InEmulation inside;
  if (Removed(wait ? "bar_sync" : "bar_arrive", loc)) return;
  Thread& t = *Current();
  if (id < 1 || id > 15 || num_threads < 32 || num_threads % 32) {
    Fail("named barrier %d of %d threads at %s: ids are 1 to 15, threads a multiple of 32", id, num_threads,
         LocName(loc).c_str());
  }
  Barrier& b = t.block->barrier[id];
  if (b.arrived && b.expected != static_cast<unsigned>(num_threads)) {
    Fail("named barrier %d: %d threads expected at %s, %u at %s", id, num_threads, LocName(loc).c_str(),
         b.expected, LocName(b.loc).c_str());
  }
  b.expected = static_cast<unsigned>(num_threads);
  b.loc = loc;
  check::Release(t, &b);
  if (wait) b.waiters.push_back(&t);
  if (++b.arrived == b.expected) {
    for (Thread* w : b.waiters) check::Acquire(*w, &b);
    CompleteBarrier(b);
  } else if (wait) {
    Wait("named barrier", loc);
  }
}

void ClusterBarrier(const Loc& loc) {
  const check::InEmulation inside;
  if (Removed("cluster_sync", loc)) return;
  const unsigned cluster = Current()->block->rank / group->cluster_size;
  Barrier& b = group->cluster_barriers[cluster];
  const unsigned all = group->cluster_size * Current()->block->num_threads;
  if (group->cluster_live[cluster] != all) {
    Fail("cluster_sync at %s after %u threads of the cluster have exited", LocName(loc).c_str(),
         all - group->cluster_live[cluster]);
  }
  b.loc = loc;
  b.waiters.push_back(Current());
  if (++b.arrived < all) {
    Wait("cluster_sync", loc);
    return;
  }
  if (group->cluster_barriers.size() == 1) {
    check::GroupBarrier(*group);
  } else {  // a cooperative grid of several clusters
    for (Thread* t : b.waiters) check::Release(*t, &b);
    for (Thread* t : b.waiters) check::Acquire(*t, &b);
  }
  CompleteBarrier(b);
}

void GridBarrier(const Loc& loc) {
  const check::InEmulation inside;
  if (Removed("grid_sync", loc)) return;
  if (!group->cooperative) Fail("grid_sync at %s in a launch that is not cooperative", LocName(loc).c_str());
  Barrier& b = group->grid_barrier;
  if (group->live != group->num_threads) {
    Fail("grid_sync at %s after %u threads of the grid have exited", LocName(loc).c_str(),
         group->num_threads - group->live);
  }
  b.loc = loc;
  b.waiters.push_back(Current());
  if (++b.arrived < group->num_threads) {
    Wait("grid_sync", loc);
    return;
  }
  check::GroupBarrier(*group);
  CompleteBarrier(b);
}

// Orders nothing by itself: between blocks use ld_acquire, st_release and atomic_add_acq_rel, which the
// checker follows.
void ThreadFence(const Loc&) {
  const check::InEmulation inside;
  std::atomic_thread_fence(std::memory_order_seq_cst);
}

void Release(const void* p, const Loc& loc) {
  const check::InEmulation inside;
  if (!Removed("release", loc)) check::Release(*Current(), p);
}
void Acquire(const void* p, const Loc& loc) {
  const check::InEmulation inside;
  if (!Removed("acquire", loc)) check::Acquire(*Current(), p);
}
void Trap(const Loc& loc) {
  const check::InEmulation inside;
  Fail("__trap at %s", LocName(loc).c_str());
}

void* MapShared(const void* p, unsigned rank, const Loc& loc) {
  const check::InEmulation inside;
  Block& b = *Current()->block;
  const size_t offset = static_cast<size_t>(static_cast<const char*>(p) - b.shared);
  if (offset >= kSharedStride)
    Fail("map_shared at %s: not an address in this block's shared memory", LocName(loc).c_str());
  if (rank >= group->cluster_size) {
    Fail("map_shared at %s: no block %u in a cluster of %u", LocName(loc).c_str(), rank, group->cluster_size);
  }
  const unsigned first = b.rank - b.rank % group->cluster_size;
  if (group->blocks[first + rank].live == 0) {
    Fail("the access at %s: block %u of the cluster has exited, its shared memory is gone",
         LocName(loc).c_str(), rank);
  }
  return group->blocks[first + rank].shared + offset;
}
}  // namespace carousel::emulator
