// Statistics of gates and logits: those of what the cells get, the same bits for every number of ranks that
// share the data, and without any effect on training.
#include "core/train/gate_stats.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "launcher/plan/forwarding_ops.h"
#include "tests/deferred_device.h"
#include "tests/mesh_training.h"

namespace carousel {
namespace {
using testing::CpuDevice;
using testing::DeferredDevice;
using testing::MeshLargeSpec;
using testing::MeshPaperSpec;
using testing::MeshSource;
using testing::MeshTrainSpec;

// Every number, so that two of them can be compared bit for bit and printed.
std::vector<double> Numbers(const ValueStats& s) {
  return {static_cast<double>(s.count),
          static_cast<double>(s.num_non_finite),
          s.min,
          s.mean,
          s.max,
          s.rms,
          s.below,
          s.above,
          s.beyond};
}
std::vector<double> Numbers(const GateStats& stats) {
  std::vector<double> all = {static_cast<double>(stats.step)};
  const auto append = [&](const ValueStats& s) {
    const std::vector<double> numbers = Numbers(s);
    all.insert(all.end(), numbers.begin(), numbers.end());
  };
  for (const GateStats::Layer& layer : stats.layers) {
    all.push_back(static_cast<double>(layer.block));
    all.push_back(layer.slstm);
    append(layer.input_gate);
    append(layer.forget_gate);
  }
  append(stats.logits);
  append(stats.log_sum_exp);
  return all;
}

struct Measured {
  GateStats gates;
  std::vector<double> losses;
};

Measured Measure(const MeshSizes& sizes, TrainSpec spec, bool measure = true) {
  Measured result;
  std::mutex mutex;
  spec.gate_stats = measure;
  RunLocalMesh(sizes, [&](const Mesh& mesh) {
    const auto device = CpuDevice(1);
    ShardedSyncFactory sync;
    Trainer trainer(spec, *device, mesh, sync);
    trainer.Initialize(9);
    MeshSource source(spec);
    Measured mine;
    for (int64_t step = 0; step < 3; ++step) {
      const StepResult r = trainer.Step(step, source, {.measure_gates = measure && step == 1});
      EXPECT_EQ(r.gates.has_value(), measure && step == 1);
      if (r.gates.has_value()) mine.gates = *r.gates;
      mine.losses.push_back(r.loss);
    }
    const std::lock_guard<std::mutex> lock(mutex);
    if (result.losses.empty()) result = mine;
    EXPECT_EQ(mine.losses, result.losses);
    if (measure) {
      EXPECT_EQ(Numbers(mine.gates), Numbers(result.gates));
    }
  });
  return result;
}

TEST(GateStats, HaveTheSameBitsForEveryNumberOfDataRanks) {
  for (const ModelSpec& model : {MeshLargeSpec(), MeshPaperSpec()}) {
    for (const DType compute : {DType::kF32, DType::kBF16}) {
      TrainSpec spec = MeshTrainSpec(model, compute);
      const Measured one = Measure({}, spec);
      ASSERT_EQ(one.gates.layers.size(), 4u);
      EXPECT_EQ(one.gates.step, 2);
      for (const MeshSizes& sizes :
           {MeshSizes{.replicate = 2}, MeshSizes{.replicate = 4}, MeshSizes{.shard = 2},
            MeshSizes{.shard = 4}, MeshSizes{.replicate = 2, .shard = 2}, MeshSizes{.pipe = 2},
            MeshSizes{.pipe = 4}, MeshSizes{.pipe = 2, .replicate = 2}}) {
        EXPECT_EQ(Numbers(Measure(sizes, spec).gates), Numbers(one.gates)) << sizes.world() << " ranks";
      }
      // Recomputed blocks are measured once.
      spec.model.recompute = Recompute::kRecompute;
      EXPECT_EQ(Numbers(Measure({}, spec).gates), Numbers(one.gates));
    }
  }
}

TEST(GateStats, AgreeOnTheOtherAxes) {
  for (const ModelSpec& model : {MeshLargeSpec(), MeshPaperSpec()}) {
    TrainSpec spec = MeshTrainSpec(model, DType::kF64);
    const std::vector<double> one = Numbers(Measure({}, spec).gates);
    for (const SequenceMode mode : {SequenceMode::kState, SequenceMode::kHeads}) {
      spec.sequence_mode = mode;
      for (const MeshSizes& sizes :
           {MeshSizes{.sequence = 2}, MeshSizes{.tensor = 2}, MeshSizes{.tensor = 4},
            MeshSizes{.sequence = 2, .tensor = 2}, MeshSizes{.replicate = 2, .sequence = 2}}) {
        const std::vector<double> other = Numbers(Measure(sizes, spec).gates);
        ASSERT_EQ(other.size(), one.size());
        for (size_t i = 0; i < one.size(); ++i) {
          if (std::isnan(one[i]) && std::isnan(other[i])) continue;
          EXPECT_NEAR(other[i], one[i], 1e-10 * (1 + std::abs(one[i]))) << "number " << i;
        }
      }
    }
  }
}

TEST(GateStats, ChangeNothingThatIsTrained) {
  const TrainSpec spec = MeshTrainSpec(MeshPaperSpec(), DType::kF32);
  for (const MeshSizes& sizes : {MeshSizes{}, MeshSizes{.sequence = 2, .tensor = 2}}) {
    EXPECT_EQ(Measure(sizes, spec).losses, Measure(sizes, spec, /*measure=*/false).losses);
  }
}

// ---- what is measured

// Notes the pre-activations that the cells work with, and the logits, by formulas of its own.
class WatchingOps final : public ForwardingOps {
 public:
  using ForwardingOps::ForwardingOps;
  void MlstmForward(const MlstmForwardArgs& a) override {
    ForwardingOps::MlstmForward(a);
    std::vector<double>* gates[] = {&Gate(0), &Gate(1)};
    ++num_cells;
    for (int64_t n = 0; n < a.i_pre.dim[0]; ++n) {
      for (int64_t h = 0; h < a.i_pre.dim[1]; ++h) {
        gates[0]->push_back(a.i_pre.as<double>()[n * a.i_pre.row_stride + h]);
        gates[1]->push_back(a.f_pre.as<double>()[n * a.f_pre.row_stride + h]);
      }
    }
  }
  void SlstmForward(const SlstmForwardArgs& a) override {
    const int64_t W = a.shape.NH * a.shape.D, D = a.shape.D, N = a.shape.B * a.shape.T;
    const double* wx = a.wx.as<double>();
    std::vector<double> kept(wx, wx + 4 * W * N);
    ForwardingOps::SlstmForward(a);
    const double *y = a.y.as<double>(), *r = a.recurrent.as<double>(), *b = a.bias.as<double>();
    for (int64_t n = 0; n < N; ++n) {
      const bool fresh = n % a.shape.T == 0 || (a.reset.defined() && a.reset.as<uint8_t>()[n] != 0);
      for (int64_t g = 0; g < 2; ++g) {
        for (int64_t w = 0; w < W; ++w) {
          double value = kept[static_cast<size_t>(n * 4 * W + g * W + w)] + b[g * W + w];
          for (int64_t in = 0; in < D && !fresh; ++in) {
            value += r[(g * W + w) * D + in] * y[(n - 1) * W + w / D * D + in];
          }
          Gate(g).push_back(value);
        }
      }
    }
    ++num_cells;
  }
  void CrossEntropy(const CrossEntropyArgs& a) override {
    ForwardingOps::CrossEntropy(a);
    const int64_t V = a.logits.dim[1];
    for (int64_t n = 0; n < a.logits.dim[0]; ++n) {
      if (a.targets.as<int32_t>()[n] < 0) continue;
      double sum = 0;
      for (int64_t v = 0; v < V; ++v) {
        const double z = a.logits.as<double>()[n * V + v];
        logits.push_back(z);
        sum += std::exp(a.soft_cap > 0 ? a.soft_cap * std::tanh(z / a.soft_cap) : z);
      }
      log_sum_exp.push_back(std::log(sum));
    }
  }

