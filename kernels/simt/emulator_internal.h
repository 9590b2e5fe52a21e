// The emulation's state, shared by its files. Not for kernels, nor for anything outside this folder.
#pragma once
#include <atomic>
#include <deque>
#include <map>
#include <string>
#include <vector>

#include "kernels/simt/emulator.h"

namespace carousel::emulator {

struct Block;

// ---- what waits to happen
struct AsyncCopy {  // cp.async of one thread
  char* dst;
  const char* src;
  unsigned bytes, valid, group;
  Loc loc;
};
struct WgmmaOp {
  float* d;
  WgmmaShape shape;
  bool a_in_registers;
  uint32_t a[4];           // what the registers held when it was issued
  const uint32_t* a_from;  // where they are: the same until it has been waited for
  uint64_t a_desc, b_desc;
  bool accumulate;
  unsigned group;
  Loc loc;
};
struct BulkStoreOp {  // shared to global; the source is read when it is waited for, the destination written
                      // later still
  char* dst;          // null: a tensor store
  const char* src;
  unsigned bytes, group;
  TensorMap map;
  int coord[4];
  bool is_read;
  std::vector<char> data;  // of the source, once is_read
  Loc loc;
};
struct BulkLoadOp {  // global to shared, completing on an mbarrier
  char* dst;
  const char* src;  // null: a tensor load
  unsigned bytes;
  uint64_t* bar;
  unsigned issuer;  // index of the thread in its group
  TensorMap map;
  int coord[4];
  char value[16];  // st_async: copied from here (is_value)
  bool is_value;
  Loc loc;
};

struct Thread : ThreadView {
  void* stack_pointer = nullptr;
  char* stack = nullptr;
  void* fake_stack = nullptr;  // AddressSanitizer's
  Block* block = nullptr;
  unsigned index = 0;  // in the group
  unsigned warp = 0;   // in the block
  enum State : uint8_t { kReady, kWaiting, kDone } state = kReady;
  const char* what = "";  // why it waits, for the deadlock report
  Loc loc;
  uint64_t* mbar = nullptr;  // the mbarrier it waits for
  unsigned result = 0;       // of the barrier it waits in
  unsigned copy_group = 0, wgmma_group = 0, store_group = 0;
  bool wgmma_fenced = false;  // wgmma_fence since the last wgmma_commit
  std::vector<AsyncCopy> copies;
  std::vector<WgmmaOp> wgmmas;
  std::vector<BulkStoreOp> stores;
  // Checker. clock[u]: what thread u did up to that time happened before what this thread does now.
  // weak_clock[u], never less: of that only what thread u read or let an asynchronous copy write.
  std::vector<uint32_t> clock, weak_clock;
  // Clocks that may differ from those of the block's, of the warp's other threads.
  bool clock_dirty = false, warp_dirty = false;
  // Other groups of the launch (blocks that this one has acquired from): their clocks by sequence number.
  std::map<uint32_t, std::vector<uint32_t>> foreign;
  uint32_t proxy_fence = 0;  // time of the last fence_proxy_async
};

struct Collective {
  unsigned mask, arrived;
  const char* kind;
  Loc loc;
  void* arg[32];
};
struct Barrier {
  unsigned arrived = 0, expected = 0, sum = 0;
  Loc loc;
  std::vector<Thread*> waiters;
};
struct SharedVariable {
  const void* key;
  size_t offset, bytes;
  const char* name;
};

struct MbarrierInfo {
  unsigned thread;  // that initialised it
  bool fenced;      // the rest of the cluster and the copy engines may know it
};
struct Block {
  uint3 index;
  unsigned rank = 0;  // in the group
  unsigned live = 0;  // threads that have not exited
  Thread* threads = nullptr;
  unsigned num_threads = 0;
  char* shared = nullptr;
  size_t dynamic = 0, used = 0;  // bytes
  std::vector<SharedVariable> variables;
  Barrier barrier[16];
  std::vector<std::vector<Collective>> pending;  // warp collectives in which lanes wait, per warp
  std::vector<uint32_t> exited;                  // lanes that have exited, per warp
  std::map<const uint64_t*, MbarrierInfo> mbarriers;
  // Checker: what its threads know of other groups, time of the last barrier of the block and of its warps.
  std::map<uint32_t, std::vector<uint32_t>> foreign;
  uint32_t base = 0;
  std::vector<uint32_t> warp_base;
};

// Blocks that run together in one OS thread: one block, a cluster, or a cooperative grid.
struct Group {
  std::vector<Thread> threads;
  std::vector<Block> blocks;
  unsigned num_threads = 0, num_blocks = 0, live = 0, cluster_size = 1;
  bool cooperative = false;
  char* shared = nullptr;
  std::vector<Barrier> cluster_barriers;  // per cluster
  std::vector<unsigned> cluster_live;
  Barrier grid_barrier;
  std::deque<BulkLoadOp> loads;
  std::map<uint32_t, std::vector<uint32_t>> foreign;  // checker, as in Block
  // Checker: unique number of this run, first number of its launch, time, time of the last barrier of all.
  uint32_t sequence = 0, launch_base = 0, now = 1, base = 0;
};

// Threads that can run.
class ReadyRing {
 public:
  void Reset(size_t capacity) {
    size_t size = 64;
    while (size < capacity + 1) size *= 2;
    if (ring_.size() < size) ring_.resize(size);
    head_ = count_ = 0;
  }
  size_t size() const { return count_; }
  Thread*& operator[](size_t i) { return ring_[(head_ + i) & (ring_.size() - 1)]; }
  void PushBack(Thread* t) {
    ++count_;
    (*this)[count_ - 1] = t;
  }
  void PushFront(Thread* t) {
    head_ = (head_ - 1) & (ring_.size() - 1);
    ++count_;
    (*this)[0] = t;
  }
  Thread* Pop() {
    Thread* t = (*this)[0];
    head_ = (head_ + 1) & (ring_.size() - 1);
    --count_;
    return t;
  }

