// The equality matrix: twenty steps of tiny models with mLSTM and sLSTM blocks, documents crossing every
// border between ranks, on meshes of threads. Along the axes of data all weights have the same bits for every
// number of ranks, way to shard and number of accumulated micro-batches; along the others, and for all pairs
// of axes, they agree to rounding. And what the tests must see: every derived sum that is left out.
#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include "tests/mesh_training.h"

namespace carousel {
namespace {
using testing::Difference;
using testing::MeshLargeSpec;
using testing::MeshPaperSpec;
using testing::MeshRun;
using testing::MeshRunOptions;
using testing::MeshTrainSpec;
using testing::TrainOnMesh;

constexpr MeshAxis kAxes[] = {MeshAxis::kPipe, MeshAxis::kReplicate, MeshAxis::kShard, MeshAxis::kSequence,
                              MeshAxis::kTensor};

std::string Text(const MeshSizes& sizes) {
  std::string text;
  for (const MeshAxis axis : kAxes) {
    if (sizes.of(axis) > 1) text += std::string(NameOf(axis)) + "=" + std::to_string(sizes.of(axis)) + " ";
  }
  return text;
}

MeshRun TwentySteps(const MeshSizes& sizes, const TrainSpec& spec) {
  return TrainOnMesh(sizes, spec, {.num_steps = 20, .num_eval_batches = 3});
}

// All ways to cut the data over `ranks`: ZeRO-1, ZeRO-3, and each hybrid.
std::vector<MeshSizes> DataMeshes(int64_t ranks) {
  std::vector<MeshSizes> meshes;
  for (int64_t shard = 1; shard <= ranks; shard *= 2) {
    meshes.push_back({.replicate = ranks / shard, .shard = shard});
  }
  return meshes;
}

// ---- data: the same bits

void ExpectSameBitsOnDataAxes(const ModelSpec& model, DType compute) {
  for (const int64_t micro_batches : {8, 16}) {
    TrainSpec spec = MeshTrainSpec(model, compute);
    spec.micro_batches_per_step = micro_batches;
    const MeshRun one = TwentySteps({}, spec);
    ASSERT_EQ(one.losses.size(), 20u);
    for (const int64_t ranks : {2, 4, 8}) {
      for (const MeshSizes& sizes : DataMeshes(ranks)) {
        EXPECT_TRUE(TwentySteps(sizes, spec) == one)
            << Text(sizes) << micro_batches << " micro-batches, " << NameOf(compute);
      }
    }
  }
}

TEST(EqualityMatrix, DataAxesHaveTheBitsOfOneRankInSinglePrecision) {
  ExpectSameBitsOnDataAxes(MeshLargeSpec(), DType::kF32);
}
TEST(EqualityMatrix, DataAxesHaveTheBitsOfOneRankInBFloat16) {
  ExpectSameBitsOnDataAxes(MeshPaperSpec(), DType::kBF16);
}

// ---- everything else: to rounding

double Tolerance(DType compute) { return compute == DType::kF64 ? 1e-12 : 2e-6; }

void ExpectClose(const TrainSpec& spec, const MeshRun& one, const MeshSizes& sizes) {
  std::string where;
  EXPECT_LE(Difference(TwentySteps(sizes, spec), one, &where), Tolerance(spec.compute))
      << where << " on " << Text(sizes) << NameOf(spec.compute)
      << (spec.sequence_mode == SequenceMode::kHeads ? " heads" : " state");
}

void ExpectCloseOnModelAxes(TrainSpec spec) {
  const MeshRun one = TwentySteps({}, spec);
  for (const SequenceMode mode : {SequenceMode::kState, SequenceMode::kHeads}) {
    spec.sequence_mode = mode;
    ExpectClose(spec, one, {.sequence = 2});
    ExpectClose(spec, one, {.sequence = 4});
  }
  ExpectClose(spec, one, {.tensor = 2});
  ExpectClose(spec, one, {.tensor = 4});
  // Stages pass on what they have without rounding.
  for (const int64_t stages : {2, 3, 4}) {
    EXPECT_TRUE(TwentySteps({.pipe = stages}, spec) == one) << stages << " stages, " << NameOf(spec.compute);
  }
}

TEST(EqualityMatrix, ModelAxesAgreeWithOneRankInDoublePrecision) {
  ExpectCloseOnModelAxes(MeshTrainSpec(MeshLargeSpec(), DType::kF64));
  ExpectCloseOnModelAxes(MeshTrainSpec(MeshPaperSpec(), DType::kF64));
}
TEST(EqualityMatrix, ModelAxesAgreeWithOneRankWithTheEpsilonsOfTraining) {
  for (ModelSpec model : {MeshLargeSpec(), MeshPaperSpec()}) {
    model.norm_eps = 1e-6;
    TrainSpec spec = MeshTrainSpec(model, DType::kF64);
    spec.adamw.eps = 1e-8;
    ExpectCloseOnModelAxes(spec);
  }
}
TEST(EqualityMatrix, ModelAxesAgreeWithOneRankInSinglePrecision) {
  ExpectCloseOnModelAxes(MeshTrainSpec(MeshLargeSpec(), DType::kF32));
  ExpectCloseOnModelAxes(MeshTrainSpec(MeshPaperSpec(), DType::kF32));
}

TEST(EqualityMatrix, AllPairsOfAxesAgreeWithOneRank) {
  for (const ModelSpec& model : {MeshLargeSpec(), MeshPaperSpec()}) {
    TrainSpec spec = MeshTrainSpec(model, DType::kF64);
    const MeshRun one = TwentySteps({}, spec);
    for (const MeshAxis a : kAxes) {
      for (const MeshAxis b : kAxes) {
        if (a >= b) continue;
        const auto size = [&](MeshAxis axis) { return axis == a || axis == b ? int64_t{2} : int64_t{1}; };
        const MeshSizes sizes = {.pipe = size(MeshAxis::kPipe),
                                 .replicate = size(MeshAxis::kReplicate),
                                 .shard = size(MeshAxis::kShard),
                                 .sequence = size(MeshAxis::kSequence),
                                 .tensor = size(MeshAxis::kTensor)};
        spec.sequence_mode = SequenceMode::kState;
        ExpectClose(spec, one, sizes);
        if (sizes.sequence == 1) continue;
        spec.sequence_mode = SequenceMode::kHeads;
        ExpectClose(spec, one, sizes);
      }
    }
  }
}

TEST(EqualityMatrix, AllAxesAtOnceAgreeWithOneRank) {
  TrainSpec spec = MeshTrainSpec(MeshLargeSpec(), DType::kF64);
  ExpectClose(spec, TwentySteps({}, spec),
              {.pipe = 2, .replicate = 2, .shard = 2, .sequence = 2, .tensor = 2});
}

// ---- sums that are left out

// The sync of a store in which one parameter lacks the sum over one axis.
class BreakingFactory final : public ParamSyncFactory {
 public:
  BreakingFactory(const std::string& param, MeshAxis axis) : param_(param), axis_(axis) {}
  std::unique_ptr<ParamSync> Make(ParamStore& params, Device& device, const Mesh& mesh,
                                  int64_t micro_batches_per_step) override {
    const int index = params.Find(param_);
    CAROUSEL_CHECK_GE(index, 0);
    params.set_reduce_axes(index, params.param(index).reduce_axes & ~(1u << static_cast<int>(axis_)));
    return factory_.Make(params, device, mesh, micro_batches_per_step);
  }
  void Bind(ParamSync& sync, Arena& arena) override { factory_.Bind(sync, arena); }

