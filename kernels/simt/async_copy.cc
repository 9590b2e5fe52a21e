// cp.async, mbarriers, bulk copies and TMA. A copy's destination is poisoned when the copy is issued and
// written when it is waited for: a missing wait and a buffer used again too early both give NaN.
#include <algorithm>
#include <cstring>

#include "kernels/simt/checker.h"
#include "kernels/simt/emulator_internal.h"

namespace carousel::emulator {

using check::State;

// ---- cp.async
void CpAsync(void* dst, const void* src, unsigned bytes, unsigned valid_bytes, const Loc& loc) {
  const check::InEmulation inside;
  Thread& t = *Current();
  char* d = CheckShared(dst, bytes, bytes, "cp.async", loc);
  if (reinterpret_cast<uintptr_t>(src) % bytes) {
    Fail("cp.async at %s: source %p is not a multiple of %u bytes", LocName(loc).c_str(), src, bytes);
  }
  if (valid_bytes) check::Access(src, valid_bytes, false, false, loc);
  check::Access(dst, bytes, true, false, loc);
  check::SetState(dst, bytes, State::kInFlight);
  std::memset(d, 0xff, bytes);
  t.copies.push_back({d, static_cast<const char*>(src), bytes, valid_bytes, t.copy_group, loc});
}
void CpAsyncCommit() {
  const check::InEmulation inside;
  ++Current()->copy_group;
}
void CpAsyncWait(int pending_groups, const Loc& loc) {
  const check::InEmulation inside;
  if (Removed("cp_async_wait", loc)) return;
  Thread& t = *Current();
  const unsigned keep = t.copy_group - std::min(static_cast<unsigned>(pending_groups), t.copy_group);
  auto it = t.copies.begin();
  for (; it != t.copies.end() && it->group < keep; ++it) {
    if (it->valid) std::memcpy(it->dst, it->src, it->valid);
    std::memset(it->dst + it->valid, 0, it->bytes - it->valid);
    check::SetState(it->dst, it->bytes, State::kInitialized);
    check::Access(it->dst, it->bytes, true, false, it->loc);
  }
  t.copies.erase(t.copies.begin(), it);
}

// ---- mbarriers
namespace {

// The word: phase, pending arrivals, their number in every phase, bytes still to come.
struct MbarBits {
  uint64_t phase : 1, pending : 20, count : 20;
  int64_t bytes : 23;
};
static_assert(sizeof(MbarBits) == 8);

Block& BlockOf(const void* shared) {
  const size_t offset = static_cast<size_t>(static_cast<const char*>(shared) - group->shared);
  return group->blocks[offset / kSharedStride];
}
// The barrier must have been initialised; with `from_outside` also announced to the cluster and the copy
// engines.
void CheckMbar(uint64_t* bar, bool from_outside, const char* what, const Loc& loc) {
  const size_t offset = static_cast<size_t>(reinterpret_cast<char*>(bar) - group->shared);
  if (offset >= group->num_blocks * kSharedStride) {
    Fail("%s at %s: the mbarrier is not in shared memory", what, LocName(loc).c_str());
  }
  Block& b = BlockOf(bar);
  const auto it = b.mbarriers.find(bar);
  if (it == b.mbarriers.end())
    Fail("%s at %s: the mbarrier has not been initialised", what, LocName(loc).c_str());
  if (from_outside && !it->second.fenced) {
    Fail("%s at %s: no fence_mbar_init after mbar_init", what, LocName(loc).c_str());
  }
}
void UpdateMbar(uint64_t* bar, int arrivals, int64_t bytes, const char* what, const Loc& loc) {
  MbarBits m;
  std::memcpy(&m, bar, 8);
  if (static_cast<int64_t>(m.pending) < arrivals) {
    Fail("%s at %s: more arrivals at the mbarrier than its count of %u", what, LocName(loc).c_str(),
         static_cast<unsigned>(m.count));
  }
  m.pending -= static_cast<unsigned>(arrivals);
  m.bytes += bytes;
  const bool done = m.pending == 0 && m.bytes == 0;
  if (done) {
    m.phase ^= 1;
    m.pending = m.count;
  }
  std::memcpy(bar, &m, 8);
  if (!done) return;
  for (unsigned i = group->num_threads; i-- > 0;) {
    Thread& t = group->threads[i];
    if (t.mbar == bar && t.state == Thread::kWaiting) {
      t.mbar = nullptr;
      MakeReady(&t, WakeToFront());
    }
  }
}
// The variable of block `rank` of the caller's cluster at the same offset.
template <class T>
T* InBlock(T* p, unsigned rank, const Loc& loc) {
  return static_cast<T*>(MapShared(p, rank, loc));
}
}  // namespace

void MbarInit(uint64_t* bar, unsigned count, const Loc& loc) {
  const check::InEmulation inside;
  CheckShared(bar, 8, 8, "mbar_init", loc);
  Block& b = *Current()->block;
  if (count == 0 || count >= 1u << 20) Fail("mbar_init at %s: %u arrivals", LocName(loc).c_str(), count);
  if (b.mbarriers.count(bar))
    Fail("mbar_init at %s: the mbarrier is initialised twice", LocName(loc).c_str());
  check::Access(bar, 8, true, false, loc);
  const MbarBits m{0, count, count, 0};
  std::memcpy(bar, &m, 8);
  b.mbarriers[bar] = {Current()->index, false};
}
void FenceMbarInit(const Loc& loc) {
  const check::InEmulation inside;
  if (Removed("fence_mbar_init", loc)) return;
  for (auto& [bar, info] : Current()->block->mbarriers) info.fenced |= info.thread == Current()->index;
}
void FenceProxyAsync(const Loc& loc) {
  const check::InEmulation inside;
  if (Removed("fence_proxy_async", loc)) return;
  Current()->proxy_fence = group->now++;
}
void MbarArrive(uint64_t* bar, int arrivals, unsigned expect_tx_bytes, int rank, const Loc& loc) {
  const check::InEmulation inside;
  if (arrivals && Removed("mbar_arrive", loc)) return;
  if (expect_tx_bytes && Removed("mbar_expect_tx", loc)) expect_tx_bytes = 0;
  if (rank >= 0) bar = InBlock(bar, static_cast<unsigned>(rank), loc);
  CheckMbar(bar, rank >= 0 && &BlockOf(bar) != Current()->block, "mbar_arrive", loc);
  check::Access(bar, 8, false, false, loc);
  if (rank >= 0) {
    check::ReleaseWeakly(*Current(), bar);
  } else {
    check::Release(*Current(), bar);
  }
  UpdateMbar(bar, arrivals, expect_tx_bytes, "mbar_arrive", loc);
}
bool MbarTest(uint64_t* bar, unsigned parity, const Loc& loc) {
  const check::InEmulation inside;
  CheckMbar(bar, false, "mbar_test", loc);
  SpinYield();
  MbarBits m;
  std::memcpy(&m, bar, 8);
  if (m.phase == parity) return false;
  check::Acquire(*Current(), bar);
  return true;
}
void MbarWait(uint64_t* bar, unsigned parity, const Loc& loc) {
  const check::InEmulation inside;
  if (Removed("mbar_wait", loc)) return;
  CheckMbar(bar, false, "mbar_wait", loc);
  check::Access(bar, 8, false, false, loc);
  for (;;) {
    MbarBits m;
    std::memcpy(&m, bar, 8);
    if (m.phase != parity) break;
    Current()->mbar = bar;
    Wait("mbar_wait", loc);
  }
  check::Acquire(*Current(), bar);
}

// ---- loads into shared memory
namespace {

// Calls f(p, bytes, offset, lead) for every 16-byte piece of the box, at `offset` of the dense box: `bytes`
// of it, `lead` bytes behind its start, lie in the tensor, at p; the rest is outside (p is null where all of
// it is).
template <class F>
void ForBoxPieces(const TensorMap& m, const int* coord, F f) {
  const uint32_t rows = m.box[1] * m.box[2] * m.box[3];
  for (uint32_t r = 0; r < rows; ++r) {
    const uint32_t in_box[4] = {0, r % m.box[1], r / m.box[1] % m.box[2], r / (m.box[1] * m.box[2])};
    bool inside = true;
    const char* row = m.base;
    for (int d = 1; d < 4; ++d) {
      const int64_t i = int64_t{coord[d]} + in_box[d];
      inside = inside && i >= 0 && i < static_cast<int64_t>(m.dim[d]);
      row += i * static_cast<int64_t>(m.stride_bytes[d]);
    }
    for (uint32_t piece = 0; piece < 8; ++piece) {
      const int64_t col = int64_t{coord[0]} + piece * 8;
      const int64_t begin = std::max<int64_t>(col, 0),
                    end = std::min(col + 8, static_cast<int64_t>(m.dim[0]));
      const uint32_t offset = r * 128 + piece * 16;
      if (inside && begin < end) {
        f(row + begin * 2, static_cast<unsigned>(end - begin) * 2, offset,
          static_cast<unsigned>(begin - col) * 2);
      } else {
        f(nullptr, 0u, offset, 0u);
      }
    }
  }
}
void CheckMap(const TensorMap& m, const char* what, const Loc& loc) {
  if (m.rank == 0) Fail("%s at %s: the tensor map is not valid", what, LocName(loc).c_str());
}
void IssueLoad(BulkLoadOp op) {
  CheckMbar(op.bar, true, "asynchronous load", op.loc);
  CheckNoPendingWgmma(op.dst, op.bytes, op.loc);
  check::Access(op.dst, op.bytes, true, true, op.loc);
  check::SetState(op.dst, op.bytes, State::kInFlight);
  // Whoever waits sees what the copy writes, and nothing else that this thread wrote before. What it read is
  // over: what it copies, or where to, was computed from that.
  check::ReleaseWeakly(*Current(), op.bar);
  std::memset(op.dst, 0xff, op.bytes);
  group->loads.push_back(op);
}
// Once for the caller's block, or for every block of the mask at the same offsets.
void IssueLoads(BulkLoadOp op, unsigned cluster_mask) {
  if (cluster_mask == 0) return IssueLoad(op);
  char* const dst = op.dst;
  uint64_t* const bar = op.bar;
  for (unsigned rank = 0; cluster_mask >> rank; ++rank) {
    if (!(cluster_mask >> rank & 1)) continue;
    op.dst = InBlock(dst, rank, op.loc);
    op.bar = InBlock(bar, rank, op.loc);
    IssueLoad(op);
  }
}
}  // namespace

void BulkLoad(void* dst, const void* src, unsigned bytes, uint64_t* bar, unsigned cluster_mask,
              const Loc& loc) {
  const check::InEmulation inside;
  if (bytes == 0 || bytes % 16 || reinterpret_cast<uintptr_t>(src) % 16) {
    Fail("bulk load at %s: address and size must be multiples of 16 bytes", LocName(loc).c_str());
  }
  check::Access(src, bytes, false, true, loc);
  BulkLoadOp op{};
  op.dst = CheckShared(dst, bytes, 16, "bulk load", loc);
  op.src = static_cast<const char*>(src);
  op.bytes = bytes;
  op.bar = bar;
  op.issuer = Current()->index;
  op.loc = loc;
  IssueLoads(op, cluster_mask);
}
void TmaLoad(void* dst, const TensorMap& map, const int* coord, uint64_t* bar, unsigned cluster_mask,
             const Loc& loc) {
  const check::InEmulation inside;
  CheckMap(map, "TMA load", loc);
  BulkLoadOp op{};
  op.bytes = map.box[1] * map.box[2] * map.box[3] * 128;
  op.dst = CheckShared(dst, op.bytes, 128, "TMA load", loc);
  op.bar = bar;
  op.issuer = Current()->index;
  op.map = map;
  std::copy(coord, coord + 4, op.coord);
  op.loc = loc;
  ForBoxPieces(map, coord, [&](const char* p, unsigned bytes, uint32_t, unsigned) {
    if (p) check::Access(p, bytes, false, true, loc);
  });
  IssueLoads(op, cluster_mask);
}
void StoreAsync(void* dst, const void* value, unsigned bytes, uint64_t* bar, unsigned rank, const Loc& loc) {
  const check::InEmulation inside;
  CheckShared(dst, bytes, bytes, "st_async", loc);
  BulkLoadOp op{};
  op.dst = static_cast<char*>(InBlock(dst, rank, loc));
  op.bytes = bytes;
  op.bar = InBlock(bar, rank, loc);
  op.issuer = Current()->index;
  op.is_value = true;
  std::memcpy(op.value, value, bytes);
  op.loc = loc;
  IssueLoad(op);
}
void CompleteBulkLoad() {
  auto it = group->loads.begin();
  if (options().order == Order::kRandom) it += static_cast<ptrdiff_t>(worker->Random() % group->loads.size());
  const BulkLoadOp op = *it;
  group->loads.erase(it);
  if (op.is_value) {
    std::memcpy(op.dst, op.value, op.bytes);
  } else if (op.src) {
    std::memcpy(op.dst, op.src, op.bytes);
  } else {
    char* shared = BlockOf(op.dst).shared;
    const uint32_t start = static_cast<uint32_t>(op.dst - shared);
    ForBoxPieces(op.map, op.coord, [&](const char* p, unsigned bytes, uint32_t offset, unsigned lead) {
      char* d = shared + Swizzle(start + offset, 1);
      std::memset(d, 0, 16);
      if (p) std::memcpy(d + lead, p, bytes);
    });
  }
  check::SetState(op.dst, op.bytes, State::kInitialized);
  UpdateMbar(op.bar, 0, -static_cast<int64_t>(op.bytes), "asynchronous load", op.loc);
}

// ---- stores from shared memory
void BulkStore(void* dst, const void* src, unsigned bytes, const Loc& loc) {
  const check::InEmulation inside;
  if (bytes == 0 || bytes % 16 || reinterpret_cast<uintptr_t>(dst) % 16) {
    Fail("bulk store at %s: address and size must be multiples of 16 bytes", LocName(loc).c_str());
  }
  Thread& t = *Current();
  BulkStoreOp op{};
  op.dst = static_cast<char*>(dst);
  op.src = CheckShared(src, bytes, 16, "bulk store", loc);
  op.bytes = bytes;
  op.group = t.store_group;
  op.loc = loc;
  check::Access(src, bytes, false, true, loc);
  check::SetState(src, bytes, State::kPinned);
  check::Access(dst, bytes, true, true, loc);
  std::memset(dst, 0xff, bytes);
  t.stores.push_back(std::move(op));
}
void TmaStore(const TensorMap& map, const int* coord, const void* src, const Loc& loc) {
  const check::InEmulation inside;
  CheckMap(map, "TMA store", loc);
  Thread& t = *Current();
  BulkStoreOp op{};
  op.bytes = map.box[1] * map.box[2] * map.box[3] * 128;
  op.src = CheckShared(src, op.bytes, 128, "TMA store", loc);
  op.group = t.store_group;
  op.map = map;
  std::copy(coord, coord + 4, op.coord);
  op.loc = loc;
  check::Access(src, op.bytes, false, true, loc);
  check::SetState(src, op.bytes, State::kPinned);
  ForBoxPieces(map, coord, [&](const char* p, unsigned bytes, uint32_t, unsigned) {
    if (!p) return;
    check::Access(p, bytes, true, true, loc);
    std::memset(const_cast<char*>(p), 0xff, bytes);
  });
  t.stores.push_back(std::move(op));
}
namespace {
void ReadSource(BulkStoreOp& op) {
  if (op.is_read) return;
  op.data.assign(op.src, op.src + op.bytes);
  check::SetState(op.src, op.bytes, State::kInitialized);
  check::Access(op.src, op.bytes, false, true, op.loc);
  op.is_read = true;
}
void WriteDestination(const BulkStoreOp& op) {
  if (op.dst) {
    std::memcpy(op.dst, op.data.data(), op.bytes);
    return;
  }
  // The swizzle is a function of the address, so of the box's place in shared memory.
  const uint32_t start = static_cast<uint32_t>(op.src - Current()->block->shared);
  ForBoxPieces(op.map, op.coord, [&](const char* p, unsigned bytes, uint32_t offset, unsigned lead) {
    if (p)
      std::memcpy(const_cast<char*>(p), op.data.data() + (Swizzle(start + offset, 1) - start) + lead, bytes);
  });
}
}  // namespace
void BulkCommit() {
  const check::InEmulation inside;
  ++Current()->store_group;
}
void BulkWait(int pending_groups, bool read_only, const Loc& loc) {
  const check::InEmulation inside;
  if (Removed(read_only ? "bulk_wait_read" : "bulk_wait", loc)) return;
  Thread& t = *Current();
  const unsigned keep = t.store_group - std::min(static_cast<unsigned>(pending_groups), t.store_group);
  auto it = t.stores.begin();
  for (; it != t.stores.end() && it->group < keep; ++it) {
    ReadSource(*it);
    if (!read_only) WriteDestination(*it);
  }
  if (!read_only) t.stores.erase(t.stores.begin(), it);
}
void FinishStores(Thread& t) {
  for (const BulkStoreOp& op : t.stores) {
    if (!op.is_read) Fail("thread exits with a bulk store from %s never waited for", LocName(op.loc).c_str());
    WriteDestination(op);
  }
  t.stores.clear();
}

TensorMap MakeTensorMap(const void* base, int rank, const uint64_t* dim, const uint64_t* stride_bytes,
                        const uint32_t* box) {
  TensorMap m;
  bool valid = reinterpret_cast<uintptr_t>(base) % 16 == 0 && box[0] == 64;
  uint64_t extent = dim[0] * 2;
  m.base = static_cast<const char*>(base);
  for (int d = 0; d < rank; ++d) {
    m.dim[d] = dim[d];
    m.box[d] = box[d];
    if (d > 0) m.stride_bytes[d] = stride_bytes[d - 1];
    valid = valid && dim[d] > 0 && box[d] > 0 && box[d] <= 256 && m.stride_bytes[d] % (d > 0 ? 16 : 2) == 0;
    if (d > 0 && valid) extent += (dim[d] - 1) * stride_bytes[d - 1];
  }
  m.rank = valid && device_owns(base, extent) ? rank : 0;
  return m;
}
}  // namespace carousel::emulator
