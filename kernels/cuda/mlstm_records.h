// What the kernels of the mLSTM cell hand to each other: the gate records of a chunk and the arguments of a
// scan. Formulas of the cell: kernels/cpu/mlstm_reference.h; chunkwise form arXiv:2503.14376.
//
// The gate kernels (mlstm_gates.h) turn the gates into one record per chunk of kMlstmChunk tokens and (batch,
// head) pair; after that no kernel sees a gate. A scan walks over the chunks of one pair with a slice of the
// matrix state. The numerator, dq, dv and dk are the same scan with other operands:
//
//   out[r] = x[r] State read[r] + sum over u of W[r][u] (read[r].upd[u] + addend) row[u]
//   State  = gamma State + sum over u of y[u] row[u] (x) upd[u]            State: (dim of row, dim of upd)
//
// clang-format off
// role    time read  upd  row  exponent of W[r][u]  summed over u          x      y      result of row r
// kH      ->   q     k    v    alpha[r] + beta[u]  begin[r] <= u <= r     rho    kappa  h = out / (N_r + eps)
// kDelta  ->   q     k    v    alpha[r] + beta[u]  begin[r] <= u <= r     rho    kappa  dots = dh[r].out, a
// kDQ     ->   dh    v    k    alpha[r] + beta[u]  begin[r] <= u <= r     rho    kappa  dq, dots = q[r].dq
// kDV     <-   k     q    dh   beta[r] + alpha[u]  u >= r, begin[u] <= r  kappa  rho    dv
// kDK     <-   v     dh   q    beta[r] + alpha[u]  u >= r, begin[u] <= r  kappa  rho    dk, dots = k[r].dk
// clang-format on
//
// W = exp2(exponent). kH and kDelta also carry n, the state of the normaliser:
//   n = gamma n + sum over u of kappa[u] k[u]
//   a[r] = rho[r] n.q[r] + sum over u of W[r][u] (q[r].k[u]),   N_r = max(|a[r]|, floor[r])
// a sums the weighted scores before anything is rounded to T, in every scan. kDelta, of the generic scan
// alone, finds what the backward needs of the normaliser with the precision of the sums; bf16 on tensor cores
// has a cheaper way (mlstm_normalizer.h).
//
// kDQ and kDK carry one more column of dh and of v, which stands for the normaliser:
//   kDQ  score read.upd + addend[r];  n as above;  out[r] += rho[r] addend[r] n
//   kDK  score read.upd + addend[u];  dn = gamma dn + sum over u of rho[u] addend[u] q[u];
//        out[r] += kappa[r] dn
// The state roles are scans without outputs, for a sequence that is split into segments: kForwardState gives
// C and n of every segment from a zero state, kBackwardState dC and dn.
//
// The state of every role is C or dC of the op, (DHQK, DHV), of which kH, kDelta and kDV own columns and kDQ
// and kDK own rows.
#pragma once
#include <cstdint>

#include "core/ops.h"
#include "kernels/cuda/device.h"

