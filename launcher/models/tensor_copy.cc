#include "launcher/models/tensor_copy.h"

#include "checkpoints/weight_source.h"

namespace carousel {

void Upload(Device& device, Tensor tensor, const std::vector<double>& values) {
  CAROUSEL_CHECK_EQ(tensor.num_elems(), static_cast<int64_t>(values.size()));
  CAROUSEL_CHECK(tensor.contiguous());
  std::vector<std::byte> bytes(static_cast<size_t>(tensor.num_bytes()));
  ConvertElems(tensor.dtype, bytes.data(), DType::kF64, values.data(), tensor.num_elems());
  device.CopyToDevice(tensor.data, bytes.data(), tensor.num_bytes());
}

void UploadIds(Device& device, Tensor tensor, const std::vector<int32_t>& ids) {
  CAROUSEL_CHECK_EQ(tensor.num_elems(), static_cast<int64_t>(ids.size()));
  CAROUSEL_CHECK(tensor.dtype == DType::kI32);
  device.CopyToDevice(tensor.data, ids.data(), tensor.num_bytes());
}

std::vector<double> Download(Device& device, Tensor tensor) {
  CAROUSEL_CHECK(tensor.contiguous());
  std::vector<std::byte> bytes(static_cast<size_t>(tensor.num_bytes()));
  device.CopyToHost(bytes.data(), tensor.data, tensor.num_bytes());
  std::vector<double> values(static_cast<size_t>(tensor.num_elems()));
  ConvertElems(DType::kF64, values.data(), tensor.dtype, bytes.data(), tensor.num_elems());
  return values;
}
}  // namespace carousel
