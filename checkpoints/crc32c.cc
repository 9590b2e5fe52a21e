#include "checkpoints/crc32c.h"

#include <isa-l/crc.h>

#include <algorithm>

namespace carousel {
namespace {
// Polynomials over GF(2) modulo that of CRC-32C, as the checksum has them: bit 31 is the coefficient of x^0.
constexpr uint32_t kPolynomial = 0x82f63b78u, kOne = 1u << 31, kX = 1u << 30;

uint32_t Multiply(uint32_t a, uint32_t b) {
  uint32_t product = 0;
  for (uint32_t bit = kOne; bit != 0; bit >>= 1) {
    if ((a & bit) != 0) product ^= b;
    b = (b & 1u) != 0 ? (b >> 1) ^ kPolynomial : b >> 1;  // times x
  }
  return product;
}
}  // namespace

uint32_t CombineCrc32c(uint32_t crc_a, uint32_t crc_b, int64_t num_bytes_b) {
  // Bytes behind A multiply its remainder by x^8 each. The complements at both ends of the checksums cancel.
  uint32_t power = kOne, square = kX;
  for (uint64_t bits = 8 * static_cast<uint64_t>(num_bytes_b); bits != 0; bits >>= 1) {
    if ((bits & 1u) != 0) power = Multiply(power, square);
    square = Multiply(square, square);
  }
  return Multiply(power, crc_a) ^ crc_b;
}

uint32_t UpdateCrc32c(uint32_t crc, const void* data, int64_t num_bytes) {
  // ISA-L reads only, counts in int, and leaves the complement at both ends to its caller.
  unsigned char* p = static_cast<unsigned char*>(const_cast<void*>(data));
  uint32_t state = ~crc;
  while (num_bytes > 0) {
    const int n = static_cast<int>(std::min<int64_t>(num_bytes, int64_t{1} << 30));
    state = crc32_iscsi(p, n, state);
    p += n;
    num_bytes -= n;
  }
  return ~state;
}
}  // namespace carousel