namespace carousel::CAROUSEL_DEVICE_NS {

constexpr int kMlstmChunk = 32;  // tokens of a record, whatever MlstmShape::L says

// The gates of one chunk, E the type of exponents: float for the tensor-core scan, double for the generic
// one. Tokens after the end of the sequence have begin = kMlstmChunk and floor = 1 and 0 elsewhere: no weight
// reaches them and they reach none.
//   b_t      sum of log sigmoid(f) over the tokens after the first of the chunk, or of t's document, up to t
//   alpha_t  log2e (b_t - m_t) - log2(DHQK) / 2
//   beta_s   log2e (i_s - b_s), i_s the log of the input gate
//   rho_t    exp(F + b_t + m_start - m_t) DHQK^-0.5, F = log sigmoid(f) of the chunk's first token; 0 once a
//            document has begun in the chunk
//   kappa_s  exp(b_end - b_s + i_s - m_end), 0 if a document begins after s in the chunk
// The exponents may be as large as a chunk's sum of log gates; the sum alpha + beta within a document is at
// most 0 (less log2(DHQK) / 2) up to rounding. Outside of it the sum may overflow exp2: select, do not
// multiply.
//
// Records of the backward have 1 / (N_t + eps) folded in: alpha -= log2(N_t + eps), rho /= N_t + eps; and
// addend instead of floor.
template <class E, class W>
struct alignas(16) MlstmRecord {
  E alpha[kMlstmChunk];
  E beta[kMlstmChunk];
  W rho[kMlstmChunk];
  W kappa[kMlstmChunk];
  union {
    W floor[kMlstmChunk];  // forward: e^-m_t, the least denominator; 1 for the sigmoid gate
    // backward: -sign(a_t) (dh_t.h_t) where |a_t| > floor_t, else 0. addend / (N_t + eps) is rho_t of
    // kernels/cpu/mlstm_reference.h
    W addend[kMlstmChunk];
  };
  int32_t begin[kMlstmChunk];  // index in the chunk of the first token of t's document, 0 if it began before
};
using MlstmFastRecord = MlstmRecord<float, float>;
static_assert(sizeof(MlstmFastRecord) == 6 * 4 * kMlstmChunk);

enum class MlstmRole : uint8_t { kH, kDelta, kDQ, kDV, kDK, kForwardState, kBackwardState };
constexpr bool IsReverse(MlstmRole role) {
  return role == MlstmRole::kDV || role == MlstmRole::kDK || role == MlstmRole::kBackwardState;
}
constexpr bool IsState(MlstmRole role) {
  return role == MlstmRole::kForwardState || role == MlstmRole::kBackwardState;
}

// A strided (N, NH * width) tensor: token t of batch entry b, head `head` begins at
// data + (b * T + t) * row_stride + head * width.
template <class T>
struct MlstmRows {
  T* data = nullptr;
  int64_t row_stride = 0;
};
// States as the op lays them out, C (.., DHQK, DHV) and n (.., DHQK), one per segment and pair:
// C + (segment * B * NH + pair) * DHQK * DHV, pair = b * NH + head. Null C: zero, or not wanted.
template <class W>
struct MlstmScanState {
  W* C = nullptr;
  W* n = nullptr;
};

// The gradient of a forget gate sums q.dq - k.dk over all later tokens (mlstm_gate_gradients.h). Where
// operands are bf16 the rounding errors of the two do not cancel, and their sum grows with the length of the
// sequence while the gradient does not. So the tensor-core scan gives that sum directly, <C, dC> + <n, dn>,
// at anchors: before every kMlstmAnchorChunks-th chunk, but not before the first. kDQ leaves C and n there,
// kDK multiplies them by dC and dn. Anchor i stands before chunk (i + 1) * kMlstmAnchorChunks.
constexpr int kMlstmAnchorChunks = 8;
constexpr int64_t NumMlstmAnchors(int64_t NC) { return NC > 0 ? (NC - 1) / kMlstmAnchorChunks : 0; }
// Small heads on sm_90a (mlstm_scan_sm90.h) keep more states, before every kMlstmSavedChunks-th chunk, which
// serve as anchors too.
constexpr int kMlstmSavedChunks = 4;
template <class W>
struct MlstmAnchors {
  bfloat16* C = nullptr;  // (anchors, B * NH, DHQK * DHV), in the order of the scan's threads: each kind of
                          // scan has its own. Or saved states: MlstmSm90SavedBytes
  W* n = nullptr;         // (anchors, B * NH, DHQK), of cut heads for each block of columns
  W* dots = nullptr;      // (anchors, B * NH, parts), parts (of threads): MlstmScanAnchorParts
};

// Arguments of one scan; kernels get it by value. NC = chunks of the sequence, Tp = NC * kMlstmChunk.
template <class T, class E>
struct MlstmScanArgs {
  using W = Wide<T>;
  int64_t B = 0, num_tokens = 0, NH = 0, DHQK = 0, DHV = 0;
  int64_t NC = 0;
  // Segment s owns chunks [s * chunks_per_segment, ..) up to the next segment or NC. Segments are
  // independent.
  int64_t num_segments = 1, chunks_per_segment = 0;

  MlstmRows<const T> q, k, v, dh;  // what the role reads; kForwardState needs k, v; kBackwardState q, dh
  MlstmRows<T> out;                // h, dq, dv or dk
  const MlstmRecord<E, W>* records = nullptr;  // (B * NH, NC); forward records for kH, kDelta, kForwardState
  const W* gamma =
      nullptr;  // (B * NH, NC): what a chunk keeps of the state before it; 0 if a document begins in it

  // Output roles: the state that each segment begins with (for reverse roles: the gradient after its last
  // token), n absent for kDV. State roles begin with zero.
  MlstmScanState<const W> initial;
  // Output roles: written once, by the segment that comes last in scan order (no segment index). State roles:
  // by every segment. Memory other than `initial`, except that C may be the same where num_segments == 1.
  MlstmScanState<W> final;

  MlstmRows<W> denominator;  // kH: (N, NH) out, N_r; 1 without normalize
  W* a = nullptr;            // kDelta: (B * NH, Tp) out, the signed normaliser
  W* dots =
      nullptr;  // kDelta, kDQ, kDK: (slices, B * NH, Tp) out: the part of a slice's rows of the state in the
                //   dot product, from the sums before they are rounded. Tokens after T are not written.
  W* q_dots = nullptr;      // dots of kDQ from a scan that gives dq beside dk (mlstm_scan_sm90.h)
  MlstmAnchors<W> anchors;  // kDQ (C and n out) and kDK (dots out) on tensor cores, which need them
  W eps = 0;
  bool normalize = true;
  // Heads that are cut into blocks (mlstm_blocks.h): a scan's part of `out`, (column blocks, N, NH * width of
  // out); kH's `a` then is (column blocks, B * NH, Tp), and `denominator` and `out` come from
  // LaunchMlstmJoin.
  W* partials = nullptr;
};
using MlstmFastScanArgs = MlstmScanArgs<bfloat16, float>;

// Two scans take these arguments: LaunchMlstmScan (mlstm_scan.h) on tensor cores, for bf16 and certain head
// widths, and LaunchMlstmGeneric (mlstm_generic.h) for any size and dtype. MlstmScanSlices and
// MlstmGenericSlices say how many parts of the state `dots` is split over.

}  // namespace carousel::CAROUSEL_DEVICE_NS
