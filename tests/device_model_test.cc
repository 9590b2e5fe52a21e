// Whole models on the device: training steps, evaluation, generation and states of tiny models of each family
// equal the CPU's, and the device's own bits depend neither on whether passes are played from records nor on
// the run.
//
// f32 and f64: the same formulas with sums in another order, some hundred terms and as many ops in a row.
// bf16: every operand of a product is rounded to 2^-9, and which way depends on the order of the sums before
// it, so two correct backends are as far from each other as from the truth. Both are compared with the CPU in
// f64, and the device must be as near to it as the CPU's bf16 is.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <set>

#include "core/model/generator.h"
#include "core/train/trainer.h"
#include "kernels/cpu/cpu_device.h"
#include "parallel/sharded_sync.h"
#include "tests/device_testing.h"
#include "tests/layer_testing.h"

namespace carousel {
namespace {
using testing::RelativeL2;
using testing::TinyPaperSpec;
using testing::TinySpec;

constexpr int64_t kB = 2;

struct Case {
  std::string name;
  ModelSpec model;
  bool documents = false;
  int64_t T = 7;
};

std::vector<Case> Cases() {
  std::vector<Case> cases;
  cases.push_back({"large, soft caps", TinySpec()});
  cases.push_back({"large, an sLSTM, biases, recomputed, documents", TinySpec(), true});
  cases.back().model.use_bias = true;
  cases.back().model.recompute = Recompute::kRecompute;
  cases.back().model.slstm_at = {1};
  cases.back().model.slstm_num_heads = 3;
  // Heads of the tensor-core path, more than one chunk.
  cases.push_back({"large, heads of 64", TinySpec()});
  ModelSpec& wide = cases.back().model;
  wide.num_blocks = 1;
  wide.num_heads = 1;
  wide.qk_dim = wide.v_dim = 64;
  wide.embedding_dim = 24;
  wide.chunk_length = 64;
  cases.back().T = 70;
  cases.push_back({"paper, mLSTM and sLSTM with convolutions, documents", TinyPaperSpec(), true});
  cases.back().model.num_blocks = 2;
  cases.back().model.slstm_gradient_clip = 0.5;
  cases.push_back({"paper, tied, dropout", TinyPaperSpec()});
  ModelSpec& drops = cases.back().model;
  drops.num_blocks = 2;
  drops.tie_embeddings = true;
  drops.dropout = drops.ffn_dropout = drops.embedding_dropout = 0.2;
  return cases;
}

class RandomSource final : public BatchSource {
 public:
  explicit RandomSource(const Case& c) : case_(c) {}
  void Get(int64_t step, int64_t micro, Batch* batch) override {
    *batch = testing::RandomBatch(kB, case_.T, case_.model.vocab_size,
                                  static_cast<uint64_t>(100 * step + micro), case_.documents);
  }

