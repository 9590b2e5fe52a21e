// README.md of an exported model: what it is, where it came from, how to use it.
#pragma once
#include <string>

#include "checkpoints/xlstm_package_names.h"
#include "core/base/dtype.h"
#include "launcher/models/model_source.h"

namespace carousel {

// Which program the files beside the card are for.
//   kTransformers  Hugging Face Transformers
//   kNxai          xLSTMLarge of the Python package xlstm
//   kPackage       xLSTMLMModel of that package
enum class ExportFormat { kTransformers, kNxai, kPackage };

struct ModelCardOptions {
  std::string name;  // the title
  ExportFormat format = ExportFormat::kTransformers;
  DType dtype = DType::kF32;                            // of the stored weights
  SlstmBackend slstm_backend = SlstmBackend::kVanilla;  // kPackage only
  int64_t context_length = 0;                           // kPackage only
};

// Losses are taken from the run's metrics.jsonl, if it is there. The licence is left to the user.
std::string ModelCard(const ModelSource& source, const ModelCardOptions& options);
}  // namespace carousel
