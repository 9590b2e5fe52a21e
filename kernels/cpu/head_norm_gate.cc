// y = act(o_pre) z, or z; z = xhat scale (+ bias) (+ skip_weight skip); xhat = (h - mean) rstd over one
// head's columns (layer norm per head). The scale is weight, 1 + weight or 1. Backward, with g = dy
// act(o_pre) the gradient of z: do_pre = dy z act'(o_pre); dskip = g skip_weight; dh = rstd (scale g -
// mean(scale g) - xhat mean(scale g xhat)).
#include <cmath>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/norm_scale.h"
#include "kernels/cpu/op_util.h"

namespace carousel::cpu {
namespace {

template <class W>
W Sigmoid(W x) {
  const W e = std::exp(-std::abs(x));
  return x < 0 ? e / (1 + e) : 1 / (1 + e);
}
template <class W>
W Act(OutputGate gate, W x) {
  return gate == OutputGate::kSigmoid ? Sigmoid(x) : x * Sigmoid(x);
}
// dy act'(x)
template <class W>
W TimesSlope(OutputGate gate, W dy, W x) {
  const W s = Sigmoid(x);
  return gate == OutputGate::kSigmoid ? dy * s * (1 - s) : dy * s * (1 + x * (1 - s));
}
// What stands at column c of a vector of parameters, `otherwise` where there is none.
template <class W>
W At(const Tensor& t, int64_t c, W otherwise) {
  return t.defined() ? t.as<W>()[c] : otherwise;
}
template <class W, class Args>
W Scale(const Args& a, int64_t c) {
  return a.residual_weight ? 1 + At<W>(a.weight, c, 0) : At<W>(a.weight, c, 1);
}
// skip_weight * skip, 0 without
template <class T, class Args>
Wide<T> Skip(const Args& a, int64_t r, int64_t c) {
  using W = Wide<T>;
  return a.skip.defined() ? a.skip_weight.template as<W>()[c] * static_cast<W>(Row<T>(a.skip, r)[c]) : W{0};
}

template <class T>
void Forward(const HeadNormGateForwardArgs& a, ThreadPool& pool) {
  using W = Wide<T>;
  const int64_t N = a.h.dim[0], width = a.h.dim[1], NH = a.NH, DHV = width / NH;
  pool.ParallelForBlocks(N, RowsPerTask(width), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      for (int64_t head = 0; head < NH; ++head) {
        const T* h = Row<T>(a.h, r) + head * DHV;
        W mean = 0, variance = 0;
        for (int64_t c = 0; c < DHV; ++c) mean += static_cast<W>(h[c]);
        mean /= static_cast<W>(DHV);
        for (int64_t c = 0; c < DHV; ++c) {
          variance += (static_cast<W>(h[c]) - mean) * (static_cast<W>(h[c]) - mean);
        }
        const W rstd = 1 / std::sqrt(variance / static_cast<W>(DHV) + static_cast<W>(a.eps));
        Row<W>(a.mean, r)[head] = mean;
        Row<W>(a.rstd, r)[head] = rstd;
        for (int64_t c = head * DHV; c < (head + 1) * DHV; ++c) {
          const W xhat = (static_cast<W>(Row<T>(a.h, r)[c]) - mean) * rstd;
          const W z = xhat * Scale<W>(a, c) + At<W>(a.bias, c, 0) + Skip<T>(a, r, c);
          Row<T>(a.y, r)[c] =
              static_cast<T>(a.o_pre.defined() ? Act(a.gate, static_cast<W>(Row<T>(a.o_pre, r)[c])) * z : z);
        }
      }
    }
  });
}

