// The run's directory and its data.
#include <algorithm>
#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "launcher/preflight/preflight_checks.h"

namespace carousel {

Rows CheckRunDirectory(const Ranks& ranks) {
  const std::string check = "directory";
  const StorageFacts& storage = ranks[0].storage;
  if (!storage.asked) return {};
  if (!storage.error.empty()) {
    return {{.check = check,
             .status = PreflightStatus::kFailed,
             .finding = storage.error,
             .fix = absl::StrCat("Take a --run_dir that all ranks may write to and see (", storage.directory,
                                 " now)."),
             .exit_code = kExitNotSaved}};
  }
  std::vector<RankFinding> findings;
  for (const RankFacts& rank : ranks) {
    const std::string what = absl::StrCat(storage.directory, " (", ranks[0].storage.file_system, ")");
    if (!rank.storage.lock_error.empty()) {
      findings.push_back(
          {.status = PreflightStatus::kNote,
           .finding =
               absl::StrCat(what, ": files cannot be locked here (", rank.storage.lock_error,
                            "); a run that died is then noticed a minute later when it is started again"),
           .fix = "On NFS and Lustre, locks are an option of the mount (local_lock=none, flock)."});
    } else if (!rank.storage.write_error.empty()) {
      findings.push_back(
          {.status = PreflightStatus::kFailed,
           .finding = absl::StrCat("cannot be written as a checkpoint is: ", rank.storage.write_error),
           .fix = "Make room, or take another --run_dir."});
    } else {
      findings.push_back({.finding = absl::StrCat(what, ": files can be written, synced, renamed and locked",
                                                  ranks.size() > 1 ? ", and all ranks see the same" : "")});
    }
  }
  Rows rows = FoldRanks(check, findings, HostsOf(ranks));
  for (PreflightRow& row : rows) row.exit_code = kExitNotSaved;
  return rows;
}

Rows CheckDiskSpace(const Ranks& ranks, const PreflightNeeds& needs) {
  const std::string check = "disk space";
  const StorageFacts& storage = ranks[0].storage;
  if (!storage.asked || storage.free_bytes < 0) return {};
  const std::string free =
      absl::StrCat(BytesText(storage.free_bytes), " are free of ", BytesText(storage.total_bytes));
  if (needs.checkpoint_bytes == 0) return {{.check = check, .finding = free}};
  const std::string one = absl::StrCat("a checkpoint takes ", BytesText(needs.checkpoint_bytes));
  const double wanted = static_cast<double>(needs.checkpoint_bytes) *
                        static_cast<double>(std::max<int64_t>(needs.num_checkpoints, 1));
  const std::string all = wanted > 9e18 ? "more than any disk" : BytesText(static_cast<int64_t>(wanted));
  const std::string fix =
      "Make room, take a --run_dir on a larger disk, or keep fewer (checkpoint.keep_last, keep_best, "
      "keep_every_steps).";
  if (storage.free_bytes < needs.checkpoint_bytes) {
    return {{.check = check,
             .status = PreflightStatus::kFailed,
             .finding = absl::StrCat(one, ", but only ", free, " in ", storage.directory),
             .fix = fix,
             .exit_code = kExitNotSaved}};
  }
  // Those that are there will be replaced.
  if (wanted > static_cast<double>(storage.free_bytes) + static_cast<double>(storage.existing_bytes)) {
    return {{.check = check,
             .status = PreflightStatus::kWarning,
             .finding = absl::StrCat(one, ", and up to ", needs.num_checkpoints, " of them ", all, "; only ",
                                     free, " in ", storage.directory),
             .fix = fix}};
  }
  return {{.check = check,
           .finding = absl::StrCat(one, ", up to ", std::max<int64_t>(needs.num_checkpoints, 1), " of them ",
                                   all, "; ", free)}};
}

Rows CheckDiskRate(const Ranks& ranks, const PreflightNeeds& needs) {
  const std::string check = "disk rate";
  std::vector<double> rates;
  double total = 0;
  int64_t bytes = 0;
  for (const RankFacts& rank : ranks) {
    if (rank.storage.write_bytes == 0 || rank.storage.write_seconds <= 0) continue;
    rates.push_back(static_cast<double>(rank.storage.write_bytes) / rank.storage.write_seconds);
    total += rates.back();
    bytes = rank.storage.write_bytes;
  }
  if (rates.empty()) return {};
  const auto [low, high] = std::minmax_element(rates.begin(), rates.end());
  const std::string a = RateText(*low, "B"), b = RateText(*high, "B");
  std::string text =
      absl::StrFormat("%s, %s written and synced", a == b ? a : absl::StrCat(a, " to ", b), BytesText(bytes));
  if (rates.size() > 1) absl::StrAppend(&text, " by each of ", rates.size(), " writers at once");
  Rows rows;
  const double seconds = static_cast<double>(needs.checkpoint_bytes) / total;
  if (needs.checkpoint_bytes > 0) absl::StrAppendFormat(&text, "; a checkpoint takes about %.1f s", seconds);
  if (needs.save_timeout_seconds > 0 && seconds > needs.save_timeout_seconds) {
    rows.push_back({.check = check,
                    .status = PreflightStatus::kWarning,
                    .finding = absl::StrFormat("%s, but checkpoint.timeout_seconds is %g", text,
                                               needs.save_timeout_seconds),
                    .fix = "Take a faster disk for --run_dir, or raise checkpoint.timeout_seconds."});
  } else {
    rows.push_back({.check = check, .finding = text});
  }
  if (rates.size() < 3) return rows;
  // Writers with a disk far slower than the others': one tenth is noise of caches, a half is not.
  constexpr double kMuchSlower = 0.5;
  const double median = MedianOf(rates);
  for (const RankFacts& rank : ranks) {
    if (rank.storage.write_bytes == 0 || rank.storage.write_seconds <= 0) continue;
    const double rate = static_cast<double>(rank.storage.write_bytes) / rank.storage.write_seconds;
    if (rate >= kMuchSlower * median) continue;
    rows.push_back({.check = check,
                    .status = PreflightStatus::kNote,
                    .finding = absl::StrCat(RateText(rate, "B"), ", the median is ", RateText(median, "B")),
                    .ranks = {static_cast<int>(rank.rank)},
                    .hosts = {rank.host}});
  }
  return rows;
}

Rows CheckTokenFiles(const Ranks& ranks) {
  const std::string check = kTokenFilesCheck;
  if (ranks[0].tokens.empty()) return {};
  std::vector<RankFinding> findings;
  int64_t bytes = 0;
  for (const TokenFileFacts& file : ranks[0].tokens) bytes += std::max<int64_t>(file.bytes, 0);
  for (const RankFacts& rank : ranks) {
    RankFinding mine = {.finding = absl::StrFormat(
                            "%d files, %s%s", ranks[0].tokens.size(), BytesText(bytes),
                            ranks.size() > 1 ? ", the same on all ranks (sizes and sampled blocks)" : "")};
    for (size_t i = 0; i < rank.tokens.size(); ++i) {
      const TokenFileFacts& file = rank.tokens[i];
      const TokenFileFacts* const first = i < ranks[0].tokens.size() ? &ranks[0].tokens[i] : nullptr;
      if (!file.error.empty()) {
        mine = {.status = PreflightStatus::kFailed,
                .finding = file.error,
                .fix =
                    "Put the token files under the same paths on all machines (data.train, data.validation); "
                    "`carousel "
                    "data build` makes them."};
        break;
      }
      if (first == nullptr || !first->error.empty() ||
          (file.bytes == first->bytes && file.digest == first->digest))
        continue;
      mine = {
          .status = PreflightStatus::kFailed,
          .finding = file.bytes != first->bytes
                         ? absl::StrCat(file.path, " has ", file.bytes, " bytes here and ", first->bytes,
                                        " on rank 0")
                         : absl::StrCat(file.path, " holds other data than on rank 0, in as many bytes (",
                                        file.bytes, ")"),
          .fix = "Copy the same token files to every machine, or put them on a file system that all share."};
      break;
    }
    findings.push_back(mine);
  }
  return FoldRanks(check, findings, HostsOf(ranks));
}
}  // namespace carousel
