// Fill, Cast, Add. Conversions round to nearest even (core/ops.h).
// Grid, block: element_grid.h; Fill, copies, and casts and sums of f32 and bf16 move 16 bytes or 8 elements
// per thread, every other pair of types one element. Shared: none. Reads and writes every element once.
#include "kernels/cuda/device_ops.h"
#include "kernels/cuda/element_grid.h"
#include "kernels/cuda/op_check.h"
#include "kernels/cuda/vec.h"

namespace carousel::CAROUSEL_DEVICE_NS {
namespace {

// Calls fn.operator()<T>() with the C++ type of any dtype.
template <class Fn>
void DispatchAny(DType dtype, Fn&& fn) {
  switch (dtype) {
    case DType::kI32:
      return fn.template operator()<int32_t>();
    case DType::kI64:
      return fn.template operator()<int64_t>();
    case DType::kU8:
      return fn.template operator()<uint8_t>();
    default:
      return DispatchFloat(dtype, fn);
  }
}
// Calls fn.operator()<U>() with the unsigned type of an element's size.
template <class Fn>
void DispatchSize(DType dtype, Fn&& fn) {
  switch (SizeOf(dtype)) {
    case 1:
      return fn.template operator()<uint8_t>();
    case 2:
      return fn.template operator()<uint16_t>();
    case 4:
      return fn.template operator()<uint32_t>();
    default:
      return fn.template operator()<uint64_t>();
  }
}

template <class T>
constexpr bool kIsShortFloat = std::is_same_v<T, float> || std::is_same_v<T, bfloat16>;

// bf16 converts through float; from double that rounds twice, so double goes to bf16 by way of round-to-odd.
template <class Y, class X>
CAROUSEL_HOST_DEVICE inline Y Convert(X x) {
  if constexpr (std::is_same_v<Y, X>) {
    return x;
  } else if constexpr (std::is_same_v<X, bfloat16>) {
    return static_cast<Y>(static_cast<float>(x));
  } else if constexpr (std::is_same_v<Y, bfloat16> && std::is_same_v<X, double>) {
    float f = static_cast<float>(x);
    if (static_cast<double>(f) != x && f == f) {
      // Inexact: step to the float below in magnitude if f was rounded up, then set the last bit. The bits
      // that bf16 drops now say "not a tie".
      uint32_t u;
      memcpy(&u, &f, 4);
      const double magnitude = x < 0 ? -x : x;
      const double rounded = f < 0 ? -static_cast<double>(f) : static_cast<double>(f);
      if (rounded > magnitude) --u;
      u |= 1u;
      memcpy(&f, &u, 4);
    }
    return bfloat16(f);
  } else {
    return static_cast<Y>(x);
  }
}

template <class U>
struct FillOp {
  static constexpr int kVec = kVecElems<U>;
  template <int V>
  __device__ void operator()(int64_t row, int64_t column) const {
    U* to = y + row * y_stride + column;
    if constexpr (V == 1) {
      *to = value;
    } else {
      internal::StoreWords(to, words);
    }
  }
  U* y;
  int64_t y_stride;
  U value;
  uint32_t words[kAccessBytes / 4];  // the value, repeated
};

template <class U>
struct CopyOp {
  static constexpr int kVec = kVecElems<U>;
  template <int V>
  __device__ void operator()(int64_t row, int64_t column) const {
    U* to = y + row * y_stride + column;
    const U* from = x + row * x_stride + column;
    if constexpr (V == 1) {
      *to = *from;
    } else {
      uint32_t words[kAccessBytes / 4];
      internal::LoadWords(words, from);
      internal::StoreWords(to, words);
    }
  }
  U* y;
  const U* x;
  int64_t y_stride, x_stride;
};

template <class Y, class X>
struct CastOp {
  static constexpr int kVec = kIsShortFloat<Y> && kIsShortFloat<X> ? 8 : 1;
  template <int V>
  __device__ void operator()(int64_t row, int64_t column) const {
    Y* to = y + row * y_stride + column;
    const X* from = x + row * x_stride + column;
    if constexpr (kVec == 1) {
      *to = Convert<Y>(*from);
    } else {
      float values[V];
      Load(values, from);
      Store(to, values);
    }
  }
  Y* y;
  const X* x;
  int64_t y_stride, x_stride;
};

template <class Y, class A, class B>
struct AddOp {
  // The sum is taken in the wider of the two operands' wide types.
  using W = std::conditional_t<std::is_same_v<A, double> || std::is_same_v<B, double>, double, float>;
  static constexpr int kVec = kIsShortFloat<Y> && kIsShortFloat<A> && kIsShortFloat<B> ? 8 : 1;
  template <int V>
  __device__ void operator()(int64_t, int64_t i) const {
    if constexpr (kVec == 1) {
      y[i] = Convert<Y>(Convert<W>(a[i]) + Convert<W>(b[i]));
    } else {
      float x[V], z[V];
      Load(x, a + i);
      Load(z, b + i);
#pragma unroll
      for (int e = 0; e < V; ++e) x[e] += z[e];
      Store(y + i, x);
    }
  }
  Y* y;
  const A* a;
  const B* b;
};
}  // namespace

void DeviceOps::Fill(const FillArgs& a) {
  // The bits of one element, repeated.
  uint64_t bits = 0;
  DispatchAny(a.y.dtype, [&]<class T>() {
    const T value = Convert<T>(a.value);
    for (size_t i = 0; i < sizeof(bits); i += sizeof(T)) {
      memcpy(reinterpret_cast<char*>(&bits) + i, &value, sizeof(T));
    }
  });
  DispatchSize(a.y.dtype, [&]<class U>() {
    FillOp<U> op = {.y = static_cast<U*>(a.y.data),
                    .y_stride = a.y.row_stride,
                    .value = static_cast<U>(bits),
                    .words = {}};
    for (size_t i = 0; i < sizeof(op.words); i += sizeof(bits)) {
      memcpy(reinterpret_cast<char*>(op.words) + i, &bits, sizeof(bits));
    }
    LaunchElements(context_, "Fill", ElementGridOf(op.kVec, a.y), op);
  });
}

void DeviceOps::Cast(const CastArgs& a) {
  CAROUSEL_CHECK_EQ(a.y.num_elems(), a.x.num_elems());
  if (!a.y.contiguous() || !a.x.contiguous()) {
    CAROUSEL_CHECK_EQ(static_cast<int>(a.x.rank), 2);
    CAROUSEL_CHECK_SHAPE(a.y, {a.x.dim[0], a.x.dim[1]});
  }
  if (a.y.dtype == a.x.dtype) {
    return DispatchSize(a.y.dtype, [&]<class U>() {
      const CopyOp<U> op = {.y = static_cast<U*>(a.y.data),
                            .x = static_cast<const U*>(a.x.data),
                            .y_stride = a.y.row_stride,
                            .x_stride = a.x.row_stride};
      LaunchElements(context_, "Cast", ElementGridOf(op.kVec, a.y, a.x), op);
    });
  }
  DispatchAny(a.y.dtype, [&]<class Y>() {
    DispatchAny(a.x.dtype, [&]<class X>() {
      if constexpr (!std::is_same_v<Y, X>) {
        const CastOp<Y, X> op = {
            .y = a.y.as<Y>(), .x = a.x.as<X>(), .y_stride = a.y.row_stride, .x_stride = a.x.row_stride};
        LaunchElements(context_, "Cast", ElementGridOf(op.kVec, a.y, a.x), op);
      }
    });
  });
}

void DeviceOps::Add(const AddArgs& a) {
  CheckArgs(a);
  DispatchFloat(a.y.dtype, [&]<class Y>() {
    DispatchFloat(a.a.dtype, [&]<class A>() {
      DispatchFloat(a.b.dtype, [&]<class B>() {
        const AddOp<Y, A, B> op = {.y = a.y.as<Y>(), .a = a.a.as<A>(), .b = a.b.as<B>()};
        LaunchElements(context_, "Add", ElementGridOf(op.kVec, a.y, a.a, a.b), op);
      });
    });
  });
}
}  // namespace carousel::CAROUSEL_DEVICE_NS
