#include "core/arena.h"

#include <algorithm>

#include "core/base/int_math.h"

namespace carousel {

Arena::Arena(void* base, const Arena& counted)
    : base_(static_cast<std::byte*>(base)), planned_own_bytes_(counted.own_bytes_) {
  CAROUSEL_CHECK(base != nullptr && counted.counting());
  scratch_begin_ = counted.own_bytes_;
  for (const auto& [name, region] : counted.regions_) {
    regions_[name] = {.offset = scratch_begin_, .planned_bytes = region.size_bytes};
    scratch_begin_ += region.size_bytes;
  }
}

int64_t Arena::grow_bytes() const {
  int64_t bytes = own_bytes_;
  for (const auto& [name, region] : regions_) bytes += region.size_bytes;
  return bytes;
}

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
  const Tensor t = Place(own_bytes_, dtype, dims);
  own_bytes_ += bytes;
  bytes_by_category_[category] += bytes;
  CAROUSEL_CHECK_MSG(counting() || own_bytes_ <= planned_own_bytes_, "more memory bound than planned");
  return t;
}

Tensor Arena::Saved(DType dtype, std::initializer_list<int64_t> dims) {
  if (active_region_.empty()) return Persistent("saved", dtype, dims);
  Region& region = regions_[active_region_];
  const int64_t bytes = AlignedBytes(dtype, dims);
  const Tensor t = Place(region.offset + region_cursor_, dtype, dims);
  region_cursor_ += bytes;
  if (region_cursor_ > region.size_bytes) {
    bytes_by_category_["saved"] += region_cursor_ - region.size_bytes;
    region.size_bytes = region_cursor_;
  }
  CAROUSEL_CHECK_MSG(counting() || region.size_bytes <= region.planned_bytes,
                     "more memory bound than planned");
  return t;
}

Tensor Arena::Scratch(DType dtype, std::initializer_list<int64_t> dims) {
  const Tensor t = Place(scratch_begin_ + scratch_bytes_, dtype, dims);
  scratch_bytes_ += AlignedBytes(dtype, dims);
  peak_scratch_bytes_ = std::max(peak_scratch_bytes_, scratch_bytes_);
  return t;
}

void Arena::BeginSharedSaved(const std::string& region) {
  CAROUSEL_CHECK_MSG(active_region_.empty() && !region.empty(), "shared regions do not nest");
  active_region_ = region;
  region_cursor_ = 0;
  CAROUSEL_CHECK_MSG(counting() || regions_.contains(region), "more memory bound than planned");
}

void Arena::EndSharedSaved() {
  CAROUSEL_CHECK(!active_region_.empty());
  active_region_.clear();
}
}  // namespace carousel
