// Between the calls that -fsanitize=thread makes the compiler add (checker_hooks.cc) and the checker.
#pragma once
#include <cstddef>

namespace carousel::emulator::check {
// An access of the running CUDA thread at program counter `pc`; nothing outside kernels. A GPU faults where
// the address is not a multiple of `alignment`.
void KernelAccess(const volatile void* p, size_t bytes, size_t alignment, bool read, bool write, bool atomic,
                  void* pc);
}  // namespace carousel::emulator::check
