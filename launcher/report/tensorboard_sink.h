// TensorboardSink: a run in TensorBoard, under <run_dir>/tensorboard: one event file per start. Tags:
//   loss/train, loss/validation, loss/source_entropy, accuracy/validation, optimizer/grad_norm,
//   optimizer/lr, optimizer/skipped                    every step, every evaluation
//   speed/tokens_per_second, speed/step_seconds, speed/data_wait_seconds, speed/communication_seconds,
//   speed/checkpoint_seconds                           every step
//   speed/tflops, speed/mfu_percent, memory/resident_mib, ranks/median_seconds, ranks/slowest_seconds
//                                                      every log interval
//   gates_input/..., gates_forget/..., logits/...      when they are measured
//   checkpoint/seconds, checkpoint/seconds_stalled     of every one that was saved
// and as text: config, command, sample, health. HParams: the fields of the config that a number, a word or a
// truth value is.
#pragma once
#include <memory>
#include <string>

#include "launcher/report/metrics_sink.h"
#include "launcher/report/tensorboard_events.h"

namespace carousel {

class TensorboardSink final : public MetricsSink {
 public:
  // dir: of the event files; made when the run starts.
  TensorboardSink(std::string dir, std::string host) : dir_(std::move(dir)), host_(std::move(host)) {}

  std::string name() const override { return "tensorboard"; }
  absl::Status Start(const RunStart& start) override;
  absl::Status Append(const StepMetrics& metrics) override;
  absl::Status AppendEvaluation(const EvaluationReport& report) override;
  absl::Status AppendSample(int64_t step, const std::string& text) override;
  absl::Status AppendCheckpoint(const CheckpointMetrics& metrics) override;
  absl::Status AppendGates(const GateStats& stats) override;
  absl::Status AppendHealth(const HealthEvent& event) override;
  absl::Status Rewind(int64_t finished_steps) override;
  absl::Status End(int64_t step, const std::string& why) override;

 private:
  // The open file; opened again if it could not be before.
  absl::StatusOr<TensorboardFile*> File();

  const std::string dir_, host_;
  std::unique_ptr<TensorboardFile> file_;
  int64_t first_step_ = 1;     // of what the next file will hold
  int64_t last_tokens_ = -1;   // of the step before
  double last_data_wait_ = 0;  // StepMetrics::data_wait_seconds of the step before
};

}  // namespace carousel
