// CRC-32C (Castagnoli, RFC 3720 appendix B.4) by ISA-L: the checksum of files and of their blocks.
#pragma once
#include <cstdint>

namespace carousel {

// The checksum of `num_bytes` more bytes after those that gave `crc`; start with 0.
uint32_t UpdateCrc32c(uint32_t crc, const void* data, int64_t num_bytes);
}  // namespace carousel
