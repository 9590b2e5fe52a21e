// The report: what it reads and where it is written.
#include <sys/stat.h>

#include <chrono>
#include <map>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "checkpoints/file_system.h"
#include "configs/load.h"
#include "core/base/status_macros.h"
#include "launcher/config_leaves.h"
#include "launcher/report/appended_file.h"
#include "launcher/report/html_report.h"
#include "launcher/train/run_directory.h"

namespace carousel {
namespace {

constexpr int64_t kMaxConfigBytes = 1 << 22;
// A run without an orderly end whose newest record is younger than this may still go on.
constexpr double kQuietSeconds = 300;

double Now() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}
// When the file was last written, in seconds since 1970; 0: there is none.
double LastChange(const std::string& path) {
  struct stat info {};
  return stat(path.c_str(), &info) == 0 ? static_cast<double>(info.st_mtim.tv_sec) : 0;
}
}  // namespace

std::string ReportPath(const std::string& run_dir) { return run_dir + "/report.html"; }

std::string DefaultConfigText(const std::string& resolved_text) {
  // What a config must have, and what decides which other fields there are.
  std::map<std::string, std::string> given;
  for (const auto& [name, value] : ConfigLeaves(resolved_text)) given[name] = value;
  std::vector<std::string> model, data;
  for (const char* field : {"family", "embedding_dim", "num_blocks", "num_heads"}) {
    if (const auto found = given.find(absl::StrCat("model.", field)); found != given.end()) {
      model.push_back(absl::StrCat(field, ": ", found->second));
    }
  }
  std::string text = "model {";
  for (const std::string& field : model) absl::StrAppend(&text, " ", field);
  const auto tokenizer = given.find("data.tokenizer");
  if (tokenizer != given.end() && tokenizer->second != "BYTES" && given.count("model.vocab_size") > 0) {
    absl::StrAppend(&text, " vocab_size: ", given["model.vocab_size"]);
  }
  absl::StrAppend(&text, " }");
  if (tokenizer != given.end()) absl::StrAppend(&text, " data { tokenizer: ", tokenizer->second, " }");
  const absl::StatusOr<RunSpec> run = LoadRunFromText(text, "defaults", {});
  return run.ok() ? run->resolved_text : std::string();
}

ReportInput ReadReportInput(const std::string& run_dir, const RunHistory& history) {
  ReportInput input = {.run_dir = run_dir,
                       .history = &history,
                       .starts = ReadRunStarts(run_dir),
                       .attempts = ReadAttempts(run_dir),
                       .unix_seconds = Now()};
  PosixFileSystem files;
  const absl::StatusOr<FileInfo> info = files.Stat(ConfigPath(run_dir));
  if (!info.ok() || !info->exists) return input;
  const absl::StatusOr<std::string> text = ReadFile(files, ConfigPath(run_dir), kMaxConfigBytes);
  if (!text.ok()) return input;
  input.config = ConfigLeaves(*text);
  input.default_config = ConfigLeaves(DefaultConfigText(*text));
  return input;
}

absl::Status WriteReport(const std::string& run_dir, const std::string& out) {
  PosixFileSystem files;
  CAROUSEL_ASSIGN_OR_RETURN(const FileInfo metrics, files.Stat(MetricsPath(run_dir)));
  CAROUSEL_ASSIGN_OR_RETURN(const FileInfo config, files.Stat(ConfigPath(run_dir)));
  if (!metrics.exists && !config.exists) {
    return absl::NotFoundError(absl::StrCat(run_dir,
                                            " holds no run (neither metrics.jsonl nor config.textproto); "
                                            "give the --run_dir of `carousel train`"));
  }
  MetricsTail tail(MetricsPath(run_dir));
  CAROUSEL_RETURN_IF_ERROR(tail.Read());
  ReportInput input = ReadReportInput(run_dir, tail.history());
  const double newest = LastChange(MetricsPath(run_dir));
  const bool ended = !input.starts.empty() && input.starts.back().ended;
  input.still_going = !ended && newest > 0 && input.unix_seconds - newest < kQuietSeconds;
  return ReplaceFileQuickly(out, RenderReport(input));
}
}  // namespace carousel
