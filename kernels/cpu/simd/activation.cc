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
    T* y = a.y == nullptr ? nullptr : a.y + r * a.F;
    ForEachVec(a.F, [&](int64_t c, auto count) {
      const VecF g = Load(gate + c, count), u = Load(up + c, count), d = Load(dy + c, count);
      if constexpr (kActivation == RowActivation::kSilu) {
        const VecF s = Sigmoid(g);
        if (y != nullptr) Store(y + c, g * s * u, count);
        Store(dgate + c, d * u * s * (1.0f + g * (1.0f - s)), count);
        Store(dup + c, d * g * s, count);
      } else {
        const StandardNormal<VecF> n(g);
        if (y != nullptr) Store(y + c, g * n.distribution * u, count);
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

// ---- the loss by parts of the vocabulary

// The cap on one logit, by the instructions that cap a whole row.
CAROUSEL_INLINE float CapOne(float logit, bool capped, float inverse_cap, float cap) {
  if (!capped) return logit;
  float lanes[kLanes];
  Store(lanes, Tanh(Broadcast(logit) * inverse_cap) * cap);
  return lanes[0];
}
struct Largest {
  float logit;
  int64_t place;  // the first of equal ones; -1 if any logit is NaN
};
CAROUSEL_INLINE Largest FindLargest(const float* logits, int64_t V) {
  VecF largest = Broadcast(-__builtin_inff());
  VecI place = {}, lane, nan = {};
  for (int i = 0; i < kLanes; ++i) lane[i] = i;
  ForEachVec(V, [&](int64_t c, auto count) {
    const VecF logit = Load(logits + c, count, -__builtin_inff());
    const VecI larger = logit > largest;
    largest = larger ? logit : largest;
    place = larger ? lane + static_cast<int32_t>(c) : place;
    nan |= logit != logit;
  });
  Largest result = {.logit = largest[0], .place = place[0]};
  int32_t any_nan = nan[0];
  for (int i = 1; i < kLanes; ++i) {
    any_nan |= nan[i];
    if (largest[i] > result.logit || (largest[i] == result.logit && place[i] < result.place)) {
      result = {.logit = largest[i], .place = place[i]};
    }
  }
  if (any_nan != 0) result.place = -1;
  return result;
}

void CrossEntropyStats(const CrossEntropyStatsRows& a, int64_t begin, int64_t end, float* scratch) {
  const bool capped = a.soft_cap > 0.0f;
  const float cap = a.soft_cap, inverse_cap = capped ? 1.0f / a.soft_cap : 0.0f;
  for (int64_t r = begin; r < end; ++r) {
    float* stats = a.stats + 4 * r;
    const float* logits = a.logits + r * a.V;
    if (a.targets[r] < 0) {
      for (int i = 0; i < 4; ++i) stats[i] = 0.0f;
      continue;
    }
    const Largest largest = FindLargest(logits, a.V);
    const float max_z = CapOne(largest.logit, capped, inverse_cap, cap);
    VecF sums = {};
    const float nothing = -__builtin_inff();
    if (capped) {
      ForEachVec(a.V, [&](int64_t c, auto count) {
        const VecF t = Tanh(Load(logits + c, count, nothing) * inverse_cap);
        Store(scratch + c, Exp(t * cap - max_z), count);
      });
      ForEachVec(a.V, [&](int64_t c, auto count) { sums += Load(scratch + c, count); });
    } else if (max_z > nothing || largest.place < 0) {
      ForEachVec(a.V, [&](int64_t c, auto count) { sums += Exp(Load(logits + c, count, nothing) - max_z); });
    }
    const int64_t target = a.targets[r] - a.first_id;
    stats[0] = largest.logit;
    stats[1] = SumLanes(sums);
    stats[2] = target >= 0 && target < a.V ? CapOne(logits[target], capped, inverse_cap, cap) : 0.0f;
    stats[3] = largest.place < 0 ? -1.0f : static_cast<float>(a.first_id + largest.place);
  }
}

template <class T>
void CrossEntropyFromStats(const CrossEntropyFromStatsRows<T>& a, int64_t begin, int64_t end) {
  const bool capped = a.soft_cap > 0.0f;
  const float cap = a.soft_cap, inverse_cap = capped ? 1.0f / a.soft_cap : 0.0f;
  for (int64_t r = begin; r < end; ++r) {
    T* dlogits = a.dlogits == nullptr ? nullptr : a.dlogits + r * a.V;
    if (a.targets[r] < 0) {
      a.loss[r] = 0.0f;
      if (a.correct != nullptr) a.correct[r] = 0;
      if (dlogits != nullptr) {
        for (int64_t c = 0; c < a.V; ++c) StoreOne(dlogits + c, 0.0f);
      }
      continue;
    }
    const auto stats = [&](int64_t part) { return a.stats + 4 * (part * a.n + r); };
    float largest = stats(0)[0], id = stats(0)[3];
    for (int64_t p = 1; p < a.num_parts; ++p) {
      const float* part = stats(p);
      const bool larger = part[0] > largest;
      largest = larger ? part[0] : largest;
      id = id < 0.0f || part[3] < 0.0f ? -1.0f : larger ? part[3] : id;
    }
    const float max_z = CapOne(largest, capped, inverse_cap, cap);
    float sum = 0.0f, target_z = 0.0f;
    for (int64_t p = 0; p < a.num_parts; ++p) {
      const float* part = stats(p);
      sum += part[1] * Exp(CapOne(part[0], capped, inverse_cap, cap) - max_z);
      target_z += part[2];
    }
    a.loss[r] = Log(sum) + (max_z - target_z);
    if (a.correct != nullptr) a.correct[r] = id == static_cast<float>(a.targets[r]);
    if (dlogits == nullptr) continue;
    // softmax - one_hot(target), times the slope of the cap
    const float inverse_sum = 1.0f / sum;
    const float* logits = a.logits + r * a.V;
    const int64_t target = a.targets[r] - a.first_id;
    const bool has_target = target >= 0 && target < a.V;
    const VecF at_target = Broadcast(has_target ? logits[target] : 0.0f);
    const auto gradient = [&](VecF logit, float minus) {
      if (!capped) return Exp(logit - max_z) * inverse_sum - minus;
      const VecF t = Tanh(logit * inverse_cap);
      return (Exp(t * cap - max_z) * inverse_sum - minus) * (1.0f - t * t);
    };
    ForEachVec(a.V, [&](int64_t c, auto count) {
      Store(dlogits + c, gradient(Load(logits + c, count), 0.0f), count);
    });
    if (has_target) StorePart(dlogits + target, gradient(at_target, 1.0f), 1);
  }
}

template <class T>
constexpr ActivationKernels<T> kKernels = {
    .glu_forward = {GluForward<T, RowActivation::kSilu>, GluForward<T, RowActivation::kGelu>},
    .glu_backward = {GluBackward<T, RowActivation::kSilu>, GluBackward<T, RowActivation::kGelu>},
    .cross_entropy = CrossEntropy<T>,
    .cross_entropy_stats = CrossEntropyStats,
    .cross_entropy_from_stats = CrossEntropyFromStats<T>,
};
}  // namespace

const ActivationKernels<float>& GetActivationKernelsF32() { return kKernels<float>; }
const ActivationKernels<uint16_t>& GetActivationKernelsBf16() { return kKernels<uint16_t>; }
}  // namespace carousel::cpu::CAROUSEL_SIMD_NS
