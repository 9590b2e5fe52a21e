// `carousel launch`: attempts one after the other, until the run is done or another attempt would not help.
#pragma once
#include <set>
#include <string>
#include <vector>

#include "configs/run_spec.h"
#include "launcher/launch/launch_attempt.h"
#include "launcher/launch/launch_judgement.h"
#include "launcher/launch/launch_plan.h"

namespace carousel {

class LaunchSupervisor {
 public:
  // run: as the train command would resolve it from train_args, which begin with "train". run.run_dir is
  // absolute.
  LaunchSupervisor(const RunSpec& run, const LaunchOptions& options, const LaunchSurroundings& here,
                   const LaunchTarget& target, const std::vector<std::string>& train_args);

  // Returns the exit code of the launch (core/base/exit_code.h).
  int Run();
  // InvalidArgument if the mesh cannot be built of the ranks.
  absl::Status CheckPlan() const { return RanksOn(target_.hosts).status(); }
  // --dry_run: prints what the first attempt would run. REQUIRES: CheckPlan() is OK. Returns the exit code.
  int Print() const;

 private:
  // Hosts for the next attempt: not those that are suspected, and, after a failure, only those that answer.
  std::vector<LaunchHost> UsableHosts(bool probe) const;
  absl::StatusOr<int64_t> RanksOn(const std::vector<LaunchHost>& hosts) const;
  // Plans and runs one. A failure to start is an attempt that failed.
  AttemptExit Attempt(bool probe, bool from_good, AttemptFacts* facts);
  void Suspect(const AttemptExit& exit, const NextMove& move);
  // False if a signal came meanwhile.
  bool Wait(double seconds);
  void Report(const AttemptExit& exit, const AttemptFacts& facts) const;

  const RunSpec run_;
  const LaunchOptions options_;
  const LaunchSurroundings here_;
  const LaunchTarget target_;
  const std::vector<std::string> train_args_;
  StopSignals signals_;
  std::set<std::string> excluded_;      // for the rest of the launch
  std::vector<std::string> suspected_;  // by the attempt before, which brought no progress
  std::string attempt_dir_;             // of the newest attempt; empty: it had none
};
}  // namespace carousel
