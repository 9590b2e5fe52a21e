#include "core/train/spike_score.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "core/base/check.h"

namespace carousel {
namespace {

constexpr double kNormalDeviation = 1.4826;  // of a normal distribution, per median absolute deviation
constexpr double kLeastDeviation = 1e-6;     // of the median

// REQUIRES: not empty.
double MedianOf(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  if (values.size() % 2 != 0) return *middle;
  return (*std::max_element(values.begin(), middle) + *middle) / 2;
}
}  // namespace

SpikeScore::SpikeScore(std::vector<double> window) : window_(std::move(window)) {
  if (window_.size() > kWindow) window_.erase(window_.begin(), window_.end() - kWindow);
}

double SpikeScore::median() const {
  return window_.empty() ? std::numeric_limits<double>::quiet_NaN() : MedianOf(window_);
}

double SpikeScore::Of(double x) const {
  if (!ready() || !std::isfinite(x)) return std::numeric_limits<double>::quiet_NaN();
  const double middle = MedianOf(window_);
  std::vector<double> distances;
  for (const double value : window_) distances.push_back(std::abs(value - middle));
  const double deviation = std::max({kNormalDeviation * MedianOf(std::move(distances)),
                                     kLeastDeviation * std::abs(middle), std::numeric_limits<double>::min()});
  return (x - middle) / deviation;
}

void SpikeScore::Add(double x) {
  CAROUSEL_CHECK(std::isfinite(x));
  if (window_.size() >= kWindow) window_.erase(window_.begin());
  window_.push_back(x);
}
}  // namespace carousel
