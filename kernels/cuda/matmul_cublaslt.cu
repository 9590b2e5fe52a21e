// MatmulEngine on a GPU: the one file that talks to cuBLASLt.
//
// A plan is what cuBLASLt needs for one kind of product: descriptors and an algorithm. Plans are kept by
// shape, strides, types, epilogue and alignment, so that a product of a kind that was seen costs a look-up
// and a launch.
//
// cuBLASLt is column-major: c (M, N) in rows is its c^T (N, M), and c^T = op(b)^T op(a)^T. So b comes first,
// no matrix is transposed, and the bias of a column of c is cuBLASLt's bias of a row.
//
// What it refuses is done in this order: the bias by a kernel of our own, beside the library's product; the
// whole product by PlainProduct.
#include <cublasLt.h>

#include <algorithm>
#include <array>
#include <bit>
#include <limits>
#include <map>
#include <span>
#include <string>

#include "kernels/cuda/matmul_kernels.h"

namespace carousel::CAROUSEL_DEVICE_NS {
namespace {

// What Hopper's kernels ask for; other GPUs need less.
constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;
// Rows of sums in f32 that wait for their bias before they are rounded: small enough to stay in the
// second-level cache.
constexpr int64_t kStagingBytes = int64_t{16} << 20;
// Kernels are not asked for more alignment than this.
constexpr int64_t kMaxAlignment = 256;
constexpr int kMaxCandidates = 16;

void Check(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  CheckFailed(__FILE__, __LINE__,
              std::string("cuBLASLt: ") + what + " failed: " + cublasLtGetStatusString(status) + " (status " +
                  std::to_string(static_cast<int>(status)) + ")");
}

cudaDataType_t TypeOf(DType dtype) {
  switch (dtype) {
    case DType::kBF16:
      return CUDA_R_16BF;
    case DType::kF32:
      return CUDA_R_32F;
    case DType::kF64:
      return CUDA_R_64F;
    default:
      CheckFailed(__FILE__, __LINE__, std::string("no matrix product of ") + NameOf(dtype));
  }
}
// The largest power of two, up to kMaxAlignment, that divides the address.
int64_t AlignmentOf(const void* data) {
  const auto address = reinterpret_cast<uintptr_t>(data) | kMaxAlignment;
  return int64_t{1} << std::countr_zero(address);
}

template <class T>
void Set(cublasLtMatmulDesc_t operation, cublasLtMatmulDescAttributes_t attribute, const T& value) {
  Check(cublasLtMatmulDescSetAttribute(operation, attribute, &value, sizeof(value)),
        "cublasLtMatmulDescSetAttribute");
}
template <class T>
void Set(cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t attribute,
         const T& value) {
  Check(cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof(value)),
        "cublasLtMatmulPreferenceSetAttribute");
}
template <class T>
void Set(cublasLtMatrixLayout_t layout, cublasLtMatrixLayoutAttribute_t attribute, const T& value) {
  Check(cublasLtMatrixLayoutSetAttribute(layout, attribute, &value, sizeof(value)),
        "cublasLtMatrixLayoutSetAttribute");
}

struct Plan {
  Plan() = default;
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;
  ~Plan() {
    if (a != nullptr) cublasLtMatrixLayoutDestroy(a);
    if (b != nullptr) cublasLtMatrixLayoutDestroy(b);
    if (c != nullptr) cublasLtMatrixLayoutDestroy(c);
    if (operation != nullptr) cublasLtMatmulDescDestroy(operation);
  }
  cublasLtMatmulDesc_t operation = nullptr;
  cublasLtMatrixLayout_t a = nullptr, b = nullptr, c = nullptr;
  cublasLtMatmulAlgo_t algorithm = {};
  bool served = false;  // false: cuBLASLt has no kernel for this
};
// Sizes, strides, and a word of flags, types and alignments.
using Key = std::array<int64_t, 12>;

Key KeyOf(const MatmulProduct& p) {
  int64_t word = (p.transpose_a ? 1 : 0) | (p.transpose_b ? 2 : 0) | (p.accumulate ? 4 : 0) |
                 (p.bias.data != nullptr ? 8 : 0);
  word |= static_cast<int64_t>(p.a.dtype) << 4 | static_cast<int64_t>(p.c.dtype) << 8;
  int shift = 12;
  for (const MatmulProduct::Operand* operand : {&p.a, &p.b, &p.c, &p.bias}) {
    word |= static_cast<int64_t>(std::countr_zero(static_cast<uint64_t>(AlignmentOf(operand->data))))
            << shift;
    shift += 4;
  }
  return {p.M,
          p.N,
          p.K,
          p.batch,
          p.a.row_stride,
          p.b.row_stride,
          p.c.row_stride,
          p.a.batch_stride,
          p.b.batch_stride,
          p.c.batch_stride,
          p.bias.batch_stride,
          word};
}

// A (rows, columns) matrix in rows is a (columns, rows) matrix in columns.
cublasLtMatrixLayout_t MakeLayout(const MatmulProduct::Operand& operand, int64_t rows, int64_t columns,
                                  int64_t batch) {
  cublasLtMatrixLayout_t layout = nullptr;
  // a matrix of one row may have any row stride; the library asks for at least its length
  const int64_t row_stride = std::max(operand.row_stride, columns);
  Check(cublasLtMatrixLayoutCreate(&layout, TypeOf(operand.dtype), static_cast<uint64_t>(columns),
                                   static_cast<uint64_t>(rows), row_stride),
        "cublasLtMatrixLayoutCreate");
  if (batch > 1) {
    Set(layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, static_cast<int32_t>(batch));
    Set(layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, operand.batch_stride);
  }
  return layout;
}

void SetBias(const Plan& plan, const void* bias) {
  if (bias != nullptr) Set(plan.operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
}

// The library says nothing of how a bias must be aligned: one access of a kernel is enough for any.
bool AlignedBias(const MatmulProduct& p) {
  constexpr int64_t kAlignment = 16;
  if (p.bias.data == nullptr) return true;
  const bool strides = p.batch == 1 || p.bias.batch_stride * SizeOf(p.bias.dtype) % kAlignment == 0;
  return strides && AlignmentOf(p.bias.data) >= kAlignment;
}

// Whether the library has no kernel for what it was asked for. Its functions then have done nothing.
bool Refused(cublasStatus_t status) {
  return status == CUBLAS_STATUS_NOT_SUPPORTED || status == CUBLAS_STATUS_INVALID_VALUE;
}

// The elements from the first to behind the last one of an operand with these rows.
int64_t SpanElems(const MatmulProduct::Operand& operand, int64_t rows, int64_t columns, int64_t batch) {
  return (batch - 1) * operand.batch_stride + (rows - 1) * operand.row_stride + columns;
}
void* Advance(const MatmulProduct::Operand& operand, int64_t elems) {
  return static_cast<char*>(operand.data) + elems * SizeOf(operand.dtype);
}
}  // namespace

class MatmulEngine::Impl {
 public:
  Impl(cudaStream_t stream, const MatmulOptions& options) : stream_(stream), options_(options) {
    Check(cublasLtCreate(&handle_), "cublasLtCreate");
    CheckCuda(cudaMalloc(&workspace_, kWorkspaceBytes), "cudaMalloc of the workspace of matrix products");
    CheckCuda(cudaMalloc(reinterpret_cast<void**>(&staging_), kStagingBytes),
              "cudaMalloc of the staging memory of matrix products");
  }
  ~Impl() {
    plans_.clear();
    // The library may still be using its workspace. An error was or will be reported by the device.
    cudaStreamSynchronize(stream_);
    cudaFree(staging_);
    cudaFree(workspace_);
    cublasLtDestroy(handle_);
  }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  void Run(const MatmulProduct& p) {
    if (p.M == 0 || p.N == 0 || p.batch == 0) return;
    if (p.K == 0) return StartRows(p, stream_);
    if (RunInLibrary(p)) return;
    if (p.bias.data != nullptr) {
      if (p.c.dtype == WideOf(p.a.dtype)) {
        StartRows(p, stream_);
        MatmulProduct rest = p;
        rest.bias = {};
        rest.accumulate = true;
        if (!RunInLibrary(rest)) PlainProduct(rest, stream_);
        return;
      }
      if (RunStaged(p)) return;
    }
    PlainProduct(p, stream_);
  }

