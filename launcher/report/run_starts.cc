#include "launcher/report/run_starts.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "checkpoints/file_system.h"
#include "core/base/status_macros.h"
#include "launcher/report/appended_file.h"

namespace carousel {
namespace {
using Json = nlohmann::ordered_json;

constexpr int64_t kMaxBytes = 1 << 26;
constexpr size_t kMaxKept = 200;
constexpr size_t kMaxTextBytes = 4000;

double NumberIn(const Json& object, const char* key, double missing) {
  const auto found = object.find(key);
  if (found == object.end() || !found->is_number()) return missing;
  const double value = found->get<double>();
  return std::isfinite(value) && std::abs(value) < 9e18 ? value : missing;
}
int64_t WholeIn(const Json& object, const char* key, int64_t missing) {
  return static_cast<int64_t>(NumberIn(object, key, static_cast<double>(missing)));
}
std::string TextIn(const Json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_string() ? found->get<std::string>().substr(0, kMaxTextBytes)
                                                     : std::string();
}
absl::Status AppendLine(const std::string& run_dir, const Json& json) {
  CAROUSEL_ASSIGN_OR_RETURN(const std::unique_ptr<AppendedFile> file,
                            AppendedFile::Open(StartsPath(run_dir)));
  return file->Append(json.dump(-1, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace) + "\n");
}
// Empty if it cannot be read.
std::string ReadText(const std::string& path) {
  PosixFileSystem files;
  const absl::StatusOr<FileInfo> info = files.Stat(path);
  if (!info.ok() || !info->exists) return {};
  absl::StatusOr<std::string> text = ReadFile(files, path, kMaxBytes);
  return text.ok() ? *std::move(text) : std::string();
}
}  // namespace

std::string StartsPath(const std::string& run_dir) { return run_dir + "/starts.jsonl"; }

absl::Status RecordRunStart(const std::string& run_dir, const RunStart& s) {
  Json json;
  json["start"] = Json{{"attempt", s.attempt},
                       {"step", s.step},
                       {"unix_seconds", s.unix_seconds},
                       {"num_ranks", s.num_ranks},
                       {"hosts", s.hosts},
                       {"mesh", s.mesh},
                       {"device", s.device},
                       {"build", s.build},
                       {"command", s.command},
                       {"num_parameters", s.num_parameters},
                       {"tokens_per_step", s.tokens_per_step},
                       {"total_steps", s.total_steps},
                       {"unigram_entropy", s.unigram_entropy},
                       {"vocab_size", s.vocab_size}};
  return AppendLine(run_dir, json);
}

absl::Status RecordRunEnd(const std::string& run_dir, int64_t attempt, int64_t step, const std::string& why,
                          double unix_seconds) {
  Json json;
  json["end"] = Json{{"attempt", attempt}, {"step", step}, {"unix_seconds", unix_seconds}, {"why", why}};
  return AppendLine(run_dir, json);
}

std::vector<RecordedStart> ReadRunStarts(const std::string& run_dir) {
  std::vector<RecordedStart> starts;
  for (const absl::string_view line : absl::StrSplit(ReadText(StartsPath(run_dir)), '\n')) {
    const Json json = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!json.is_object()) continue;
    if (const auto start = json.find("start"); start != json.end() && start->is_object()) {
      RecordedStart record;
      RunStart& s = record.start;
      s.attempt = WholeIn(*start, "attempt", 0);
      s.step = WholeIn(*start, "step", 0);
      s.unix_seconds = NumberIn(*start, "unix_seconds", 0);
      s.num_ranks = WholeIn(*start, "num_ranks", 0);
      s.mesh = TextIn(*start, "mesh");
      s.device = TextIn(*start, "device");
      s.build = TextIn(*start, "build");
      s.command = TextIn(*start, "command");
      s.num_parameters = WholeIn(*start, "num_parameters", 0);
      s.tokens_per_step = WholeIn(*start, "tokens_per_step", 0);
      s.total_steps = WholeIn(*start, "total_steps", 0);
      s.unigram_entropy = NumberIn(*start, "unigram_entropy", 0);
      s.vocab_size = WholeIn(*start, "vocab_size", 0);
      if (const auto hosts = start->find("hosts"); hosts != start->end() && hosts->is_array()) {
        for (const Json& host : *hosts) {
          if (host.is_string()) s.hosts.push_back(host.get<std::string>().substr(0, kMaxTextBytes));
        }
      }
      starts.push_back(std::move(record));
      if (starts.size() > kMaxKept) starts.erase(starts.begin());
    } else if (const auto end = json.find("end"); end != json.end() && end->is_object() && !starts.empty()) {
      RecordedStart& record = starts.back();
      if (record.start.attempt != WholeIn(*end, "attempt", -1)) continue;
      record.ended = true;
      record.end_step = WholeIn(*end, "step", 0);
      record.end_unix_seconds = NumberIn(*end, "unix_seconds", 0);
      record.why = TextIn(*end, "why");
    }
  }
  return starts;
}

std::vector<RecordedAttempt> ReadAttempts(const std::string& run_dir) {
  PosixFileSystem files;
  const std::string dir = run_dir + "/attempts";
  const absl::StatusOr<std::vector<std::string>> names = files.ListDirectory(dir);
  std::vector<int64_t> numbers;
  if (names.ok()) {
    for (const std::string& name : *names) {
      int64_t number = 0;
      if (absl::SimpleAtoi(name, &number) && number >= 0 && absl::StrCat(number) == name) {
        numbers.push_back(number);
      }
    }
  }
  std::sort(numbers.begin(), numbers.end());
  if (numbers.size() > kMaxKept) numbers.erase(numbers.begin(), numbers.end() - kMaxKept);
  std::vector<RecordedAttempt> attempts;
  for (const int64_t number : numbers) {
    const Json json = Json::parse(ReadText(absl::StrCat(dir, "/", number, "/exit.json")), nullptr,
                                  /*allow_exceptions=*/false);
    if (!json.is_object()) continue;
    attempts.push_back({.attempt = number,
                        .exit_code = WholeIn(json, "exit_code", -1),
                        .rank = WholeIn(json, "rank", -1),
                        .step = WholeIn(json, "step", -1),
                        .last_checkpoint = WholeIn(json, "last_checkpoint", -1),
                        .reason = TextIn(json, "reason"),
                        .host = TextIn(json, "host"),
                        .next = TextIn(json, "next"),
                        .began = NumberIn(json, "began", 0),
                        .ended = NumberIn(json, "ended", 0)});
  }
  return attempts;
}
}  // namespace carousel
