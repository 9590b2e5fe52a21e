// The checker's hooks in the emulation. They are empty unless built with CAROUSEL_SIMT_CHECK; then the device
// sources are compiled with -fsanitize=thread, and checker.cc stands in for the ThreadSanitizer runtime:
// every access of a kernel to memory is checked for
//   bounds          shared and global memory that is not allocated, memory of the host, another thread's
//   local variables initialisation  reads of what nobody wrote races           two accesses, one a write,
//   with no synchronisation between them; only synchronisation counts, never the
//                   order in which the emulation happened to run the threads
//   alignment       accesses of 2 to 16 bytes that a GPU refuses (up to multiples of 8: checker_hooks.cc)
//   copies          accesses to memory that an asynchronous copy in flight writes (or, for stores, reads)
// A finding throws KernelError from the launch, with the places of both accesses.
//
// Two bytes share a cell: there is no race check for single bytes. Shadow memory takes 13 bytes for each byte
// touched.
#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/simt/emulator_internal.h"

namespace carousel::emulator::check {

enum class State : uint8_t {
  kFree = 0,
  kAllocated = 1,  // never written
  kInitialized = 2,
  kInFlight = 3,  // an asynchronous copy in flight writes it
  kPinned = 4,    // an asynchronous store in flight reads it
};

#ifdef CAROUSEL_SIMT_CHECK
constexpr bool kOn = true;
// The emulation's own accesses are not a kernel's: every function that kernels call holds one of these. (A
// function template that is instantiated in kernels too may be linked in their, instrumented, form.)
extern constinit thread_local bool inside_emulation;
class InEmulation {
 public:
  InEmulation() : before_(inside_emulation) { inside_emulation = true; }
  ~InEmulation() { inside_emulation = before_; }

 private:
  const bool before_;
};
inline void LeaveEmulation() { inside_emulation = false; }  // a new thread starts
void SetState(const void* p, size_t bytes, State state);
bool IsInitialized(const void* p, size_t bytes);
// The emulation accesses memory for the running thread. async_proxy: by wgmma, TMA or a bulk copy.
void Access(const void* p, size_t bytes, bool write, bool async_proxy, const Loc& loc);
void LaunchBegin();
void GroupBegin(Group& group);
// Order among the threads of a block, of the group (cluster or cooperative grid), of some lanes of a warp.
void BlockBarrier(Block& block);
void GroupBarrier(Group& group);
void WarpBarrier(Thread** lanes, unsigned mask);
// What t did before comes before what others do after they acquire the same key. Weakly: only what it read,
// and what asynchronous copies write for it.
void Release(Thread& t, const void* key);
void ReleaseWeakly(Thread& t, const void* key);
void Acquire(Thread& t, const void* key);
#else
constexpr bool kOn = false;
struct InEmulation {
  InEmulation() {}
};
inline void LeaveEmulation() {}
inline void SetState(const void*, size_t, State) {}
inline bool IsInitialized(const void*, size_t) { return true; }
inline void Access(const void*, size_t, bool, bool, const Loc&) {}
inline void LaunchBegin() {}
inline void GroupBegin(Group&) {}
inline void BlockBarrier(Block&) {}
inline void GroupBarrier(Group&) {}
inline void WarpBarrier(Thread**, unsigned) {}
inline void Release(Thread&, const void*) {}
inline void ReleaseWeakly(Thread&, const void*) {}
inline void Acquire(Thread&, const void*) {}
#endif
}  // namespace carousel::emulator::check