 private:
  Plan& PlanFor(const MatmulProduct& p);
  void Choose(Plan& plan, const MatmulProduct& p, std::span<const cublasLtMatmulHeuristicResult_t> found);
  cublasStatus_t Enqueue(const Plan& plan, const cublasLtMatmulAlgo_t& algorithm, const MatmulProduct& p,
                         void* destination);
  bool RunInLibrary(const MatmulProduct& p);
  bool RunStaged(const MatmulProduct& p);

  const cudaStream_t stream_;
  const MatmulOptions options_;
  cublasLtHandle_t handle_ = nullptr;
  void* workspace_ = nullptr;
  float* staging_ = nullptr;
  std::map<Key, Plan> plans_;
};

// destination = op(a) op(b) (+ c) (+ bias): p.c itself, or memory of the same layout.
cublasStatus_t MatmulEngine::Impl::Enqueue(const Plan& plan, const cublasLtMatmulAlgo_t& algorithm,
                                           const MatmulProduct& p, void* destination) {
  const float one = 1, beta = p.accumulate ? 1 : 0;
  const double one_f64 = 1, beta_f64 = p.accumulate ? 1 : 0;
  const bool f64 = p.a.dtype == DType::kF64;
  const void* alpha_pointer = f64 ? static_cast<const void*>(&one_f64) : &one;
  const void* beta_pointer = f64 ? static_cast<const void*>(&beta_f64) : &beta;
  SetBias(plan, p.bias.data);
  return cublasLtMatmul(handle_, plan.operation, alpha_pointer, p.b.data, plan.a, p.a.data, plan.b,
                        beta_pointer, p.c.data, plan.c, destination, plan.c, &algorithm, workspace_,
                        kWorkspaceBytes, stream_);
}

Plan& MatmulEngine::Impl::PlanFor(const MatmulProduct& p) {
  const auto [it, is_new] = plans_.try_emplace(KeyOf(p));
  Plan& plan = it->second;
  if (!is_new) return plan;
  if (p.batch > std::numeric_limits<int32_t>::max() || !AlignedBias(p)) return plan;

  const bool f64 = p.a.dtype == DType::kF64;
  const cublasComputeType_t compute = f64 ? CUBLAS_COMPUTE_64F
                                      : p.a.dtype == DType::kF32 && options_.allow_tf32
                                          ? CUBLAS_COMPUTE_32F_FAST_TF32
                                          : CUBLAS_COMPUTE_32F;
  Check(cublasLtMatmulDescCreate(&plan.operation, compute, f64 ? CUDA_R_64F : CUDA_R_32F),
        "cublasLtMatmulDescCreate");
  Set(plan.operation, CUBLASLT_MATMUL_DESC_TRANSA, p.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N);
  Set(plan.operation, CUBLASLT_MATMUL_DESC_TRANSB, p.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N);
  if (p.bias.data != nullptr) {
    Set(plan.operation, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
    Set(plan.operation, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, TypeOf(p.bias.dtype));
    if (p.batch > 1) Set(plan.operation, CUBLASLT_MATMUL_DESC_BIAS_BATCH_STRIDE, p.bias.batch_stride);
    SetBias(plan, p.bias.data);
  }
  plan.a = MakeLayout(p.b, p.transpose_b ? p.N : p.K, p.transpose_b ? p.K : p.N, p.batch);
  plan.b = MakeLayout(p.a, p.transpose_a ? p.K : p.M, p.transpose_a ? p.M : p.K, p.batch);
  plan.c = MakeLayout(p.c, p.M, p.N, p.batch);

  cublasLtMatmulPreference_t preference = nullptr;
  Check(cublasLtMatmulPreferenceCreate(&preference), "cublasLtMatmulPreferenceCreate");
  Set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<uint64_t>(kWorkspaceBytes));
  // Parts of a sum over K may be added in f32, through the workspace, which has a fixed order; in the type of
  // c it would round twice, and in place the order is not fixed.
  Set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
      static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
  Set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, static_cast<uint32_t>(AlignmentOf(p.b.data)));
  Set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, static_cast<uint32_t>(AlignmentOf(p.a.data)));
  Set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, static_cast<uint32_t>(AlignmentOf(p.c.data)));
  Set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, static_cast<uint32_t>(AlignmentOf(p.c.data)));

  cublasLtMatmulHeuristicResult_t results[kMaxCandidates];
  int num_found = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
      handle_, plan.operation, plan.a, plan.b, plan.c, plan.c, preference,
      std::clamp(options_.num_timed_candidates, 1, kMaxCandidates), results, &num_found);
  cublasLtMatmulPreferenceDestroy(preference);
  if (Refused(status)) return plan;
  Check(status, "cublasLtMatmulAlgoGetHeuristic");
  const auto* end = std::remove_if(
      results, results + num_found,
      [](const cublasLtMatmulHeuristicResult_t& r) { return r.state != CUBLAS_STATUS_SUCCESS; });
  if (end == results) return plan;
  Choose(plan, p, {results, end});
  return plan;
}

