// An absl::Status that names the hosts which are believed to be the cause: for exit code 76, where a run is
// started again without them.
#pragma once
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace carousel {

// The same status with the hosts as a payload, each once; an OK status stays as it is.
absl::Status WithSuspectHosts(const absl::Status& status, const std::vector<std::string>& hosts);
// Those that WithSuspectHosts named; empty if none were.
std::vector<std::string> SuspectHosts(const absl::Status& status);
}  // namespace carousel
