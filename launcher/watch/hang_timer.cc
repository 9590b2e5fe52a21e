#include "launcher/watch/hang_timer.h"

#include <algorithm>

namespace carousel {
namespace {
constexpr double kNewest = 0.1;  // weight of the newest in the average
size_t Index(HangTimer::Section section) { return static_cast<size_t>(section); }
}  // namespace

const char* HangTimer::NameOf(Section section) {
  static constexpr const char* kNames[kNumSections] = {
      "the start",           "a step",   "a step after a checkpoint or a sample",
      "an evaluation batch", "a sample", "waiting for a checkpoint",
      "the end of the run"};
  return kNames[Index(section)];
}

const char* HangTimer::FieldOf(Section section) {
  static constexpr const char* kFields[kNumSections] = {
      "watchdog.setup_seconds",      "watchdog.step_seconds",   "watchdog.save_seconds",
      "watchdog.evaluation_seconds", "watchdog.sample_seconds", "watchdog.save_seconds",
      "watchdog.finish_seconds"};
  return kFields[Index(section)];
}

void HangTimer::SetLimits(const Limits& limits, double now) {
  const std::lock_guard<std::mutex> lock(mutex_);
  limits_ = limits;
  progress_ = now;
}

void HangTimer::Enter(Section section, double now) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const size_t left = Index(section_);
  const double seconds = std::max(0.0, now - entered_);
  const bool learns = section_ != Section::kSetup && section_ != Section::kFinish;
  // The first of its kind is slow: it counts only until there is a second.
  if (learns) {
    double& average = learned_[left];
    if (num_seen_[left] == 0) {
      average = std::max(average, seconds);
    } else if (num_seen_[left] == 1) {
      average = std::max(seconds, std::min(average, 2 * seconds));
    } else {
      average += kNewest * (seconds - average);
    }
    ++num_seen_[left];
  }
  section_ = section;
  entered_ = progress_ = now;
  allowed_ = 0;
}

void HangTimer::Allow(double seconds) {
  const std::lock_guard<std::mutex> lock(mutex_);
  allowed_ = std::max(0.0, seconds);
}

void HangTimer::Progress(double now) {
  const std::lock_guard<std::mutex> lock(mutex_);
  progress_ = std::max(progress_, now);
}

HangTimer::Section HangTimer::section() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return section_;
}

double HangTimer::IdleSeconds(double now) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return now - progress_;
}

std::optional<HangTimer::Expiry> HangTimer::Check(double now) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const double since = now - checked_;
  checked_ = now;
  if (since > kStoppedSeconds) {
    progress_ = std::min(now, progress_ + since);
    entered_ = std::min(now, entered_ + since);
  }
  const double limit = LimitLocked(section_) + allowed_, idle = now - progress_;
  if (idle <= limit) return std::nullopt;
  return Expiry{.section = section_, .idle_seconds = idle, .limit_seconds = limit};
}

double HangTimer::LimitLocked(Section section) const {
  const size_t i = Index(section);
  if (section == Section::kSetup || section == Section::kFinish) return limits_.least[i];
  const double usual = limits_.scale * kLearnedFactor * learned_[i];
  return std::max({limits_.least[i], usual, num_seen_[i] == 0 ? limits_.unknown : 0.0});
}

double HangTimer::LimitOf(Section section) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return LimitLocked(section);
}

HangTimer::PerSection HangTimer::learned() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return learned_;
}

void HangTimer::SetLearned(const PerSection& seconds) {
  const std::lock_guard<std::mutex> lock(mutex_);
  learned_ = seconds;
}
}  // namespace carousel
