// What the implementations of the mLSTM cell share: views of one (batch, head) pair, scratch memory cut into
// slots, and the scalar gate functions.
#pragma once
#include <atomic>
#include <cmath>
#include <cstdint>

#include "core/base/int_math.h"
#include "core/ops.h"
#include "kernels/cpu/thread_pool.h"

namespace carousel::cpu {

// Scratch is cut into this many slots at most, so that memory does not grow with B*NH. At most this many
// (batch, head) pairs are worked on at the same time.
constexpr int64_t kMlstmMaxSlots = 64;
constexpr int64_t kMlstmAlign = 64;  // bytes; one cache line, one AVX-512 vector

inline int64_t MlstmNumSlots(const MlstmShape& s) {
  return s.B * s.NH < kMlstmMaxSlots ? s.B * s.NH : kMlstmMaxSlots;
}

// The chunk length in use: a chunk never is longer than the sequence. At least 1, also for an empty sequence.
inline int64_t MlstmChunkLength(const MlstmShape& s) {
  const int64_t L = s.L < s.T ? s.L : s.T;
  return L > 1 ? L : 1;
}

// The columns of one head in the rows of one batch entry: row t of the sequence is data[t * row_stride].
template <class T>
struct HeadRows {
  T* data = nullptr;
  int64_t row_stride = 0;
  T* operator[](int64_t t) const { return data + t * row_stride; }
};
// width: columns per head. A tensor that is not defined gives null data.
template <class T>
HeadRows<T> HeadRowsOf(const Tensor& x, const MlstmShape& s, int64_t b, int64_t head, int64_t width) {
  if (!x.defined()) return {};
  return {x.as<T>() + b * s.T * x.row_stride + head * width, x.row_stride};
}

// Resets of one batch entry; null if there are none.
inline const uint8_t* ResetsOf(const Tensor& reset, const MlstmShape& s, int64_t b) {
  return reset.defined() ? reset.as<uint8_t>() + b * s.T : nullptr;
}

// The state of one (batch, head) pair: C (DHQK, DHV), n (DHQK), m scalar. Null where the state, or its m, is
// not given.
template <class W>
struct HeadState {
  W *C = nullptr, *n = nullptr, *m = nullptr;
};
template <class W>
HeadState<W> HeadStateOf(const MlstmState& state, const MlstmShape& s, int64_t b, int64_t head) {
  if (!state.C.defined()) return {};
  const int64_t pair = b * s.NH + head;
  return {state.C.as<W>() + pair * s.DHQK * s.DHV, state.n.as<W>() + pair * s.DHQK,
          state.m.defined() ? state.m.as<W>() + pair : nullptr};
}

// Cuts arrays out of one slot; without a base address it only counts.
class MlstmScratch {
 public:
  explicit MlstmScratch(std::byte* base) : base_(base) {}
  template <class W>
  W* Take(int64_t num_elems) {
    std::byte* const place = base_ == nullptr ? nullptr : base_ + used_bytes_;
    used_bytes_ += RoundUp(num_elems * static_cast<int64_t>(sizeof(W)), kMlstmAlign);
    return reinterpret_cast<W*>(place);
  }
  int64_t used_bytes() const { return used_bytes_; }

 private:
  std::byte* base_;
  int64_t used_bytes_ = 0;
};

// The first aligned address of the workspace. MlstmWorkspaceBytes has room for the loss.
inline std::byte* AlignedWorkspace(const Tensor& workspace) {
  const auto address = reinterpret_cast<uintptr_t>(workspace.data);
  return static_cast<std::byte*>(workspace.data) + (RoundUp(address, kMlstmAlign) - address);
}

// Calls fn(b, head, slot_memory) for every (batch, head) pair. Each slot is a worker that takes the next pair
// when it is done with one; a pair's result does not depend on the slot, so the order of work cannot be seen.
template <class Fn>
void ForEachHead(const MlstmShape& s, const Tensor& workspace, int64_t slot_bytes, ThreadPool& pool,
                 Fn&& fn) {
  std::byte* const base = AlignedWorkspace(workspace);
  const int64_t num_pairs = s.B * s.NH;
  std::atomic<int64_t> next = 0;
  pool.ParallelFor(MlstmNumSlots(s), [&](int64_t slot) {
    for (;;) {
      const int64_t pair = next.fetch_add(1, std::memory_order_relaxed);
      if (pair >= num_pairs) return;
      fn(pair / s.NH, pair % s.NH, base + slot * slot_bytes);
    }
  });
}

// log sigmoid(x) without overflow and with full relative accuracy for large x.
template <class W>
W LogSigmoid(W x) {
  return (x < 0 ? x : W(0)) - std::log1p(std::exp(-std::abs(x)));
}
// 1 - sigmoid(x): the derivative of log sigmoid(x).
template <class W>
W SigmoidOfMinus(W x) {
  return x > 0 ? std::exp(-x) / (1 + std::exp(-x)) : 1 / (1 + std::exp(x));
}
// e^-m, the floor of the denominator in stabilised units; the exponent is limited so that f32 cannot
// overflow.
template <class W>
W DenominatorFloor(W m) {
  return std::exp(-m < 80 ? -m : W(80));
}
}  // namespace carousel::cpu