template <class T>
void Backward(const HeadNormGateBackwardArgs& a, ThreadPool& pool) {
  using W = Wide<T>;
  const int64_t N = a.h.dim[0], width = a.h.dim[1], NH = a.NH, DHV = width / NH;
  const auto xhat = [&](int64_t r, int64_t c) {
    return (static_cast<W>(Row<T>(a.h, r)[c]) - Row<W>(a.mean, r)[c / DHV]) * Row<W>(a.rstd, r)[c / DHV];
  };
  const auto g = [&](int64_t r, int64_t c) {
    const W dy = static_cast<W>(Row<T>(a.dy, r)[c]);
    return a.o_pre.defined() ? dy * Act(a.gate, static_cast<W>(Row<T>(a.o_pre, r)[c])) : dy;
  };
  pool.ParallelForBlocks(width, 16, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      W dweight = 0, dbias = 0, dskip_weight = 0;
      for (int64_t r = 0; r < N; ++r) {
        dweight += g(r, c) * xhat(r, c);
        dbias += g(r, c);
        if (a.skip.defined()) dskip_weight += g(r, c) * static_cast<W>(Row<T>(a.skip, r)[c]);
      }
      if (a.dweight.defined()) a.dweight.as<W>()[c] += dweight;
      if (a.dbias.defined()) a.dbias.as<W>()[c] += dbias;
      if (a.skip.defined()) a.dskip_weight.as<W>()[c] += dskip_weight;
    }
  });
  pool.ParallelForBlocks(N, RowsPerTask(width), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      for (int64_t head = 0; head < NH; ++head) {
        const int64_t first = head * DHV, last = first + DHV;
        W mean = 0, mean_xhat = 0;
        for (int64_t c = first; c < last; ++c) {
          mean += Scale<W>(a, c) * g(r, c);
          mean_xhat += Scale<W>(a, c) * g(r, c) * xhat(r, c);
        }
        mean /= static_cast<W>(DHV);
        mean_xhat /= static_cast<W>(DHV);
        for (int64_t c = first; c < last; ++c) {
          // everything that column c needs before anything is written; y, which may be dy, comes last
          const W z = xhat(r, c) * Scale<W>(a, c) + At<W>(a.bias, c, 0) + Skip<T>(a, r, c);
          const W dz = g(r, c);
          Row<T>(a.dh, r)[c] =
              static_cast<T>((Scale<W>(a, c) * dz - mean - xhat(r, c) * mean_xhat) * Row<W>(a.rstd, r)[head]);
          if (a.skip.defined()) {
            Row<T>(a.dskip, r)[c] = static_cast<T>(dz * a.skip_weight.as<W>()[c]);
          }
          if (a.o_pre.defined()) {
            const W o_pre = static_cast<W>(Row<T>(a.o_pre, r)[c]), dy = static_cast<W>(Row<T>(a.dy, r)[c]);
            Row<T>(a.do_pre, r)[c] = static_cast<T>(TimesSlope(a.gate, dy, o_pre) * z);
            if (a.y.defined()) Row<T>(a.y, r)[c] = static_cast<T>(Act(a.gate, o_pre) * z);
          } else if (a.y.defined()) {
            Row<T>(a.y, r)[c] = static_cast<T>(z);
          }
        }
      }
    }
  });
}

template <class Args>
int GateIndex(const Args& a) {
  if (!a.o_pre.defined()) return static_cast<int>(RowGate::kNone);
  return static_cast<int>(a.gate == OutputGate::kSigmoid ? RowGate::kSigmoid : RowGate::kSilu);
}
}  // namespace

template <class T>
void CpuOps::FastHeadNormGateForward(const HeadNormGateForwardArgs& a) {
  const int64_t width = a.h.dim[1];
  float* scale_room = ScratchF32(NormScaleRoom(a.weight, a.residual_weight, width));
  const HeadNormGateForwardRows<T> rows = {.y = RawData<T>(a.y),
                                           .mean = a.mean.as<float>(),
                                           .rstd = a.rstd.as<float>(),
                                           .h = RawData<T>(a.h),
                                           .o_pre = RawDataOrNull<T>(a.o_pre),
                                           .o_stride = a.o_pre.row_stride,
                                           .scale = NormScale(a.weight, a.residual_weight, width, scale_room),
                                           .bias = RawDataOrNull<float>(a.bias),
                                           .skip = RawDataOrNull<T>(a.skip),
                                           .skip_weight = RawDataOrNull<float>(a.skip_weight),
                                           .skip_stride = a.skip.row_stride,
                                           .NH = a.NH,
                                           .DHV = width / a.NH,
                                           .eps = static_cast<float>(a.eps)};
  const auto forward = norm<T>().head_norm_gate_forward[GateIndex(a)][a.skip.defined()];
  pool_.ParallelForBlocks(a.h.dim[0], RowsPerTask(width),
                          [&](int64_t begin, int64_t end) { forward(rows, begin, end); });
}

