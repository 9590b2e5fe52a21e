// MetricsSinks: everything that a run reports goes to all of these. One that fails harms neither training nor
// the others: it is warned about when it begins to fail and when it works again, not at every step.
#pragma once
#include <functional>
#include <memory>
#include <vector>

#include "launcher/report/metrics_sink.h"

namespace carousel {

class MetricsSinks final : public MetricsSink {
 public:
  void Add(std::unique_ptr<MetricsSink> sink) { entries_.push_back({.sink = std::move(sink)}); }
  // Called with every step before the sinks get it: fills in what whoever reports it does not know.
  void CompleteSteps(std::function<void(StepMetrics*)> complete) { complete_ = std::move(complete); }

  std::string name() const override { return "metrics"; }
  // All return OK.
  absl::Status Start(const RunStart& start) override;
  absl::Status Append(const StepMetrics& reported) override;
  absl::Status AppendEvaluation(const EvaluationReport& report) override;
  absl::Status AppendSample(int64_t step, const std::string& text) override;
  absl::Status AppendCheckpoint(const CheckpointMetrics& metrics) override;
  absl::Status AppendGates(const GateStats& stats) override;
  absl::Status AppendHealth(const HealthEvent& event) override;
  absl::Status Rewind(int64_t finished_steps) override;
  absl::Status End(int64_t step, const std::string& why) override;

 private:
  struct Entry {
    std::unique_ptr<MetricsSink> sink;
    int64_t failures_in_row = 0;
  };
  template <class Call>
  absl::Status ForEach(const Call& call);

  std::vector<Entry> entries_;
  std::function<void(StepMetrics*)> complete_;
};
}  // namespace carousel