  std::vector<double>& Gate(int64_t g) { return gates[{num_cells % num_blocks, g}]; }
  int64_t num_blocks = 4, num_cells = 0;
  std::map<std::pair<int64_t, int64_t>, std::vector<double>> gates;
  std::vector<double> logits, log_sum_exp;
};
class WatchedDevice final : public Device {
 public:
  WatchedDevice() : device_(CpuDevice(1)), watching(device_->ops()) {}
  std::string name() const override { return "watched"; }
  bool host_accessible() const override { return true; }
  void* Allocate(int64_t bytes) override { return device_->Allocate(bytes); }
  void Free(void* memory) override { device_->Free(memory); }
  void CopyToDevice(void* to, const void* from, int64_t bytes) override {
    device_->CopyToDevice(to, from, bytes);
  }
  void CopyToHost(void* to, const void* from, int64_t bytes) override {
    device_->CopyToHost(to, from, bytes);
  }
  void Synchronize() override {}
  Ops& ops() override { return watching; }

 private:
  std::unique_ptr<Device> device_;

 public:
  WatchingOps watching;
};

void ExpectStats(const ValueStats& got, const std::vector<double>& values, double bound, const char* what) {
  SCOPED_TRACE(what);
  ASSERT_FALSE(values.empty());
  double sum = 0, squares = 0;
  int64_t below = 0, above = 0, beyond = 0;
  for (const double v : values) {
    sum += v;
    squares += v * v;
    below += v < -kGateSaturation;
    above += v > kGateSaturation;
    beyond += std::abs(v) > bound;
  }
  const double n = static_cast<double>(values.size());
  EXPECT_EQ(got.count, static_cast<int64_t>(values.size()));
  EXPECT_EQ(got.num_non_finite, 0);
  EXPECT_NEAR(got.min, *std::min_element(values.begin(), values.end()), 1e-12);
  EXPECT_NEAR(got.max, *std::max_element(values.begin(), values.end()), 1e-12);
  EXPECT_NEAR(got.mean, sum / n, 1e-12);
  EXPECT_NEAR(got.rms, std::sqrt(squares / n), 1e-12);
  EXPECT_NEAR(got.below * n, static_cast<double>(below), 1e-6);
  EXPECT_NEAR(got.above * n, static_cast<double>(above), 1e-6);
  EXPECT_NEAR(got.beyond * n, static_cast<double>(beyond), 1e-6);
}

TEST(GateStats, AreThoseOfWhatTheCellsGet) {
  for (ModelSpec model : {MeshLargeSpec(), MeshPaperSpec()}) {
    const bool large = model.family == Family::kLarge;
    if (large) {
      model.gate_soft_cap = 0.6;  // reached by some
      model.logit_soft_cap = 0.4;
      model.igate_bias_init = -0.5;
    }
    model.slstm_recurrent_init = RecurrentInit::kStandard;
    model.slstm_bias_init = SlstmBiasInit::kPowerLaw;  // from 5 down to -7
    TrainSpec spec = MeshTrainSpec(model, DType::kF64);
    spec.gate_stats = true;
    WatchedDevice device;
    ShardedSyncFactory sync;
    Trainer trainer(spec, device, Mesh{}, sync);
    trainer.Initialize(9);
    MeshSource source(spec);
    trainer.Step(0, source);
    device.watching.gates.clear();
    device.watching.logits.clear();
    device.watching.log_sum_exp.clear();
    device.watching.num_cells = 0;
    const StepResult r = trainer.Step(1, source, {.measure_gates = true});
    ASSERT_TRUE(r.gates.has_value());
    for (int64_t l = 0; l < 4; ++l) {
      const GateStats::Layer& layer = r.gates->layers[static_cast<size_t>(l)];
      EXPECT_EQ(layer.block, l);
      EXPECT_EQ(layer.slstm, model.is_slstm(l));
      const double bound = large && !layer.slstm ? kNearCap * 0.6 : INFINITY;
      ExpectStats(layer.input_gate, device.watching.gates[{l, 0}], bound, "input gate");
      ExpectStats(layer.forget_gate, device.watching.gates[{l, 1}], bound, "forget gate");
    }
    const ValueStats& logits = r.gates->logits;
    EXPECT_EQ(logits.count, static_cast<int64_t>(device.watching.logits.size()));
    EXPECT_NEAR(logits.max, *std::max_element(device.watching.logits.begin(), device.watching.logits.end()),
                1e-12);
    EXPECT_NEAR(logits.beyond * static_cast<double>(logits.count),
                static_cast<double>(std::count_if(
                    device.watching.logits.begin(), device.watching.logits.end(),
                    [&](double z) { return large && 0.4 * std::tanh(std::abs(z) / 0.4) > kNearCap * 0.4; })),
                1e-6);
    const std::vector<double>& sums = device.watching.log_sum_exp;
    EXPECT_EQ(r.gates->log_sum_exp.count, static_cast<int64_t>(sums.size()));
    EXPECT_NEAR(r.gates->log_sum_exp.max, *std::max_element(sums.begin(), sums.end()), 1e-12);
    EXPECT_NEAR(r.gates->log_sum_exp.min, *std::min_element(sums.begin(), sums.end()), 1e-12);
  }
}

// A device that plays recorded micro-batches measures one step by issuing its ops, and plays on afterwards.
TEST(GateStats, StepsThatAreMeasuredAreNotPlayed) {
  TrainSpec spec = MeshTrainSpec(MeshLargeSpec(), DType::kF32);
  spec.gate_stats = true;
  const Measured want = Measure({}, spec);
  DeferredDevice device(CpuDevice(1));
  ShardedSyncFactory sync;
  Trainer trainer(spec, device, Mesh{}, sync);
  trainer.Initialize(9);
  MeshSource source(spec);
  int64_t replays = 0;
  for (int64_t step = 0; step < 3; ++step) {
    const int64_t before = device.num_replays;
    const StepResult r = trainer.Step(step, source, {.measure_gates = step == 1});
    EXPECT_EQ(r.loss, want.losses[static_cast<size_t>(step)]);
    if (step == 1) {
      EXPECT_EQ(device.num_replays, before);
      EXPECT_EQ(Numbers(*r.gates), Numbers(want.gates));
    }
    replays = device.num_replays;
  }
  EXPECT_GT(replays, 0);
}
}  // namespace
}  // namespace carousel
