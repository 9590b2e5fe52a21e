// Learning rate as a pure function of the step.
#pragma once
#include <cstdint>

namespace carousel {

enum class ScheduleKind : uint8_t { kConstant, kCosine, kExponential, kWarmupStableDecay };

// Steps count from 0; the rate is the one used by update number step + 1.
//   warmup   [0, warmup): linear from 0 at step 0 to peak (lr(s) = peak * s / warmup; lr(0) = 0)
//   main     [warmup, total - cooldown): kConstant and kWarmupStableDecay hold peak; kCosine falls to
//   final_factor * peak along half a cosine;
//            kExponential falls geometrically from peak to final_factor * peak
//   cooldown [total - cooldown, total): linear from the main phase's last value to 0 at step total
struct ScheduleSpec {
  ScheduleKind kind = ScheduleKind::kCosine;
  double peak_lr = 1e-3;
  double final_factor = 0.1;
  int64_t warmup_steps = 0;
  int64_t cooldown_steps = 0;
  int64_t total_steps = 1;
};
double LearningRate(const ScheduleSpec&, int64_t step);
}  // namespace carousel
