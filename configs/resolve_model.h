// The model section of a config: which of its fields the described model uses, their defaults by family, and
// the ModelSpec they stand for.
#pragma once
#include <map>
#include <string>

#include "configs/run.pb.h"
#include "core/model/spec.h"

namespace carousel {

// Field path -> what a reader of the resolved text should know about the value.
using FieldNotes = std::map<std::string, std::string>;

// nearest integer of embedding_dim * factor, or -1 if the product is not one (to within 1e-3).
int64_t WidthOf(int64_t embedding_dim, double factor);

// Which mixers occur.
struct MixersUsed {
  bool mlstm = true, slstm = false;
};
MixersUsed MixersOf(const config::ModelConfig& model);

// Why the described model has no use for a field.
struct UnusedField {
  std::string reason;  // "with model.family=XLSTM_PAPER"
  std::string fix;     // what to do about a value that was given: "leave it out, or ..."
};
// Field name -> why; fields that are used are not in it. Only what was given counts, so the result is the
// same before and after ResolveModel.
std::map<std::string, UnusedField> UnusedModelFields(const config::ModelConfig& model);

// Completes *model, which is `given` with the schema's defaults: sets derived and family-dependent defaults
// as far as their sources are known, and takes defaults away that the model has no use for. Given fields stay
// as they are. Where a given width says something else than the factor that it could be made from, that
// factor's default goes. num_ids: of the tokenizer, 0 if there is none.
void ResolveModel(const config::ModelConfig& given, int64_t num_ids, config::ModelConfig* model);
// Notes on a resolved model section, under "model.".
void AddModelNotes(const config::ModelConfig& model, int64_t num_ids, FieldNotes* notes);
// REQUIRES: resolved and valid. What the model does not use has the spec's own default (gate_soft_cap: 0),
// and without mLSTM blocks qk_dim = v_dim = embedding_dim.
ModelSpec ToModelSpec(const config::ModelConfig& model);
}  // namespace carousel
