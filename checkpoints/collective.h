// What saving and loading say to the other ranks. A null communicator is a world of one rank.
#pragma once
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "core/comm/communicator.h"

namespace carousel {

int RankOf(Communicator* communicator);
int SizeOfWorld(Communicator* communicator);

// Collective. Every rank's bytes, in rank order.
std::vector<std::string> GatherBytes(Communicator* communicator, const std::string& mine);
// Collective. Rank 0's bytes.
std::string BytesOfRank0(Communicator* communicator, const std::string& mine);

// One status for all, from every rank's: OK if all are; else the code of the first rank that failed and the
// messages of all that did, each once. Ranks are named if there are several.
absl::Status CombineStatuses(const std::vector<absl::Status>& statuses);
// Collective. CombineStatuses of every rank's `mine`.
absl::Status AgreeOn(Communicator* communicator, const absl::Status& mine);
}  // namespace carousel
