// Element types and the dispatch from a run-time DType to a C++ type.
#pragma once
#include "core/base/bfloat16.h"
#include "core/base/check.h"

namespace carousel {

enum class DType : uint8_t { kF32, kBF16, kF64, kI32, kI64, kU8 };

constexpr int64_t SizeOf(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return 4;
    case DType::kBF16:
      return 2;
    case DType::kF64:
      return 8;
    case DType::kI32:
      return 4;
    case DType::kI64:
      return 8;
    case DType::kU8:
      return 1;
  }
  return 0;
}
constexpr const char* NameOf(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "f32";
    case DType::kBF16:
      return "bf16";
    case DType::kF64:
      return "f64";
    case DType::kI32:
      return "i32";
    case DType::kI64:
      return "i64";
    case DType::kU8:
      return "u8";
  }
  return "?";
}
template <class T>
struct DTypeOf;
template <>
struct DTypeOf<float> {
  static constexpr DType value = DType::kF32;
};
template <>
struct DTypeOf<bfloat16> {
  static constexpr DType value = DType::kBF16;
};
template <>
struct DTypeOf<double> {
  static constexpr DType value = DType::kF64;
};
template <>
struct DTypeOf<int32_t> {
  static constexpr DType value = DType::kI32;
};
template <>
struct DTypeOf<int64_t> {
  static constexpr DType value = DType::kI64;
};
template <>
struct DTypeOf<uint8_t> {
  static constexpr DType value = DType::kU8;
};

// The wide type that belongs to a compute type: sums, gates, states, the residual stream and gradients of
// weights are f32 for f32 and bf16 compute, f64 for f64 compute.
constexpr DType WideOf(DType compute) { return compute == DType::kF64 ? DType::kF64 : DType::kF32; }
template <class T>
struct WideType {
  using type = float;
};
template <>
struct WideType<double> {
  using type = double;
};
template <class T>
using Wide = typename WideType<T>::type;

// Calls fn.operator()<T>() with T = float, bfloat16 or double.
template <class Fn>
void DispatchFloat(DType dtype, Fn&& fn) {
  switch (dtype) {
    case DType::kF32:
      return fn.template operator()<float>();
    case DType::kBF16:
      return fn.template operator()<bfloat16>();
    case DType::kF64:
      return fn.template operator()<double>();
    default:
      CheckFailed(__FILE__, __LINE__, std::string("not a floating dtype: ") + NameOf(dtype));
  }
}
}  // namespace carousel
