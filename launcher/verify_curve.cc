// Dumps of training: 'tokens' (steps, B, T+1) are trained on with AdamW as the metadata's "optimizer" says.
#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "checkpoints/hf_names.h"
#include "core/base/exact_sum.h"
#include "core/base/status_macros.h"
#include "core/device_memory.h"
#include "core/model/language_model.h"
#include "core/optim/adamw.h"
#include "core/train/no_sync.h"
#include "launcher/curve_optimizer.h"
#include "launcher/model_dump.h"
#include "launcher/reference_stabiliser.h"
#include "launcher/tensor_copy.h"
#include "launcher/verify.h"

namespace carousel {
namespace {
struct CurveBounds {
  double losses, grad_norms, final_weights;
};
CurveBounds BoundsOf(DType dtype) {
  // Training amplifies rounding: where the gradient norm jumps, a difference of 1e-6 in the weights becomes
  // 1e-4 within a few steps. The public implementation itself, in f32 and in f64 against its f32 dump, shows
  // losses 3e-5, gradient norms 3e-3.
  if (dtype != DType::kBF16) return {.losses = 1e-4, .grad_norms = 2e-2, .final_weights = 5e-3};
  // Measured with bf16 arithmetic and f32 master weights on 40 steps of small models.
  return {.losses = 5e-2, .grad_norms = 1.5e-1, .final_weights = 3e-1};
}

// What a curve dump prescribes.
struct Curve {
  int64_t steps, B, T;
  std::vector<int32_t> tokens;  // (steps, B, T+1)
  std::vector<double> losses, lrs, grad_norms;
  AdamWSpec adamw;
  std::vector<bool> decays;  // by parameter
};

enum class Form : uint8_t { kTraining, kParallel };  // which stabiliser the mLSTM has

// One model that trains alone: the pieces of the trainer, with the learning rates of the dump and its rule
// for weight decay.
class CurveRun {
 public:
  CurveRun(const ModelSpec& spec, DType compute, Form form, const Curve& curve, Device& device)
      : device_(device),
        curve_(curve),
        params_(compute, /*num_shards=*/1, /*shard_index=*/0),
        model_(spec, params_, /*decay_embedding=*/true),
        sync_(factory_.Make(params_, device.ops(), Axis{}, /*micro_batches_per_step=*/1)),
        memory_(device, [&](Arena& arena) {
          params_.Bind(arena, /*train=*/true);
          factory_.Bind(*sync_, arena);
          model_.Bind(arena, device.ops(), curve.B, curve.T, /*train=*/true);
          ids_ = arena.Persistent("run", DType::kI32, {curve.B * curve.T});
          targets_ = arena.Persistent("run", DType::kI32, {curve.B * curve.T});
          sums_ = arena.Persistent("run", DType::kI64, {2 * kExactSumElems});
        }) {
    if (form == Form::kParallel) {
      parallel_ = std::make_unique<ParallelFormOps>(spec, compute, curve.B, curve.T, device);
    }
  }

  bool ok() const { return memory_.ok() && (parallel_ == nullptr || parallel_->ok()); }
  int64_t needed_bytes() const {
    return memory_.needed_bytes() + (parallel_ == nullptr ? 0 : parallel_->needed_bytes());
  }

  // Values of one parameter in the master weights; then Begin() once all are set.
  Tensor Master(int param) const {
    const Param& p = params_.param(param);
    return params_.segment(p.group, p.segment).master.Rows(p.offset, p.num_elems);
  }
  void Begin() { params_.CastMasterToWeights(device_.ops()); }

