// README.md of an exported model: what it is, where it came from, how to use it.
#pragma once
#include <string>

#include "core/base/dtype.h"
#include "launcher/model_source.h"

namespace carousel {

// `name`: the title. Losses are taken from the run's metrics.jsonl, if it is there. The licence is left to
// the user.
std::string ModelCard(const ModelSource& source, const std::string& name, DType dtype);
}  // namespace carousel
