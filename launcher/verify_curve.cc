// Dumps of training: 'tokens' (steps, B, T+1) are trained on with AdamW as the metadata's "optimizer" says.
#include <algorithm>
#include <cmath>
#include <regex>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "core/base/exact_sum.h"
#include "core/base/status_macros.h"
#include "core/device_memory.h"
#include "core/model/language_model.h"
#include "core/optim/adamw.h"
#include "core/train/no_sync.h"
#include "launcher/large_dump.h"
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

// The number behind the first match of `pattern` (one group); an error that says what is missing if there is
// no match.
absl::StatusOr<double> NumberAfter(const ReferenceDump& dump, const std::string& text,
                                   const std::string& pattern, const std::string& what) {
  std::smatch match;
  double value = 0;
  if (std::regex_search(text, match, std::regex(pattern, std::regex::icase)) &&
      absl::SimpleAtod(match[1].str(), &value) && std::isfinite(value) && value >= 0) {
    return value;
  }
  return dump.Invalid(absl::StrCat("metadata field \"optimizer\" is \"", text, "\"; it does not say ", what));
}

// "AdamW ..., betas 0.9 0.95, eps 1e-8, decoupled weight decay 0.1 on tensors of 2 or more dims, none on 1-d;
// global-norm clip 1.0; ..."
absl::StatusOr<AdamWSpec> ReadOptimizer(const ReferenceDump& dump) {
  const std::string text = dump.Field("optimizer", "");
  if (text.empty()) return dump.Invalid("metadata field \"optimizer\" is missing");
  if (text.size() > 2000) return dump.Invalid("metadata field \"optimizer\" has more than 2000 characters");
  const std::string number = R"(\s*[:=]?\s*[\[\(]?\s*([0-9][0-9.]*(?:e[-+]?[0-9]+)?))";
  const auto says = [&](const std::string& pattern) {
    return std::regex_search(text, std::regex(pattern, std::regex::icase));
  };
  const auto refuse = [&](const std::string& what) {
    return dump.Invalid(absl::StrCat("metadata field \"optimizer\" is \"", text, "\"; ", what));
  };
  if (!says("adamw")) return refuse("only AdamW is in this version");
  AdamWSpec spec;
  CAROUSEL_ASSIGN_OR_RETURN(spec.beta1, NumberAfter(dump, text, "betas" + number, "the betas"));
  CAROUSEL_ASSIGN_OR_RETURN(
      spec.beta2,
      NumberAfter(dump, text,
                  R"(betas\s*[:=]?\s*[\[\(]?\s*[0-9][0-9.]*(?:e[-+]?[0-9]+)?[\s,;/]+([0-9][0-9.]*))",
                  "the second beta"));
  if (spec.beta1 >= 1 || spec.beta2 >= 1) return refuse("betas must be below 1");
  CAROUSEL_ASSIGN_OR_RETURN(spec.eps, NumberAfter(dump, text, "eps" + number, "eps"));
  spec.weight_decay = 0;
  if (says("no weight decay")) {
    spec.weight_decay = 0;
  } else if (says("weight decay")) {
    CAROUSEL_ASSIGN_OR_RETURN(spec.weight_decay,
                              NumberAfter(dump, text, "weight decay" + number, "the weight decay"));
    if (spec.weight_decay > 0 && !says("2 or more dims")) {
      return refuse("weight decay must be \"on tensors of 2 or more dims\"");
    }
  }
  spec.clip_norm = 0;
  if (says("clip") && !says("no clip")) {
    CAROUSEL_ASSIGN_OR_RETURN(
        spec.clip_norm, NumberAfter(dump, text, "clip(?:ping)?(?: at)?" + number, "the norm to clip at"));
  }
  if (says("dropout") && !says("no dropout")) return refuse("dropout is not in this version");
  if (says("amsgrad|nesterov|maximize")) return refuse("variants of AdamW are not in this version");
  return spec;
}

// One model that trains alone: the pieces of the trainer, with the learning rates of the dump.
class CurveRun {
 public:
  CurveRun(const ModelSpec& spec, DType compute, int64_t B, int64_t T, Device& device)
      : device_(device),
        params_(compute, /*num_shards=*/1, /*shard_index=*/0),
        model_(spec, params_, /*decay_embedding=*/true),
        sync_(factory_.Make(params_, device.ops(), Axis{}, /*micro_batches_per_step=*/1)),
        memory_(device, [&](Arena& arena) {
          params_.Bind(arena, /*train=*/true);
          factory_.Bind(*sync_, arena);
          model_.Bind(arena, device.ops(), B, T, /*train=*/true);
          ids_ = arena.Persistent("run", DType::kI32, {B * T});
          targets_ = arena.Persistent("run", DType::kI32, {B * T});
          sums_ = arena.Persistent("run", DType::kI64, {2 * kExactSumElems});
        }) {}

  bool ok() const { return memory_.ok(); }
  int64_t needed_bytes() const { return memory_.needed_bytes(); }

  // Values of one parameter in the master weights; then Begin() once all are set.
  Tensor Master(int param) const {
    const Param& p = params_.param(param);
    return params_.segment(p.group, p.segment).master.Rows(p.offset, p.num_elems);
  }
  void Begin() { params_.CastMasterToWeights(device_.ops()); }

