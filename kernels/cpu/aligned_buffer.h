// Scratch memory of a backend object: grows, never shrinks, begins at a cache line.
#pragma once
#include <cstdint>
#include <memory>
#include <new>

namespace carousel::cpu {

template <class T>
class AlignedBuffer {
 public:
  // Room for `count` elements; what was in the buffer is lost when it grows.
  T* Reserve(int64_t count) {
    if (count > capacity_) {
      data_.reset();
      data_.reset(static_cast<T*>(::operator new(static_cast<size_t>(count) * sizeof(T), kAlign)));
      capacity_ = count;
    }
    return data_.get();
  }

 private:
  static constexpr std::align_val_t kAlign{64};
  struct Free {
    void operator()(T* data) const { ::operator delete(data, kAlign); }
  };
  std::unique_ptr<T, Free> data_;
  int64_t capacity_ = 0;
};
}  // namespace carousel::cpu
