#include "launcher/launch/suspect_hosts.h"

#include <set>

#include "absl/strings/cord.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

namespace carousel {
namespace {
constexpr char kPayload[] = "carousel/suspect_hosts";
}

absl::Status WithSuspectHosts(const absl::Status& status, const std::vector<std::string>& hosts) {
  absl::Status result = status;
  const std::set<std::string> each_once(hosts.begin(), hosts.end());
  if (!status.ok() && !hosts.empty()) {
    result.SetPayload(kPayload, absl::Cord(absl::StrJoin(each_once, "\n")));
  }
  return result;
}

std::vector<std::string> SuspectHosts(const absl::Status& status) {
  const auto payload = status.GetPayload(kPayload);
  if (!payload.has_value()) return {};
  return absl::StrSplit(std::string(*payload), '\n', absl::SkipEmpty());
}
}  // namespace carousel
