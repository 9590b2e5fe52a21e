// The gradients of the mLSTM cell's gates from the scans' dot products q.dq and k.dk:
//   di_t = k_t.dk_t,   df_pre_t = dF_t sigmoid(-f_pre_t),   dF_t the gradient of the log forget gate
// and, e_t = q_t.dq_t - k_t.dk_t, for tokens a <= t < b of a document, nothing of which lies outside but
// what comes in with a state, the same dF_t in two ways (kernels/cpu/mlstm_reference.h has the first):
//   dF_t = <C_b, dC_b> + <n_b, dn_b> + sum of e over t .. b-1     (dF_b, where a gradient arrives at b)
//        = <C_a, dC_a> + <n_a, dn_a> - sum of e over a .. t-1     (dF_a, where a state arrives at a)
// They differ by rounding alone, each by that of its own terms: where operands are bf16 that is the whole
// error of df_pre. So both are taken, each with a weight that is the other's sum of squared terms, as for
// independent errors in proportion to the terms. In the middle between a and b that halves the error, and
// where one of the states is large it is not in the way of the other end: a large last gradient, say, after a
// gate that is nearly closed.
#pragma once
#include "kernels/cuda/mlstm_gates.h"

namespace carousel::CAROUSEL_DEVICE_NS {

// A sum of e and of its terms' squares over tokens in one direction, up to the border of a document.
struct MlstmDotsRun {
  double e, squares;
  bool stops;
};

// di_pre and df_pre. Sums over tokens are made in f64.
template <class W>
struct MlstmGateGradientArgs {
  MlstmGateInputs<W> in;
  MlstmRows<W> di_pre, df_pre;                   // (N, NH) out
  const W *q_dots = nullptr, *k_dots = nullptr;  // (slices, B * NH, NC * kMlstmChunk): q.dq and k.dk
  int q_slices = 0, k_slices = 0;
  // (B * NH) <C, dC> + <n, dn> of the initial state, null where there is none and the first token forgets
  // nothing; and of the last state, null where no gradient arrives there
  const double *initial_term = nullptr, *final_term = nullptr;
  // MlstmAnchors::dots, optional: the sums over tokens begin anew at every anchor
  const W* anchor_dots = nullptr;
  int anchor_parts = 0;
  MlstmDotsRun* chunk_runs = nullptr;  // (B * NH, NC, 2) scratch
};
template <class W>
void LaunchMlstmGateGradients(Context& context, const MlstmGateGradientArgs<W>& args);

}  // namespace carousel::CAROUSEL_DEVICE_NS
