// Scalar functions of the gates of the mLSTM cell, in f64, and where their kernels work.
#pragma once
#include <cmath>

#include "kernels/cuda/mlstm_records.h"
#include "kernels/cuda/reduce.h"

namespace carousel::CAROUSEL_DEVICE_NS {

// log sigmoid(x) without overflow and with full relative accuracy for large x. Not below e^-10000, which
// stands for every smaller forget gate: what was before it has no weight in any sum.
__device__ inline double LogSigmoid(double x) {
  constexpr double kLeast = -1e4;
  const double y = (x < 0 ? x : 0.0) - log1p(exp(x < 0 ? x : -x));
  return y < kLeast ? kLeast : y;
}
// 1 - sigmoid(x): the derivative of log sigmoid(x).
__device__ inline double SigmoidOfMinus(double x) {
  const double e = exp(x > 0 ? -x : x);
  return x > 0 ? e / (1 + e) : 1 / (1 + e);
}
// e^-m, the least denominator in stabilised units; the exponent is limited so that f32 cannot overflow.
__device__ inline double DenominatorFloor(double m) { return exp(-m < 80 ? -m : 80.0); }

// The pair's element of token t in a tensor (N, NH).
template <class T>
__device__ inline T& GateOf(const MlstmRows<T>& x, int64_t num_tokens, int64_t NH, int64_t pair, int64_t t) {
  return x.data[(pair / NH * num_tokens + t) * x.row_stride + pair % NH];
}

// The kernels of the gates: one warp per chunk and pair, a lane per token, in blocks of kMlstmGateWarps.
constexpr int kMlstmGateWarps = 4;
static_assert(kMlstmChunk == kWarpSize);
// Where a warp works: chunk `chunk` of `pair`, beginning at token t0.
struct MlstmChunkPlace {
  int64_t pair, chunk, t0;
  bool exists;
};
__device__ inline MlstmChunkPlace MlstmPlaceOfWarp(int64_t num_pairs, int64_t NC) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kMlstmGateWarps + threadIdx.x / kWarpSize;
  const int64_t pair = index / NC, chunk = index % NC;
  return {pair, chunk, chunk * kMlstmChunk, pair < num_pairs};
}
}  // namespace carousel::CAROUSEL_DEVICE_NS
