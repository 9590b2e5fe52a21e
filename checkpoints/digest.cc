#include "checkpoints/digest.h"

#include <cstring>

namespace carousel {
namespace {

// No iteration depends on another: five multiplications per element, in vector units where they have them.
template <class Bits>
uint64_t Sum(const unsigned char* data, int64_t begin, int64_t count) {
  uint64_t sum = 0;
  for (int64_t j = 0; j < count; ++j) {
    Bits bits;
    std::memcpy(&bits, data + j * static_cast<int64_t>(sizeof(Bits)), sizeof(Bits));
    sum += (DigestMix(static_cast<uint64_t>(begin + j)) | 1) * DigestMix(uint64_t{bits} ^ kDigestSalt);
  }
  return sum;
}
}  // namespace

uint64_t DigestRange(const void* data, DType dtype, int64_t begin, int64_t count) {
  const unsigned char* const bytes = static_cast<const unsigned char*>(data);
  switch (SizeOf(dtype)) {
    case 1:
      return Sum<uint8_t>(bytes, begin, count);
    case 2:
      return Sum<uint16_t>(bytes, begin, count);
    case 4:
      return Sum<uint32_t>(bytes, begin, count);
    default:
      return Sum<uint64_t>(bytes, begin, count);
  }
}

uint64_t DigestSlice(const StateSlice& slice) {
  uint64_t digest = 0;
  ForEachRun(slice, [&](int64_t elem, const char* data, int64_t count) {
    digest += DigestRange(data, slice.dtype, elem, count);
  });
  return digest;
}
}  // namespace carousel
