// The comparison at the end of every export and import: it finds each single changed bit and names its
// tensor.
#include "checkpoints/model_digests.h"

#include <gtest/gtest.h>

#include <bit>

#include "checkpoints/digest.h"
#include "tests/hf_testing.h"

namespace carousel {
namespace {
using testing::Contains;
using testing::ExportableSpec;
using testing::MemoryWeights;

// Weights that know their digests, as a checkpoint does.
class StatingWeights final : public WeightSource {
 public:
  explicit StatingWeights(MemoryWeights& weights) : weights_(weights) {
    for (const Param& param : weights.params()) {
      const std::vector<float>& values = weights.values(param.name);
      digests_[param.name] = DigestRange(values.data(), DType::kF32, 0, param.num_elems);
    }
  }
  const std::vector<Param>& params() const override { return weights_.params(); }
  absl::Status Read(const std::string& name, int64_t begin, int64_t count, DType dtype,
                    void* data) const override {
    ++num_reads;
    return weights_.Read(name, begin, count, dtype, data);
  }
  std::optional<StatedDigest> Stated(const std::string& name) const override {
    return StatedDigest{DType::kF32, digests_.at(name)};
  }
  mutable int num_reads = 0;

 private:
  MemoryWeights& weights_;
  std::map<std::string, uint64_t> digests_;
};

DigestComparison Comparison(const WeightSource& expected, const WeightSource& written, DType dtype) {
  return {
      .expected = &expected, .expected_name = "A", .written = &written, .written_name = "B", .dtype = dtype};
}

void FlipBit(float* value, int bit) {
  *value = std::bit_cast<float>(std::bit_cast<uint32_t>(*value) ^ (uint32_t{1} << bit));
}

TEST(CompareDigests, EqualWeightsAreEqualInEveryDType) {
  MemoryWeights weights(ExportableSpec());
  const StatingWeights stating(weights);
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF64}) {
    const auto compared = CompareDigests(Comparison(stating, weights, dtype));
    ASSERT_TRUE(compared.ok()) << compared.status();
    EXPECT_EQ(*compared, static_cast<int64_t>(weights.params().size()));
    EXPECT_TRUE(CompareDigests(Comparison(weights, weights, dtype)).ok());
  }
}

TEST(CompareDigests, AStatedDigestIsNotReadAgain) {
  MemoryWeights weights(ExportableSpec());
  const StatingWeights stating(weights);
  ASSERT_TRUE(CompareDigests(Comparison(stating, weights, DType::kF32)).ok());
  EXPECT_EQ(stating.num_reads, 0);
  ASSERT_TRUE(CompareDigests(Comparison(stating, weights, DType::kBF16)).ok());
  EXPECT_GT(stating.num_reads, 0);
}

TEST(CompareDigests, EveryBitOfEveryParameterCounts) {
  MemoryWeights expected(ExportableSpec()), written(ExportableSpec());
  const StatingWeights stating(expected);
  int which = 0;
  for (const Param& param : written.params()) {
    std::vector<float>& values = written.values(param.name);
    const int bit = which++ % 32;
    float& value = values[static_cast<size_t>(param.num_elems * which) % values.size()];
    FlipBit(&value, bit);
    const absl::Status status = CompareDigests(Comparison(stating, written, DType::kF32)).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << param.name << " bit " << bit;
    EXPECT_TRUE(Contains(status, "\"" + param.name + "\"")) << status;
    FlipBit(&value, bit);
  }
  // Two values that changed places.
  std::vector<float>& values = written.values("lm_head.weight");
  ASSERT_NE(values[3], values[4]);
  std::swap(values[3], values[4]);
  const absl::Status swapped = CompareDigests(Comparison(expected, written, DType::kF32)).status();
  EXPECT_TRUE(Contains(swapped, "\"lm_head.weight\"")) << swapped;
}

