// Ops: the numerical vocabulary of the model. Every backend implements every method; layers call nothing
// else.
//
// Conventions (stated here once):
//  - N = B*T rows; activations are (N, width), token n = b*T + t, a head's columns side by side. Row strides
//    are honoured where a member says "strided"; every other tensor is contiguous.
//  - `compute` is the dtype of the model (f32, bf16 or f64), `wide` = WideOf(compute): sums, gates, states,
//    the residual stream and weight gradients. Arithmetic inside an op is done in `wide` at least.
//  - Outputs come first. Gradients of weights accumulate (+=). Gradients of activations overwrite (=).
//  - An optional tensor is left default-constructed (rank 0).
//  - Results do not depend on the number of threads, bit for bit.
//  - An Ops is bound to one stream: calls are enqueued in order and return at once (the CPU backend runs
//  them).
#pragma once
#include <limits>

#include "core/ops_mlstm.h"
#include "core/tensor.h"

namespace carousel {

// ---- memory and elementwise
struct FillArgs {
  Tensor y;  // any shape, any dtype
  double value;
};
struct CastArgs {
  Tensor y;  // out: x converted (round to nearest even); equal dtypes copy
  Tensor x;  // same element count; rank-2 tensors of equal shape may be strided
};
struct AddArgs {
  Tensor y;  // out: a + b, may alias a or b
  Tensor a;  // each of a, b, y may have its own float dtype; same shape
  Tensor b;
};

// ---- matrix multiplication: c = op(a) op(b) (+ c if accumulate) (+ bias added to every row). Sums in f32
// (f64 for f64).
struct MatmulArgs {
  Tensor c;          // (M, N) strided, dtype compute or wide
  Tensor a;          // (M, K), or (K, M) if transpose_a; strided
  Tensor b;          // (K, N), or (N, K) if transpose_b; strided; same dtype as a
  Tensor bias = {};  // (N) wide, optional
  bool transpose_a = false;
  bool transpose_b = false;
  bool accumulate = false;
};
struct ColumnSumArgs {
  Tensor y;  // (W) wide, y += sum over rows of x: the gradient of a bias
  Tensor x;  // (N, W) strided, compute or wide
};

// ---- embedding
// A rank that holds a part of the vocabulary gives the id of its first row; ids of other ranks' rows give
// zeros and get no gradient. Without it every id must be one of the rows.
struct EmbeddingForwardArgs {
  Tensor y;               // (N, D) wide
  Tensor weight;          // (V, D) compute
  Tensor ids;             // (N) i32, 0 <= id < V; with first_id: any
  int64_t first_id = -1;  // >= 0: the rows are those of ids [first_id, first_id + V)
};
struct EmbeddingBackwardArgs {
  Tensor dweight;  // (V, D) wide +=
  Tensor dy;       // (N, D) wide
  Tensor ids;      // (N) i32
  int64_t first_id = -1;
};

// ---- RMS norm over the model width, with the residual addition before it: s = x + delta;
// y = s * rstd * weight (+ bias);  rstd = 1/sqrt(mean(s^2) + eps). Zhang & Sennrich 2019.
struct RmsNormForwardArgs {
  Tensor y;           // (N, D) compute
  Tensor rstd;        // (N) wide, kept for backward
  Tensor sum = {};    // (N, D) wide: s; required if delta is given; may be x
  Tensor x;           // (N, D) wide
  Tensor delta = {};  // (N, D) compute, optional
  Tensor weight;      // (D) wide
  Tensor bias = {};   // (D) wide, optional
  double eps;
};
struct RmsNormBackwardArgs {
  Tensor dx;  // (N, D) wide out: gradient of s (= of x and of delta) (+ dresidual); may alias dresidual
  Tensor dx_rounded = {};  // (N, D) compute out, optional: dx as Cast gives it; may be dy if y is not
  Tensor y = {};           // (N, D) compute out, optional: y of the forward once more; may be dy
  Tensor dweight;          // (D) wide +=
  Tensor dbias = {};       // (D) wide +=, optional
  Tensor dy;               // (N, D) compute
  Tensor dresidual = {};   // (N, D) wide, optional: gradient that reaches s by another way, added
  Tensor x;                // (N, D) wide: s of the forward
  Tensor weight;           // (D) wide
  Tensor bias = {};        // (D) wide, optional: only y needs it
  Tensor rstd;             // (N) wide
};

// ---- layer norm over the model width, with the residual addition before it: s = x + delta;
// y = (s - mean) * rstd * scale (+ bias);  rstd = 1/sqrt(var(s) + eps), biased variance. Ba et al. 2016.
// The scale is `weight`, or 1 + weight if residual_weight (then zero weights are the identity).
struct LayerNormForwardArgs {
  Tensor y;           // (N, D) compute
  Tensor mean, rstd;  // (N) wide, kept for backward
  Tensor sum = {};    // (N, D) wide: s; required if delta is given; may be x
  Tensor x;           // (N, D) wide
  Tensor delta = {};  // (N, D) compute, optional
  Tensor weight;      // (D) wide
  Tensor bias = {};   // (D) wide, optional
  bool residual_weight = false;
  double eps;
};
struct LayerNormBackwardArgs {
  Tensor dx;               // (N, D) wide out: gradient of s (+ dresidual); may alias dresidual
  Tensor dx_rounded = {};  // (N, D) compute out, optional: dx as Cast gives it; may be dy if y is not
  Tensor y = {};           // (N, D) compute out, optional: y of the forward once more; may be dy
  Tensor dweight;          // (D) wide +=
  Tensor dbias = {};       // (D) wide +=, optional
  Tensor dy;               // (N, D) compute
  Tensor dresidual = {};   // (N, D) wide, optional: gradient that reaches s by another way, added
  Tensor x;                // (N, D) wide: s of the forward
  Tensor weight;           // (D) wide
  Tensor bias = {};        // (D) wide, optional: only y needs it
  Tensor mean, rstd;       // (N) wide
  bool residual_weight = false;
};

// ---- gate soft cap: y = cap * tanh(x / cap)
struct SoftCapForwardArgs {
  Tensor y;    // wide, may alias x
  Tensor x;    // wide, same shape
  double cap;  // > 0
};
struct SoftCapBackwardArgs {
  Tensor dx;  // wide out: dy * (1 - (y / cap)^2); may alias dy
  Tensor dy;
  Tensor y;  // the forward's result
  double cap;
};

// ---- mLSTM cell: core/ops_mlstm.h

// ---- per-head layer norm, learnable skip and output gate
//   xhat = (h - mean) * rstd, mean and biased variance over one head's DHV columns
//   z = xhat * scale (+ bias) (+ skip_weight * skip);   y = act(o_pre) * z, or y = z without o_pre
// The scale is `weight`, 1 + weight if residual_weight, or 1 without a weight.
enum class OutputGate : uint8_t { kSigmoid, kSilu };
struct HeadNormGateForwardArgs {
  Tensor y;                 // (N, NH*DHV) compute
  Tensor mean;              // (N, NH) wide, kept
  Tensor rstd;              // (N, NH) wide, kept
  Tensor h;                 // (N, NH*DHV) compute
  Tensor o_pre = {};        // (N, NH*DHV) compute, strided, optional
  Tensor weight = {};       // (NH*DHV) wide, optional
  Tensor bias = {};         // (NH*DHV) wide, optional
  Tensor skip = {};         // (N, NH*DHV) compute, strided, optional
  Tensor skip_weight = {};  // (NH*DHV) wide; given if and only if skip is
  int64_t NH;
  double eps;
  OutputGate gate = OutputGate::kSigmoid;
  bool residual_weight = false;
};
struct HeadNormGateBackwardArgs {
  Tensor dh;                 // (N, NH*DHV) compute out
  Tensor y = {};             // (N, NH*DHV) compute out, optional: y of the forward once more; may be dy
  Tensor do_pre = {};        // (N, NH*DHV) compute out, strided; given if and only if o_pre is
  Tensor dskip = {};         // (N, NH*DHV) compute out, strided; given if and only if skip is
  Tensor dweight = {};       // (NH*DHV) wide +=; given if and only if weight is
  Tensor dbias = {};         // (NH*DHV) wide +=, optional
  Tensor dskip_weight = {};  // (NH*DHV) wide +=; given if and only if skip is
  Tensor dy;                 // (N, NH*DHV) compute
  Tensor h, o_pre = {}, weight = {}, bias = {}, skip = {}, skip_weight = {}, mean, rstd;  // as forward
  int64_t NH;
  OutputGate gate = OutputGate::kSigmoid;
  bool residual_weight = false;
};

// ---- dropout (Srivastava et al. 2014): y = x * keep / (1 - rate). keep is a pure function of (key, row * W
// + column), a counter-based draw, so the backward pass is the same call on gradients and a recomputed
// forward drops the same elements.
// (row, column) are those of the whole activation, of which a rank may hold a part: places says where.
struct ElementPlaces {
  // Whole row of row n: first + n, and with a segment length S > 0, for r = first + n, row
  // (r / S) segment_stride + segment_begin + r % S.
  int64_t first_row = 0;
  int64_t segment = 0, segment_stride = 0, segment_begin = 0;
  // Whole column of column c: first_column + c of num_columns. 0: the tensor has all columns.
  int64_t first_column = 0, num_columns = 0;

