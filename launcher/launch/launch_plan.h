// How `carousel launch` starts the ranks: what the user asked for, what this machine is, and the command that
// follows from both. Pure functions; launch_supervisor.h runs what they say.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "configs/run_spec.h"
#include "launcher/launch/launch_hosts.h"

namespace carousel {

enum class JobLauncher : uint8_t { kAuto, kMpirun, kSrun };

struct LaunchOptions {
  int64_t ranks = 0;          // 0: what hosts, scheduler or config say
  std::string hostfile = {};  // path; empty: none
  std::string hosts = {};     // "node1:8,node2:8"; empty: none
  int64_t per_node = 0;       // ranks on each host; 0: as many as it has slots
  int64_t min_nodes = 1;      // with fewer hosts than this the run is not started again
  JobLauncher launcher = JobLauncher::kAuto;
  double grace_seconds = 120;         // from the signal to the end of everything
  double failure_grace_seconds = 10;  // that the others have to end when one rank has failed
  int64_t kill_timeout = 20;          // odls_base_sigkill_timeout
  int64_t max_restarts = 100;
  int64_t max_no_progress = 3;  // restarts in a row without a new committed step
  double backoff_seconds = 5, max_backoff_seconds = 300;
  std::vector<std::string> exports = {};        // names of environment variables for the ranks of other hosts
  std::string rsh_agent = {};                   // "ssh -p 2222"; empty: Open MPI's choice
  std::vector<std::string> launcher_args = {};  // passed on to mpirun or srun as they are
  std::string program = {};                     // what runs on every host; empty: this program
  bool dry_run = false;
};

// What the launcher finds where it runs.
struct LaunchSurroundings {
  bool root = false;
  int64_t cores = 1;                          // that this machine lets us use
  std::vector<std::string> environment = {};  // "NAME=value"
  std::string mpirun = {}, srun = {};         // paths; empty: not found
  std::string program = {};                   // path of this program
  std::string host = {};                      // name of this machine
};

// Who starts the ranks, and where.
struct LaunchTarget {
  JobLauncher launcher = JobLauncher::kMpirun;  // never kAuto
  bool in_slurm = false;
  bool local = false;                  // this machine alone, without a host list
  std::vector<LaunchHost> hosts = {};  // of a local target: this machine
  int64_t ranks = 0;                   // 0: nobody said how many
};

// hostfile_text: what the file of options.hostfile holds. Errors: InvalidArgument for what the user wrote,
// with kExitPreflight where a program is missing.
absl::StatusOr<LaunchTarget> FindTarget(const LaunchOptions& options, const LaunchSurroundings& here,
                                        const std::string& hostfile_text);

// The number of ranks to start with: `wanted` where hosts have room for it (or where more must share the
// cores from the beginning), else, with hosts lost, the largest number that fits into `slots`, is a multiple
// of `multiple_of` and divides as the config's mesh must. InvalidArgument with the mesh's problems if there
// is none.
absl::StatusOr<int64_t> ChooseWorld(const RunSpec& run, int64_t wanted, int64_t slots, int64_t multiple_of);

struct LaunchCommand {
  std::vector<std::string> argv = {};     // argv[0] is the path of mpirun or srun
  std::vector<std::string> exports = {};  // names of the variables that are handed on
};
// train_args: behind the program's name, begins with "train". hostfile: written for this attempt; not used
// where the target is local. hosts: those of the target that are used now.
LaunchCommand MakeLaunchCommand(const LaunchOptions& options, const LaunchSurroundings& here,
                                const LaunchTarget& target, const std::vector<LaunchHost>& hosts,
                                int64_t ranks, const std::string& hostfile,
                                const std::vector<std::string>& train_args);

// For a restart: without --fresh (the run has begun), with --from_good where it goes back to a good
// checkpoint.
std::vector<std::string> TrainArgsForRestart(const std::vector<std::string>& train_args, bool from_good);

// For people, and for a shell: words with other than plain characters in single quotes.
std::string QuotedCommand(const std::vector<std::string>& argv);
// "ssh -p 22" -> {"ssh", "-p", "22"}: by blanks; there is no quoting.
std::vector<std::string> SplitWords(const std::string& text);
// Of "NAME=value" entries the value; empty if there is none.
std::string ValueOf(const std::vector<std::string>& environment, const std::string& name);
}  // namespace carousel
