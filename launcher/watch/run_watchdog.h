// What the watchdog of a training run is told about it.
#pragma once
#include <string>

#include "configs/run_spec.h"
#include "launcher/environment.h"
#include "launcher/watch/watchdog.h"

namespace carousel {

// Before the ranks have read the config: who this is, and the communicators that it has. Collective.
void IntroduceRanks(Watchdog* watchdog, Environment& environment);
// Collective. The limits of the run's config and those that earlier starts with as many ranks have learned,
// and where records go: ATTEMPT_DIR/flight under `carousel launch`, else RUN_DIR/flight_records/TIME.
void IntroduceRun(Watchdog* watchdog, const RunSpec& run, Environment& environment);
// Rank 0: keeps in RUN_DIR/watchdog.json what was learned so far, for the next start. Losing it is no harm.
void RememberLimits(Watchdog& watchdog, const std::string& run_dir, int64_t num_ranks);
}  // namespace carousel
