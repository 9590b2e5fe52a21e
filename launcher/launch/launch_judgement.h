// What the end of an attempt means, and what to do next: pure functions over the records of the ranks, what
// mpirun or srun said, and the history of the launch. mpirun's own exit code is not to be trusted: it is 1
// whenever mpirun was told to end, whatever the ranks returned; so it counts only where no rank says more.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "launcher/launch/attempt_record.h"
#include "launcher/launch/launch_plan.h"

namespace carousel {

// How a process that we started ended, as waitpid says.
struct ProcessEnd {
  int exit_code = -1;  // -1: it ended by a signal
  int signal = 0;
  // As shells count: 128 + signal.
  int code() const { return signal != 0 ? 128 + signal : exit_code; }
};
std::string Describe(const ProcessEnd& end);  // "exit code 1", "signal 9 (Killed)"

// What mpirun or srun printed, read by a machine.
struct LauncherComplaint {
  int exit_code = 0;                    // by the contract; 0: nothing is known to be wrong
  std::string cause = {};               // with the fix
  std::vector<std::string> hosts = {};  // that could not be reached, as far as named
};
// Knows the texts of Open MPI 4.1, OpenSSH and Slurm for: too few slots, no such program, a host that cannot
// be resolved, reached or logged in to, a host that was lost, srun without PMIx.
LauncherComplaint ReadComplaint(const std::string& output);
// Whether mpirun has begun to end the job: it says so at once, and may then take minutes.
bool SaysJobFailed(const std::string& output);

struct AttemptFacts {
  int64_t attempt = 0, ranks = 0;
  std::vector<LaunchHost> hosts = {};
  std::string launcher_host = {};  // where carousel launch runs
  std::vector<RankEnd> ends = {};
  ProcessEnd launcher;          // of mpirun or srun
  std::string output = {};      // what it printed, the end of it
  bool told_to_stop = false;    // carousel launch was asked to end and passed it on
  bool ended_by_force = false;  // carousel launch ended what was left
  bool out_of_time = false;     // because the grace was over, or a second signal came
  int stop_signal = 0;          // that asked it
  int64_t checkpoint_before = -1, checkpoint = -1, good_checkpoint = -1;  // steps; -1: none
  int64_t recorded_step = -1;                                             // the last one in metrics.jsonl
  double began = 0, ended = 0;
};
// exit_code, reason, rank, host, gpu, step, suspect_hosts and the plain facts; log and next are left open.
//   The code is that of the ranks together (CombinedExitCode): a rank that only lost its peers (71, 143)
// gives way to the peer that knows why; among those that say the same the first one counts, except one that
// blames nobody but hosts which are not believed to be the cause (BelievedSuspects). A rank without a record,
// killed together with what watched over it, is the cause if nobody else knows a better one.
//   Suspects are those that ranks with this code name. Where none of them does, and a rank was lost (70, 71,
// a signal), those that the ranks name which lost it.
//   An attempt that was told to stop is kExitStopped whatever mpirun says, also where it failed just then:
// the same command goes on. Only if the time for saving was too short, and steps are lost by that, it is 128
// + the signal.
AttemptExit Judge(const AttemptFacts& facts);

// What the launch has been through.
struct LaunchHistory {
  int64_t restarts = 0;
  int64_t restarts_without_progress = 0;
  int64_t best_checkpoint = -1;  // newest step committed before the attempt in question, by any attempt
};

struct NextMove {
  bool restart = false;
  bool from_good = false;         // with --from_good
  bool without_suspects = false;  // their hosts are not used again
  double wait_seconds = 0;
  std::string why = {};   // of stopping, or of going on: for the console
  LaunchHistory history;  // as it is for the next attempt
};
// told_to_stop: carousel launch was asked to end.
NextMove DecideNext(const AttemptExit& exit, const LaunchHistory& history, const LaunchOptions& options,
                    bool told_to_stop);
}  // namespace carousel
