#include "checkpoints/tensor_values.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "checkpoints/weight_source.h"
#include "core/base/check.h"
#include "core/base/status_macros.h"

namespace carousel {
namespace {

// Elements that are looked at at a time.
constexpr int64_t kBatch = 1 << 14;

const char* At(const void* data, DType dtype, int64_t elem) {
  return static_cast<const char*>(data) + elem * SizeOf(dtype);
}
}  // namespace

absl::StatusOr<ValueSummary> SummarizeValues(CheckpointTensors& tensors, const CheckpointTensor& tensor) {
  ValueSummary summary;
  double sum = 0, squares = 0;
  std::vector<double> values(kBatch);
  const auto use = [&](int64_t, int64_t count, const void* data) {
    for (int64_t done = 0; done < count; done += kBatch) {
      const int64_t n = std::min(kBatch, count - done);
      ConvertElems(DType::kF64, values.data(), tensor.dtype, At(data, tensor.dtype, done), n);
      for (int64_t i = 0; i < n; ++i) {
        const double x = values[static_cast<size_t>(i)];
        if (std::isnan(x)) {
          ++summary.num_nan;
        } else if (std::isinf(x)) {
          ++summary.num_inf;
        } else {
          summary.min = summary.num_finite == 0 ? x : std::min(summary.min, x);
          summary.max = summary.num_finite == 0 ? x : std::max(summary.max, x);
          ++summary.num_finite;
          sum += x;
          squares += x * x;
        }
      }
    }
    return absl::OkStatus();
  };
  CAROUSEL_RETURN_IF_ERROR(tensors.Stream(tensor, use));
  if (summary.num_finite > 0) {
    summary.mean = sum / static_cast<double>(summary.num_finite);
    summary.rms = std::sqrt(squares / static_cast<double>(summary.num_finite));
  }
  return summary;
}

absl::StatusOr<ValueDifference> CompareValues(CheckpointTensors& a, const CheckpointTensor& in_a,
                                              CheckpointTensors& b, const CheckpointTensor& in_b) {
  CAROUSEL_CHECK(in_a.shape == in_b.shape && in_a.dtype == in_b.dtype);
  const DType dtype = in_a.dtype;
  ValueDifference difference;
  double squares = 0, squares_of_a = 0;
  int64_t num_finite = 0;
  std::vector<char> other;
  std::vector<double> values_a(kBatch), values_b(kBatch);
  const auto use = [&](int64_t begin, int64_t count, const void* data) -> absl::Status {
    other.resize(static_cast<size_t>(count * SizeOf(dtype)));
    CAROUSEL_RETURN_IF_ERROR(b.Read(in_b, begin, count, other.data()));
    for (int64_t done = 0; done < count; done += kBatch) {
      const int64_t n = std::min(kBatch, count - done);
      const char* const bits_a = At(data, dtype, done);
      const char* const bits_b = At(other.data(), dtype, done);
      ConvertElems(DType::kF64, values_a.data(), dtype, bits_a, n);
      ConvertElems(DType::kF64, values_b.data(), dtype, bits_b, n);
      for (int64_t i = 0; i < n; ++i) {
        const double x = values_a[static_cast<size_t>(i)], y = values_b[static_cast<size_t>(i)];
        const bool finite = std::isfinite(x) && std::isfinite(y);
        if (finite) {
          squares_of_a += x * x;
          ++num_finite;
        }
        if (std::memcmp(At(bits_a, dtype, i), At(bits_b, dtype, i), static_cast<size_t>(SizeOf(dtype))) ==
            0) {
          continue;
        }
        if (difference.num_different++ == 0) difference.first = begin + done + i;
        if (!finite) {
          ++difference.num_not_finite;
          continue;
        }
        squares += (x - y) * (x - y);
        const double absolute = std::abs(x - y), larger = std::max(std::abs(x), std::abs(y));
        difference.max_absolute = std::max(difference.max_absolute, absolute);
        // 0 and -0 differ in their bits alone.
        if (larger > 0) difference.max_relative = std::max(difference.max_relative, absolute / larger);
      }
    }
    return absl::OkStatus();
  };
  CAROUSEL_RETURN_IF_ERROR(a.Stream(in_a, use));
  if (num_finite > 0) {
    difference.rms = std::sqrt(squares / static_cast<double>(num_finite));
    difference.rms_of_a = std::sqrt(squares_of_a / static_cast<double>(num_finite));
  }
  return difference;
}
}  // namespace carousel
