// Dumps of training: 'tokens' (steps, B, T+1) are trained on with AdamW as the metadata's "optimizer" says.
#include <algorithm>
#include <cmath>
#include <map>
#include <memory>

#include "absl/strings/str_cat.h"
#include "checkpoints/hf_names.h"
#include "core/base/exact_sum.h"
#include "core/base/status_macros.h"
#include "core/device_memory.h"
#include "core/model/language_model.h"
#include "core/optim/adamw.h"
#include "core/train/no_sync.h"
#include "launcher/models/curve_optimizer.h"
#include "launcher/models/model_dump.h"
#include "launcher/models/reference_stabiliser.h"
#include "launcher/models/tensor_copy.h"
#include "launcher/models/verify.h"

namespace carousel {
namespace {
struct CurveBounds {
  double losses, grad_norms, final_weights;
  const char* allows_for;
};

// How a step is computed.
enum class Convention : uint8_t {
  kTraining,   // as by `carousel train`: gradients are scaled by clip / max(clip, norm)
  kReference,  // the mLSTM with the stabiliser of the reference (launcher/models/reference_stabiliser.h),
               // gradients scaled by min(1, clip / (norm + 1e-6)) as torch.nn.utils.clip_grad_norm_ does
};
constexpr double kReferenceClipEps = 1e-6;

// precision: the coarser one of what is computed in and what the dump was computed in.
CurveBounds BoundsOf(DType precision, Convention convention) {
  // Training amplifies differences: where the gradient norm jumps, 1e-6 in the weights becomes 1e-4 within a
  // few steps, and Adam moves weights whose gradients are next to nothing by as much as others. The public
  // implementation itself, in f32 and in f64 against its f32 dump, shows losses 3e-5, gradient norms 3e-3. So
  // f64 rounding leaves 1e-9 at most, and conventions that differ by 1e-6 count as f32 rounding does.
  if (precision == DType::kF64 && convention == Convention::kReference) {
    return {.losses = 1e-6, .grad_norms = 1e-6, .final_weights = 1e-6, .allows_for = "f64 rounding"};
  }
  if (precision == DType::kF64 || precision == DType::kF32) {
    return {.losses = 1e-4,
            .grad_norms = 2e-2,
            .final_weights = 5e-3,
            .allows_for = precision == DType::kF32 ? "f32 rounding" : "conventions 1e-6 apart"};
  }
  // Measured with bf16 arithmetic and f32 master weights on 40 steps of small models.
  return {.losses = 5e-2, .grad_norms = 1.5e-1, .final_weights = 3e-1, .allows_for = "bf16 rounding"};
}

// What a curve dump prescribes.
struct Curve {
  int64_t steps, B, T;
  std::vector<int32_t> tokens;  // (steps, B, T+1)
  std::vector<double> losses, lrs, grad_norms;
  AdamWSpec adamw;
  std::vector<bool> decays;  // by parameter
};

// One model that trains alone: the pieces of the trainer, with the learning rates of the dump and its rule
// for weight decay.
class CurveRun {
 public:
  CurveRun(const ModelSpec& spec, DType compute, Convention convention, const Curve& curve, Device& device)
      : device_(device),
        curve_(curve),
        convention_(convention),
        params_(compute, /*num_shards=*/1, /*shard_index=*/0),
        model_(spec, params_, /*decay_embedding=*/true),
        sync_(factory_.Make(params_, device, Mesh{}, /*micro_batches_per_step=*/1)),
        memory_(device, [&](Arena& arena) {
          params_.Bind(arena, /*train=*/true);
          factory_.Bind(*sync_, arena);
          model_.Bind(arena, device.ops(), curve.B, curve.T, /*train=*/true);
          ids_ = arena.Persistent("run", DType::kI32, {curve.B * curve.T});
          targets_ = arena.Persistent("run", DType::kI32, {curve.B * curve.T});
          sums_ = arena.Persistent("run", DType::kI64, {2 * kExactSumElems});
        }) {
    if (convention == Convention::kReference) {
      parallel_ = std::make_unique<ParallelFormOps>(spec, compute, curve.B, curve.T, device);
    }
  }

