// Switching between stacks: the machine's part of the emulation.
#pragma once
#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#define CAROUSEL_SIMT_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define CAROUSEL_SIMT_ASAN 1
#endif
#endif

namespace carousel::emulator {

// Makes [low, top) a stack whose first switch calls entry(); returns its stack pointer. entry must not
// return.
void* PrepareFiber(char* low, char* top, void (*entry)());
// Saves the running stack's pointer to *save and continues at `load`.
void SwitchFiber(void** save, void* load);

// For AddressSanitizer; nothing in other builds.
void PoisonMemory(const void* p, size_t bytes);
void UnpoisonMemory(const void* p, size_t bytes);
// The region may hold the only pointers to live memory (stacks that an error left behind).
void RegisterRoots(const void* p, size_t bytes);
void UnregisterRoots(const void* p, size_t bytes);
void BeforeSwitch(void** fake_stack, const void* stack_low, size_t stack_bytes);
void AfterSwitch(void* fake_stack, const void** from_low, size_t* from_bytes);
}  // namespace carousel::emulator
