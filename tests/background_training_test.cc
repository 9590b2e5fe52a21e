// Real training with saves in the background: it gives the bits of a run without any, and every checkpoint
// holds the state of its step, on one rank, on several, and on a device that the host cannot read.
#include "checkpoints/background_saver.h"

#include "absl/strings/str_cat.h"
#include "checkpoints/digest.h"
#include "core/train/no_sync.h"
#include "core/train/trainer.h"
#include "parallel/local_communicator.h"
#include "parallel/sharded_sync.h"
#include "tests/background_save_testing.h"
#include "tests/deferred_device.h"
#include "tests/memory_file_system.h"
#include "tests/mesh_training.h"

namespace carousel {
namespace {
using testing::CpuDevice;
using testing::DeferredDevice;
using testing::MeshLargeSpec;
using testing::MeshSource;
using testing::MeshTrainSpec;

constexpr int64_t kSteps = 7;

TrainSpec Spec(DType compute) { return MeshTrainSpec(MeshLargeSpec(), compute); }

uint64_t DigestOf(Trainer& trainer) {
  uint64_t digest = 0;
  for (const StateSlice& slice : trainer.States()) digest = DigestMix(digest) + DigestSlice(slice);
  return digest;
}

struct Outcome {
  std::vector<double> losses;
  std::vector<uint64_t> digests;  // of this rank's state after every step
  std::vector<int64_t> saved;
  bool operator==(const Outcome&) const = default;
};

// Trains; with `files`, saves after every second step that finds no save under way. The first save is waited
// for after the fifth step.
Outcome Train(Trainer& trainer, const TrainSpec& spec, Communicator* communicator, FileSystem* files,
              int64_t staging_bytes) {
  MeshSource source(spec);
  Outcome outcome;
  trainer.Initialize(5);
  const std::unique_ptr<StateCopier> copier = trainer.MakeStateCopier();
  BackgroundSaver saver({.staging_bytes = staging_bytes}, copier.get());
  const auto note = [&](const std::optional<SaveOutcome>& saved) {
    if (!saved.has_value()) return;
    EXPECT_TRUE(saved->status.ok()) << saved->status;
    outcome.saved.push_back(saved->step);
  };
  for (int64_t step = 0; step < kSteps; ++step) {
    const StepResult result =
        trainer.Step(step, source,
                     {.contribute = [&](std::vector<int64_t>* numbers) { saver.Contribute(numbers); },
                      .before_update = [&] { saver.WaitUntilStaged(); }});
    EXPECT_FALSE(result.skipped);
    outcome.losses.push_back(result.loss);
    outcome.digests.push_back(DigestOf(trainer));
    note(saver.Advance(result.contributed.data()));
    if (step == 4) note(saver.Finish());
    if (files == nullptr || step % 2 != 0 || saver.in_flight()) continue;
    SaveRequest request;
    request.run_dir = "run";
    request.state = StateAt(step + 1);
    request.slices = trainer.StatesInPlace();
    request.communicator = communicator;
    request.files = files;
    request.copier = copier.get();
    const absl::Status started = saver.Start(request);
    EXPECT_TRUE(started.ok()) << started;
  }
  note(saver.Finish());
  return outcome;
}

// What a trainer of the same kind holds after loading the checkpoint of `step`.
uint64_t Loaded(Trainer& trainer, Communicator* communicator, FileSystem* files, int64_t step) {
  TrainState state;
  const std::string dir = absl::StrCat("run/checkpoints/step-00000000", step);
  const absl::Status loaded = LoadCheckpoint(dir, trainer.States(), communicator, &state, files);
  EXPECT_TRUE(loaded.ok()) << loaded;
  EXPECT_EQ(state.step, step);
  trainer.LoadedStates();
  return DigestOf(trainer);
}

// Every write takes a while, so that steps are made while a save is under way.
ObservedFiles Slow(MemoryFileSystem& memory, int milliseconds) {
  return {memory, [milliseconds](const std::string& call, const std::string&) {
            if (call == "write") std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds));
          }};
}

void ExpectSameWithSaves(const MeshSizes& sizes, DType compute, int64_t staging_bytes, int milliseconds) {
  MemoryFileSystem memory;
  ObservedFiles files = Slow(memory, milliseconds);
  RunLocalMesh(sizes, [&](const Mesh& mesh) {
    Communicator* const world = mesh.world.size > 1 ? mesh.world.communicator : nullptr;
    const auto device = CpuDevice();
    ShardedSyncFactory sync;
    Trainer without(Spec(compute), *device, mesh, sync), with(Spec(compute), *device, mesh, sync);
    Outcome expected = Train(without, Spec(compute), world, nullptr, staging_bytes);
    const Outcome outcome = Train(with, Spec(compute), world, &files, staging_bytes);
    EXPECT_GE(outcome.saved.size(), 2u);
    expected.saved = outcome.saved;
    EXPECT_EQ(outcome, expected);
    for (const int64_t step : outcome.saved) {
      EXPECT_EQ(Loaded(without, world, &memory, step), expected.digests[static_cast<size_t>(step - 1)])
          << step;
    }
  });
}

constexpr int64_t kMiB = int64_t{1} << 20;

TEST(BackgroundTraining, HasTheBitsOfARunWithoutSavesAndSavesEveryStepAsItWas) {
  for (const MeshSizes& sizes : {MeshSizes{}, MeshSizes{.replicate = 2}, MeshSizes{.shard = 2},
                                 MeshSizes{.tensor = 2}, MeshSizes{.replicate = 2, .tensor = 2}}) {
    for (const DType compute : {DType::kF32, DType::kBF16}) {
      ExpectSameWithSaves(sizes, compute, 4 * kMiB, /*milliseconds=*/2);
    }
  }
}

TEST(BackgroundTraining, WaitsForThePoolWhereItIsSmallerThanTheState) {
  ExpectSameWithSaves({.replicate = 2}, DType::kF32, kMiB, 3);  // one block for two files
}

TEST(BackgroundTraining, ReadsADeviceThatTheHostCannot) {
  const TrainSpec spec = Spec(DType::kBF16);
  NoSyncFactory sync;
  const auto cpu = CpuDevice();
  Trainer on_cpu(spec, *cpu, Mesh{}, sync);
  Outcome expected = Train(on_cpu, spec, nullptr, nullptr, kMiB);
  for (const int64_t staging_bytes : {kMiB, 4 * kMiB}) {
    MemoryFileSystem memory;
    ObservedFiles files = Slow(memory, 1);
    DeferredDevice device(CpuDevice());
    Trainer trainer(spec, device, Mesh{}, sync);
    const Outcome outcome = Train(trainer, spec, nullptr, &files, staging_bytes);
    EXPECT_GE(outcome.saved.size(), 2u);
    expected.saved = outcome.saved;
    EXPECT_EQ(outcome, expected);
    for (const int64_t step : outcome.saved) {
      EXPECT_EQ(Loaded(on_cpu, nullptr, &memory, step), expected.digests[static_cast<size_t>(step - 1)])
          << step;
    }
  }
}
}  // namespace
}  // namespace carousel