// Sets the algorithm: the first suggestion, or the fastest if suggestions are to be timed and can be.
void MatmulEngine::Impl::Choose(Plan& plan, const MatmulProduct& p,
                                std::span<const cublasLtMatmulHeuristicResult_t> found) {
  plan.algorithm = found[0].algo;
  plan.served = true;
  if (found.size() == 1) return;
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  CheckCuda(cudaStreamIsCapturing(stream_, &capture), "cudaStreamIsCapturing");
  if (capture != cudaStreamCaptureStatusNone) return;
  // Candidates write to memory of their own: c may be an operand.
  const int64_t bytes = SpanElems(p.c, p.M, p.N, p.batch) * SizeOf(p.c.dtype) + kMaxAlignment;
  void* scratch = nullptr;
  if (cudaMalloc(&scratch, bytes) != cudaSuccess) {
    (void)cudaGetLastError();  // no room to time anything: the first suggestion stands
    return;
  }
  // as little aligned as c is
  void* destination = static_cast<char*>(scratch) + AlignmentOf(p.c.data) % kMaxAlignment;
  constexpr int kRounds = 5;
  cudaEvent_t begin, end;
  CheckCuda(cudaEventCreate(&begin), "cudaEventCreate");
  CheckCuda(cudaEventCreate(&end), "cudaEventCreate");
  float best_ms = std::numeric_limits<float>::infinity();
  for (const cublasLtMatmulHeuristicResult_t& candidate : found) {
    if (Enqueue(plan, candidate.algo, p, destination) != CUBLAS_STATUS_SUCCESS) continue;  // warms up
    CheckCuda(cudaEventRecord(begin, stream_), "cudaEventRecord");
    for (int round = 0; round < kRounds; ++round) {
      Check(Enqueue(plan, candidate.algo, p, destination), "cublasLtMatmul");
    }
    CheckCuda(cudaEventRecord(end, stream_), "cudaEventRecord");
    CheckCuda(cudaEventSynchronize(end), "cudaEventSynchronize");
    float ms = 0;
    CheckCuda(cudaEventElapsedTime(&ms, begin, end), "cudaEventElapsedTime");
    if (ms < best_ms) {
      best_ms = ms;
      plan.algorithm = candidate.algo;
    }
  }
  CheckCuda(cudaEventDestroy(begin), "cudaEventDestroy");
  CheckCuda(cudaEventDestroy(end), "cudaEventDestroy");
  CheckCuda(cudaFree(scratch), "cudaFree");
}

