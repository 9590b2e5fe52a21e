// The gated feed-forward's product and the loss. Formulas: core/ops.h.
#include "kernels/cpu/simd/row_kernels.h"
#include "kernels/cpu/simd/simd_math.h"

namespace carousel::cpu::CAROUSEL_SIMD_NS {
namespace {

template <class T, RowActivation kActivation>
void GluForward(const GluForwardRows<T>& a, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    const T* gate = a.gate + r * a.gate_stride;
    const T* up = a.up + r * a.up_stride;
    T* y = a.y + r * a.F;
    ForEachVec(a.F, [&](int64_t c, auto count) {
      const VecF g = Load(gate + c, count);
      if constexpr (kActivation == RowActivation::kSilu) {
        Store(y + c, g * Sigmoid(g) * Load(up + c, count), count);
      } else {
        Store(y + c, g * StandardNormal(g).distribution * Load(up + c, count), count);
      }
    });
  }
}

template <class T, RowActivation kActivation>
void GluBackward(const GluBackwardRows<T>& a, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    const T* gate = a.gate + r * a.gate_stride;
    const T* up = a.up + r * a.up_stride;
    const T* dy = a.dy + r * a.F;
    T* dgate = a.dgate + r * a.dgate_stride;
    T* dup = a.dup + r * a.dup_stride;
    ForEachVec(a.F, [&](int64_t c, auto count) {
      const VecF g = Load(gate + c, count), u = Load(up + c, count), d = Load(dy + c, count);
      if constexpr (kActivation == RowActivation::kSilu) {
        const VecF s = Sigmoid(g);
        Store(dgate + c, d * u * s * (1.0f + g * (1.0f - s)), count);
        Store(dup + c, d * g * s, count);
      } else {
        const StandardNormal<VecF> n(g);
        Store(dgate + c, d * u * (n.distribution + g * n.density), count);
        Store(dup + c, d * g * n.distribution, count);
      }
    });
  }
}

// Whether the target's logit is the largest of its row, the first of equals. False if any logit is NaN.
CAROUSEL_INLINE bool TargetIsLargest(const float* logits, int64_t V, int64_t target) {
  const float at_target = logits[target];
  VecI failed = {};
  ForEachVec(target, [&](int64_t c, auto count) {
    failed |= ~(Load(logits + c, count, -__builtin_inff()) < at_target);
  });
  ForEachVec(V - target, [&](int64_t c, auto count) {
    failed |= ~(Load(logits + target + c, count, at_target) <= at_target);
  });
  int32_t any = 0;
  for (int i = 0; i < kLanes; ++i) any |= failed[i];
  return any == 0;
}

// Three passes over a row that stays in cache: maximum; exponentials and their sum; gradient.
template <class T>
void CrossEntropy(const CrossEntropyRows<T>& a, int64_t begin, int64_t end, float* scratch) {
  const bool capped = a.soft_cap > 0.0f;
  const float cap = a.soft_cap, inverse_cap = capped ? 1.0f / a.soft_cap : 0.0f;
  float* exponentials = scratch;  // exp(z - max z)
  float* slopes = scratch + a.V;  // dz / dlogits = 1 - (z / cap)^2
  for (int64_t r = begin; r < end; ++r) {
    const int32_t target = a.targets[r];
    T* dlogits = a.dlogits == nullptr ? nullptr : a.dlogits + r * a.V;
    if (target < 0) {
      a.loss[r] = 0.0f;
      if (a.correct != nullptr) a.correct[r] = 0;
      if (dlogits != nullptr) {
        for (int64_t c = 0; c < a.V; ++c) StoreOne(dlogits + c, 0.0f);
      }
      continue;
    }
    const float* logits = a.logits + r * a.V;
    if (a.correct != nullptr) a.correct[r] = TargetIsLargest(logits, a.V, target);
    // z grows with the logit, so the largest logit has the largest z
    VecF largest = Broadcast(logits[0]);
    ForEachVec(a.V,
               [&](int64_t c, auto count) { largest = Max(Load(logits + c, count, logits[0]), largest); });
    // z of the largest logit and of the target's, by the same instructions: equal logits give equal z
    float pair[kLanes] = {MaxLanes(largest), logits[target]};
    if (capped) Store(pair, Tanh(Load(pair) * inverse_cap) * cap);
    const float max_z = pair[0], target_z = pair[1];
    VecF sums = {};
    const float nothing = -__builtin_inff();
    if (capped) {
      ForEachVec(a.V, [&](int64_t c, auto count) {
        const VecF t = Tanh(Load(logits + c, count, nothing) * inverse_cap);
        Store(slopes + c, 1.0f - t * t, count);
        Store(exponentials + c, Exp(t * cap - max_z), count);
      });
      ForEachVec(a.V, [&](int64_t c, auto count) { sums += Load(exponentials + c, count); });
    } else {
      ForEachVec(a.V, [&](int64_t c, auto count) {
        const VecF e = Exp(Load(logits + c, count, nothing) - max_z);
        sums += e;
        Store(exponentials + c, e, count);
      });
    }
    const float sum = SumLanes(sums);
    a.loss[r] = Log(sum) + (max_z - target_z);
    if (dlogits == nullptr) continue;
    // softmax - one_hot(target), times the slope of the cap
    const float inverse_sum = 1.0f / sum;
    if (capped) {
      ForEachVec(a.V, [&](int64_t c, auto count) {
        Store(dlogits + c, Load(exponentials + c, count) * inverse_sum * Load(slopes + c, count), count);
      });
    } else {
      ForEachVec(a.V, [&](int64_t c, auto count) {
        Store(dlogits + c, Load(exponentials + c, count) * inverse_sum, count);
      });
    }
    StoreOne(dlogits + target,
             (exponentials[target] * inverse_sum - 1.0f) * (capped ? slopes[target] : 1.0f));
  }
}

template <class T>
constexpr ActivationKernels<T> kKernels = {
    .glu_forward = {GluForward<T, RowActivation::kSilu>, GluForward<T, RowActivation::kGelu>},
    .glu_backward = {GluBackward<T, RowActivation::kSilu>, GluBackward<T, RowActivation::kGelu>},
    .cross_entropy = CrossEntropy<T>,
};
}  // namespace

const ActivationKernels<float>& GetActivationKernelsF32() { return kKernels<float>; }
const ActivationKernels<uint16_t>& GetActivationKernelsBf16() { return kKernels<uint16_t>; }
}  // namespace carousel::cpu::CAROUSEL_SIMD_NS
