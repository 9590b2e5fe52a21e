#include "core/optim/schedule.h"

#include <algorithm>
#include <cmath>

namespace carousel {
namespace {

// The rate of the main phase; progress runs from 0 to 1 over it.
double MainRate(const ScheduleSpec& s, double progress) {
  constexpr double kPi = 3.14159265358979323846;
  switch (s.kind) {
    case ScheduleKind::kConstant:
    case ScheduleKind::kWarmupStableDecay:
      return s.peak_lr;
    case ScheduleKind::kCosine:
      return s.peak_lr * (s.final_factor + (1 - s.final_factor) * 0.5 * (1 + std::cos(kPi * progress)));
    case ScheduleKind::kExponential:
      return s.peak_lr * std::pow(s.final_factor, progress);
  }
  return 0;
}
}  // namespace

double LearningRate(const ScheduleSpec& s, int64_t step) {
  if (step < s.warmup_steps) {
    return s.peak_lr * static_cast<double>(step) / static_cast<double>(s.warmup_steps);
  }
  const int64_t main_end = std::max(s.warmup_steps, s.total_steps - s.cooldown_steps);
  const int64_t main_steps = std::max<int64_t>(1, main_end - s.warmup_steps);
  const double progress =
      std::min(1.0, static_cast<double>(step - s.warmup_steps) / static_cast<double>(main_steps));
  if (step < main_end || s.cooldown_steps <= 0) return MainRate(s, progress);
  const double left = static_cast<double>(s.total_steps - step) / static_cast<double>(s.cooldown_steps);
  return MainRate(s, 1.0) * std::clamp(left, 0.0, 1.0);
}
}  // namespace carousel