 private:
  std::string param_;
  MeshAxis axis_;
  ShardedSyncFactory factory_;
};

using Moments = std::map<std::string, std::vector<double>>;

// The first moments of all parameters after one step: a fixed multiple of the gradients, as they were used.
Moments OneStep(const MeshSizes& sizes, const TrainSpec& spec, const std::string& broken = "",
                MeshAxis axis = MeshAxis::kPipe) {
  Moments moments;
  std::mutex mutex;
  RunLocalMesh(sizes, [&](const Mesh& mesh) {
    const auto device = testing::CpuDevice(1);
    ShardedSyncFactory whole;
    BreakingFactory breaking(broken, axis);
    Trainer trainer(spec, *device, mesh, broken.empty() ? static_cast<ParamSyncFactory&>(whole) : breaking);
    trainer.Initialize(9);
    testing::MeshSource source(spec);
    trainer.Step(0, source);
    device->Synchronize();
    const std::lock_guard<std::mutex> lock(mutex);
    for (const StateSlice& slice : trainer.States()) {
      if (slice.kind != StateKind::kAdamM) continue;
      std::vector<double>& all = moments[slice.name];
      all.resize(static_cast<size_t>(trainer.params().param(trainer.params().Find(slice.name)).num_elems));
      ForEachRun(slice, [&](int64_t elem, const char* data, int64_t count) {
        const double* const from = reinterpret_cast<const double*>(data);
        std::copy(from, from + count, all.begin() + elem);
      });
    }
  });
  return moments;
}

double RelativeDifference(const std::vector<double>& a, const std::vector<double>& b) {
  double squared = 0, norm = 0;
  for (size_t j = 0; j < a.size(); ++j) {
    squared += (a[j] - b[j]) * (a[j] - b[j]);
    norm += b[j] * b[j];
  }
  return std::sqrt(squared / std::max(norm, 1e-300));
}

// "backbone.blocks.3.mlstm_layer.q.weight" -> "mlstm_layer.q.weight": one of each kind is enough.
std::string KindOf(const std::string& name) {
  const std::string blocks = "backbone.blocks.";
  return name.rfind(blocks, 0) == 0 ? name.substr(name.find('.', blocks.size()) + 1) : name;
}

constexpr double kWrong = 1e-2;  // a gradient that lacks some terms of its sum

TEST(EqualityMatrix, EverySumThatIsLeftOutIsSeenForEveryKindOfParameter) {
  int num_broken = 0;
  std::set<std::string> seen_on_tensor;
  for (ModelSpec model : {MeshLargeSpec(), MeshPaperSpec()}) {
    const TrainSpec spec = [&] {
      TrainSpec s = MeshTrainSpec(model, DType::kF64);
      s.adamw.clip_norm = 0;  // else the norm carries one wrong gradient to all
      return s;
    }();
    const Moments one = OneStep({}, spec);
    for (const MeshAxis axis :
         {MeshAxis::kReplicate, MeshAxis::kShard, MeshAxis::kSequence, MeshAxis::kTensor}) {
      const MeshSizes sizes = {.replicate = axis == MeshAxis::kReplicate ? 2 : 1,
                               .shard = axis == MeshAxis::kShard ? 2 : 1,
                               .sequence = axis == MeshAxis::kSequence ? 2 : 1,
                               .tensor = axis == MeshAxis::kTensor ? 2 : 1};
      ParamStore params(DType::kF64, {.tensor_size = sizes.tensor});
      ModelAxes axes;
      axes.tensor = {.size = sizes.tensor};
      const LanguageModel registered(model, params, false, axes);
      std::set<std::string> kinds;
      for (const Param& param : params.params()) {
        if (testing::HasNoGradient(param.name)) continue;
        if (!param.reduces_over(axis) || !kinds.insert(KindOf(param.name)).second) continue;
        const Moments broken = OneStep(sizes, spec, param.name, axis);
        EXPECT_GT(RelativeDifference(broken.at(param.name), one.at(param.name)), kWrong)
            << param.name << " without its sum over " << NameOf(axis) << " looks right";
        for (const auto& [name, values] : broken) {
          if (name == param.name || testing::HasNoGradient(name)) continue;
          EXPECT_LT(RelativeDifference(values, one.at(name)), Tolerance(DType::kF64))
              << name << " is wrong where " << param.name << " was broken over " << NameOf(axis);
        }
        ++num_broken;
        if (axis == MeshAxis::kTensor) seen_on_tensor.insert(KindOf(param.name));
      }
    }
  }
  EXPECT_GT(num_broken, 150);
  // What is whole on the tensor axis: norms of the stream and biases of row-split maps.
  for (const char* kind :
       {"norm_mlstm.weight", "norm_slstm.weight", "norm_ffn.weight", "ffn.proj_down.bias",
        "mlstm_layer.out_proj.bias", "mlstm_layer.proj_down.bias", "backbone.out_norm.weight"}) {
    EXPECT_TRUE(seen_on_tensor.count(kind)) << kind;
  }
}
}  // namespace
}  // namespace carousel
