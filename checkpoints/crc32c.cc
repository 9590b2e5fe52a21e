#include "checkpoints/crc32c.h"

#include <isa-l/crc.h>

#include <algorithm>

namespace carousel {

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
