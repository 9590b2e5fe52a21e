// Cell dumps. What is compared with what:
//   f64   the dump's results, relative to their norm, with the bounds of a double implementation
//   f32, bf16   the inputs are rounded to the dtype first (gates and states to f32), as a model would hand
//         them over; the results are compared with the dump's, which came from unrounded inputs
// Gradients can be small differences of large parts: of the numerator's and the denominator's gradient. The
// numerator's part alone is computed as well (normaliser held constant, in f64), and where the tensor is much
// smaller than it, what the arithmetic can resolve is relative to the part, not to the difference.
#include <algorithm>
#include <cmath>
#include <set>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "checkpoints/hf_names.h"
#include "core/base/status_macros.h"
#include "launcher/mlstm_cell_run.h"
#include "launcher/verify.h"

namespace carousel {
namespace {
constexpr int64_t kMaxChunkLength = 256, kDefaultChunkLength = 64;
constexpr int64_t kMaxDim = int64_t{1} << 31;

struct CellBounds {
  double output, gradient, gate_gradient, forget_gradient;
  double cancels_below;  // ||tensor|| / ||numerator's part||
};
CellBounds BoundsOf(DType dtype) {
  switch (dtype) {
    case DType::kF64:
      // Gates: the reference differentiates through the stabiliser m, on which its result depends by eps
      // only.
      return {.output = 1e-9,
              .gradient = 1e-9,
              .gate_gradient = 1e-5,
              .forget_gradient = 1e-5,
              .cancels_below = 1e-4};
    case DType::kF32:
      // 2^-24 per rounding; sums of some hundred terms; pre-activations of size 40 in exponents.
      return {.output = 2e-5,
              .gradient = 2e-5,
              .gate_gradient = 5e-5,
              .forget_gradient = 5e-5,
              .cancels_below = 1e-1};
    default:
      // Twice what correct kernels show: h and dq, dk, dv 4e-3, input gate 4e-3, forget gate 6e-3.
      return {.output = 8e-3,
              .gradient = 8e-3,
              .gate_gradient = 8e-3,
              .forget_gradient = 1.2e-2,
              .cancels_below = 1};
  }
}

bool ParseBool(const std::string& text, bool* value) {
  if (text == "True" || text == "true") return *value = true, true;
  if (text == "False" || text == "false") return *value = false, true;
  return false;
}

// The metadata of a cell into `shape`; B, T and widths come from the tensors.
absl::Status ReadCellFields(const ReferenceDump& dump, MlstmShape* shape) {
  static const auto& known = *new std::set<std::string>{
      "cell", "input_gate", "normalize", "eps", "chunk", "shape", "qk_scale", "note", "reference", "format"};
  const auto bad = [&](const std::string& field, const std::string& remedy) {
    return dump.Invalid(
        absl::StrCat("metadata field \"", field, "\" is \"", dump.Field(field, ""), "\"; ", remedy));
  };
  for (const auto& [name, value] : dump.metadata()) {
    if (known.count(name) == 0) return bad(name, "this field is not known and cannot be honoured");
  }
  const std::string gate = dump.Field("input_gate", "exp");
  if (gate != "exp" && gate != "sigmoid") return bad("input_gate", "it must be exp or sigmoid");
  shape->input_gate = gate == "exp" ? InputGate::kExponential : InputGate::kSigmoid;
  if (!ParseBool(dump.Field("normalize", "True"), &shape->normalize)) {
    return bad("normalize", "it must be True or False");
  }
  if (!shape->normalize && gate == "exp")
    return bad("normalize", "the exponential gate needs the normaliser");
  if (!absl::SimpleAtod(dump.Field("eps", "1e-6"), &shape->eps) || !(shape->eps >= 0) ||
      !std::isfinite(shape->eps)) {
    return bad("eps", "it must be a number >= 0");
  }
  if (dump.Field("qk_scale", "q/sqrt(dk)") != "q/sqrt(dk)") return bad("qk_scale", "it must be q/sqrt(dk)");
  int64_t chunk = kDefaultChunkLength;
  if (!absl::SimpleAtoi(dump.Field("chunk", absl::StrCat(chunk)), &chunk) || chunk < 1) {
    return bad("chunk", "it must be an integer >= 1");
  }
  shape->L = chunk <= kMaxChunkLength ? chunk : kDefaultChunkLength;  // it changes rounding only
  return absl::OkStatus();
}

// B, NH, T, DHQK, DHV from q and v, checked against the metadata's shape.
absl::Status ReadCellShape(const ReferenceDump& dump, MlstmShape* s) {
  CAROUSEL_ASSIGN_OR_RETURN(const std::vector<int64_t> q, dump.Shape("q"));
  CAROUSEL_ASSIGN_OR_RETURN(const std::vector<int64_t> v, dump.Shape("v"));
  if (q.size() != 4)
    return dump.Invalid(absl::StrCat("tensor \"q\" has shape ", ShapeText(q), "; it must be (B, H, T, dk)"));
  if (v.size() != 4)
    return dump.Invalid(absl::StrCat("tensor \"v\" has shape ", ShapeText(v), "; it must be (B, H, T, dv)"));
  for (const int64_t dim : {q[0], q[1], q[2], q[3], v[3]}) {
    if (dim < 1 || dim > kMaxDim)
      return dump.Invalid(absl::StrCat("dims must be at least 1; q is ", ShapeText(q)));
  }
  s->B = q[0], s->NH = q[1], s->T = q[2], s->DHQK = q[3], s->DHV = v[3];
  std::string text = dump.Field("shape", "");
  if (text.empty()) return absl::OkStatus();
  std::vector<int64_t> dims;
  for (absl::string_view part : absl::StrSplit(text, absl::ByAnyChar("()[], "), absl::SkipEmpty())) {
    int64_t dim;
    if (!absl::SimpleAtoi(part, &dim)) dim = -1;
    dims.push_back(dim);
  }
  if (dims != std::vector<int64_t>{s->B, s->NH, s->T, s->DHQK, s->DHV}) {
    return dump.Invalid(absl::StrCat("metadata field \"shape\" is \"", text, "\"; the tensors are (", s->B,
                                     ", ", s->NH, ", ", s->T, ", ", s->DHQK, ", ", s->DHV, ")"));
  }
  return absl::OkStatus();
}

// A (B, NH, 1) or (B, NH) tensor.
absl::StatusOr<std::vector<double>> Stabiliser(const ReferenceDump& dump, const std::string& name,
                                               const MlstmShape& s) {
  CAROUSEL_ASSIGN_OR_RETURN(const std::vector<int64_t> shape, dump.Shape(name));
  if (shape.size() == 2) return dump.Doubles(name, {s.B, s.NH});
  return dump.Doubles(name, {s.B, s.NH, 1});
}

absl::Status ReadCellInputs(const ReferenceDump& dump, MlstmCellInputs* in) {
  const MlstmShape& s = in->shape;
  CAROUSEL_ASSIGN_OR_RETURN(in->q, dump.Doubles("q", {s.B, s.NH, s.T, s.DHQK}));
  CAROUSEL_ASSIGN_OR_RETURN(in->k, dump.Doubles("k", {s.B, s.NH, s.T, s.DHQK}));
  CAROUSEL_ASSIGN_OR_RETURN(in->v, dump.Doubles("v", {s.B, s.NH, s.T, s.DHV}));
  CAROUSEL_ASSIGN_OR_RETURN(in->i, dump.Doubles("i", {s.B, s.NH, s.T}));
  CAROUSEL_ASSIGN_OR_RETURN(in->f, dump.Doubles("f", {s.B, s.NH, s.T}));
  CAROUSEL_ASSIGN_OR_RETURN(in->dh, dump.Doubles("dh", {s.B, s.NH, s.T, s.DHV}));
  if (dump.Has("c0") || dump.Has("n0") || dump.Has("m0")) {
    CAROUSEL_ASSIGN_OR_RETURN(in->c0, dump.Doubles("c0", {s.B, s.NH, s.DHQK, s.DHV}));
    CAROUSEL_ASSIGN_OR_RETURN(in->n0, dump.Doubles("n0", {s.B, s.NH, s.DHQK}));
    in->m0.assign(static_cast<size_t>(s.B * s.NH), 0);
    if (dump.Has("m0") || s.input_gate == InputGate::kExponential) {
      CAROUSEL_ASSIGN_OR_RETURN(in->m0, Stabiliser(dump, "m0", s));
    }
    if (s.input_gate == InputGate::kSigmoid && Norm(in->m0) != 0) {
      return dump.Invalid("tensor \"m0\" is not zero; the sigmoid input gate has no stabiliser");
    }
  }
  if (dump.Has("dc_true")) {
    CAROUSEL_ASSIGN_OR_RETURN(in->dc_true, dump.Doubles("dc_true", {s.B, s.NH, s.DHQK, s.DHV}));
  }
  if (dump.Has("dn_true")) {
    CAROUSEL_ASSIGN_OR_RETURN(in->dn_true, dump.Doubles("dn_true", {s.B, s.NH, s.DHQK}));
  }
  return absl::OkStatus();
}

absl::Status CheckCellTensorNames(const ReferenceDump& dump) {
  static const auto& known = *new std::set<std::string>{
      "q",      "k",      "v",      "i",      "f",      "c0",      "n0",      "m0",
      "h",      "c_last", "n_last", "m_last", "dh",     "dc_true", "dn_true", "loss",
      "grad.q", "grad.k", "grad.v", "grad.i", "grad.f", "grad.c0", "grad.n0", "grad.m0"};
  for (const SafetensorsEntry& entry : dump.tensors()) {
    if (known.count(entry.name) == 0) {
      return dump.Invalid(absl::StrCat("tensor \"", entry.name, "\" does not belong to an mLSTM dump"));
    }
  }
  return absl::OkStatus();
}

// exp(m - reference) * x: `reference`, common to all, keeps exp finite and drops out of relative errors.
std::vector<double> TrueState(const std::vector<double>& x, const std::vector<double>& m, double reference) {
  std::vector<double> y(x.size());
  const size_t width = x.size() / m.size();
  for (size_t j = 0; j < x.size(); ++j) y[j] = std::exp(m[j / width] - reference) * x[j];
  return y;
}

// The loss and the size of what it sums: sqrt of the sum of squared products.
struct Loss {
  double value = 0, scale = 0;
};
Loss LossOf(const MlstmCellInputs& in, const MlstmCellResults& r) {
  double sum = 0, squares = 0;
  const auto add = [&](const std::vector<double>& a, const std::vector<double>& b) {
    for (size_t j = 0; j < b.size(); ++j) sum += a[j] * b[j], squares += a[j] * b[j] * a[j] * b[j];
  };
  add(r.h, in.dh);
  add(TrueState(r.c_last, r.m_last, 0), in.dc_true);
  add(TrueState(r.n_last, r.m_last, 0), in.dn_true);
  return {sum, std::sqrt(squares)};
}

// Adds rows to a report.
class CellComparer {
 public:
  CellComparer(const ReferenceDump& dump, const CellBounds& bounds, DumpReport* report)
      : dump_(dump), bounds_(bounds), report_(report) {}

