// SpikeScore: how far a number lies above those before it, as a robust z-score:
//   z = (x - median) / (1.4826 median |x_i - median|)
// over the last 64 numbers that were added (Iglewicz & Hoaglin 1993; the factor makes the deviation that of a
// normal distribution). Whoever leaves spikes out of what is added gets scores that spikes do not blunt.
// Every rank has one and adds the same numbers; what it remembers goes into the checkpoint.
#pragma once
#include <cstddef>
#include <vector>

namespace carousel {

class SpikeScore {
 public:
  static constexpr size_t kWindow = 64, kLeast = 32;

  // `window`: that of an earlier score; its newest kWindow numbers count.
  explicit SpikeScore(std::vector<double> window = {});
  // NaN before kLeast numbers have been added, and for what is not finite. The deviation counts as at least a
  // millionth of the median.
  double Of(double x) const;
  double median() const;  // NaN without any number
  // REQUIRES: finite.
  void Add(double x);
  bool ready() const { return window_.size() >= kLeast; }
  const std::vector<double>& window() const { return window_; }  // oldest first

 private:
  std::vector<double> window_;
};
}  // namespace carousel
