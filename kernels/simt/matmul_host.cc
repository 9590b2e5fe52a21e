// MatmulEngine without a GPU: plain loops in the sums' type, queued on the stream like a kernel. Tiles of c
// are computed one after the other from packed slices of the operands; sums run over k in ascending order.
#include <algorithm>
#include <string>
#include <vector>

#include "core/base/int_math.h"
#include "kernels/cuda/matmul_kernels.h"
#include "kernels/simt/emulator.h"
#include "kernels/simt/fake_cudart.h"

namespace carousel::CAROUSEL_DEVICE_NS {
namespace {

// A vector of the baseline instruction set, and a tile of sums that its registers hold.
template <class W>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(16), aligned(4)));
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(16), aligned(8)));
};
constexpr int kRows = 4, kVectors = 2;
template <class W>
constexpr int kColumns = kVectors * 16 / static_cast<int>(sizeof(W));
// A tile of c, and the terms of a slice: packed operands that the caches hold.
constexpr int64_t kTileRows = 64, kTileColumns = 256, kSliceTerms = 256;
static_assert(kTileRows % kRows == 0 && kTileColumns % kColumns<float> == 0);

// sums[i][j] += sum over k of a[k][i] b[k][j]; a and b are panels of kRows and kColumns<W>.
template <class W>
void MultiplyPanels(W* sums, int64_t pitch, const W* a, const W* b, int64_t terms) {
  using V = typename VectorOf<W>::type;
  constexpr int kLanes = 16 / static_cast<int>(sizeof(W));
  V sum[kRows][kVectors];
  for (int i = 0; i < kRows; ++i) {
    for (int v = 0; v < kVectors; ++v) sum[i][v] = *reinterpret_cast<const V*>(sums + i * pitch + v * kLanes);
  }
  for (int64_t k = 0; k < terms; ++k) {
    V y[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      y[v] = *reinterpret_cast<const V*>(b + k * kColumns<W> + v * kLanes);
    }
    for (int i = 0; i < kRows; ++i) {
      for (int v = 0; v < kVectors; ++v) sum[i][v] += a[k * kRows + i] * y[v];
    }
  }
  for (int i = 0; i < kRows; ++i) {
    for (int v = 0; v < kVectors; ++v) *reinterpret_cast<V*>(sums + i * pitch + v * kLanes) = sum[i][v];
  }
}

// Panels of `width` neighbouring outer indices: packed[panel][k][i], zeros beyond `count` outer indices.
template <class T, class W>
void Pack(W* packed, const T* data, int64_t outer_stride, int64_t k_stride, int64_t count, int64_t terms,
          int width) {
  for (int64_t first = 0; first < count; first += width) {
    for (int64_t k = 0; k < terms; ++k) {
      for (int64_t i = 0; i < width; ++i) {
        *packed++ =
            first + i < count ? gpu::convert<W>(data[(first + i) * outer_stride + k * k_stride]) : W{0};
      }
    }
  }
}

template <class T, class C>
void Multiply(const MatmulProduct& p) {
  using W = Wide<T>;
  const int64_t a_outer = p.transpose_a ? 1 : p.a.row_stride, a_k = p.transpose_a ? p.a.row_stride : 1;
  const int64_t b_outer = p.transpose_b ? p.b.row_stride : 1, b_k = p.transpose_b ? 1 : p.b.row_stride;
  std::vector<W> packed_a(kTileRows * kSliceTerms), packed_b(kTileColumns * kSliceTerms);
  std::vector<W> sums(kTileRows * kTileColumns);
  const auto tile = [&](int64_t batch, int64_t row, int64_t column) {
    const T* a = static_cast<const T*>(p.a.data) + batch * p.a.batch_stride + row * a_outer;
    const T* b = static_cast<const T*>(p.b.data) + batch * p.b.batch_stride + column * b_outer;
    const int64_t rows = std::min(kTileRows, p.M - row), columns = std::min(kTileColumns, p.N - column);
    std::fill(sums.begin(), sums.end(), W{0});
    for (int64_t first = 0; first < p.K; first += kSliceTerms) {
      const int64_t terms = std::min(kSliceTerms, p.K - first);
      Pack(packed_a.data(), a + first * a_k, a_outer, a_k, rows, terms, kRows);
      Pack(packed_b.data(), b + first * b_k, b_outer, b_k, columns, terms, kColumns<W>);
      for (int64_t j = 0; j < columns; j += kColumns<W>) {
        for (int64_t i = 0; i < rows; i += kRows) {
          MultiplyPanels<W>(&sums[i * kTileColumns + j], kTileColumns, &packed_a[i * terms],
                            &packed_b[j * terms], terms);
        }
      }
    }
    const W* bias = static_cast<const W*>(p.bias.data);
    for (int64_t i = 0; i < rows; ++i) {
      C* c = static_cast<C*>(p.c.data) + batch * p.c.batch_stride + (row + i) * p.c.row_stride + column;
      for (int64_t j = 0; j < columns; ++j) {
        W value = sums[i * kTileColumns + j];
        if (bias != nullptr) value += bias[batch * p.bias.batch_stride + column + j];
        if (p.accumulate) value += gpu::convert<W>(c[j]);
        c[j] = gpu::convert<C>(value);
      }
    }
  };
  for (int64_t batch = 0; batch < p.batch; ++batch) {
    for (int64_t row = 0; row < p.M; row += kTileRows) {
      for (int64_t column = 0; column < p.N; column += kTileColumns) tile(batch, row, column);
    }
  }
}

