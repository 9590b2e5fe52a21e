// PrometheusSink: the newest numbers of a run in the text format of Prometheus, in a file that
// node_exporter's textfile collector (or anything that can serve a file) reads. Rewritten whole and
// atomically when a log interval ends (seldom more than once a second), and after evaluations, checkpoints
// and the end of the run.
#pragma once
#include <chrono>
#include <map>
#include <optional>
#include <string>

#include "launcher/report/metrics_sink.h"

namespace carousel {

class PrometheusSink final : public MetricsSink {
 public:
  // path: of the file. run: the value of the label "run" of every number. seconds_between: log intervals that
  // end sooner after a write than this wait for the next one (a new file costs a millisecond).
  PrometheusSink(std::string path, std::string run, double seconds_between = 0)
      : path_(std::move(path)), run_(std::move(run)), seconds_between_(seconds_between) {}

  std::string name() const override { return "prometheus"; }
  absl::Status Start(const RunStart& start) override;
  absl::Status Append(const StepMetrics& metrics) override;
  absl::Status AppendEvaluation(const EvaluationReport& report) override;
  // Not shown here; the file is as it was.
  absl::Status AppendSample(int64_t, const std::string&) override { return written_; }
  absl::Status AppendGates(const GateStats&) override { return written_; }
  absl::Status AppendCheckpoint(const CheckpointMetrics& metrics) override;
  absl::Status AppendHealth(const HealthEvent& event) override;
  absl::Status End(int64_t step, const std::string& why) override;

  std::string Text() const;

 private:
  absl::Status Write();

  const std::string path_, run_;
  const double seconds_between_;
  std::chrono::steady_clock::time_point last_write_;
  absl::Status written_;  // of the newest write
  RunStart start_;
  bool running_ = false;
  std::optional<StepMetrics> step_;
  std::optional<EvaluationReport> evaluation_;
  int64_t interval_tokens_ = 0, tokens_before_ = -1;
  double interval_seconds_ = 0, tokens_per_second_ = 0;
  int64_t num_skipped_steps_ = 0;                     // since this process started
  std::map<std::string, int64_t> checkpoints_;        // by outcome, since this process started
  std::optional<CheckpointMetrics> last_checkpoint_;  // that was saved
  std::map<std::string, int64_t> health_;             // events by kind, since this process started
};

// A label's value as the format wants it: backslash, quote and line break escaped.
std::string EscapedLabel(const std::string& value);
}  // namespace carousel
