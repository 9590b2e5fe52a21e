// AdamW on this rank's shards: global norm, clip, update. Gradients are sums over target tokens; they are
// divided once.
#pragma once
#include "core/base/exact_sum.h"
#include "core/model/param_store.h"

namespace carousel {

struct AdamWSpec {
  double beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0.1;
  double clip_norm = 1.0;  // <= 0: no clipping. scale = clip / max(clip, norm)
};

// sum += squared norm of this rank's gradient shards, exactly (sum: (kExactSumElems) i64 on the device). Over
// all ranks of a mesh every parameter counts once: those that each rank of the tensor axis has whole are left
// to its first rank.
void AddSquaredNorm(ParamStore& params, Ops& ops, Tensor sum);
// One update of this rank's shards of the group's master, m, v and weights. step counts from 1.
void UpdateShards(ParamStore& params, Ops& ops, int group, const AdamWSpec& spec, double lr,
                  double grad_scale, int64_t step);
// Of all groups.
void UpdateShards(ParamStore& params, Ops& ops, const AdamWSpec& spec, double lr, double grad_scale,
                  int64_t step);
}  // namespace carousel
