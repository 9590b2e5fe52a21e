#include "launcher/watch/flight_report.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace carousel {
namespace {
namespace fs = std::filesystem;
using Call = FlightRecord::Call;
using Group = FlightRecord::Group;
constexpr size_t kMaxShown = 16;                // lines of one kind
constexpr size_t kMaxBytes = size_t{64} << 20;  // of a record

std::string RankText(const std::vector<int>& ranks) {
  std::string text = ranks.size() == 1 ? "rank " : "ranks ";
  for (size_t i = 0; i < ranks.size(); ++i) {
    if (i == kMaxShown) return absl::StrCat(text, " and ", ranks.size() - i, " more");
    absl::StrAppend(&text, i == 0 ? "" : i + 1 < ranks.size() ? ", " : " and ", ranks[i]);
  }
  return text;
}

class Analysis {
 public:
  explicit Analysis(const std::vector<FlightRecord>& records) : size_(records.front().size) {
    for (const FlightRecord& r : records) {
      records_.emplace(r.rank, &r);
      if (hosts_.empty()) hosts_ = r.hosts;
    }
    for (int rank = 0; rank < size_; ++rank) {
      if (!records_.contains(rank)) silent_.insert(rank);
    }
    for (const auto& [rank, r] : records_) waits_[rank] = WaitsOf(*r);
  }

  FlightFinding Run() {
    const std::string differences = FindDifferences();
    FindCauses();
    absl::StrAppend(&text_, "flight records of ", records_.size(), " of ", size_, " ranks");
    if (const int64_t step = records_.begin()->second->step; step >= 0)
      absl::StrAppend(&text_, ", step ", step);
    absl::StrAppend(&text_, "\n", differences);
    DescribeCauses();
    DescribeWaiting();
    FlightFinding finding{.suspects = suspects_, .suspect_hosts = {}, .text = text_};
    for (const int rank : suspects_) {
      const std::string host = HostOf(rank);
      if (!host.empty() && std::find(finding.suspect_hosts.begin(), finding.suspect_hosts.end(), host) ==
                               finding.suspect_hosts.end()) {
        finding.suspect_hosts.push_back(host);
      }
    }
    return finding;
  }

 private:
  using Key = std::pair<std::string, std::vector<int>>;  // of a communicator: name and members

  std::string HostOf(int rank) const {
    const auto found = records_.find(rank);
    if (found != records_.end()) return found->second->host;
    return hosts_.empty() ? "" : hosts_[static_cast<size_t>(rank)];
  }
  std::string Name(int rank) const {
    const std::string host = HostOf(rank);
    return absl::StrCat("rank ", rank, host.empty() ? "" : absl::StrCat(" (", host, ")"));
  }

  // The call in which the rank is.
  static std::pair<const Group*, const Call*> Current(const FlightRecord& r) {
    std::pair<const Group*, const Call*> newest = {nullptr, nullptr};
    for (const Group& group : r.groups) {
      if (group.calls.empty() || !group.calls.back().in_progress) continue;
      const Call& call = group.calls.back();
      if (newest.second == nullptr || call.seconds < newest.second->seconds) newest = {&group, &call};
    }
    return newest;
  }
  static std::string Where(const Group& group, const Call& call) {
    return absl::StrCat(call.what, " on '", group.name, "' #", call.sequence, " at ", call.site);
  }

  // How many calls another rank has begun on this communicator; nothing if it left no record of it.
  std::optional<int64_t> CallsOf(int rank, const Group& group) const {
    const auto found = records_.find(rank);
    if (found == records_.end()) return std::nullopt;
    for (const Group& theirs : found->second->groups) {
      if (theirs.name == group.name && theirs.members == group.members) return theirs.num_calls;
    }
    return std::nullopt;
  }

  std::vector<int> WaitsOf(const FlightRecord& r) const {
    const auto [group, call] = Current(r);
    std::set<int> ranks(r.waits_for.begin(), r.waits_for.end());
    if (ranks.empty() && call != nullptr) {
      if (!call->peers.empty()) {
        ranks.insert(call->peers.begin(), call->peers.end());
      } else {
        for (const int member : group->members) {
          const std::optional<int64_t> theirs = CallsOf(member, *group);
          if (member != r.rank && (!theirs.has_value() || *theirs <= call->sequence)) ranks.insert(member);
        }
      }
    }
    ranks.erase(r.rank);
    return {ranks.begin(), ranks.end()};
  }

