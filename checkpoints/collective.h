// What saving and loading say to the other ranks. A null communicator is a world of one rank.
#pragma once
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "core/comm/communicator.h"

namespace carousel {

int RankOf(Communicator* communicator);

// Collective. Every rank's bytes, in rank order.
std::vector<std::string> GatherBytes(Communicator* communicator, const std::string& mine);
// Collective. Rank 0's bytes.
std::string BytesOfRank0(Communicator* communicator, const std::string& mine);
// Collective. AgreeOnStatus (core/train/agreement.h).
absl::Status AgreeOn(Communicator* communicator, const absl::Status& mine);
}  // namespace carousel
