// Dumps of the sLSTM cell. What is compared with what:
//   f64   the results with those of the dump, with the bounds of a double implementation
//   f32   the same; inputs are rounded to f32
//   bf16  first f64 as above; then bf16 with f64 on equal inputs (R, dy rounded to bf16, the rest to f32)
// No result depends on the stabiliser m but the states themselves: c and n are compared relative to the m of
// the dump.
#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "checkpoints/hf_names.h"
#include "core/base/status_macros.h"
#include "launcher/models/slstm_cell_run.h"
#include "launcher/models/verify.h"

namespace carousel {
namespace {
constexpr int64_t kMaxDim = int64_t{1} << 31;
constexpr const char* kLayout =
    "wx [T,B,4,H*dh] gate order i,f,z,o; R [H,4*dh,dh]; b [4*H*dh]; states order y,c,n,m";

struct CellBounds {
  double output, gradient;
  const char* allows_for;
};
CellBounds BoundsOf(DType dtype) {
  switch (dtype) {
    case DType::kF64:
      return {.output = 1e-12, .gradient = 1e-12, .allows_for = "f64 rounding"};
    case DType::kF32:
      // 2^-24 per rounding, enlarged by the recurrence over T tokens; golden dumps show 1e-7 to 4e-7.
      return {.output = 1e-5, .gradient = 1e-5, .allows_for = "f32 rounding"};
    default:
      // 2^-9 where y, R, dy and dwx are stored; y returns through R to every later token. More than twice
      // what correct kernels show, as in the mLSTM: y 1.8e-3, gradients 3.3e-3.
      return {.output = 8e-3, .gradient = 8e-3, .allows_for = "bf16 rounding"};
  }
}

absl::Status CheckMetadata(const ReferenceDump& dump) {
  static const auto& known =
      *new std::set<std::string>{"cell", "layout", "shape", "note", "reference", "format", "seed"};
  for (const auto& [name, value] : dump.metadata()) {
    if (known.count(name) == 0) {
      return dump.Invalid(absl::StrCat("metadata field \"", name, "\" is \"", value,
                                       "\"; this field is not known and cannot be honoured"));
    }
  }
  const auto without_spaces = [](std::string text) {
    std::erase(text, ' ');
    return text;
  };
  const std::string layout = dump.Field("layout", kLayout);
  if (without_spaces(layout) != without_spaces(kLayout)) {
    return dump.Invalid(
        absl::StrCat("metadata field \"layout\" is \"", layout, "\"; it must be \"", kLayout, "\""));
  }
  static const auto& tensors = *new std::set<std::string>{
      "wx", "R", "b", "s0", "y", "last", "dy", "loss", "grad.wx", "grad.R", "grad.b", "grad.s0"};
  for (const SafetensorsEntry& entry : dump.tensors()) {
    if (tensors.count(entry.name) == 0) {
      return dump.Invalid(absl::StrCat("tensor \"", entry.name, "\" does not belong to an sLSTM dump"));
    }
  }
  return absl::OkStatus();
}

// B, T, NH, D from wx and R, checked against the metadata's shape (B, H, T, dh).
absl::Status ReadCellShape(const ReferenceDump& dump, SlstmShape* s) {
  CAROUSEL_ASSIGN_OR_RETURN(const std::vector<int64_t> wx, dump.Shape("wx"));
  CAROUSEL_ASSIGN_OR_RETURN(const std::vector<int64_t> r, dump.Shape("R"));
  if (wx.size() != 3) {
    return dump.Invalid(
        absl::StrCat("tensor \"wx\" has shape ", ShapeText(wx), "; it must be (T, B, 4*H*dh)"));
  }
  if (r.size() != 3 || r[2] < 1 || r[2] > kMaxDim || r[1] != 4 * r[2]) {
    return dump.Invalid(absl::StrCat("tensor \"R\" has shape ", ShapeText(r), "; it must be (H, 4*dh, dh)"));
  }
  for (const int64_t dim : {wx[0], wx[1], wx[2], r[0]}) {
    if (dim < 1 || dim > kMaxDim) {
      return dump.Invalid(
          absl::StrCat("dims must be at least 1; wx is ", ShapeText(wx), ", R is ", ShapeText(r)));
    }
  }
  if (wx[2] % 4 != 0 || wx[2] / 4 / r[0] != r[2] || wx[2] / 4 % r[0] != 0) {
    return dump.Invalid(absl::StrCat("tensor \"wx\" has shape ", ShapeText(wx), " and \"R\" ", ShapeText(r),
                                     "; they must be (T, B, 4*H*dh) and (H, 4*dh, dh)"));
  }
  *s = {.B = wx[1], .T = wx[0], .NH = r[0], .D = r[2]};
  const std::string text = dump.Field("shape", "");
  if (text.empty()) return absl::OkStatus();
  std::vector<int64_t> dims;
  for (absl::string_view part : absl::StrSplit(text, absl::ByAnyChar("()[], "), absl::SkipEmpty())) {
    int64_t dim;
    if (!absl::SimpleAtoi(part, &dim)) dim = -1;
    dims.push_back(dim);
  }
  if (dims != std::vector<int64_t>{s->B, s->NH, s->T, s->D}) {
    return dump.Invalid(absl::StrCat("metadata field \"shape\" is \"", text, "\"; the tensors are (", s->B,
                                     ", ", s->NH, ", ", s->T, ", ", s->D, ")"));
  }
  return absl::OkStatus();
}

absl::Status ReadCellInputs(const ReferenceDump& dump, SlstmCellInputs* in) {
  CAROUSEL_RETURN_IF_ERROR(ReadCellShape(dump, &in->shape));
  const SlstmShape& s = in->shape;
  const int64_t W = s.NH * s.D;
  CAROUSEL_ASSIGN_OR_RETURN(in->wx, dump.Doubles("wx", {s.T, s.B, 4 * W}));
  CAROUSEL_ASSIGN_OR_RETURN(in->r, dump.Doubles("R", {s.NH, 4 * s.D, s.D}));
  CAROUSEL_ASSIGN_OR_RETURN(in->b, dump.Doubles("b", {4 * W}));
  CAROUSEL_ASSIGN_OR_RETURN(in->dy, dump.Doubles("dy", {s.T, s.B, W}));
  if (dump.Has("s0")) {
    CAROUSEL_ASSIGN_OR_RETURN(in->s0, dump.Doubles("s0", {4, s.B, W}));
  } else if (dump.Has("grad.s0")) {
    return dump.Invalid("tensor \"s0\" is missing, \"grad.s0\" is there");
  }
  return absl::OkStatus();
}

// What is compared: results by the dump's names.
using NamedResults = std::map<std::string, std::vector<double>>;

std::vector<double> Part(const std::vector<double>& state, int part) {
  const auto count = static_cast<std::ptrdiff_t>(state.size() / 4);
  return {state.begin() + part * count, state.begin() + (part + 1) * count};
}

absl::StatusOr<NamedResults> ResultsOfDump(const ReferenceDump& dump, const SlstmCellInputs& in) {
  const SlstmShape& s = in.shape;
  const int64_t W = s.NH * s.D;
  NamedResults r;
  const auto read = [&](const std::string& name, const std::vector<int64_t>& shape) -> absl::Status {
    CAROUSEL_ASSIGN_OR_RETURN(r[name], dump.Doubles(name, shape));
    return absl::OkStatus();
  };
  CAROUSEL_RETURN_IF_ERROR(read("y", {s.T, s.B, W}));
  if (dump.Has("last")) {
    CAROUSEL_RETURN_IF_ERROR(read("last", {4, s.B, W}));
  }
  if (dump.Has("loss")) {
    CAROUSEL_ASSIGN_OR_RETURN(const double loss, dump.Scalar("loss"));
    r["loss"] = {loss};
  }
  CAROUSEL_RETURN_IF_ERROR(read("grad.wx", {s.T, s.B, 4 * W}));
  CAROUSEL_RETURN_IF_ERROR(read("grad.R", {s.NH, 4 * s.D, s.D}));
  CAROUSEL_RETURN_IF_ERROR(read("grad.b", {4 * W}));
  // The gradient of a start state of zeros is not defined (n = 0 is a mark): dumps need not have it.
  if (dump.Has("grad.s0")) {
    CAROUSEL_RETURN_IF_ERROR(read("grad.s0", {4, s.B, W}));
  }
  return r;
}

NamedResults ResultsOfRun(const SlstmCellInputs& in, const SlstmCellResults& r) {
  double loss = 0;
  for (size_t j = 0; j < r.y.size(); ++j) loss += r.y[j] * in.dy[j];
  return {{"y", r.y},       {"last", r.last}, {"loss", {loss}},  {"grad.wx", r.dwx},
          {"grad.R", r.dr}, {"grad.b", r.db}, {"grad.s0", r.ds0}};
}

// One row per result of `expected`, states and their gradients part by part. loss_scale: the root of the sum
// of squared terms of the loss.
std::vector<Comparison> Compare(const NamedResults& expected, const NamedResults& computed, double loss_scale,
                                const CellBounds& bounds) {
  std::vector<Comparison> rows;
  const auto add = [&](const std::string& name, const std::vector<double>& ours,
                       const std::vector<double>& theirs, double bound, double floor) {
    rows.push_back({.name = name,
                    .error = RelativeError(ours, theirs, floor),
                    .bound = bound,
                    .cancels = Norm(theirs) < floor,
                    .allows_for = bounds.allows_for});
  };
  const char* const parts[] = {"y", "c", "n", "m"};
  for (const char* name : {"y", "last", "loss", "grad.wx", "grad.R", "grad.b", "grad.s0"}) {
    const auto found = expected.find(name);
    if (found == expected.end()) continue;
    const std::vector<double>&ours = computed.at(name), &theirs = found->second;
    const bool is_gradient = name[0] == 'g';
    const double bound = is_gradient ? bounds.gradient : bounds.output;
    if (name == std::string("last")) {
      const std::vector<double> our_m = Part(ours, 3), their_m = Part(theirs, 3);
      for (int part = 0; part < 4; ++part) {
        std::vector<double> values = Part(ours, part);
        const bool scaled = part == 1 || part == 2;
        for (size_t j = 0; scaled && j < values.size(); ++j) values[j] *= std::exp(our_m[j] - their_m[j]);
        add(absl::StrCat("last.", parts[part]), values, Part(theirs, part), bound, 0);
      }
    } else if (name == std::string("grad.s0")) {
      for (int part = 0; part < 4; ++part) {
        add(absl::StrCat("grad.s0.", parts[part]), Part(ours, part), Part(theirs, part), bound, 0);
      }
    } else {
      add(name, ours, theirs, bound, name == std::string("loss") ? loss_scale : 0);
    }
  }
  return rows;
}

double LossScale(const SlstmCellInputs& in, const std::vector<double>& y) {
  std::vector<double> terms(y.size());
  for (size_t j = 0; j < y.size(); ++j) terms[j] = y[j] * in.dy[j];
  return Norm(terms);
}

// The inputs as a bf16 model would hand them over.
SlstmCellInputs RoundInputs(SlstmCellInputs in) {
  for (std::vector<double>* x : {&in.r, &in.dy}) {
    for (double& value : *x) {
      value = static_cast<double>(static_cast<float>(bfloat16(static_cast<float>(value))));
    }
  }
  for (std::vector<double>* x : {&in.wx, &in.b, &in.s0}) {
    for (double& value : *x) value = static_cast<double>(static_cast<float>(value));
  }
  return in;
}

// By row, how far changing the inputs moves the results.
absl::StatusOr<std::map<std::string, double>> Sensitivity(const SlstmCellInputs& in,
                                                          const SlstmCellInputs& changed,
                                                          const NamedResults& expected,
                                                          const CellBounds& bounds, Device& device) {
  CAROUSEL_ASSIGN_OR_RETURN(const SlstmCellResults a, RunSlstmCell(in, DType::kF64, device));
  CAROUSEL_ASSIGN_OR_RETURN(const SlstmCellResults b, RunSlstmCell(changed, DType::kF64, device));
  NamedResults from = ResultsOfRun(in, a);
  std::erase_if(from, [&](const auto& entry) { return expected.count(entry.first) == 0; });
  std::map<std::string, double> moved;
  for (const Comparison& row : Compare(from, ResultsOfRun(changed, b), LossScale(in, a.y), bounds)) {
    moved[row.name] = row.error;
  }
  return moved;
}

// The inputs with wx changed as rounding to `dtype` would.
SlstmCellInputs Perturbed(SlstmCellInputs in, DType dtype) {
  for (size_t j = 0; j < in.wx.size(); ++j) {
    in.wx[j] *= 1 + (j * j % 7 < 3 ? 1 : -1) * (dtype == DType::kF64 ? 0x1p-52 : 0x1p-24);
  }
  return in;
}
}  // namespace

absl::StatusOr<DumpReport> VerifySlstmCell(const ReferenceDump& dump, const VerifyOptions& options,
                                           Device& device) {
  constexpr double kFactor = 16, kCap = 1e4;  // of ExplainFailures
  CAROUSEL_RETURN_IF_ERROR(CheckMetadata(dump));
  SlstmCellInputs in;
  CAROUSEL_RETURN_IF_ERROR(ReadCellInputs(dump, &in));
  CAROUSEL_ASSIGN_OR_RETURN(const NamedResults expected, ResultsOfDump(dump, in));
  const SlstmShape& s = in.shape;
  const bool is_bf16 = options.dtype == DType::kBF16;
  DumpReport report;
  report.title = absl::StrCat(dump.path(), ": sLSTM cell, B=", s.B, " NH=", s.NH, " T=", s.T, " D=", s.D,
                              in.s0.empty() || Norm(in.s0) == 0 ? "" : ", initial state", ", computed in ",
                              NameOf(options.dtype), " on ", device.name());
  report.cancels_note = "a small difference of large parts: relative to the root of the sum of squared terms";
  report.explained_note =
      absl::StrCat("still a failure, but within ", kFactor,
                   " times what rounding the inputs changes, in f64: this dump amplifies rounding, also that "
                   "of the reference");
  // Against the dump.
  const DType dtype = is_bf16 ? DType::kF64 : options.dtype;
  CAROUSEL_ASSIGN_OR_RETURN(const DType stored, DTypeOfDump(dump));
  const DType precision = stored == DType::kF64 ? dtype : stored;
  const CellBounds bounds = BoundsOf(precision);
  CAROUSEL_ASSIGN_OR_RETURN(const SlstmCellResults run, RunSlstmCell(in, dtype, device));
  std::vector<Comparison> rows = Compare(expected, ResultsOfRun(in, run), LossScale(in, run.y), bounds);
  CAROUSEL_ASSIGN_OR_RETURN(const auto moved,
                            Sensitivity(in, Perturbed(in, precision), expected, bounds, device));
  ExplainFailures(moved, kFactor, kCap, &rows);
  report.sections.push_back({is_bf16 ? "f64 against the dump" : "", std::move(rows)});
  if (!is_bf16) return report;

  // bf16 against f64, on equal inputs.
  const SlstmCellInputs rounded = RoundInputs(in);
  const CellBounds coarse = BoundsOf(DType::kBF16);
  CAROUSEL_ASSIGN_OR_RETURN(const SlstmCellResults exact, RunSlstmCell(rounded, DType::kF64, device));
  CAROUSEL_ASSIGN_OR_RETURN(const SlstmCellResults run_bf16, RunSlstmCell(rounded, DType::kBF16, device));
  NamedResults exact_results = ResultsOfRun(rounded, exact);
  std::erase_if(exact_results, [&](const auto& entry) { return expected.count(entry.first) == 0; });
  rows = Compare(exact_results, ResultsOfRun(rounded, run_bf16), LossScale(rounded, exact.y), coarse);
  CAROUSEL_ASSIGN_OR_RETURN(const auto moved_bf16, Sensitivity(in, rounded, expected, coarse, device));
  ExplainFailures(moved_bf16, kFactor, kCap, &rows);
  report.sections.push_back({"bf16 against f64 on the same bf16 inputs", std::move(rows)});
  return report;
}
}  // namespace carousel
