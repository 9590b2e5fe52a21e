#include "launcher/watch/hang_timer.h"

#include <gtest/gtest.h>

#include <string>

namespace carousel {
namespace {
using Section = HangTimer::Section;

// Steps the clock as the thread of the watchdog does, in tenths of a second, to `until`.
std::optional<HangTimer::Expiry> Until(HangTimer& timer, double* now, double until) {
  for (; *now < until; *now += 0.1) {
    if (const auto expiry = timer.Check(*now)) return expiry;
  }
  return std::nullopt;
}

TEST(HangTimer, SetupHasItsOwnLimitAndProgressStartsItAnew) {
  double now = 100;
  HangTimer timer(now);
  timer.SetLimits({.least = {10, 1, 1, 1, 1, 1, 1}, .unknown = 10}, now);
  EXPECT_FALSE(Until(timer, &now, 109.5));
  timer.Progress(now);
  EXPECT_FALSE(Until(timer, &now, 119));
  const auto expiry = Until(timer, &now, 130);
  ASSERT_TRUE(expiry);
  EXPECT_EQ(expiry->section, Section::kSetup);
  EXPECT_EQ(expiry->limit_seconds, 10);
  EXPECT_NEAR(now, 119.5, 0.25);
}

TEST(HangTimer, TheFirstStepMayTakeAsLongAsTheStartAndLaterOnesEightTimesTheUsual) {
  double now = 0;
  HangTimer timer(now);
  timer.SetLimits({.least = {30, 2, 2, 2, 2, 2, 2}, .unknown = 30}, now);
  timer.Enter(Section::kStep, now);
  EXPECT_FALSE(Until(timer, &now, 20));
  for (int step = 0; step < 200; ++step) {
    timer.Enter(Section::kStep, now);
    now += 1;
    EXPECT_FALSE(timer.Check(now));
  }
  EXPECT_NEAR(timer.LimitOf(Section::kStep), 8, 0.01);
  timer.Enter(Section::kStep, now);
  const double begin = now;
  const auto expiry = Until(timer, &now, now + 100);
  ASSERT_TRUE(expiry);
  EXPECT_EQ(expiry->section, Section::kStep);
  EXPECT_NEAR(now - begin, 8, 0.3);
}

TEST(HangTimer, ShortStepsHaveTheLeastLimit) {
  double now = 0;
  HangTimer timer(now);
  timer.SetLimits({.least = {600, 60, 60, 60, 120, 300, 120}, .unknown = 600}, now);
  for (int step = 0; step < 100; ++step, now += 0.01) timer.Enter(Section::kStep, now);
  EXPECT_EQ(timer.LimitOf(Section::kStep), 60);
  EXPECT_EQ(timer.LimitOf(Section::kEvaluation), 600) << "not seen yet";
  EXPECT_EQ(timer.LimitOf(Section::kFinish), 120);
}

TEST(HangTimer, ASlowFirstStepIsForgottenByTheThird) {
  double now = 0;
  HangTimer timer(now);
  timer.SetLimits({.least = {600, 1, 1, 1, 1, 1, 1}, .unknown = 600}, now);
  for (const double seconds : {0.0, 100.0, 2.0, 2.0}) {
    now += seconds;
    timer.Enter(Section::kStep, now);
  }
  EXPECT_LE(timer.LimitOf(Section::kStep), 8 * 4);
}

TEST(HangTimer, AProcessThatWasStoppedIsNotToBlame) {
  double now = 0;
  HangTimer timer(now);
  timer.SetLimits({.least = {5, 5, 5, 5, 5, 5, 5}, .unknown = 5}, now);
  EXPECT_FALSE(Until(timer, &now, 4));
  now += 3600;  // SIGSTOP, SIGCONT
  EXPECT_FALSE(timer.Check(now));
  EXPECT_FALSE(Until(timer, &now, 3604.5));
  EXPECT_TRUE(Until(timer, &now, 3607)) << "the second that was left is over";
}

TEST(HangTimer, WhatAnEarlierProcessLearnedCountsUntilOneOfItsOwnIsLonger) {
  double now = 0;
  HangTimer timer(now);
  timer.SetLimits({.least = {10, 1, 1, 1, 1, 1, 1}, .unknown = 10}, now);
  HangTimer::PerSection learned = {};
  learned[static_cast<size_t>(Section::kStep)] = 5;
  timer.SetLearned(learned);
  EXPECT_EQ(timer.LimitOf(Section::kStep), 40);
  timer.Enter(Section::kStep, now);
  now = 30;  // fewer ranks than before
  timer.Enter(Section::kStep, now);
  EXPECT_EQ(timer.LimitOf(Section::kStep), 240);
  now = 60;
  timer.Enter(Section::kStep, now);
  EXPECT_EQ(timer.LimitOf(Section::kStep), 240);
}

TEST(HangTimer, ScaleAlsoMultipliesWhatIsLearned) {
  double now = 0;
  HangTimer timer(now);
  timer.SetLimits({.least = {1, 1, 1, 1, 1, 1, 1}, .unknown = 1, .scale = 0.5}, now);
  for (int step = 0; step < 100; ++step, now += 10) timer.Enter(Section::kStep, now);
  EXPECT_NEAR(timer.LimitOf(Section::kStep), 40, 1);
}
TEST(HangTimer, WhatIsAllowedIsAddedUntilTheNextSection) {
  double now = 0;
  HangTimer timer(now);
  timer.SetLimits({.least = {10, 2, 2, 2, 2, 2, 2}, .unknown = 10}, now);
  timer.Allow(50);
  EXPECT_FALSE(Until(timer, &now, 59));
  auto expiry = Until(timer, &now, 70);
  ASSERT_TRUE(expiry);
  EXPECT_EQ(expiry->limit_seconds, 60);
  timer.Allow(50);
  timer.Enter(Section::kSetup, now);
  expiry = Until(timer, &now, now + 20);
  ASSERT_TRUE(expiry);
  EXPECT_EQ(expiry->limit_seconds, 10);
}

TEST(HangTimer, EverySectionSaysWhereItsLimitIsSet) {
  for (size_t i = 0; i < HangTimer::kNumSections; ++i) {
    const std::string field = HangTimer::FieldOf(static_cast<Section>(i));
    EXPECT_TRUE(field.starts_with("watchdog.") && field.ends_with("_seconds")) << field;
  }
}
}  // namespace
}  // namespace carousel
