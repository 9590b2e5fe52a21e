// The mLSTM cell for one (batch, head) pair in f32 and bf16: blocked matrix products and vectors. Formulas
// and symbols: kernels/cpu/mlstm_reference.h. What differs from there:
//  - D and alpha follow the recurrence D_ij = f_i D_(i-1)j, D_ii = g_i, alpha_i = f_i alpha_(i-1) with
//    f_i = exp(F_i + m_(i-1) - m_i) and g_i = exp(i_i - m_i), all at most 1: two exponentials per token
//    instead of L, nothing to cancel, and a reset is a row of zeros. Values below kMlstmNegligible become 0.
//  - Products are f32 (vectors) or bf16 operands with f32 sums (tiles: AMX). States, gates and gradients of
//  gates are
//    f32 in both.
//  - Chunks are padded to multiples of kMlstmPad rows and heads to multiples of kMlstmPad columns, with
//  zeros.
#pragma once
#include <cstdint>

#include "kernels/cpu/simd_level.h"

namespace carousel::cpu {

constexpr int64_t kMlstmPad = 32;
constexpr float kMlstmNegligible = 1e-30f;

// T tokens in chunks of L, K = DHQK, V = DHV; Lp, Kp, Vp are padded.
struct MlstmHeadDims {
  int64_t T, L, K, V;
  int64_t Lp, Kp, Vp;
  float scale;  // DHQK^-0.5
  float eps;
  bool bf16;  // q, k, v, h and their gradients are bf16 (uint16_t), otherwise f32
  bool sigmoid_input_gate;
  bool normalize;
  bool exact_normalizer_gradient;  // backward only
};

// Row t of a matrix of one head: data + t * stride elements. Compute is float or uint16_t as dims.bf16 says.
struct MlstmComputeRows {
  void* data;
  int64_t stride;
};
struct MlstmWideRows {
  float* data;
  int64_t stride;
  float& operator[](int64_t t) const { return data[t * stride]; }
};
// C (K, V), n (K) contiguous, m; all null if there is no such state.
struct MlstmHeadState {
  float *C, *n, *m;
};

// Scratch of one pair. Matrices are padded; `pack_*` hold operands in the order the product wants them.
struct MlstmHeadScratch {
  float *f, *g, *w, *m, *floor, *alpha;  // (Lp)
  float *a, *rho, *inverse;              // (Lp)
  float* decay_row;                      // (Lp)
  float* partial;                        // (Lp, 16): row sums before the last additions
  void *q, *k, *v;                       // (Lp, Kp), (Lp, Kp), (Lp, Vp) in the compute type
  float *dq, *dk;                        // (Lp, Kp)
  float *u, *dv;                         // (Lp, Vp): forward u, backward du
  float *S, *G;                          // (Lp, Lp)
  float *C, *n;    // forward: (Kp, Vp), (Kp); backward: one of them for every chunk and one for the end
  float *dC, *dn;  // (Kp, Vp), (Kp); dC in backward alone
  float *pack_LK[2], *pack_LV[2], *pack_LL, *pack_KV;  // (Lp, Kp), (Lp, Vp), (Lp, Lp), (Kp, Vp)
};

struct MlstmHeadForward {
  MlstmComputeRows h;
  MlstmWideRows denominator, m;
  MlstmHeadState last;
  MlstmComputeRows q, k, v;
  MlstmWideRows i_pre, f_pre;
  const uint8_t* reset;  // T values, or null
  MlstmHeadState initial;
  MlstmHeadScratch scratch;
};
struct MlstmHeadBackward {
  MlstmComputeRows dq, dk, dv;
  MlstmWideRows di_pre, df_pre;
  MlstmHeadState dinitial;
  MlstmComputeRows dh;
  MlstmHeadState dlast;  // its m is not used
  MlstmComputeRows q, k, v;
  MlstmWideRows i_pre, f_pre;
  const uint8_t* reset;
  MlstmHeadState initial;
  MlstmComputeRows h;
  MlstmWideRows denominator, m;
  MlstmHeadScratch scratch;
};

struct MlstmHeadSummary {
  MlstmHeadState state;  // out: C, n and m of the summary
  float* G;              // out
  MlstmComputeRows k, v;
  MlstmWideRows i_pre, f_pre;
  const uint8_t* reset;
  MlstmHeadScratch scratch;
};
struct MlstmHeadSummaryBackward {
  MlstmHeadState dstate;  // out; no m
  MlstmComputeRows dh, q, k;
  MlstmWideRows i_pre, f_pre;
  const uint8_t* reset;
  MlstmHeadState initial;
  MlstmComputeRows h;
  MlstmWideRows denominator, m;
  MlstmHeadScratch scratch;
};

struct MlstmKernels {
  void (*forward)(const MlstmHeadDims&, const MlstmHeadForward&);
  void (*backward)(const MlstmHeadDims&, const MlstmHeadBackward&);
  // One token of one pair with a state before and after it (last may be initial): no chunk, no scratch.
  void (*step)(const MlstmHeadDims&, const MlstmHeadForward&);
  void (*summary)(const MlstmHeadDims&, const MlstmHeadSummary&);
  void (*summary_backward)(const MlstmHeadDims&, const MlstmHeadSummaryBackward&);
};
}  // namespace carousel::cpu

CAROUSEL_DECLARE_SIMD(MlstmKernels, GetMlstmKernels)
#if defined(__x86_64__)
// The same sources once more, compiled for level kV4 with AMX: bf16 products on tiles.
namespace carousel::cpu::simd_tiles {
const MlstmKernels& GetMlstmKernels();
}
#endif
