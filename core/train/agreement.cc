#include "core/train/agreement.h"

#include <cstdint>
#include <cstring>
#include <map>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/base/check.h"
#include "core/base/status_exit_code.h"

namespace carousel {
namespace {

// The code and the exit code, -1: none (int32 of this machine: ranks share an architecture), then the
// message.
std::string Serialize(const absl::Status& status) {
  const int32_t codes[2] = {status.raw_code(), StatedExitCode(status).value_or(-1)};
  std::string bytes(sizeof(codes), '\0');
  std::memcpy(bytes.data(), codes, sizeof(codes));
  return absl::StrCat(bytes, status.message());
}

absl::Status Parse(const std::string& bytes) {
  int32_t codes[2];
  CAROUSEL_CHECK(bytes.size() >= sizeof(codes));
  std::memcpy(codes, bytes.data(), sizeof(codes));
  const absl::Status status(static_cast<absl::StatusCode>(codes[0]), bytes.substr(sizeof(codes)));
  return codes[1] < 0 ? status : WithExitCode(status, codes[1]);
}
}  // namespace

absl::Status CombineStatuses(const std::vector<absl::Status>& statuses) {
  absl::StatusCode code = absl::StatusCode::kOk;
  int exit_code = kExitOk;
  std::vector<std::string> messages;                    // in the order of their first rank
  std::map<std::string, std::vector<size_t>> ranks_of;  // message -> ranks
  for (size_t rank = 0; rank < statuses.size(); ++rank) {
    if (statuses[rank].ok()) continue;
    if (code == absl::StatusCode::kOk) code = statuses[rank].code();
    exit_code = CombinedExitCode(exit_code, ExitCodeOf(statuses[rank]));
    const std::string message(statuses[rank].message());
    if (ranks_of[message].empty()) messages.push_back(message);
    ranks_of[message].push_back(rank);
  }
  if (code == absl::StatusCode::kOk) return absl::OkStatus();
  for (std::string& message : messages) {
    const std::vector<size_t>& ranks = ranks_of[message];
    if (ranks.size() == statuses.size()) continue;  // all of them
    message = absl::StrCat("[rank ", absl::StrJoin(ranks, ", "), "] ", message);
  }
  const absl::Status combined(code, absl::StrJoin(messages, "\n"));
  return ExitCodeOf(combined) == exit_code ? combined : WithExitCode(combined, exit_code);
}

absl::Status AgreeOnStatus(Communicator& world, const absl::Status& mine) {
  if (world.size() == 1) return mine;
  std::vector<absl::Status> statuses;
  for (const std::string& bytes : AllGatherBytes(world, Serialize(mine))) statuses.push_back(Parse(bytes));
  return CombineStatuses(statuses);
}
}  // namespace carousel
