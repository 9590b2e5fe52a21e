#include "launcher/train/rank_agreement.h"

#include <algorithm>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "configs/compare.h"
#include "configs/load.h"
#include "core/base/status_exit_code.h"
#include "core/base/status_macros.h"
#include "core/train/agreement.h"

namespace carousel {
namespace {
constexpr size_t kMaxShown = 8;  // differences

std::string Joined(const std::vector<std::string>& parts) {
  std::string text = absl::StrJoin(
      parts.begin(), parts.begin() + static_cast<int64_t>(std::min(parts.size(), kMaxShown)), "; ");
  if (parts.size() > kMaxShown) absl::StrAppend(&text, "; and ", parts.size() - kMaxShown, " more");
  return text;
}

// Strings with their lengths, so that any text may be sent.
std::string Pack(const RankOptions& options) {
  std::string bytes;
  for (const auto& [name, value] : options) {
    absl::StrAppend(&bytes, name.size(), ":", name, value.size(), ":", value);
  }
  return bytes;
}

// What Pack made; ends early at what it did not make.
RankOptions Unpack(const std::string& bytes) {
  std::vector<std::string> words;
  for (size_t begin = 0; begin < bytes.size();) {
    const size_t colon = bytes.find(':', begin);
    size_t length = 0;
    if (colon == std::string::npos || !absl::SimpleAtoi(bytes.substr(begin, colon - begin), &length) ||
        length > bytes.size() - colon - 1) {
      break;
    }
    words.push_back(bytes.substr(colon + 1, length));
    begin = colon + 1 + length;
  }
  RankOptions options;
  for (size_t i = 0; i + 1 < words.size(); i += 2) options.emplace_back(words[i], words[i + 1]);
  return options;
}

// "--device cpu here, cuda on rank 0"; an option that one of them does not have: "--set a=b here only".
std::vector<std::string> OptionDifferences(RankOptions here, RankOptions rank0) {
  for (auto option = here.begin(); option != here.end();) {
    const auto same = std::find(rank0.begin(), rank0.end(), *option);
    if (same == rank0.end()) {
      ++option;
      continue;
    }
    rank0.erase(same);
    option = here.erase(option);
  }
  const auto text = [](const std::string& value) { return value.empty() ? std::string("none") : value; };
  std::vector<std::string> differences;
  for (const auto& [name, value] : here) {
    const auto other = std::find_if(rank0.begin(), rank0.end(),
                                    [&name = name](const auto& option) { return option.first == name; });
    if (other == rank0.end()) {
      differences.push_back(absl::StrCat(name, " ", value, " here only"));
    } else {
      differences.push_back(
          absl::StrCat(name, " ", text(value), " here, ", text(other->second), " on rank 0"));
      rank0.erase(other);
    }
  }
  for (const auto& [name, value] : rank0) {
    differences.push_back(absl::StrCat(name, " ", value, " on rank 0 only"));
  }
  return differences.empty() ? std::vector<std::string>{"another order of --set"} : differences;
}
}  // namespace

absl::Status CheckSameBuild(Communicator& world, const std::string& host, const std::string& build) {
  const std::string rank0 = BroadcastBytes(world, build, 0);
  const absl::Status mine =
      rank0 == build
          ? absl::OkStatus()
          : absl::FailedPreconditionError(absl::StrCat("on ", host, " is ", build, ", but rank 0 is ", rank0,
                                                       "; install one build on all machines"));
  return AgreeOnStatus(world, WithExitCode(mine, kExitPreflight));
}

absl::Status CheckSameOptions(Communicator& world, const std::string& host, const RankOptions& options) {
  // Rank 0's options travel as text that it made from its own: what differs is looked for only if the texts
  // do.
  const std::string rank0 = BroadcastBytes(world, Pack(options), 0);
  absl::Status mine = absl::OkStatus();
  if (rank0 != Pack(options)) {
    mine = absl::InvalidArgumentError(absl::StrCat("started on ", host, " with other options than rank 0: ",
                                                   Joined(OptionDifferences(options, Unpack(rank0))),
                                                   "; start all ranks with the same command"));
  }
  return AgreeOnStatus(world, mine);
}

absl::StatusOr<RunSpec> AgreeOnRun(Communicator& world, const std::string& host,
                                   const absl::StatusOr<RunSpec>& mine) {
  CAROUSEL_RETURN_IF_ERROR(AgreeOnStatus(world, world.rank() == 0 ? mine.status() : absl::OkStatus()));
  const std::string text = BroadcastBytes(world, world.rank() == 0 ? mine->resolved_text : "", 0);
  absl::StatusOr<RunSpec> run = world.rank() == 0 ? mine : LoadRunFromText(text, "config of rank 0", {});
  absl::Status status = run.status();
  if (status.ok() && mine.ok() && mine->resolved_text != text) {
    std::vector<std::string> differences;
    for (const FieldDifference& d : CompareResolved(text, mine->resolved_text)) {
      differences.push_back(absl::StrCat(d.path, " is ", d.second, " here and ", d.first, " on rank 0"));
    }
    if (!differences.empty()) {
      status = absl::InvalidArgumentError(absl::StrCat("read another config on ", host,
                                                       " than rank 0: ", Joined(differences),
                                                       "; start all ranks with the same config"));
    }
  }
  CAROUSEL_RETURN_IF_ERROR(AgreeOnStatus(world, status));
  return run;
}
}  // namespace carousel
