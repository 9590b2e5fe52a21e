// Whole training runs of tiny models on meshes of threads, and how far two of them are apart.
#pragma once
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "core/train/trainer.h"
#include "parallel/pipeline_schedule.h"
#include "parallel/sharded_sync.h"
#include "tests/mesh_testing.h"
#include "tests/model_testing.h"

namespace carousel::testing {

// Widths that divide over four ranks. An mLSTM block, an sLSTM block with a convolution, two mLSTM blocks.
inline ModelSpec MeshLargeSpec() {
  ModelSpec spec = TinySpec();
  spec.vocab_size = 20;
  spec.embedding_dim = 16;
  spec.num_blocks = 4;
  spec.num_heads = 4;
  spec.qk_dim = 8;
  spec.v_dim = 16;
  spec.ffn_dim = 24;
  spec.use_bias = true;
  spec.slstm_at = {1};
  spec.slstm_num_heads = 4;
  spec.slstm_conv_kernel = 3;
  // Well conditioned, so that single precision is enough to compare by: an epsilon against norms of almost
  // nothing (a first token's h is q.k v, and the norm of a small q.k v turns over with the sign of q.k).
  spec.norm_eps = 0.1;
  return spec;
}
inline ModelSpec MeshPaperSpec() {
  ModelSpec spec = MeshLargeSpec();
  spec.family = Family::kPaper;
  spec.qk_dim = spec.v_dim = 32;
  spec.gate_soft_cap = spec.logit_soft_cap = 0;
  spec.qkv_block_size = 4;
  spec.conv_kernel = 4;
  spec.ffn_bias = true;
  spec.slstm_at = {0, 2};
  return spec;
}

// A run of `model`: sequences of 12 tokens, two in each of four micro-batches.
inline TrainSpec MeshTrainSpec(const ModelSpec& model, DType compute) {
  TrainSpec spec;
  spec.model = model;
  // Adam divides a gradient by its own size: without this eps one that is nothing but rounding (the input
  // gates of an sLSTM share a factor that cancels, so that a bias of all of them has none) would move its
  // parameter as far as any other. Of nine data sets in F32 on one CPU, six differed by more than 2e-6 with
  // 1e-3 (by 4e-6 at most), none by 1e-6 with this: smaller gradients' rounding counts less in the weights.
  spec.adamw = {.eps = 1e-2, .weight_decay = 0.1, .clip_norm = 1};
  spec.schedule = {.kind = ScheduleKind::kConstant, .peak_lr = 1e-2, .total_steps = 100};
  spec.dropout_seed = 21;
  spec.T = 12;
  spec.longest_eval_T = 24;
  spec.micro_batch = 2;
  spec.micro_batches_per_step = 4;
  spec.compute = compute;
  spec.actions = OneForwardOneBackward;
  return spec;
}

// Random batches with documents, a function of (step, micro) only.
class MeshSource final : public BatchSource {
 public:
  // The batches of a run's steps, or longer ones for its evaluations.
  explicit MeshSource(const TrainSpec& spec, bool evaluation = false)
      : B_(evaluation ? 1 : spec.micro_batch),
        T_(evaluation ? spec.longest_eval_T : spec.T),
        V_(spec.model.vocab_size),
        seed_(evaluation ? 5000 : 0),
        labelled_(evaluation) {}
  void Get(int64_t step, int64_t micro, Batch* batch) override {
    *batch = RandomBatch(B_, T_, V_, seed_ + static_cast<uint64_t>(100 * step + micro), /*resets=*/true);
    // Few targets, with the lengths of their problems.
    for (int64_t n = 0; labelled_ && n < B_ * T_; ++n) {
      int32_t& target = batch->targets[static_cast<size_t>(n)];
      if (n % 3 != 0) target = -1;
      batch->lengths.push_back(target >= 0 ? static_cast<uint16_t>(1 + n % 4) : 0);
    }
  }

