#include "launcher/metrics_sinks.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <nlohmann/json.hpp>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "checkpoints/file_system.h"
#include "core/base/status_macros.h"

namespace carousel {
namespace {
using Json = nlohmann::ordered_json;

constexpr int64_t kMaxFileBytes = int64_t{1} << 33;

std::string SystemError(int error) { return std::generic_category().message(error); }

// What a line of the file says about its place in the run.
struct LineInfo {
  bool whole = false;  // a JSON object
  int64_t step = -1;   // that it is about; -1: none
  bool evaluation = false, sample = false, saved = false;
};

int64_t StepIn(const Json& object) {
  const auto step = object.find("step");
  return step != object.end() && step->is_number_integer() ? step->get<int64_t>() : -1;
}

LineInfo Inspect(const std::string& line) {
  const Json json = Json::parse(line, nullptr, /*allow_exceptions=*/false);
  LineInfo info{.whole = json.is_object()};
  if (!info.whole) return info;
  info.step = StepIn(json);
  const auto find = [&](const char* kind) {
    const auto nested = json.find(kind);
    if (nested == json.end() || !nested->is_object()) return json.end();
    info.step = StepIn(*nested);
    return nested;
  };
  info.evaluation = find("evaluation") != json.end();
  info.sample = find("sample") != json.end();
  if (const auto checkpoint = find("checkpoint"); checkpoint != json.end()) {
    const auto outcome = checkpoint->find("outcome");
    info.saved = outcome != checkpoint->end() && (*outcome == "saved" || *outcome == "found");
  }
  return info;
}

// Text from a model need not be UTF-8, which JSON must be.
std::string Dump(const Json& json) {
  return json.dump(-1, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace);
}
}  // namespace

absl::StatusOr<std::unique_ptr<MetricsFile>> MetricsFile::Open(const std::string& path,
                                                               int64_t finished_steps) {
  PosixFileSystem files;
  CAROUSEL_ASSIGN_OR_RETURN(const FileInfo info, files.Stat(path));
  int64_t dropped = 0, last_evaluated = -1, last_sampled = -1, last_saved = -1;
  if (info.exists) {
    CAROUSEL_ASSIGN_OR_RETURN(const std::string old, ReadFile(files, path, kMaxFileBytes));
    std::string kept;
    kept.reserve(old.size());
    bool changed = false;
    for (size_t begin = 0; begin < old.size();) {
      const size_t newline = old.find('\n', begin);
      const size_t end = newline == std::string::npos ? old.size() : newline;
      const std::string line = old.substr(begin, end - begin);
      begin = end + 1;
      const LineInfo line_info = Inspect(line);
      const bool keep = line_info.whole && line_info.step <= finished_steps;
      dropped += !keep;
      // A last line without its end was cut short, even if what there is of it can be read.
      changed |= !keep || newline == std::string::npos;
      if (!keep) continue;
      absl::StrAppend(&kept, line, "\n");
      if (line_info.evaluation) last_evaluated = std::max(last_evaluated, line_info.step);
      if (line_info.sample) last_sampled = std::max(last_sampled, line_info.step);
      if (line_info.saved) last_saved = std::max(last_saved, line_info.step);
    }
    if (changed) CAROUSEL_RETURN_IF_ERROR(ReplaceFile(files, path, kept));
  }
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (fd < 0) {
    return absl::UnavailableError(absl::StrCat("cannot open ", path, " for appending: ", SystemError(errno)));
  }
  std::unique_ptr<MetricsFile> file(new MetricsFile(path, fd));
  file->num_dropped_lines_ = dropped;
  file->last_evaluated_step_ = last_evaluated;
  file->last_sampled_step_ = last_sampled;
  file->last_saved_step_ = last_saved;
  return file;
}

MetricsFile::~MetricsFile() { close(fd_); }

absl::Status MetricsFile::AppendLine(const std::string& line) {
  struct stat before {};
  if (fstat(fd_, &before) != 0) {
    return absl::UnavailableError(absl::StrCat("cannot append to ", path_, ": ", SystemError(errno)));
  }
  const std::string bytes = line + "\n";
  size_t written = 0;
  while (written < bytes.size()) {
    const ssize_t n = write(fd_, bytes.data() + written, bytes.size() - written);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      const int error = errno;
      // Take back what was written of this line. If even that fails, the next Open drops it.
      const bool taken_back = ftruncate(fd_, before.st_size) == 0;
      return absl::ResourceExhaustedError(absl::StrCat("cannot append to ", path_, ": ", SystemError(error),
                                                       taken_back ? "" : " (its last line is incomplete)"));
    }
    written += static_cast<size_t>(n);
  }
  return absl::OkStatus();
}

absl::Status MetricsFile::Append(const StepMetrics& metrics) {
  Json json;
  json["step"] = metrics.step;
  json["tokens"] = metrics.tokens;
  json["loss"] = metrics.loss;
  json["grad_norm"] = metrics.grad_norm;
  json["lr"] = metrics.lr;
  json["seconds"] = metrics.seconds;
  json["wall_seconds"] = metrics.wall_seconds;
  json["data_wait_seconds"] = metrics.data_wait_seconds;
  json["data_digest"] = absl::StrFormat("%016x", metrics.data_digest);
  json["skipped"] = metrics.skipped;
  return AppendLine(Dump(json));
}

absl::Status MetricsFile::AppendEvaluation(const EvaluationReport& report) {
  if (report.step <= last_evaluated_step_) return absl::OkStatus();
  Json evaluation = {{"step", report.step},
                     {"loss", report.loss},
                     {"bits_per_byte", report.bits_per_byte},
                     {"num_targets", report.num_targets},
                     {"accuracy", report.accuracy}};
  for (const LengthBucket& bucket : report.by_length) {
    evaluation["accuracy_by_length"].push_back(Json{{"length_from", bucket.first},
                                                    {"length_to", bucket.last},
                                                    {"count", bucket.count},
                                                    {"accuracy", bucket.accuracy()}});
  }
  if (report.source_entropy > 0) {
    evaluation["source_entropy"] = report.source_entropy;
    evaluation["excess_percent"] = report.excess_percent();
  }
  Json json;
  json["evaluation"] = std::move(evaluation);
  CAROUSEL_RETURN_IF_ERROR(AppendLine(Dump(json)));
  last_evaluated_step_ = report.step;
  return absl::OkStatus();
}

absl::Status MetricsFile::AppendSample(int64_t step, const std::string& text) {
  if (step <= last_sampled_step_) return absl::OkStatus();
  Json json;
  json["sample"] = Json{{"step", step}, {"text", text}};
  CAROUSEL_RETURN_IF_ERROR(AppendLine(Dump(json)));
  last_sampled_step_ = step;
  return absl::OkStatus();
}

absl::Status MetricsFile::AppendCheckpoint(const CheckpointMetrics& metrics) {
  Json checkpoint = {{"step", metrics.step},
                     {"outcome", metrics.outcome},
                     {"seconds", metrics.seconds},
                     {"seconds_stalled", metrics.seconds_stalled},
                     {"bytes", metrics.num_bytes},
                     {"skipped", metrics.num_skipped},
                     {"failed_in_row", metrics.failed_in_row}};
  if (!metrics.message.empty()) checkpoint["message"] = metrics.message;
  Json json;
  json["checkpoint"] = std::move(checkpoint);
  return AppendLine(Dump(json));
}
}  // namespace carousel