  struct Result {
    double loss, grad_norm;
  };
  Result Step(int64_t step) {
    const int64_t B = curve_.B, T = curve_.T;
    const AdamWSpec& adamw = curve_.adamw;
    Ops& ops = parallel_ != nullptr ? *parallel_ : device_.ops();
    std::vector<int32_t> inputs, targets;
    for (int64_t b = 0; b < B; ++b) {
      const int32_t* row = curve_.tokens.data() + (step * B + b) * (T + 1);
      inputs.insert(inputs.end(), row, row + T);
      targets.insert(targets.end(), row + 1, row + T + 1);
    }
    UploadIds(device_, ids_, inputs);
    UploadIds(device_, targets_, targets);
    ops.Fill({.y = sums_, .value = 0});
    sync_->BeginMicroBatch(0);
    model_.ForwardBackward(ops, sync_.get(), {.ids = ids_, .targets = targets_, .B = B, .T = T},
                           sums_.Rows(0, kExactSumElems));
    sync_->FinishStep();
    AddSquaredNorm(params_, ops, sums_.Rows(kExactSumElems, kExactSumElems));
    ExactSum sums[2];
    device_.CopyToHost(sums, sums_.data, static_cast<int64_t>(sizeof(sums)));
    const double scale = 1 / static_cast<double>(B * T);  // gradients of the mean loss
    const double norm = std::sqrt(sums[1].ToDouble()) * scale;
    const double clip = adamw.clip_norm > 0 ? adamw.clip_norm / std::max(adamw.clip_norm, norm) : 1;
    Update(curve_.lrs[static_cast<size_t>(step)], scale * clip, step + 1);
    sync_->GatherWeights();
    return {sums[0].ToDouble() * scale, norm};
  }

 private:
  // As UpdateShards on one rank, but which parameters decay is up to the dump.
  void Update(double lr, double grad_scale, int64_t step) {
    const AdamWSpec& adamw = curve_.adamw;
    for (size_t i = 0; i < params_.params().size(); ++i) {
      const Param& p = params_.param(static_cast<int>(i));
      const ParamStore::Segment& segment = params_.segment(p.group, p.segment);
      const auto rows = [&](const Tensor& flat) { return flat.Rows(p.offset, p.num_elems); };
      device_.ops().AdamW({.master = rows(segment.master),
                           .m = rows(segment.m),
                           .v = rows(segment.v),
                           .weight = rows(params_.WeightShard(p.group, p.segment)),
                           .grad = rows(params_.ShardGrad(p.group, p.segment)),
                           .lr = lr,
                           .beta1 = adamw.beta1,
                           .beta2 = adamw.beta2,
                           .eps = adamw.eps,
                           .weight_decay = curve_.decays[i] ? adamw.weight_decay : 0,
                           .grad_scale = grad_scale,
                           .step = step});
    }
  }

