// An array of the host, copied to a device and back, for tests that call ops on any device.
#pragma once
#include <algorithm>
#include <initializer_list>
#include <vector>

#include "core/device.h"
#include "core/tensor.h"

namespace carousel::testing {

template <class T>
class DeviceCopy {
 public:
  // A copy of `values`, `offset` elements behind the start of an allocation, which is aligned.
  DeviceCopy(Device& device, const std::vector<T>& values, int64_t offset = 0)
      : device_(device), size_(static_cast<int64_t>(values.size())), offset_(offset) {
    memory_ = device.Allocate(std::max<int64_t>(1, size_ + offset) * static_cast<int64_t>(sizeof(T)));
    CAROUSEL_CHECK(memory_ != nullptr);
    Set(values);
  }
  ~DeviceCopy() { device_.Free(memory_); }
  DeviceCopy(const DeviceCopy&) = delete;
  DeviceCopy& operator=(const DeviceCopy&) = delete;

  void Set(const std::vector<T>& values) const {
    CAROUSEL_CHECK_EQ(static_cast<int64_t>(values.size()), size_);
    if (size_ > 0) device_.CopyToDevice(data(), values.data(), bytes());
  }
  std::vector<T> Get() const {
    std::vector<T> values(static_cast<size_t>(size_));
    if (size_ > 0) device_.CopyToHost(values.data(), data(), bytes());
    return values;
  }
  // The whole array with these dims.
  Tensor t(std::initializer_list<int64_t> dims) const { return {data(), DTypeOf<T>::value, dims}; }
  Tensor t() const { return t({size_}); }
  // (rows, columns) with a row stride; the last row may end before it.
  Tensor Strided(int64_t rows, int64_t columns, int64_t row_stride) const {
    Tensor view = t({rows, columns});
    view.row_stride = row_stride;
    return view;
  }

 private:
  T* data() const { return static_cast<T*>(memory_) + offset_; }
  int64_t bytes() const { return size_ * static_cast<int64_t>(sizeof(T)); }

  Device& device_;
  const int64_t size_, offset_;
  void* memory_ = nullptr;
};
}  // namespace carousel::testing
