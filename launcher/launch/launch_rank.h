// `carousel launch_rank train ...`: what `carousel launch` has mpirun or srun start in place of each rank. It
// starts the rank as its child and
//   - keeps what the rank prints in attempts/N/rank_logs/HOST.RANK.log; of rank 0 all goes on to the console
//   as
//     well, of others what reports an error, with host and rank in front;
//   - records the rank's end if it could not do so itself (a signal, an abort in a library);
//   - passes SIGTERM, SIGUSR1 and SIGUSR2 on; the rank begins with SIGUSR1 and SIGUSR2 blocked, so that a
//   request
//     to stop waits until the rank looks (launcher/signals.h) and does not kill it while it loads;
//   - ends the rank at once when mpirun or its daemon is gone, and dies together with it: nothing is left
//   behind.
// Its exit code is the rank's, 128 + signal if one killed it.
#pragma once
#include <string>
#include <vector>

#include "launcher/launch/attempt_record.h"

namespace carousel {

// args: those behind "launch_rank", beginning with "train". Not meant for people: says so without a launch.
int RunLaunchedRank(const std::vector<std::string>& args);

// The rank's number by the variables of Open MPI, PMIx or Slurm ("NAME=value"); -1: they do not say.
int64_t LaunchedRank(const std::vector<std::string>& environment);
// The record of a rank that ended with `code` (128 + signal): `own` is what it wrote itself, null if nothing.
// A failure that the rank has recorded stands; a success does not if the process then failed. last_error: the
// last line by which it reported an error.
RankEnd FinalRankEnd(const RankEnd& known, const RankEnd* own, int code, const std::string& last_error);
}  // namespace carousel