  constexpr int64_t WholeRow(int64_t n) const {
    const int64_t r = first_row + n;
    return segment > 0 ? r / segment * segment_stride + segment_begin + r % segment : r;
  }
  // Whether rows of `width` elements lie one after the other in the whole activation, too.
  constexpr bool Gapless(int64_t width) const {
    return segment == 0 && first_column == 0 && (num_columns == 0 || num_columns == width);
  }
};
struct DropoutArgs {
  Tensor y;     // (N, W) compute or wide out, strided; may be x
  Tensor x;     // (N, W) same dtype, strided
  double rate;  // [0, 1)
  uint64_t key;
  ElementPlaces places = {};
};

// ---- gated feed-forward: y = act(gate) * up (arXiv:2002.05202); GELU is the exact one, x Phi(x)
enum class GluActivation : uint8_t { kSilu, kGelu };
struct GluForwardArgs {
  Tensor y;     // (N, F) compute
  Tensor gate;  // (N, F) compute, strided
  Tensor up;    // (N, F) compute, strided
  GluActivation activation = GluActivation::kSilu;
};
struct GluBackwardArgs {
  Tensor dgate, dup;  // (N, F) compute out, strided; may alias gate, up
  Tensor y = {};      // (N, F) compute out, optional: the forward's y once more, its bits; may be dy
  Tensor dy;          // (N, F) compute
  Tensor gate, up;
  GluActivation activation = GluActivation::kSilu;
};

// ---- block-diagonal linear map: columns [b*in, (b+1)*in) of x give columns [b*out, (b+1)*out) of y,
// y_b = x_b W_b^T (+ bias). W = num_blocks matrices (out, in), one below the other.
struct BlockLinearForwardArgs {
  Tensor y;          // (N, num_blocks*out) compute or wide, strided
  Tensor x;          // (N, num_blocks*in) compute, strided
  Tensor weight;     // (num_blocks*out, in) compute
  Tensor bias = {};  // (num_blocks*out) wide, optional
  int64_t num_blocks;
};
struct BlockLinearBackwardArgs {
  Tensor dx;          // (N, num_blocks*in) compute out, strided
  Tensor dweight;     // (num_blocks*out, in) wide +=
  Tensor dbias = {};  // (num_blocks*out) wide +=, optional
  Tensor dy;          // (N, num_blocks*out) compute, strided
  Tensor x, weight;   // as forward
  int64_t num_blocks;
  bool accumulate_dx = false;  // dx +=. dx shares no memory with dy and x
};

// ---- causal depthwise convolution over time, then optionally SiLU
//   p_t = bias + sum_{j=0..K-1} weight[:, j] * x_{t-K+1+j};   y_t = silu(p_t) or p_t
// Taps that lie before the start of t's document, or before the sequence when there is no initial state, are
// 0. weight[:, K-1] multiplies the current token.
struct CausalConvShape {
  int64_t B, T, C, K;  // K >= 1
};
// State: (B, K-1, C) wide: the last K-1 inputs, oldest first; zeros where there was none (since a reset).
struct CausalConvForwardArgs {
  Tensor y;             // (N, C) compute, strided; undefined: only `last` is wanted
  Tensor last = {};     // state, optional out; may alias `initial`
  Tensor x;             // (N, C) compute, strided
  Tensor weight;        // (C, K) compute
  Tensor bias = {};     // (C) wide, optional
  Tensor reset = {};    // (N) u8, optional: 1 = a document starts at this token
  Tensor initial = {};  // state, optional; default 0
  CausalConvShape shape;
  bool silu = true;
};
struct CausalConvBackwardArgs {
  Tensor dx;       // (N, C) compute out, strided; undefined with dweight and dbias: only `dinitial` is wanted
  Tensor dweight;  // (C, K) wide +=
  Tensor dbias = {};                                      // (C) wide +=, optional
  Tensor dinitial = {};                                   // state, optional out
  Tensor dy;                                              // (N, C) compute, strided
  Tensor dlast = {};                                      // state, optional: gradient of `last`
  Tensor x, weight, bias = {}, reset = {}, initial = {};  // as forward
  CausalConvShape shape;
  bool silu = true;
  bool accumulate_dx = false;  // dx +=. dx shares no memory with dy and x
};

// ---- sLSTM cell (arXiv:2405.04517), head-wise recurrence. Gate order i, f, z, o; per element of a head:
//   raw^g_t = wx^g_t + R^g y_{t-1} + b^g;   lambda = m_{t-1} + logsigmoid(raw^f_t)
//   m_t = raw^i_t if n_{t-1} == 0 (fresh), else max(raw^i_t, lambda)
//   i = exp(raw^i - m_t), f = exp(lambda - m_t), both at most 1; z = tanh(raw^z), o = sigmoid(raw^o)
//   c_t = f c_{t-1} + i z;   n_t = f n_{t-1} + i;   y_t = o c_t / n_t
// The recurrent operands (y_{t-1}, R) are of the compute dtype, everything else is wide.
struct SlstmShape {
  int64_t B, T, NH, D;  // D: width of a head
};
// State: each (B, NH*D) wide, contiguous. All zero is the start: n == 0 marks a fresh element.
struct SlstmState {
  Tensor y, c, n, m;  // all four defined, or none
};
struct SlstmForwardArgs {
  Tensor y;              // (N, NH*D) compute out, contiguous
  Tensor gates;          // (N, 4*NH*D) wide out, kept for backward (contents: the backend's own); may be wx
  Tensor c, n, m;        // (N, NH*D) wide out, kept for backward: the states after each token
  SlstmState last = {};  // optional out; may alias `initial`
  Tensor wx;             // (N, 4*NH*D) wide: [gate][head][D]
  Tensor recurrent;      // (4*NH*D, D) compute: R, row [gate][head][out], column [in]
  Tensor bias;           // (4*NH*D) wide: [gate][head][D]
  Tensor reset = {};     // (N) u8, optional: 1 = a document starts here: (y, c, n, m) before it are 0
  SlstmState initial = {};
  Tensor workspace;  // u8, at least SlstmWorkspaceBytes(shape, compute)
  SlstmShape shape;
};
// The stabiliser m is a constant (the result does not depend on it).
struct SlstmBackwardArgs {
  Tensor dwx;                // (N, 4*NH*D) compute out, contiguous
  Tensor drecurrent;         // (4*NH*D, D) wide +=
  Tensor dbias;              // (4*NH*D) wide +=
  SlstmState dinitial = {};  // optional out; m: <c0, dc0> + <n0, dn0> per element. y before the clip
  Tensor dy;                 // (N, NH*D) compute, contiguous
  SlstmState dlast = {};     // optional: gradients of last.y, c, n; its m is ignored (may be undefined). y is
                             // clipped as any gradient that comes back through the recurrence
  Tensor y, gates, c, n, m;  // the forward's
  Tensor recurrent, reset = {};  // as forward
  SlstmState initial = {};
  Tensor workspace;
  SlstmShape shape;
  double gradient_clip = 0;  // > 0: every element of R^T draw (+ dlast.y) is clamped to [-clip, clip]
  bool gradient_cut =
      false;  // that gradient is dropped: no gradient through R y_{t-1} (dR is still computed)
};

// ---- loss over one chunk of tokens: z = cap * tanh(logits / cap) (cap <= 0: z = logits);
// loss = logsumexp(z) - z[target];  dlogits = d(sum of losses)/dlogits.
struct CrossEntropyArgs {
  Tensor loss;          // (n) wide out, 0 where the target is negative
  Tensor dlogits = {};  // (n, V) compute out, optional; zero rows where the target is negative
  Tensor logits;        // (n, V) wide
  Tensor targets;       // (n) i32; negative = no target
  Tensor correct = {};  // (n) u8 out, optional: 1 where the target has the largest logit (ties: the lowest id
                        // wins), 0 elsewhere and where there is no target
  double soft_cap;
};

// ---- the same loss where each rank has the logits of a part of the vocabulary. First what a part says of
// every token, then, from all parts in the order of their ids, loss and gradient.
//   stats row: [largest logit, sum exp(z - z of that), z[target] or 0 if the target is of another part, id of
//   the largest logit] (the lowest of equal ones, below 2^24: exact in f32; -1 if any logit is NaN). A sum of
//   nothing but exp(-infinity - z) is 0. Rows without a target are 0.
// Parts have equal widths: a target is below num_parts * V.
struct CrossEntropyStatsArgs {
  Tensor stats;      // (n, 4) wide out
  Tensor logits;     // (n, V) wide: of ids [first_id, first_id + V)
  Tensor targets;    // (n) i32; negative = no target
  int64_t first_id;  // >= 0
  double soft_cap;
};
struct CrossEntropyFromStatsArgs {
  Tensor loss;          // (n) wide out, 0 where the target is negative
  Tensor dlogits = {};  // (n, V) compute out, optional: of this part; zero rows where the target is negative
  Tensor correct = {};  // (n) u8 out, optional, as CrossEntropy
  Tensor stats;         // (num_parts * n, 4) wide: part by part
  int64_t num_parts;
  Tensor logits;  // as in CrossEntropyStats, of this part
  Tensor targets;
  int64_t first_id;
  double soft_cap;
};

// ---- optimizer
// Loshchilov & Hutter 2019 on a flat range. g = grad * grad_scale;  m = b1 m + (1-b1) g;  v = b2 v + (1-b2)
// g^2; master -= lr * ( (m / (1-b1^step)) / (sqrt(v / (1-b2^step)) + eps) + weight_decay * master ). All
// wide.
struct AdamWArgs {
  Tensor master, m, v;  // (n) wide, updated in place
  Tensor weight = {};   // (n) out: the updated master cast to this tensor's dtype; optional
  Tensor grad;          // (n) wide
  double lr, beta1, beta2, eps, weight_decay;
  double grad_scale;
  int64_t step;  // counts from 1
};

// ---- exact reductions (core/base/exact_sum.h). Sums are order-independent: equal bits however the elements
// were spread over calls and ranks, provided that calls of SquaredNorm begin at multiples of
// kSquaredNormBlock within the same flat array.
constexpr int64_t kSquaredNormBlock = 1024;
struct SquaredNormArgs {
  Tensor sum;  // (kExactSumElems) i64: sum += sum of x^2 (in blocks of kSquaredNormBlock, each block in f64,
               // fixed order)
  Tensor x;    // (n) wide
};
struct ExactSumArgs {
  Tensor sum;  // (kExactSumElems) i64: sum += sum of x
  Tensor x;    // (n) wide
};

// ---- statistics of values, for people: counts, sums, extremes of x + add over the rows whose id is in
// [first_id, end_id); without ids over all rows. What is not finite is counted and left out.
struct TensorStatsArgs {
  // (kValueSumElems) i64: += what core/base/value_stats.h says. The elements that count are taken in blocks
  // of kValueStatsBlock consecutive places of x, each summed in f64 in order; then exactly, with carries.
  Tensor stats;
  Tensor x;         // (N, W) wide, strided
  Tensor add = {};  // (N, W) wide, strided, optional
  Tensor ids = {};  // (N) i32, optional
  int64_t first_id = 0, end_id = 0;
  // Thresholds of num_below, num_above and, of the magnitude, num_beyond.
  double below = -std::numeric_limits<double>::infinity(), above = std::numeric_limits<double>::infinity(),
         beyond = std::numeric_limits<double>::infinity();
};

// ---- a digest of bits: digest += sum over elements e of DigestTerm(salt + e, bits of x[e]) modulo 2^64.
// Changing one element always changes it.
constexpr uint64_t DigestTerm(uint64_t place, uint64_t bits) {
  // The finaliser of SplitMix64 (Steele, Lea & Flood 2014): a bijection.
  uint64_t x = bits ^ place * 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}
struct DigestArgs {
  Tensor digest;      // (1) i64, +=
  Tensor x;           // contiguous, any dtype of 4 or 8 bytes
  uint64_t salt = 0;  // where x lies in what the digest is of
};

class Ops {
 public:
  virtual ~Ops() = default;
  // A named part of the work, for profilers: what is issued until EndRange belongs to it. Ranges nest. A
  // backend names its ops itself. `name` need not outlive the call.
  virtual void BeginRange(const char* name) { static_cast<void>(name); }
  virtual void EndRange() {}
  virtual void Fill(const FillArgs&) = 0;
  virtual void Cast(const CastArgs&) = 0;
  virtual void Add(const AddArgs&) = 0;
  virtual void Matmul(const MatmulArgs&) = 0;
  virtual void ColumnSum(const ColumnSumArgs&) = 0;
  virtual void EmbeddingForward(const EmbeddingForwardArgs&) = 0;
  virtual void EmbeddingBackward(const EmbeddingBackwardArgs&) = 0;
  virtual void RmsNormForward(const RmsNormForwardArgs&) = 0;
  virtual void RmsNormBackward(const RmsNormBackwardArgs&) = 0;
  virtual void LayerNormForward(const LayerNormForwardArgs&) = 0;
  virtual void LayerNormBackward(const LayerNormBackwardArgs&) = 0;
  virtual void SoftCapForward(const SoftCapForwardArgs&) = 0;
  virtual void SoftCapBackward(const SoftCapBackwardArgs&) = 0;
  // Bytes of scratch that MlstmForward, MlstmBackward and the summaries of a segment need. A pure function of
  // its arguments; a smaller B or T needs no more. The same holds for SlstmWorkspaceBytes.
  virtual int64_t MlstmWorkspaceBytes(const MlstmShape&, DType compute) const = 0;
  virtual void MlstmForward(
      const MlstmForwardArgs&) = 0;  // T == 1 with states in and out is the generation step
  virtual void MlstmBackward(const MlstmBackwardArgs&) = 0;
  virtual void MlstmSummary(const MlstmSummaryArgs&) = 0;
  virtual void MlstmFold(const MlstmFoldArgs&) = 0;
  virtual void MlstmSummaryBackward(const MlstmSummaryBackwardArgs&) = 0;
  virtual void MlstmFoldBackward(const MlstmFoldBackwardArgs&) = 0;
  virtual void HeadNormGateForward(const HeadNormGateForwardArgs&) = 0;
  virtual void HeadNormGateBackward(const HeadNormGateBackwardArgs&) = 0;
  virtual void Dropout(const DropoutArgs&) = 0;
  virtual void GluForward(const GluForwardArgs&) = 0;
  virtual void GluBackward(const GluBackwardArgs&) = 0;
  virtual void BlockLinearForward(const BlockLinearForwardArgs&) = 0;
  virtual void BlockLinearBackward(const BlockLinearBackwardArgs&) = 0;
  virtual void CausalConvForward(const CausalConvForwardArgs&) = 0;
  virtual void CausalConvBackward(const CausalConvBackwardArgs&) = 0;
  // Bytes of scratch that SlstmForward and SlstmBackward need. A pure function of its arguments.
  virtual int64_t SlstmWorkspaceBytes(const SlstmShape&, DType compute) const = 0;
  virtual void SlstmForward(const SlstmForwardArgs&) = 0;  // T == 1 with states is the generation step
  virtual void SlstmBackward(const SlstmBackwardArgs&) = 0;
  virtual void CrossEntropy(const CrossEntropyArgs&) = 0;
  virtual void CrossEntropyStats(const CrossEntropyStatsArgs&) = 0;
  virtual void CrossEntropyFromStats(const CrossEntropyFromStatsArgs&) = 0;
  virtual void AdamW(const AdamWArgs&) = 0;
  virtual void SquaredNorm(const SquaredNormArgs&) = 0;
  virtual void SumExactly(const ExactSumArgs&) = 0;
  virtual void TensorStats(const TensorStatsArgs&) = 0;
  virtual void Digest(const DigestArgs&) = 0;
};

// Names the ops of a C++ scope.
class OpsRange {
 public:
  OpsRange(Ops& ops, const char* name) : ops_(ops) { ops_.BeginRange(name); }
  ~OpsRange() { ops_.EndRange(); }
  OpsRange(const OpsRange&) = delete;
  OpsRange& operator=(const OpsRange&) = delete;

 private:
  Ops& ops_;
};
}  // namespace carousel
