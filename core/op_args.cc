#include "core/op_args.h"

#include "core/base/value_stats.h"

namespace carousel {
namespace {

constexpr int64_t kStats = 4;  // numbers in a row of CrossEntropyStats

// For soft caps.
void CheckSameShape(const Tensor& a, const Tensor& b) {
  CAROUSEL_CHECK_EQ(static_cast<int>(a.rank), static_cast<int>(b.rank));
  for (int i = 0; i < a.rank; ++i) CAROUSEL_CHECK_EQ(a.dim[i], b.dim[i]);
  CAROUSEL_CHECK(a.contiguous() && b.contiguous());
  CAROUSEL_CHECK_DTYPE(b, a.dtype);
  CAROUSEL_CHECK_MSG(a.dtype == DType::kF32 || a.dtype == DType::kF64, "soft caps work on wide tensors");
}

// What both directions of a head norm have.
template <class Args>
void CheckOptions(const Args& a, DType compute, int64_t N, int64_t width) {
  const DType wide = WideOf(compute);
  if (a.o_pre.defined()) CAROUSEL_CHECK_STRIDED(a.o_pre, compute, {N, width});
  CAROUSEL_CHECK_OPTIONAL(a.weight, wide, {width});
  CAROUSEL_CHECK_MSG(a.weight.defined() || !a.residual_weight, "residual_weight needs a weight");
  CAROUSEL_CHECK_OPTIONAL(a.bias, wide, {width});
  CAROUSEL_CHECK_MSG(a.skip.defined() == a.skip_weight.defined(), "skip and skip_weight come together");
  if (a.skip.defined()) CAROUSEL_CHECK_STRIDED(a.skip, compute, {N, width});
  CAROUSEL_CHECK_OPTIONAL(a.skip_weight, wide, {width});
}

// What both directions of a convolution have.
template <class Args>
void CheckConv(const Args& a, DType compute) {
  const auto [B, T_, C, K] = a.shape;
  const DType wide = WideOf(compute);
  CAROUSEL_CHECK(B >= 0 && T_ >= 1 && C >= 1 && K >= 1);
  const int64_t N = B * T_;
  CAROUSEL_CHECK(IsFloat(compute));
  CAROUSEL_CHECK_STRIDED(a.x, compute, {N, C});
  CAROUSEL_CHECK_TENSOR(a.weight, compute, {C, K});
  CAROUSEL_CHECK_OPTIONAL(a.bias, wide, {C});
  CAROUSEL_CHECK_OPTIONAL(a.reset, DType::kU8, {N});
  CAROUSEL_CHECK_OPTIONAL(a.initial, wide, {B, K - 1, C});
}
}  // namespace

void CheckArgs(const AddArgs& a) {
  CAROUSEL_CHECK_EQ(a.a.num_elems(), a.y.num_elems());
  CAROUSEL_CHECK_EQ(a.b.num_elems(), a.y.num_elems());
  CAROUSEL_CHECK_MSG(a.y.contiguous() && a.a.contiguous() && a.b.contiguous(),
                     "Add works on contiguous tensors");
  CAROUSEL_CHECK(IsFloat(a.y.dtype) && IsFloat(a.a.dtype) && IsFloat(a.b.dtype));
}

void CheckArgs(const ColumnSumArgs& a) {
  CAROUSEL_CHECK_EQ(static_cast<int>(a.x.rank), 2);
  CAROUSEL_CHECK(IsFloat(a.x.dtype));
  CAROUSEL_CHECK_TENSOR(a.y, WideOf(a.x.dtype), {a.x.dim[1]});
}

void CheckArgs(const EmbeddingForwardArgs& a) {
  const DType compute = a.weight.dtype;
  CAROUSEL_CHECK(a.weight.rank == 2 && a.ids.rank == 1);
  const int64_t V = a.weight.dim[0], D = a.weight.dim[1], N = a.ids.dim[0];
  CAROUSEL_CHECK(IsFloat(compute));
  CAROUSEL_CHECK_TENSOR(a.y, WideOf(compute), {N, D});
  CAROUSEL_CHECK_TENSOR(a.weight, compute, {V, D});
  CAROUSEL_CHECK_TENSOR(a.ids, DType::kI32, {N});
}

void CheckArgs(const EmbeddingBackwardArgs& a) {
  const DType wide = a.dweight.dtype;
  CAROUSEL_CHECK(a.dweight.rank == 2 && a.ids.rank == 1);
  const int64_t V = a.dweight.dim[0], D = a.dweight.dim[1], N = a.ids.dim[0];
  CAROUSEL_CHECK(wide == DType::kF32 || wide == DType::kF64);
  CAROUSEL_CHECK_TENSOR(a.dweight, wide, {V, D});
  CAROUSEL_CHECK_TENSOR(a.dy, wide, {N, D});
  CAROUSEL_CHECK_TENSOR(a.ids, DType::kI32, {N});
}

void CheckArgs(const RmsNormForwardArgs& a) {
  const DType compute = a.y.dtype, wide = WideOf(compute);
  CAROUSEL_CHECK_EQ(static_cast<int>(a.x.rank), 2);
  const int64_t N = a.x.dim[0], D = a.x.dim[1];
  CAROUSEL_CHECK_TENSOR(a.y, compute, {N, D});
  CAROUSEL_CHECK_TENSOR(a.rstd, wide, {N});
  CAROUSEL_CHECK_OPTIONAL(a.sum, wide, {N, D});
  CAROUSEL_CHECK_TENSOR(a.x, wide, {N, D});
  CAROUSEL_CHECK_OPTIONAL(a.delta, compute, {N, D});
  CAROUSEL_CHECK_MSG(a.sum.defined() || !a.delta.defined(), "delta needs a place for the sum");
  CAROUSEL_CHECK_TENSOR(a.weight, wide, {D});
  CAROUSEL_CHECK_OPTIONAL(a.bias, wide, {D});
}

void CheckArgs(const RmsNormBackwardArgs& a) {
  const DType compute = a.dy.dtype, wide = WideOf(compute);
  CAROUSEL_CHECK_EQ(static_cast<int>(a.x.rank), 2);
  const int64_t N = a.x.dim[0], D = a.x.dim[1];
  CAROUSEL_CHECK_TENSOR(a.dx, wide, {N, D});
  CAROUSEL_CHECK_OPTIONAL(a.dx_rounded, compute, {N, D});
  CAROUSEL_CHECK_OPTIONAL(a.y, compute, {N, D});
  CAROUSEL_CHECK_MSG(!a.y.defined() || a.y.data != a.dx_rounded.data || a.y.num_elems() == 0,
                     "y and dx_rounded share memory");
  CAROUSEL_CHECK_TENSOR(a.dweight, wide, {D});
  CAROUSEL_CHECK_OPTIONAL(a.dbias, wide, {D});
  CAROUSEL_CHECK_TENSOR(a.dy, compute, {N, D});
  CAROUSEL_CHECK_OPTIONAL(a.dresidual, wide, {N, D});
  CAROUSEL_CHECK_TENSOR(a.x, wide, {N, D});
  CAROUSEL_CHECK_TENSOR(a.weight, wide, {D});
  CAROUSEL_CHECK_TENSOR(a.rstd, wide, {N});
  CAROUSEL_CHECK_OPTIONAL(a.bias, wide, {D});
}

void CheckArgs(const LayerNormForwardArgs& a) {
  const DType compute = a.y.dtype, wide = WideOf(compute);
  CAROUSEL_CHECK_EQ(static_cast<int>(a.x.rank), 2);
  const int64_t N = a.x.dim[0], D = a.x.dim[1];
  CAROUSEL_CHECK_TENSOR(a.y, compute, {N, D});
  CAROUSEL_CHECK_TENSOR(a.mean, wide, {N});
  CAROUSEL_CHECK_TENSOR(a.rstd, wide, {N});
  CAROUSEL_CHECK_OPTIONAL(a.sum, wide, {N, D});
  CAROUSEL_CHECK_TENSOR(a.x, wide, {N, D});
  CAROUSEL_CHECK_OPTIONAL(a.delta, compute, {N, D});
  CAROUSEL_CHECK_MSG(a.sum.defined() || !a.delta.defined(), "delta needs a place for the sum");
  CAROUSEL_CHECK_TENSOR(a.weight, wide, {D});
  CAROUSEL_CHECK_OPTIONAL(a.bias, wide, {D});
}

void CheckArgs(const LayerNormBackwardArgs& a) {
  const DType compute = a.dy.dtype, wide = WideOf(compute);
  CAROUSEL_CHECK_EQ(static_cast<int>(a.x.rank), 2);
  const int64_t N = a.x.dim[0], D = a.x.dim[1];
  CAROUSEL_CHECK_TENSOR(a.dx, wide, {N, D});
  CAROUSEL_CHECK_OPTIONAL(a.dx_rounded, compute, {N, D});
  CAROUSEL_CHECK_OPTIONAL(a.y, compute, {N, D});
  CAROUSEL_CHECK_MSG(!a.y.defined() || a.y.data != a.dx_rounded.data || a.y.num_elems() == 0,
                     "y and dx_rounded share memory");
  CAROUSEL_CHECK_TENSOR(a.dweight, wide, {D});
  CAROUSEL_CHECK_OPTIONAL(a.dbias, wide, {D});
  CAROUSEL_CHECK_TENSOR(a.dy, compute, {N, D});
  CAROUSEL_CHECK_OPTIONAL(a.dresidual, wide, {N, D});
  CAROUSEL_CHECK_TENSOR(a.x, wide, {N, D});
  CAROUSEL_CHECK_TENSOR(a.weight, wide, {D});
  CAROUSEL_CHECK_TENSOR(a.mean, wide, {N});
  CAROUSEL_CHECK_TENSOR(a.rstd, wide, {N});
  CAROUSEL_CHECK_OPTIONAL(a.bias, wide, {D});
}

void CheckArgs(const SoftCapForwardArgs& a) {
  CheckSameShape(a.y, a.x);
  CAROUSEL_CHECK_GT(a.cap, 0.0);
}

void CheckArgs(const SoftCapBackwardArgs& a) {
  CheckSameShape(a.dx, a.dy);
  CheckSameShape(a.dx, a.y);
  CAROUSEL_CHECK_GT(a.cap, 0.0);
}

void CheckArgs(const HeadNormGateForwardArgs& a) {
  const DType compute = a.y.dtype, wide = WideOf(compute);
  CAROUSEL_CHECK_EQ(static_cast<int>(a.h.rank), 2);
  const int64_t N = a.h.dim[0], width = a.h.dim[1];
  CAROUSEL_CHECK(a.NH >= 1 && width % a.NH == 0);
  CAROUSEL_CHECK_TENSOR(a.y, compute, {N, width});
  CAROUSEL_CHECK_TENSOR(a.mean, wide, {N, a.NH});
  CAROUSEL_CHECK_TENSOR(a.rstd, wide, {N, a.NH});
  CAROUSEL_CHECK_TENSOR(a.h, compute, {N, width});
  CheckOptions(a, compute, N, width);
}

void CheckArgs(const HeadNormGateBackwardArgs& a) {
  const DType compute = a.dy.dtype, wide = WideOf(compute);
  CAROUSEL_CHECK_EQ(static_cast<int>(a.h.rank), 2);
  const int64_t N = a.h.dim[0], width = a.h.dim[1];
  CAROUSEL_CHECK(a.NH >= 1 && width % a.NH == 0);
  CAROUSEL_CHECK_TENSOR(a.dh, compute, {N, width});
  CAROUSEL_CHECK_OPTIONAL(a.y, compute, {N, width});
  CAROUSEL_CHECK_MSG(a.do_pre.defined() == a.o_pre.defined(), "do_pre is given if and only if o_pre is");
  if (a.o_pre.defined()) CAROUSEL_CHECK_STRIDED(a.do_pre, compute, {N, width});
  CAROUSEL_CHECK_MSG(a.dskip.defined() == a.skip.defined() && a.dskip_weight.defined() == a.skip.defined(),
                     "dskip and dskip_weight are given if and only if skip is");
  if (a.skip.defined()) CAROUSEL_CHECK_STRIDED(a.dskip, compute, {N, width});
  CAROUSEL_CHECK_OPTIONAL(a.dskip_weight, wide, {width});
  CAROUSEL_CHECK_MSG(a.dweight.defined() == a.weight.defined(), "dweight is given if and only if weight is");
  CAROUSEL_CHECK_OPTIONAL(a.dweight, wide, {width});
  CAROUSEL_CHECK_OPTIONAL(a.dbias, wide, {width});
  CAROUSEL_CHECK_TENSOR(a.dy, compute, {N, width});
  CAROUSEL_CHECK_TENSOR(a.h, compute, {N, width});
  CheckOptions(a, compute, N, width);
  CAROUSEL_CHECK_TENSOR(a.mean, wide, {N, a.NH});
  CAROUSEL_CHECK_TENSOR(a.rstd, wide, {N, a.NH});
}

void CheckArgs(const DropoutArgs& a) {
  CAROUSEL_CHECK(IsFloat(a.x.dtype));
  CAROUSEL_CHECK_EQ(static_cast<int>(a.x.rank), 2);
  CAROUSEL_CHECK_STRIDED(a.y, a.x.dtype, {a.x.dim[0], a.x.dim[1]});
  CAROUSEL_CHECK(a.rate >= 0 && a.rate < 1);
  CAROUSEL_CHECK(a.places.num_columns == 0 ? a.places.first_column == 0
                                           : a.places.first_column + a.x.dim[1] <= a.places.num_columns);
}

void CheckArgs(const GluForwardArgs& a) {
  const DType compute = a.y.dtype;
  CAROUSEL_CHECK_EQ(static_cast<int>(a.y.rank), 2);
  const int64_t N = a.y.dim[0], F = a.y.dim[1];
  CAROUSEL_CHECK_TENSOR(a.y, compute, {N, F});
  CAROUSEL_CHECK_STRIDED(a.gate, compute, {N, F});
  CAROUSEL_CHECK_STRIDED(a.up, compute, {N, F});
}

void CheckArgs(const GluBackwardArgs& a) {
  const DType compute = a.dy.dtype;
  CAROUSEL_CHECK_EQ(static_cast<int>(a.dy.rank), 2);
  const int64_t N = a.dy.dim[0], F = a.dy.dim[1];
  CAROUSEL_CHECK_STRIDED(a.dgate, compute, {N, F});
  CAROUSEL_CHECK_STRIDED(a.dup, compute, {N, F});
  CAROUSEL_CHECK_OPTIONAL(a.y, compute, {N, F});
  CAROUSEL_CHECK_TENSOR(a.dy, compute, {N, F});
  CAROUSEL_CHECK_STRIDED(a.gate, compute, {N, F});
  CAROUSEL_CHECK_STRIDED(a.up, compute, {N, F});
}

void CheckArgs(const BlockLinearForwardArgs& a) {
  const DType compute = a.x.dtype, wide = WideOf(compute);
  CAROUSEL_CHECK(IsFloat(compute));
  CAROUSEL_CHECK(a.x.rank == 2 && a.weight.rank == 2 && a.num_blocks >= 1);
  const int64_t N = a.x.dim[0], in = a.weight.dim[1], out = a.weight.dim[0] / a.num_blocks;
  CAROUSEL_CHECK_MSG(a.y.dtype == compute || a.y.dtype == wide, "y must be of the compute type or wide");
  CAROUSEL_CHECK_SHAPE(a.y, {N, a.num_blocks * out});
  CAROUSEL_CHECK_STRIDED(a.x, compute, {N, a.num_blocks * in});
  CAROUSEL_CHECK_TENSOR(a.weight, compute, {a.num_blocks * out, in});
  CAROUSEL_CHECK_OPTIONAL(a.bias, wide, {a.num_blocks * out});
}

void CheckArgs(const BlockLinearBackwardArgs& a) {
  const DType compute = a.x.dtype, wide = WideOf(compute);
  CAROUSEL_CHECK(IsFloat(compute));
  CAROUSEL_CHECK(a.x.rank == 2 && a.weight.rank == 2 && a.num_blocks >= 1);
  const int64_t N = a.x.dim[0], in = a.weight.dim[1], out = a.weight.dim[0] / a.num_blocks;
  CAROUSEL_CHECK_STRIDED(a.dx, compute, {N, a.num_blocks * in});
  CAROUSEL_CHECK_TENSOR(a.dweight, wide, {a.num_blocks * out, in});
  CAROUSEL_CHECK_OPTIONAL(a.dbias, wide, {a.num_blocks * out});
  CAROUSEL_CHECK_STRIDED(a.dy, compute, {N, a.num_blocks * out});
  CAROUSEL_CHECK_STRIDED(a.x, compute, {N, a.num_blocks * in});
  CAROUSEL_CHECK_TENSOR(a.weight, compute, {a.num_blocks * out, in});
}

void CheckArgs(const CausalConvForwardArgs& a) {
  const DType compute = a.x.dtype;
  CheckConv(a, compute);
  const auto [B, T_, C, K] = a.shape;
  CAROUSEL_CHECK_OPTIONAL(a.last, WideOf(compute), {B, K - 1, C});
  if (a.y.defined()) {
    CAROUSEL_CHECK_STRIDED(a.y, compute, {B * T_, C});
  } else {
    CAROUSEL_CHECK(a.last.defined());
  }
}

void CheckArgs(const CausalConvBackwardArgs& a) {
  const DType compute = a.x.dtype, wide = WideOf(compute);
  CheckConv(a, compute);
  const auto [B, T_, C, K] = a.shape;
  if (a.dx.defined()) {
    CAROUSEL_CHECK_STRIDED(a.dx, compute, {B * T_, C});
    CAROUSEL_CHECK_TENSOR(a.dweight, wide, {C, K});
  } else {
    CAROUSEL_CHECK(a.dinitial.defined() && !a.dweight.defined() && !a.dbias.defined());
  }
  CAROUSEL_CHECK_OPTIONAL(a.dbias, wide, {C});
  CAROUSEL_CHECK_OPTIONAL(a.dinitial, wide, {B, K - 1, C});
  CAROUSEL_CHECK_STRIDED(a.dy, compute, {B * T_, C});
  CAROUSEL_CHECK_OPTIONAL(a.dlast, wide, {B, K - 1, C});
}

void CheckArgs(const CrossEntropyArgs& a) {
  const DType wide = a.logits.dtype;
  const DType compute = a.dlogits.defined() ? a.dlogits.dtype : wide;
  CAROUSEL_CHECK_EQ(static_cast<int>(a.logits.rank), 2);
  const int64_t n = a.logits.dim[0], V = a.logits.dim[1];
  CAROUSEL_CHECK(IsFloat(compute));
  CAROUSEL_CHECK_GE(V, 1);
  CAROUSEL_CHECK_TENSOR(a.loss, wide, {n});
  CAROUSEL_CHECK_OPTIONAL(a.dlogits, compute, {n, V});
  CAROUSEL_CHECK_TENSOR(a.logits, WideOf(compute), {n, V});
  CAROUSEL_CHECK_TENSOR(a.targets, DType::kI32, {n});
  CAROUSEL_CHECK_OPTIONAL(a.correct, DType::kU8, {n});
}

void CheckArgs(const CrossEntropyStatsArgs& a) {
  const DType wide = a.logits.dtype;
  CAROUSEL_CHECK(wide == DType::kF32 || wide == DType::kF64);
  CAROUSEL_CHECK_EQ(static_cast<int>(a.logits.rank), 2);
  const int64_t n = a.logits.dim[0], V = a.logits.dim[1];
  CAROUSEL_CHECK_GE(V, 1);
  CAROUSEL_CHECK(a.first_id >= 0 && a.first_id + V <= int64_t{1} << 24);
  CAROUSEL_CHECK_TENSOR(a.stats, wide, {n, kStats});
  CAROUSEL_CHECK_TENSOR(a.logits, wide, {n, V});
  CAROUSEL_CHECK_TENSOR(a.targets, DType::kI32, {n});
}

void CheckArgs(const CrossEntropyFromStatsArgs& a) {
  const DType wide = a.logits.dtype;
  const DType compute = a.dlogits.defined() ? a.dlogits.dtype : wide;
  CAROUSEL_CHECK_EQ(static_cast<int>(a.logits.rank), 2);
  const int64_t n = a.logits.dim[0], V = a.logits.dim[1];
  CAROUSEL_CHECK(IsFloat(compute));
  CAROUSEL_CHECK(V >= 1 && a.num_parts >= 1 && a.first_id >= 0);
  CAROUSEL_CHECK_TENSOR(a.loss, wide, {n});
  CAROUSEL_CHECK_OPTIONAL(a.dlogits, compute, {n, V});
  CAROUSEL_CHECK_OPTIONAL(a.correct, DType::kU8, {n});
  CAROUSEL_CHECK_TENSOR(a.stats, wide, {a.num_parts * n, kStats});
  CAROUSEL_CHECK_TENSOR(a.logits, WideOf(compute), {n, V});
  CAROUSEL_CHECK_TENSOR(a.targets, DType::kI32, {n});
}

void CheckArgs(const AdamWArgs& a) {
  const DType wide = a.master.dtype;
  CAROUSEL_CHECK_EQ(static_cast<int>(a.master.rank), 1);
  CAROUSEL_CHECK(wide == DType::kF32 || wide == DType::kF64);
  const int64_t n = a.master.dim[0];
  CAROUSEL_CHECK_TENSOR(a.m, wide, {n});
  CAROUSEL_CHECK_TENSOR(a.v, wide, {n});
  CAROUSEL_CHECK_TENSOR(a.grad, wide, {n});
  if (a.weight.defined()) {
    CAROUSEL_CHECK_SHAPE(a.weight, {n});
    CAROUSEL_CHECK(IsFloat(a.weight.dtype));
  }
  CAROUSEL_CHECK_GE(a.step, int64_t{1});
}

void CheckArgs(const TensorStatsArgs& a) {
  CAROUSEL_CHECK_TENSOR(a.stats, DType::kI64, {kValueSumElems});
  CAROUSEL_CHECK_EQ(static_cast<int>(a.x.rank), 2);
  CAROUSEL_CHECK_MSG(a.x.dtype == DType::kF32 || a.x.dtype == DType::kF64, "dtype of a.x must be wide");
  if (a.add.defined()) CAROUSEL_CHECK_STRIDED(a.add, a.x.dtype, {a.x.dim[0], a.x.dim[1]});
  CAROUSEL_CHECK_OPTIONAL(a.ids, DType::kI32, {a.x.dim[0]});
}

void CheckArgs(const DigestArgs& a) {
  CAROUSEL_CHECK_TENSOR(a.digest, DType::kI64, {1});
  CAROUSEL_CHECK(a.x.contiguous());
  CAROUSEL_CHECK(SizeOf(a.x.dtype) == 4 || SizeOf(a.x.dtype) == 8);
}
}  // namespace carousel
