// Fills every field of a RunConfig, prints it, and turns it into plain structs.
#pragma once
#include <string>

#include "configs/resolve_model.h"
#include "configs/run.pb.h"
#include "configs/run_spec.h"

namespace carousel {

// Number of token ids of a tokenizer; 0 for NONE and TASK.
int64_t TokenizerVocabulary(config::DataConfig::Tokenizer tokenizer);

// Sets every field that was not given: plain defaults of the schema and the derived ones (ResolveModel for
// the model). Given fields stay as they are. Derived fields whose sources are missing stay unset, and so do
// fields that the model has no use for.
void ResolveDefaults(config::RunConfig* config);
// Notes on the fields of a resolved config: how derived values come about. A function of the values alone,
// so that resolving twice gives the same text.
FieldNotes NotesOn(const config::RunConfig& config);
// Text format with every field, notes as comments. Parsing it gives `config` again.
std::string ResolvedText(const config::RunConfig& config, const FieldNotes& notes);
// REQUIRES: resolved and valid. Does not set resolved_text.
RunSpec ToRunSpec(const config::RunConfig& config);
}  // namespace carousel
