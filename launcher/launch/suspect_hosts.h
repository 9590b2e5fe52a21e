// Hosts that are believed to be the cause: in an absl::Status (for exit code 76, where a run is started again
// without them), and out of what the ranks of several hosts say of each other.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace carousel {

// The same status with the hosts as a payload, each once; an OK status stays as it is.
absl::Status WithSuspectHosts(const absl::Status& status, const std::vector<std::string>& hosts);
// Those that WithSuspectHosts named; empty if none were.
std::vector<std::string> SuspectHosts(const absl::Status& status);

// What a rank says.
struct Accusation {
  std::string by = {};  // its host
  int64_t rank = 0;
  std::vector<std::string> hosts = {};
};
// Whom to believe: a node that is cut off hears nobody, and blames those that it does not hear.
//   A host that others accuse is not believed when it accuses others, but when it accuses itself ("I seem to
// be cut off"). Where that leaves nobody to believe (two hosts that do not hear each other), the hosts that
// most others accuse are the suspects; of as many, those that launcher_host accuses, from where the ranks
// were started, and if it accuses none, those that the lowest rank does: it is rank 0 that others must reach.
//   The most accused first; of equals, in the order in which they are named. Each host once.
std::vector<std::string> BelievedSuspects(const std::vector<Accusation>& accusations,
                                          const std::string& launcher_host);
}  // namespace carousel
