// What tests of single ops share: a matrix in memory of its own, and the paths of the CPU backend.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "core/base/random.h"
#include "core/tensor.h"
#include "kernels/cpu/cpu_device.h"

namespace carousel::testing {

// A matrix (N, W) of a floating dtype, with `gap` elements between rows. Every element, those of gaps too,
// starts as kUntouched.
class Matrix {
 public:
  static constexpr double kUntouched = -7;

  Matrix(DType dtype, int64_t N, int64_t W, int64_t gap = 0)
      : memory_(static_cast<size_t>(N * (W + gap) * SizeOf(dtype))), t_(memory_.data(), dtype, {N, W}) {
    t_.row_stride = W + gap;
    for (int64_t r = 0; r < N; ++r) {
      for (int64_t c = 0; c < W + gap; ++c) Set(r, c, kUntouched);
    }
  }
  Matrix(const Matrix& other) : memory_(other.memory_), t_(other.t_) { t_.data = memory_.data(); }
  Matrix& operator=(const Matrix&) = delete;

  const Tensor& t() const { return t_; }
  // The same memory with other dims; no gaps.
  Tensor As(std::initializer_list<int64_t> dims) const { return t_.Reshape(dims); }
  // A column that lies in a gap is allowed.
  double Get(int64_t r, int64_t c) const {
    const int64_t i = r * t_.row_stride + c;
    switch (t_.dtype) {
      case DType::kF32:
        return static_cast<double>(t_.as<float>()[i]);
      case DType::kBF16:
        return static_cast<double>(static_cast<float>(t_.as<bfloat16>()[i]));
      default:
        return t_.as<double>()[i];
    }
  }
  void Set(int64_t r, int64_t c, double value) {
    const int64_t i = r * t_.row_stride + c;
    switch (t_.dtype) {
      case DType::kF32:
        t_.as<float>()[i] = static_cast<float>(value);
        break;
      case DType::kBF16:
        t_.as<bfloat16>()[i] = bfloat16(static_cast<float>(value));
        break;
      default:
        t_.as<double>()[i] = value;
    }
  }
  Matrix& Fill(double value) {
    for (int64_t r = 0; r < t_.dim[0]; ++r) {
      for (int64_t c = 0; c < t_.dim[1]; ++c) Set(r, c, value);
    }
    return *this;
  }
  // Multiples of 1/64 in [-1.5, 1.5], none of them 0: bf16 holds them, too.
  Matrix& FillRandom(uint64_t stream) {
    for (int64_t r = 0; r < t_.dim[0]; ++r) {
      for (int64_t c = 0; c < t_.dim[1]; ++c) {
        const uint64_t bits = RandomUint64(3, stream, static_cast<uint64_t>(r * t_.dim[1] + c));
        Set(r, c, (1 + static_cast<double>(bits % 96)) * ((bits >> 32) % 2 == 0 ? 0x1p-6 : -0x1p-6));
      }
    }
    return *this;
  }
  // All bits, those of gaps too.
  bool operator==(const Matrix& other) const { return memory_ == other.memory_; }

 private:
  std::vector<std::byte> memory_;
  Tensor t_;
};

struct OpPath {
  std::string name;
  DType compute;
  cpu::CpuOptions options;
};
// Every dtype in plain loops, and the fast loops at every level that this machine has, with two threads.
inline std::vector<OpPath> AllOpPaths() {
  std::vector<OpPath> paths;
  for (const DType compute : {DType::kF64, DType::kF32, DType::kBF16}) {
    const std::string dtype = NameOf(compute);
    paths.push_back({dtype + " plain", compute, {.num_threads = 1, .reference = true}});
    if (compute == DType::kF64) continue;
    for (const cpu::SimdLevel level : {cpu::SimdLevel::kBase, cpu::SimdLevel::kV3, cpu::SimdLevel::kV4}) {
      if (level > cpu::DetectSimdLevel()) continue;
      paths.push_back({dtype + " " + NameOf(level), compute, {.num_threads = 2, .simd_level = level}});
    }
  }
  paths.push_back({"bf16 without tiles", DType::kBF16, {.num_threads = 2, .use_tiles = false}});
  return paths;
}
}  // namespace carousel::testing