TEST(CompareDigests, RoundedWeightsAreComparedWithRoundedWeights) {
  MemoryWeights expected(ExportableSpec()), written(ExportableSpec());
  const StatingWeights stating(expected);
  for (const Param& param : written.params()) {
    for (float& value : written.values(param.name)) value = static_cast<float>(bfloat16(value));
  }
  EXPECT_TRUE(CompareDigests(Comparison(stating, written, DType::kBF16)).ok());
  EXPECT_FALSE(CompareDigests(Comparison(stating, written, DType::kF32)).ok());
  // Truncated instead of rounded: differs where rounding goes up.
  for (float& value : written.values("lm_head.weight")) {
    value = std::bit_cast<float>(std::bit_cast<uint32_t>(value) & 0xffff0000u);
  }
  for (size_t i = 0; i < written.values("lm_head.weight").size(); ++i) {
    written.values("lm_head.weight")[i] =
        std::bit_cast<float>(std::bit_cast<uint32_t>(expected.values("lm_head.weight")[i]) & 0xffff0000u);
  }
  const absl::Status status = CompareDigests(Comparison(stating, written, DType::kBF16)).status();
  EXPECT_TRUE(Contains(status, "\"lm_head.weight\"")) << status;
}

TEST(CompareDigests, ASourceThatChangedSinceItWasSavedIsFoundWhenItIsReadAgain) {
  MemoryWeights expected(ExportableSpec());
  const StatingWeights stating(expected);
  FlipBit(&expected.values("embedding.weight")[17], 0);  // a bit that rounding to bf16 hides
  const absl::Status status = CompareDigests(Comparison(stating, expected, DType::kBF16)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_TRUE(Contains(status, "\"embedding.weight\" of A") && Contains(status, "was saved with")) << status;
}

TEST(CompareDigests, NamesWhatOneSideLacksOrHasInAnotherShape) {
  const MemoryWeights expected(ExportableSpec());
  ModelSpec other = ExportableSpec();
  other.add_out_norm = false;
  other.vocab_size = 300;
  const MemoryWeights written(other);
  const absl::Status status = CompareDigests(Comparison(expected, written, DType::kF32)).status();
  for (const char* text :
       {"\"backbone.out_norm.weight\" is not in B",
        "\"lm_head.weight\" has shape (300, 128) and in A (320, 128)", "\"embedding.weight\""}) {
    EXPECT_TRUE(Contains(status, text)) << status;
  }
  EXPECT_TRUE(Contains(CompareDigests(Comparison(written, expected, DType::kF32)).status(),
                       "\"backbone.out_norm.weight\" is not in A"));
}

TEST(CompareDigests, CopiesAndWhatIsLeftOut) {
  ModelSpec tied = ExportableSpec();
  tied.tie_embeddings = true;
  const MemoryWeights expected(tied);
  MemoryWeights written(ExportableSpec());
  written.values("lm_head.weight") = written.values("embedding.weight");
  DigestComparison comparison = Comparison(expected, written, DType::kF32);
  EXPECT_TRUE(Contains(CompareDigests(comparison).status(), "\"lm_head.weight\" is not in A"));
  comparison.copies["lm_head.weight"] = "embedding.weight";
  EXPECT_TRUE(CompareDigests(comparison).ok());
  FlipBit(&written.values("lm_head.weight")[5], 3);
  EXPECT_TRUE(Contains(CompareDigests(comparison).status(), "\"lm_head.weight\""));
  comparison.skip.insert("lm_head.weight");
  EXPECT_TRUE(CompareDigests(comparison).ok());
}

TEST(CompareDigests, ReportsEveryByteOnce) {
  const MemoryWeights weights(ExportableSpec());
  DigestComparison comparison = Comparison(weights, weights, DType::kBF16);
  int64_t last = 0;
  comparison.progress = [&](int64_t bytes) {
    EXPECT_GT(bytes, last);
    last = bytes;
  };
  ASSERT_TRUE(CompareDigests(comparison).ok());
  EXPECT_EQ(last, 2 * NumParameters(ExportableSpec()));
}
}  // namespace
}  // namespace carousel
