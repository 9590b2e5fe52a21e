// Opens "a model", however it is stored: a run directory, one checkpoint in it, a Hugging Face directory, or
// a directory of the Python package xlstm, of which there are two kinds.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "checkpoints/checkpoint.h"
#include "checkpoints/hf_config.h"
#include "checkpoints/weight_source.h"
#include "configs/run_spec.h"
#include "core/device.h"
#include "core/model/bound_model.h"

namespace carousel {

// What a model's files say about its training; 0 and false where they say nothing.
struct TrainingHints {
  int64_t sequence_length = 0;
  bool decay_embedding = false;
};

struct ModelSource {
  enum class Kind { kRun, kHuggingFace, kNxai, kPackage };
  Kind kind = Kind::kRun;
  std::string path;         // what holds the weights: the checkpoint or the directory
  std::string description;  // one line for people: "run runs/demo, checkpoint of step 200"
  ModelSpec spec;
  SpecialTokens tokens;
  // OK: text is bytes (core/text/tokenizer.h). Otherwise why this version cannot read or write its text.
  absl::Status text_is_bytes;
  TrainingHints hints;
  std::unique_ptr<WeightSource> weights;
  // kRun only:
  std::string run_dir;
  RunSpec run;  // its config
  CheckpointInfo checkpoint;
};

// `path`: a run directory (its newest checkpoint is taken), a checkpoint, a Hugging Face directory, or a
// directory of the package xlstm: with a config.json of xLSTMLMModel (checkpoints/xlstm_package_import.h) or
// a config.yaml of xLSTMLarge (checkpoints/hf_import.h). A config.json goes before a config.yaml. NotFound if
// there is no such model, with what was looked for.
absl::StatusOr<ModelSource> OpenModel(const std::string& path);

// Sets every weight of `model` from `weights`, tensor by tensor. All parameters must be there with equal
// shapes; those that are not are named.
absl::Status LoadWeights(const WeightSource& weights, BoundModel& model);

// A model on `device` with the weights of `source`, bound for forward passes of B sequences of T tokens.
// ResourceExhausted if the device has not enough memory. `device` must outlive the result.
absl::StatusOr<std::unique_ptr<BoundModel>> LoadModel(const ModelSource& source, Device& device,
                                                      DType compute, int64_t B, int64_t T);

// Soft-capped logits of one sequence, (T, V) row-major; T as bound or less, ids in [0, vocab_size).
std::vector<float> Logits(BoundModel& model, const std::vector<int32_t>& ids);
}  // namespace carousel
