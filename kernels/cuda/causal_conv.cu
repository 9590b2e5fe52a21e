// Causal depthwise convolution over time with optional SiLU; formulas in core/ops.h. Backward, with
// dp = dy silu'(p) (p is computed again) and d = K-1-j the age of a tap:
//   dx_s = sum_d weight[:, K-1-d] dp_{s+d};   dweight[:, j] = sum_t dp_t x_{t-d};   dbias = sum_t dp_t
// over the pairs (token, tap) that lie in one document. The state is a prefix of K-1 more tokens.
// Four taps of bf16 and f32: causal_conv_taps.h; everything else: causal_conv_loops.h. Grids, shared memory
// and what is read twice are described there. Per element in bf16: 4 bytes forward, 6 backward.
#include <algorithm>

#include "kernels/cuda/causal_conv_loops.h"
#include "kernels/cuda/device_ops.h"
#include "kernels/cuda/reduce.h"

namespace carousel::CAROUSEL_DEVICE_NS {
namespace {

constexpr int kFastTaps = 4;

template <class T, class Args>
ConvInputs<T> InputsOf(const Args& a) {
  using W = Wide<T>;
  return {.x = a.x.template as<T>(),
          .weight = a.weight.template as<T>(),
          .bias = DataOrNull<W>(a.bias),
          .reset = DataOrNull<uint8_t>(a.reset),
          .initial = DataOrNull<W>(a.initial),
          .x_stride = a.x.row_stride,
          .B = a.shape.B,
          .T_ = a.shape.T,
          .C = a.shape.C,
          .K = a.shape.K,
          .silu = a.silu};
}

// How threads lie over channels and runs of tokens.
struct ConvLayout {
  dim3 block;
  int64_t run, run_blocks, channel_blocks;
};
// Runs are long enough to read few tokens twice, and short enough to fill the device.
ConvLayout PickLayout(const CausalConvShape& shape, int V, int64_t threads, int num_sms) {
  constexpr int64_t kThreadsPerSm = 512, kMinRun = 8, kMaxRun = 64;
  const int64_t vectors = CeilDiv(shape.C, V);
  const int64_t wanted = shape.B * shape.T * vectors / (num_sms * kThreadsPerSm);
  const int64_t run = std::clamp(RoundUp(wanted, kConvChunk), kMinRun, kMaxRun);
  int64_t lanes = 1;
  while (lanes < vectors && lanes < kWarpSize) lanes *= 2;
  const int64_t runs = shape.B * CeilDiv(shape.T, run), deep = threads / lanes;
  return {.block = dim3(static_cast<unsigned>(lanes), static_cast<unsigned>(std::min(deep, runs))),
          .run = run,
          .run_blocks = CeilDiv(runs, std::min(deep, runs)),
          .channel_blocks = CeilDiv(vectors, lanes)};
}
// Whether V channels at a time are aligned in the weights (C, K) and in all other tensors.
template <class... Tensors>
bool Vectorised(int V, const Tensor& weight, const Tensors&... tensors) {
  return reinterpret_cast<uintptr_t>(weight.data) % kAccessBytes == 0 && AllVectorisable(V, tensors...);
}
unsigned LoopGrid(int64_t elems) { return GridExtent(CeilDiv(elems, kConvLoopThreads)); }

template <class T>
void Forward(Context& context, const CausalConvForwardArgs& a) {
  const auto [B, T_, C, K] = a.shape;
  ConvForwardRows<T> rows = {
      .in = InputsOf<T>(a), .y = DataOrNull<T>(a.y), .y_stride = a.y.row_stride, .run = 1};
  const auto launch = [&](auto kernel, int V) {
    const ConvLayout layout = PickLayout(a.shape, V, kConvForwardThreads, context.info().num_sms);
    rows.run = layout.run;
    context.Launch(kernel,
                   {.grid = dim3(GridExtent(layout.run_blocks), GridExtent(layout.channel_blocks)),
                    .block = layout.block,
                    .name = "CausalConvForward"},
                   rows);
  };
  bool done = !a.y.defined();
  if constexpr (!std::is_same_v<T, double>) {
    constexpr int V = kVecElems<T>;
    if (!done && K == kFastTaps) {
      Vectorised(V, a.weight, a.y, a.x, a.bias, a.initial) ? launch(ConvForwardKernel<T, V, kFastTaps>, V)
                                                           : launch(ConvForwardKernel<T, 1, kFastTaps>, 1);
      done = true;
    }
  }
  if (!done) {
    context.Launch(
        ConvForwardLoopKernel<T>,
        {.grid = dim3(LoopGrid(B * T_ * C)), .block = dim3(kConvLoopThreads), .name = "CausalConvForward"},
        rows);
  }
  if (a.last.defined() && K > 1) {
    context.Launch(
        ConvLastKernel<T>,
        {.grid = dim3(LoopGrid(B * C)), .block = dim3(kConvLoopThreads), .name = "CausalConvForward (state)"},
        rows.in, a.last.as<Wide<T>>());
  }
}

template <class T>
ConvBackwardRows<T> BackwardRowsOf(const CausalConvBackwardArgs& a) {
  using W = Wide<T>;
  return {.in = InputsOf<T>(a),
          .dx = DataOrNull<T>(a.dx),
          .dinitial = DataOrNull<W>(a.dinitial),
          .dy = a.dy.as<T>(),
          .dlast = DataOrNull<W>(a.dlast),
          .dx_stride = a.dx.row_stride,
          .dy_stride = a.dy.row_stride,
          .accumulate_dx = a.accumulate_dx,
          .run = 1,
          .dweight = nullptr,
          .dbias = nullptr};
}
// Places the partial sums in scratch memory behind `before` elements, which the result points to.
template <class T>
Wide<T>* PlacePartials(Context& context, const CausalConvBackwardArgs& a, int64_t before, int64_t partials,
                       ConvBackwardRows<T>& rows) {
  using W = Wide<T>;
  const int64_t C = a.shape.C, K = a.shape.K, taps = a.dbias.defined() ? K + 1 : K;
  W* const scratch =
      static_cast<W*>(context.Scratch((before + partials * C * taps) * static_cast<int64_t>(sizeof(W))));
  rows.dweight = scratch + before;
  rows.dbias = a.dbias.defined() ? rows.dweight + partials * C * K : nullptr;
  return scratch;
}

template <class T>
void InitialGradient(Context& context, const CausalConvBackwardArgs& a, const ConvBackwardRows<T>& rows) {
  const auto [B, T_, C, K] = a.shape;
  if (K == 1) return;
  context.Launch(ConvInitialGradientLoopKernel<T>,
                 {.grid = dim3(LoopGrid(B * (K - 1) * C)),
                  .block = dim3(kConvLoopThreads),
                  .name = "CausalConvBackward (state)"},
                 rows);
}

template <class T>
void Backward(Context& context, const CausalConvBackwardArgs& a) {
  using W = Wide<T>;
  const auto [B, T_, C, K] = a.shape;
  ConvBackwardRows<T> rows = BackwardRowsOf<T>(a);
  if (!a.dx.defined()) return InitialGradient(context, a, rows);
  int64_t partials = 0;
  // The sums of a thread take 3 kFastTaps V registers: 8 bytes of bf16 at a time.
  constexpr int V = 4;
  const auto launch = [&](auto kernel, int vector) {
    const ConvLayout layout = PickLayout(a.shape, vector, kConvBackwardThreads, context.info().num_sms);
    constexpr int64_t kBlocksPerSm = 3;
    partials = std::min(layout.run_blocks,
                        std::max<int64_t>(1, kBlocksPerSm * context.info().num_sms / layout.channel_blocks));
    rows.run = layout.run;
    PlacePartials(context, a, 0, partials, rows);
    context.Launch(kernel,
                   {.grid = dim3(GridExtent(partials), GridExtent(layout.channel_blocks)),
                    .block = layout.block,
                    .name = "CausalConvBackward"},
                   rows);
  };
  if constexpr (!std::is_same_v<T, double>) {
    if (K == kFastTaps && Vectorised(V, a.weight, a.dx, a.dinitial, a.dy, a.dlast, a.x, a.bias, a.initial)) {
      launch(ConvBackwardKernel<T, V, kFastTaps>, V);
    } else if (K == kFastTaps) {
      launch(ConvBackwardKernel<T, 1, kFastTaps>, 1);
    }
  }
  if (partials == 0) {
    constexpr int64_t kTokensPerPartial = 64, kMaxPartials = 256;
    partials = std::min(CeilDiv(B * T_, kTokensPerPartial), kMaxPartials);
    // a whole number of 16-byte accesses before the partial sums
    const int64_t elems = RoundUp(B * T_ * C, kAccessBytes);
    W* const dp = PlacePartials(context, a, elems, partials, rows);
    const auto launch_loop = [&](auto kernel, int64_t count, const char* name) {
      context.Launch(kernel, {.grid = dim3(LoopGrid(count)), .block = dim3(kConvLoopThreads), .name = name},
                     rows, dp);
    };
    launch_loop(ConvGradientLoopKernel<T>, B * T_ * C, "CausalConvBackward (pre-activation)");
    context.Launch(ConvWeightGradientLoopKernel<T>,
                   {.grid = dim3(GridExtent(CeilDiv(C, kPartialColumns)), GridExtent(partials)),
                    .block = dim3(kPartialColumns, kPartialLanes),
                    .name = "CausalConvBackward (weights)"},
                   rows, dp);
    launch_loop(ConvInputGradientLoopKernel<T>, B * T_ * C, "CausalConvBackward (inputs)");
    if (a.dinitial.defined()) InitialGradient(context, a, rows);
  }
  AddPartials(context, a.dweight.as<W>(), rows.dweight, partials, C * K);
  if (a.dbias.defined()) AddPartials(context, a.dbias.as<W>(), rows.dbias, partials, C);
}
}  // namespace

void DeviceOps::CausalConvForward(const CausalConvForwardArgs& a) {
  CheckArgs(a);
  const DType compute = a.x.dtype;
  const auto [B, T_, C, K] = a.shape;
  if (B == 0) return;
  DispatchFloat(compute, [&]<class T>() { Forward<T>(context_, a); });
}

void DeviceOps::CausalConvBackward(const CausalConvBackwardArgs& a) {
  CheckArgs(a);
  const DType compute = a.x.dtype;
  const auto [B, T_, C, K] = a.shape;
  if (B == 0) return;
  DispatchFloat(compute, [&]<class T>() { Backward<T>(context_, a); });
}
}  // namespace carousel::CAROUSEL_DEVICE_NS
