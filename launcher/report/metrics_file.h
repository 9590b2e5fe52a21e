// metrics.jsonl: the record of a run, one JSON object per line, appended and never rewritten except when a
// run goes back to a checkpoint. Lines of training steps have "step" at the top; evaluations and samples are
// nested, so that every step stands in the file once:
//
//   {"step":20,"tokens":81920,"loss":3.0712,"grad_norm":1.28,"lr":0.001,"seconds":0.45,"wall_seconds":9.1,
//    "data_wait_seconds":0.01,"communication_seconds":0.002,"checkpoint_seconds":0,
//    "data_digest":"00c0ffee00c0ffee","skipped":false}
//   {"evaluation":{"step":100,"loss":1.9,"bits_per_byte":2.74,"num_targets":65536,"accuracy":0.47}}
//   {"evaluation":{"step":100,"loss":0.2,"bits_per_byte":null,"num_targets":1820,"accuracy":0.93,
//    "accuracy_by_length":[{"length_from":40,"length_to":59,"count":181,"accuracy":0.98}, ...]}}
//   {"sample":{"step":200,"text":"It is a truth ..."}}
//   {"checkpoint":{"step":200,"outcome":"saved","seconds":1.9,"seconds_stalled":0.02,"bytes":123456,
//    "skipped":0,"failed_in_row":0}}
//   {"gates":{"step":200,"blocks":[{"block":0,"cell":"mLSTM","input":STATS,"forget":STATS}, ...],
//    "logits":STATS,"log_sum_exp":STATS}}
//   {"health":{"step":230,"kind":"straggler","message":"rank 3 on node7 ..."}}
//
// STATS are {"mean":..,"rms":..,"min":..,"max":..,"below":..,"above":..,"beyond":..,"num_non_finite":..} of
// pre-activations (core/train/gate_stats.h); three of them are shares: closed, open, at the cap.
//
// Before "data_digest", a step has "loss_z" and "grad_norm_z" (how many standard deviations it is off) where
// they are known, and every log.every_steps steps "memory_bytes" (resident, of rank 0), "flops_per_second",
// "mfu" where the device's peak is known, and, with several ranks, the seconds per step that they spent
// between collectives:
//   "ranks":{"num_steps":10,"num_ranks":16,"min_seconds":0.40,"median_seconds":0.41,"max_seconds":0.47,
//            "worst":[{"rank":3,"host":"node7","seconds":0.47,"percent_over":14.6}, ...],"chronic":[...]}
// and "crowded_hosts" if ranks share cores on some: their times say nothing, no rank there is "chronic".
// Everything from "seconds" to before "data_digest" depends on clocks or on how the ranks are arranged; the
// rest does not.
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
#include "launcher/report/appended_file.h"
#include "launcher/report/metrics_sink.h"

namespace carousel {

class MetricsFile final : public MetricsSink {
 public:
  // Opens the file, or makes it, for a run that has `finished_steps` steps behind it: lines of later steps
  // are of a life that did not reach its next checkpoint, so they are dropped, and so are lines that are not
  // JSON objects (a write cut short). If anything is dropped, the rest is written to a new file that takes
  // the place of the old one (synced, renamed); otherwise nothing is touched.
  static absl::StatusOr<std::unique_ptr<MetricsFile>> Open(const std::string& path, int64_t finished_steps);

  // Each appends one line in one write, visible to readers at once. If it fails (a full disk), the part that
  // was written is taken back, so the file stays whole; the caller may go on and append later lines.
  absl::Status Append(const StepMetrics& metrics) override;
  // Nothing is appended for a step whose evaluation (sample) stands in the file already: a run that goes on
  // from its last step evaluates that step again.
  absl::Status AppendEvaluation(const EvaluationReport& report) override;
  absl::Status AppendSample(int64_t step, const std::string& text) override;

  absl::Status AppendCheckpoint(const CheckpointMetrics& metrics) override;
  absl::Status AppendGates(const GateStats& stats) override;
  absl::Status AppendHealth(const HealthEvent& event) override;
  // As Open, of the open file.
  absl::Status Rewind(int64_t finished_steps) override;

  std::string name() const override { return "metrics.jsonl"; }

  // Of the checkpoints noted as saved or found; -1: none.
  int64_t last_saved_step() const { return last_saved_step_; }
  const std::string& path() const { return path_; }
  int64_t num_dropped_lines() const { return num_dropped_lines_; }

 private:
  explicit MetricsFile(std::string path) : path_(std::move(path)) {}
  absl::Status AppendLine(const std::string& line);

  std::string path_;
  std::unique_ptr<AppendedFile> file_;
  int64_t num_dropped_lines_ = 0;
  int64_t last_evaluated_step_ = -1, last_sampled_step_ = -1, last_saved_step_ = -1;
};
}  // namespace carousel
