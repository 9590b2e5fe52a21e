// A rank's own account of its end, for `carousel launch` (attempt_record.h). One object per process, made
// before anything can fail and handed to whoever may end the process: the train command, the watchdog, the
// checks of the numbers. All methods may be called by any thread.
#pragma once
#include <atomic>
#include <mutex>
#include <string>
#include <vector>

#include "launcher/launch/attempt_record.h"

namespace carousel {

double UnixSeconds();  // since 1970

class AttemptRecorder {
 public:
  // attempt_dir: empty if nobody launched us, then nothing is ever written (Environment::Variable
  // (kAttemptDirVariable)). rank: as far as it is known before ranks have met; -1: not.
  AttemptRecorder(std::string attempt_dir, int64_t rank);

  const std::string& attempt_dir() const { return attempt_dir_; }
  void SetRank(int64_t rank, const std::string& host);
  void SetGpu(const std::string& gpu);
  void CompletedStep(int64_t step) { step_.store(step, std::memory_order_relaxed); }
  int64_t step() const { return step_.load(std::memory_order_relaxed); }

  // The process is about to end with this code. The first call counts: a watchdog that gives up on a rank is
  // not corrected by what the rank does afterwards. suspect_hosts: see RankEnd.
  void Ending(int exit_code, const std::string& reason, const std::vector<std::string>& suspect_hosts = {});

 private:
  const std::string attempt_dir_;
  std::atomic<int64_t> step_ = -1;
  std::mutex mutex_;
  bool written_ = false;
  RankEnd end_;  // what is known so far
};
}  // namespace carousel