 private:
  std::vector<Thread*> ring_;
  size_t head_ = 0, count_ = 0;
};

// What an OS thread needs to run groups.
struct Worker {
  Group group;
  ReadyRing ready;
  char* stacks = nullptr;
  size_t stack_bytes = 0, num_stacks = 0, num_shared = 0;
  void* main_sp = nullptr;
  void* main_fake_stack = nullptr;
  const void* main_stack = nullptr;
  size_t main_stack_bytes = 0;
  Thunk thunk = nullptr;
  void* pack = nullptr;
  const gpu::LaunchCfg* config = nullptr;
  std::string error;
  uint64_t random_state = 1;
  uint64_t spins = 0;  // of threads that poll, in this group
  bool to_front = true;
  Stats counts{};
  uint64_t Random() {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
  }
};

extern constinit thread_local Group* group;
extern constinit thread_local Worker* worker;
inline Thread* Current() { return static_cast<Thread*>(self); }

constexpr size_t kSharedStride = 256 << 10;  // address range of a block's shared memory
constexpr size_t kSharedMax = 227 << 10;
constexpr size_t kDeviceBytes = size_t{64} << 30;
extern char* device_base;  // of "global memory", kDeviceBytes; null before the first allocation

// ---- errors
// Ends the launch with this text, the kernel and the running thread. On the host it throws KernelError.
[[noreturn]] void Fail(const char* format, ...) __attribute__((format(printf, 1, 2)));
// Text without memory of its own: what a failing fiber holds is never destroyed.
template <size_t kBytes>
struct FixedText {
  char text[kBytes] = {};
  const char* c_str() const { return text; }
};
FixedText<96> ThreadName(const Thread& t);
FixedText<128> LocName(const Loc& loc);  // "file.cu:12"
bool SameLoc(const Loc& a, const Loc& b);

// ---- scheduling (scheduler.cc)
void RunGroup(Worker& w);  // throws KernelError
void FiberEntry();         // where a fiber starts
bool WakeToFront();
void MakeReady(Thread* t, bool front);
// The running thread waits until MakeReady.
void Wait(const char* what, const Loc& loc);
void CompleteBarrier(Barrier& b);

// Runs fn(args of all lanes, mask) once when every lane of the mask is here (warp_collectives.cc).
using CollectiveFn = void (*)(void** args, unsigned mask);
void RunCollective(unsigned mask, const char* kind, const Loc& loc, void* arg, CollectiveFn fn);

// ---- memory
// Address inside the block's shared memory, checked for bounds and alignment.
char* CheckShared(const void* p, size_t bytes, size_t alignment, const char* what, const Loc& loc);
// The 16-byte chunk permutation of shared memory; mode as in gpu::make_smem_desc.
uint32_t Swizzle(uint32_t address, uint32_t mode);
// Completes one bulk load (the oldest, or any in the random order).
void CompleteBulkLoad();
// Writes what bulk stores have read (thread exit).
void FinishStores(Thread& t);
// [p, p + bytes) is about to be overwritten by an asynchronous copy: fails if an operand of a wgmma in flight
// is there.
void CheckNoPendingWgmma(const char* p, unsigned bytes, const Loc& loc);

// ---- planted bugs (sites.cc)
extern std::atomic<bool> sites_active;
bool SiteIsRemoved(const char* kind, const Loc& loc);
// Records the site; true if the synchronisation must do nothing.
inline bool Removed(const char* kind, const Loc& loc) {
  return sites_active.load(std::memory_order_relaxed) && SiteIsRemoved(kind, loc);
}
}  // namespace carousel::emulator
