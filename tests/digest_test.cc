// The digest of a tensor and the checksum of files.
#include "checkpoints/digest.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <vector>

#include "checkpoints/crc32c.h"

namespace carousel {
namespace {

std::vector<uint32_t> RandomElems(int64_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<uint32_t> elems(static_cast<size_t>(count));
  for (uint32_t& e : elems) e = static_cast<uint32_t>(random());
  return elems;
}

TEST(Digest, AddsUpOverAnyPartition) {
  const int64_t n = 5000;
  const std::vector<uint32_t> x = RandomElems(n, 1);
  const uint64_t whole = DigestRange(x.data(), DType::kF32, 0, n);
  std::mt19937_64 random(2);
  for (int trial = 0; trial < 50; ++trial) {
    uint64_t sum = 0;
    for (int64_t begin = 0; begin < n;) {
      const int64_t count = std::min<int64_t>(n - begin, 1 + static_cast<int64_t>(random() % 700));
      sum += DigestRange(x.data() + begin, DType::kF32, begin, count);
      begin += count;
    }
    ASSERT_EQ(sum, whole);
  }
}

TEST(Digest, EqualsItsFormulaComputedByHand) {
  // sum of (mix(i) | 1) * mix(bits ^ salt), independent of DigestMix.
  const auto mix = [](uint64_t z) {
    z ^= z >> 30;
    z *= UINT64_C(13787848793156543929);
    z ^= z >> 27;
    z *= UINT64_C(10723151780598845931);
    return z ^ (z >> 31);
  };
  const float x[] = {1.0f, -0.0f};
  const uint64_t salt = UINT64_C(11400714819323198485);
  const uint64_t expected = (mix(7) | 1) * mix(0x3f800000u ^ salt) + (mix(8) | 1) * mix(0x80000000u ^ salt);
  EXPECT_EQ(DigestRange(x, DType::kF32, 7, 2), expected);
}

TEST(Digest, GivesTheExampleOfTheFormatDescription) {
  const float x[] = {1, 2};
  EXPECT_EQ(DigestRange(x, DType::kF32, 0, 2), 0x461b2c51e31e12cbu);
}

TEST(Digest, ChangesWithEveryBitOfEveryElement) {
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF64, DType::kU8}) {
    std::vector<uint32_t> x = RandomElems(64, 3);
    const int64_t count = 256 / SizeOf(dtype);
    const uint64_t whole = DigestRange(x.data(), dtype, 0, count);
    for (size_t bit = 0; bit < 2048; ++bit) {
      x[bit / 32] ^= 1u << (bit % 32);
      ASSERT_NE(DigestRange(x.data(), dtype, 0, count), whole) << bit;
      x[bit / 32] ^= 1u << (bit % 32);
    }
  }
}

TEST(Digest, ChangesWhenElementsMoveOrZerosBecomeNegative) {
  std::vector<uint32_t> x = RandomElems(1000, 4);
  const uint64_t whole = DigestRange(x.data(), DType::kF32, 0, 1000);
  for (size_t i = 0; i + 1 < x.size(); ++i) {
    std::swap(x[i], x[i + 1]);
    ASSERT_NE(DigestRange(x.data(), DType::kF32, 0, 1000), whole) << i;
    std::swap(x[i], x[i + 1]);
  }
  EXPECT_NE(DigestRange(x.data(), DType::kF32, 1, 1000), whole);
  const float zeros[2] = {0.0f, -0.0f};
  EXPECT_NE(DigestRange(&zeros[0], DType::kF32, 0, 1), DigestRange(&zeros[1], DType::kF32, 0, 1));
  // All zeros of different lengths differ: an element that is zero counts.
  const std::vector<float> many(10, 0.0f);
  EXPECT_NE(DigestRange(many.data(), DType::kF32, 0, 9), DigestRange(many.data(), DType::kF32, 0, 10));
}

TEST(Digest, ReadsUnalignedElements) {
  const std::vector<uint32_t> x = RandomElems(100, 5);
  std::vector<char> bytes(401);
  std::memcpy(bytes.data() + 1, x.data(), 400);
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF64}) {
    const int64_t count = 400 / SizeOf(dtype);
    EXPECT_EQ(DigestRange(bytes.data() + 1, dtype, 3, count), DigestRange(x.data(), dtype, 3, count));
  }
}

TEST(Crc32c, HasThePublishedCheckValues) {
  EXPECT_EQ(UpdateCrc32c(0, "123456789", 9), 0xe3069283u);
  // RFC 3720, B.4.
  const std::vector<char> zeros(32, 0), ones(32, '\xff');
  EXPECT_EQ(UpdateCrc32c(0, zeros.data(), 32), 0x8a9136aau);
  EXPECT_EQ(UpdateCrc32c(0, ones.data(), 32), 0x62a8ab43u);
  EXPECT_EQ(UpdateCrc32c(0, nullptr, 0), 0u);
}

TEST(Crc32c, MayBeTakenInPieces) {
  const std::vector<uint32_t> x = RandomElems(1000, 6);
  const char* const bytes = reinterpret_cast<const char*>(x.data());
  const uint32_t whole = UpdateCrc32c(0, bytes, 4000);
  for (int64_t cut = 0; cut <= 4000; cut += 37) {
    ASSERT_EQ(UpdateCrc32c(UpdateCrc32c(0, bytes, cut), bytes + cut, 4000 - cut), whole);
  }
}

TEST(Crc32c, OfTwoPartsMakeThatOfBoth) {
  const std::vector<uint32_t> x = RandomElems(1000, 7);
  const char* const bytes = reinterpret_cast<const char*>(x.data());
  const uint32_t whole = UpdateCrc32c(0, bytes, 4000);
  for (int64_t cut = 0; cut <= 4000; cut += 37) {
    ASSERT_EQ(CombineCrc32c(UpdateCrc32c(0, bytes, cut), UpdateCrc32c(0, bytes + cut, 4000 - cut), 4000 - cut),
              whole);
  }
  EXPECT_EQ(CombineCrc32c(whole, 0, 0), whole);
}
}  // namespace
}  // namespace carousel
