// `carousel launch`: attempts one after the other, until the run is done or another attempt would not help.
#pragma once
#include <map>
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
  // Those that are not excluded.
  std::vector<LaunchHost> AllowedHosts() const;
  // Hosts for the next attempt: of the allowed ones, after a failure, those that answer.
  std::vector<LaunchHost> UsableHosts(bool probe);
  absl::StatusOr<int64_t> RanksOn(const std::vector<LaunchHost>& hosts) const;
  // Plans and runs one. A failure to start is an attempt that failed.
  AttemptExit Attempt(bool probe, bool from_good, AttemptFacts* facts);
  // Leaves suspected hosts out from now on. False: without them the run cannot go on.
  bool Suspect(const AttemptExit& exit, const NextMove& move);
  bool CanRunOn(const std::vector<LaunchHost>& hosts) const;
  // The host of the target that calls itself so; empty: none does, or more than one.
  std::string TargetHost(const std::string& own_name);
  void LookForSignals();
  // False if a signal came meanwhile.
  bool Wait(double seconds);
  void Report(const AttemptExit& exit, const AttemptFacts& facts) const;

  const RunSpec run_;
  const LaunchOptions options_;
  const LaunchSurroundings here_;
  const LaunchTarget target_;
  const std::vector<std::string> train_args_;
  StopSignals signals_;
  std::set<std::string> excluded_;                // for the rest of the launch
  std::map<std::string, std::string> own_names_;  // of hosts of the target, as far as they said
  std::vector<std::string> suspected_;            // by the attempt before, which brought no progress
  std::string attempt_dir_;                       // of the newest attempt; empty: it had none
};
}  // namespace carousel
