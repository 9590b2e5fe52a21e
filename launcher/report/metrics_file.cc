#include "launcher/report/metrics_file.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <nlohmann/json.hpp>
#include <unordered_set>
#include <utility>
#include <vector>

#include "absl/hash/hash.h"
#include "absl/strings/str_format.h"
#include "checkpoints/file_system.h"
#include "core/base/status_macros.h"
#include "launcher/train/drop_lines.h"

namespace carousel {
namespace {
using Json = nlohmann::ordered_json;

constexpr int64_t kMaxFileBytes = int64_t{1} << 33;

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
  find("gates");
  find("health");
  if (const auto checkpoint = find("checkpoint"); checkpoint != json.end()) {
    const auto outcome = checkpoint->find("outcome");
    info.saved = outcome != checkpoint->end() && (*outcome == "saved" || *outcome == "found");
  }
  return info;
}

// Calls `take` for each line of a file, without its line feed, and says whether it has one. Memory: a line.
absl::Status ForEachLine(const ReadableFile& file,
                         const std::function<void(const std::string& line, bool has_end)>& take) {
  constexpr int64_t kPiece = int64_t{4} << 20;
  std::string piece, line;
  for (int64_t at = 0; at < file.size(); at += static_cast<int64_t>(piece.size())) {
    piece.resize(static_cast<size_t>(std::min(kPiece, file.size() - at)));
    CAROUSEL_RETURN_IF_ERROR(file.ReadAt(at, piece.data(), static_cast<int64_t>(piece.size())));
    size_t begin = 0;
    for (size_t end; (end = piece.find('\n', begin)) != std::string::npos; begin = end + 1) {
      line.append(piece, begin, end - begin);
      take(line, true);
      line.clear();
    }
    line.append(piece, begin);
  }
  if (!line.empty()) take(line, false);
  return absl::OkStatus();
}

// Stands for a line among millions: 128 bits, so that no two of them are taken for one.
using LineHash = std::pair<size_t, size_t>;
LineHash HashOfLine(const std::string& line) { return {absl::HashOf(line), absl::HashOf("again", line)}; }

struct ByteRange {
  int64_t begin = 0, end = 0;
};
std::string Without(const std::string& text, const std::vector<ByteRange>& ranges) {
  std::string kept;
  int64_t at = 0;
  const auto keep_to = [&](int64_t end) {
    kept.append(text, static_cast<size_t>(at), static_cast<size_t>(end - at));
  };
  for (const ByteRange& range : ranges) {
    keep_to(range.begin);
    at = range.end;
  }
  keep_to(static_cast<int64_t>(text.size()));
  return kept;
}

Json JsonOf(const std::vector<RankTimings::Rank>& ranks) {
  Json list = Json::array();
  for (const RankTimings::Rank& r : ranks) {
    list.push_back(
        Json{{"rank", r.rank}, {"host", r.host}, {"seconds", r.seconds}, {"percent_over", r.percent_over}});
  }
  return list;
}
Json JsonOf(const RankTimings& t) {
  Json json = {{"num_steps", t.num_steps},     {"num_ranks", t.num_ranks},
               {"min_seconds", t.min_seconds}, {"median_seconds", t.median_seconds},
               {"max_seconds", t.max_seconds}, {"worst", JsonOf(t.worst)},
               {"chronic", JsonOf(t.chronic)}};
  if (!t.crowded_hosts.empty()) json["crowded_hosts"] = t.crowded_hosts;
  return json;
}

Json JsonOf(const ValueStats& s) {
  return {{"mean", s.mean},   {"rms", s.rms},     {"min", s.min},       {"max", s.max},
          {"below", s.below}, {"above", s.above}, {"beyond", s.beyond}, {"num_non_finite", s.num_non_finite}};
}

// Text from a model need not be UTF-8, which JSON must be.
std::string Dump(const Json& json) {
  return json.dump(-1, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace);
}
}  // namespace

absl::StatusOr<std::unique_ptr<MetricsFile>> MetricsFile::Open(const std::string& path,
                                                               int64_t finished_steps) {
  std::unique_ptr<MetricsFile> file(new MetricsFile(path));
  CAROUSEL_RETURN_IF_ERROR(file->Rewind(finished_steps));
  return file;
}