  // `part`: the size of the parts whose difference `computed` is.
  absl::Status Add(const std::string& name, const std::vector<double>& computed,
                   const std::vector<int64_t>& shape, double bound, double part) {
    CAROUSEL_ASSIGN_OR_RETURN(const std::vector<double> expected, dump_.Doubles(name, shape));
    AddValues(name, computed, expected, bound, part);
    return absl::OkStatus();
  }
  void AddValues(const std::string& name, const std::vector<double>& computed,
                 const std::vector<double>& expected, double bound, double part) {
    const bool cancels = Norm(expected) < bounds_.cancels_below * part;
    report_->rows.push_back({.name = name,
                             .error = RelativeError(computed, expected, cancels ? part : 0),
                             .bound = bound,
                             .cancels = cancels});
  }

 private:
  const ReferenceDump& dump_;
  const CellBounds& bounds_;
  DumpReport* report_;
};

absl::Status CompareStates(const ReferenceDump& dump, const MlstmCellInputs& in, const MlstmCellResults& r,
                           double bound, CellComparer* compare) {
  const MlstmShape& s = in.shape;
  if (!dump.Has("c_last") && !dump.Has("n_last") && !dump.Has("m_last")) return absl::OkStatus();
  std::vector<double> m(static_cast<size_t>(s.B * s.NH), 0);
  if (dump.Has("m_last") || s.input_gate == InputGate::kExponential) {
    CAROUSEL_ASSIGN_OR_RETURN(m, Stabiliser(dump, "m_last", s));
  }
  CAROUSEL_ASSIGN_OR_RETURN(const std::vector<double> c, dump.Doubles("c_last", {s.B, s.NH, s.DHQK, s.DHV}));
  CAROUSEL_ASSIGN_OR_RETURN(const std::vector<double> n, dump.Doubles("n_last", {s.B, s.NH, s.DHQK}));
  const double reference = *std::max_element(m.begin(), m.end());
  compare->AddValues("exp(m_last) c_last", TrueState(r.c_last, r.m_last, reference),
                     TrueState(c, m, reference), bound, 0);
  compare->AddValues("exp(m_last) n_last", TrueState(r.n_last, r.m_last, reference),
                     TrueState(n, m, reference), bound, 0);
  return absl::OkStatus();
}

absl::Status CompareGradients(const MlstmCellInputs& in, const MlstmCellResults& r,
                              const MlstmCellResults& parts, const CellBounds& bounds,
                              CellComparer* compare) {
  const MlstmShape& s = in.shape;
  const double gate_part = std::max(Norm(parts.di), Norm(parts.df));
  CAROUSEL_RETURN_IF_ERROR(
      compare->Add("grad.q", r.dq, {s.B, s.NH, s.T, s.DHQK}, bounds.gradient, Norm(parts.dq)));
  CAROUSEL_RETURN_IF_ERROR(
      compare->Add("grad.k", r.dk, {s.B, s.NH, s.T, s.DHQK}, bounds.gradient, Norm(parts.dk)));
  CAROUSEL_RETURN_IF_ERROR(compare->Add("grad.v", r.dv, {s.B, s.NH, s.T, s.DHV}, bounds.gradient, 0));
  CAROUSEL_RETURN_IF_ERROR(compare->Add("grad.i", r.di, {s.B, s.NH, s.T}, bounds.gate_gradient, gate_part));
  CAROUSEL_RETURN_IF_ERROR(compare->Add("grad.f", r.df, {s.B, s.NH, s.T}, bounds.forget_gradient, gate_part));
  return absl::OkStatus();
}

absl::Status CompareInitialGradients(const ReferenceDump& dump, const MlstmCellInputs& in,
                                     const MlstmCellResults& r, const MlstmCellResults& parts,
                                     const CellBounds& bounds, CellComparer* compare) {
  const MlstmShape& s = in.shape;
  CAROUSEL_RETURN_IF_ERROR(
      compare->Add("grad.c0", r.dc0, {s.B, s.NH, s.DHQK, s.DHV}, bounds.gradient, Norm(parts.dc0)));
  CAROUSEL_RETURN_IF_ERROR(compare->Add("grad.n0", r.dn0, {s.B, s.NH, s.DHQK}, bounds.gradient, 0));
  if (!dump.Has("grad.m0") && s.input_gate == InputGate::kSigmoid) return absl::OkStatus();
  CAROUSEL_ASSIGN_OR_RETURN(const std::vector<double> dm0, Stabiliser(dump, "grad.m0", s));
  if (s.input_gate == InputGate::kExponential) {
    compare->AddValues("grad.m0", r.dm0, dm0, bounds.gate_gradient, Norm(parts.dm0));
  }
  return absl::OkStatus();
}
}  // namespace

absl::StatusOr<DumpReport> VerifyMlstmCell(const ReferenceDump& dump, const VerifyOptions& options,
                                           Device& device) {
  MlstmCellInputs in;
  CAROUSEL_RETURN_IF_ERROR(ReadCellFields(dump, &in.shape));
  CAROUSEL_RETURN_IF_ERROR(CheckCellTensorNames(dump));
  CAROUSEL_RETURN_IF_ERROR(ReadCellShape(dump, &in.shape));
  CAROUSEL_RETURN_IF_ERROR(ReadCellInputs(dump, &in));
  if (options.chunk_length > 0) in.shape.L = options.chunk_length;

  CAROUSEL_ASSIGN_OR_RETURN(const MlstmCellResults r, RunMlstmCell(in, options.dtype, device));
  MlstmCellInputs frozen = in;
  frozen.normalizer_gradient = NormalizerGradient::kFrozen;
  CAROUSEL_ASSIGN_OR_RETURN(const MlstmCellResults parts, RunMlstmCell(frozen, DType::kF64, device));

  const MlstmShape& s = in.shape;
  const CellBounds bounds = BoundsOf(options.dtype);
  DumpReport report;
  report.title = absl::StrCat(dump.path(), ": mLSTM cell, ",
                              s.input_gate == InputGate::kExponential ? "exponential"
                              : s.normalize                           ? "sigmoid (normalised)"
                                                                      : "sigmoid (not normalised)",
                              " input gate, B=", s.B, " NH=", s.NH, " T=", s.T, " DHQK=", s.DHQK,
                              " DHV=", s.DHV, in.c0.empty() ? "" : ", initial state", ", L=", s.L,
                              ", computed in ", NameOf(options.dtype), " on ", device.name());
  report.cancels_note =
      "a small difference of large parts: the error is relative to the part of the gradient that holds the "
      "normaliser constant";
  CellComparer compare(dump, bounds, &report);
  CAROUSEL_RETURN_IF_ERROR(compare.Add("h", r.h, {s.B, s.NH, s.T, s.DHV}, bounds.output, 0));
  CAROUSEL_RETURN_IF_ERROR(CompareStates(dump, in, r, bounds.output, &compare));
  if (dump.Has("loss")) {
    CAROUSEL_ASSIGN_OR_RETURN(const double expected, dump.Scalar("loss"));
    const Loss loss = LossOf(in, r);
    compare.AddValues("loss", {loss.value}, {expected}, bounds.output, loss.scale);
  }
  CAROUSEL_RETURN_IF_ERROR(CompareGradients(in, r, parts, bounds, &compare));
  if (!in.c0.empty()) {
    CAROUSEL_RETURN_IF_ERROR(CompareInitialGradients(dump, in, r, parts, bounds, &compare));
  }
  return report;
}
}  // namespace carousel
