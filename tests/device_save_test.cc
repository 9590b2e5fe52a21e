// Saves in the background of training on the device: what is copied beside the compute stream is the state of
// the step, although the next one goes on, and training has the bits of a run without saves.
#include <memory>

#include "absl/strings/str_cat.h"
#include "checkpoints/background_saver.h"
#include "checkpoints/digest.h"
#include "core/train/no_sync.h"
#include "core/train/trainer.h"
#include "tests/background_save_testing.h"
#include "tests/device_testing.h"
#include "tests/layer_testing.h"
#include "tests/memory_file_system.h"

namespace carousel {
namespace {
using testing::TinySpec;

constexpr int64_t kB = 2, kT = 6, kSteps = 5;

struct RandomSource final : public BatchSource {
  void Get(int64_t step, int64_t micro, Batch* batch) override {
    *batch = testing::RandomBatch(kB, kT, TinySpec().vocab_size, static_cast<uint64_t>(100 * step + micro),
                                  /*resets=*/true);
  }
};

TrainSpec Spec() {
  TrainSpec spec;
  spec.model = TinySpec();
  spec.model.num_blocks = 1;
  spec.schedule = {.kind = ScheduleKind::kConstant, .peak_lr = 1e-2, .total_steps = 100};
  spec.T = kT;
  spec.micro_batch = kB;
  spec.micro_batches_per_step = 2;
  spec.compute = DType::kF32;
  return spec;
}

uint64_t DigestOf(Trainer& trainer) {
  uint64_t digest = 0;
  for (const StateSlice& slice : trainer.States()) digest = DigestMix(digest) + DigestSlice(slice);
  return digest;
}

// The state's digest after every step; with `files`, the first and the third step are saved.
std::vector<uint64_t> Train(Trainer& trainer, FileSystem* files) {
  RandomSource source;
  std::vector<uint64_t> digests;
  trainer.Initialize(5);
  const std::unique_ptr<StateCopier> copier = trainer.MakeStateCopier();
  BackgroundSaver saver({.staging_bytes = 1 << 20}, copier.get());
  for (int64_t step = 1; step <= kSteps; ++step) {
    trainer.Step(step - 1, source, {.before_update = [&] { saver.WaitUntilStaged(); }});
    if (files != nullptr && (step == 1 || step == 3)) {
      SaveRequest request;
      request.run_dir = "run";
      request.state = StateAt(step);
      request.slices = trainer.StatesInPlace();
      request.files = files;
      request.copier = copier.get();
      EXPECT_TRUE(saver.Start(request).ok());
    } else if (const std::optional<SaveOutcome> outcome = saver.Finish()) {
      EXPECT_TRUE(outcome->status.ok()) << outcome->status;
    }
    digests.push_back(DigestOf(trainer));
  }
  return digests;
}

TEST(DeviceSave, CopiesTheStateOfItsStepBesideTheNextOne) {
  const std::unique_ptr<Device> device = testing::MakeTestDevice();
  NoSyncFactory sync;
  MemoryFileSystem files;
  Trainer without(Spec(), *device, Mesh{}, sync), with(Spec(), *device, Mesh{}, sync);
  const std::vector<uint64_t> expected = Train(without, nullptr);
  EXPECT_EQ(Train(with, &files), expected);
  for (const int64_t step : {1, 3}) {
    const std::string dir = absl::StrCat("run/checkpoints/step-00000000", step);
    const absl::Status loaded = LoadCheckpoint(dir, without.States(), nullptr, nullptr, &files);
    ASSERT_TRUE(loaded.ok()) << loaded;
    without.LoadedStates();
    EXPECT_EQ(DigestOf(without), expected[static_cast<size_t>(step - 1)]) << step;
  }
}
}  // namespace
}  // namespace carousel
