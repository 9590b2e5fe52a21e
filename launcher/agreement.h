// All ranks succeed or fail together: a problem that one rank finds becomes everybody's error, so nobody
// waits in a collective for a rank that gave up.
#pragma once
#include "absl/status/status.h"
#include "core/comm/communicator.h"

namespace carousel {

// Collective. OK if every rank's status is OK; otherwise, on every rank, the code of the lowest failing rank
// and the messages of all ranks that failed, equal messages once, each named with its ranks.
absl::Status AgreeOnStatus(Communicator& world, const absl::Status& mine);
}  // namespace carousel
