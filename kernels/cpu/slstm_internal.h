// What the implementations of the sLSTM cell share.
#pragma once
#include <cstddef>
#include <cstdint>

#include "core/base/int_math.h"
#include "core/ops.h"

namespace carousel::cpu {

constexpr int64_t kSlstmGates = 4;
constexpr int64_t kSlstmAlign = 64;  // bytes; one cache line, one AVX-512 vector

// Cuts arrays out of the workspace; without a base address it only counts.
class SlstmScratch {
 public:
  SlstmScratch() = default;
  explicit SlstmScratch(const Tensor& workspace) {
    const auto address = reinterpret_cast<uintptr_t>(workspace.data);
    base_ = static_cast<std::byte*>(workspace.data) + (RoundUp(address, kSlstmAlign) - address);
  }
  template <class E>
  E* Take(int64_t num_elems) {
    std::byte* const place = base_ == nullptr ? nullptr : base_ + used_bytes_;
    used_bytes_ += RoundUp(num_elems * static_cast<int64_t>(sizeof(E)), kSlstmAlign);
    return reinterpret_cast<E*>(place);
  }
  // What a workspace at any address must have.
  int64_t needed_bytes() const { return used_bytes_ + kSlstmAlign; }

 private:
  std::byte* base_ = nullptr;
  int64_t used_bytes_ = 0;
};

// A document starts at row n.
inline bool SlstmStarts(const Tensor& reset, int64_t n) {
  return reset.defined() && reset.as<uint8_t>()[n] != 0;
}
}  // namespace carousel::cpu
