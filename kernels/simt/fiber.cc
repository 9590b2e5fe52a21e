#include "kernels/simt/fiber.h"

#include <algorithm>
#include <cstdint>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#ifdef CAROUSEL_SIMT_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#include <sanitizer/lsan_interface.h>
#endif

namespace carousel::emulator {

#if defined(__x86_64__)
extern "C" void CarouselSwitchFiber(void** save, void* load);
// The registers that a call preserves, and the stack pointer. 11 to 17 ns; swapcontext takes 250.
asm(R"(
.text
.globl CarouselSwitchFiber
.type CarouselSwitchFiber,@function
CarouselSwitchFiber:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size CarouselSwitchFiber,.-CarouselSwitchFiber
)");
void SwitchFiber(void** save, void* load) { CarouselSwitchFiber(save, load); }

void* PrepareFiber(char*, char* top, void (*entry)()) {
  void** t = reinterpret_cast<void**>(top) - 2;  // entry sees rsp % 16 == 8, as after a call
  t[0] = reinterpret_cast<void*>(entry);
  t[1] = nullptr;
  std::fill(t - 6, t, nullptr);
  return t - 6;
}
#else
void SwitchFiber(void** save, void* load) {
  ucontext_t here;
  *save = &here;
  swapcontext(&here, static_cast<ucontext_t*>(load));
}
void* PrepareFiber(char* low, char* top, void (*entry)()) {
  auto* context =
      reinterpret_cast<ucontext_t*>((reinterpret_cast<uintptr_t>(top) - sizeof(ucontext_t)) & ~uintptr_t{63});
  getcontext(context);
  context->uc_stack.ss_sp = low;
  context->uc_stack.ss_size = static_cast<size_t>(reinterpret_cast<char*>(context) - low);
  context->uc_link = nullptr;
  makecontext(context, entry, 0);
  return context;
}
#endif

#ifdef CAROUSEL_SIMT_ASAN
void PoisonMemory(const void* p, size_t bytes) { __asan_poison_memory_region(p, bytes); }
void UnpoisonMemory(const void* p, size_t bytes) { __asan_unpoison_memory_region(p, bytes); }
void RegisterRoots(const void* p, size_t bytes) { __lsan_register_root_region(p, bytes); }
void UnregisterRoots(const void* p, size_t bytes) { __lsan_unregister_root_region(p, bytes); }
void BeforeSwitch(void** fake_stack, const void* stack_low, size_t stack_bytes) {
  __sanitizer_start_switch_fiber(fake_stack, stack_low, stack_bytes);
}
void AfterSwitch(void* fake_stack, const void** from_low, size_t* from_bytes) {
  __sanitizer_finish_switch_fiber(fake_stack, from_low, from_bytes);
}
#else
void PoisonMemory(const void*, size_t) {}
void UnpoisonMemory(const void*, size_t) {}
void RegisterRoots(const void*, size_t) {}
void UnregisterRoots(const void*, size_t) {}
void BeforeSwitch(void**, const void*, size_t) {}
void AfterSwitch(void*, const void**, size_t*) {}
#endif
}  // namespace carousel::emulator
