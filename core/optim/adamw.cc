#include "core/optim/adamw.h"

#include <algorithm>
#include <vector>

#include "core/base/int_math.h"

namespace carousel {
namespace {

// A stretch of a shard's flat tensors with one setting of weight decay.
struct Run {
  int64_t begin = 0, count = 0;
  bool decay = false;
};

// The stretches of the parameters that `wanted` says yes to.
template <class Wanted>
std::vector<Run> RunsOf(const ParamStore& params, int group, int segment, const Wanted& wanted) {
  std::vector<Run> runs;
  for (const ParamStore::ShardPiece& piece : params.ShardPieces(group, segment)) {
    const Param& param = params.param(piece.param);
    if (!wanted(param)) continue;
    const bool continues = !runs.empty() && runs.back().decay == param.decay &&
                           runs.back().begin + runs.back().count == piece.shard_begin;
    if (continues) {
      runs.back().count += piece.count;
    } else {
      runs.push_back({.begin = piece.shard_begin, .count = piece.count, .decay = param.decay});
    }
  }
  return runs;
}
std::vector<Run> DecayRuns(const ParamStore& params, int group, int segment) {
  return RunsOf(params, group, segment, [](const Param&) { return true; });
}
// Of the parameters that are split over the tensor axis.
std::vector<Run> SplitRuns(const ParamStore& params, int group, int segment) {
  return RunsOf(params, group, segment,
                [](const Param& param) { return param.tensor.kind == Placement::Kind::kShard; });
}
}  // namespace

void AddSquaredNorm(ParamStore& params, Ops& ops, Tensor sum) {
  for (int g = 0; g < params.num_groups(); ++g) {
    for (int s = 0; s < ParamStore::kNumSegments; ++s) {
      if (params.segment(g, s).size == 0) continue;
      const Tensor grad = params.ShardGrad(g, s);
      // A shard begins at a multiple of kSquaredNormBlock of its segment: the blocks are the same for every
      // number of shards.
      if (params.tensor_index() == 0) {
        ops.SquaredNorm({.sum = sum, .x = grad});
        continue;
      }
      // So are those of a run that begins or ends within a block.
      for (const Run& run : SplitRuns(params, g, s)) {
        const int64_t whole = std::min(RoundUp(run.begin, kSquaredNormBlock), run.begin + run.count);
        const int64_t part = whole - run.begin;
        if (part > 0) ops.SquaredNorm({.sum = sum, .x = grad.Rows(run.begin, part)});
        if (part < run.count) ops.SquaredNorm({.sum = sum, .x = grad.Rows(whole, run.count - part)});
      }
    }
  }
}

void UpdateShards(ParamStore& params, Ops& ops, int group, const AdamWSpec& spec, double lr,
                  double grad_scale, int64_t step) {
  for (int s = 0; s < ParamStore::kNumSegments; ++s) {
    const ParamStore::Segment& segment = params.segment(group, s);
    for (const Run& run : DecayRuns(params, group, s)) {
      ops.AdamW({.master = segment.master.Rows(run.begin, run.count),
                 .m = segment.m.Rows(run.begin, run.count),
                 .v = segment.v.Rows(run.begin, run.count),
                 .weight = params.WeightShard(group, s).Rows(run.begin, run.count),
                 .grad = params.ShardGrad(group, s).Rows(run.begin, run.count),
                 .lr = lr,
                 .beta1 = spec.beta1,
                 .beta2 = spec.beta2,
                 .eps = spec.eps,
                 .weight_decay = run.decay ? spec.weight_decay : 0,
                 .grad_scale = grad_scale,
                 .step = step});
    }
  }
}

void UpdateShards(ParamStore& params, Ops& ops, const AdamWSpec& spec, double lr, double grad_scale,
                  int64_t step) {
  for (int g = 0; g < params.num_groups(); ++g) {
    UpdateShards(params, ops, g, spec, lr, grad_scale, step);
  }
}
}  // namespace carousel
