// The functions that -fsanitize=thread makes the compiler call around every memory access, given CUDA's
// meaning. They are linked instead of the ThreadSanitizer runtime.
#include "kernels/simt/checker_hooks.h"

#ifdef CAROUSEL_SIMT_CHECK
#include <cstdint>

using carousel::emulator::check::KernelAccess;

#define CAROUSEL_PC __builtin_return_address(0)
// The compiler makes an access of 16 bytes of what is known to be a multiple of 8, and of the parts of a
// vector one by one where it takes it apart: not every misaligned vector is seen, but every one that is not a
// multiple of 4 bytes.
constexpr size_t AlignmentOf(size_t bytes) { return bytes < 8 ? bytes : 8; }
#define CAROUSEL_TOUCH(p, n, alignment, write) \
  KernelAccess(p, n, alignment, !(write), write, false, CAROUSEL_PC)
#define CAROUSEL_ACCESS(n)                                                               \
  void __tsan_read##n(void* p) { CAROUSEL_TOUCH(p, n, AlignmentOf(n), false); }          \
  void __tsan_write##n(void* p) { CAROUSEL_TOUCH(p, n, AlignmentOf(n), true); }          \
  void __tsan_volatile_read##n(void* p) { CAROUSEL_TOUCH(p, n, AlignmentOf(n), false); } \
  void __tsan_volatile_write##n(void* p) { CAROUSEL_TOUCH(p, n, AlignmentOf(n), true); } \
  void __tsan_unaligned_read##n(void* p) { CAROUSEL_TOUCH(p, n, 1, false); }             \
  void __tsan_unaligned_write##n(void* p) { CAROUSEL_TOUCH(p, n, 1, true); }
#define CAROUSEL_RMW(T, bits, op)                                         \
  T __tsan_atomic##bits##_fetch_##op(volatile T* p, T v, int) {           \
    KernelAccess(p, sizeof(T), sizeof(T), true, true, true, CAROUSEL_PC); \
    return __atomic_fetch_##op(p, v, __ATOMIC_SEQ_CST);                   \
  }
#define CAROUSEL_ATOMIC(T, bits)                                                                   \
  T __tsan_atomic##bits##_load(const volatile T* p, int) {                                         \
    KernelAccess(p, sizeof(T), sizeof(T), true, false, true, CAROUSEL_PC);                         \
    return __atomic_load_n(p, __ATOMIC_SEQ_CST);                                                   \
  }                                                                                                \
  void __tsan_atomic##bits##_store(volatile T* p, T v, int) {                                      \
    KernelAccess(p, sizeof(T), sizeof(T), false, true, true, CAROUSEL_PC);                         \
    __atomic_store_n(p, v, __ATOMIC_SEQ_CST);                                                      \
  }                                                                                                \
  T __tsan_atomic##bits##_exchange(volatile T* p, T v, int) {                                      \
    KernelAccess(p, sizeof(T), sizeof(T), false, true, true, CAROUSEL_PC);                         \
    return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST);                                            \
  }                                                                                                \
  CAROUSEL_RMW(T, bits, add)                                                                       \
  CAROUSEL_RMW(T, bits, sub)                                                                       \
  CAROUSEL_RMW(T, bits, and)                                                                       \
  CAROUSEL_RMW(T, bits, or)                                                                        \
  CAROUSEL_RMW(T, bits, xor)                                                                       \
  int __tsan_atomic##bits##_compare_exchange_strong(volatile T* p, T* expected, T v, int, int) {   \
    KernelAccess(p, sizeof(T), sizeof(T), true, true, true, CAROUSEL_PC);                          \
    return __atomic_compare_exchange_n(p, expected, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); \
  }                                                                                                \
  int __tsan_atomic##bits##_compare_exchange_weak(volatile T* p, T* expected, T v, int, int) {     \
    KernelAccess(p, sizeof(T), sizeof(T), true, true, true, CAROUSEL_PC);                          \
    return __atomic_compare_exchange_n(p, expected, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); \
  }                                                                                                \
  T __tsan_atomic##bits##_compare_exchange_val(volatile T* p, T expected, T v, int, int) {         \
    KernelAccess(p, sizeof(T), sizeof(T), true, true, true, CAROUSEL_PC);                          \
    __atomic_compare_exchange_n(p, &expected, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);       \
    return expected;                                                                               \
  }

extern "C" {
// What the compiler declares for each file, each function and each virtual table: nothing to do.
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_read_range(void* p, size_t n) { KernelAccess(p, n, 1, true, false, false, CAROUSEL_PC); }
void __tsan_write_range(void* p, size_t n) { KernelAccess(p, n, 1, false, true, false, CAROUSEL_PC); }
CAROUSEL_ACCESS(1)
CAROUSEL_ACCESS(2)
CAROUSEL_ACCESS(4)
CAROUSEL_ACCESS(8)
CAROUSEL_ACCESS(16)
CAROUSEL_ATOMIC(uint8_t, 8)
CAROUSEL_ATOMIC(uint16_t, 16)
CAROUSEL_ATOMIC(uint32_t, 32)
CAROUSEL_ATOMIC(uint64_t, 64)
void __tsan_atomic_thread_fence(int) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
void __tsan_atomic_signal_fence(int) {}

// Copies of blocks that the compiler leaves as calls: the linker sends them here (--wrap, in CMakeLists.txt).
void* __real_memcpy(void* to, const void* from, size_t n);
void* __real_memmove(void* to, const void* from, size_t n);
void* __real_memset(void* to, int value, size_t n);
void* __wrap_memcpy(void* to, const void* from, size_t n) {
  if (n > 0) {
    KernelAccess(from, n, 1, true, false, false, CAROUSEL_PC);
    KernelAccess(to, n, 1, false, true, false, CAROUSEL_PC);
  }
  return __real_memcpy(to, from, n);
}
void* __wrap_memmove(void* to, const void* from, size_t n) {
  if (n > 0) {
    KernelAccess(from, n, 1, true, false, false, CAROUSEL_PC);
    KernelAccess(to, n, 1, false, true, false, CAROUSEL_PC);
  }
  return __real_memmove(to, from, n);
}
void* __wrap_memset(void* to, int value, size_t n) {
  if (n > 0) KernelAccess(to, n, 1, false, true, false, CAROUSEL_PC);
  return __real_memset(to, value, n);
}
}
#endif  // CAROUSEL_SIMT_CHECK
