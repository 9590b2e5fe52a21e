// Curve: a number over the steps of a run in bounded memory. Values that come one after the other share a
// bucket that keeps their least, their largest and their mean, so a single spike among millions of steps
// stays visible. When there are too many buckets, neighbours join.
#pragma once
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace carousel {

class Curve {
 public:
  // max_buckets: even, at least 2.
  explicit Curve(int64_t max_buckets = 512) : max_buckets_(max_buckets) {}

  struct Bucket {
    int64_t first_step = 0, last_step = 0;
    int64_t num_values = 0;      // finite ones
    int64_t num_non_finite = 0;  // and those of 1e200 and more: left out of the rest
    double min = 0, max = 0, sum = 0;
    double mean() const { return sum / static_cast<double>(num_values); }
  };

  // Steps do not fall. Curves that get their values at the same steps have the same buckets.
  void Add(int64_t step, double value);
  const std::vector<Bucket>& buckets() const { return buckets_; }
  int64_t num_added() const { return num_added_; }
  bool empty() const { return buckets_.empty(); }

 private:
  int64_t max_buckets_;
  int64_t width_ = 1;  // values per bucket
  int64_t num_added_ = 0;
  std::vector<Bucket> buckets_;
};

// At most `max_items` of many events, evenly thinned: when there are too many, every second one goes; the
// newest stays. num_added counts all.
template <class Item>
class ThinnedList {
 public:
  explicit ThinnedList(int64_t max_items) : max_items_(max_items) {}
  void Add(Item item) {
    const bool keep = num_added_ % stride_ == 0;
    ++num_added_;
    // The newest one, if the stride leaves it out, stands at the end until the next comes.
    if (last_is_extra_) items_.pop_back();
    items_.push_back(std::move(item));
    last_is_extra_ = !keep;
    if (static_cast<int64_t>(items_.size()) <= max_items_) return;
    if (last_is_extra_) return;
    std::vector<Item> thinned;
    for (size_t i = 0; i < items_.size(); i += 2) thinned.push_back(std::move(items_[i]));
    last_is_extra_ = false;
    if (items_.size() % 2 == 0) {
      thinned.push_back(std::move(items_.back()));
      last_is_extra_ = true;
    }
    items_ = std::move(thinned);
    stride_ *= 2;
  }
  const std::vector<Item>& items() const { return items_; }
  int64_t num_added() const { return num_added_; }

 private:
  int64_t max_items_;
  int64_t stride_ = 1, num_added_ = 0;
  bool last_is_extra_ = false;
  std::vector<Item> items_;
};
}  // namespace carousel
