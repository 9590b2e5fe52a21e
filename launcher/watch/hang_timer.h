// HangTimer: decides from signs of progress whether a process hangs. Only arithmetic: the clock is the
// caller's. What a process does is divided into sections; in each one, nothing may take longer than the
// section's limit between two signs of progress. Limits are learned: kLearnedFactor times as long as such
// work has taken on average, at least the seconds that the config gives; what has not been seen yet has the
// limit of the start. All methods may be called by any thread.
#pragma once
#include <array>
#include <cstdint>
#include <mutex>
#include <optional>

namespace carousel {

class HangTimer {
 public:
  enum class Section : uint8_t {
    kSetup,          // from the start of the program until the first step
    kStep,           // one step
    kStepAfterSave,  // one step that waits for copies of the state or for a sample
    kEvaluation,     // one batch
    kSample,         // a sample of text
    kSave,           // all wait for a checkpoint
    kFinish          // the end of the program
  };
  static constexpr size_t kNumSections = 7;
  static const char* NameOf(Section section);   // "a step"
  static const char* FieldOf(Section section);  // "watchdog.step_seconds": where its limit is set

  static constexpr double kLearnedFactor = 8;
  // A clock that jumps by more between two Checks: the process was stopped, or its machine slept. Not a hang.
  static constexpr double kStoppedSeconds = 3;

  // Seconds, already scaled.
  using PerSection = std::array<double, kNumSections>;
  struct Limits {
    PerSection least = {600, 60, 300, 60, 120, 300, 120};
    double unknown = 600;  // for what has not been seen yet, if that is more
    double scale = 1;      // of kLearnedFactor
  };

  explicit HangTimer(double now) : entered_(now), progress_(now), checked_(now) {}
  void SetLimits(const Limits& limits, double now);

  // This section begins, or begins anew (the next step, the next batch). How long the one that ends took is
  // learned.
  void Enter(Section section, double now);
  // A sign of life inside of a section; nothing is learned.
  void Progress(double now);
  // What comes next may take so much longer than the limit, until the next Enter.
  void Allow(double seconds);
  Section section() const;
  // Seconds since the last sign of progress.
  double IdleSeconds(double now) const;

  struct Expiry {
    Section section = Section::kSetup;
    double idle_seconds = 0, limit_seconds = 0;
  };
  // To be called several times a second. An expiry if nothing has happened for longer than the limit.
  std::optional<Expiry> Check(double now);

  double LimitOf(Section section) const;
  // Average seconds of each section, 0: not known. For a process that goes on with the same work: it takes
  // them as they are, but goes by its own first one if that was longer.
  PerSection learned() const;
  void SetLearned(const PerSection& seconds);

 private:
  double LimitLocked(Section section) const;

  mutable std::mutex mutex_;
  Limits limits_;
  Section section_ = Section::kSetup;
  double entered_, progress_, checked_;
  double allowed_ = 0;
  PerSection learned_ = {};
  std::array<int64_t, kNumSections> num_seen_ = {};  // by this process
};
}  // namespace carousel