  bool ok() const { return memory_.ok() && (parallel_ == nullptr || parallel_->ok()); }
  std::string NotEnough() const {
    return memory_.ok() ? parallel_->NotEnough() : memory_.NotEnough("training");
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
    Update(curve_.lrs[static_cast<size_t>(step)], scale * ClipFactor(norm), step + 1);
    for (int group = 0; group < params_.num_groups(); ++group) sync_->WeightsUpdated(group);
    return {sums[0].ToDouble() * scale, norm};
  }

 private:
  double ClipFactor(double norm) const {
    const double clip = curve_.adamw.clip_norm;
    if (clip <= 0) return 1;
    return convention_ == Convention::kReference ? std::min(1.0, clip / (norm + kReferenceClipEps))
                                                 : clip / std::max(clip, norm);
  }
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
  Convention convention_;
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

struct CurveResults {
  std::vector<double> losses, grad_norms;          // by step
  std::vector<std::vector<double>> final_weights;  // one per tensor of the reference
};

struct TrainArgs {
  DType compute = DType::kF64;
  Convention convention = Convention::kTraining;
  double change_weights = 0;  // ChangeSlightly, before the first step
};
absl::StatusOr<CurveResults> Train(const ReferenceDump& dump, const ModelDump& model, const Curve& curve,
                                   const TrainArgs& args, Device& device) {
  CurveRun run(model.spec, args.compute, args.convention, curve, device);
  if (!run.ok()) {
    return absl::ResourceExhaustedError(run.NotEnough());
  }
  CAROUSEL_RETURN_IF_ERROR(
      ForEachParamValue(dump, model, "param.", [&](int param, std::vector<double> values) {
        if (args.change_weights > 0) ChangeSlightly(args.change_weights, &values);
        Upload(device, run.Master(param), values);
      }));
  run.Begin();
  CurveResults results;
  for (int64_t step = 0; step < curve.steps; ++step) {
    const CurveRun::Result result = run.Step(step);
    results.losses.push_back(result.loss);
    results.grad_norms.push_back(result.grad_norm);
  }
  for (const PackageTensor* tensor : model.Originals()) {
    results.final_weights.push_back(
        TensorValues(model, *tensor, [&](int param) { return Download(device, run.Master(param)); }));
  }
  return results;
}

absl::StatusOr<CurveResults> ResultsOfDump(const ReferenceDump& dump, const ModelDump& model,
                                           const Curve& curve) {
  CurveResults results = {.losses = curve.losses, .grad_norms = curve.grad_norms, .final_weights = {}};
  for (const PackageTensor* tensor : model.Originals()) {
    CAROUSEL_ASSIGN_OR_RETURN(std::vector<double> values,
                              dump.Doubles("final." + tensor->name, tensor->shape));
    results.final_weights.push_back(std::move(values));
  }
  return results;
}

// By step.
std::vector<double> RelativeErrors(const std::vector<double>& computed, const std::vector<double>& expected) {
  std::vector<double> errors;
  for (size_t i = 0; i < expected.size(); ++i) errors.push_back(RelativeError({computed[i]}, {expected[i]}));
  return errors;
}

// median_norm: a single jump of the norm, a step earlier or later, would decide about a whole bf16 curve;
// there the median step counts.
std::vector<Comparison> Compare(const ModelDump& model, const CurveResults& computed,
                                const CurveResults& expected, bool median_norm, const CurveBounds& bounds) {
  std::vector<Comparison> rows;
  const std::vector<double> losses = RelativeErrors(computed.losses, expected.losses);
  rows.push_back(
      {"losses (largest of all steps)", *std::max_element(losses.begin(), losses.end()), bounds.losses});
  rows.push_back({"losses", RelativeError(computed.losses, expected.losses), bounds.losses});
  if (median_norm) {
    std::vector<double> errors = RelativeErrors(computed.grad_norms, expected.grad_norms);
    const auto median = errors.begin() + static_cast<std::ptrdiff_t>(errors.size() / 2);
    std::nth_element(errors.begin(), median, errors.end());
    rows.push_back({"grad_norms (median of all steps)", *median, bounds.grad_norms});
  } else {
    rows.push_back(
        {"grad_norms", RelativeError(computed.grad_norms, expected.grad_norms), bounds.grad_norms});
  }
  const std::vector<const PackageTensor*> tensors = model.Originals();
  for (size_t i = 0; i < tensors.size(); ++i) {
    rows.push_back({"final." + tensors[i]->name,
                    RelativeError(computed.final_weights[i], expected.final_weights[i]),
                    bounds.final_weights});
  }
  for (Comparison& row : rows) row.allows_for = bounds.allows_for;
  return rows;
}

// Half a unit in the last place.
double UnitRoundoff(DType dtype) {
  return dtype == DType::kF64 ? 0x1p-53 : dtype == DType::kF32 ? 0x1p-24 : 0x1p-9;
}
}  // namespace

absl::StatusOr<DumpReport> VerifyCurve(const ReferenceDump& dump, const VerifyOptions& options,
                                       Device& device) {
  constexpr double kFactor = 16, kCap = 1e9;  // of ExplainFailures
  CAROUSEL_ASSIGN_OR_RETURN(const ModelDump model, ReadModelDump(dump, options));
  CAROUSEL_RETURN_IF_ERROR(
      CheckModelDumpTensors(dump, model, {"param.", "final."}, {"tokens", "losses", "grad_norms", "lrs"}));
  CAROUSEL_ASSIGN_OR_RETURN(const Curve curve, ReadCurve(dump, model));
  CAROUSEL_ASSIGN_OR_RETURN(const CurveResults expected, ResultsOfDump(dump, model, curve));
  CAROUSEL_ASSIGN_OR_RETURN(const DType stored, DTypeOfDump(dump));
  // The large family computes its norms in f32 whatever the dtype.
  const bool large = model.spec.family == Family::kLarge;
  DType precision = large ? DType::kF32 : stored;
  if (options.dtype == DType::kBF16 || stored == DType::kBF16) {
    precision = DType::kBF16;
  } else if (options.dtype == DType::kF32) {
    precision = DType::kF32;
  }
  DumpReport report;
  report.title =
      absl::StrCat(dump.path(), ": ", curve.steps, " training steps, ", model.description, ", B=", curve.B,
                   " T=", curve.T, ", computed in ", NameOf(options.dtype), " on ", device.name());
  report.explained_note = absl::StrCat("still a failure, but within ", kFactor,
                                       " times what a change of every initial weight by half a unit "
                                       "in its last ",
                                       NameOf(precision),
                                       " place does in f64: training amplifies rounding, also that of the "
                                       "reference");
  const auto add = [&](Convention convention, const std::string& heading) -> absl::Status {
    const CurveBounds bounds = BoundsOf(precision, convention);
    const bool median_norm = precision == DType::kBF16;
    TrainArgs args = {.compute = options.dtype, .convention = convention};
    CAROUSEL_ASSIGN_OR_RETURN(const CurveResults computed, Train(dump, model, curve, args, device));
    std::vector<Comparison> rows = Compare(model, computed, expected, median_norm, bounds);
    const bool all_ok = std::all_of(rows.begin(), rows.end(), [](const Comparison& row) { return row.ok(); });
    if (!all_ok && !large) {
      args.compute = DType::kF64;
      CAROUSEL_ASSIGN_OR_RETURN(const CurveResults exact, Train(dump, model, curve, args, device));
      args.change_weights = UnitRoundoff(precision);
      CAROUSEL_ASSIGN_OR_RETURN(const CurveResults moved, Train(dump, model, curve, args, device));
      std::map<std::string, double> resolution;
      for (const Comparison& row : Compare(model, moved, exact, median_norm, bounds)) {
        resolution[row.name] = row.error;
      }
      ExplainFailures(resolution, kFactor, kCap, &rows);
    }
    report.sections.push_back({heading, std::move(rows)});
    return absl::OkStatus();
  };
  if (large || precision == DType::kBF16) {
    CAROUSEL_RETURN_IF_ERROR(add(Convention::kTraining, ""));
    return report;
  }
  const std::string stabiliser = "m_0 of the mLSTM = ";
  const bool has_mlstm = model.has_mlstm();
  CAROUSEL_RETURN_IF_ERROR(
      add(Convention::kReference,
          absl::StrCat("as the reference trains (",
                       has_mlstm ? stabiliser + "-infinity, gradients pass through m; " : "",
                       "gradients times min(1, clip / (norm + 1e-6)))")));
  CAROUSEL_RETURN_IF_ERROR(
      add(Convention::kTraining,
          absl::StrCat("as training here does (", has_mlstm ? stabiliser + "0, m constant in backward; " : "",
                       "gradients times clip / max(clip, norm))")));
  return report;
}
}  // namespace carousel
