// The mLSTM's part of core/ops.h, whose conventions hold here: the cell, and the cell over segments of a
// sequence that lie on different ranks.
#pragma once
#include "core/tensor.h"

namespace carousel {

// ---- mLSTM cell, chunkwise (arXiv:2405.04517; chunkwise form and gradients: core/README.md)
enum class InputGate : uint8_t { kExponential, kSigmoid };
enum class NormalizerGradient : uint8_t {
  kExact,
  kFrozen
};  // kFrozen: the denominator is a constant in backward

struct MlstmShape {
  int64_t B, T, NH, DHQK, DHV;
  int64_t L;  // chunk length, >= 1; any T is allowed, the last chunk may be short. The result does not depend
              // on L beyond rounding
  InputGate input_gate = InputGate::kExponential;
  bool normalize =
      true;  // kSigmoid only: divide by max(|n.q|, 1) + eps, or do not divide at all. kExponential: true
  double eps = 1e-6;  // added to the denominator, in stabilised units
};
// State (all wide, contiguous): C (B, NH, DHQK, DHV), n (B, NH, DHQK), m (B, NH), stabilised: the true C is C
// * exp(m). kSigmoid has m == 0 throughout.
struct MlstmState {
  Tensor C, n, m;  // all three defined, or none
};
struct MlstmForwardArgs {
  Tensor h;                 // (N, NH*DHV) compute, strided
  Tensor denominator;       // (N, NH) wide out, kept for backward: max(|a_t|, exp(-m_t)) without eps (1 if no
                            // division)
  Tensor m;                 // (N, NH) wide out, kept for backward: the stabiliser m_t
  MlstmState last = {};     // optional out: state after token T-1; may alias `initial`
  Tensor q;                 // (N, NH*DHQK) compute, strided; unscaled: the op multiplies by DHQK^-0.5
  Tensor k;                 // (N, NH*DHQK) compute, strided
  Tensor v;                 // (N, NH*DHV) compute, strided
  Tensor i_pre;             // (N, NH) wide, strided: input gate pre-activation (after the soft cap)
  Tensor f_pre;             // (N, NH) wide, strided: forget gate pre-activation
  Tensor reset = {};        // (N) u8, optional: 1 = a document starts at this token, the state before it is
                            // forgotten exactly (as if a new sequence began: C = 0, n = 0, m = 0)
  MlstmState initial = {};  // optional; default C = 0, n = 0, m = 0
  Tensor workspace;         // u8, at least MlstmWorkspaceBytes(shape, compute)
  MlstmShape shape;
};
struct MlstmBackwardArgs {
  Tensor dq, dk;             // (N, NH*DHQK) compute out, strided
  Tensor dv;                 // (N, NH*DHV) compute out, strided
  Tensor di_pre, df_pre;     // (N, NH) wide out, strided
  MlstmState dinitial = {};  // optional out: gradient of the stored initial C and n, and
                             // m: dm0 = <C0, dC0> + <n0, dn0>
  Tensor dh;                 // (N, NH*DHV) compute, strided
  MlstmState dlast =
      {};  // optional: gradients of the stored last.C and last.n; its m is ignored (may be undefined)
  Tensor q, k, v, i_pre, f_pre, reset = {};  // as forward
  MlstmState initial = {};
  Tensor h;               // the forward's result, strided
  Tensor denominator, m;  // the forward's
  Tensor workspace;
  MlstmShape shape;
  NormalizerGradient normalizer_gradient = NormalizerGradient::kExact;
};

// ---- mLSTM over segments of a sequence that lie on different ranks. What a segment does to the state that
// comes before it: with G the sum of its log forget gates,
//   m = max(G + m_before, m_seg);  C = exp(G + m_before - m) C_before + exp(m_seg - m) C_seg;  n likewise
// which is associative, so that states between segments follow from the segments' summaries
// (arXiv:2405.04517, eq. 19-27 over a segment; LASP-2, arXiv:2502.07563, for the exchange).
// A segment's summary, one flat wide tensor of MlstmSummaryElems(shape): [C | n | m | G] with C (B, NH, DHQK,
// DHV), n (B, NH, DHQK), m and G (B, NH), contiguous one after the other.
//   m = max over the segment's tokens t of (i_t + sum_{u > t} log f_u): no start is part of it, and a segment
//   without tokens has -infinity (kSigmoid: 0).
//   A document that starts in the segment cuts it off from what was before: then G = -infinity and C, n, m
//   are the state after the segment as MlstmForward's `last`, tokens before the last reset left out.
// The folded stabiliser is that of the sequence in one piece, so that eps weighs the same. Summary and its
// backward take one product of 2 DHQK DHV operations per token and head, less than half of MlstmForward, and
// read k and v, or q and dh (and k and h for the normaliser) once.
constexpr int64_t MlstmSummaryElems(const MlstmShape& s) {
  return s.B * s.NH * (s.DHQK * s.DHV + s.DHQK + 2);
}
struct MlstmSummaryArgs {
  Tensor summary;       // (MlstmSummaryElems) wide out
  Tensor k;             // (N, NH*DHQK) compute, strided
  Tensor v;             // (N, NH*DHV) compute, strided
  Tensor i_pre, f_pre;  // (N, NH) wide, strided
  Tensor reset = {};    // (N) u8, optional
  Tensor workspace;     // u8, at least MlstmWorkspaceBytes(shape, compute)
  MlstmShape shape;     // of one segment: T is its length
};
// The state before segment `index` (from C = 0, n = 0, m = 0 before segment 0) out of the summaries of all.
// Sums in rising order of the segments.
struct MlstmFoldArgs {
  MlstmState initial;  // out: as MlstmForward takes it
  // (num_segments, B, NH) wide out, optional: exp(G_j + m before j - m after j), from 0 to 1, by which the
  // gradient of the stored state after segment j reaches the stored state before it; 0 behind a reset. The
  // same whatever `index` is.
  Tensor factors = {};
  Tensor summaries;  // (num_segments * MlstmSummaryElems) wide, segment by segment
  int64_t num_segments, index;
  MlstmShape shape;  // of one segment
};
// The gradient that the outputs of this segment alone give to the stored state before it (dlast = 0): what
// MlstmBackward gives as `dinitial` then. C and n side by side: (B*NH*(DHQK*DHV + DHQK)) wide, [dC | dn].
constexpr int64_t MlstmStateGradientElems(const MlstmShape& s) {
  return s.B * s.NH * (s.DHQK * s.DHV + s.DHQK);
}
struct MlstmSummaryBackwardArgs {
  Tensor dstate;  // (MlstmStateGradientElems) wide out
  Tensor dh;      // (N, NH*DHV) compute, strided
  Tensor q, k;    // (N, NH*DHQK) compute, strided; k gives the denominator its sign
  Tensor i_pre, f_pre, reset = {};
  MlstmState initial = {};  // as the forward had it
  Tensor h;                 // the forward's result, strided
  Tensor denominator, m;    // the forward's
  Tensor workspace;
  MlstmShape shape;
  NormalizerGradient normalizer_gradient = NormalizerGradient::kExact;
};
// The gradient of the stored state after segment `index`: dlast of MlstmBackward (its m stays undefined).
//   dlast_j = dstate_{j+1} + factor_{j+1} dlast_{j+1}, zero after the last segment
// as a sum over the segments after `index` in rising order, each with the factors of those between.
struct MlstmFoldBackwardArgs {
  MlstmState dlast;  // C and n out; m undefined
  Tensor dstates;    // (num_segments * MlstmStateGradientElems) wide, segment by segment
  Tensor factors;    // (num_segments, B, NH) wide: the forward's
  int64_t num_segments, index;
  MlstmShape shape;
};
}  // namespace carousel
