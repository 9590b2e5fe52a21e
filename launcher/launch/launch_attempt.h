// One attempt of `carousel launch`: its directory, the processes, and the watch over them until all are gone.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "launcher/launch/launch_judgement.h"
#include "launcher/launch/launch_plan.h"
#include "launcher/launch/launch_process.h"

namespace carousel {

// The signals by which people and schedulers ask the launcher to end: TERM, INT, HUP, USR1, USR2. They never
// interrupt anything. Many come twice: `timeout` and Slurm signal the process and then its group, a terminal
// that closes sends HUP through the shell and by itself. So only a TERM or INT that comes a second or more
// after the first signal says that somebody does not want to wait.
class StopSignals {
 public:
  static absl::StatusOr<StopSignals> Take();
  // They do nothing from now on, and are there for Take.
  static void Hold();
  // Looks for new ones. now: of a clock in seconds.
  void Look(double now);
  bool asked() const { return first_ != 0; }
  bool hurried() const { return hurried_; }
  int first() const { return first_; }  // 0: none
  const OwnedFd& fd() const { return fd_; }

  // What Look does with one of them.
  void Note(int signal, double now);

 private:
  OwnedFd fd_;
  int first_ = 0;
  double first_at_ = 0;
  bool hurried_ = false;
};

// What is known before the processes start.
struct AttemptPlan {
  int64_t number = 0;
  std::string dir;  // absolute; exists
  int64_t ranks = 0;
  std::vector<LaunchHost> hosts;
  LaunchCommand command;
  std::vector<std::string> environment;  // of this process
};

// Makes RUN_DIR/attempts/N with the next N, readable for owner and group only, and its folders.
// FailedPrecondition names the directory.
absl::StatusOr<AttemptPlan> MakeAttemptDirectory(const std::string& run_dir);
// command.txt, hosts, environment, config.textproto.
absl::Status RecordAttempt(const AttemptPlan& plan, const std::string& config_text);

// Step of the newest committed checkpoint of the run, and of the newest that is marked as good; -1: none.
int64_t NewestCheckpointStep(const std::string& run_dir);
int64_t NewestGoodStep(const std::string& run_dir);
// The last step that metrics.jsonl tells of; -1: none.
int64_t LastRecordedStep(const std::string& run_dir);

// Starts the processes with a new secret and waits until the last of them has gone. Prints what they print.
// A first stop signal is passed on as SIGUSR2 and gives them options.grace_seconds, a second ends them. When
// a rank fails, the others have options.failure_grace_seconds. Fails only where nothing could be started.
absl::StatusOr<AttemptFacts> RunAttempt(const AttemptPlan& plan, const LaunchOptions& options,
                                        const std::string& run_dir, StopSignals* signals);
}  // namespace carousel
