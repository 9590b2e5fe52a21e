#include "core/optim/schedule.h"

#include <gtest/gtest.h>

#include <cmath>

namespace carousel {
namespace {

constexpr ScheduleKind kAllKinds[] = {ScheduleKind::kConstant, ScheduleKind::kCosine,
                                      ScheduleKind::kExponential, ScheduleKind::kWarmupStableDecay};
ScheduleSpec Spec(ScheduleKind kind) {
  return {.kind = kind,
          .peak_lr = 2e-3,
          .final_factor = 0.1,
          .warmup_steps = 10,
          .cooldown_steps = 20,
          .total_steps = 130};
}

TEST(LearningRate, WarmsUpLinearlyFromZeroToThePeak) {
  for (const ScheduleKind kind : kAllKinds) {
    for (int64_t step = 0; step <= 10; ++step) {
      EXPECT_DOUBLE_EQ(LearningRate(Spec(kind), step), 2e-3 * static_cast<double>(step) / 10);
    }
  }
}

TEST(LearningRate, MainPhaseFollowsItsFormula) {
  constexpr double kPi = 3.14159265358979323846;
  for (int64_t step = 10; step < 110; ++step) {
    const double progress = static_cast<double>(step - 10) / 100;
    EXPECT_EQ(LearningRate(Spec(ScheduleKind::kConstant), step), 2e-3);
    EXPECT_EQ(LearningRate(Spec(ScheduleKind::kWarmupStableDecay), step), 2e-3);
    EXPECT_NEAR(LearningRate(Spec(ScheduleKind::kCosine), step),
                2e-4 + 1.8e-3 * (1 + std::cos(kPi * progress)) / 2, 1e-15);
    EXPECT_NEAR(LearningRate(Spec(ScheduleKind::kExponential), step), 2e-3 * std::pow(0.1, progress), 1e-15);
  }
}

TEST(LearningRate, CoolsDownLinearlyFromTheLastValueToZero) {
  for (const ScheduleKind kind : kAllKinds) {
    const bool decays = kind == ScheduleKind::kCosine || kind == ScheduleKind::kExponential;
    const double start = decays ? 2e-4 : 2e-3;
    for (int64_t step = 110; step < 130; ++step) {
      EXPECT_NEAR(LearningRate(Spec(kind), step), start * static_cast<double>(130 - step) / 20, 1e-15);
    }
    EXPECT_EQ(LearningRate(Spec(kind), 130), 0);
    EXPECT_EQ(LearningRate(Spec(kind), 1000), 0);
  }
}

TEST(LearningRate, WithoutCooldownItEndsAtTheFinalFactor) {
  ScheduleSpec spec = Spec(ScheduleKind::kCosine);
  spec.cooldown_steps = 0;
  EXPECT_NEAR(LearningRate(spec, 130), 2e-4, 1e-15);
  EXPECT_NEAR(LearningRate(spec, 500), 2e-4, 1e-15);  // a run that goes on
  EXPECT_GT(LearningRate(spec, 129), 2e-4);
}

TEST(LearningRate, WithoutWarmupItBeginsAtThePeak) {
  for (const ScheduleKind kind : kAllKinds) {
    ScheduleSpec spec = Spec(kind);
    spec.warmup_steps = 0;
    EXPECT_EQ(LearningRate(spec, 0), 2e-3);
  }
}

TEST(LearningRate, IsContinuousWhereWarmupAndCooldownMeet) {
  ScheduleSpec spec = Spec(ScheduleKind::kWarmupStableDecay);
  spec.total_steps = 30;
  EXPECT_EQ(LearningRate(spec, 9), 2e-3 * 9 / 10);
  EXPECT_EQ(LearningRate(spec, 10), 2e-3);
  EXPECT_DOUBLE_EQ(LearningRate(spec, 11), 2e-3 * 19 / 20);
}
}  // namespace
}  // namespace carousel
