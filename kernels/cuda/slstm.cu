// slstm.cu - the sLSTM cell (xLSTM, arXiv:2405.04517, section 2.2): checks, the choice of kernels, and what
// follows the recurrence of the backward pass.
//
// dR of a gate and head = draw^T y_before over all tokens, one batched product of the library over heads per
// gate; y_before, the recurrent operand of every token, is written first: grid: pieces of 16 bytes / 256 (or
// elements / 256 where rows are not whole pieces), reads y once. dbias = the sum over sequences, in order, of
// what the recurrence summed over tokens. Grid: 4*NH*D / 256.
#include "kernels/cuda/device_ops.h"
#include "kernels/cuda/matmul_engine.h"
#include "kernels/cuda/op_check.h"
#include "kernels/cuda/slstm_cell.h"
#include "kernels/cuda/slstm_internal.h"

namespace carousel::CAROUSEL_DEVICE_NS {
namespace {

// Row n of y_before: the row of y before token n, the initial y rounded, or zeros. A thread writes one Piece.
template <class T, class Piece>
__global__ void __launch_bounds__(256)
    SlstmYBeforeKernel(T* y_before, const T* y, const Wide<T>* initial_y, const uint8_t* reset,
                       int64_t tokens, int64_t width, int64_t num_pieces) {
  constexpr int kElems = sizeof(Piece) / sizeof(T);
  const int64_t piece = int64_t{blockIdx.x} * 256 + threadIdx.x;
  if (piece >= num_pieces) return;
  const int64_t at = piece * kElems, row = at / width, column = at % width;
  const bool starts = reset != nullptr && reset[row] != 0;
  if (!starts && row % tokens > 0) {
    *reinterpret_cast<Piece*>(y_before + at) = *reinterpret_cast<const Piece*>(y + at - width);
    return;
  }
  for (int e = 0; e < kElems; ++e) {
    const bool given = !starts && initial_y != nullptr;
    y_before[at + e] = gpu::convert<T>(given ? initial_y[row / tokens * width + column + e] : Wide<T>(0));
  }
}

// dbias[i] += sum over b of partial[b][i].
template <class W>
__global__ void __launch_bounds__(256) SlstmBiasKernel(W* dbias, const W* partial, int64_t B, int64_t count) {
  const int64_t i = int64_t{blockIdx.x} * 256 + threadIdx.x;
  if (i >= count) return;
  W sum = 0;
  for (int64_t b = 0; b < B; ++b) sum += partial[b * count + i];
  dbias[i] += sum;
}

// Cuts arrays out of the workspace; without a base address it only counts.
class Cutter {
 public:
  explicit Cutter(void* base) {
    if (base == nullptr) return;
    const auto address = reinterpret_cast<uintptr_t>(base);
    base_ = static_cast<std::byte*>(base) +
            (RoundUp(static_cast<int64_t>(address), kAlign) - static_cast<int64_t>(address));
  }
  void* Take(int64_t bytes) {
    void* const place = base_ == nullptr ? nullptr : base_ + used_bytes_;
    used_bytes_ += RoundUp(bytes, kAlign);
    return place;
  }
  int64_t needed_bytes() const { return used_bytes_ + kAlign; }

