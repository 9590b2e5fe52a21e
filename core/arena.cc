#include "core/arena.h"

#include <algorithm>

#include "core/base/int_math.h"

namespace carousel {

Arena::Arena(void* base, int64_t grow_bytes)
    : base_(static_cast<std::byte*>(base)), planned_grow_bytes_(grow_bytes) {}

int64_t Arena::AlignedBytes(DType dtype, std::initializer_list<int64_t> dims) {
  int64_t bytes = SizeOf(dtype);
  for (const int64_t d : dims) {
    int64_t product = 0;
    CAROUSEL_CHECK_MSG(d >= 0 && !__builtin_mul_overflow(bytes, d, &product), "tensor too large");
    bytes = product;
  }
  return RoundUp(bytes, kAlignBytes);
}

Tensor Arena::Place(int64_t offset, DType dtype, std::initializer_list<int64_t> dims) const {
  return Tensor(base_ == nullptr ? nullptr : base_ + offset, dtype, dims);
}

Tensor Arena::Persistent(const std::string& category, DType dtype, std::initializer_list<int64_t> dims) {
  const int64_t bytes = AlignedBytes(dtype, dims);
  const Tensor t = Place(grow_bytes_, dtype, dims);
  grow_bytes_ += bytes;
  bytes_by_category_[category] += bytes;
  CAROUSEL_CHECK_MSG(counting() || grow_bytes_ <= planned_grow_bytes_, "more memory bound than planned");
  return t;
}

Tensor Arena::Saved(DType dtype, std::initializer_list<int64_t> dims) {
  if (active_region_.empty()) return Persistent("saved", dtype, dims);
  Region& region = regions_[active_region_];
  const int64_t bytes = AlignedBytes(dtype, dims);
  if (region_is_new_) {
    const Tensor t = Persistent("saved", dtype, dims);
    region.size_bytes += bytes;
    return t;
  }
  const Tensor t = Place(region.offset + region_cursor_, dtype, dims);
  region_cursor_ += bytes;
  CAROUSEL_CHECK_LE(region_cursor_, region.size_bytes);
  return t;
}

Tensor Arena::Scratch(DType dtype, std::initializer_list<int64_t> dims) {
  const Tensor t = Place(planned_grow_bytes_ + scratch_bytes_, dtype, dims);
  scratch_bytes_ += AlignedBytes(dtype, dims);
  peak_scratch_bytes_ = std::max(peak_scratch_bytes_, scratch_bytes_);
  return t;
}

void Arena::BeginSharedSaved(const std::string& region) {
  CAROUSEL_CHECK_MSG(active_region_.empty() && !region.empty(), "shared regions do not nest");
  active_region_ = region;
  region_cursor_ = 0;
  region_is_new_ = regions_.find(region) == regions_.end();
  if (region_is_new_) regions_[region].offset = grow_bytes_;
}

void Arena::EndSharedSaved() {
  CAROUSEL_CHECK(!active_region_.empty());
  active_region_.clear();
}
}  // namespace carousel
