#include "core/train/trainer.h"

#include <map>

#include "core/train/no_sync.h"
#include "parallel/counting_communicator.h"
#include "parallel/local_communicator.h"
#include "parallel/sharded_sync.h"
#include "tests/deferred_device.h"
#include "tests/layer_testing.h"

namespace carousel {
namespace {
using testing::CpuDevice;
using testing::TinySpec;

constexpr int64_t kB = 2, kT = 6;

// Random batches, a function of (step, micro) only.
class RandomSource : public BatchSource {
 public:
  void Get(int64_t step, int64_t micro, Batch* batch) override {
    *batch = testing::RandomBatch(kB, kT, TinySpec().vocab_size, static_cast<uint64_t>(100 * step + micro),
                                  /*resets=*/true);
  }
};

TrainSpec Spec(int64_t micro_batches_per_step = 1) {
  TrainSpec spec;
  spec.model = TinySpec();
  spec.adamw = {.weight_decay = 0.1, .clip_norm = 1};
  spec.schedule = {.kind = ScheduleKind::kConstant, .peak_lr = 1e-2, .total_steps = 100};
  spec.T = kT;
  spec.micro_batch = kB;
  spec.micro_batches_per_step = micro_batches_per_step;
  spec.compute = DType::kF64;
  return spec;
}

std::vector<double> Weights(Trainer& trainer) {
  std::vector<double> values;
  for (const StateSlice& slice : trainer.States()) {
    if (slice.kind != StateKind::kWeight) continue;
    DispatchFloat(slice.dtype, [&]<class W>() {
      for (int64_t j = 0; j < slice.num_elems(); ++j) {
        values.push_back(static_cast<double>(static_cast<Wide<W>>(static_cast<const W*>(slice.data)[j])));
      }
    });
  }
  return values;
}

TEST(Trainer, LearnsAFixedBatch) {
  class OneBatch final : public RandomSource {
    void Get(int64_t, int64_t, Batch* batch) override { RandomSource::Get(0, 0, batch); }
  } source;
  for (const DType compute : {DType::kF32, DType::kBF16}) {
    const auto device = CpuDevice();
    NoSyncFactory sync;
    TrainSpec spec = Spec();
    spec.compute = compute;
    spec.schedule.peak_lr = 3e-2;
    Trainer trainer(spec, *device, Mesh{}, sync);
    trainer.Initialize(1);
    const double first = trainer.Step(0, source).loss;
    EXPECT_NEAR(first, std::log(static_cast<double>(spec.model.vocab_size)), 0.5);
    double last = first;
    for (int64_t step = 1; step < 80; ++step) last = trainer.Step(step, source).loss;
    EXPECT_LT(last, first / 2) << NameOf(compute);
  }
}

TEST(Trainer, AStepIsTheClippedUpdateOfTheMeanLoss) {
  const auto device = CpuDevice();
  NoSyncFactory sync;
  const TrainSpec spec = Spec(3);
  Trainer trainer(spec, *device, Mesh{}, sync);
  trainer.Initialize(4);
  const std::vector<double> before = Weights(trainer);

  // The same by hand: sums over the micro-batches, divided once by the number of targets.
  BoundModel bound(spec.model, {.compute = DType::kF64, .B = kB, .T = kT, .gradients = true}, *device);
  bound.Initialize(4);
  RandomSource source;
  double loss = 0;
  int64_t num_targets = 0;
  std::vector<double> gradient(before.size(), 0), decay;
  for (int64_t micro = 0; micro < 3; ++micro) {
    Batch batch;
    source.Get(7, micro, &batch);
    num_targets += batch.num_targets();
    loss += testing::LossAndGradients(bound, batch);
    size_t at = 0;
    decay.clear();
    for (const StateSlice& slice : trainer.States()) {  // the order of Weights
      if (slice.kind != StateKind::kWeight) continue;
      const int param = bound.params().Find(slice.name);
      for (const double g : testing::Gradient(bound, param)) gradient[at++] += g;
      decay.resize(at, bound.params().param(param).decay ? spec.adamw.weight_decay : 0);
    }
  }
  double norm = 0;
  for (double& g : gradient) {
    g /= static_cast<double>(num_targets);
    norm += g * g;
  }
  norm = std::sqrt(norm);
  ASSERT_GT(norm, spec.adamw.clip_norm / 10);

  const StepResult result = trainer.Step(7, source);
  EXPECT_NEAR(result.loss, loss / static_cast<double>(num_targets), 1e-12);
  EXPECT_NEAR(result.grad_norm, norm, 1e-12);
  EXPECT_EQ(result.num_targets, num_targets);
  EXPECT_EQ(result.lr, 1e-2);
  EXPECT_FALSE(result.skipped);
  const double scale = spec.adamw.clip_norm / std::max(spec.adamw.clip_norm, norm);
  const std::vector<double> after = Weights(trainer);
  for (size_t j = 0; j < before.size(); ++j) {
    // Update number 8 from zero moments.
    const double g = gradient[j] * scale;
    const double m_hat = (1 - spec.adamw.beta1) * g / (1 - std::pow(spec.adamw.beta1, 8));
    const double v_hat = (1 - spec.adamw.beta2) * g * g / (1 - std::pow(spec.adamw.beta2, 8));
    const double update = m_hat / (std::sqrt(v_hat) + spec.adamw.eps) + decay[j] * before[j];
    ASSERT_NEAR(after[j], before[j] - 1e-2 * update, 1e-9) << j;
  }
}

TEST(Trainer, ClippingOnlyShrinks) {
  const auto device = CpuDevice();
  RandomSource source;
  std::vector<std::vector<double>> moments;
  std::vector<double> norms;
  for (const double clip : {0.0, 1e9, 0.01}) {
    NoSyncFactory sync;
    TrainSpec spec = Spec();
    spec.adamw.clip_norm = clip;
    Trainer trainer(spec, *device, Mesh{}, sync);
    trainer.Initialize(4);
    norms.push_back(trainer.Step(0, source).grad_norm);
    moments.emplace_back();
    for (const StateSlice& slice : trainer.States()) {
      if (slice.kind != StateKind::kAdamM) continue;
      const double* m = static_cast<const double*>(slice.data);
      moments.back().insert(moments.back().end(), m, m + slice.num_elems());
    }
  }
  EXPECT_EQ(norms[0], norms[1]);  // the norm before clipping
  EXPECT_EQ(norms[0], norms[2]);
  EXPECT_EQ(moments[0], moments[1]);
  const double scale = 0.01 / norms[0];
  for (size_t j = 0; j < moments[0].size(); ++j) {
    ASSERT_NEAR(moments[2][j], scale * moments[0][j], 1e-15 + 1e-12 * std::abs(moments[2][j]));
  }
}

TEST(Trainer, AStepThatIsNotFiniteChangesNothing) {
  const auto device = CpuDevice();
  NoSyncFactory sync;
  Trainer trainer(Spec(), *device, Mesh{}, sync);
  trainer.Initialize(1);
  RandomSource source;
  trainer.Step(0, source);
  // One weight is poisoned for the model only: the master copy is sound. The soft cap keeps the loss finite,
  // not the gradient.
  const Tensor weight = trainer.params().Weight(trainer.params().Find("lm_head.weight"));
  const double sound = weight.as<double>()[3];
  weight.as<double>()[3] = std::numeric_limits<double>::infinity();
  const std::vector<double> before = Weights(trainer);
  const StepResult result = trainer.Step(1, source);
  EXPECT_TRUE(result.skipped);
  EXPECT_TRUE(std::isfinite(result.loss));
  EXPECT_FALSE(std::isfinite(result.grad_norm));
  EXPECT_GT(result.num_non_finite, 0);
  EXPECT_EQ(Weights(trainer), before);
  weight.as<double>()[3] = std::nan("");
  const StepResult no_number = trainer.Step(1, source);
  EXPECT_TRUE(no_number.skipped);
  EXPECT_TRUE(std::isnan(no_number.loss));
  EXPECT_TRUE(std::isnan(trainer.Evaluate(source, 1).loss));
  EXPECT_EQ(Weights(trainer), before);
  weight.as<double>()[3] = sound;
  const StepResult good = trainer.Step(1, source);
  EXPECT_FALSE(good.skipped);
  EXPECT_EQ(good.num_non_finite, 0);
}

TEST(Trainer, AStepWithoutTargetsChangesNothing) {
  class NoTargets final : public RandomSource {
    void Get(int64_t step, int64_t micro, Batch* batch) override {
      RandomSource::Get(step, micro, batch);
      std::fill(batch->targets.begin(), batch->targets.end(), -1);
    }
  } source;
  const auto device = CpuDevice();
  NoSyncFactory sync;
  Trainer trainer(Spec(), *device, Mesh{}, sync);
  trainer.Initialize(1);
  const std::vector<double> before = Weights(trainer);
  const StepResult result = trainer.Step(0, source);
  EXPECT_TRUE(result.skipped);
  EXPECT_EQ(result.loss, 0);
  EXPECT_EQ(result.num_targets, 0);
  EXPECT_EQ(Weights(trainer), before);
  const EvaluationResult nothing = trainer.Evaluate(source, 2);
  EXPECT_EQ(nothing.loss, 0);
  EXPECT_EQ(nothing.num_targets, 0);
  EXPECT_EQ(nothing.accuracy(), 0);
}

TEST(Trainer, ShorterAndSmallerBatchesAreWelcome) {
  class Uneven final : public BatchSource {
    void Get(int64_t, int64_t micro, Batch* batch) override {
      *batch = testing::RandomBatch(micro == 0 ? kB : 1, micro == 1 ? kT - 2 : kT, TinySpec().vocab_size, 3,
                                    /*resets=*/micro == 2);
    }
  } source;
  const auto device = CpuDevice();
  NoSyncFactory sync;
  Trainer trainer(Spec(3), *device, Mesh{}, sync);
  trainer.Initialize(1);
  const StepResult result = trainer.Step(0, source);
  EXPECT_GT(result.num_targets, 10);
  EXPECT_NEAR(result.loss, std::log(19.0), 0.5);
}

TEST(Trainer, EvaluationIsTheMeanOverAllTargets) {
  const auto device = CpuDevice();
  NoSyncFactory sync;
  Trainer trainer(Spec(), *device, Mesh{}, sync);
  trainer.Initialize(2);
  RandomSource source;
  BoundModel bound(TinySpec(), {.compute = DType::kF64, .B = kB, .T = kT}, *device);
  bound.Initialize(2);
  double sum = 0;
  int64_t expected_targets = 0;
  for (int64_t i = 0; i < 5; ++i) {
    Batch batch;
    source.Get(0, i, &batch);
    sum += testing::Loss(bound, batch);
    expected_targets += batch.num_targets();
  }
  const EvaluationResult result = trainer.Evaluate(source, 5);
  EXPECT_EQ(result.num_targets, expected_targets);
  EXPECT_NEAR(result.loss, sum / static_cast<double>(expected_targets), 1e-13);
  EXPECT_EQ(trainer.Evaluate(source, 5).loss, result.loss);  // it changes nothing
  EXPECT_EQ(trainer.Evaluate(source, 0).loss, 0);
}

// Losses, norms, evaluations and weights of a few steps on `size` ranks.
std::vector<double> RunOnRanks(int size, const ModelSpec& model, DType compute) {
  std::vector<double> result;
  RunLocalRanks(size, [&](Communicator& communicator) {
    const auto device = CpuDevice(1);
    ShardedSyncFactory sync;
    const Mesh mesh = ReplicateMesh(
        {.size = size, .index = communicator.rank(), .communicator = size > 1 ? &communicator : nullptr});
    TrainSpec spec = Spec(4);
    spec.model = model;
    spec.compute = compute;
    spec.dropout_seed = 21;
    Trainer trainer(spec, *device, mesh, sync);
    trainer.Initialize(9);
    RandomSource source;
    std::vector<double> mine;
    for (int64_t step = 0; step < 3; ++step) {
      const StepResult r = trainer.Step(step, source);
      mine.insert(mine.end(), {r.loss, r.grad_norm, static_cast<double>(r.num_targets)});
    }
    mine.push_back(trainer.Evaluate(source, 7).loss);
    // The weights that the model computes with, on every rank.
    for (const Param& param : trainer.params().params()) {
      const Tensor weight = trainer.params().Weight(trainer.params().Find(param.name)).Flatten();
      DispatchFloat(weight.dtype, [&]<class W>() {
        for (int64_t j = 0; j < weight.num_elems(); ++j) {
          mine.push_back(static_cast<double>(static_cast<Wide<W>>(weight.as<W>()[j])));
        }
      });
    }
    const std::string bytes(reinterpret_cast<const char*>(mine.data()), mine.size() * sizeof(double));
    for (const std::string& other : AllGatherBytes(communicator, bytes)) EXPECT_EQ(other, bytes);
    if (communicator.rank() == 0) result = mine;
  });
  return result;
}

TEST(Trainer, HasTheSameBitsOnEveryNumberOfRanks) {
  ModelSpec mixed = testing::TinyPaperSpec();
  mixed.dropout = mixed.ffn_dropout = mixed.embedding_dropout = 0.1;
  ModelSpec tied = testing::TinyPaperSpec();
  tied.tie_embeddings = true;
  tied.recompute = Recompute::kRecompute;
  for (const ModelSpec& model : {TinySpec(), mixed, tied}) {
    for (const DType compute : {DType::kF32, DType::kBF16}) {
      const std::vector<double> one = RunOnRanks(1, model, compute);
      EXPECT_GT(one.size(), 100u);
      for (const int size : {2, 4}) {
        EXPECT_EQ(RunOnRanks(size, model, compute), one) << size << NameOf(compute);
      }
    }
  }
}

TEST(Trainer, SumsOverRanksWhatACallerContributesAfterTheBatchesWereRead) {
  RunLocalRanks(4, [](Communicator& communicator) {
    class Reading final : public RandomSource {
     public:
      void Get(int64_t step, int64_t micro, Batch* batch) override {
        RandomSource::Get(step, micro, batch);
        ++num_read;
      }
      int64_t num_read = 0;
    } source;
    const auto device = CpuDevice(1);
    ShardedSyncFactory sync;
    Trainer trainer(Spec(8), *device,
                    ReplicateMesh({.size = 4, .index = communicator.rank(), .communicator = &communicator}),
                    sync);
    trainer.Initialize(9);
    // The last one wraps: 4 (2^63 + 1) = 4 modulo 2^64.
    const StepResult result = trainer.Step(
        0, source, {.contribute = [&](std::vector<int64_t>* values) {
          *values = {communicator.rank(), -source.num_read, std::numeric_limits<int64_t>::min() + 1};
        }});
    EXPECT_EQ(result.contributed, (std::vector<int64_t>{6, -8, 4}));
    EXPECT_TRUE(trainer.Step(1, source).contributed.empty());
  });
}

TEST(Trainer, DropoutChangesWithTheStepTheMicroBatchAndTheSeed) {
  class OneBatch final : public RandomSource {
    void Get(int64_t, int64_t, Batch* batch) override { RandomSource::Get(0, 0, batch); }
  } source;
  const auto device = CpuDevice();
  // The loss of one step at rate 0: weights stay, so that losses differ by their masks alone.
  const auto loss = [&](uint64_t seed, int64_t step, int64_t micro_batches) {
    TrainSpec spec = Spec(micro_batches);
    spec.model = testing::TinyPaperSpec();
    spec.model.dropout = 0.3;
    spec.dropout_seed = seed;
    NoSyncFactory sync;
    Trainer trainer(spec, *device, Mesh{}, sync);
    trainer.Initialize(9);
    return trainer.Step(step, source, {.lr = 0}).loss;
  };
  const double first = loss(1, 0, 1);
  EXPECT_EQ(loss(1, 0, 1), first);
  EXPECT_NE(loss(1, 1, 1), first);
  EXPECT_NE(loss(2, 0, 1), first);
  EXPECT_NE(loss(1, 0, 2), first);  // the mean over two masks of the same batch
}

TEST(Trainer, PlanIsWhatIsAllocatedToTheByteWithoutAllocating) {
  const auto device = CpuDevice();
  for (const Recompute recompute : {Recompute::kSave, Recompute::kRecompute}) {
    TrainSpec spec = Spec(2);
    spec.model.recompute = recompute;
    spec.compute = DType::kBF16;
    NoSyncFactory sync;
    const Arena plan = Trainer::Plan(spec, *device, Mesh{}, sync);
    EXPECT_TRUE(plan.counting());
    const Trainer trainer(spec, *device, Mesh{}, sync);
    EXPECT_EQ(plan.total_bytes(), trainer.arena().total_bytes());
    EXPECT_EQ(plan.peak_scratch_bytes(), trainer.arena().peak_scratch_bytes());
    EXPECT_EQ(plan.bytes_by_category(), trainer.arena().bytes_by_category());
    EXPECT_FALSE(trainer.arena().counting());
  }
}

TEST(Trainer, PlansARunThatNoMachineHereCouldHold) {
  const auto device = CpuDevice();
  TrainSpec spec = Spec(64);
  spec.model = {.vocab_size = 50304,
                .embedding_dim = 4096,
                .num_blocks = 32,
                .num_heads = 8,
                .qk_dim = 2048,
                .v_dim = 4096,
                .ffn_dim = 10944,
                .recompute = Recompute::kRecompute};
  spec.T = 8192;
  spec.compute = DType::kBF16;
  CountingCommunicator nobody(31, 32);
  const Mesh mesh = ReplicateMesh({.size = 32, .index = 31, .communicator = &nobody});
  ShardedSyncFactory sync;
  const Arena plan = Trainer::Plan(spec, *device, mesh, sync);
  const int64_t num_parameters = NumParameters(spec.model);
  EXPECT_GT(plan.bytes_by_category().at("weights"), 2 * num_parameters);
  EXPECT_NEAR(static_cast<double>(plan.bytes_by_category().at("optimizer")),
              12.0 * static_cast<double>(num_parameters) / 32, 5e7);  // padding of 34 groups
}

TEST(Trainer, CreateReportsADeviceWithoutRoom) {
  const auto device = CpuDevice();
  TrainSpec spec = Spec();
  spec.T = int64_t{1} << 40;
  NoSyncFactory sync;
  const auto trainer = Trainer::Create(spec, *device, Mesh{}, sync);
  ASSERT_FALSE(trainer.ok());
  EXPECT_EQ(trainer.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(std::string(trainer.status().message()).find("PiB on cpu"), std::string::npos);
  EXPECT_TRUE(Trainer::Create(Spec(), *device, Mesh{}, sync).ok());
}

// Trains, copies the states into a fresh trainer, trains both on: they must stay equal.
void ExpectStatesCarryEverything(Device& device) {
  NoSyncFactory sync_a, sync_b;
  TrainSpec spec = Spec();
  spec.compute = DType::kBF16;
  Trainer a(spec, device, Mesh{}, sync_a), b(spec, device, Mesh{}, sync_b);
  a.Initialize(1);
  b.Initialize(2);
  RandomSource source;
  for (int64_t step = 0; step < 3; ++step) a.Step(step, source);
  const std::vector<StateSlice> from = a.States(), to = b.States();
  ASSERT_EQ(from.size(), to.size());
  std::map<std::pair<std::string, StateKind>, int64_t> elems;
  for (size_t j = 0; j < from.size(); ++j) {
    EXPECT_EQ(from[j].name, to[j].name);
    EXPECT_EQ(from[j].num_elems(), to[j].num_elems());
    std::memcpy(to[j].data, from[j].data, static_cast<size_t>(from[j].num_elems() * SizeOf(from[j].dtype)));
    elems[{from[j].name, from[j].kind}] += from[j].num_elems();
  }
  b.LoadedStates();
  for (int64_t step = 3; step < 5; ++step) {
    EXPECT_EQ(a.Step(step, source).loss, b.Step(step, source).loss);
  }
  EXPECT_EQ(Weights(a), Weights(b));
  // Every parameter whole, three times.
  EXPECT_EQ(elems.size(), 3 * a.params().params().size());
  for (const auto& [key, count] : elems) {
    EXPECT_EQ(count, a.params().param(a.params().Find(key.first)).num_elems);
  }
}
TEST(Trainer, StatesCarryEverything) { ExpectStatesCarryEverything(*CpuDevice()); }
TEST(Trainer, StatesCarryEverythingOnADeviceThatTheHostCannotTouch) {
  testing::DeferredDevice device(CpuDevice());
  ExpectStatesCarryEverything(device);
}

TEST(TrainerDeathTest, RanksMustDivideTheMicroBatches) {
  const auto device = CpuDevice(1);
  NoSyncFactory no_sync;
  ShardedSyncFactory sync;
  CountingCommunicator nobody(0, 2);
  const Mesh mesh = ReplicateMesh({.size = 2, .index = 0, .communicator = &nobody});
  EXPECT_DEATH(Trainer::Plan(Spec(3), *device, mesh, sync), "");
  EXPECT_DEATH(Trainer::Plan(Spec(4), *device, mesh, no_sync), "NoSync is for one rank");
}
}  // namespace
}  // namespace carousel
