// Training, evaluation and generation on a device whose memory the host cannot read and whose ops run later
// (tests/deferred_device.h): the same bits as on the CPU, whether passes are played from records or not, on
// any number of ranks; and what a user is told where memory does not suffice.
#include "core/model/generator.h"
#include "core/train/no_sync.h"
#include "core/train/trainer.h"
#include "parallel/counting_communicator.h"
#include "parallel/local_communicator.h"
#include "parallel/sharded_sync.h"
#include "parallel/staged_communicator.h"
#include "tests/communicator_contract.h"
#include "tests/deferred_device.h"
#include "tests/layer_testing.h"

namespace carousel {
namespace {
using testing::CpuDevice;
using testing::DeferredDevice;
using testing::TinyPaperSpec;
using testing::TinySpec;

constexpr int64_t kB = 2, kT = 6;

struct RandomSource final : public BatchSource {
  void Get(int64_t step, int64_t micro, Batch* batch) override {
    const uint64_t seed = static_cast<uint64_t>(100 * step + micro);
    const bool is_short = uneven && micro == 1;
    *batch = testing::RandomBatch(kB, is_short ? kT - 1 : kT, 19, seed, /*resets=*/micro % 2 == 0);
  }
  bool uneven = false;
};

TrainSpec Spec(const ModelSpec& model, DType compute) {
  TrainSpec spec;
  spec.model = model;
  spec.adamw = {.weight_decay = 0.1, .clip_norm = 1};
  spec.schedule = {.kind = ScheduleKind::kConstant, .peak_lr = 1e-2, .total_steps = 100};
  spec.T = kT;
  spec.micro_batch = kB;
  spec.micro_batches_per_step = 4;
  spec.dropout_seed = 3;
  spec.compute = compute;
  return spec;
}
ModelSpec WithDropout() {
  ModelSpec spec = TinyPaperSpec();
  spec.dropout = spec.ffn_dropout = spec.embedding_dropout = 0.1;
  return spec;
}

// Everything a run gives: losses and norms of its steps, an evaluation, the states' bytes, a text.
struct Outcome {
  std::vector<double> numbers;
  std::string states;
  std::vector<int32_t> text;
  bool operator==(const Outcome&) const = default;
};
Outcome OutcomeOf(Trainer& trainer, Device& device, RandomSource& source) {
  Outcome outcome;
  trainer.Initialize(5);
  for (int64_t step = 0; step < 4; ++step) {
    const StepResult r = trainer.Step(step, source);
    EXPECT_FALSE(r.skipped);
    outcome.numbers.insert(outcome.numbers.end(), {r.loss, r.grad_norm, static_cast<double>(r.num_targets)});
  }
  const EvaluationResult evaluation = trainer.Evaluate(source, 3);
  outcome.numbers.push_back(evaluation.loss);
  outcome.numbers.push_back(static_cast<double>(evaluation.num_correct));
  for (const StateSlice& slice : trainer.States()) {
    outcome.states.append(static_cast<const char*>(slice.data),
                          static_cast<size_t>(slice.num_elems() * SizeOf(slice.dtype)));
  }
  Generator generator(trainer.model(), device);
  outcome.text = generator.Generate({.prompt = {1, 2, 0, 3, 4, 5, 6, 7}, .max_new_tokens = 9, .reset_id = 0});
  return outcome;
}
Outcome RunAlone(const TrainSpec& spec, Device& device, RandomSource source = {}) {
  ShardedSyncFactory sync;
  Trainer trainer(spec, device, Mesh{}, sync);
  return OutcomeOf(trainer, device, source);
}

TEST(FarDevice, TrainsToTheBitsOfTheCpuWithAndWithoutRecords) {
  for (const ModelSpec& model : {TinySpec(), TinyPaperSpec(), WithDropout()}) {
    for (const DType compute : {DType::kF32, DType::kBF16}) {
      TrainSpec spec = Spec(model, compute);
      const auto cpu = CpuDevice();
      const Outcome expected = RunAlone(spec, *cpu);
      DeferredDevice recording(CpuDevice()), eager(CpuDevice());
      EXPECT_EQ(RunAlone(spec, recording), expected);
      spec.graphs = false;
      EXPECT_EQ(RunAlone(spec, eager), expected);
      EXPECT_EQ(eager.num_recordings, 0);
      // Four micro-batches in the three buffers of the tree, with resets in every other one: four sequences,
      // each issued, recorded and played twice. Masks of dropout are arguments of ops: nothing is recorded.
      EXPECT_EQ(recording.num_recordings, model.drops() ? 0 : 4);
      EXPECT_EQ(recording.num_replays, model.drops() ? 0 : 4 * 2);
    }
  }
}

TEST(FarDevice, RecordsNoPassOfAnotherShape) {
  const TrainSpec spec = Spec(TinySpec(), DType::kF32);
  RandomSource source;
  source.uneven = true;
  const auto cpu = CpuDevice();
  DeferredDevice device(CpuDevice());
  EXPECT_EQ(RunAlone(spec, device, source), RunAlone(spec, *cpu, source));
  EXPECT_EQ(device.num_recordings, 3);
}

TEST(FarDevice, TwoTrainersOnOneDeviceKeepTheirRecordsApart) {
  const TrainSpec spec = Spec(TinySpec(), DType::kF32);
  DeferredDevice device(CpuDevice());
  NoSyncFactory sync_a, sync_b;
  Trainer a(spec, device, Mesh{}, sync_a), b(spec, device, Mesh{}, sync_b);
  a.Initialize(1);
  b.Initialize(2);
  RandomSource source;
  std::vector<double> losses[2];
  for (int64_t step = 0; step < 3; ++step) {
    losses[0].push_back(a.Step(step, source).loss);
    losses[1].push_back(b.Step(step, source).loss);
  }
  NoSyncFactory sync_c;
  Trainer c(spec, device, Mesh{}, sync_c);
  c.Initialize(2);
  for (int64_t step = 0; step < 3; ++step)
    EXPECT_EQ(c.Step(step, source).loss, losses[1][static_cast<size_t>(step)]);
  EXPECT_NE(losses[0], losses[1]);
}

TEST(FarDevice, RanksStageThroughTheHostToTheBitsOfOneRank) {
  for (const ModelSpec& model : {TinySpec(), WithDropout()}) {
    const TrainSpec spec = Spec(model, DType::kBF16);
    const auto cpu = CpuDevice();
    const Outcome expected = RunAlone(spec, *cpu);
    for (const int size : {2, 4}) {
      for (const int64_t staging_bytes : {kDefaultStagingBytes, int64_t{20000}}) {
        Outcome whole;
        RunLocalRanks(size, [&](Communicator& host) {
          DeferredDevice device(CpuDevice(1));
          StagedCommunicator staged(host, device);
          const Mesh mesh =
              ReplicateMesh({.size = size, .index = host.rank(), .communicator = &staged, .control = &host});
          ShardedSyncFactory sync({.staging_bytes = staging_bytes});
          Trainer trainer(spec, device, mesh, sync);
          RandomSource source;
          const Outcome mine = OutcomeOf(trainer, device, source);
          if (host.rank() == 0) whole = mine;
        });
        EXPECT_EQ(whole.numbers, expected.numbers) << size;
        EXPECT_EQ(whole.text, expected.text) << size;
      }
    }
  }
}

TEST(FarDevice, StagedCollectivesKeepTheContract) {
  // The contract's tensors are the host's: a device that reads them is enough here.
  for (const int P : {1, 2, 3}) {
    RunLocalRanks(P, [](Communicator& host) {
      const auto device = CpuDevice(1);
      StagedCommunicator staged(host, *device);
      for (const int64_t n : {0, 1, 5, 1025}) CheckCommunicatorContract(staged, n);
    });
  }
}

TEST(FarDeviceDeathTest, RanksWithoutAControlCommunicatorAreACheck) {
  EXPECT_DEATH(RunLocalRanks(2,
                             [&](Communicator& host) {
                               DeferredDevice device(CpuDevice(1));
                               const Mesh mesh =
                                   ReplicateMesh({.size = 2, .index = host.rank(), .communicator = &host});
                               ShardedSyncFactory sync;
                               Trainer::Plan(Spec(TinySpec(), DType::kF32), device, mesh, sync);
                             }),
               "need mesh.world.control");
}

TEST(FarDeviceDeathTest, TheFakeCatchesAHostThatReadsItsMemory) {
  DeferredDevice device(CpuDevice(1));
  const Tensor x(device.Allocate(16), DType::kF32, {4});
  device.ops().Fill({.y = x, .value = 3});
  std::vector<float> values(4);
  device.CopyToHost(values.data(), x.data, 16);
  EXPECT_EQ(values, std::vector<float>(4, 3.0f));
  EXPECT_DEATH(EXPECT_EQ(x.as<float>()[0], 3), "");
}

TEST(FarDevice, APlanThatDoesNotFitSaysWhatTheDeviceHasAndWhatToReduce) {
  DeferredDevice device(CpuDevice(1));
  device.limit_bytes = 100 << 10;
  const auto error = [&](const TrainSpec& spec) {
    NoSyncFactory sync;
    const auto trainer = Trainer::Create(spec, device, Mesh{}, sync);
    EXPECT_EQ(trainer.status().code(), absl::StatusCode::kResourceExhausted);
    return std::string(trainer.status().message());
  };
  const auto contains = [](const std::string& text, const std::string& part) {
    EXPECT_NE(text.find(part), std::string::npos) << text << "\nlacks: " << part;
  };
  // Many tokens: activations come first.
  TrainSpec spec = Spec(TinySpec(), DType::kF32);
  spec.T = 1024;
  std::string text = error(spec);
  contains(text, "training needs ");
  contains(text, "MiB on deferred (scratch ");
  contains(text, "which has 100 KiB, 50 KiB of it free: the fake is full");
  contains(text,
           "; reduce train.micro_batch or data.sequence_length, or set model.recompute: RECOMPUTE; or use");
  // A single sequence that is recomputed already leaves less to reduce.
  spec.micro_batch = 1;
  spec.T = 4096;
  spec.model.recompute = Recompute::kRecompute;
  text = error(spec);
  contains(text, "; reduce data.sequence_length; or use a smaller model");
  // A large model with few tokens.
  spec = Spec(TinySpec(), DType::kF32);
  spec.model.embedding_dim = 240;
  text = error(spec);
  contains(text, "(optimizer ");
  contains(text, "; use a smaller model (model.num_blocks, model.embedding_dim) or more ranks");
}

// Weights that are gathered for their use are no activations: less of them is a smaller model.
TEST(FarDevice, APlanCountsGatheredWeightsAmongTheParameters) {
  DeferredDevice device(CpuDevice(1));
  device.limit_bytes = 100 << 10;
  CountingCommunicator counting(/*rank=*/0, /*size=*/2);
  Mesh mesh;
  mesh.shard = mesh.world = {.size = 2, .communicator = &counting, .control = &counting};
  TrainSpec spec = Spec(TinySpec(), DType::kF32);
  spec.model.embedding_dim = 240;
  spec.micro_batches_per_step = 2;
  ShardedSyncFactory sync;
  int num_cases = 0;  // in which they decide what comes first
  for (spec.T = 4; spec.T <= 512; spec.T += 4) {
    const Arena plan = Trainer::Plan(spec, device, mesh, sync);
    const auto& bytes = plan.bytes_by_category();
    const int64_t gathered = bytes.at("gathered weights");
    const int64_t others =
        bytes.at("weights") + bytes.at("optimizer") + bytes.at("gradients") + bytes.at("comm");
    if (2 * others >= plan.total_bytes() || 2 * (others + gathered) < plan.total_bytes()) continue;
    ++num_cases;
    const auto trainer = Trainer::Create(spec, device, mesh, sync);
    ASSERT_EQ(trainer.status().code(), absl::StatusCode::kResourceExhausted);
    EXPECT_NE(trainer.status().message().find("; use a smaller model"), std::string::npos)
        << trainer.status();
  }
  EXPECT_GT(num_cases, 0);
}

TEST(BinaryBytes, HasThreeDigits) {
  EXPECT_EQ(BinaryBytes(0), "0 bytes");
  EXPECT_EQ(BinaryBytes(1023), "1023 bytes");
  EXPECT_EQ(BinaryBytes(1536), "1.5 KiB");
  EXPECT_EQ(BinaryBytes(int64_t{80} << 30), "80 GiB");
  EXPECT_EQ(BinaryBytes((int64_t{1} << 40) - (int64_t{1} << 33)), "1016 GiB");
}
}  // namespace
}  // namespace carousel
