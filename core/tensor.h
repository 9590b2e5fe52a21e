// Tensor: a non-owning, typed view of memory, passed by value. Nothing here allocates or copies.
//
// Contiguous row-major, except that a rank-2 tensor may have a row stride larger than its row: a column block
// of a wider matrix (one head's columns, one part of a fused projection) is a view, not a copy. Activations
// are always rank 2, token-major: (N, width) with N = B*T rows and a head's columns side by side, so no op
// ever permutes.
#pragma once
#include <cstddef>
#include <initializer_list>

#include "core/base/dtype.h"

namespace carousel {

struct Tensor {
  static constexpr int kMaxRank = 5;

  void* data = nullptr;
  DType dtype = DType::kF32;
  int8_t rank = 0;
  int64_t dim[kMaxRank] = {};
  int64_t row_stride =
      0;  // elements between rows of a rank-2 view, >= dim[1]; dim[rank-1] for every other rank

  Tensor() = default;
  Tensor(void* data_in, DType dtype_in, std::initializer_list<int64_t> dims)
      : data(data_in), dtype(dtype_in) {
    CAROUSEL_CHECK_LE(static_cast<int64_t>(dims.size()), static_cast<int64_t>(kMaxRank));
    for (const int64_t d : dims) {
      CAROUSEL_CHECK_GE(d, 0);
      dim[rank++] = d;
    }
    row_stride = rank > 0 ? dim[rank - 1] : 1;
  }

  bool defined() const { return rank > 0; }  // an optional tensor that was not given has rank 0
  int64_t num_elems() const {
    int64_t n = 1;
    for (int i = 0; i < rank; ++i) n *= dim[i];
    return n;
  }
  int64_t num_bytes() const { return num_elems() * SizeOf(dtype); }
  bool contiguous() const { return rank != 2 || row_stride == dim[1] || dim[0] <= 1; }

  // Pointer to the elements; T must be the tensor's dtype.
  template <class T>
  T* as() const {
    CAROUSEL_CHECK_MSG(dtype == DTypeOf<T>::value, std::string("tensor has dtype ") + NameOf(dtype));
    return static_cast<T*>(data);
  }
  bool HasShape(std::initializer_list<int64_t> dims) const {
    if (static_cast<int64_t>(dims.size()) != rank) return false;
    int i = 0;
    for (const int64_t d : dims) {
      if (dim[i++] != d) return false;
    }
    return true;
  }
  // Rows [begin, begin + count) of a rank-2 tensor; elements [begin, begin + count) of a rank-1 tensor.
  Tensor Rows(int64_t begin, int64_t count) const {
    CAROUSEL_CHECK(rank == 1 || rank == 2);
    CAROUSEL_CHECK(begin >= 0 && count >= 0 && begin + count <= dim[0]);
    Tensor t = *this;
    t.dim[0] = count;
    if (rank == 1) t.row_stride = count;
    t.data = Offset(begin * (rank == 2 ? row_stride : 1));
    return t;
  }
  // Columns [begin, begin + count) of a rank-2 tensor: a strided view.
  Tensor Columns(int64_t begin, int64_t count) const {
    CAROUSEL_CHECK_EQ(static_cast<int>(rank), 2);
    CAROUSEL_CHECK(begin >= 0 && count >= 0 && begin + count <= dim[1]);
    Tensor t = *this;
    t.dim[1] = count;
    t.data = Offset(begin);
    return t;
  }
  // The same contiguous memory with other dims (equal element count).
  Tensor Reshape(std::initializer_list<int64_t> dims) const {
    CAROUSEL_CHECK(contiguous());
    const Tensor t(data, dtype, dims);
    CAROUSEL_CHECK_EQ(t.num_elems(), num_elems());
    return t;
  }
  Tensor Flatten() const { return Reshape({num_elems()}); }

 private:
  void* Offset(int64_t elems) const {
    return data == nullptr ? nullptr : static_cast<std::byte*>(data) + elems * SizeOf(dtype);
  }
};

}  // namespace carousel

#define CAROUSEL_CHECK_SHAPE(tensor, ...) \
  CAROUSEL_CHECK_MSG((tensor).HasShape(__VA_ARGS__), "shape of " #tensor " must be " #__VA_ARGS__)
