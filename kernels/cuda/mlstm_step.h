// The generation step of the mLSTM cell, one token per sequence, and inner products of states.
#pragma once
#include "kernels/cuda/context.h"
#include "kernels/cuda/mlstm_gates.h"

namespace carousel::CAROUSEL_DEVICE_NS {

// One token of every pair: C' = f C + g k v^T, n' = f n + g k, h = C'^T s q / (max(|s n'.q|, e^-m) + eps).
template <class T>
struct MlstmStepArgs {
  using W = Wide<T>;
  MlstmGateInputs<W> in;  // num_tokens = 1; NC is not used
  int64_t DHV = 0;
  MlstmRows<const T> q, k, v;
  MlstmRows<T> h;
  MlstmRows<W> denominator, m;
  MlstmScanState<const W> initial;  // null C: zero
  MlstmScanState<W> last;           // null C: not wanted; may be `initial`
  W* last_m = nullptr;              // given if last is; may be in.initial_m
  W* factors = nullptr;             // (B * NH, kMlstmStepFactors) scratch
  W eps = 0;
  bool normalize = true;
};
constexpr int kMlstmStepFactors = 3;
// B * NH > 0.
template <class T>
void LaunchMlstmStep(Context& context, const MlstmStepArgs<T>& args);

// <a.C, b.C> + <a.n, b.n> for every pair, summed in f64; 0 where a.C is null.
template <class W>
struct MlstmStateDotsArgs {
  double* out = nullptr;  // (num_pairs), optional
  W* rounded = nullptr;   // (num_pairs), optional
  MlstmScanState<const W> a, b;
  int64_t num_pairs = 0, DHQK = 0, DHV = 0;
};
template <class W>
void LaunchMlstmStateDots(Context& context, const MlstmStateDotsArgs<W>& args);

}  // namespace carousel::CAROUSEL_DEVICE_NS
