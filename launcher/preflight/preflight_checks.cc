#include "launcher/preflight/preflight_checks.h"

#include <algorithm>
#include <iterator>
#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "core/base/check.h"

namespace carousel {

std::vector<std::string> HostsOf(const Ranks& ranks) {
  std::vector<std::string> hosts;
  for (const RankFacts& rank : ranks) hosts.push_back(rank.host);
  return hosts;
}

std::string BytesText(int64_t bytes) {
  if (bytes < 0) return "unknown";
  if (bytes == kUnlimited) return "unlimited";
  const char* const kUnits[] = {"bytes", "KiB", "MiB", "GiB", "TiB", "PiB"};
  double amount = static_cast<double>(bytes);
  size_t unit = 0;
  while (amount >= 1024 && unit + 1 < std::size(kUnits)) amount /= 1024, ++unit;
  return unit == 0 ? absl::StrCat(bytes, " bytes") : absl::StrFormat("%.1f %s", amount, kUnits[unit]);
}

std::string RateText(double amount, const std::string& unit) {
  const char* const kPrefixes[] = {"", "k", "M", "G", "T", "P"};
  size_t prefix = 0;
  while (amount >= 1000 && prefix + 1 < std::size(kPrefixes)) amount /= 1000, ++prefix;
  const int digits = amount >= 100 ? 0 : amount >= 10 ? 1 : 2;
  return absl::StrFormat("%.*f %s%s/s", digits, amount, kPrefixes[prefix], unit);
}

double MedianOf(std::vector<double> values) {
  CAROUSEL_CHECK(!values.empty());
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

Rows CompareRanks(const std::string& check, const std::vector<std::string>& texts, const Ranks& ranks,
                  PreflightStatus differs, const std::string& fix) {
  std::map<std::string, int> counts;
  for (const std::string& text : texts) ++counts[text];
  if (counts.size() <= 1) {
    return texts.empty() ? Rows{} : Rows{{.check = check, .finding = texts[0]}};
  }
  std::string usual = texts[0];
  for (const auto& [text, count] : counts) {
    if (count > counts[usual]) usual = text;
  }
  std::vector<RankFinding> findings;
  for (const std::string& text : texts) {
    if (text == usual) {
      findings.push_back({.finding = text});
    } else {
      findings.push_back(
          {.status = differs, .finding = absl::StrCat(text, "; most ranks: ", usual), .fix = fix});
    }
  }
  return FoldRanks(check, findings, HostsOf(ranks));
}

Rows JudgeFacts(const Ranks& ranks, const PreflightNeeds& needs) {
  Rows rows;
  const auto add = [&](Rows more) {
    rows.insert(rows.end(), std::make_move_iterator(more.begin()), std::make_move_iterator(more.end()));
  };
  add(CheckBuild(ranks));
  add(CheckLaunch(ranks, needs));
  add(CheckLibraries(ranks));
  add(CheckProcessor(ranks, needs));
  add(CheckCores(ranks, needs));
  add(CheckMemory(ranks, needs));
  add(CheckClocks(ranks));
  add(CheckOpenFiles(ranks));
  add(CheckLockedMemory(ranks, needs));
  add(CheckFileSizeLimit(ranks, needs));
  add(CheckSharedMemory(ranks, needs));
  add(CheckCoreDumps(ranks));
  add(CheckNetwork(ranks));
  add(CheckGpus(ranks, needs));
  add(CheckGpuSharing(ranks, needs));
  add(CheckGpuMemoryErrors(ranks));
  add(CheckGpuRowRemapping(ranks));
  add(CheckGpuThrottling(ranks));
  add(CheckGpuPower(ranks));
  add(CheckGpuLink(ranks));
  add(CheckGpuXids(ranks));
  add(CheckDevice(ranks, needs));
  add(CheckMatmulBits(ranks));
  add(CheckMatmulRate(ranks));
  add(CheckSums(ranks));
  add(CheckSumRates(ranks));
  add(CheckPairs(ranks));
  add(CheckRunDirectory(ranks));
  add(CheckDiskSpace(ranks, needs));
  add(CheckDiskRate(ranks, needs));
  add(CheckTokenFiles(ranks));
  return rows;
}
}  // namespace carousel
