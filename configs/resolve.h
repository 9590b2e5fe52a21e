// Fills every field of a RunConfig, prints it, and turns it into plain structs.
#pragma once
#include <map>
#include <string>

#include "configs/run.pb.h"
#include "configs/run_spec.h"

namespace carousel {

// Field path -> what a reader of the resolved text should know about the value.
using FieldNotes = std::map<std::string, std::string>;

// Number of token ids of a tokenizer; 0 for NONE.
int64_t TokenizerVocabulary(config::DataConfig::Tokenizer tokenizer);
// nearest integer of embedding_dim * factor, or -1 if the product is not one (to within 1e-3).
int64_t WidthOf(int64_t embedding_dim, double factor);

// Sets every field that was not given: plain defaults of the schema and the derived ones. Given fields stay
// as they are. model.ffn_proj_factor stays unset where a given model.ffn_dim says something else. Derived
// fields whose sources are missing stay unset.
void ResolveDefaults(config::RunConfig* config);
// Notes on the fields of a resolved config: how derived values come about. A function of the values alone,
// so that resolving twice gives the same text.
FieldNotes NotesOn(const config::RunConfig& config);
// Text format with every field, notes as comments. Parsing it gives `config` again.
std::string ResolvedText(const config::RunConfig& config, const FieldNotes& notes);
// REQUIRES: resolved and valid. Does not set resolved_text.
RunSpec ToRunSpec(const config::RunConfig& config);
}  // namespace carousel
