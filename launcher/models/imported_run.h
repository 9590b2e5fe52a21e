// A run directory made from weights: a checkpoint of step 0, from which training goes on.
#pragma once
#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/statusor.h"
#include "checkpoints/weight_source.h"
#include "configs/run_spec.h"
#include "launcher/models/model_source.h"

namespace carousel {

// A config for continuing from a model: its model section, text that is bytes or ids only, what the hints
// say, all else default.
std::string ConfigForModel(const ModelSpec& spec, bool text_is_bytes, const TrainingHints& hints = {});

// InvalidArgument naming every field of run.model that differs from `spec` and changes what the model
// computes; how it is initialised and trained is the run's choice.
absl::Status CheckSameModel(const ModelSpec& spec, const RunSpec& run);

// Bytes of one part of the work: "import", "verify", "compare".
using ImportProgress = std::function<void(const char* part, int64_t done_bytes, int64_t total_bytes)>;

// Writes run.run_dir: config.textproto, build.txt (build_line) and a checkpoint of step 0 with the weights
// and zero moments; then reads every byte of the checkpoint back, checks it and compares its digests with
// those of `weights`. Returns the checkpoint's directory. AlreadyExists if the run directory holds a run,
// with checkpoints or without. After an error no directory is left that was not there before and has no
// checkpoint. Everything passes through memory in pieces: it does not grow with the model. progress may be
// null.
absl::StatusOr<std::string> WriteImportedRun(const WeightSource& weights, const RunSpec& run,
                                             const std::string& build_line,
                                             const ImportProgress& progress = {});
}  // namespace carousel