// What a GPU's library would not notice or would fault at: an operand outside of device memory, and one that
// nobody has written (seen by the checker).
void CheckOperand(const char* name, const MatmulProduct::Operand& operand, int64_t rows, int64_t columns,
                  int64_t batch, bool is_read) {
  const int64_t row_bytes = columns * SizeOf(operand.dtype);
  for (int64_t i = 0; i < batch; ++i) {
    for (int64_t r = 0; r < rows; ++r) {
      const char* row = static_cast<const char*>(operand.data) +
                        (i * operand.batch_stride + r * operand.row_stride) * SizeOf(operand.dtype);
      if (row_bytes == 0) continue;
      const auto fail = [&](const char* what) {
        throw emulator::KernelError(std::string("matrix product: row ") + std::to_string(r) + " of " + name +
                                    what);
      };
      if (!emulator::device_owns(row, static_cast<size_t>(row_bytes))) fail(" lies outside of device memory");
      if (is_read && !emulator::is_initialized(row, row_bytes)) fail(" was never written");
      if (!is_read) emulator::mark_initialized(row, row_bytes);
    }
  }
}

void RunNow(const MatmulProduct& p) {
  CheckOperand("a", p.a, p.transpose_a ? p.K : p.M, p.transpose_a ? p.M : p.K, p.batch, /*is_read=*/true);
  CheckOperand("b", p.b, p.transpose_b ? p.N : p.K, p.transpose_b ? p.K : p.N, p.batch, /*is_read=*/true);
  if (p.bias.data != nullptr) CheckOperand("bias", p.bias, 1, p.N, p.batch, /*is_read=*/true);
  if (p.accumulate) CheckOperand("c", p.c, p.M, p.N, p.batch, /*is_read=*/true);
  CheckOperand("c", p.c, p.M, p.N, p.batch, /*is_read=*/false);
  if (p.a.dtype == DType::kF64) {
    Multiply<double, double>(p);
  } else if (p.a.dtype == DType::kF32) {
    Multiply<float, float>(p);
  } else if (p.c.dtype == DType::kF32) {
    Multiply<bfloat16, float>(p);
  } else {
    Multiply<bfloat16, bfloat16>(p);
  }
}
}  // namespace

class MatmulEngine::Impl {
 public:
  explicit Impl(cudaStream_t stream) : stream_(stream) {}

  void Run(const MatmulProduct& p) {
    if (p.M == 0 || p.N == 0 || p.batch == 0) return;
    if (p.K == 0) return StartRows(p, stream_);
    const auto operation = [p] {
      RunNow(p);
      return fake_cuda::Progress::kDone;
    };
    CheckCuda(fake_cuda::Enqueue(stream_, operation), "matrix product");
  }

 private:
  const cudaStream_t stream_;
};

MatmulEngine::MatmulEngine(cudaStream_t stream, const DeviceInfo&, const MatmulOptions&)
    : impl_(std::make_unique<Impl>(stream)) {}
MatmulEngine::~MatmulEngine() = default;
void MatmulEngine::Run(const MatmulProduct& product) { impl_->Run(product); }
}  // namespace carousel::CAROUSEL_DEVICE_NS
