// `carousel verify`: runs the computation of a reference dump on a device and compares every tensor.
#pragma once
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/device.h"
#include "launcher/models/reference_dump.h"

namespace carousel {

// One compared tensor. error = ||computed - expected|| / scale, in doubles; scale is ||expected||, unless
// that is next to nothing beside the parts whose difference the tensor is (`cancels`): then it is their size.
struct Comparison {
  std::string name;
  double error = 0;  // not finite if anything computed is not
  double bound = 0;
  bool cancels = false;
  bool explained = false;       // it fails, for the likely reason in explained_note
  std::string allows_for = {};  // what the bound allows for: "f64 rounding"
  // How far the numbers of training here are from the computed ones because of eps, relative as the error is;
  // for information, no part of the verdict.
  std::optional<double> eps_effect = {};
  bool ok() const { return error <= bound; }
};

struct DumpReport {
  std::string title;  // what was computed, one line
  struct Section {
    std::string heading;  // what is compared with what; may be empty
    std::vector<Comparison> rows;
  };
  std::vector<Section> sections;
  std::string cancels_note;    // what the mark of rows with `cancels` means
  std::string explained_note;  // what the mark of rows with `explained` means
  bool ok() const;
  std::string ToText() const;
  // For tests: the row of that name in the last section that has it; null if there is none.
  const Comparison* Find(const std::string& name) const;
};

// ||a - b|| / max(||b||, floor); 0 if both are exactly zero, infinite if anything is not finite or sizes
// differ.
double RelativeError(const std::vector<double>& a, const std::vector<double>& b, double floor = 0);
double Norm(const std::vector<double>& a);

// Marks rows that fail by no more than `factor` times what `resolution` says of a row of that name (what the
// arithmetic can resolve in this dump) and by less than `cap` times the bound. They remain failures: bounds
// never move.
void ExplainFailures(const std::map<std::string, double>& resolution, double factor, double cap,
                     std::vector<Comparison>* rows);

struct VerifyOptions {
  DType dtype = DType::kF64;
  int64_t chunk_length = 0;  // 0: as the dump says, or 64
};

// The dtype that a dump was computed in (that of "q" or of its parameters): f64, f32, or bf16.
absl::StatusOr<DType> DTypeOfDump(const ReferenceDump& dump);
// What to compute a dump in if nothing else is asked for: its own dtype; f64 for curves, where two runs in
// f32 drift apart and f64 leaves only the reference's own rounding.
absl::StatusOr<DType> DefaultDType(const ReferenceDump& dump);

// Dispatches on the metadata: cell "mlstm" or "slstm", family "xlstm_large" or "xlstm_v1", with "losses" a
// curve. A dump that cannot be computed here is an InvalidArgument naming the field or the tensor. Bounds
// depend on the kind of dump and on the dtypes alone, never on what was computed.
absl::StatusOr<DumpReport> Verify(const ReferenceDump& dump, const VerifyOptions& options, Device& device);

// Its parts.
absl::StatusOr<DumpReport> VerifyMlstmCell(const ReferenceDump& dump, const VerifyOptions& options,
                                           Device& device);
absl::StatusOr<DumpReport> VerifySlstmCell(const ReferenceDump& dump, const VerifyOptions& options,
                                           Device& device);
absl::StatusOr<DumpReport> VerifyModel(const ReferenceDump& dump, const VerifyOptions& options,
                                       Device& device);
absl::StatusOr<DumpReport> VerifyCurve(const ReferenceDump& dump, const VerifyOptions& options,
                                       Device& device);
}  // namespace carousel
