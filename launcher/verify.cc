#include "launcher/verify.h"

#include <algorithm>
#include <cmath>
#include <limits>

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

bool DumpReport::ok() const {
  return std::all_of(rows.begin(), rows.end(), [](const Comparison& row) { return row.ok(); });
}

std::string DumpReport::ToText() const {
  size_t width = 6;
  for (const Comparison& row : rows) width = std::max(width, row.name.size() + (row.cancels ? 2 : 0));
  std::string text = title + "\n";
  absl::StrAppendFormat(&text, "%-*s  %12s  %8s\n", static_cast<int>(width), "tensor", "relative L2",
                        "bound");
  bool any_cancels = false;
  int64_t num_failed = 0;
  for (const Comparison& row : rows) {
    any_cancels |= row.cancels;
    num_failed += !row.ok();
    absl::StrAppendFormat(&text, "%-*s  %12.3e  %8.1e  %s\n", static_cast<int>(width),
                          absl::StrCat(row.name, row.cancels ? " *" : ""), row.error, row.bound,
                          row.ok() ? "ok" : "FAIL");
  }
  if (any_cancels) absl::StrAppend(&text, "* ", cancels_note, "\n");
  if (num_failed == 0) {
    absl::StrAppend(&text, "all ", rows.size(), " tensors are within their bounds\n");
  } else {
    absl::StrAppend(&text, num_failed, " of ", rows.size(), " tensors FAIL\n");
  }
  return text;
}

absl::StatusOr<DType> DTypeOfDump(const ReferenceDump& dump) {
  std::string tensor = "q";
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

absl::StatusOr<DumpReport> Verify(const ReferenceDump& dump, const VerifyOptions& options, Device& device) {
  const std::string cell = dump.Field("cell", ""), family = dump.Field("family", "");
  if (!cell.empty() && !family.empty()) {
    return dump.Invalid("the metadata names both a \"cell\" and a \"family\"");
  }
  if (cell == "mlstm") return VerifyMlstmCell(dump, options, device);
  if (cell == "slstm") {
    return dump.Invalid(
        "metadata field \"cell\" is \"slstm\": sLSTM cells are not in this version; \"mlstm\" is");
  }
  if (family == "xlstm_large") {
    return dump.Has("losses") ? VerifyLargeCurve(dump, options, device)
                              : VerifyLargeModel(dump, options, device);
  }
  if (family == "xlstm_v1") {
    return dump.Invalid(
        "metadata field \"family\" is \"xlstm_v1\": the paper's family is not in this version; "
        "\"xlstm_large\" is");
  }
  if (!cell.empty())
    return dump.Invalid(absl::StrCat("metadata field \"cell\" is \"", cell, "\"; it must be mlstm"));
  if (!family.empty()) {
    return dump.Invalid(
        absl::StrCat("metadata field \"family\" is \"", family, "\"; it must be xlstm_large"));
  }
  return dump.Invalid(
      "not a reference dump: the metadata has neither \"cell\" (mlstm) nor \"family\" (xlstm_large)");
}
}  // namespace carousel