  struct Result {
    double loss, grad_norm;
  };
  // tokens: (B, T+1).
  Result Step(int64_t step, const int32_t* tokens, int64_t B, int64_t T, const AdamWSpec& adamw, double lr) {
    Ops& ops = device_.ops();
    std::vector<int32_t> inputs, targets;
    for (int64_t b = 0; b < B; ++b) {
      const int32_t* row = tokens + b * (T + 1);
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
    UpdateShards(params_, ops, adamw, lr, scale * clip, step + 1);
    sync_->GatherWeights();
    return {sums[0].ToDouble() * scale, norm};
  }

 private:
  Device& device_;
  ParamStore params_;
  LanguageModel model_;
  NoSyncFactory factory_;
  std::unique_ptr<ParamSync> sync_;
  Tensor ids_, targets_, sums_;
  DeviceMemory memory_;
};
}  // namespace

absl::StatusOr<DumpReport> VerifyLargeCurve(const ReferenceDump& dump, const VerifyOptions& options,
                                            Device& device) {
  CAROUSEL_ASSIGN_OR_RETURN(const LargeDump large, ReadLargeDump(dump, options));
  CAROUSEL_RETURN_IF_ERROR(
      CheckLargeDumpTensors(dump, large, {"param.", "final."}, {"tokens", "losses", "grad_norms", "lrs"}));
  CAROUSEL_ASSIGN_OR_RETURN(const AdamWSpec adamw, ReadOptimizer(dump));
  CAROUSEL_ASSIGN_OR_RETURN(const std::vector<int64_t> shape, dump.Shape("tokens"));
  if (shape.size() != 3 || shape[0] < 1 || shape[1] < 1 || shape[2] < 2) {
    return dump.Invalid(
        absl::StrCat("tensor \"tokens\" has shape ", ShapeText(shape), "; it must be (steps, B, T+1)"));
  }
  const int64_t steps = shape[0], B = shape[1], T = shape[2] - 1;
  CAROUSEL_ASSIGN_OR_RETURN(const std::vector<int32_t> tokens,
                            dump.Ids("tokens", shape, large.config.spec.vocab_size));
  CAROUSEL_ASSIGN_OR_RETURN(const std::vector<double> losses, dump.Doubles("losses", {steps}));
  CAROUSEL_ASSIGN_OR_RETURN(const std::vector<double> lrs, dump.Doubles("lrs", {steps}));
  CAROUSEL_ASSIGN_OR_RETURN(const std::vector<double> grad_norms, dump.Doubles("grad_norms", {steps}));

  CurveRun run(large.config.spec, options.dtype, B, T, device);
  if (!run.ok()) {
    return absl::ResourceExhaustedError(
        absl::StrCat("training needs ", run.needed_bytes(), " bytes, more than ", device.name(), " has"));
  }
  CAROUSEL_RETURN_IF_ERROR(ForEachParamValue(
      dump, large, "param.",
      [&](int param, const std::vector<double>& values) { Upload(device, run.Master(param), values); }));
  run.Begin();
  std::vector<double> our_losses, our_norms;
  for (int64_t step = 0; step < steps; ++step) {
    const CurveRun::Result result =
        run.Step(step, tokens.data() + step * B * (T + 1), B, T, adamw, lrs[static_cast<size_t>(step)]);
    our_losses.push_back(result.loss);
    our_norms.push_back(result.grad_norm);
  }

  const CurveBounds bounds = BoundsOf(options.dtype);
  DumpReport report;
  report.title = absl::StrCat(dump.path(), ": ", steps, " training steps, ", large.description, ", B=", B,
                              " T=", T, ", computed in ", NameOf(options.dtype), " on ", device.name());
  std::vector<Comparison> rows;
  double worst = 0;
  for (size_t i = 0; i < losses.size(); ++i) {
    worst = std::max(worst, RelativeError({our_losses[i]}, {losses[i]}));
  }
  rows.push_back({"losses (largest of all steps)", worst, bounds.losses});
  rows.push_back({"losses", RelativeError(our_losses, losses), bounds.losses});
  if (options.dtype == DType::kBF16) {
    // A single jump of the norm, a step earlier or later, would decide about the whole curve: the median step
    // counts.
    std::vector<double> errors;
    for (size_t i = 0; i < grad_norms.size(); ++i)
      errors.push_back(RelativeError({our_norms[i]}, {grad_norms[i]}));
    std::nth_element(errors.begin(), errors.begin() + errors.size() / 2, errors.end());
    rows.push_back({"grad_norms (median of all steps)", errors[errors.size() / 2], bounds.grad_norms});
  } else {
    rows.push_back({"grad_norms", RelativeError(our_norms, grad_norms), bounds.grad_norms});
  }
  for (const FileTensor& tensor : large.tensors) {
    CAROUSEL_ASSIGN_OR_RETURN(const std::vector<double> expected,
                              dump.Doubles("final." + tensor.name, tensor.shape));
    const std::vector<double> values =
        TensorValues(large, tensor, [&](int param) { return Download(device, run.Master(param)); });
    rows.push_back({"final." + tensor.name, RelativeError(values, expected), bounds.final_weights});
  }
  report.sections.push_back({"", std::move(rows)});
  return report;
}
}  // namespace carousel
