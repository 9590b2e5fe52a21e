// From what a user writes (a RunConfig in text format, plus --set a.b.c=value) to a RunSpec: parsed,
// defaulted, validated as a whole and resolved. Pure functions of their arguments and of the config file.
//
// Errors are InvalidArgument, also for a file that cannot be read. They say where, what, and a valid value:
//   demo.textproto:14:3: model has no field "num_hed"; did you mean "num_heads"?
//   --set schedule.kind=COSIN: schedule.kind has no value "COSIN"; did you mean COSINE? (CONSTANT, COSINE,
//   ...) demo.textproto:5:3: model.num_heads=3 does not divide both the query-key width 128 and ...; use 2 or
//   4
// Everything that is wrong is reported at once.
#pragma once
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "configs/run_spec.h"

namespace carousel {

// What the command line may put above the file. Each given value wins over the file; `sets` are applied in
// order, then the others.
struct RunOverrides {
  // "path=value". The path names fields with dots; an element of a repeated field is named by its index,
  // data.train[1].weight=2, where an index one past the end appends; without an index the first element is
  // meant (and made if there is none). The value is written as in the file; quotes around a string may be
  // left out. A list of numbers is set as a whole, model.slstm_at=[1, 3] or model.slstm_at=1,3, or by
  // element, model.slstm_at[0]=1. An empty value ("model.ffn_dim=") puts the field back to its default.
  std::vector<std::string> sets = {};
  std::string run_dir = {};   // empty: not given
  bool for_training = false;  // also require what training needs and a plan does not: data.train, and
                              // data.validation if evaluation is on. Files are not opened.
};

// Reads, applies, validates and resolves.
absl::StatusOr<RunSpec> LoadRun(const std::string& config_path, const RunOverrides& overrides);
// The same from text. `name` stands for the file name in messages.
absl::StatusOr<RunSpec> LoadRunFromText(const std::string& text, const std::string& name,
                                        const RunOverrides& overrides);
}  // namespace carousel
