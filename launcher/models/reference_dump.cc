#include "launcher/models/reference_dump.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "checkpoints/hf_names.h"
#include "core/base/status_macros.h"

namespace carousel {
namespace {
bool IsFloat(SafetensorsDType dtype) {
  return dtype == SafetensorsDType::kF64 || dtype == SafetensorsDType::kF32 ||
         dtype == SafetensorsDType::kF16 || dtype == SafetensorsDType::kBF16;
}
}  // namespace

absl::StatusOr<ReferenceDump> ReferenceDump::Open(const std::string& path) {
  CAROUSEL_ASSIGN_OR_RETURN(SafetensorsReader reader, SafetensorsReader::Open(path));
  return ReferenceDump(std::move(reader));
}

std::string ReferenceDump::Field(const std::string& name, const std::string& default_value) const {
  const auto found = metadata().find(name);
  return found == metadata().end() ? default_value : found->second;
}

absl::Status ReferenceDump::Invalid(const std::string& what) const {
  return absl::InvalidArgumentError(absl::StrCat(path(), ": ", what));
}

absl::StatusOr<std::vector<int64_t>> ReferenceDump::Shape(const std::string& tensor) const {
  CAROUSEL_ASSIGN_OR_RETURN(const SafetensorsEntry entry, reader_.Get(tensor));
  return entry.shape;
}

absl::StatusOr<SafetensorsDType> ReferenceDump::DTypeOfTensor(const std::string& tensor) const {
  CAROUSEL_ASSIGN_OR_RETURN(const SafetensorsEntry entry, reader_.Get(tensor));
  return entry.dtype;
}

absl::StatusOr<std::vector<double>> ReferenceDump::Doubles(const std::string& tensor,
                                                           const std::vector<int64_t>& shape) const {
  CAROUSEL_ASSIGN_OR_RETURN(const SafetensorsEntry entry, reader_.Get(tensor));
  if (entry.shape != shape) {
    return Invalid(absl::StrCat("tensor \"", tensor, "\" has shape ", ShapeText(entry.shape), "; it must be ",
                                ShapeText(shape)));
  }
  if (!IsFloat(entry.dtype)) {
    return Invalid(absl::StrCat("tensor \"", tensor, "\" has dtype ", NameOf(entry.dtype),
                                "; it must be F64, F32, F16 or BF16"));
  }
  CAROUSEL_ASSIGN_OR_RETURN(std::vector<double> values, reader_.ReadAsDouble(tensor));
  for (size_t i = 0; i < values.size(); ++i) {
    if (!std::isfinite(values[i])) {
      return Invalid(absl::StrCat("tensor \"", tensor, "\" is not finite at element ", i));
    }
  }
  return values;
}

absl::StatusOr<double> ReferenceDump::Scalar(const std::string& tensor) const {
  CAROUSEL_ASSIGN_OR_RETURN(const std::vector<int64_t> shape, Shape(tensor));
  const bool is_scalar = shape.empty() || shape == std::vector<int64_t>{1};
  CAROUSEL_ASSIGN_OR_RETURN(const std::vector<double> values,
                            Doubles(tensor, is_scalar ? shape : std::vector<int64_t>{1}));
  return values[0];
}

absl::StatusOr<std::vector<int32_t>> ReferenceDump::Ids(const std::string& tensor,
                                                        const std::vector<int64_t>& shape,
                                                        int64_t limit) const {
  CAROUSEL_ASSIGN_OR_RETURN(const SafetensorsEntry entry, reader_.Get(tensor));
  if (entry.shape != shape) {
    return Invalid(absl::StrCat("tensor \"", tensor, "\" has shape ", ShapeText(entry.shape), "; it must be ",
                                ShapeText(shape)));
  }
  CAROUSEL_ASSIGN_OR_RETURN(const std::vector<int64_t> values, reader_.ReadAsInt64(tensor));
  std::vector<int32_t> ids(values.size());
  for (size_t i = 0; i < values.size(); ++i) {
    if (values[i] < 0 || values[i] >= limit) {
      return Invalid(absl::StrCat("tensor \"", tensor, "\" holds ", values[i], " at element ", i,
                                  "; token ids must be in [0, ", limit, ")"));
    }
    ids[i] = static_cast<int32_t>(values[i]);
  }
  return ids;
}
}  // namespace carousel