 private:
  static constexpr int64_t kAlign = 256;
  std::byte* base_ = nullptr;
  int64_t used_bytes_ = 0;
};
struct ForwardScratch {
  ForwardScratch(Cutter memory, const SlstmShape& s, DType compute)
      : transposed(memory.Take(SlstmIsSmallHead(s.D, compute) ? 4 * s.NH * s.D * s.D * SizeOf(compute) : 0)),
        needed_bytes(memory.needed_bytes()) {}
  void* transposed;
  int64_t needed_bytes;
};
struct BackwardScratch {
  BackwardScratch(Cutter memory, const SlstmShape& s, DType compute)
      : y_before(memory.Take(s.B * s.T * s.NH * s.D * SizeOf(compute))),
        dbias(memory.Take(s.B * 4 * s.NH * s.D * SizeOf(WideOf(compute)))),
        running(memory.Take(s.B * 2 * s.NH * s.D * SizeOf(WideOf(compute)))),
        needed_bytes(memory.needed_bytes()) {}
  void *y_before, *dbias, *running;
  int64_t needed_bytes;
};

// ---- checks
void CheckMemory(const Tensor& x, const std::string& name, DType dtype, std::initializer_list<int64_t> dims) {
  CAROUSEL_CHECK_MSG(x.dtype == dtype, name + " must be " + NameOf(dtype) + ", is " + NameOf(x.dtype));
  std::string shape;
  for (const int64_t d : dims) shape += (shape.empty() ? "" : ", ") + std::to_string(d);
  CAROUSEL_CHECK_MSG(x.HasShape(dims) && x.contiguous(),
                     name + " must be contiguous, of shape (" + shape + ")");
  CAROUSEL_CHECK_MSG(x.data != nullptr || x.num_elems() == 0, name + " has no memory");
}
void CheckState(const SlstmState& state, const std::string& name, const SlstmShape& s, DType wide,
                bool needs_m) {
  if (!state.y.defined()) {
    CAROUSEL_CHECK_MSG(!state.c.defined() && !state.n.defined() && !state.m.defined(),
                       name + " must have y, c, n and m, or none");
    return;
  }
  CheckMemory(state.y, name + ".y", wide, {s.B, s.NH * s.D});
  CheckMemory(state.c, name + ".c", wide, {s.B, s.NH * s.D});
  CheckMemory(state.n, name + ".n", wide, {s.B, s.NH * s.D});
  if (needs_m || state.m.defined()) CheckMemory(state.m, name + ".m", wide, {s.B, s.NH * s.D});
}
void CheckShape(const SlstmShape& s, DType compute) {
  CAROUSEL_CHECK_MSG(IsFloat(compute), std::string("compute type ") + NameOf(compute));
  CAROUSEL_CHECK(s.B >= 0 && s.T >= 0 && s.NH >= 1 && s.D >= 1);
}
// What forward and backward arguments have in common.
template <class Args>
void CheckCommon(const Args& a, int64_t workspace_bytes) {
  const SlstmShape& s = a.shape;
  const DType compute = a.y.dtype, wide = WideOf(compute);
  const int64_t N = s.B * s.T, width = s.NH * s.D;
  CheckMemory(a.y, "y", compute, {N, width});
  CheckMemory(a.gates, "gates", wide, {N, 4 * width});
  CheckMemory(a.c, "c", wide, {N, width});
  CheckMemory(a.n, "n", wide, {N, width});
  CheckMemory(a.m, "m", wide, {N, width});
  CheckMemory(a.recurrent, "recurrent", compute, {4 * width, s.D});
  if (a.reset.defined()) CheckMemory(a.reset, "reset", DType::kU8, {N});
  CheckState(a.initial, "initial", s, wide, /*needs_m=*/true);
  CAROUSEL_CHECK_MSG(
      a.workspace.defined() && a.workspace.num_bytes() >= workspace_bytes && a.workspace.data != nullptr,
      "workspace needs " + std::to_string(workspace_bytes) + " bytes");
}

// ---- the choice
bool Aligned(std::initializer_list<const Tensor*> tensors) {
  for (const Tensor* x : tensors) {
    if (reinterpret_cast<uintptr_t>(x->data) % 16 != 0) return false;
  }
  return true;
}
bool HasTensorCoreKernels(int64_t D, const DeviceInfo& info) {
  const int64_t forward = SlstmTensorCoreForwardSharedBytes(D, info.compute_capability),
                backward = SlstmTensorCoreBackwardSharedBytes(D, info.compute_capability);
  return forward > 0 && std::max(forward, backward) <= info.max_shared_bytes;
}
SlstmPath ChoosePath(const SlstmShape& s, DType compute, bool aligned, const DeviceInfo& info) {
  if (s.T == 0) return SlstmPath::kSteps;
  if (compute == DType::kBF16 && aligned && HasTensorCoreKernels(s.D, info)) return SlstmPath::kTensorCore;
  return SlstmIsSmallHead(s.D, compute) ? SlstmPath::kPersistent : SlstmPath::kSteps;
}

// ---- after the recurrence
template <class T>
void WeightGradients(Context& context, const SlstmBackwardArgs& a, T* y_before, const Wide<T>* dbias) {
  using W = Wide<T>;
  const SlstmShape& s = a.shape;
  const int64_t N = s.B * s.T, width = s.NH * s.D;
  context.Launch(
      SlstmBiasKernel<W>,
      {.grid = dim3(GridExtent(CeilDiv(4 * width, 256))), .block = dim3(256), .name = "SlstmBiasKernel"},
      a.dbias.as<W>(), dbias, s.B, 4 * width);
  const W* const initial_y = DataOrNull<W>(a.initial.y);
  const auto enqueue = [&](auto kernel, int64_t elems) {
    const int64_t pieces = N * width / elems;
    context.Launch(
        kernel,
        {.grid = dim3(GridExtent(CeilDiv(pieces, 256))), .block = dim3(256), .name = "SlstmYBeforeKernel"},
        y_before, a.y.as<T>(), initial_y, DataOrNull<uint8_t>(a.reset), s.T, width, pieces);
  };
  constexpr int64_t kElems = 16 / sizeof(T);
  if (width % kElems == 0 && Aligned({&a.y})) {
    enqueue(SlstmYBeforeKernel<T, uint4>, kElems);
  } else {
    enqueue(SlstmYBeforeKernel<T, T>, 1);
  }
  // Of one head the gates' rows follow one another; of more heads those of one gate do.
  const DType compute = a.y.dtype, wide = WideOf(compute);
  const int64_t rows = s.NH == 1 ? 4 * s.D : s.D, products = s.NH == 1 ? 1 : 4;
  for (int64_t i = 0; i < products; ++i) {
    context.matmul().Run({.c = {a.drecurrent.as<W>() + i * width * s.D, wide, s.D, s.D * s.D},
                          .a = {a.dwx.as<T>() + i * width, compute, 4 * width, s.D},
                          .b = {y_before, compute, width, s.D},
                          .M = rows,
                          .N = s.D,
                          .K = N,
                          .batch = s.NH,
                          .transpose_a = true,
                          .accumulate = true});
  }
}
}  // namespace

SlstmPath ChooseSlstmPath(const SlstmForwardArgs& a, const DeviceInfo& info) {
  return ChoosePath(a.shape, a.y.dtype,
                    Aligned({&a.y, &a.gates, &a.c, &a.n, &a.m, &a.wx, &a.recurrent, &a.last.y, &a.last.c,
                             &a.last.n, &a.last.m}),
                    info);
}
SlstmPath ChooseSlstmPath(const SlstmBackwardArgs& a, const DeviceInfo& info) {
  return ChoosePath(a.shape, a.y.dtype,
                    Aligned({&a.dwx, &a.dy, &a.gates, &a.c, &a.n, &a.recurrent, &a.initial.c, &a.initial.n}),
                    info);
}

int64_t DeviceOps::SlstmWorkspaceBytes(const SlstmShape& s, DType compute) const {
  CheckShape(s, compute);
  return std::max(ForwardScratch(Cutter(nullptr), s, compute).needed_bytes,
                  BackwardScratch(Cutter(nullptr), s, compute).needed_bytes);
}

void DeviceOps::SlstmForward(const SlstmForwardArgs& a) {
  const SlstmShape& s = a.shape;
  const DType compute = a.y.dtype, wide = WideOf(compute);
  CheckShape(s, compute);
  CheckCommon(a, SlstmWorkspaceBytes(s, compute));
  CheckMemory(a.wx, "wx", wide, {s.B * s.T, 4 * s.NH * s.D});
  CheckMemory(a.bias, "bias", wide, {4 * s.NH * s.D});
  CheckState(a.last, "last", s, wide, /*needs_m=*/true);
  if (s.B == 0) return;
  const SlstmPath path = ChooseSlstmPath(a, context_.info());
  DispatchFloat(compute, [&]<class T>() {
    const SlstmForwardPointers<T> p(a);
    if constexpr (sizeof(T) == 2) {
      if (path == SlstmPath::kTensorCore) return SlstmTensorCoreForward(context_, p);
    }
    if (path == SlstmPath::kPersistent) {
      const ForwardScratch scratch(Cutter(a.workspace.data), s, compute);
      return SlstmPersistentForward(context_, p, static_cast<T*>(scratch.transposed));
    }
    SlstmStepsForward(context_, p);
  });
}

void DeviceOps::SlstmBackward(const SlstmBackwardArgs& a) {
  const SlstmShape& s = a.shape;
  const DType compute = a.y.dtype, wide = WideOf(compute);
  const int64_t N = s.B * s.T, width = s.NH * s.D;
  CheckShape(s, compute);
  CheckCommon(a, SlstmWorkspaceBytes(s, compute));
  CheckMemory(a.dwx, "dwx", compute, {N, 4 * width});
  CheckMemory(a.drecurrent, "drecurrent", wide, {4 * width, s.D});
  CheckMemory(a.dbias, "dbias", wide, {4 * width});
  CheckMemory(a.dy, "dy", compute, {N, width});
  CheckState(a.dinitial, "dinitial", s, wide, /*needs_m=*/true);
  CheckState(a.dlast, "dlast", s, wide, /*needs_m=*/false);
  CAROUSEL_CHECK_GE(a.gradient_clip, 0.0);
  if (s.B == 0) return;
  const SlstmPath path = ChooseSlstmPath(a, context_.info());
  const BackwardScratch scratch(Cutter(a.workspace.data), s, compute);
  DispatchFloat(compute, [&]<class T>() {
    using W = Wide<T>;
    const SlstmBackwardPointers<T> p(a, static_cast<W*>(scratch.dbias));
    if (path == SlstmPath::kPersistent) {
      SlstmPersistentBackward(context_, p);
    } else if (path == SlstmPath::kSteps) {
      SlstmStepsBackward(context_, p, static_cast<W*>(scratch.running));
    } else if constexpr (sizeof(T) == 2) {
      SlstmTensorCoreBackward(context_, p);
    }
    if (N > 0) WeightGradients(context_, a, static_cast<T*>(scratch.y_before), p.dbias);
  });
}
}  // namespace carousel::CAROUSEL_DEVICE_NS
