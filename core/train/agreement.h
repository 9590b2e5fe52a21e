// All ranks succeed or fail together: a problem that one rank finds becomes everybody's error, so nobody
// waits in a collective for a rank that gave up.
#pragma once
#include <vector>

#include "absl/status/status.h"
#include "core/comm/communicator.h"

namespace carousel {

// One status for all, from every rank's in rank order: OK if all are; else the code of the lowest failing
// rank and the messages of all ranks that failed, a line for each different message. A line names its ranks
// ("[rank 0, 2] no such file") unless every rank says the same. The exit code is
// CombinedExitCode of theirs; other payloads are dropped.
absl::Status CombineStatuses(const std::vector<absl::Status>& statuses);

// Collective. CombineStatuses of every rank's `mine`, on every rank; `mine` itself in a world of one.
absl::Status AgreeOnStatus(Communicator& world, const absl::Status& mine);
}  // namespace carousel
