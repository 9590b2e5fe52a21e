// What the trials of devices and communication found.
#include <algorithm>
#include <map>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "launcher/preflight/preflight_checks.h"

namespace carousel {
namespace {

bool OnGpus(const PreflightNeeds& needs) { return needs.device.rfind("cuda", 0) == 0; }

std::string ProductText(const DeviceFacts& device) {
  return absl::StrFormat("%s product of %d x %d x %d", device.dtype, device.size, device.size, device.size);
}

std::string Range(const std::vector<double>& rates, const std::string& unit) {
  const auto [low, high] = std::minmax_element(rates.begin(), rates.end());
  const std::string a = RateText(*low, unit), b = RateText(*high, unit);
  return a == b ? a : absl::StrCat(a, " to ", b);
}

// Devices that shall compute alike: of one kind, with the same trial.
std::string ClassOf(const DeviceFacts& device) {
  return absl::StrCat(device.kind, "; ", device.dtype, "; ", device.size);
}

std::vector<std::string> HostsOfMembers(const Ranks& ranks, const std::vector<int64_t>& members) {
  std::vector<std::string> hosts;
  for (const int64_t member : members) {
    if (member >= 0 && member < static_cast<int64_t>(ranks.size()))
      hosts.push_back(ranks[static_cast<size_t>(member)].host);
  }
  return Distinct(hosts);
}
std::vector<int> ToInts(const std::vector<int64_t>& members) { return {members.begin(), members.end()}; }

// Ranks of one machine that compute on its CPU take cores from each other while they are timed.
bool TimesAreFair(const Ranks& ranks, const RankFacts& rank) {
  std::set<int64_t> cores;
  for (const RankFacts& other : ranks) {
    if (other.host == rank.host) cores.insert(other.machine.cores.begin(), other.machine.cores.end());
  }
  return cores.empty() || static_cast<int64_t>(cores.size()) >= rank.local_size;
}
}  // namespace

Rows CheckDevice(const Ranks& ranks, const PreflightNeeds& needs) {
  std::vector<RankFinding> findings;
  bool any = false;
  for (const RankFacts& rank : ranks) {
    const DeviceFacts& device = rank.device;
    any |= !device.name.empty() || !device.error.empty();
    if (!device.error.empty()) {
      findings.push_back(
          {.status = PreflightStatus::kFailed,
           .finding = device.error,
           .fix = OnGpus(needs) ? "`nvidia-smi` shows the GPUs of a machine and what runs on them." : ""});
    } else if (needs.device_bytes > 0 && device.memory_total_bytes >= 0 &&
               device.memory_free_bytes < needs.device_bytes) {
      findings.push_back(
          {.status = PreflightStatus::kFailed,
           .finding = absl::StrCat("the run takes ", BytesText(needs.device_bytes), " of a device, ",
                                   device.kind, " has ", BytesText(device.memory_free_bytes), " free of ",
                                   BytesText(device.memory_total_bytes)),
           .fix = "Take a smaller train.micro_batch, or share the weights (parallel.shard or "
                  "parallel.tensor); `carousel "
                  "plan --device cuda` shows what takes how much."});
    } else {
      // The kind without the number of the device, so that ranks that have equal ones say the same.
      findings.push_back(
          {.finding =
               absl::StrCat(device.kind, needs.device_bytes > 0 && device.memory_total_bytes >= 0
                                             ? absl::StrCat("; the run takes ", BytesText(needs.device_bytes),
                                                            " of ", BytesText(device.memory_total_bytes))
                                             : "")});
    }
  }
  return any ? FoldRanks("device", findings, HostsOf(ranks)) : Rows{};
}

Rows CheckMatmulBits(const Ranks& ranks) {
  const std::string check = "products repeat";
  const std::string fix =
      "Its results cannot be trusted: start without this machine, and have memory, cooling and (on a CPU) "
      "overclocking "
      "looked at.";
  Rows rows;
  std::map<std::string, std::map<std::string, int>> digests;  // by class
  int64_t repeats = 0;
  const DeviceFacts* tried = nullptr;
  for (const RankFacts& rank : ranks) {
    if (rank.device.digest.empty()) continue;
    tried = &rank.device;
    repeats = rank.device.repeats;
    ++digests[ClassOf(rank.device)][rank.device.digest];
  }
  if (tried == nullptr) return {};
  for (const RankFacts& rank : ranks) {
    const DeviceFacts& device = rank.device;
    if (device.digest.empty()) continue;
    if (device.different > 0) {
      rows.push_back({.check = check,
                      .status = PreflightStatus::kFailed,
                      .finding = absl::StrCat(device.name, " gave other bits in ", device.different, " of ",
                                              device.repeats, " repeats of one ", ProductText(device)),
                      .fix = fix,
                      .ranks = {static_cast<int>(rank.rank)},
                      .hosts = {rank.host},
                      .exit_code = kExitHardware});
      continue;
    }
    const auto& known = digests[ClassOf(device)];
    if (known.size() < 2) continue;
    const int mine = known.at(device.digest);
    int most = 0, num_most = 0;
    for (const auto& [digest, count] : known) {
      if (count > most) most = count, num_most = 0;
      num_most += count == most;
    }
    if (mine == most && num_most == 1) continue;
    rows.push_back(
        {.check = check,
         .status = PreflightStatus::kFailed,
         .finding = num_most == 1
                        ? absl::StrCat(device.name, " gives other bits for a ", ProductText(device), " than ",
                                       most, " other devices of its kind (", device.kind, ")")
                        : absl::StrCat("devices of one kind (", device.kind, ") disagree about a ",
                                       ProductText(device), ", and no majority says which is right"),
         .fix = fix,
         .ranks = {static_cast<int>(rank.rank)},
         .hosts = {rank.host},
         // Where nobody knows which one is wrong, there is none to go on without.
         .exit_code = num_most == 1 ? kExitHardware : kExitPreflight});
  }
  if (!rows.empty()) return rows;
  return {{.check = check,
           .finding = absl::StrCat(repeats, " repeats of a ", ProductText(*tried), " give the same bits",
                                   ranks.size() > 1 ? ", on all devices of a kind" : "")}};
}

Rows CheckMatmulRate(const Ranks& ranks) {
  const std::string check = "product rate";
  std::map<std::string, std::vector<const RankFacts*>> classes;
  for (const RankFacts& rank : ranks) {
    if (rank.device.flops > 0) classes[ClassOf(rank.device)].push_back(&rank);
  }
  Rows rows;
  for (const auto& [name, members] : classes) {
    std::vector<double> rates;
    for (const RankFacts* rank : members) rates.push_back(rank->device.flops);
    const double median = MedianOf(rates);
    rows.push_back({.check = check,
                    .finding = absl::StrCat(Range(rates, "FLOP"), ", ", ProductText(members[0]->device),
                                            " on ", members[0]->device.kind)});
    if (classes.size() > 1) {
      for (const RankFacts* rank : members) {
        rows.back().ranks.push_back(static_cast<int>(rank->rank));
        rows.back().hosts.push_back(rank->host);
      }
      rows.back().hosts = Distinct(rows.back().hosts);
    }
    for (const RankFacts* rank : members) {
      if (rank->device.flops >= kSlowShare * median) continue;
      const bool fair = rank->device.name != "cpu" || TimesAreFair(ranks, *rank);
      rows.push_back({.check = check,
                      .status = fair ? PreflightStatus::kWarning : PreflightStatus::kNote,
                      .finding = absl::StrFormat(
                          "%s, %.0f %% below the median of equal devices (%s)%s",
                          RateText(rank->device.flops, "FLOP"), 100 * (1 - rank->device.flops / median),
                          RateText(median, "FLOP"), fair ? "" : "; the ranks take turns on its cores"),
                      .fix = fair ? "All ranks wait for the slowest: see what else runs on this machine, and "
                                    "its clocks, cooling and "
                                    "power; or start without it."
                                  : "",
                      .ranks = {static_cast<int>(rank->rank)},
                      .hosts = {rank->host}});
    }
  }
  return rows;
}

Rows CheckSums(const Ranks& ranks) {
  const std::string check = "sums are exact";
  Rows rows;
  std::set<std::string> axes;
  std::vector<std::string> names;
  for (const RankFacts& rank : ranks) {
    for (const ReduceFacts& sum : rank.sums) {
      if (axes.insert(sum.axis).second) names.push_back(sum.axis);
      if (sum.num_wrong == 0) continue;
      rows.push_back(
          {.check = check,
           .status = PreflightStatus::kFailed,
           .finding = absl::StrFormat("%d elements of a sum of %s over '%s' (%s) arrived wrong; the first: "
                                      "element %d is %.17g, not %.17g",
                                      sum.num_wrong,
                                      sum.kind == "f32" ? "integers in f32" : "64-bit integers", sum.axis,
                                      RanksAndHosts(ToInts(sum.members), HostsOfMembers(ranks, sum.members)),
                                      sum.first_wrong, sum.got, sum.expected),
           .fix = "A machine of this group, its network card or its memory changes data: start without one "
                  "after "
                  "the other to find it; `carousel doctor --preflight=full` tries pairs of machines.",
           .ranks = {static_cast<int>(rank.rank)},
           .hosts = {rank.host}});
    }
  }
  if (names.empty()) return {};
  if (rows.empty()) {
    std::string text = "integers with known sums, over";
    for (size_t i = 0; i < names.size(); ++i) absl::StrAppend(&text, i == 0 ? " " : ", ", names[i]);
    rows.push_back({.check = check, .finding = text});
  }
  return rows;
}

Rows CheckSumRates(const Ranks& ranks) {
  const std::string check = "sum rate";
  // One rate for each group of ranks of an axis: its slowest member's.
  struct Group {
    std::vector<int64_t> members;
    int64_t bytes = 0;
    double seconds = 0;
    // What a ring would move over its slowest link (nccl-tests' "busbw").
    double rate() const {
      const double n = static_cast<double>(members.size());
      return 2 * (n - 1) / n * static_cast<double>(bytes) / seconds;
    }
  };
  std::vector<std::pair<std::string, std::vector<Group>>> axes;
  for (const RankFacts& rank : ranks) {
    for (const ReduceFacts& sum : rank.sums) {
      if (sum.bytes == 0 || sum.seconds <= 0 || sum.members.size() < 2) continue;
      auto axis =
          std::find_if(axes.begin(), axes.end(), [&](const auto& known) { return known.first == sum.axis; });
      if (axis == axes.end()) axis = axes.insert(axis, {sum.axis, {}});
      auto group = std::find_if(axis->second.begin(), axis->second.end(),
                                [&](const Group& known) { return known.members == sum.members; });
      if (group == axis->second.end()) {
        group = axis->second.insert(group, {.members = sum.members, .bytes = sum.bytes});
      }
      group->seconds = std::max(group->seconds, sum.seconds);
    }
  }
  Rows rows;
  for (const auto& [axis, groups] : axes) {
    std::vector<double> rates;
    for (const Group& group : groups) rates.push_back(group.rate());
    const double median = MedianOf(rates);
    rows.push_back(
        {.check = check,
         .finding = absl::StrFormat("%s: %s per rank, sums of %s over %d ranks%s", axis, Range(rates, "B"),
                                    BytesText(groups[0].bytes), groups[0].members.size(),
                                    groups.size() > 1 ? absl::StrFormat(", %d groups", groups.size()) : "")});
    for (const Group& group : groups) {
      if (group.rate() >= kSlowShare * median) continue;
      const bool fair = std::all_of(group.members.begin(), group.members.end(), [&](int64_t member) {
        const RankFacts& rank = ranks[static_cast<size_t>(member)];
        return rank.device.name != "cpu" || TimesAreFair(ranks, rank);
      });
      rows.push_back(
          {.check = check,
           .status = fair ? PreflightStatus::kWarning : PreflightStatus::kNote,
           .finding = absl::StrFormat("%s: %s, %.0f %% below the median of the groups of this axis (%s)",
                                      axis, RateText(group.rate(), "B"), 100 * (1 - group.rate() / median),
                                      RateText(median, "B")),
           .fix = "Look at the links of these machines (cables, `ibstat`, `nvidia-smi topo -m`); `carousel "
                  "doctor "
                  "--preflight=full` tries pairs of machines.",
           .ranks = ToInts(group.members),
           .hosts = HostsOfMembers(ranks, group.members)});
    }
  }
  return rows;
}

Rows CheckPairs(const Ranks& ranks) {
  const std::string check = "pairs of machines";
  Rows rows;
  std::vector<double> rates;
  std::map<int64_t, std::vector<double>> rates_of;  // by rank
  int64_t bytes = 0;
  for (const RankFacts& rank : ranks) {
    for (const PairFacts& pair : rank.pairs) {
      if (pair.seconds <= 0 || pair.peer < 0 || pair.peer >= static_cast<int64_t>(ranks.size())) continue;
      const std::string peer_host = ranks[static_cast<size_t>(pair.peer)].host;
      bytes = pair.bytes;
      rates_of[rank.rank].push_back(static_cast<double>(pair.bytes) / pair.seconds);
      rates.push_back(rates_of[rank.rank].back());
      if (pair.num_wrong == 0) continue;
      rows.push_back({.check = check,
                      .status = PreflightStatus::kFailed,
                      .finding = absl::StrCat(pair.num_wrong, " of ", pair.bytes, " bytes from ", peer_host,
                                              " arrived wrong"),
                      .fix = absl::StrCat("Start without ", rank.host, " or ", peer_host,
                                          ", whichever is named more often here."),
                      .ranks = {static_cast<int>(rank.rank)},
                      .hosts = {rank.host}});
    }
  }
  if (rates.empty()) return {};
  const double median = MedianOf(rates);
  // A machine that is slow with most others is named once; what remains are single links.
  std::set<int64_t> slow;
  for (const auto& [rank, mine] : rates_of) {
    if (rates_of.size() > 2 && MedianOf(mine) < kSlowShare * median) slow.insert(rank);
  }
  for (const int64_t rank : slow) {
    const RankFacts& facts = ranks[static_cast<size_t>(rank)];
    rows.push_back(
        {.check = check,
         .status = PreflightStatus::kWarning,
         .finding = absl::StrFormat("%s with the other machines, %.0f %% below the median of all pairs (%s)",
                                    RateText(MedianOf(rates_of[rank]), "B"),
                                    100 * (1 - MedianOf(rates_of[rank]) / median), RateText(median, "B")),
         .fix = "Look at the network card, cable and switch port of this machine, or start without it.",
         .ranks = {static_cast<int>(rank)},
         .hosts = {facts.host}});
  }
  for (const RankFacts& rank : ranks) {
    for (const PairFacts& pair : rank.pairs) {
      if (pair.seconds <= 0 || pair.peer < 0 || pair.peer >= static_cast<int64_t>(ranks.size())) continue;
      const double rate = static_cast<double>(pair.bytes) / pair.seconds;
      // Both tell; the lower one is heard.
      if (rate >= kSlowShare * median || pair.peer < rank.rank ||
          slow.count(rank.rank) + slow.count(pair.peer) > 0)
        continue;
      rows.push_back(
          {.check = check,
           .status = PreflightStatus::kWarning,
           .finding = absl::StrFormat("%s with %s, %.0f %% below the median of all pairs (%s)",
                                      RateText(rate, "B"), ranks[static_cast<size_t>(pair.peer)].host,
                                      100 * (1 - rate / median), RateText(median, "B")),
           .fix = "Look at the way between these two machines (switches, cables).",
           .ranks = {static_cast<int>(rank.rank), static_cast<int>(pair.peer)},
           .hosts = Distinct({rank.host, ranks[static_cast<size_t>(pair.peer)].host})});
    }
  }
  rows.insert(rows.begin(),
              {.check = check,
               .finding = absl::StrFormat("%d pairs, %s in each direction, %s exchanged", rates.size() / 2,
                                          Range(rates, "B"), BytesText(bytes))});
  return rows;
}
}  // namespace carousel