 private:
  int64_t B_, T_, V_;
  uint64_t seed_;
  bool labelled_;
};

struct MeshRun {
  std::vector<double> losses, norms;  // of every step
  std::vector<int64_t> num_targets;
  // Before and after all steps: loss, numbers of right answers and of targets, in all and by length.
  std::vector<double> evaluations;
  std::map<std::string, std::vector<double>> weights;  // whole parameters by name: the optimizer's copies
  bool operator==(const MeshRun&) const = default;
};

struct MeshRunOptions {
  int64_t num_steps = 3;
  int64_t num_eval_batches = 5;
  SyncOptions sync = {};
  // Called on every rank: before the first step, and after the last one.
  std::function<void(const Mesh&, Trainer&)> at_begin = {}, at_end = {};
};

// Puts this rank's optimizer shards into their places in the whole parameters. A parameter that several ranks
// hold must be the same on all of them, an element that no rank holds stays NaN.
inline void CollectWeights(Trainer& trainer, std::map<std::string, std::vector<double>>* weights) {
  const ParamStore& params = trainer.params();
  for (int g = 0; g < params.num_groups(); ++g) {
    for (int s = 0; s < ParamStore::kNumSegments; ++s) {
      if (params.segment(g, s).size == 0) continue;
      const Tensor master = params.segment(g, s).master;
      for (const ParamStore::ShardPiece& piece : params.ShardPieces(g, s)) {
        const Param& p = params.param(piece.param);
        std::vector<double>& whole = (*weights)[p.name];
        whole.resize(static_cast<size_t>(p.num_elems), std::nan(""));
        ForEachLocalRun(p.part, piece.param_begin, piece.count, [&](int64_t elem, int64_t local, int64_t n) {
          DispatchFloat(master.dtype, [&]<class W>() {
            const W* from = master.as<W>() + piece.shard_begin + (local - piece.param_begin);
            for (int64_t j = 0; j < n; ++j) {
              double& to = whole[static_cast<size_t>(elem + j)];
              const double value = static_cast<double>(static_cast<Wide<W>>(from[j]));
              EXPECT_TRUE(std::isnan(to) || to == value) << p.name << " element " << elem + j;
              to = value;
            }
          });
        });
      }
    }
  }
}

// Trains on every rank of a mesh of threads; what all ranks must agree on is compared.
inline MeshRun TrainOnMesh(const MeshSizes& sizes, const TrainSpec& spec,
                           const MeshRunOptions& options = {}) {
  MeshRun result;
  std::mutex mutex;
  RunLocalMesh(sizes, [&](const Mesh& mesh) {
    const auto device = CpuDevice(1);
    ShardedSyncFactory sync(options.sync);
    Trainer trainer(spec, *device, mesh, sync);
    trainer.Initialize(9);
    if (options.at_begin) options.at_begin(mesh, trainer);
    MeshSource source(spec), evaluation(spec, /*evaluation=*/true);
    MeshRun mine;
    const auto evaluate = [&] {
      const EvaluationResult r = trainer.Evaluate(evaluation, options.num_eval_batches);
      mine.evaluations.insert(mine.evaluations.end(), {r.loss, static_cast<double>(r.num_correct),
                                                       static_cast<double>(r.num_targets)});
      EXPECT_FALSE(r.by_length.empty());
      for (const LengthCount& c : r.by_length) {
        mine.evaluations.insert(mine.evaluations.end(),
                                {static_cast<double>(c.count), static_cast<double>(c.correct)});
      }
    };
    evaluate();
    for (int64_t step = 0; step < options.num_steps; ++step) {
      const StepResult r = trainer.Step(step, source);
      EXPECT_FALSE(r.skipped);
      mine.losses.push_back(r.loss);
      mine.norms.push_back(r.grad_norm);
      mine.num_targets.push_back(r.num_targets);
    }
    evaluate();
    EXPECT_TRUE(trainer.AuditReplicas().ok()) << trainer.AuditReplicas();
    if (options.at_end) options.at_end(mesh, trainer);
    device->Synchronize();
    const std::lock_guard<std::mutex> lock(mutex);
    if (result.losses.empty()) {
      result.losses = mine.losses;
      result.norms = mine.norms;
      result.num_targets = mine.num_targets;
      result.evaluations = mine.evaluations;
    }
    EXPECT_EQ(mine.losses, result.losses) << "rank " << mesh.world.index;
    EXPECT_EQ(mine.norms, result.norms) << "rank " << mesh.world.index;
    EXPECT_EQ(mine.evaluations, result.evaluations) << "rank " << mesh.world.index;
    CollectWeights(trainer, &result.weights);
  });
  return result;
}

// A common factor of all input gates of an sLSTM cancels in c / n: the gradient of their bias is zero, and
// what a run has of it is rounding, which Adam divides by its own size. It is not compared between runs but
// held to what it is.
inline bool HasNoGradient(const std::string& name) {
  const std::string end = "slstm_layer.igate.bias";
  return name.size() >= end.size() && name.compare(name.size() - end.size(), end.size(), end) == 0;
}
constexpr double kNoGradientBound = 1e-7;  // steps of 1e-2, of gradients of 1e-9 against an Adam eps of 1e-2

// The largest difference of two runs: of losses and norms relative to each, of each parameter in the
// L2 norm, elements smaller than kSmallElement (that started at zero and have hardly moved) counted as that.
// Runs of different models are infinitely far apart. *where (optional): what differs most.
constexpr double kSmallElement = 1e-2;
inline double Difference(const MeshRun& run, const MeshRun& expected, std::string* where = nullptr) {
  double most = 0;
  const auto compare = [&](const std::string& what, double difference) {
    if (difference <= most) return;
    most = difference;
    if (where != nullptr) *where = what;
  };
  const auto compare_numbers = [&](const std::string& what, const std::vector<double>& a,
                                   const std::vector<double>& b) {
    if (a.size() != b.size()) return compare(what, INFINITY);
    for (size_t j = 0; j < a.size(); ++j) {
      const double difference = std::abs(a[j] - b[j]) / std::max(std::abs(b[j]), 1e-300);
      compare(what, std::isnan(difference) ? INFINITY : difference);
    }
  };
  compare_numbers("losses", run.losses, expected.losses);
  compare_numbers("norms", run.norms, expected.norms);
  if (run.num_targets != expected.num_targets) compare("numbers of targets", INFINITY);
  compare_numbers("evaluations", run.evaluations, expected.evaluations);
  if (run.weights.size() != expected.weights.size()) compare("the number of parameters", INFINITY);
  for (const auto& [name, values] : expected.weights) {
    const auto found = run.weights.find(name);
    if (found == run.weights.end() || found->second.size() != values.size()) {
      compare(name, INFINITY);
      continue;
    }
    if (HasNoGradient(name)) {
      for (size_t j = 0; j < values.size(); ++j) {
        const bool zero =
            std::abs(values[j]) < kNoGradientBound && std::abs(found->second[j]) < kNoGradientBound;
        if (!zero) compare(name, INFINITY);
      }
      continue;
    }
    double squared = 0, squared_norm = 0;
    for (size_t j = 0; j < values.size(); ++j) {
      squared += (found->second[j] - values[j]) * (found->second[j] - values[j]);
      squared_norm += std::max(values[j] * values[j], kSmallElement * kSmallElement);
    }
    const double difference = std::sqrt(squared / squared_norm);
    compare(name, std::isnan(difference) ? INFINITY : difference);
  }
  return most;
}
}  // namespace carousel::testing