  Device& device_;
  const Curve& curve_;
  ParamStore params_;
  LanguageModel model_;
  NoSyncFactory factory_;
  std::unique_ptr<ParamSync> sync_;
  Tensor ids_, targets_, sums_;
  DeviceMemory memory_;
  std::unique_ptr<ParallelFormOps> parallel_;
};

// Which parameters decay: dims are those of the reference's tensors, where kernels of convolutions and
// recurrent kernels have 3.
std::vector<bool> Decays(const ModelDump& model, bool all) {
  std::vector<bool> decays(model.params.size(), false);
  for (const PackageTensor* tensor : model.Originals()) {
    for (const PackagePart& part : tensor->parts) {
      decays[static_cast<size_t>(model.IndexOf(part.param))] = all || tensor->shape.size() >= 2;
    }
  }
  return decays;
}

absl::StatusOr<Curve> ReadCurve(const ReferenceDump& dump, const ModelDump& model) {
  Curve curve;
  CAROUSEL_ASSIGN_OR_RETURN(const CurveOptimizer optimizer, ReadCurveOptimizer(dump));
  curve.adamw = optimizer.adamw;
  curve.decays = Decays(model, optimizer.decay_all);
  CAROUSEL_ASSIGN_OR_RETURN(const std::vector<int64_t> shape, dump.Shape("tokens"));
  if (shape.size() != 3 || shape[0] < 1 || shape[1] < 1 || shape[2] < 2) {
    return dump.Invalid(
        absl::StrCat("tensor \"tokens\" has shape ", ShapeText(shape), "; it must be (steps, B, T+1)"));
  }
  curve.steps = shape[0], curve.B = shape[1], curve.T = shape[2] - 1;
  CAROUSEL_ASSIGN_OR_RETURN(curve.tokens, dump.Ids("tokens", shape, model.spec.vocab_size));
  CAROUSEL_ASSIGN_OR_RETURN(curve.losses, dump.Doubles("losses", {curve.steps}));
  CAROUSEL_ASSIGN_OR_RETURN(curve.lrs, dump.Doubles("lrs", {curve.steps}));
  CAROUSEL_ASSIGN_OR_RETURN(curve.grad_norms, dump.Doubles("grad_norms", {curve.steps}));
  return curve;
}

absl::StatusOr<std::vector<Comparison>> TrainAndCompare(const ReferenceDump& dump, const ModelDump& model,
                                                        const Curve& curve, DType compute, Form form,
                                                        const CurveBounds& bounds, Device& device) {
  CurveRun run(model.spec, compute, form, curve, device);
  if (!run.ok()) {
    return absl::ResourceExhaustedError(
        absl::StrCat("training needs ", run.needed_bytes(), " bytes, more than ", device.name(), " has"));
  }
  CAROUSEL_RETURN_IF_ERROR(ForEachParamValue(
      dump, model, "param.",
      [&](int param, const std::vector<double>& values) { Upload(device, run.Master(param), values); }));
  run.Begin();
  std::vector<double> losses, norms;
  for (int64_t step = 0; step < curve.steps; ++step) {
    const CurveRun::Result result = run.Step(step);
    losses.push_back(result.loss);
    norms.push_back(result.grad_norm);
  }
  std::vector<Comparison> rows;
  double worst = 0;
  for (size_t i = 0; i < losses.size(); ++i) {
    worst = std::max(worst, RelativeError({losses[i]}, {curve.losses[i]}));
  }
  rows.push_back({"losses (largest of all steps)", worst, bounds.losses});
  rows.push_back({"losses", RelativeError(losses, curve.losses), bounds.losses});
  if (compute == DType::kBF16) {
    // A single jump of the norm, a step earlier or later, would decide about the whole curve: the median step
    // counts.
    std::vector<double> errors;
    for (size_t i = 0; i < norms.size(); ++i)
      errors.push_back(RelativeError({norms[i]}, {curve.grad_norms[i]}));
    const auto median = errors.begin() + static_cast<std::ptrdiff_t>(errors.size() / 2);
    std::nth_element(errors.begin(), median, errors.end());
    rows.push_back({"grad_norms (median of all steps)", *median, bounds.grad_norms});
  } else {
    rows.push_back({"grad_norms", RelativeError(norms, curve.grad_norms), bounds.grad_norms});
  }
  for (const PackageTensor* tensor : model.Originals()) {
    CAROUSEL_ASSIGN_OR_RETURN(const std::vector<double> expected,
                              dump.Doubles("final." + tensor->name, tensor->shape));
    const std::vector<double> values =
        TensorValues(model, *tensor, [&](int param) { return Download(device, run.Master(param)); });
    rows.push_back({"final." + tensor->name, RelativeError(values, expected), bounds.final_weights});
  }
  return rows;
}
}  // namespace

absl::StatusOr<DumpReport> VerifyCurve(const ReferenceDump& dump, const VerifyOptions& options,
                                       Device& device) {
  CAROUSEL_ASSIGN_OR_RETURN(const ModelDump model, ReadModelDump(dump, options));
  CAROUSEL_RETURN_IF_ERROR(
      CheckModelDumpTensors(dump, model, {"param.", "final."}, {"tokens", "losses", "grad_norms", "lrs"}));
  CAROUSEL_ASSIGN_OR_RETURN(const Curve curve, ReadCurve(dump, model));
  const bool paper = model.spec.family == Family::kPaper;
  DumpReport report;
  report.title =
      absl::StrCat(dump.path(), ": ", curve.steps, " training steps, ", model.description, ", B=", curve.B,
                   " T=", curve.T, ", computed in ", NameOf(options.dtype), " on ", device.name());
  const CurveBounds bounds = BoundsOf(options.dtype);
  CAROUSEL_ASSIGN_OR_RETURN(std::vector<Comparison> rows, TrainAndCompare(dump, model, curve, options.dtype,
                                                                          Form::kTraining, bounds, device));
  report.sections.push_back({"", std::move(rows)});
  if (paper && model.has_mlstm() && options.dtype == DType::kF64) {
    CAROUSEL_ASSIGN_OR_RETURN(
        rows, TrainAndCompare(dump, model, curve, options.dtype, Form::kParallel, bounds, device));
    report.sections.push_back({"with the stabiliser of the reference", std::move(rows)});
  }
  return report;
}
}  // namespace carousel
