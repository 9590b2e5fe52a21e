#include "checkpoints/collective.h"

#include "core/train/agreement.h"

namespace carousel {

int RankOf(Communicator* communicator) { return communicator == nullptr ? 0 : communicator->rank(); }

std::vector<std::string> GatherBytes(Communicator* communicator, const std::string& mine) {
  if (communicator == nullptr) return {mine};
  return AllGatherBytes(*communicator, mine);
}

std::string BytesOfRank0(Communicator* communicator, const std::string& mine) {
  if (communicator == nullptr) return mine;
  return BroadcastBytes(*communicator, mine, 0);
}

absl::Status AgreeOn(Communicator* communicator, const absl::Status& mine) {
  return communicator == nullptr ? mine : AgreeOnStatus(*communicator, mine);
}
}  // namespace carousel
