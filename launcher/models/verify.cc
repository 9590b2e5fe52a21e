#include "launcher/models/verify.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "core/base/status_macros.h"

namespace carousel {

double Norm(const std::vector<double>& a) {
  double largest = 0;
  for (const double x : a) largest = std::max(largest, std::abs(x));
  if (largest == 0 || !std::isfinite(largest)) return largest;
  double sum = 0;  // scaled, so that squares neither overflow nor vanish
  for (const double x : a) sum += (x / largest) * (x / largest);
  return largest * std::sqrt(sum);
}

double RelativeError(const std::vector<double>& a, const std::vector<double>& b, double floor) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  if (a.size() != b.size()) return kInfinity;
  std::vector<double> difference(a.size());
  for (size_t i = 0; i < a.size(); ++i) {
    difference[i] = a[i] - b[i];
    if (!std::isfinite(difference[i])) return kInfinity;
  }
  const double error = Norm(difference), scale = std::max(Norm(b), floor);
  if (error == 0) return 0;
  return scale > 0 ? error / scale : kInfinity;
}

namespace {
std::string Marks(const Comparison& row) {
  return !row.cancels && !row.explained ? ""
                                        : absl::StrCat(" ", row.cancels ? "*" : "", row.explained ? "+" : "");
}
}  // namespace

void ExplainFailures(const std::map<std::string, double>& resolution, double factor, double cap,
                     std::vector<Comparison>* rows) {
  for (Comparison& row : *rows) {
    const auto found = resolution.find(row.name);
    if (row.ok() || found == resolution.end()) continue;
    row.explained = row.error <= std::min(factor * found->second, cap * row.bound);
  }
}

bool DumpReport::ok() const {
  for (const Section& section : sections) {
    for (const Comparison& row : section.rows) {
      if (!row.ok()) return false;
    }
  }
  return true;
}

const Comparison* DumpReport::Find(const std::string& name) const {
  const Comparison* found = nullptr;
  for (const Section& section : sections) {
    for (const Comparison& row : section.rows) {
      if (row.name == name) found = &row;
    }
  }
  return found;
}

namespace {
// The table of one section: names in a column of `width`.
std::string SectionText(const DumpReport::Section& section, int width) {
  std::string text = section.heading.empty() ? "" : section.heading + ":\n";
  size_t reason_width = 0;
  bool has_effect = false;
  for (const Comparison& row : section.rows) {
    reason_width = std::max(reason_width, row.allows_for.size());
    has_effect |= row.eps_effect.has_value();
  }
  if (reason_width > 0) reason_width = std::max(reason_width, std::string("allows for").size());
  absl::StrAppendFormat(&text, "%-*s  %12s  %8s        ", width, "tensor", "relative L2", "bound");
  absl::StrAppendFormat(&text, "%-*s", static_cast<int>(reason_width), reason_width > 0 ? "allows for" : "");
  if (has_effect) absl::StrAppendFormat(&text, "  %10s", "eps effect");
  absl::StripTrailingAsciiWhitespace(&text);
  text += "\n";
  for (const Comparison& row : section.rows) {
    absl::StrAppendFormat(&text, "%-*s  %12.3e  %8.1e  %-4s  ", width, row.name + Marks(row), row.error,
                          row.bound, row.ok() ? "ok" : "FAIL");
    if (reason_width > 0) {
      absl::StrAppendFormat(&text, "%-*s", static_cast<int>(reason_width), row.allows_for);
    }
    if (row.eps_effect.has_value()) absl::StrAppendFormat(&text, "  %10.1e", *row.eps_effect);
    absl::StripTrailingAsciiWhitespace(&text);
    text += "\n";
  }
  return text;
}
}  // namespace

