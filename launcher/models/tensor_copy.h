// Copies between host vectors of doubles or ids and tensors of a device.
#pragma once
#include <cstdint>
#include <vector>

#include "core/device.h"

namespace carousel {

// `tensor` is contiguous, of a float dtype and as many elements as `values`.
void Upload(Device& device, Tensor tensor, const std::vector<double>& values);
void UploadIds(Device& device, Tensor tensor, const std::vector<int32_t>& ids);
std::vector<double> Download(Device& device, Tensor tensor);
}  // namespace carousel
