// Counter-based random numbers: number = f(seed, stream, index), no state. Philox4x32-10 (Salmon et al. 2011)
// by Random123.
#pragma once
#include <Random123/philox.h>

#include <cmath>
#include <cstdint>
#include <string>

namespace carousel {

// FNV-1a of a name: the stream of a parameter or of a purpose ("sample", "data").
inline uint64_t StreamOf(const std::string& name) {
  uint64_t h = 14695981039346656037ull;
  for (const char c : name) h = (h ^ static_cast<unsigned char>(c)) * 1099511628211ull;
  return h;
}

// 128 random bits.
inline r123::Philox4x32::ctr_type RandomBits(uint64_t seed, uint64_t stream, uint64_t index) {
  const r123::Philox4x32::ctr_type counter = {
      {static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32), static_cast<uint32_t>(stream),
       static_cast<uint32_t>(stream >> 32)}};
  const r123::Philox4x32::key_type key = {{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)}};
  return r123::Philox4x32()(counter, key);
}

inline uint64_t RandomUint64(uint64_t seed, uint64_t stream, uint64_t index) {
  const auto r = RandomBits(seed, stream, index);
  return (static_cast<uint64_t>(r[1]) << 32) | r[0];
}

// Uniform in [0, 1) with 53 bits.
inline double RandomUniform(uint64_t seed, uint64_t stream, uint64_t index) {
  return static_cast<double>(RandomUint64(seed, stream, index) >> 11) * 0x1.0p-53;
}

// Standard normal (Box-Muller in double, one of the pair).
inline double RandomNormal(uint64_t seed, uint64_t stream, uint64_t index) {
  const auto r = RandomBits(seed, stream, index);
  const double u =
      (static_cast<double>((static_cast<uint64_t>(r[1]) << 32 | r[0]) >> 11) + 0.5) * 0x1.0p-53;  // (0, 1)
  const double v = static_cast<double>((static_cast<uint64_t>(r[3]) << 32 | r[2]) >> 11) * 0x1.0p-53;
  return std::sqrt(-2.0 * std::log(u)) * std::cos(6.283185307179586476925 * v);
}
}  // namespace carousel
