// metrics.jsonl: the record of a run, one JSON object per line, appended and never rewritten except when a
// run goes back to a checkpoint. Lines of training steps have "step" at the top; evaluations and samples are
// nested, so that every step stands in the file once:
//
//   {"step":20,"tokens":81920,"loss":3.0712,"grad_norm":1.28,"lr":0.001,"seconds":0.45,"wall_seconds":9.1,
//    "data_wait_seconds":0.01,"data_digest":"00c0ffee00c0ffee","skipped":false}
//   {"evaluation":{"step":100,"loss":1.9,"bits_per_byte":2.74,"num_targets":65536,"accuracy":0.47}}
//   {"evaluation":{"step":100,"loss":0.2,"bits_per_byte":null,"num_targets":1820,"accuracy":0.93,
//    "accuracy_by_length":[{"length_from":40,"length_to":59,"count":181,"accuracy":0.98}, ...]}}
//   {"sample":{"step":200,"text":"It is a truth ..."}}
//   {"checkpoint":{"step":200,"outcome":"saved","seconds":1.9,"seconds_stalled":0.02,"bytes":123456,
//    "skipped":0,"failed_in_row":0}}
//
// "outcome" of a checkpoint that was due at "step": "saved"; "failed", with a "message"; "skipped": not
// begun, since the one before was still being written; "found": there when the run went on from it, though
// the run did not live to note it. "seconds" is from the step until it was there, "seconds_stalled" how long
// training waited, "skipped" how many were skipped since the process began. The line stands after those of
// the steps that were trained meanwhile.
//
// "accuracy" is the share of the targets that had the largest logit. A task's evaluation has
// "accuracy_by_length": at most 12 ranges of problem lengths, both ends included (core/train/accuracy.h).
// Where the data come from a source of known entropy, there are "source_entropy" in nats per token and
// "excess_percent", how far the loss is above it. "step" counts finished steps from 1. Numbers are written so
// that reading them gives the same bits; what is not finite is null.
#pragma once
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "launcher/evaluation_report.h"

namespace carousel {

struct StepMetrics {
  int64_t step = 0;    // finished steps, this one included
  int64_t tokens = 0;  // since the beginning of the run
  double loss = 0;     // nats per target token
  double grad_norm = 0, lr = 0;
  double seconds = 0;       // of this step
  double wall_seconds = 0;  // of all steps of the run
  double data_wait_seconds = 0;
  uint64_t data_digest = 0;
  bool skipped = false;
};

struct CheckpointMetrics {
  int64_t step = 0;
  std::string outcome;
  double seconds = 0, seconds_stalled = 0;
  int64_t num_bytes = 0;  // of the shards of all ranks
  int64_t num_skipped = 0, failed_in_row = 0;
  std::string message = {};
};

class MetricsFile {
 public:
  // Opens the file, or makes it, for a run that has `finished_steps` steps behind it: lines of later steps
  // are of a life that did not reach its next checkpoint, so they are dropped, and so are lines that are not
  // JSON objects (a write cut short). If anything is dropped, the rest is written to a new file that takes
  // the place of the old one (synced, renamed); otherwise nothing is touched.
  static absl::StatusOr<std::unique_ptr<MetricsFile>> Open(const std::string& path, int64_t finished_steps);
  ~MetricsFile();
  MetricsFile(const MetricsFile&) = delete;
  MetricsFile& operator=(const MetricsFile&) = delete;

  // Each appends one line in one write, visible to readers at once. If it fails (a full disk), the part that
  // was written is taken back, so the file stays whole; the caller may go on and append later lines.
  absl::Status Append(const StepMetrics& metrics);
  // Nothing is appended for a step whose evaluation (sample) stands in the file already: a run that goes on
  // from its last step evaluates that step again.
  absl::Status AppendEvaluation(const EvaluationReport& report);
  absl::Status AppendSample(int64_t step, const std::string& text);

  absl::Status AppendCheckpoint(const CheckpointMetrics& metrics);

  // Of the checkpoints noted as saved or found; -1: none.
  int64_t last_saved_step() const { return last_saved_step_; }
  const std::string& path() const { return path_; }
  int64_t num_dropped_lines() const { return num_dropped_lines_; }

 private:
  MetricsFile(std::string path, int fd) : path_(std::move(path)), fd_(fd) {}
  absl::Status AppendLine(const std::string& line);

  std::string path_;
  int fd_;
  int64_t num_dropped_lines_ = 0;
  int64_t last_evaluated_step_ = -1, last_sampled_step_ = -1, last_saved_step_ = -1;
};
}  // namespace carousel
