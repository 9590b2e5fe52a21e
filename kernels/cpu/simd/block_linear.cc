// Block-diagonal maps with small blocks: forward, and both gradients in one pass over the rows.
//
// Tiles of kBlockLinearTileRows rows share the loads of coefficients. Rows whose blocks are not square or not
// a power of two go through scratch memory, where they are f32 and padded.
#include "kernels/cpu/simd/block_linear.h"

#include "kernels/cpu/simd/vec.h"

namespace carousel::cpu::CAROUSEL_SIMD_NS {
namespace {

constexpr int kTileRows = static_cast<int>(kBlockLinearTileRows);

// Columns c ^ kShift of a row, for the vector of columns that begins at c.
template <int kShift, class T, class Count>
CAROUSEL_INLINE VecF LoadSwapped(const T* row, int64_t c, Count count) {
  return SwapLanes<kShift % kLanes>(Load(row + (c ^ (kShift / kLanes * kLanes)), count));
}
// Coefficients of term 0 of these columns; term s stands 16 * s further.
template <class P>
CAROUSEL_INLINE P* Packed(P* packed, int64_t c, int64_t padded) {
  return packed + c / 16 * 16 * padded + c % 16;
}

// sums[i] += terms kShift, kShift + 1, ... of row i.
template <int kPadded, int kRows, int kShift = 0, class T, class Count>
CAROUSEL_INLINE void AddTerms(VecF* sums, const T* x, int64_t x_stride, int64_t c, Count count,
                              const float* packed) {
  const VecF coefficients = Load(packed + 16 * kShift);
  for (int i = 0; i < kRows; ++i) sums[i] += LoadSwapped<kShift>(x + i * x_stride, c, count) * coefficients;
  if constexpr (kShift + 1 < kPadded) {
    AddTerms<kPadded, kRows, kShift + 1>(sums, x, x_stride, c, count, packed);
  }
}
// dweight += dy x, term by term.
template <int kPadded, int kRows, int kShift = 0, class T, class Count>
CAROUSEL_INLINE void AddWeightGradients(float* dweight, const VecF* dy, const T* x, int64_t x_stride,
                                        int64_t c, Count count) {
  VecF sum = Load(dweight + 16 * kShift);
  for (int i = 0; i < kRows; ++i) sum += LoadSwapped<kShift>(x + i * x_stride, c, count) * dy[i];
  Store(dweight + 16 * kShift, sum);
  if constexpr (kShift + 1 < kPadded) {
    AddWeightGradients<kPadded, kRows, kShift + 1>(dweight, dy, x, x_stride, c, count);
  }
}

// kRows rows of `width` columns with padding.
template <int kPadded, int kRows, class Y, class T>
void ForwardTile(Y* y, int64_t y_stride, const T* x, int64_t x_stride, const float* packed, const float* bias,
                 int64_t width) {
  ForEachVec(width, [&](int64_t c, auto count) {
    VecF sums[kRows];
    for (int i = 0; i < kRows; ++i) sums[i] = bias == nullptr ? VecF{} : Load(bias + c);
    AddTerms<kPadded, kRows>(sums, x, x_stride, c, count, Packed(packed, c, kPadded));
    for (int i = 0; i < kRows; ++i) Store(y + i * y_stride + c, sums[i], count);
  });
}
template <int kPadded, int kRows, class T>
void BackwardTile(T* dx, int64_t dx_stride, const T* dy, int64_t dy_stride, const T* x, int64_t x_stride,
                  const float* packed, float* dweight, float* dbias, int64_t width, bool accumulate_dx) {
  ForEachVec(width, [&](int64_t c, auto count) {
    VecF sums[kRows] = {}, gradients[kRows], bias = Load(dbias + c);
    AddTerms<kPadded, kRows>(sums, dy, dy_stride, c, count, Packed(packed, c, kPadded));
    for (int i = 0; i < kRows; ++i) {
      gradients[i] = Load(dy + i * dy_stride + c, count);
      bias += gradients[i];
      if (accumulate_dx) sums[i] += Load(dx + i * dx_stride + c, count);
    }
    AddWeightGradients<kPadded, kRows>(Packed(dweight, c, kPadded), gradients, x, x_stride, c, count);
    Store(dbias + c, bias);
    for (int i = 0; i < kRows; ++i) Store(dx + i * dx_stride + c, sums[i], count);
  });
}

// Blocks of `size` columns, each with zeros up to `padded` columns, and back.
template <class T>
void Pad(float* to, const T* row, int64_t num_blocks, int64_t size, int64_t padded) {
  for (int64_t b = 0; b < num_blocks; ++b) {
    for (int64_t i = 0; i < padded; ++i) to[b * padded + i] = i < size ? ToF32(row[b * size + i]) : 0.0f;
  }
}
template <class T>
void Unpad(T* to, const float* row, int64_t num_blocks, int64_t size, int64_t padded, bool accumulate) {
  for (int64_t b = 0; b < num_blocks; ++b) {
    for (int64_t i = 0; i < size; ++i) {
      T* place = to + b * size + i;
      StoreOne(place, row[b * padded + i] + (accumulate ? ToF32(*place) : 0.0f));
    }
  }
}

template <int kPadded, int kRows, class Y, class T>
void ForwardRows(Y* y, const BlockLinearForwardRows<T>& a, int64_t r, float* scratch) {
  const BlockLinearShape& s = a.shape;
  const int64_t width = s.num_blocks * kPadded;
  y += r * a.y_stride;
  const T* x = a.x + r * a.x_stride;
  if (s.in == kPadded && s.out == kPadded) {
    return ForwardTile<kPadded, kRows>(y, a.y_stride, x, a.x_stride, a.packed, a.bias, width);
  }
  float* padded_y = scratch + kRows * s.columns;
  for (int i = 0; i < kRows; ++i)
    Pad(scratch + i * s.columns, x + i * a.x_stride, s.num_blocks, s.in, kPadded);
  ForwardTile<kPadded, kRows>(padded_y, s.columns, scratch, s.columns, a.packed, a.bias, width);
  for (int i = 0; i < kRows; ++i) {
    Unpad(y + i * a.y_stride, padded_y + i * s.columns, s.num_blocks, s.out, kPadded, /*accumulate=*/false);
  }
}
template <int kPadded, class Y, class T>
void ForwardRange(Y* y, const BlockLinearForwardRows<T>& a, int64_t begin, int64_t end, float* scratch) {
  int64_t r = begin;
  for (; r + kTileRows <= end; r += kTileRows) ForwardRows<kPadded, kTileRows>(y, a, r, scratch);
  for (; r < end; ++r) ForwardRows<kPadded, 1>(y, a, r, scratch);
}
template <int kPadded, class T>
void Forward(const BlockLinearForwardRows<T>& a, int64_t begin, int64_t end, float* scratch) {
  if (a.y != nullptr) {
    ForwardRange<kPadded>(a.y, a, begin, end, scratch);
  } else {
    ForwardRange<kPadded>(a.y_wide, a, begin, end, scratch);
  }
}

template <int kPadded, int kRows, class T>
void BackwardRows(const BlockLinearBackwardRows<T>& a, int64_t r, float* dweight, float* dbias,
                  float* scratch) {
  const BlockLinearShape& s = a.shape;
  const int64_t width = s.num_blocks * kPadded;
  T* dx = a.dx + r * a.dx_stride;
  const T* dy = a.dy + r * a.dy_stride;
  const T* x = a.x + r * a.x_stride;
  if (s.in == kPadded && s.out == kPadded) {
    return BackwardTile<kPadded, kRows>(dx, a.dx_stride, dy, a.dy_stride, x, a.x_stride, a.packed, dweight,
                                        dbias, width, a.accumulate_dx);
  }
  float* padded_dx = scratch;
  float* padded_dy = padded_dx + kRows * s.columns;
  float* padded_x = padded_dy + kRows * s.columns;
  for (int i = 0; i < kRows; ++i) {
    Pad(padded_dy + i * s.columns, dy + i * a.dy_stride, s.num_blocks, s.out, kPadded);
    Pad(padded_x + i * s.columns, x + i * a.x_stride, s.num_blocks, s.in, kPadded);
  }
  BackwardTile<kPadded, kRows>(padded_dx, s.columns, padded_dy, s.columns, padded_x, s.columns, a.packed,
                               dweight, dbias, width, /*accumulate_dx=*/false);
  for (int i = 0; i < kRows; ++i) {
    Unpad(dx + i * a.dx_stride, padded_dx + i * s.columns, s.num_blocks, s.in, kPadded, a.accumulate_dx);
  }
}
template <int kPadded, class T>
void Backward(const BlockLinearBackwardRows<T>& a, int64_t begin, int64_t end, float* dweight, float* dbias,
              float* scratch) {
  for (int64_t i = 0; i < kPadded * a.shape.columns; ++i) dweight[i] = 0.0f;
  for (int64_t c = 0; c < a.shape.columns; ++c) dbias[c] = 0.0f;
  int64_t r = begin;
  for (; r + kTileRows <= end; r += kTileRows) {
    BackwardRows<kPadded, kTileRows>(a, r, dweight, dbias, scratch);
  }
  for (; r < end; ++r) BackwardRows<kPadded, 1>(a, r, dweight, dbias, scratch);
}

// Calls body.operator()<padded>().
template <class Body>
CAROUSEL_INLINE void DispatchPadded(int64_t padded, Body&& body) {
  switch (padded) {
    case 1:
      return body.template operator()<1>();
    case 2:
      return body.template operator()<2>();
    case 4:
      return body.template operator()<4>();
    case 8:
      return body.template operator()<8>();
    default:
      return body.template operator()<16>();
  }
}
template <class T>
void AnyForward(const BlockLinearForwardRows<T>& a, int64_t begin, int64_t end, float* scratch) {
  DispatchPadded(a.shape.padded, [&]<int kPadded>() { Forward<kPadded>(a, begin, end, scratch); });
}
template <class T>
void AnyBackward(const BlockLinearBackwardRows<T>& a, int64_t begin, int64_t end, float* dweight,
                 float* dbias, float* scratch) {
  DispatchPadded(a.shape.padded,
                 [&]<int kPadded>() { Backward<kPadded>(a, begin, end, dweight, dbias, scratch); });
}

template <class T>
constexpr BlockLinearKernels<T> kKernels = {.forward = AnyForward<T>, .backward = AnyBackward<T>};
}  // namespace

const BlockLinearKernels<float>& GetBlockLinearKernelsF32() { return kKernels<float>; }
const BlockLinearKernels<uint16_t>& GetBlockLinearKernelsBf16() { return kKernels<uint16_t>; }
}  // namespace carousel::cpu::CAROUSEL_SIMD_NS
