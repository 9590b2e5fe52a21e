#include "launcher/launch/suspect_hosts.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

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

namespace {
// Each host once, in the order in which they are first named, with the hosts that name them.
using Accused = std::vector<std::pair<std::string, std::set<std::string>>>;

Accused Collect(const std::vector<Accusation>& accusations) {
  Accused accused;
  for (const Accusation& accusation : accusations) {
    for (const std::string& host : accusation.hosts) {
      auto found = std::find_if(accused.begin(), accused.end(),
                                [&](const auto& entry) { return entry.first == host; });
      if (found == accused.end()) found = accused.insert(accused.end(), {host, {}});
      found->second.insert(accusation.by);
    }
  }
  return accused;
}

std::vector<std::string> MostAccusedFirst(Accused accused) {
  std::stable_sort(accused.begin(), accused.end(),
                   [](const auto& a, const auto& b) { return a.second.size() > b.second.size(); });
  std::vector<std::string> hosts;
  for (const auto& [host, by] : accused) hosts.push_back(host);
  return hosts;
}
}  // namespace

std::vector<std::string> BelievedSuspects(const std::vector<Accusation>& accusations,
                                          const std::string& launcher_host) {
  const Accused accused = Collect(accusations);
  std::set<std::string> doubtful;
  for (const auto& [host, by] : accused) {
    if (by.size() > by.count(host)) doubtful.insert(host);
  }
  Accused believed;
  for (const auto& [host, by] : accused) {
    std::set<std::string> accusers;
    for (const std::string& accuser : by) {
      if (accuser == host || doubtful.count(accuser) == 0) accusers.insert(accuser);
    }
    if (!accusers.empty()) believed.emplace_back(host, accusers);
  }
  if (!believed.empty() || accused.empty()) return MostAccusedFirst(std::move(believed));

  size_t most = 0;
  for (const auto& [host, by] : accused) most = std::max(most, by.size());
  // Of the launcher's host if it is among the accusers, else of the lowest rank.
  const Accusation* decides = nullptr;
  const auto weight = [&](const Accusation& a) { return std::make_pair(a.by != launcher_host, a.rank); };
  for (const Accusation& accusation : accusations) {
    if (accusation.hosts.empty()) continue;
    if (decides == nullptr || weight(accusation) < weight(*decides)) decides = &accusation;
  }
  std::vector<std::string> hosts, chosen;
  for (const auto& [host, by] : accused) {
    if (by.size() < most) continue;
    hosts.push_back(host);
    if (std::find(decides->hosts.begin(), decides->hosts.end(), host) != decides->hosts.end()) {
      chosen.push_back(host);
    }
  }
  return chosen.empty() ? hosts : chosen;
}
}  // namespace carousel
