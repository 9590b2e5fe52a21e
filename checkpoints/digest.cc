#include "checkpoints/digest.h"

#include <cstring>

namespace carousel {
namespace {

// No iteration depends on another: five multiplications per element, in vector units where they have them.
template <class Bits>
[[gnu::always_inline]] inline uint64_t Sum(const unsigned char* data, int64_t begin, int64_t count) {
  uint64_t sum = 0;
  for (int64_t j = 0; j < count; ++j) {
    Bits bits;
    std::memcpy(&bits, data + j * static_cast<int64_t>(sizeof(Bits)), sizeof(Bits));
    sum += (DigestMix(static_cast<uint64_t>(begin + j)) | 1) * DigestMix(uint64_t{bits} ^ kDigestSalt);
  }
  return sum;
}

[[gnu::always_inline]] inline uint64_t SumOf(int64_t elem_bytes, const unsigned char* data, int64_t begin,
                                             int64_t count) {
  switch (elem_bytes) {
    case 1:
      return Sum<uint8_t>(data, begin, count);
    case 2:
      return Sum<uint16_t>(data, begin, count);
    case 4:
      return Sum<uint32_t>(data, begin, count);
    default:
      return Sum<uint64_t>(data, begin, count);
  }
}

// The same code for processors that multiply eight 64-bit integers at once: twice to three times as fast.
#if defined(__x86_64__)
[[gnu::target("avx512f,avx512dq,prefer-vector-width=512")]]
#endif
uint64_t
WideSumOf(int64_t elem_bytes, const unsigned char* data, int64_t begin, int64_t count) {
  return SumOf(elem_bytes, data, begin, count);
}
bool HasWide() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq");
#else
  return false;
#endif
}
}  // namespace

uint64_t DigestRange(const void* data, DType dtype, int64_t begin, int64_t count) {
  const unsigned char* const bytes = static_cast<const unsigned char*>(data);
  return HasWide() ? WideSumOf(SizeOf(dtype), bytes, begin, count)
                   : SumOf(SizeOf(dtype), bytes, begin, count);
}

uint64_t DigestSlice(const StateSlice& slice) {
  uint64_t digest = 0;
  ForEachRun(slice, [&](int64_t elem, const char* data, int64_t count) {
    digest += DigestRange(data, slice.dtype, elem, count);
  });
  return digest;
}
}  // namespace carousel
