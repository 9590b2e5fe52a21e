// slstm_internal.h - what the parts of the sLSTM op share: the arguments as kernels see them, the choice of
// the kernels, and the entry points of each path.
//
// Every path computes each sequence of each head on its own, token by token, with sums in a fixed order. So a
// sequence's bits depend neither on its batch nor on where a call begins or ends, and two runs are equal.
#pragma once
#include <limits>

#include "core/base/int_math.h"
#include "core/ops.h"
#include "kernels/cuda/context.h"

namespace carousel::CAROUSEL_DEVICE_NS {

enum class SlstmPath {
  kTensorCore,  // bf16, chosen widths: R stays in registers for the whole call (slstm_forward.cu,
                // .._backward.cu)
  kPersistent,  // any dtype, small heads: one kernel for all tokens (slstm_persistent.cu)
  kSteps,       // any dtype, any width: one kernel per token (slstm_steps.cu)
};

// kPersistent reads R of a head once per token, at 64 bytes per cycle and block; kSteps launches a kernel per
// token. From about this size on the latter is faster.
inline bool SlstmIsSmallHead(int64_t D, DType compute) {
  return D <= 256 && 4 * D * D * SizeOf(compute) <= 320 << 10;
}

// y, c, n, m, each (B, NH*D) wide; null if not given.
template <class W>
struct SlstmStatePointers {
  W *y = nullptr, *c = nullptr, *n = nullptr, *m = nullptr;
};
template <class W>
SlstmStatePointers<W> PointersOf(const SlstmState& state) {
  if (!state.y.defined()) return {};
  return {state.y.as<W>(), state.c.as<W>(), state.n.as<W>(), state.m.defined() ? state.m.as<W>() : nullptr};
}
inline const uint8_t* SlstmResetOf(const Tensor& reset) {
  return reset.defined() ? reset.as<uint8_t>() : nullptr;
}

// Members and shapes: SlstmForwardArgs.
template <class T>
struct SlstmForwardPointers {
  using W = Wide<T>;
  explicit SlstmForwardPointers(const SlstmForwardArgs& a)
      : y(a.y.as<T>()),
        gates(a.gates.as<W>()),
        c(a.c.as<W>()),
        n(a.n.as<W>()),
        m(a.m.as<W>()),
        last(PointersOf<W>(a.last)),
        wx(a.wx.as<W>()),
        recurrent(a.recurrent.as<T>()),
        bias(a.bias.as<W>()),
        reset(SlstmResetOf(a.reset)),
        initial(PointersOf<W>(a.initial)),
        shape(a.shape) {}
  T* y;
  W *gates, *c, *n, *m;
  SlstmStatePointers<W> last;
  const W* wx;
  const T* recurrent;
  const W* bias;
  const uint8_t* reset;  // may be null
  SlstmStatePointers<W> initial;
  SlstmShape shape;
};

// Members and shapes: SlstmBackwardArgs.
template <class T>
struct SlstmBackwardPointers {
  using W = Wide<T>;
  SlstmBackwardPointers(const SlstmBackwardArgs& a, W* dbias_of_sequences)
      : dwx(a.dwx.as<T>()),
        dinitial(PointersOf<W>(a.dinitial)),
        dbias(dbias_of_sequences),
        dy(a.dy.as<T>()),
        dlast(PointersOf<W>(a.dlast)),
        gates(a.gates.as<W>()),
        c(a.c.as<W>()),
        n(a.n.as<W>()),
        recurrent(a.recurrent.as<T>()),
        reset(SlstmResetOf(a.reset)),
        initial(PointersOf<W>(a.initial)),
        shape(a.shape),
        cut(a.gradient_cut),
        limit(a.gradient_clip > 0 ? static_cast<W>(a.gradient_clip) : std::numeric_limits<W>::infinity()) {}
  T* dwx;
  SlstmStatePointers<W> dinitial;
  W* dbias;  // (B, 4*NH*D) out: sums of draw over each sequence
  const T* dy;
  SlstmStatePointers<W> dlast;  // its m is not used
  const W *gates, *c, *n;
  const T* recurrent;
  const uint8_t* reset;  // may be null
  SlstmStatePointers<W> initial;
  SlstmShape shape;
  bool cut;
  W limit;  // of a gradient that comes back through R
};

// The path of these arguments: a pure function of shape, dtype, alignments and device.
SlstmPath ChooseSlstmPath(const SlstmForwardArgs& args, const DeviceInfo& info);
SlstmPath ChooseSlstmPath(const SlstmBackwardArgs& args, const DeviceInfo& info);

// Shared memory of a block of the tensor-core kernels; 0 if they have no instance for heads of width D.
int64_t SlstmTensorCoreForwardSharedBytes(int64_t D, int compute_capability);
int64_t SlstmTensorCoreBackwardSharedBytes(int64_t D, int compute_capability);

// The entry points below enqueue the whole recurrence: all outputs of the forward pass; dwx, dinitial and the
// dbias of every sequence of the backward pass. REQUIRES: arguments checked, B >= 1, T >= 1.
void SlstmTensorCoreForward(Context& context, const SlstmForwardPointers<bfloat16>& p);
void SlstmTensorCoreBackward(Context& context, const SlstmBackwardPointers<bfloat16>& p);

// transposed: scratch for 4*NH*D*D elements.
template <class T>
void SlstmPersistentForward(Context& context, const SlstmForwardPointers<T>& p, T* transposed);
template <class T>
void SlstmPersistentBackward(Context& context, const SlstmBackwardPointers<T>& p);

template <class T>
void SlstmStepsForward(Context& context, const SlstmForwardPointers<T>& p);
// running: scratch for 2*B*NH*D elements.
template <class T>
void SlstmStepsBackward(Context& context, const SlstmBackwardPointers<T>& p, Wide<T>* running);

}  // namespace carousel::CAROUSEL_DEVICE_NS
