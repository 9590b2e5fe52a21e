// CRC-32C (Castagnoli, RFC 3720 appendix B.4) by ISA-L: the checksum of files and of their blocks.
#pragma once
#include <cstdint>

namespace carousel {

// The checksum of `num_bytes` more bytes after those that gave `crc`; start with 0.
uint32_t UpdateCrc32c(uint32_t crc, const void* data, int64_t num_bytes);
// That of A followed by B, from those of both.
uint32_t CombineCrc32c(uint32_t crc_a, uint32_t crc_b, int64_t num_bytes_b);
}  // namespace carousel
