// Dumps of whole models: logits, loss and every gradient.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "core/base/exact_sum.h"
#include "core/base/status_macros.h"
#include "core/device_memory.h"
#include "core/model/bound_model.h"
#include "launcher/large_dump.h"
#include "launcher/tensor_copy.h"
#include "launcher/verify.h"

namespace carousel {
namespace {
// A gradient smaller than this part of the whole gradient is compared relative to this part.
constexpr double kSmallGradient = 1e-4;

struct ModelBounds {
  double logits, loss, gradient;
};
ModelBounds BoundsOf(DType dtype) {
  // f64 is compared with numbers that were computed in f32 (norms are, also in f64 models).
  if (dtype != DType::kBF16) return {.logits = 2e-5, .loss = 1e-5, .gradient = 2e-4};
  return {.logits = 2e-2, .loss = 5e-3, .gradient = 5e-2};
}

struct Run {
  Tensor ids, targets;  // (N) i32
  Tensor loss_sum;      // (kExactSumElems) i64
  Tensor logits;        // (N, V) wide
};

absl::Status OutOfMemory(const Device& device, int64_t bytes) {
  return absl::ResourceExhaustedError(
      absl::StrCat("the model needs ", bytes, " bytes, more than ", device.name(), " has"));
}
}  // namespace

absl::StatusOr<DumpReport> VerifyLargeModel(const ReferenceDump& dump, const VerifyOptions& options,
                                            Device& device) {
  CAROUSEL_ASSIGN_OR_RETURN(const LargeDump large, ReadLargeDump(dump, options));
  CAROUSEL_RETURN_IF_ERROR(
      CheckLargeDumpTensors(dump, large, {"param.", "grad."}, {"input_ids", "targets", "logits", "loss"}));
  const ModelSpec& spec = large.config.spec;
  const int64_t V = spec.vocab_size;
  CAROUSEL_ASSIGN_OR_RETURN(const std::vector<int64_t> shape, dump.Shape("input_ids"));
  if (shape.size() != 2 || shape[0] < 1 || shape[1] < 1) {
    return dump.Invalid(
        absl::StrCat("tensor \"input_ids\" has shape ", ShapeText(shape), "; it must be (B, T)"));
  }
  const int64_t B = shape[0], T = shape[1], N = B * T;
  CAROUSEL_ASSIGN_OR_RETURN(const std::vector<int32_t> ids, dump.Ids("input_ids", shape, V));
  CAROUSEL_ASSIGN_OR_RETURN(const std::vector<int32_t> targets, dump.Ids("targets", shape, V));
  CAROUSEL_ASSIGN_OR_RETURN(const std::vector<double> logits, dump.Doubles("logits", {B, T, V}));
  CAROUSEL_ASSIGN_OR_RETURN(const double loss, dump.Scalar("loss"));

  // The model with the dump's parameters.
  BoundModel model(spec, {.compute = options.dtype, .B = B, .T = T, .gradients = true}, device);
  if (!model.ok()) return OutOfMemory(device, model.needed_bytes());
  Run run;
  const DeviceMemory memory(device, [&](Arena& arena) {
    run.ids = arena.Persistent("run", DType::kI32, {N});
    run.targets = arena.Persistent("run", DType::kI32, {N});
    run.loss_sum = arena.Persistent("run", DType::kI64, {kExactSumElems});
    run.logits = arena.Persistent("run", WideOf(options.dtype), {N, V});
  });
  if (!memory.ok()) return OutOfMemory(device, memory.needed_bytes());
  CAROUSEL_RETURN_IF_ERROR(
      ForEachParamValue(dump, large, "param.", [&](int param, std::vector<double> values) {
        model.SetWeight(param, Tensor(values.data(), DType::kF64, {static_cast<int64_t>(values.size())}));
      }));
  UploadIds(device, run.ids, ids);
  UploadIds(device, run.targets, targets);

  // Its results.
  Ops& ops = device.ops();
  const LanguageModel::Input input = {.ids = run.ids, .targets = run.targets, .B = B, .T = T};
  model.model().ForwardLogits(ops, input, run.logits);
  const std::vector<double> our_logits = Download(device, run.logits);
  model.ZeroGradients();
  ops.Fill({.y = run.loss_sum, .value = 0});
  model.model().ForwardBackward(ops, /*sync=*/nullptr, input, run.loss_sum);
  ExactSum loss_sum;
  device.CopyToHost(&loss_sum, run.loss_sum.data, static_cast<int64_t>(sizeof(loss_sum)));
  const auto gradient = [&](int param) {
    const int64_t count = model.params().param(param).num_elems;
    std::vector<double> values(static_cast<size_t>(count));
    model.GetGrad(param, Tensor(values.data(), DType::kF64, {count}));
    for (double& value : values) value /= static_cast<double>(N);  // of the mean loss
    return values;
  };

  const ModelBounds bounds = BoundsOf(options.dtype);
  DumpReport report;
  report.title =
      absl::StrCat(dump.path(), ": xLSTM large model, ", large.description, ", B=", B, " T=", T,
                   ", L=", spec.chunk_length, ", computed in ", NameOf(options.dtype), " on ", device.name());
  report.cancels_note = absl::StrCat(
      "smaller than ", kSmallGradient,
      " of the whole gradient, where rounding of the reference itself shows (the input gate's bias is almost "
      "without effect behind the head norm): the error is relative to that part of the whole");
  report.rows.push_back({"logits", RelativeError(our_logits, logits), bounds.logits});
  report.rows.push_back(
      {"loss", RelativeError({loss_sum.ToDouble() / static_cast<double>(N)}, {loss}), bounds.loss});

  std::vector<std::vector<double>> expected;
  double sum_of_squares = 0;
  for (const FileTensor& tensor : large.tensors) {
    CAROUSEL_ASSIGN_OR_RETURN(std::vector<double> values, dump.Doubles("grad." + tensor.name, tensor.shape));
    sum_of_squares += Norm(values) * Norm(values);
    expected.push_back(std::move(values));
  }
  const double floor = kSmallGradient * std::sqrt(sum_of_squares);
  for (size_t i = 0; i < large.tensors.size(); ++i) {
    const std::vector<double> values = TensorValues(large, large.tensors[i], gradient);
    report.rows.push_back({"grad." + large.tensors[i].name, RelativeError(values, expected[i], floor),
                           bounds.gradient, Norm(expected[i]) < floor});
  }
  return report;
}
}  // namespace carousel
