// y = act(o_pre) z, or z; z = xhat scale (+ bias) (+ skip_weight skip); xhat = (h - mean) rstd over one
// head's columns (layer norm per head). The scale is weight, 1 + weight or 1. Backward, with g = dy
// act(o_pre) the gradient of z: do_pre = dy z act'(o_pre); dskip = g skip_weight; dh = rstd (scale g -
// mean(scale g) - xhat mean(scale g xhat)). Kernels, grids, shared memory and what is read twice:
// head_norm_rows.h. Per element in bf16 with a gate: 6 bytes forward, 10 backward; with a skip 8 and 14;
// and 2 more backward with y.
#include "kernels/cuda/device_ops.h"
#include "kernels/cuda/head_norm_rows.h"

namespace carousel::CAROUSEL_DEVICE_NS {
namespace {

// Vectors per thread of a head of one warp.
template <class T>
constexpr int kMaxHeadItems = kLongSegmentElems / kVecElems<T>;

template <class T, class Args>
HeadNormInputs<T> InputsOf(const Args& a) {
  using W = Wide<T>;
  HeadGate gate = HeadGate::kNone;
  if (a.o_pre.defined()) gate = a.gate == OutputGate::kSigmoid ? HeadGate::kSigmoid : HeadGate::kSilu;
  return {.h = a.h.template as<T>(),
          .o_pre = DataOrNull<T>(a.o_pre),
          .skip = DataOrNull<T>(a.skip),
          .o_stride = a.o_pre.row_stride,
          .skip_stride = a.skip.row_stride,
          .weight = DataOrNull<W>(a.weight),
          .bias = DataOrNull<W>(a.bias),
          .skip_weight = DataOrNull<W>(a.skip_weight),
          .one = static_cast<W>(a.residual_weight ? 1 : 0),
          .gate = gate,
          .N = a.h.dim[0],
          .NH = a.NH,
          .DHV = a.h.dim[1] / a.NH};
}
// V of a call: the columns of every head must begin at a multiple of it.
template <class T, class... Tensors>
int PickV(int64_t DHV, const Tensors&... tensors) {
  constexpr int V = kVecElems<T>;
  return kRowsInRegisters<T> && DHV % V == 0 && AllVectorisable(V, tensors...) ? V : 1;
}

template <class T>
void Forward(Context& context, const HeadNormGateForwardArgs& a) {
  using W = Wide<T>;
  const HeadNormForwardRows<T> rows = {.in = InputsOf<T>(a),
                                       .y = a.y.as<T>(),
                                       .mean = a.mean.as<W>(),
                                       .rstd = a.rstd.as<W>(),
                                       .eps = static_cast<W>(a.eps)};
  const auto& in = rows.in;
  const int V = PickV<T>(in.DHV, a.y, a.h, a.o_pre, a.weight, a.bias, a.skip, a.skip_weight);
  const RowLayout layout = PickRowLayout(in.N, in.NH, in.DHV, V, kMaxHeadItems<T>, kMaxRowThreads);
  DispatchItems<T, kMaxHeadItems<T>>(V, layout.items, [&]<int kV, int kItems>() {
    if constexpr (kItems > 0) {
      context.Launch(HeadNormForwardKernel<T, kV, kItems>,
                     {.grid = dim3(GridExtent(layout.row_blocks), GridExtent(layout.segment_blocks)),
                      .block = layout.block,
                      .name = "HeadNormGateForward"},
                     rows);
    } else {
      context.Launch(HeadNormForwardLoopKernel<T, kV>,
                     {.grid = dim3(GridExtent(in.N * in.NH)),
                      .block = dim3(kMaxRowThreads),
                      .name = "HeadNormGateForward"},
                     rows);
    }
  });
}

template <class T>
void Backward(Context& context, const HeadNormGateBackwardArgs& a) {
  using W = Wide<T>;
  HeadNormBackwardRows<T> rows = {.in = InputsOf<T>(a),
                                  .dh = a.dh.as<T>(),
                                  .y = DataOrNull<T>(a.y),
                                  .do_pre = DataOrNull<T>(a.do_pre),
                                  .dskip = DataOrNull<T>(a.dskip),
                                  .do_stride = a.do_pre.row_stride,
                                  .dskip_stride = a.dskip.row_stride,
                                  .dy = a.dy.as<T>(),
                                  .mean = a.mean.as<W>(),
                                  .rstd = a.rstd.as<W>(),
                                  .dweight = nullptr,
                                  .dbias = nullptr,
                                  .dskip_weight = nullptr};
  const auto& in = rows.in;
  const int64_t width = in.NH * in.DHV;
  const int V = PickV<T>(in.DHV, a.dh, a.y, a.do_pre, a.dskip, a.dy, a.h, a.o_pre, a.weight, a.bias, a.skip,
                         a.skip_weight);
  const RowLayout layout = PickRowLayout(in.N, in.NH, in.DHV, V, kMaxHeadItems<T>, kRowBlockThreads);
  constexpr int64_t kRowsPerPartial = 64, kMaxPartials = 256;  // of the loops
  const bool loops = layout.items == 0 || !kRowsInRegisters<T>;
  const int64_t partials = loops ? std::min(CeilDiv(in.N, kRowsPerPartial), kMaxPartials)
                                 : PersistentBlocks(layout, context.info().num_sms);
  // One array of partial sums per gradient.
  const Tensor* const gradients[] = {&a.dweight, &a.dbias, &a.dskip_weight};
  W** const arrays[] = {&rows.dweight, &rows.dbias, &rows.dskip_weight};
  int64_t count = 0;
  for (const Tensor* gradient : gradients) count += gradient->defined() ? 1 : 0;
  if (count > 0) {
    W* next = static_cast<W*>(context.Scratch(count * partials * width * static_cast<int64_t>(sizeof(W))));
    for (int i = 0; i < 3; ++i) {
      if (!gradients[i]->defined()) continue;
      *arrays[i] = next;
      next += partials * width;
    }
  }
  DispatchItems<T, kMaxHeadItems<T>>(V, layout.items, [&]<int kV, int kItems>() {
    if constexpr (kItems > 0) {
      context.Launch(HeadNormBackwardKernel<T, kV, kItems>,
                     {.grid = dim3(GridExtent(partials), GridExtent(layout.segment_blocks)),
                      .block = layout.block,
                      .name = "HeadNormGateBackward"},
                     rows);
    } else {
      if (count > 0) {
        context.Launch(HeadNormWeightGradientKernel<T>,
                       {.grid = dim3(GridExtent(CeilDiv(width, kPartialColumns)), GridExtent(partials)),
                        .block = dim3(kPartialColumns, kPartialLanes),
                        .name = "HeadNormGateBackward"},
                       rows);
      }
      context.Launch(HeadNormBackwardLoopKernel<T, kV>,
                     {.grid = dim3(GridExtent(in.N * in.NH)),
                      .block = dim3(kMaxRowThreads),
                      .name = "HeadNormGateBackward"},
                     rows);
    }
  });
  for (int i = 0; i < 3; ++i) {
    if (gradients[i]->defined()) AddPartials(context, gradients[i]->as<W>(), *arrays[i], partials, width);
  }
}
}  // namespace

void DeviceOps::HeadNormGateForward(const HeadNormGateForwardArgs& a) {
  CheckArgs(a);
  const DType compute = a.y.dtype;
  const int64_t N = a.h.dim[0], width = a.h.dim[1];
  if (N == 0 || width == 0) return;
  DispatchFloat(compute, [&]<class T>() { Forward<T>(context_, a); });
}

void DeviceOps::HeadNormGateBackward(const HeadNormGateBackwardArgs& a) {
  CheckArgs(a);
  const DType compute = a.dy.dtype;
  const int64_t N = a.h.dim[0], width = a.h.dim[1];
  if (N == 0 || width == 0) return;
  DispatchFloat(compute, [&]<class T>() { Backward<T>(context_, a); });
}
}  // namespace carousel::CAROUSEL_DEVICE_NS
