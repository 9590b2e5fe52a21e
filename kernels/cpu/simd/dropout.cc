// Dropout: the words of many counters at once, then one select per vector.
#include "kernels/cpu/simd/dropout.h"

#include "kernels/cpu/simd/vec.h"
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace carousel::cpu::CAROUSEL_SIMD_NS {
namespace {

// One 32-bit word of Philox per lane of 64 bits; the upper half of a lane is whatever is cheapest.
typedef uint64_t Vec64 __attribute__((vector_size(4 * kLanes)));
typedef Vec64 Unaligned64 __attribute__((aligned(4), may_alias));
constexpr int kCounters = kLanes / 2;        // in a vector
constexpr int kWords = 4 * kCounters;        // two vectors of elements
constexpr int64_t kChunk = int64_t{8} * 64;  // elements per batch of words: a multiple of kWords
static_assert(kChunk % kWords == 0);

// Products of the lower halves.
CAROUSEL_INLINE Vec64 MultiplyWords(Vec64 a, Vec64 b) {
#if defined(__AVX512F__)
  return reinterpret_cast<Vec64>(
      _mm512_mul_epu32(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
#elif defined(__AVX2__)
  return reinterpret_cast<Vec64>(
      _mm256_mul_epu32(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
#elif defined(__SSE2__)
  return reinterpret_cast<Vec64>(_mm_mul_epu32(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
#else
  return (a & 0xffffffffu) * (b & 0xffffffffu);
#endif
}

// words[i] = word of element 4 * counter + i, for i in [0, kWords).
CAROUSEL_INLINE void DrawWords(uint32_t* words, uint64_t counter, uint64_t key) {
  // Lanes 0, 2, 4, ... are the first half of the counters and lanes 1, 3, 5, ... the second, so that the
  // words come into order without crossing 128-bit parts of a vector.
  Vec64 c0{}, c1, c2{}, c3{};
  for (int lane = 0; lane < kCounters; ++lane) {
    c0[lane] = static_cast<uint64_t>(lane / 2 + lane % 2 * (kCounters / 2));
  }
  c0 += counter;
  c1 = c0 >> 32;
  uint32_t key0 = static_cast<uint32_t>(key), key1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const Vec64 product0 = MultiplyWords(c0, Vec64{} + 0xd2511f53u);
    const Vec64 product1 = MultiplyWords(c2, Vec64{} + 0xcd9e8d57u);
    c0 = (product1 >> 32) ^ c1 ^ key0;
    c1 = product1;
    c2 = (product0 >> 32) ^ c3 ^ key1;
    c3 = product0;
    key0 += 0x9e3779b9u;
    key1 += 0xbb67ae85u;
  }
  const Vec64 first = (c0 & 0xffffffffu) | (c1 << 32), second = (c2 & 0xffffffffu) | (c3 << 32);
  Vec64 even{}, odd{};
  for (int lane = 0; lane < kCounters; ++lane) {
    even[lane] = static_cast<uint64_t>(lane / 2 * 2 + lane % 2 * kCounters);
    odd[lane] = even[lane] + 1;
  }
  *reinterpret_cast<Unaligned64*>(words) = __builtin_shuffle(first, second, even);
  *reinterpret_cast<Unaligned64*>(words + kLanes) = __builtin_shuffle(first, second, odd);
}

typedef VecU UnalignedVecU __attribute__((aligned(4), may_alias));

template <class T>
void Drop(T* y, const T* x, int64_t n, uint64_t first, const DropoutDraw& draw) {
  const uint64_t key = draw.key;
  const uint32_t threshold = draw.threshold;
  const float scale = draw.scale;
  alignas(64) uint32_t words[kChunk + kLanes];
  for (int64_t begin = 0; begin < n;) {
    // whole counters; the range begins anywhere in the first one
    const uint64_t element = first + static_cast<uint64_t>(begin);
    const int64_t skipped = static_cast<int64_t>(element % 4);
    const int64_t count = n - begin < kChunk - skipped ? n - begin : kChunk - skipped;
    for (int64_t i = 0; i < skipped + count; i += kWords) {
      DrawWords(words + i, element / 4 + static_cast<uint64_t>(i / 4), key);
    }
    ForEachVec(count, [&](int64_t i, auto lanes) {
      const VecU word = *reinterpret_cast<const UnalignedVecU*>(words + skipped + i);
      const VecF value = Load(x + begin + i, lanes) * scale;
      Store(y + begin + i, word >= threshold ? value : VecF{}, lanes);
    });
    begin += count;
  }
}

constexpr DropoutKernels kKernels = {.drop_f32 = Drop<float>, .drop_bf16 = Drop<uint16_t>};
}  // namespace

const DropoutKernels& GetDropoutKernels() { return kKernels; }
}  // namespace carousel::cpu::CAROUSEL_SIMD_NS
