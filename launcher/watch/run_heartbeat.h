// The heartbeats of a training run (parallel/heartbeat.h): with the limits of its config, over the network
// that the user or Open MPI names, under the secret of `carousel launch` where there is one.
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "configs/run_spec.h"
#include "launcher/environment.h"
#include "parallel/heartbeat.h"

namespace carousel {

// Says why the process ends, records it, and ends it: exit code, reason, suspected hosts
// (Watchdog::GiveUpWithRecord). Called by another thread. May return where the process is ending already.
using RunEnder = std::function<void(int exit_code, const std::string& reason,
                                    const std::vector<std::string>& suspect_hosts)>;

// Collective. Null for a rank alone and where watchdog.heartbeat_seconds is 0. Where no connections can be
// made (a firewall between the nodes), a warning says so and the run goes on without: null as well. Once a
// node is lost, this process ends with kExitTransport, by `end`.
std::unique_ptr<Heartbeat> StartHeartbeat(const RunSpec& run, Environment& environment, const RunEnder& end);
}  // namespace carousel