  // The first call of each communicator that its ranks do not make alike.
  std::string FindDifferences() {
    std::map<Key, std::vector<std::pair<int, const Group*>>> groups;
    for (const auto& [rank, r] : records_) {
      for (const Group& group : r->groups) groups[{group.name, group.members}].push_back({rank, &group});
    }
    std::string text;
    for (const auto& [key, of_ranks] : groups) {
      bool pairwise = false;
      std::map<int64_t, std::map<std::string, std::vector<std::pair<int, const Call*>>>> by_sequence;
      for (const auto& [rank, group] : of_ranks) {
        for (const Call& call : group->calls) {
          pairwise = pairwise || !call.peers.empty();
          by_sequence[call.sequence][call.what].push_back({rank, &call});
        }
      }
      if (pairwise) continue;  // messages between two ranks are no calls of all
      for (const auto& [sequence, versions] : by_sequence) {
        if (versions.size() == 1) continue;
        absl::StrAppend(&text, "call #", sequence, " on '", key.first, "' (", RankText(key.second),
                        ") differs:\n");
        size_t most = 0;
        for (const auto& [what, ranks] : versions) most = std::max(most, ranks.size());
        for (const auto& [what, ranks] : versions) {
          std::vector<int> numbers;
          for (const auto& [rank, call] : ranks) numbers.push_back(rank);
          absl::StrAppend(&text, "  ", RankText(numbers), ": ", what, " at ", ranks.front().second->site,
                          "\n");
          // Two ranks that differ may both be right.
          if (ranks.size() < most || most == 1) AddSuspects(numbers);
        }
        break;
      }
    }
    return text;
  }

  void AddSuspects(const std::vector<int>& ranks) {
    for (const int rank : ranks) {
      if (std::find(suspects_.begin(), suspects_.end(), rank) == suspects_.end()) suspects_.push_back(rank);
    }
  }

  // Ranks that others wait for, directly or through others, and that wait for nobody.
  void FindCauses() {
    for (const auto& [rank, first] : waits_) {
      std::set<int> seen;
      std::vector<int> open = first;
      while (!open.empty()) {
        const int next = open.back();
        open.pop_back();
        if (!seen.insert(next).second) continue;
        const auto found = waits_.find(next);
        if (found == waits_.end() || found->second.empty()) {
          if (next != rank) waiting_for_[next].push_back(rank);
        } else {
          open.insert(open.end(), found->second.begin(), found->second.end());
        }
      }
    }
    std::vector<int> causes;
    for (const auto& [rank, waiting] : waiting_for_) causes.push_back(rank);
    // Who left nothing first, then by the number of ranks that wait.
    std::stable_sort(causes.begin(), causes.end(), [this](int a, int b) {
      if (silent_.contains(a) != silent_.contains(b)) return silent_.contains(a);
      return waiting_for_[a].size() > waiting_for_[b].size();
    });
    AddSuspects(causes);
    if (!suspects_.empty()) return;
    AddSuspects({silent_.begin(), silent_.end()});
    if (!suspects_.empty()) return;
    // They wait for each other.
    for (const auto& [rank, ranks] : waits_) {
      if (!ranks.empty()) circle_.push_back(rank);
    }
    if (!circle_.empty() || records_.size() != 1) return;
    AddSuspects({records_.begin()->first});
  }

  std::string LastCallOf(const FlightRecord& r) const {
    const Group* group = nullptr;
    for (const Group& g : r.groups) {
      if (!g.calls.empty() && (group == nullptr || g.name == "world")) group = &g;
    }
    return group == nullptr ? "" : absl::StrCat("; its last call was ", Where(*group, group->calls.back()));
  }

  void DescribeCauses() {
    for (size_t i = 0; i < suspects_.size() && i < kMaxShown; ++i) {
      const int rank = suspects_[i];
      absl::StrAppend(&text_, "suspect: ", Name(rank), ": ");
      if (silent_.contains(rank)) {
        absl::StrAppend(&text_, "left no record: stopped, dead or cut off");
      } else {
        const FlightRecord& r = *records_.at(rank);
        const auto [group, call] = Current(r);
        if (call != nullptr) {
          absl::StrAppendFormat(&text_, "%.1f s in %s", call->seconds, Where(*group, *call));
        } else {
          absl::StrAppendFormat(&text_, "in no collective call, %s for %.1f s%s; its stacks say where",
                                r.section, r.idle_seconds, LastCallOf(r));
        }
      }
      if (const auto found = waiting_for_.find(rank); found != waiting_for_.end()) {
        absl::StrAppend(&text_, "; ", RankText(found->second), found->second.size() == 1 ? " waits" : " wait",
                        " for it");
      }
      absl::StrAppend(&text_, "\n");
    }
    if (suspects_.size() > kMaxShown) {
      absl::StrAppend(&text_, "and ", suspects_.size() - kMaxShown, " more suspects\n");
    }
    if (!circle_.empty()) {
      absl::StrAppend(&text_, RankText(circle_),
                      " wait for each other, in calls that do not belong together:\n");
    }
  }

