// Training runs that go on under another layout: what ranks of one mesh saved is, on every other mesh, the
// same state, and the run that goes on there is the run that was never interrupted: bit for bit where only
// ranks of data differ (replicate, shard), to rounding where the model is cut in another way.
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "checkpoints/checkpoint_tensors.h"
#include "core/base/log.h"
#include "tests/memory_file_system.h"
#include "tests/mesh_training.h"

namespace carousel {
namespace {
using testing::MeshSource;

struct Layout {
  const char* name = "";
  MeshSizes sizes = {};
  // Runs whose models are cut in the same way have the same bits.
  bool SameCut(const Layout& other) const {
    return sizes.tensor == other.sizes.tensor && sizes.sequence == other.sizes.sequence &&
           sizes.pipe == other.sizes.pipe;
  }
};
// {1, 2, 4, 8} ranks of data that share the optimizer's state alone (replicate) or all of it (shard), each
// with the model on one rank or on two.
const std::vector<Layout>& DataAndTensorLayouts() {
  static const auto& layouts =
      *new std::vector<Layout>{{"one rank", {}},
                               {"replicate 2", {.replicate = 2}},
                               {"replicate 4", {.replicate = 4}},
                               {"replicate 8", {.replicate = 8}},
                               {"shard 2", {.shard = 2}},
                               {"shard 4", {.shard = 4}},
                               {"shard 8", {.shard = 8}},
                               {"tensor 2", {.tensor = 2}},
                               {"replicate 2 tensor 2", {.replicate = 2, .tensor = 2}},
                               {"replicate 4 tensor 2", {.replicate = 4, .tensor = 2}},
                               {"replicate 8 tensor 2", {.replicate = 8, .tensor = 2}},
                               {"shard 2 tensor 2", {.shard = 2, .tensor = 2}},
                               {"shard 4 tensor 2", {.shard = 4, .tensor = 2}},
                               {"shard 8 tensor 2", {.shard = 8, .tensor = 2}}};
  return layouts;
}
// With the other axes.
const std::vector<Layout>& MixedLayouts() {
  static const auto& layouts =
      *new std::vector<Layout>{{"one rank", {}},
                               {"sequence 2", {.sequence = 2}},
                               {"sequence 2 tensor 2", {.sequence = 2, .tensor = 2}},
                               {"pipe 2", {.pipe = 2}},
                               {"pipe 2 shard 2", {.pipe = 2, .shard = 2}},
                               {"pipe 2 sequence 2 tensor 2", {.pipe = 2, .sequence = 2, .tensor = 2}},
                               {"replicate 2 shard 2 tensor 2", {.replicate = 2, .shard = 2, .tensor = 2}}};
  return layouts;
}

TrainSpec SmallTrainSpec(DType compute, bool tied = false) {
  ModelSpec model = testing::MeshLargeSpec();
  model.num_blocks = 2;
  model.slstm_at = {1};
  model.tie_embeddings = tied;
  TrainSpec spec = testing::MeshTrainSpec(model, compute);
  spec.T = spec.longest_eval_T = 8;
  spec.micro_batch = 1;
  spec.micro_batches_per_step = 8;
  return spec;
}

std::string StepDir(const std::string& run, int64_t step) {
  return absl::StrCat(run, "/checkpoints/step-00000000", step);
}

// On every rank of the mesh: the state of `from` (empty: a new run), as it is saved to `loaded_to` if that is
// given, then `num_steps` steps, then saved to `run`. Returns the losses of the steps.
struct Leg {
  std::string from = {};
  int64_t first_step = 0, num_steps = 0;
  std::string loaded_to = {}, run = {};
};
std::vector<double> Train(const Layout& layout, const TrainSpec& spec, const Leg& leg, FileSystem& files) {
  std::vector<double> losses;
  RunLocalMesh(layout.sizes, [&](const Mesh& mesh) {
    const auto device = testing::CpuDevice(1);
    ShardedSyncFactory sync;
    Trainer trainer(spec, *device, mesh, sync);
    const auto save = [&](const std::string& run, int64_t step) {
      if (run.empty()) return;
      SaveRequest request;
      request.run_dir = run;
      request.state = {.step = step, .consumed_sequences = 8 * step, .seed = 9};
      request.slices = trainer.States();
      request.communicator = mesh.world.communicator;
      request.files = &files;
      const absl::Status saved = SaveCheckpoint(request);
      EXPECT_TRUE(saved.ok()) << layout.name << ": " << saved;
    };
    trainer.Initialize(9);
    if (!leg.from.empty()) {
      TrainState state;
      const absl::Status loaded =
          LoadCheckpoint(leg.from, trainer.States(), mesh.world.communicator, &state, &files);
      EXPECT_TRUE(loaded.ok()) << layout.name << ": " << loaded;
      EXPECT_EQ(state.step, leg.first_step);
      trainer.LoadedStates();
    }
    save(leg.loaded_to, leg.first_step);
    MeshSource source(spec);
    const int64_t end = leg.first_step + leg.num_steps;
    for (int64_t step = leg.first_step; step < end; ++step) {
      const StepResult result = trainer.Step(step, source);
      EXPECT_FALSE(result.skipped);
      if (mesh.world.index == 0) losses.push_back(result.loss);
    }
    save(leg.run, end);
  });
  return losses;
}

std::string Differences(const std::string& a, const std::string& b, FileSystem& files) {
  const auto differences = DiffCheckpoints(a, b, /*weights_only=*/false, &files);
  return differences.ok() ? absl::StrJoin(*differences, "\n") : differences.status().ToString();
}

std::map<std::string, std::vector<double>> WeightsOf(const std::string& dir, FileSystem& files) {
  std::map<std::string, std::vector<double>> weights;
  auto tensors = CheckpointTensors::Open(dir, &files);
  EXPECT_TRUE(tensors.ok()) << tensors.status();
  for (const CheckpointTensor& tensor : tensors->tensors()) {
    if (tensor.kind != StateKind::kWeight) continue;
    std::vector<double>& values = weights[tensor.name];
    DispatchFloat(tensor.dtype, [&]<class W>() {
      std::vector<W> read(static_cast<size_t>(tensor.num_elems));
      EXPECT_TRUE(tensors->Read(tensor, 0, tensor.num_elems, read.data()).ok());
      for (const W value : read) values.push_back(static_cast<double>(static_cast<Wide<W>>(value)));
    });
  }
  return weights;
}

// What a run that changed its layout may differ by from the one that did not.
double Tolerance(DType compute) { return compute == DType::kF64 ? 1e-12 : 2e-6; }

// Checks that `run` ended at `end` as `expected` did.
void ExpectSameEnd(const std::string& run, const std::vector<double>& losses, const std::string& expected,
                   const std::vector<double>& expected_losses, bool same_bits, DType compute,
                   FileSystem& files) {
  if (same_bits) {
    EXPECT_EQ(Differences(run, expected, files), "");
    EXPECT_EQ(losses, expected_losses);
    return;
  }
  testing::MeshRun a, b;
  a.losses = losses;
  b.losses = expected_losses;
  a.weights = WeightsOf(run, files);
  b.weights = WeightsOf(expected, files);
  std::string where;
  const double difference = testing::Difference(a, b, &where);
  EXPECT_LE(difference, Tolerance(compute)) << where;
}

// Saves after two steps on every layout, loads on every other one and goes on for one more step there.
void CheckEveryPair(const std::vector<Layout>& layouts, const TrainSpec& spec) {
  SetMinLogLevel(LogLevel::ERROR);
  MemoryFileSystem files;
  std::vector<std::vector<double>> ends;
  for (size_t a = 0; a < layouts.size(); ++a) {  // the runs that are not interrupted
    Train(layouts[a], spec, {.num_steps = 2, .run = absl::StrCat("half", a)}, files);
    std::vector<double> losses =
        Train(layouts[a], spec, {.num_steps = 3, .run = absl::StrCat("whole", a)}, files);
    ends.push_back({losses[2]});
  }
  for (size_t a = 0; a < layouts.size(); ++a) {
    const std::string saved = StepDir(absl::StrCat("half", a), 2);
    for (size_t b = 0; b < layouts.size(); ++b) {
      SCOPED_TRACE(absl::StrCat("saved on ", layouts[a].name, ", loaded on ", layouts[b].name));
      const std::string again = absl::StrCat("again", a, "_", b), run = absl::StrCat("run", a, "_", b);
      const std::vector<double> losses =
          Train(layouts[b], spec,
                {.from = saved, .first_step = 2, .num_steps = 1, .loaded_to = again, .run = run}, files);
      EXPECT_EQ(Differences(saved, StepDir(again, 2), files), "");
      ExpectSameEnd(StepDir(run, 3), losses, StepDir(absl::StrCat("whole", a), 3), ends[a],
                    layouts[a].SameCut(layouts[b]), spec.compute, files);
      EXPECT_TRUE(RemoveTree(files, again).ok() && RemoveTree(files, run).ok());
      if (::testing::Test::HasFailure()) return;
    }
  }
}

TEST(CheckpointLayouts, EveryPairGoesOnAsIfNothingHadHappenedInF32) {
  CheckEveryPair(DataAndTensorLayouts(), SmallTrainSpec(DType::kF32));
}

TEST(CheckpointLayouts, EveryPairGoesOnAsIfNothingHadHappenedInF64) {
  CheckEveryPair(DataAndTensorLayouts(), SmallTrainSpec(DType::kF64));
}

TEST(CheckpointLayouts, SoDoPairsWithSequenceAndPipeAxes) {
  CheckEveryPair(MixedLayouts(), SmallTrainSpec(DType::kF64));
}

TEST(CheckpointLayouts, SoDoPairsWhoseModelHasOneMatrixForEmbeddingAndHead) {
  CheckEveryPair({{"one rank", {}},
                  {"shard 2", {.shard = 2}},
                  {"tensor 2", {.tensor = 2}},
                  {"replicate 2 tensor 2", {.replicate = 2, .tensor = 2}}},
                 SmallTrainSpec(DType::kF32, /*tied=*/true));
}

// Through three layouts back to the first, with a step on each, and without.
void CheckRoundTrip(const std::vector<Layout>& layouts, const TrainSpec& spec) {
  SetMinLogLevel(LogLevel::ERROR);
  MemoryFileSystem files;
  const int64_t n = static_cast<int64_t>(layouts.size());
  bool same_bits = true;
  std::vector<double> losses = Train(layouts[0], spec, {.num_steps = 1, .run = "moving"}, files);
  for (int64_t i = 1; i <= n; ++i) {
    const Layout& layout = layouts[static_cast<size_t>(i % n)];
    same_bits &= layout.SameCut(layouts[0]);
    const std::vector<double> more =
        Train(layout, spec, {.from = StepDir("moving", i), .first_step = i, .num_steps = 1, .run = "moving"},
              files);
    losses.insert(losses.end(), more.begin(), more.end());
    // and without training, from what the first layout saved
    Train(layout, spec,
          {.from = StepDir(i == 1 ? "moving" : absl::StrCat("still", i - 1), 1),
           .first_step = 1,
           .loaded_to = absl::StrCat("still", i)},
          files);
    EXPECT_EQ(Differences(StepDir("moving", 1), StepDir(absl::StrCat("still", i), 1), files), "");
  }
  const std::vector<double> expected = Train(layouts[0], spec, {.num_steps = n + 1, .run = "staying"}, files);
  ExpectSameEnd(StepDir("moving", n + 1), losses, StepDir("staying", n + 1), expected, same_bits,
                spec.compute, files);
}

TEST(CheckpointLayouts, ThroughThreeLayoutsOfDataTheRunHasTheSameBits) {
  for (const DType compute : {DType::kF32, DType::kF64, DType::kBF16}) {
    SCOPED_TRACE(NameOf(compute));
    CheckRoundTrip({{"replicate 8", {.replicate = 8}}, {"shard 4", {.shard = 4}}, {"one rank", {}}},
                   SmallTrainSpec(compute));
    CheckRoundTrip({{"tensor 2", {.tensor = 2}},
                    {"shard 4 tensor 2", {.shard = 4, .tensor = 2}},
                    {"replicate 2 shard 2 tensor 2", {.replicate = 2, .shard = 2, .tensor = 2}}},
                   SmallTrainSpec(compute));
  }
}

TEST(CheckpointLayouts, ThroughThreeLayoutsOfAnyKindTheRunIsTheSameToRounding) {
  for (const DType compute : {DType::kF32, DType::kF64}) {
    SCOPED_TRACE(NameOf(compute));
    CheckRoundTrip({{"shard 8", {.shard = 8}},
                    {"replicate 2 tensor 2", {.replicate = 2, .tensor = 2}},
                    {"pipe 2 sequence 2", {.pipe = 2, .sequence = 2}}},
                   SmallTrainSpec(compute));
  }
}
}  // namespace
}  // namespace carousel
