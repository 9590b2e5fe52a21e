#include "launcher/agreement.h"

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

namespace carousel {

absl::Status AgreeOnStatus(Communicator& world, const absl::Status& mine) {
  if (world.size() == 1) return mine;
  // One byte of code, then the message.
  std::string report(1, static_cast<char>(mine.code()));
  report += std::string(mine.message());
  const std::vector<std::string> reports = AllGatherBytes(world, report);

  absl::StatusCode code = absl::StatusCode::kOk;
  std::vector<std::pair<std::string, std::string>> messages;  // message, the ranks that say so
  for (size_t rank = 0; rank < reports.size(); ++rank) {
    const auto rank_code = static_cast<absl::StatusCode>(static_cast<unsigned char>(reports[rank][0]));
    if (rank_code == absl::StatusCode::kOk) continue;
    if (code == absl::StatusCode::kOk) code = rank_code;
    const std::string text = reports[rank].substr(1);
    bool known = false;
    for (auto& [message, ranks] : messages) {
      if (message == text) {
        absl::StrAppend(&ranks, ", ", rank);
        known = true;
      }
    }
    if (!known) messages.emplace_back(text, absl::StrCat(rank));
  }
  if (code == absl::StatusCode::kOk) return absl::OkStatus();
  if (messages.size() == 1 && messages[0].second.find(',') != std::string::npos) {
    return absl::Status(code, messages[0].first);  // a shared cause: many ranks, one text
  }
  std::string joined;
  for (const auto& [message, ranks] : messages) {
    absl::StrAppend(&joined, joined.empty() ? "" : "\n", "[rank ", ranks, "] ", message);
  }
  return absl::Status(code, joined);
}
}  // namespace carousel
