// What models are possible: relations between the fields of the model section.
#pragma once
#include <set>
#include <string>

#include "configs/problems.h"
#include "configs/run.pb.h"

namespace carousel {

// Widest layer inside a block. Far above what a machine can hold; products of sizes stay within 64 bits.
constexpr int64_t kMaxLayerDim = 1 << 22;

// Adds a problem for every field that the described model has no use for, for blocks that do not exist, and
// for sizes that do not fit each other. Relations of fields in `wrong` ("model.num_heads") are passed over,
// and so are those of fields that are unset. REQUIRES: fields in `wrong` were cleared, ResolveModel ran.
void CheckModel(const config::ModelConfig& model, const Origins& origins, const std::set<std::string>& wrong,
                Problems* problems);

// Upper bound of the bytes of weights, optimizer, activations and states when `tokens` tokens in `sequences`
// sequences go through the model at a time. REQUIRES: resolved.
double EstimateBytes(const config::ModelConfig& model, double tokens, double sequences);
}  // namespace carousel