absl::Status MetricsFile::Rewind(int64_t finished_steps) {
  PosixFileSystem files;
  CAROUSEL_ASSIGN_OR_RETURN(const FileInfo info, files.Stat(path_));
  int64_t last_evaluated = -1, last_sampled = -1, last_saved = -1;
  std::vector<ByteRange> dropped;
  if (info.exists) {
    int64_t at = 0, end_of_kept = 0;
    bool ends = true;  // the last line that is kept has its line feed
    std::unordered_set<LineHash, absl::Hash<LineHash>>
        seen;  // DropLines says how a line comes to be there twice
    CAROUSEL_ASSIGN_OR_RETURN(const std::unique_ptr<ReadableFile> file, files.OpenFile(path_));
    CAROUSEL_RETURN_IF_ERROR(ForEachLine(*file, [&](const std::string& line, bool has_end) {
      const int64_t begin = at;
      at += static_cast<int64_t>(line.size()) + (has_end ? 1 : 0);
      const bool repeated = !seen.insert(HashOfLine(line)).second;
      const LineInfo line_info = Inspect(line);
      if (!line_info.whole || line_info.step > finished_steps || repeated) {
        dropped.push_back({begin, at});
        return;
      }
      end_of_kept = at;
      // A last line without its end was cut short, even if what there is of it can be read.
      ends = has_end;
      if (line_info.evaluation) last_evaluated = std::max(last_evaluated, line_info.step);
      if (line_info.sample) last_sampled = std::max(last_sampled, line_info.step);
      if (line_info.saved) last_saved = std::max(last_saved, line_info.step);
    }));
    file_.reset();
    if (!ends || (!dropped.empty() && dropped.front().begin < end_of_kept)) {
      CAROUSEL_ASSIGN_OR_RETURN(const std::string old, ReadFile(files, path_, kMaxFileBytes));
      CAROUSEL_RETURN_IF_ERROR(DropLines(path_, old, Without(old, dropped) + (ends ? "" : "\n")));
    } else if (!dropped.empty()) {
      CAROUSEL_RETURN_IF_ERROR(CutFile(path_, end_of_kept));
    }
  }
  CAROUSEL_ASSIGN_OR_RETURN(file_, AppendedFile::Open(path_));
  num_dropped_lines_ = static_cast<int64_t>(dropped.size());
  last_evaluated_step_ = last_evaluated;
  last_sampled_step_ = last_sampled;
  last_saved_step_ = last_saved;
  return absl::OkStatus();
}

absl::Status MetricsFile::AppendLine(const std::string& line) {
  // Closed if going back failed half way.
  if (file_ == nullptr) {
    CAROUSEL_ASSIGN_OR_RETURN(file_, AppendedFile::Open(path_));
  }
  return file_->Append(line + "\n");
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
  json["communication_seconds"] = metrics.communication_seconds;
  json["checkpoint_seconds"] = metrics.checkpoint_seconds;
  if (std::isfinite(metrics.loss_z)) json["loss_z"] = metrics.loss_z;
  if (std::isfinite(metrics.grad_norm_z)) json["grad_norm_z"] = metrics.grad_norm_z;
  if (metrics.logged) {
    json["memory_bytes"] = metrics.memory_bytes;
    json["flops_per_second"] = metrics.flops_per_second;
    if (std::isfinite(metrics.mfu)) json["mfu"] = metrics.mfu;
    if (metrics.ranks.has_value()) json["ranks"] = JsonOf(*metrics.ranks);
  }
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

absl::Status MetricsFile::AppendGates(const GateStats& stats) {
  Json blocks = Json::array();
  for (const GateStats::Layer& layer : stats.layers) {
    blocks.push_back(Json{{"block", layer.block},
                          {"cell", layer.slstm ? "sLSTM" : "mLSTM"},
                          {"input", JsonOf(layer.input_gate)},
                          {"forget", JsonOf(layer.forget_gate)}});
  }
  Json json;
  json["gates"] = Json{{"step", stats.step},
                       {"blocks", std::move(blocks)},
                       {"logits", JsonOf(stats.logits)},
                       {"log_sum_exp", JsonOf(stats.log_sum_exp)}};
  return AppendLine(Dump(json));
}

absl::Status MetricsFile::AppendHealth(const HealthEvent& event) {
  Json json;
  json["health"] = Json{{"step", event.step}, {"kind", event.kind}, {"message", event.message}};
  return AppendLine(Dump(json));
}
}  // namespace carousel