// False if the library has no kernel for it.
bool MatmulEngine::Impl::RunInLibrary(const MatmulProduct& p) {
  Plan& plan = PlanFor(p);
  if (!plan.served) return false;
  const cublasStatus_t status = Enqueue(plan, plan.algorithm, p, p.c.data);
  plan.served = !Refused(status);
  if (plan.served) Check(status, "cublasLtMatmul");
  return plan.served;
}

// c is bf16 and the library does not add an f32 bias to it: sums go to f32 memory, some rows at a time. False
// if not even one row of them has room.
bool MatmulEngine::Impl::RunStaged(const MatmulProduct& p) {
  const int64_t rows_at_once = std::min(p.M, kStagingBytes / static_cast<int64_t>(sizeof(float)) / p.N);
  if (rows_at_once == 0) return false;
  for (int64_t batch = 0; batch < p.batch; ++batch) {
    for (int64_t row = 0; row < p.M; row += rows_at_once) {
      MatmulProduct part = p;
      part.batch = 1;
      part.M = std::min(rows_at_once, p.M - row);
      part.a.data = Advance(p.a, batch * p.a.batch_stride + (p.transpose_a ? row : row * p.a.row_stride));
      part.b.data = Advance(p.b, batch * p.b.batch_stride);
      part.c.data = Advance(p.c, batch * p.c.batch_stride + row * p.c.row_stride);
      part.bias.data = Advance(p.bias, batch * p.bias.batch_stride);
      MatmulProduct sums = part;
      sums.c = {.data = staging_, .dtype = DType::kF32, .row_stride = p.N};
      sums.bias = {};
      sums.accumulate = false;
      if (RunInLibrary(sums)) {
        FinishRows(part, staging_, stream_);
      } else {
        PlainProduct(part, stream_);
      }
    }
  }
  return true;
}

MatmulEngine::MatmulEngine(cudaStream_t stream, const DeviceInfo&, const MatmulOptions& options)
    : impl_(std::make_unique<Impl>(stream, options)) {}
MatmulEngine::~MatmulEngine() = default;
void MatmulEngine::Run(const MatmulProduct& product) { impl_->Run(product); }
}  // namespace carousel::CAROUSEL_DEVICE_NS
