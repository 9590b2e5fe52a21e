// Asking a running job to stop: save and end at the next step.
#pragma once
#include "absl/status/status.h"

namespace carousel {

// From now on SIGINT (Ctrl-C), SIGTERM, SIGUSR1 and SIGUSR2 (what Slurm sends before a time limit) are only
// noted. A second SIGINT, after StopRequested has seen the first, ends the process at once, in case it does
// not come to look again.
//
// A pipe that nobody reads any more does not end the process either.
//
// Call it before threads are started: this thread and those that it starts do not take these signals at all,
// so no handler runs in the middle of an op. That matters: a handler that ran on top of oneDNN's AVX-512
// kernels left the heap corrupted in about a third of all runs; they seem to keep data below the stack
// pointer, where a handler's frame goes.
void InstallStopSignals();
// True once one of them has arrived. Asked by threads that do not take the signals.
bool StopRequested();
// True once SIGTERM was among them: what launchers send to all ranks when one has died. Asked alike.
bool EndRequested();
// For what ranks agree on before the first step (core/train/agreement.h): Cancelled with kExitStopped once
// StopRequested.
absl::Status StopStatus();
}  // namespace carousel