std::string DumpReport::ToText() const {
  size_t width = 6;
  bool any_cancels = false, any_explained = false;
  size_t num_rows = 0, num_failed = 0;
  for (const Section& section : sections) {
    for (const Comparison& row : section.rows) {
      width = std::max(width, row.name.size() + Marks(row).size());
      any_cancels |= row.cancels;
      any_explained |= row.explained;
      num_failed += !row.ok();
      ++num_rows;
    }
  }
  std::string text = title + "\n";
  for (const Section& section : sections) text += SectionText(section, static_cast<int>(width));
  if (any_cancels) absl::StrAppend(&text, "* ", cancels_note, "\n");
  if (any_explained) absl::StrAppend(&text, "+ ", explained_note, "\n");
  if (num_failed == 0) {
    absl::StrAppend(&text, "all ", num_rows, " rows are within their bounds\n");
  } else {
    absl::StrAppend(&text, num_failed, " of ", num_rows, " rows FAIL\n");
  }
  return text;
}

absl::StatusOr<DType> DTypeOfDump(const ReferenceDump& dump) {
  std::string tensor = dump.Has("wx") ? "wx" : "q";
  if (!dump.Has(tensor)) {
    for (const SafetensorsEntry& entry : dump.tensors()) {
      if (entry.name.rfind("param.", 0) == 0) tensor = entry.name;
    }
  }
  CAROUSEL_ASSIGN_OR_RETURN(const SafetensorsDType dtype, dump.DTypeOfTensor(tensor));
  switch (dtype) {
    case SafetensorsDType::kF64:
      return DType::kF64;
    case SafetensorsDType::kF32:
      return DType::kF32;
    case SafetensorsDType::kBF16:
      return DType::kBF16;
    default:
      return dump.Invalid(
          absl::StrCat("tensor \"", tensor, "\" has dtype ", NameOf(dtype), "; dumps are F64, F32 or BF16"));
  }
}

namespace {
enum class DumpKind : uint8_t { kMlstmCell, kSlstmCell, kModel, kCurve };

absl::StatusOr<DumpKind> KindOf(const ReferenceDump& dump) {
  const std::string cell = dump.Field("cell", ""), family = dump.Field("family", "");
  if (!cell.empty() && !family.empty()) {
    return dump.Invalid("the metadata names both a \"cell\" and a \"family\"");
  }
  if (cell == "mlstm") return DumpKind::kMlstmCell;
  if (cell == "slstm") return DumpKind::kSlstmCell;
  if (family == "xlstm_large" || family == "xlstm_v1") {
    return dump.Has("losses") ? DumpKind::kCurve : DumpKind::kModel;
  }
  if (!cell.empty()) {
    return dump.Invalid(absl::StrCat("metadata field \"cell\" is \"", cell, "\"; it must be mlstm or slstm"));
  }
  if (!family.empty()) {
    return dump.Invalid(
        absl::StrCat("metadata field \"family\" is \"", family, "\"; it must be xlstm_large or xlstm_v1"));
  }
  return dump.Invalid(
      "not a reference dump: the metadata has neither \"cell\" (mlstm, slstm) nor \"family\" (xlstm_large, "
      "xlstm_v1)");
}
}  // namespace

absl::StatusOr<DType> DefaultDType(const ReferenceDump& dump) {
  CAROUSEL_ASSIGN_OR_RETURN(const DumpKind kind, KindOf(dump));
  CAROUSEL_ASSIGN_OR_RETURN(const DType dtype, DTypeOfDump(dump));
  return kind == DumpKind::kCurve ? DType::kF64 : dtype;
}

absl::StatusOr<DumpReport> Verify(const ReferenceDump& dump, const VerifyOptions& options, Device& device) {
  CAROUSEL_ASSIGN_OR_RETURN(const DumpKind kind, KindOf(dump));
  switch (kind) {
    case DumpKind::kMlstmCell:
      return VerifyMlstmCell(dump, options, device);
    case DumpKind::kSlstmCell:
      return VerifySlstmCell(dump, options, device);
    case DumpKind::kModel:
      return VerifyModel(dump, options, device);
    case DumpKind::kCurve:
      return VerifyCurve(dump, options, device);
  }
  return absl::InternalError("unknown kind of dump");
}
}  // namespace carousel
