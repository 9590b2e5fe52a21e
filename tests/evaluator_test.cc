// Accuracy against counting by hand, at other lengths than in training, on any number of ranks.
#include "core/train/evaluator.h"

#include <map>

#include "core/data/loader.h"
#include "core/data/task_writer.h"
#include "core/train/no_sync.h"
#include "core/train/trainer.h"
#include "parallel/sharded_sync.h"
#include "parallel/local_communicator.h"
#include "tests/data_testing.h"
#include "tests/model_testing.h"

namespace carousel {
namespace {
using testing::CpuDevice;
using testing::TinySpec;

constexpr int64_t kB = 2, kT = 6, kLongT = 20;

TrainSpec Spec(int64_t micro_batches_per_step = 1) {
  TrainSpec spec;
  spec.model = TinySpec();
  spec.schedule = {.kind = ScheduleKind::kConstant, .peak_lr = 1e-2, .total_steps = 100};
  spec.T = kT;
  spec.longest_eval_T = kLongT;
  spec.micro_batch = kB;
  spec.micro_batches_per_step = micro_batches_per_step;
  spec.compute = DType::kF64;
  return spec;
}

// Batches of one long sequence, labelled: a target at t has the length 1 + t % 5, or none.
class LabelledSource final : public BatchSource {
 public:
  void Get(int64_t step, int64_t micro, Batch* batch) override {
    *batch = testing::RandomBatch(1, kLongT, TinySpec().vocab_size, static_cast<uint64_t>(100 * step + micro),
                                  /*resets=*/true);
    for (int64_t t = 0; t < kLongT; ++t) {
      const bool target = batch->targets[static_cast<size_t>(t)] >= 0;
      batch->lengths.push_back(target ? static_cast<uint16_t>(t % 5 == 4 ? 0 : 1 + t % 5) : 0);
    }
  }
};

TEST(Evaluator, CountsRightAnswersByTheLengthOfTheirProblem) {
  const auto device = CpuDevice();
  NoSyncFactory sync;
  Trainer trainer(Spec(), *device, Mesh{}, sync);
  EXPECT_EQ(trainer.max_eval_tokens(), kLongT);
  trainer.Initialize(2);
  LabelledSource source;
  const EvaluationResult result = trainer.Evaluate(source, 9);

  BoundModel bound(TinySpec(), {.compute = DType::kF64, .B = 1, .T = kLongT}, *device);
  bound.Initialize(2);
  std::map<int64_t, LengthCount> expected;
  LengthCount all;
  for (int64_t i = 0; i < 9; ++i) {
    Batch batch;
    source.Get(0, i, &batch);
    const std::vector<double> logits = testing::AllLogits(bound, batch);
    const size_t V = static_cast<size_t>(TinySpec().vocab_size);
    for (size_t t = 0; t < batch.targets.size(); ++t) {
      if (batch.targets[t] < 0) continue;
      const auto row = logits.begin() + static_cast<std::ptrdiff_t>(t * V);
      const bool right =
          std::max_element(row, row + static_cast<std::ptrdiff_t>(V)) - row == batch.targets[t];
      ++all.count;
      all.correct += right;
      if (batch.lengths[t] == 0) continue;
      LengthCount& count = expected[batch.lengths[t]];
      count.length = batch.lengths[t];
      ++count.count;
      count.correct += right;
    }
  }
  EXPECT_EQ(result.num_targets, all.count);
  EXPECT_EQ(result.num_correct, all.correct);
  EXPECT_GT(result.num_correct, 0);
  EXPECT_EQ(result.accuracy(), static_cast<double>(all.correct) / static_cast<double>(all.count));
  ASSERT_EQ(result.by_length.size(), 4u);
  for (const LengthCount& count : result.by_length) EXPECT_EQ(count, expected[count.length]) << count.length;
}

TEST(Evaluator, WithoutLengthsThereIsOnlyTheWhole) {
  class Plain final : public BatchSource {
    void Get(int64_t, int64_t micro, Batch* batch) override {
      *batch = testing::RandomBatch(kB, kT, TinySpec().vocab_size, static_cast<uint64_t>(micro), true);
    }
  } source;
  const auto device = CpuDevice();
  NoSyncFactory sync;
  Trainer trainer(Spec(), *device, Mesh{}, sync);
  trainer.Initialize(2);
  const EvaluationResult result = trainer.Evaluate(source, 5);
  EXPECT_TRUE(result.by_length.empty());
  EXPECT_GT(result.num_targets, 0);
}

TEST(EvaluatorDeathTest, SequencesNoLongerThanBoundAreACheck) {
  LabelledSource source;
  const auto device = CpuDevice();
  NoSyncFactory sync;
  TrainSpec spec = Spec();
  spec.longest_eval_T = kLongT - 1;
  Trainer trainer(spec, *device, Mesh{}, sync);
  trainer.Initialize(2);
  EXPECT_DEATH(trainer.Evaluate(source, 1), "19");
}

// A whole small run on a task's files, as a training run does it: what every evaluation found, in order.
std::vector<EvaluationResult> RunOnTask(int size, const std::string& prefix, DType compute) {
  std::vector<EvaluationResult> results;
  RunLocalRanks(size, [&](Communicator& communicator) {
    const DatasetChecks checks{.tokenizer = kTaskTokenizer, .vocab_size = 3};
    const auto train = Dataset::Open({{prefix + "_train", 1}}, checks);
    const auto valid = Dataset::Open({{prefix + "_valid", 1}}, checks);
    ASSERT_TRUE(train.ok() && valid.ok());
    const auto device = CpuDevice(1);
    ShardedSyncFactory sync;
    const Mesh mesh = ReplicateMesh(
        {.size = size, .index = communicator.rank(), .communicator = size > 1 ? &communicator : nullptr});
    TrainSpec spec = Spec(4);
    spec.model.vocab_size = 3;
    spec.compute = compute;
    spec.T = 16;
    spec.longest_eval_T = 48;
    Trainer trainer(spec, *device, mesh, sync);
    trainer.Initialize(4);
    auto sampler = Sampler::Create(train->SamplerSources(), spec.T, 1);
    ASSERT_TRUE(sampler.ok());
    TrainLoader loader(*train, std::move(sampler).value(),
                       {.shape = {.B = kB, .T = spec.T, .eod_id = kTaskBegin},
                        .micro_batches_per_step = 4,
                        .micro_begin = communicator.rank() * 4 / size,
                        .micro_end = (communicator.rank() + 1) * 4 / size});
    auto evaluation = EvaluationSource::Create(*valid, {.B = 1, .T = 48, .eod_id = kTaskBegin}, 23);
    ASSERT_TRUE(evaluation.ok());
    std::vector<EvaluationResult> mine;
    for (int64_t step = 0; step < 6; ++step) {
      const StepResult r = trainer.Step(step, loader);
      EXPECT_LT(r.num_targets, kB * spec.T * 4 / 3);  // answers only
      if (step % 2 == 1) mine.push_back(trainer.Evaluate(*evaluation, evaluation->num_batches()));
    }
    if (communicator.rank() == 0) results = mine;
  });
  return results;
}

TEST(Evaluator, HasTheSameBitsOnEveryNumberOfRanks) {
  const TemporaryFolder folder;
  TaskFileSpec train{.prefix = folder / "p_train",
                     .task = {.kind = TaskKind::kParity, .min_length = 3, .max_length = 10},
                     .split = "train",
                     .num_problems = 100,
                     .row_tokens = 16};
  TaskFileSpec valid = train;
  valid.prefix = folder / "p_valid";
  valid.task.max_length = 30;
  valid.split = "valid";
  valid.row_tokens = 48;
  ASSERT_TRUE(WriteTaskFiles({train, valid}, false).ok());
  for (const DType compute : {DType::kF32, DType::kBF16}) {
    const std::vector<EvaluationResult> one = RunOnTask(1, folder / "p", compute);
    ASSERT_EQ(one.size(), 3u);
    EXPECT_GT(one[0].by_length.size(), 15u);
    EXPECT_GT(one[0].num_targets, 40);
    for (const int size : {2, 4}) {
      const std::vector<EvaluationResult> other = RunOnTask(size, folder / "p", compute);
      ASSERT_EQ(other.size(), one.size());
      for (size_t i = 0; i < one.size(); ++i) {
        EXPECT_EQ(other[i].loss, one[i].loss) << size << " ranks, evaluation " << i;
        EXPECT_EQ(other[i].num_correct, one[i].num_correct);
        EXPECT_EQ(other[i].by_length, one[i].by_length);
      }
    }
  }
}

TEST(Buckets, KeepEveryLengthWhereThereAreFew) {
  std::vector<LengthCount> counts;
  for (int64_t length = 7; length < 7 + kMaxLengthBuckets; ++length) {
    counts.push_back({.length = length, .count = length, .correct = 2});
  }
  const std::vector<LengthBucket> buckets = BucketsByLength(counts);
  ASSERT_EQ(buckets.size(), counts.size());
  for (size_t i = 0; i < buckets.size(); ++i) {
    EXPECT_EQ(buckets[i].first, counts[i].length);
    EXPECT_EQ(buckets[i].last, counts[i].length);
    EXPECT_EQ(buckets[i].accuracy(), 2.0 / static_cast<double>(counts[i].length));
  }
  EXPECT_TRUE(BucketsByLength({}).empty());
}

TEST(Buckets, JoinLengthsInRoundSteps) {
  std::vector<LengthCount> counts;
  for (int64_t length = 40; length <= 256; ++length)
    counts.push_back({.length = length, .count = 1, .correct = 1});
  const std::vector<LengthBucket> buckets = BucketsByLength(counts);
  ASSERT_EQ(buckets.size(), 11u);  // of 20: 40-59, 60-79, ..., 240-256
  EXPECT_EQ(buckets[0].first, 40);
  EXPECT_EQ(buckets[0].last, 59);
  EXPECT_EQ(buckets[0].count, 20);
  EXPECT_EQ(buckets[10].first, 240);
  EXPECT_EQ(buckets[10].last, 256);
  EXPECT_EQ(buckets[10].count, 17);
}

TEST(Buckets, CoverAnyRangeOnceInAtMostTwelve) {
  for (const int64_t first : {1, 3, 9, 40, 999}) {
    for (int64_t last = first; last < 70000; last = last * 5 / 4 + 1) {
      std::vector<LengthCount> counts;
      int64_t total = 0, correct = 0;
      for (int64_t length = first; length <= last; length += 1 + (last - first) / 300) {
        counts.push_back({.length = length, .count = 2, .correct = length % 3});
        total += 2;
        correct += length % 3;
      }
      const std::vector<LengthBucket> buckets = BucketsByLength(counts);
      EXPECT_LE(static_cast<int64_t>(buckets.size()), kMaxLengthBuckets);
      EXPECT_EQ(buckets.front().first, first);
      for (size_t i = 0; i < buckets.size(); ++i) {
        total -= buckets[i].count;
        correct -= buckets[i].correct;
        EXPECT_LE(buckets[i].first, buckets[i].last);
        EXPECT_TRUE(i == 0 || buckets[i].first > buckets[i - 1].last);
      }
      EXPECT_EQ(total, 0);
      EXPECT_EQ(correct, 0);
    }
  }
}

TEST(Buckets, LeaveEmptyRangesOut) {
  const std::vector<LengthBucket> buckets = BucketsByLength({{.length = 3, .count = 1, .correct = 0},
                                                             {.length = 64, .count = 5, .correct = 5},
                                                             {.length = 65, .count = 1, .correct = 1}});
  ASSERT_EQ(buckets.size(), 2u);
  EXPECT_EQ(buckets[0].count, 1);
  EXPECT_EQ(buckets[1].count, 6);
}
}  // namespace
}  // namespace carousel
