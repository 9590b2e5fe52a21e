// A reference dump: one safetensors file with the numbers of one computation of the public implementation.
// Its metadata says what it is; its tensors are inputs and results. The format: tests/golden/README.md.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "checkpoints/safetensors.h"

namespace carousel {

class ReferenceDump {
 public:
  static absl::StatusOr<ReferenceDump> Open(const std::string& path);

  const std::string& path() const { return reader_.path(); }
  const std::map<std::string, std::string>& metadata() const { return reader_.metadata(); }
  // The value of a metadata field; `default_value` if there is none.
  std::string Field(const std::string& name, const std::string& default_value) const;
  bool Has(const std::string& tensor) const { return reader_.Find(tensor) != nullptr; }
  const std::vector<SafetensorsEntry>& tensors() const { return reader_.tensors(); }
  // Its shape; NotFound (with the nearest names) if there is no such tensor.
  absl::StatusOr<std::vector<int64_t>> Shape(const std::string& tensor) const;
  absl::StatusOr<SafetensorsDType> DTypeOfTensor(const std::string& tensor) const;

  // All elements of a float tensor that must have this shape. Not-a-number and infinities are refused: in a
  // dump they are damage.
  absl::StatusOr<std::vector<double>> Doubles(const std::string& tensor,
                                              const std::vector<int64_t>& shape) const;
  // A scalar stored as () or (1).
  absl::StatusOr<double> Scalar(const std::string& tensor) const;
  // All elements of an integer tensor that must have this shape, each in [0, limit).
  absl::StatusOr<std::vector<int32_t>> Ids(const std::string& tensor, const std::vector<int64_t>& shape,
                                           int64_t limit) const;
  // InvalidArgument with the file's name.
  absl::Status Invalid(const std::string& what) const;

 private:
  explicit ReferenceDump(SafetensorsReader reader) : reader_(std::move(reader)) {}
  SafetensorsReader reader_;
};
}  // namespace carousel
