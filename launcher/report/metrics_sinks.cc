#include "launcher/report/metrics_sinks.h"

#include "core/base/log.h"

namespace carousel {

template <class Call>
absl::Status MetricsSinks::ForEach(const Call& call) {
  for (Entry& entry : entries_) {
    const absl::Status status = call(*entry.sink);
    if (!status.ok()) {
      if (entry.failures_in_row++ == 0) {
        CAROUSEL_LOG(WARNING) << entry.sink->name()
                              << " misses something, training goes on: " << status.message();
      }
    } else if (entry.failures_in_row > 0) {
      CAROUSEL_LOG(WARNING) << entry.sink->name() << " is written again; " << entry.failures_in_row
                            << " records are missing in it";
      entry.failures_in_row = 0;
    }
  }
  return absl::OkStatus();
}

absl::Status MetricsSinks::Start(const RunStart& start) {
  return ForEach([&](MetricsSink& sink) { return sink.Start(start); });
}
absl::Status MetricsSinks::Append(const StepMetrics& reported) {
  StepMetrics metrics = reported;
  if (complete_) complete_(&metrics);
  return ForEach([&](MetricsSink& sink) { return sink.Append(metrics); });
}
absl::Status MetricsSinks::AppendEvaluation(const EvaluationReport& report) {
  return ForEach([&](MetricsSink& sink) { return sink.AppendEvaluation(report); });
}
absl::Status MetricsSinks::AppendSample(int64_t step, const std::string& text) {
  return ForEach([&](MetricsSink& sink) { return sink.AppendSample(step, text); });
}
absl::Status MetricsSinks::AppendCheckpoint(const CheckpointMetrics& metrics) {
  return ForEach([&](MetricsSink& sink) { return sink.AppendCheckpoint(metrics); });
}
absl::Status MetricsSinks::AppendGates(const GateStats& stats) {
  return ForEach([&](MetricsSink& sink) { return sink.AppendGates(stats); });
}
absl::Status MetricsSinks::Rewind(int64_t finished_steps) {
  return ForEach([&](MetricsSink& sink) { return sink.Rewind(finished_steps); });
}
absl::Status MetricsSinks::AppendHealth(const HealthEvent& event) {
  return ForEach([&](MetricsSink& sink) { return sink.AppendHealth(event); });
}
absl::Status MetricsSinks::End(int64_t step, const std::string& why) {
  return ForEach([&](MetricsSink& sink) { return sink.End(step, why); });
}
}  // namespace carousel
