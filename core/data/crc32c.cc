#include "core/data/crc32c.h"

#include <array>
#include <bit>
#include <cstring>

namespace carousel {
namespace {
static_assert(std::endian::native == std::endian::little);

// kTables[0][b]: the register after byte b; kTables[k][b]: after byte b and k zero bytes.
constexpr std::array<std::array<uint32_t, 256>, 8> MakeTables() {
  std::array<std::array<uint32_t, 256>, 8> tables = {};
  for (uint32_t b = 0; b < 256; ++b) {
    uint32_t r = b;
    for (int bit = 0; bit < 8; ++bit) r = (r >> 1) ^ ((r & 1) ? 0x82F63B78u : 0u);
    tables[0][b] = r;
  }
  for (size_t k = 1; k < 8; ++k) {
    for (size_t b = 0; b < 256; ++b) {
      const uint32_t r = tables[k - 1][b];
      tables[k][b] = (r >> 8) ^ tables[0][r & 0xFF];
    }
  }
  return tables;
}
constexpr auto kTables = MakeTables();
}  // namespace

uint32_t ExtendCrc32c(uint32_t crc, const void* data, int64_t num_bytes) {
  const unsigned char* p = static_cast<const unsigned char*>(data);
  uint32_t r = ~crc;
  for (; num_bytes >= 8; num_bytes -= 8, p += 8) {
    uint32_t low, high;
    std::memcpy(&low, p, 4);
    std::memcpy(&high, p + 4, 4);
    low ^= r;
    r = kTables[7][low & 0xFF] ^ kTables[6][(low >> 8) & 0xFF] ^ kTables[5][(low >> 16) & 0xFF] ^
        kTables[4][low >> 24] ^ kTables[3][high & 0xFF] ^ kTables[2][(high >> 8) & 0xFF] ^
        kTables[1][(high >> 16) & 0xFF] ^ kTables[0][high >> 24];
  }
  for (; num_bytes > 0; --num_bytes, ++p) r = (r >> 8) ^ kTables[0][(r ^ *p) & 0xFF];
  return ~r;
}
}  // namespace carousel