  void DescribeWaiting() {
    size_t shown = 0;
    for (const auto& [rank, r] : records_) {
      const auto [group, call] = Current(*r);
      if (call == nullptr || waits_[rank].empty()) continue;
      if (++shown > kMaxShown) {
        absl::StrAppend(&text_, "  ...\n");
        return;
      }
      absl::StrAppendFormat(&text_, "  %s: %.1f s in %s, waits for %s\n", Name(rank), call->seconds,
                            Where(*group, *call), RankText(waits_[rank]));
    }
  }

  const int size_;
  std::map<int, const FlightRecord*> records_;
  std::vector<std::string> hosts_;
  std::set<int> silent_;
  std::map<int, std::vector<int>> waits_;        // of every rank with a record: directly
  std::map<int, std::vector<int>> waiting_for_;  // of a cause: the ranks that wait for it
  std::vector<int> suspects_, circle_;
  std::string text_;
};

// The records in exactly this directory.
std::vector<FlightRecord> ReadHere(const fs::path& dir) {
  std::map<int, FlightRecord> records;
  std::error_code error;
  for (fs::directory_iterator it(dir, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (!absl::StartsWith(name, "rank-") || !absl::EndsWith(name, ".json")) continue;
    std::error_code unknown;
    if (!it->is_regular_file(unknown) || it->file_size(unknown) > kMaxBytes) continue;
    std::ifstream file(it->path(), std::ios::binary);
    const std::string text((std::istreambuf_iterator<char>(file)), {});
    absl::StatusOr<FlightRecord> record = ParseFlightRecord(text);
    if (record.ok()) records.emplace(record->rank, *std::move(record));
  }
  std::vector<FlightRecord> result;
  for (auto& [rank, record] : records) {
    // Of one run.
    if (result.empty() || record.size == result.front().size) result.push_back(std::move(record));
  }
  return result;
}

// The newest directory below that holds a record.
std::optional<fs::path> NewestBelow(const fs::path& dir) {
  std::optional<fs::path> newest;
  fs::file_time_type newest_time;
  std::error_code error;
  const auto options = fs::directory_options::skip_permission_denied;
  for (fs::recursive_directory_iterator it(dir, options, error), end; !error && it != end;
       it.increment(error)) {
    if (it.depth() >= 3) it.disable_recursion_pending();
    const std::string name = it->path().filename().string();
    if (!absl::StartsWith(name, "rank-") || !absl::EndsWith(name, ".json")) continue;
    if (absl::StrContains(it->path().parent_path().string(), "/ends")) continue;
    std::error_code unknown;
    const fs::file_time_type time = fs::last_write_time(it->path(), unknown);
    if (unknown || (newest.has_value() && time <= newest_time)) continue;
    newest = it->path().parent_path();
    newest_time = time;
  }
  return newest;
}

absl::StatusOr<std::pair<std::string, std::vector<FlightRecord>>> Find(const std::string& dir) {
  std::vector<FlightRecord> records = ReadHere(dir);
  if (!records.empty()) return std::make_pair(dir, std::move(records));
  if (const std::optional<fs::path> below = NewestBelow(dir)) {
    records = ReadHere(*below);
    if (!records.empty()) return std::make_pair(below->string(), std::move(records));
  }
  return absl::NotFoundError(
      absl::StrCat(dir,
                   " holds no flight records (rank-*.json); give the directory that the "
                   "watchdog's message names, or the run directory"));
}
}  // namespace

FlightFinding AnalyzeFlightRecords(const std::vector<FlightRecord>& records) {
  if (records.empty()) return {.suspects = {}, .suspect_hosts = {}, .text = "no flight records\n"};
  return Analysis(records).Run();
}

absl::StatusOr<std::vector<FlightRecord>> ReadFlightRecords(const std::string& dir) {
  auto found = Find(dir);
  if (!found.ok()) return found.status();
  return std::move(found->second);
}

absl::StatusOr<std::string> ExplainFlightRecords(const std::string& dir) {
  const auto found = Find(dir);
  if (!found.ok()) return found.status();
  const FlightFinding finding = AnalyzeFlightRecords(found->second);
  return absl::StrCat(finding.text, "stacks and last calls of each rank: ", found->first, "/rank-*.txt\n");
}
}  // namespace carousel
