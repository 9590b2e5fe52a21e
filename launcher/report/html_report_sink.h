// HtmlReportSink: keeps <run_dir>/report.html up to date while a run goes on, and starts.jsonl. A thread of
// low priority reads what was appended to metrics.jsonl and draws the page every so many seconds: the loop
// gives it nothing and never waits for it, apart from the last page.
#pragma once
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "launcher/report/metrics_sink.h"

namespace carousel {

class HtmlReportSink final : public MetricsSink {
 public:
  // page: whether to draw one; starts.jsonl is kept in any case. seconds_between: 0: only at the end.
  HtmlReportSink(std::string run_dir, bool page, double seconds_between);
  ~HtmlReportSink() override;

  std::string name() const override { return "report.html"; }
  absl::Status Start(const RunStart& start) override;
  absl::Status Append(const StepMetrics&) override { return absl::OkStatus(); }
  absl::Status AppendEvaluation(const EvaluationReport&) override { return absl::OkStatus(); }
  absl::Status AppendSample(int64_t, const std::string&) override { return absl::OkStatus(); }
  absl::Status AppendCheckpoint(const CheckpointMetrics&) override { return absl::OkStatus(); }
  absl::Status End(int64_t step, const std::string& why) override;

 private:
  class Drawer;
  void Loop();
  void StopThread();

  const std::string run_dir_;
  const bool page_;
  const double seconds_between_;
  int64_t attempt_ = 1;
  std::unique_ptr<Drawer> drawer_;  // of the thread while it runs
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stop_ = false;
  std::thread thread_;
};
}  // namespace carousel
