// A step that is judged before its update and computed once more: equal bits where nothing is wrong, on every
// mesh, and the rank that computed wrong where something is.
#include <gtest/gtest.h>

#include <set>
#include <string>
#include <vector>

#include "tests/faulty_device.h"
#include "tests/mesh_training.h"

namespace carousel {
namespace {
using testing::CollectWeights;
using testing::CpuDevice;
using testing::FaultyDevice;
using testing::MeshLargeSpec;
using testing::MeshPaperSpec;
using testing::MeshSource;
using testing::MeshTrainSpec;

constexpr int64_t kBadStep = 1, kNumSteps = 3;

struct Options {
  std::function<StepVerdict(int64_t step, const StepResult&)> judge = {};
  int faulty_rank = -1;
  FaultyDevice::Fault fault = {};  // at kBadStep
  SyncOptions sync = {};
};
struct Outcome {
  std::vector<double> losses;
  std::vector<bool> skipped;
  std::optional<Rerun> rerun;
  std::map<std::string, std::vector<double>> weights;
  bool operator==(const Outcome& o) const { return losses == o.losses && weights == o.weights; }
};

std::string Text(const Rerun& rerun) {
  std::string text;
  for (const Rerun::Difference& d : rerun.differences) {
    text += std::to_string(d.rank) + (d.loss ? "L" : "") + (d.gradient ? "G" : "") + (d.sum ? "S" : "") + " ";
  }
  return text;
}

Outcome TrainWith(const MeshSizes& sizes, TrainSpec spec, const Options& options) {
  Outcome outcome;
  std::mutex mutex;
  spec.digests = true;
  RunLocalMesh(sizes, [&](const Mesh& mesh) {
    FaultyDevice device(CpuDevice(1));
    ShardedSyncFactory sync(options.sync);
    Trainer trainer(spec, device, mesh, sync);
    trainer.Initialize(9);
    MeshSource source(spec);
    Outcome mine;
    int64_t num_skipped = 0;
    for (int64_t step = 0; step < kNumSteps; ++step) {
      if (step == kBadStep && mesh.world.index == options.faulty_rank) device.Arm(options.fault);
      StepOptions step_options = {.num_skipped = num_skipped};
      if (options.judge) {
        step_options.judge = [&](const StepResult& r) { return options.judge(step, r); };
      }
      const StepResult r = trainer.Step(step, source, step_options);
      num_skipped += r.skipped;
      mine.losses.push_back(r.loss);
      mine.skipped.push_back(r.skipped);
      if (step == kBadStep) mine.rerun = r.rerun;
    }
    EXPECT_TRUE(trainer.AuditReplicas().ok()) << trainer.AuditReplicas();
    if (mesh.world.index == options.faulty_rank) {
      EXPECT_GT(device.num_faults(), 0);
    }
    const std::lock_guard<std::mutex> lock(mutex);
    if (outcome.losses.empty()) {
      outcome.losses = mine.losses;
      outcome.skipped = mine.skipped;
      outcome.rerun = mine.rerun;
    }
    // Decisions are everybody's.
    EXPECT_EQ(mine.skipped, outcome.skipped);
    EXPECT_EQ(mine.rerun.has_value(), outcome.rerun.has_value());
    if (mine.rerun.has_value()) {
      EXPECT_EQ(Text(*mine.rerun), Text(*outcome.rerun));
    }
    CollectWeights(trainer, &outcome.weights);
  });
  return outcome;
}

StepVerdict RerunTheBadStep(int64_t step, const StepResult& r) {
  if (step == kBadStep && !r.rerun.has_value()) return StepVerdict::kRerun;
  return r.finite() ? StepVerdict::kUpdate : StepVerdict::kSkip;
}

TEST(StepRerun, HasTheSameBitsOnEveryMesh) {
  for (const MeshSizes& sizes :
       {MeshSizes{}, MeshSizes{.replicate = 2}, MeshSizes{.replicate = 4}, MeshSizes{.shard = 2},
        MeshSizes{.replicate = 2, .shard = 2}, MeshSizes{.sequence = 2}, MeshSizes{.tensor = 2},
        MeshSizes{.pipe = 2}, MeshSizes{.pipe = 2, .replicate = 2}, MeshSizes{.sequence = 2, .tensor = 2}}) {
    for (const DType compute : {DType::kF32, DType::kBF16}) {
      TrainSpec spec = MeshTrainSpec(MeshLargeSpec(), compute);
      spec.model.ffn_dropout = 0.25;
      const Outcome undisturbed = TrainWith(sizes, spec, {});
      const Outcome rerun = TrainWith(sizes, spec, {.judge = RerunTheBadStep});
      ASSERT_TRUE(rerun.rerun.has_value());
      EXPECT_EQ(Text(*rerun.rerun), "");
      EXPECT_TRUE(rerun == undisturbed);
    }
  }
  const TrainSpec spec = MeshTrainSpec(MeshPaperSpec(), DType::kF32);
  const Options unordered = {.judge = RerunTheBadStep,
                             .sync = {.reduction = SyncOptions::Reduction::kUnordered}};
  EXPECT_EQ(Text(*TrainWith({.replicate = 2, .shard = 2}, spec, unordered).rerun), "");
}

TEST(StepRerun, NamesTheRankWhoseGradientHadAWrongBit) {
  const TrainSpec spec = MeshTrainSpec(MeshLargeSpec(), DType::kF32);
  // Each in its own sequences; the tensor axis too, since gradients of weights stay where they are computed.
  for (const MeshSizes& sizes :
       {MeshSizes{.replicate = 4}, MeshSizes{.shard = 4}, MeshSizes{.replicate = 2, .shard = 2},
        MeshSizes{.tensor = 4}, MeshSizes{.pipe = 2, .replicate = 2}, MeshSizes{.sequence = 4}}) {
    for (const int rank : {0, 2}) {
      // A bit of the mantissa, the sign; NaN.
      for (const FaultyDevice::Fault& fault :
           {FaultyDevice::Fault{.call = 3, .mask = 1u << 22}, FaultyDevice::Fault{.mask = 1u << 31},
            FaultyDevice::Fault{.call = 2, .nan = true}}) {
        const Outcome outcome =
            TrainWith(sizes, spec, {.judge = RerunTheBadStep, .faulty_rank = rank, .fault = fault});
        ASSERT_TRUE(outcome.rerun.has_value());
        EXPECT_EQ(Text(*outcome.rerun), std::to_string(rank) + "G ");
        EXPECT_EQ(outcome.skipped, (std::vector<bool>{false, true, false}));
      }
    }
  }
}

TEST(StepRerun, SeesTheLowestBitOfAGradient) {
  const TrainSpec spec = MeshTrainSpec(MeshLargeSpec(), DType::kF32);
  for (const MeshSizes& sizes : {MeshSizes{.replicate = 4}, MeshSizes{.shard = 4}}) {
    // Of a matrix that is added to once: later sums would round it away.
    const Outcome outcome = TrainWith(sizes, spec, {RerunTheBadStep, 1, {.call = 8, .mask = 1}});
    EXPECT_EQ(Text(*outcome.rerun), "1G ");
  }
}

TEST(StepRerun, NamesARankThatIsWrongInADifferentWayEveryTime) {
  const TrainSpec spec = MeshTrainSpec(MeshLargeSpec(), DType::kF32);
  const Outcome outcome = TrainWith(
      {.replicate = 4}, spec, {.judge = RerunTheBadStep, .faulty_rank = 3, .fault = {.every_time = true}});
  EXPECT_EQ(Text(*outcome.rerun), "3G ");
}

TEST(StepRerun, NamesAWrongForwardPassAndAllThatReadIt) {
  const TrainSpec spec = MeshTrainSpec(MeshLargeSpec(), DType::kF32);
  const FaultyDevice::Fault fault = {.where = FaultyDevice::Where::kForward, .mask = 1u << 30};
  EXPECT_EQ(Text(*TrainWith({.replicate = 4}, spec, {RerunTheBadStep, 1, fault}).rerun), "1LG ");
  // Both ranks of a tensor axis have the numbers of the other; those that have other sequences do not.
  const std::string pair =
      Text(*TrainWith({.replicate = 2, .tensor = 2}, spec, {RerunTheBadStep, 2, fault}).rerun);
  EXPECT_EQ(pair.find("0"), std::string::npos) << pair;
  EXPECT_NE(pair.find("2"), std::string::npos) << pair;
}

TEST(StepRerun, TellsAWrongSumFromAWrongPart) {
  const TrainSpec spec = MeshTrainSpec(MeshLargeSpec(), DType::kF32);
  const FaultyDevice::Fault fault = {.where = FaultyDevice::Where::kSum, .mask = 1u << 22};
  EXPECT_EQ(Text(*TrainWith({.replicate = 2}, spec, {RerunTheBadStep, 1, fault}).rerun), "1S ");
}

TEST(StepRerun, JudgesWithTheNumbersOfTheStepBeforeAnyUpdate) {
  const TrainSpec spec = MeshTrainSpec(MeshLargeSpec(), DType::kF32);
  const Outcome all = TrainWith({}, spec, {});
  for (const MeshSizes& sizes : {MeshSizes{}, MeshSizes{.replicate = 2}, MeshSizes{.shard = 2}}) {
    const Outcome skipped = TrainWith(sizes, spec, {.judge = [&](int64_t step, const StepResult& r) {
                                        EXPECT_GT(r.num_targets, 0);
                                        if (step <= kBadStep) {
                                          EXPECT_EQ(r.loss, all.losses[static_cast<size_t>(step)]);
                                        }
                                        return step == kBadStep ? StepVerdict::kSkip : StepVerdict::kUpdate;
                                      }});
    EXPECT_EQ(skipped.skipped, (std::vector<bool>{false, true, false}));
    EXPECT_NE(skipped.losses[2], all.losses[2]);
    EXPECT_NE(skipped.weights, all.weights);
  }
  // Without a judge only what is not finite is skipped, on all ranks.
  const Outcome nan =
      TrainWith({.replicate = 2, .shard = 2}, spec, {.faulty_rank = 3, .fault = {.call = 1, .nan = true}});
  EXPECT_EQ(nan.skipped, (std::vector<bool>{false, true, false}));
  EXPECT_EQ(nan.losses[0], all.losses[0]);
}
}  // namespace
}  // namespace carousel
