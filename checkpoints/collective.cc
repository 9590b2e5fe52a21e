#include "checkpoints/collective.h"

#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "checkpoints/manifest.pb.h"
#include "core/base/check.h"

namespace carousel {

int RankOf(Communicator* communicator) { return communicator == nullptr ? 0 : communicator->rank(); }
int SizeOfWorld(Communicator* communicator) { return communicator == nullptr ? 1 : communicator->size(); }

std::vector<std::string> GatherBytes(Communicator* communicator, const std::string& mine) {
  if (communicator == nullptr) return {mine};
  return AllGatherBytes(*communicator, mine);
}

std::string BytesOfRank0(Communicator* communicator, const std::string& mine) {
  if (communicator == nullptr) return mine;
  return BroadcastBytes(*communicator, mine, 0);
}

absl::Status CombineStatuses(const std::vector<absl::Status>& statuses) {
  absl::StatusCode code = absl::StatusCode::kOk;
  std::vector<std::string> messages;                    // in the order of their first rank
  std::map<std::string, std::vector<size_t>> ranks_of;  // message -> ranks
  for (size_t rank = 0; rank < statuses.size(); ++rank) {
    if (statuses[rank].ok()) continue;
    if (code == absl::StatusCode::kOk) code = statuses[rank].code();
    const std::string message(statuses[rank].message());
    if (ranks_of[message].empty()) messages.push_back(message);
    ranks_of[message].push_back(rank);
  }
  if (code == absl::StatusCode::kOk) return absl::OkStatus();
  if (statuses.size() > 1) {
    for (std::string& message : messages) {
      const std::vector<size_t>& ranks = ranks_of[message];
      if (ranks.size() == statuses.size()) continue;  // all of them
      message = absl::StrCat("rank ", absl::StrJoin(ranks, ", "), ": ", message);
    }
  }
  return absl::Status(code, absl::StrJoin(messages, "; "));
}

absl::Status AgreeOn(Communicator* communicator, const absl::Status& mine) {
  checkpoint::RankReport report;
  report.set_code(mine.raw_code());
  report.set_message(std::string(mine.message()));
  std::vector<absl::Status> statuses;
  for (const std::string& bytes : GatherBytes(communicator, report.SerializeAsString())) {
    checkpoint::RankReport other;
    CAROUSEL_CHECK(other.ParseFromString(bytes));
    statuses.emplace_back(static_cast<absl::StatusCode>(other.code()), other.message());
  }
  return CombineStatuses(statuses);
}
}  // namespace carousel