template <class T>
void CpuOps::FastHeadNormGateBackward(const HeadNormGateBackwardArgs& a) {
  const int64_t N = a.h.dim[0], width = a.h.dim[1], DHV = width / a.NH;
  // One partial sum per block of rows and gradient, then their sums. dweight's are taken without a weight,
  // too.
  const int64_t per_partial = RowsPerPartial(N), num_partials = CeilDiv(N, per_partial);
  const int64_t partial_elems = num_partials * width;
  float* dweight = ScratchF32(3 * partial_elems + pool_.num_threads() * DHV +
                              NormScaleRoom(a.weight, a.residual_weight, width));
  float* dbias = a.dbias.defined() ? dweight + partial_elems : nullptr;
  float* dskip_weight = a.skip.defined() ? dweight + 2 * partial_elems : nullptr;
  float* row_scratch = dweight + 3 * partial_elems;
  float* scale_room = row_scratch + pool_.num_threads() * DHV;
  const HeadNormGateBackwardRows<T> rows = {
      .dh = RawData<T>(a.dh),
      .y = RawDataOrNull<T>(a.y),
      .do_pre = RawDataOrNull<T>(a.do_pre),
      .do_stride = a.do_pre.row_stride,
      .dskip = RawDataOrNull<T>(a.dskip),
      .dskip_stride = a.dskip.row_stride,
      .dy = RawData<T>(a.dy),
      .h = RawData<T>(a.h),
      .o_pre = RawDataOrNull<T>(a.o_pre),
      .o_stride = a.o_pre.row_stride,
      .scale = NormScale(a.weight, a.residual_weight, width, scale_room),
      .bias = RawDataOrNull<float>(a.bias),
      .skip = RawDataOrNull<T>(a.skip),
      .skip_weight = RawDataOrNull<float>(a.skip_weight),
      .skip_stride = a.skip.row_stride,
      .mean = a.mean.as<float>(),
      .rstd = a.rstd.as<float>(),
      .NH = a.NH,
      .DHV = DHV};
  const auto backward = norm<T>().head_norm_gate_backward[GateIndex(a)][a.skip.defined()];
  pool_.ParallelFor(num_partials, [&](int64_t partial, int worker) {
    const int64_t begin = partial * per_partial, end = std::min(N, begin + per_partial);
    const auto sums = [&](float* partials) {
      return partials == nullptr ? nullptr : partials + partial * width;
    };
    backward(rows, begin, end,
             {.dweight = sums(dweight), .dbias = sums(dbias), .dskip_weight = sums(dskip_weight)},
             row_scratch + worker * DHV);
  });
  if (a.dweight.defined()) AddPartials(a.dweight.as<float>(), dweight, num_partials, width);
  if (dbias != nullptr) AddPartials(a.dbias.as<float>(), dbias, num_partials, width);
  if (dskip_weight != nullptr) {
    AddPartials(a.dskip_weight.as<float>(), dskip_weight, num_partials, width);
  }
}

void CpuOps::HeadNormGateForward(const HeadNormGateForwardArgs& a) {
  CheckArgs(a);
  const DType compute = a.y.dtype;
  if (!Fast(compute)) {
    DispatchFloat(compute, [&]<class T>() { Forward<T>(a, pool_); });
  } else if (compute == DType::kF32) {
    FastHeadNormGateForward<float>(a);
  } else {
    FastHeadNormGateForward<uint16_t>(a);
  }
}

void CpuOps::HeadNormGateBackward(const HeadNormGateBackwardArgs& a) {
  CheckArgs(a);
  const DType compute = a.dy.dtype;
  if (!Fast(compute)) {
    DispatchFloat(compute, [&]<class T>() { Backward<T>(a, pool_); });
  } else if (compute == DType::kF32) {
    FastHeadNormGateBackward<float>(a);
  } else {
    FastHeadNormGateBackward<uint16_t>(a);
  }
}
}  // namespace carousel::cpu
