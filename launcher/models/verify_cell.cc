// Cell dumps. What is compared with what:
//   f64   the results with those of the dump, with the bounds of a double implementation
//   f32   the same; inputs are rounded to f32
//   bf16  first f64 as above; then bf16 with f64 on equal inputs (q, k, v, dh rounded to bf16, gates and
//   states
//         to f32). Not with the dump itself: where |n.q| is near its floor, or n.q near zero, the gradient
//         jumps, so that rounding the inputs alone can change it by a tenth.
// Gradients can be small differences of large parts: of the numerator's and the denominator's gradient. The
// numerator's part alone is computed as well (normaliser held constant, in f64), and where the tensor is much
// smaller than it, what the arithmetic can resolve is relative to the part, not to the difference.
#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "checkpoints/hf_names.h"
#include "core/base/status_macros.h"
#include "launcher/models/mlstm_cell_run.h"
#include "launcher/models/reference_stabiliser.h"
#include "launcher/models/verify.h"

namespace carousel {
namespace {
constexpr int64_t kMaxChunkLength = 256, kDefaultChunkLength = 64;
constexpr int64_t kMaxDim = int64_t{1} << 31;

struct CellBounds {
  double output, gradient, gate_gradient, forget_gradient;
  double cancels_below;  // ||tensor|| / ||parts||
};
CellBounds BoundsOf(DType dtype) {
  switch (dtype) {
    case DType::kF64:
      // Gates: the reference differentiates through the stabiliser, which is added here (AddStabiliserPath);
      // the bound is that of an implementation that does not.
      return {.output = 1e-9,
              .gradient = 1e-9,
              .gate_gradient = 1e-5,
              .forget_gradient = 1e-5,
              .cancels_below = 1e-4};
    case DType::kF32:
      // 2^-24 per rounding; pre-activations of size 40 in exponents make that 2e-6 per factor, and
      // denominators near zero enlarge it.
      return {.output = 1e-4,
              .gradient = 1e-4,
              .gate_gradient = 1e-4,
              .forget_gradient = 1e-4,
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

// What is compared: results by the dump's names. States are true states relative to a common exponent.
using NamedResults = std::map<std::string, std::vector<double>>;

// The dump's results; those that it need not have are left out. *state_exponent: the common one.
absl::StatusOr<NamedResults> ResultsOfDump(const ReferenceDump& dump, const MlstmCellInputs& in,
                                           double* state_exponent) {
  const MlstmShape& s = in.shape;
  const bool exponential = s.input_gate == InputGate::kExponential;
  NamedResults r;
  const auto read = [&](const std::string& name, const std::vector<int64_t>& shape) -> absl::Status {
    CAROUSEL_ASSIGN_OR_RETURN(r[name], dump.Doubles(name, shape));
    return absl::OkStatus();
  };
  CAROUSEL_RETURN_IF_ERROR(read("h", {s.B, s.NH, s.T, s.DHV}));
  *state_exponent = 0;
  if (dump.Has("c_last") || dump.Has("n_last") || dump.Has("m_last")) {
    std::vector<double> m(static_cast<size_t>(s.B * s.NH), 0);
    if (dump.Has("m_last") || exponential) {
      CAROUSEL_ASSIGN_OR_RETURN(m, Stabiliser(dump, "m_last", s));
    }
    *state_exponent = *std::max_element(m.begin(), m.end());
    CAROUSEL_RETURN_IF_ERROR(read("c_last", {s.B, s.NH, s.DHQK, s.DHV}));
    CAROUSEL_RETURN_IF_ERROR(read("n_last", {s.B, s.NH, s.DHQK}));
    for (const char* name : {"c_last", "n_last"}) r[name] = TrueState(r[name], m, *state_exponent);
  }
  if (dump.Has("loss")) {
    CAROUSEL_ASSIGN_OR_RETURN(const double loss, dump.Scalar("loss"));
    r["loss"] = {loss};
  }
  CAROUSEL_RETURN_IF_ERROR(read("grad.q", {s.B, s.NH, s.T, s.DHQK}));
  CAROUSEL_RETURN_IF_ERROR(read("grad.k", {s.B, s.NH, s.T, s.DHQK}));
  CAROUSEL_RETURN_IF_ERROR(read("grad.v", {s.B, s.NH, s.T, s.DHV}));
  CAROUSEL_RETURN_IF_ERROR(read("grad.i", {s.B, s.NH, s.T}));
  CAROUSEL_RETURN_IF_ERROR(read("grad.f", {s.B, s.NH, s.T}));
  if (!in.c0.empty()) {
    CAROUSEL_RETURN_IF_ERROR(read("grad.c0", {s.B, s.NH, s.DHQK, s.DHV}));
    CAROUSEL_RETURN_IF_ERROR(read("grad.n0", {s.B, s.NH, s.DHQK}));
    if (exponential) {
      CAROUSEL_ASSIGN_OR_RETURN(r["grad.m0"], Stabiliser(dump, "grad.m0", s));
    }
  }
  return r;
}

NamedResults ResultsOfRun(const MlstmCellInputs& in, const MlstmCellResults& r, double state_exponent) {
  NamedResults named = {{"h", r.h},
                        {"c_last", TrueState(r.c_last, r.m_last, state_exponent)},
                        {"n_last", TrueState(r.n_last, r.m_last, state_exponent)},
                        {"loss", {LossOf(in, r).value}},
                        {"grad.q", r.dq},
                        {"grad.k", r.dk},
                        {"grad.v", r.dv},
                        {"grad.i", r.di},
                        {"grad.f", r.df}};
  if (!in.c0.empty()) named["grad.c0"] = r.dc0, named["grad.n0"] = r.dn0, named["grad.m0"] = r.dm0;
  return named;
}

// How large the parts are whose difference a result is; results that are no such difference are left out.
using Scales = std::map<std::string, double>;

// Gradients: the part that holds the normaliser constant. Loss: the root of the sum of squared terms.
Scales ScalesOf(const MlstmCellInputs& in, const MlstmCellResults& run, const MlstmCellResults& frozen) {
  const double gate = std::max(Norm(frozen.di), Norm(frozen.df));
  return {{"loss", LossOf(in, run).scale},
          {"grad.q", Norm(frozen.dq)},
          {"grad.k", Norm(frozen.dk)},
          {"grad.i", gate},
          {"grad.f", gate},
          {"grad.c0", Norm(frozen.dc0)},
          {"grad.m0", Norm(frozen.dm0)}};
}

// One row per result of `expected`.
std::vector<Comparison> Compare(const NamedResults& expected, const NamedResults& computed,
                                const Scales& scales, const CellBounds& bounds) {
  struct Row {
    const char *name, *title;
    double bound;
  };
  const Row rows[] = {{"h", "h", bounds.output},
                      {"c_last", "exp(m_last) c_last", bounds.output},
                      {"n_last", "exp(m_last) n_last", bounds.output},
                      {"loss", "loss", bounds.output},
                      {"grad.q", "grad.q", bounds.gradient},
                      {"grad.k", "grad.k", bounds.gradient},
                      {"grad.v", "grad.v", bounds.gradient},
                      {"grad.i", "grad.i", bounds.gate_gradient},
                      {"grad.f", "grad.f", bounds.forget_gradient},
                      {"grad.c0", "grad.c0", bounds.gradient},
                      {"grad.n0", "grad.n0", bounds.gradient},
                      {"grad.m0", "grad.m0", bounds.gate_gradient}};
  std::vector<Comparison> result;
  for (const Row& row : rows) {
    const auto found = expected.find(row.name);
    if (found == expected.end()) continue;
    const auto scale = scales.find(row.name);
    const double part = scale == scales.end() ? 0 : scale->second;
    const bool cancels = Norm(found->second) < bounds.cancels_below * part;
    result.push_back({.name = row.title,
                      .error = RelativeError(computed.at(row.name), found->second, cancels ? part : 0),
                      .bound = row.bound,
                      .cancels = cancels});
  }
  return result;
}

// The inputs as a bf16 model would hand them over.
MlstmCellInputs RoundInputs(MlstmCellInputs in) {
  for (std::vector<double>* x : {&in.q, &in.k, &in.v, &in.dh}) {
    for (double& value : *x)
      value = static_cast<double>(static_cast<float>(bfloat16(static_cast<float>(value))));
  }
  for (std::vector<double>* x : {&in.i, &in.f, &in.c0, &in.n0, &in.m0}) {
    for (double& value : *x) value = static_cast<double>(static_cast<float>(value));
  }
  return in;
}

absl::StatusOr<MlstmCellResults> RunFrozen(MlstmCellInputs in, Device& device) {
  in.normalizer_gradient = NormalizerGradient::kFrozen;
  return RunMlstmCell(in, DType::kF64, device);
}

// The reference differentiates through the stabiliser m, the cell here holds it constant: adds what the
// reference adds (launcher/models/reference_stabiliser.h).
void AddStabiliserPathOfCell(const MlstmCellInputs& in, MlstmCellResults* r) {
  const MlstmShape& s = in.shape;
  if (s.input_gate != InputGate::kExponential) return;
  const size_t T = static_cast<size_t>(s.T), V = static_cast<size_t>(s.DHV);
  for (size_t head = 0; head < static_cast<size_t>(s.B * s.NH); ++head) {
    std::vector<double> dh_h(T);
    for (size_t e = 0; e < T * V; ++e) dh_h[e / V] += in.dh[head * T * V + e] * r->h[head * T * V + e];
    const double dm0 = AddStabiliserPath({.di = &r->di[head * T],
                                          .df = &r->df[head * T],
                                          .i = &in.i[head * T],
                                          .f = &in.f[head * T],
                                          .dh_h = dh_h.data(),
                                          .denominator = &r->denominator[head * T],
                                          .T = s.T,
                                          .m0 = in.m0.empty() ? 0 : in.m0[head],
                                          .eps = s.eps});
    if (!r->dm0.empty()) r->dm0[head] += dm0;
  }
}

// By row: how far rounding its inputs moves a result.
std::map<std::string, double> InputRounding(const NamedResults& rounded, const NamedResults& unrounded,
                                            const Scales& scales, const CellBounds& bounds) {
  std::map<std::string, double> moved;
  for (const Comparison& row : Compare(rounded, unrounded, scales, bounds)) moved[row.name] = row.error;
  return moved;
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
  double exponent = 0;
  CAROUSEL_ASSIGN_OR_RETURN(const NamedResults expected, ResultsOfDump(dump, in, &exponent));

  const MlstmShape& s = in.shape;
  DumpReport report;
  report.title = absl::StrCat(dump.path(), ": mLSTM cell, ",
                              s.input_gate == InputGate::kExponential ? "exponential"
                              : s.normalize                           ? "sigmoid (normalised)"
                                                                      : "sigmoid (not normalised)",
                              " input gate, B=", s.B, " NH=", s.NH, " T=", s.T, " DHQK=", s.DHQK,
                              " DHV=", s.DHV, in.c0.empty() ? "" : ", initial state", ", L=", s.L,
                              ", computed in ", NameOf(options.dtype), " on ", device.name());
  report.cancels_note =
      "a small difference of large parts: the error is relative to these (a gradient: the part that holds "
      "the "
      "normaliser constant; the loss: the root of the sum of squared terms)";
  report.explained_note =
      "still a failure: as large as what rounding q, k, v and dh to bf16 changes, in f64 (this dump is "
      "ill-conditioned)";
  // Against the dump.
  const bool is_bf16 = options.dtype == DType::kBF16;
  const DType dtype = is_bf16 ? DType::kF64 : options.dtype;
  CAROUSEL_ASSIGN_OR_RETURN(const DType stored, DTypeOfDump(dump));
  const CellBounds bounds = BoundsOf(stored == DType::kF64 ? dtype : stored);
  CAROUSEL_ASSIGN_OR_RETURN(const MlstmCellResults run, RunMlstmCell(in, dtype, device));
  MlstmCellResults as_reference = run;
  AddStabiliserPathOfCell(in, &as_reference);
  CAROUSEL_ASSIGN_OR_RETURN(const MlstmCellResults frozen, RunFrozen(in, device));
  report.sections.push_back(
      {is_bf16 ? "f64 against the dump" : "",
       Compare(expected, ResultsOfRun(in, as_reference, exponent), ScalesOf(in, run, frozen), bounds)});
  if (!is_bf16) return report;

  // bf16 against f64, on equal inputs.
  const MlstmCellInputs rounded = RoundInputs(in);
  CAROUSEL_ASSIGN_OR_RETURN(const MlstmCellResults exact, RunMlstmCell(rounded, DType::kF64, device));
  CAROUSEL_ASSIGN_OR_RETURN(const MlstmCellResults rounded_frozen, RunFrozen(rounded, device));
  CAROUSEL_ASSIGN_OR_RETURN(const MlstmCellResults run_bf16, RunMlstmCell(rounded, DType::kBF16, device));
  const Scales scales = ScalesOf(rounded, exact, rounded_frozen);
  NamedResults exact_results = ResultsOfRun(rounded, exact, exponent);
  for (auto it = exact_results.begin(); it != exact_results.end();) {
    it = expected.count(it->first) ? std::next(it) : exact_results.erase(it);
  }
  std::vector<Comparison> rows =
      Compare(exact_results, ResultsOfRun(rounded, run_bf16, exponent), scales, BoundsOf(DType::kBF16));
  ExplainFailures(
      InputRounding(exact_results, ResultsOfRun(in, run, exponent), scales, BoundsOf(DType::kBF16)),
      /*factor=*/1, /*cap=*/1e3, &rows);
  report.sections.push_back({"bf16 against f64 on the same bf16 inputs", std::move(rows)});
  return report;
}
}  // namespace carousel
