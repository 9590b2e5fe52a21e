// Fill, Cast, Add. Casts between f32 and bf16 and sums of the two have fast loops; every other pair of types
// is one templated loop.
#include <cstring>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/op_util.h"

namespace carousel::cpu {
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

// bf16 converts through float; from double that rounds twice, so double goes to bf16 by way of round-to-odd.
template <class Y, class X>
Y Convert(X x) {
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
      std::memcpy(&u, &f, 4);
      const double magnitude = x < 0 ? -x : x;
      const double rounded = f < 0 ? -static_cast<double>(f) : static_cast<double>(f);
      if (rounded > magnitude) --u;
      u |= 1u;
      std::memcpy(&f, &u, 4);
    }
    return bfloat16(f);
  } else {
    return static_cast<Y>(x);
  }
}

// A tensor as rows: rank 2 may be strided, everything else is one row.
struct Rows {
  explicit Rows(const Tensor& t)
      : count(t.contiguous() ? 1 : t.dim[0]),
        width(t.contiguous() ? t.num_elems() : t.dim[1]),
        stride(t.contiguous() ? t.num_elems() : t.row_stride) {}
  int64_t count, width, stride;
};

// Runs fn(row, begin, end) over pieces of the rows: long rows are cut, short rows are joined into one task.
template <class Fn>
void ForEachPiece(ThreadPool& pool, int64_t rows, int64_t width, Fn&& fn) {
  if (width == 0) return;
  if (width >= kElemsPerTask) {
    const int64_t pieces = CeilDiv(width, kElemsPerTask);
    pool.ParallelFor(rows * pieces, [&](int64_t task) {
      const int64_t begin = task % pieces * kElemsPerTask;
      fn(task / pieces, begin, std::min(width, begin + kElemsPerTask));
    });
  } else {
    pool.ParallelForBlocks(rows, RowsPerTask(width), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) fn(r, int64_t{0}, width);
    });
  }
}
}  // namespace

void CpuOps::Fill(const FillArgs& a) {
  const Rows y(a.y);
  DispatchAny(a.y.dtype, [&]<class T>() {
    const T value = Convert<T>(a.value);
    T* data = a.y.as<T>();
    ForEachPiece(pool_, y.count, y.width, [&](int64_t r, int64_t begin, int64_t end) {
      T* row = data + r * y.stride;
      for (int64_t i = begin; i < end; ++i) row[i] = value;
    });
  });
}

void CpuOps::Cast(const CastArgs& a) {
  CAROUSEL_CHECK_EQ(a.y.num_elems(), a.x.num_elems());
  Rows y(a.y), x(a.x);
  if (!a.y.contiguous() || !a.x.contiguous()) {
    // At least one is strided: walk both row by row.
    CAROUSEL_CHECK_EQ(static_cast<int>(a.x.rank), 2);
    CAROUSEL_CHECK_SHAPE(a.y, {a.x.dim[0], a.x.dim[1]});
    y.count = x.count = a.x.dim[0];
    y.width = x.width = a.x.dim[1];
    y.stride = a.y.row_stride;
    x.stride = a.x.row_stride;
  }
  const bool fast = !reference_;
  if (fast && a.y.dtype == DType::kBF16 && a.x.dtype == DType::kF32) {
    ForEachPiece(pool_, x.count, x.width, [&](int64_t r, int64_t begin, int64_t end) {
      elementwise_.f32_to_bf16(RawData<uint16_t>(a.y) + r * y.stride + begin,
                               a.x.as<float>() + r * x.stride + begin, end - begin);
    });
    return;
  }
  if (fast && a.y.dtype == DType::kF32 && a.x.dtype == DType::kBF16) {
    ForEachPiece(pool_, x.count, x.width, [&](int64_t r, int64_t begin, int64_t end) {
      elementwise_.bf16_to_f32(a.y.as<float>() + r * y.stride + begin,
                               RawData<uint16_t>(a.x) + r * x.stride + begin, end - begin);
    });
    return;
  }
  DispatchAny(a.y.dtype, [&]<class Y>() {
    DispatchAny(a.x.dtype, [&]<class X>() {
      Y* y_data = a.y.as<Y>();
      const X* x_data = a.x.as<X>();
      ForEachPiece(pool_, x.count, x.width, [&](int64_t r, int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) y_data[r * y.stride + i] = Convert<Y>(x_data[r * x.stride + i]);
      });
    });
  });
}

void CpuOps::Add(const AddArgs& a) {
  CheckArgs(a);
  const int64_t n = a.y.num_elems();
  const bool has_double = a.y.dtype == DType::kF64 || a.a.dtype == DType::kF64 || a.b.dtype == DType::kF64;
  if (!reference_ && !has_double) {
    const auto is_bf16 = [](const Tensor& t) { return t.dtype == DType::kBF16 ? 1 : 0; };
    const auto add = elementwise_.add[is_bf16(a.y)][is_bf16(a.a)][is_bf16(a.b)];
    const auto at = [](const Tensor& t, int64_t i) {
      return static_cast<std::byte*>(t.data) + i * SizeOf(t.dtype);
    };
    pool_.ParallelForBlocks(n, kElemsPerTask, [&](int64_t begin, int64_t end) {
      add(at(a.y, begin), at(a.a, begin), at(a.b, begin), end - begin);
    });
    return;
  }
  DispatchFloat(a.y.dtype, [&]<class Y>() {
    DispatchFloat(a.a.dtype, [&]<class A>() {
      DispatchFloat(a.b.dtype, [&]<class B>() {
        // The sum is taken in the wider of the two operands' wide types.
        using W = std::conditional_t<std::is_same_v<A, double> || std::is_same_v<B, double>, double, float>;
        Y* y = a.y.as<Y>();
        const A* x = a.a.as<A>();
        const B* z = a.b.as<B>();
        pool_.ParallelForBlocks(n, kElemsPerTask, [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) y[i] = Convert<Y>(Convert<W>(x[i]) + Convert<W>(z[i]));
        });
      });
    });
  });
}
}  // namespace carousel::cpu