 private:
  Case case_;
};

TrainSpec Spec(const Case& c, DType compute) {
  TrainSpec spec;
  spec.model = c.model;
  // An epsilon near the gradients' size: otherwise the first updates are their signs, also of those that are
  // zero but for rounding.
  spec.adamw = {.eps = 1e-2, .weight_decay = 0.1, .clip_norm = 0.5};
  spec.schedule = {.kind = ScheduleKind::kConstant, .peak_lr = 1e-2, .total_steps = 100};
  spec.T = c.T;
  spec.micro_batch = kB;
  spec.micro_batches_per_step = 3;
  spec.dropout_seed = 3;
  spec.compute = compute;
  return spec;
}

std::unique_ptr<Device> Cpu() { return std::make_unique<cpu::CpuDevice>(cpu::CpuOptions{.num_threads = 1}); }

// Values of the trainer's states by "kind/name".
std::map<std::string, std::vector<double>> Values(Trainer& trainer) {
  std::map<std::string, std::vector<double>> values;
  for (const StateSlice& slice : trainer.States()) {
    const std::string kind = slice.kind == StateKind::kWeight  ? "w"
                             : slice.kind == StateKind::kAdamM ? "m"
                                                               : "v";
    std::vector<double>& out = values[kind + "/" + slice.name];
    DispatchFloat(slice.dtype, [&]<class W>() {
      for (int64_t j = 0; j < slice.num_elems(); ++j) {
        out.push_back(static_cast<double>(static_cast<Wide<W>>(static_cast<const W*>(slice.data)[j])));
      }
    });
  }
  return values;
}

struct Outcome {
  std::vector<double> losses, norms;
  double evaluation = 0;
  int64_t num_targets = 0, num_correct = 0;
  std::map<std::string, std::vector<double>> begin, end;
  std::vector<double> logits;  // after a prompt with a document in it, and a step more
  std::vector<int32_t> text;
  bool operator==(const Outcome&) const = default;
};

Outcome RunCase(const Case& c, const TrainSpec& spec, Device& device, int64_t num_steps,
                const SyncOptions& options = {}) {
  ShardedSyncFactory sync(options);
  Trainer trainer(spec, device, Mesh{}, sync);
  trainer.Initialize(4);
  Outcome outcome;
  outcome.begin = Values(trainer);
  RandomSource source(c);
  for (int64_t step = 0; step < num_steps; ++step) {
    const StepResult r = trainer.Step(step, source);
    EXPECT_FALSE(r.skipped);
    outcome.losses.push_back(r.loss);
    outcome.norms.push_back(r.grad_norm);
  }
  outcome.end = Values(trainer);
  const EvaluationResult evaluation = trainer.Evaluate(source, 2);
  outcome.evaluation = evaluation.loss;
  outcome.num_targets = evaluation.num_targets;
  outcome.num_correct = evaluation.num_correct;
  Generator generator(trainer.model(), device);
  generator.Feed({1, 2, 3, 0, 5, 6, 7, 8, 9}, /*reset_id=*/0);
  outcome.logits = generator.Feed({4});
  outcome.text =
      generator.Generate({.prompt = {1, 2, 3}, .max_new_tokens = 4, .sampling = {.temperature = 0}});
  return outcome;
}

// How far an outcome is from another, all relative: losses and norms by their worst step, logits and states
// in the L2 norm.
struct Distance {
  double loss = 0, norm = 0, logits = 0;
  // Over the parameters: the root of the mean square, and the worst. Weights, first moments, second moments.
  double rms[3] = {}, worst[3] = {};
  std::string worst_name[3];
};
constexpr char kKinds[] = {'w', 'm', 'v'};

double L2(const std::vector<double>& x) {
  double sum = 0;
  for (const double v : x) sum += v * v;
  return std::sqrt(sum);
}

Distance DistanceOf(const Outcome& a, const Outcome& expected) {
  Distance d;
  for (size_t step = 0; step < expected.losses.size(); ++step) {
    d.loss = std::max(d.loss, std::abs(a.losses[step] / expected.losses[step] - 1));
    d.norm = std::max(d.norm, std::abs(a.norms[step] / expected.norms[step] - 1));
  }
  d.loss = std::max(d.loss, std::abs(a.evaluation / expected.evaluation - 1));
  d.logits = RelativeL2(a.logits, expected.logits);
  for (int kind = 0; kind < 3; ++kind) {
    // A tensor that is small beside the others (weights that begin at 0; the gradient of the sLSTM's input
    // gate bias, which is zero but for rounding, as that gate multiplies c and n alike) is measured on their
    // scale.
    double squares = 0, elems = 0;
    for (const auto& [name, values] : expected.end) {
      if (name[0] != kKinds[kind]) continue;
      squares += L2(values) * L2(values);
      elems += static_cast<double>(values.size());
    }
    const double small = 0.1 * std::sqrt(squares / elems);
    int64_t count = 0;
    for (const auto& [name, values] : expected.end) {
      if (name[0] != kKinds[kind]) continue;
      const double size = std::max(L2(values), small * std::sqrt(static_cast<double>(values.size())));
      const double error = RelativeL2(a.end.at(name), values) * L2(values) / size;
      d.rms[kind] += error * error;
      ++count;
      if (error > d.worst[kind]) d.worst[kind] = error, d.worst_name[kind] = name;
    }
    d.rms[kind] = std::sqrt(d.rms[kind] / static_cast<double>(count));
  }
  return d;
}

void ExpectSameData(const Outcome& a, const Outcome& expected, const Case& c) {
  EXPECT_EQ(a.num_targets, expected.num_targets) << c.name;
  EXPECT_LE(std::abs(a.num_correct - expected.num_correct), 1) << c.name;  // a tie of the two largest logits
  EXPECT_EQ(a.begin, expected.begin) << c.name;  // initial values are computed by the host
}

// Losses are means over tokens and nearer than the gradients behind norms and states.
void ExpectNear(const Outcome& a, const Outcome& expected, double bound, const Case& c) {
  ExpectSameData(a, expected, c);
  const Distance d = DistanceOf(a, expected);
  EXPECT_LT(d.loss, bound / 10) << c.name;
  EXPECT_LT(d.norm, bound) << c.name;
  EXPECT_LT(d.logits, bound) << c.name;
  for (int kind = 0; kind < 3; ++kind)
    EXPECT_LT(d.worst[kind], bound) << c.name << ": " << d.worst_name[kind];
}

TEST(DeviceModel, TrainsAsTheCpuInF32) {
  const auto device = testing::MakeTestDevice();
  for (const Case& c : Cases()) {
    const TrainSpec spec = Spec(c, DType::kF32);
    const auto cpu = Cpu();
    ExpectNear(RunCase(c, spec, *device, 3), RunCase(c, spec, *cpu, 3), 1e-5, c);
  }
}

TEST(DeviceModel, TrainsAsTheCpuInF64) {
  const auto device = testing::MakeTestDevice();
  const Case c = Cases()[3];
  const TrainSpec spec = Spec(c, DType::kF64);
  const auto cpu = Cpu();
  ExpectNear(RunCase(c, spec, *device, 2), RunCase(c, spec, *cpu, 2), 1e-12, c);
}

TEST(DeviceModel, TrainsInBf16AsNearToTheTruthAsTheCpu) {
  const auto device = testing::MakeTestDevice();
  for (const Case& c : Cases()) {
    const auto cpu = Cpu();
    const Outcome exact = RunCase(c, Spec(c, DType::kF64), *cpu, 3);
    const Outcome of_cpu = RunCase(c, Spec(c, DType::kBF16), *cpu, 3);
    const Outcome mine = RunCase(c, Spec(c, DType::kBF16), *device, 3);
    ExpectSameData(mine, of_cpu, c);
    const Distance d = DistanceOf(mine, exact), near = DistanceOf(of_cpu, exact);
    // Logits, of size 1, and norms: twice what the CPU shows in the worst of these cases, 1.5e-2 and 1e-2. So
    // a token's loss is known to 1.5e-2, the mean over 37 targets to a sixth of it, 8e-4 of a loss of 3:
    // three sigma.
    EXPECT_LT(d.logits, 3e-2) << c.name;
    EXPECT_LT(d.norm, 2e-2) << c.name;
    EXPECT_LT(d.loss, 2.5e-3) << c.name;
    // Over some thirty tensors chance evens out; the worst of them is luck.
    for (int kind = 0; kind < 3; ++kind) {
      EXPECT_LT(d.rms[kind], 1.5 * near.rms[kind]) << c.name << ": " << kKinds[kind];
      EXPECT_LT(d.worst[kind], 2.5 * near.worst[kind]) << c.name << ": " << d.worst_name[kind];
    }
  }
}

TEST(DeviceModel, RecordsAndRunsHaveTheSameBits) {
  const auto device = testing::MakeTestDevice();
  for (const size_t i : {1, 3}) {
    const Case c = Cases()[i];
    TrainSpec spec = Spec(c, DType::kBF16);
    // Two buffers take turns, or one buffer is begun and then added to: each sequence is issued, recorded and
    // played.
    for (const auto reduction : {SyncOptions::Reduction::kOrdered, SyncOptions::Reduction::kUnordered}) {
      spec.graphs = true;
      const Outcome recorded = RunCase(c, spec, *device, 4, {.reduction = reduction});
      spec.graphs = false;
      const Outcome eager = RunCase(c, spec, *device, 4, {.reduction = reduction});
      EXPECT_TRUE(recorded == eager) << c.name;
      EXPECT_TRUE(RunCase(c, spec, *device, 4, {.reduction = reduction}) == eager) << c.name;
      EXPECT_NE(eager.losses[0], eager.losses[3]);
    }
  }
}

// States written by one device go on on the other.
TEST(DeviceModel, StatesGoOnOnTheOtherDevice) {
  const Case c = Cases()[3];
  const TrainSpec spec = Spec(c, DType::kF32);
  const auto device = testing::MakeTestDevice();
  const auto cpu = Cpu();
  const auto go_on = [&](Device& first, Device& second) {
    ShardedSyncFactory sync_a, sync_b;
    Trainer a(spec, first, Mesh{}, sync_a), b(spec, second, Mesh{}, sync_b);
    a.Initialize(4);
    b.Initialize(5);
    RandomSource source(c);
    for (int64_t step = 0; step < 2; ++step) a.Step(step, source);
    const std::vector<StateSlice> from = a.States();
    for (const StateSlice& to : b.States()) {
      const auto found = std::find_if(from.begin(), from.end(), [&](const StateSlice& slice) {
        return slice.name == to.name && slice.kind == to.kind;
      });
      ASSERT_TRUE(found != from.end() && found->num_elems() == to.num_elems()) << to.name;
      std::memcpy(to.data, found->data, static_cast<size_t>(to.num_elems() * SizeOf(to.dtype)));
    }
    b.LoadedStates();
    EXPECT_EQ(Values(a), Values(b));  // to the bit
    const StepResult there = a.Step(2, source), here = b.Step(2, source);
    EXPECT_NEAR(here.loss / there.loss, 1, 1e-6);
    EXPECT_NEAR(here.grad_norm / there.grad_norm, 1, 1e-5);
  };
  go_on(*device, *cpu);
  go_on(*cpu, *device);
}

TEST(DeviceModel, APlanThatDoesNotFitIsAnErrorThatSaysWhatTheDeviceHas) {
  const auto device = testing::MakeTestDevice();
  TrainSpec spec = Spec(Cases()[0], DType::kBF16);
  spec.T = int64_t{1} << 36;
  ShardedSyncFactory sync;
  const auto trainer = Trainer::Create(spec, *device, Mesh{}, sync);
  ASSERT_EQ(trainer.status().code(), absl::StatusCode::kResourceExhausted);
  const std::string text(trainer.status().message());
  for (const std::string& part :
       {"TiB on " + device->name(), std::string(", which has "), std::string(" of it free"),
        std::string("; reduce train.micro_batch or data.sequence_length")}) {
    EXPECT_NE(text.find(part), std::string::npos) << text;
  }
}
}  // namespace
}  // namespace carousel
