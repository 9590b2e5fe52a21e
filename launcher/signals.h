// Asking a running job to stop: save and end at the next step.
#pragma once

namespace carousel {

// From now on SIGINT (Ctrl-C), SIGTERM, SIGUSR1 and SIGUSR2 (what Slurm sends before a time limit) only set a
// flag. A second SIGINT ends the process at once, in case it does not come to look at the flag.
void InstallStopSignals();
// True once one of them has arrived. Any thread may ask.
bool StopRequested();
}  // namespace carousel
