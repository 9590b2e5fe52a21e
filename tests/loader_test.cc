// Training and validation batches against the definition, token by token.
#include "core/data/loader.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "tests/data_testing.h"

namespace carousel {
namespace {

class Loader : public testing::Test {
 protected:
  static constexpr int64_t kT = 16, kB = 3;
  void SetUp() override {
    std::vector<std::string> documents;
    for (uint32_t d = 0; d < 40; ++d) documents.push_back(RandomBytes(1 + d * 37 % 101, d));
    WriteDocuments(folder_ / "a", documents);
    WriteDocuments(folder_ / "b", {RandomBytes(1000, 99)});
    auto dataset =
        Dataset::Open({{folder_ / "a", 2}, {folder_ / "b", 1}}, {.tokenizer = "bytes", .vocab_size = 258});
    ASSERT_TRUE(dataset.ok()) << dataset.status();
    dataset_ = std::make_unique<Dataset>(std::move(dataset).value());
  }
  Sampler MakeSampler() const {
    auto sampler = Sampler::Create(dataset_->SamplerSources(), kT, 11);
    EXPECT_TRUE(sampler.ok()) << sampler.status();
    return std::move(sampler).value();
  }
  BatchShape Shape(int64_t B = kB) const {
    return {.B = B, .T = kT, .eod_id = ByteTokenizer::kEod, .reset_at_document = true};
  }
  TrainLoader MakeLoader(int64_t M, int64_t begin, int64_t end) const {
    return TrainLoader(
        *dataset_, MakeSampler(),
        {.shape = Shape(), .micro_batches_per_step = M, .micro_begin = begin, .micro_end = end});
  }
  // Row by row what the batch must be.
  void ExpectWindows(const Batch& batch, const std::vector<Window>& windows) const {
    ASSERT_EQ(batch.T, kT);
    ASSERT_EQ(batch.inputs.size(), static_cast<size_t>(batch.B * kT));
    ASSERT_EQ(batch.targets.size(), static_cast<size_t>(batch.B * kT));
    bool any_eod = false;
    for (size_t b = 0; b < windows.size(); ++b) {
      const std::vector<int32_t> all = AllTokens(dataset_->file(windows[b].source));
      for (int64_t t = 0; t < kT; ++t) {
        const size_t at = b * kT + static_cast<size_t>(t);
        const size_t position = static_cast<size_t>(windows[b].index * kT + t);
        EXPECT_EQ(batch.inputs[at], all[position]);
        EXPECT_EQ(batch.targets[at], all[position + 1]);
        any_eod |= all[position] == 256;
        EXPECT_EQ(batch.resets.empty() ? 0 : batch.resets[at], all[position] == 256);
      }
    }
    EXPECT_EQ(batch.resets.empty(), !any_eod);
  }
  const TemporaryFolder folder_;
  std::unique_ptr<Dataset> dataset_;
};

TEST_F(Loader, GivesMicroBatchMOfStepSTheSamplesOfItsPlace) {
  const Sampler sampler = MakeSampler();
  TrainLoader loader = MakeLoader(4, 0, 4);
  Batch batch;
  bool with_resets = false, without_resets = false;
  for (int64_t step = 0; step < 60; ++step) {
    for (int64_t micro = 0; micro < 4; ++micro) {
      loader.Get(step, micro, &batch);
      ASSERT_EQ(batch.B, kB);
      std::vector<Window> windows;
      for (int64_t b = 0; b < kB; ++b) windows.push_back(sampler.At((step * 4 + micro) * kB + b));
      ExpectWindows(batch, windows);
      (batch.resets.empty() ? without_resets : with_resets) = true;
    }
  }
  EXPECT_TRUE(with_resets && without_resets);  // both branches were seen
}

TEST_F(Loader, GivesTheSameBatchesToAnyNumberOfRanksAndAfterAnyInterruption) {
  std::map<std::pair<int64_t, int64_t>, Batch> reference;
  TrainLoader one = MakeLoader(4, 0, 4);
  for (int64_t step = 0; step < 6; ++step) {
    for (int64_t micro = 0; micro < 4; ++micro) one.Get(step, micro, &reference[{step, micro}]);
  }
  for (const int64_t ranks : {2, 4}) {
    for (int64_t rank = 0; rank < ranks; ++rank) {
      const int64_t begin = rank * 4 / ranks, end = (rank + 1) * 4 / ranks;
      for (const int64_t first_step : {0, 3, 5}) {  // a fresh loader, as after a restart
        TrainLoader part = MakeLoader(4, begin, end);
        Batch batch;
        for (int64_t step = first_step; step < 6; ++step) {
          for (int64_t micro = begin; micro < end; ++micro) {
            part.Get(step, micro, &batch);
            EXPECT_EQ(batch.inputs, (reference[{step, micro}].inputs));
            EXPECT_EQ(batch.targets, (reference[{step, micro}].targets));
            EXPECT_EQ(batch.resets, (reference[{step, micro}].resets));
          }
        }
      }
    }
  }
}

TEST_F(Loader, AnswersOutOfOrder) {
  TrainLoader ordered = MakeLoader(2, 0, 2), jumping = MakeLoader(2, 0, 2);
  std::map<std::pair<int64_t, int64_t>, Batch> reference;
  for (int64_t step = 0; step < 20; ++step) {
    for (int64_t micro = 0; micro < 2; ++micro) ordered.Get(step, micro, &reference[{step, micro}]);
  }
  std::mt19937 engine(3);
  Batch batch;
  for (int trial = 0; trial < 200; ++trial) {
    const int64_t step = engine() % 20, micro = engine() % 2;
    jumping.Get(step, micro, &batch);
    EXPECT_EQ(batch.inputs, (reference[{step, micro}].inputs));
    EXPECT_EQ(batch.resets, (reference[{step, micro}].resets));
  }
}

TEST_F(Loader, StopsWhereverItIs) {
  for (int64_t steps = 0; steps < 50; ++steps) {
    TrainLoader loader = MakeLoader(1, 0, 1);
    Batch batch;
    for (int64_t step = 0; step < steps % 3; ++step) loader.Get(step, 0, &batch);
  }
}

TEST_F(Loader, WithoutResetsCarriesTheStateOverDocuments) {
  BatchShape shape = Shape();
  shape.reset_at_document = false;
  TrainLoader plain(*dataset_, MakeSampler(),
                    {.shape = shape, .micro_batches_per_step = 1, .micro_begin = 0, .micro_end = 1});
  TrainLoader reset = MakeLoader(1, 0, 1);
  Batch a, b;
  for (int64_t step = 0; step < 20; ++step) {
    plain.Get(step, 0, &a);
    reset.Get(step, 0, &b);
    EXPECT_TRUE(a.resets.empty());
    EXPECT_EQ(a.inputs, b.inputs);
  }
}

TEST_F(Loader, MeasuresTimeSpentWaiting) {
  TrainLoader loader = MakeLoader(1, 0, 1);
  EXPECT_EQ(loader.starved_seconds(), 0);
  Batch batch;
  loader.Get(0, 0, &batch);
  EXPECT_GT(loader.starved_seconds(), 0);
  EXPECT_LT(loader.starved_seconds(), 5);
}

TEST_F(Loader, DigestOfAStepIsTheSumOverItsMicroBatchesOnAnyRanks) {
  TrainLoader one = MakeLoader(4, 0, 4);
  TrainLoader left = MakeLoader(4, 0, 2), right = MakeLoader(4, 2, 4);
  std::vector<uint64_t> digests;
  Batch batch;
  for (int64_t step = 0; step < 5; ++step) {
    for (int64_t micro = 0; micro < 4; ++micro) {
      one.Get(step, micro, &batch);
      (micro < 2 ? left : right).Get(step, micro, &batch);
    }
    digests.push_back(one.TakeDigest());
    EXPECT_EQ(digests.back(), left.TakeDigest() + right.TakeDigest());
  }
  EXPECT_EQ(one.TakeDigest(), 0u);
  std::sort(digests.begin(), digests.end());
  EXPECT_EQ(std::unique(digests.begin(), digests.end()), digests.end());
}

TEST_F(Loader, DigestDoesNotDependOnTheSizeOfMicroBatches) {
  TrainLoader large(*dataset_, MakeSampler(),
                    {.shape = Shape(6), .micro_batches_per_step = 1, .micro_begin = 0, .micro_end = 1});
  TrainLoader small = MakeLoader(2, 0, 2);
  Batch batch;
  for (int64_t step = 0; step < 5; ++step) {
    large.Get(step, 0, &batch);
    for (int64_t micro = 0; micro < 2; ++micro) small.Get(step, micro, &batch);
    EXPECT_EQ(large.TakeDigest(), small.TakeDigest());
  }
}

TEST(BatchDigest, SeesEveryTokenItsPlaceAndItsSample) {
  Batch batch;
  batch.B = 2;
  batch.T = 3;
  batch.inputs = {1, 2, 3, 5, 6, 7};
  batch.targets = {2, 3, 4, 6, 7, 8};
  const uint64_t digest = BatchDigest(batch, 10);
  EXPECT_EQ(BatchDigest(batch, 10), digest);
  EXPECT_NE(BatchDigest(batch, 11), digest);
  for (size_t i = 0; i < 6; ++i) {
    Batch changed = batch;
    ++changed.targets[i];
    EXPECT_NE(BatchDigest(changed, 10), digest);
  }
  Batch first_input = batch, swapped = batch;
  first_input.inputs[0] = 9;
  EXPECT_NE(BatchDigest(first_input, 10), digest);
  std::swap(swapped.targets[0], swapped.targets[1]);
  EXPECT_NE(BatchDigest(swapped, 10), digest);
}

TEST_F(Loader, EvaluatesTheFixedWindowsInOrderAndPadsTheLastBatch) {
  const auto windows = SpreadWindows(dataset_->SamplerSources(), kT, 10);
  ASSERT_TRUE(windows.ok());
  auto source = EvaluationSource::Create(*dataset_, Shape(4), 10);
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_EQ(source->num_windows(), 10);
  ASSERT_EQ(source->num_batches(), 3);
  Batch batch;
  int64_t num_targets = 0;
  for (int64_t micro = 2; micro >= 0; --micro) {  // in any order, at any step
    source->Get(100 + micro, micro, &batch);
    ASSERT_EQ(batch.B, 4);
    const auto begin = windows->begin() + micro * 4;
    ExpectWindows(batch, {begin, begin + (micro == 2 ? 2 : 4)});
    num_targets += batch.num_targets();
  }
  EXPECT_EQ(num_targets, 10 * kT);
  source->Get(0, 2, &batch);
  for (size_t i = 2 * kT; i < 4 * kT; ++i) {
    EXPECT_EQ(batch.inputs[i], 256);
    EXPECT_EQ(batch.targets[i], -1);
  }
}

TEST_F(Loader, EvaluationPadsWithAValidIdWhereNoIdEndsADocument) {
  BatchShape shape = Shape(4);
  shape.eod_id = -1;
  auto source = EvaluationSource::Create(*dataset_, shape, 10);
  ASSERT_TRUE(source.ok()) << source.status();
  Batch batch;
  source->Get(0, 2, &batch);
  for (const int32_t id : batch.inputs) EXPECT_TRUE(id >= 0 && id < 258) << id;
  EXPECT_EQ(batch.num_targets(), 2 * kT);
}

TEST_F(Loader, GoesOnWithTheNextSampleAfterTheBatchSizeChanged) {
  // 5 steps of 2 micro-batches, then steps of 4: sample 5 * 2 * kB is next.
  const Sampler sampler = MakeSampler();
  TrainLoader loader(*dataset_, MakeSampler(),
                     {.shape = Shape(),
                      .micro_batches_per_step = 4,
                      .micro_begin = 0,
                      .micro_end = 4,
                      .first_sample = 5 * 2 * kB - 5 * 4 * kB});
  Batch batch;
  for (int64_t micro = 0; micro < 4; ++micro) {
    loader.Get(5, micro, &batch);
    std::vector<Window> windows;
    for (int64_t b = 0; b < kB; ++b) windows.push_back(sampler.At((10 + micro) * kB + b));
    ExpectWindows(batch, windows);
  }
}

TEST_F(Loader, EvaluationRefusesAListItCannotMake) {
  BatchShape shape = Shape();
  shape.T = 100'000;
  ExpectError(EvaluationSource::Create(*dataset_, shape, 4).status(), absl::StatusCode::kInvalidArgument,
              {folder_ / "a", "100001"});
}
}  // namespace
}  // namespace carousel
