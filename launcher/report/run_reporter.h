// RunReporter: what every rank does so that people can see what a run does. It measures (time in collectives,
// memory, rates, who is slow), profiles the steps that were asked for, and opens the sinks that rank 0 writes
// to. The loop tells it when a step begins and ends.
#pragma once
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "configs/run_spec.h"
#include "core/comm/mesh.h"
#include "core/data/dataset.h"
#include "core/device.h"
#include "launcher/console.h"
#include "launcher/environment.h"
#include "launcher/report/metrics_sinks.h"
#include "launcher/report/rank_timings.h"
#include "launcher/report/run_profiler.h"

namespace carousel {

class RunReporter {
 public:
  // Collective. Everything outlives the reporter.
  RunReporter(const RunSpec& run, Environment& environment, const Mesh& mesh, Device& device,
              const std::optional<ProfileSpec>& profile);
  ~RunReporter();

  // What the trainer shall compute on: the device, or what watches it.
  Device& device() { return profiler_ != nullptr ? profiler_->device() : device_; }

  // Rank 0: adds the sinks that the config asks for beside those that are there, and tells all of them that
  // the run starts. `start` holds attempt, step and command; the rest is filled in. What the reporter
  // measures goes into each step that is given to `sinks`, and to the console.
  absl::Status Open(const RunStart& start, const Dataset& data, MetricsSinks* sinks, Console* console);

  // Around Trainer::Step; step counts from 1.
  void BeforeStep(int64_t step);
  // Training waited for a save so long.
  void AddCheckpointSeconds(double seconds) { checkpoint_seconds_ += seconds; }
  // Collective, before the step is given to the sinks. seconds: of the step. data_wait_seconds: since the
  // process started.
  void AfterStep(int64_t step, double seconds, double data_wait_seconds);

 private:
  void Measure(int64_t step);  // what is known once per log interval
  void Complete(StepMetrics* metrics) const;

  const RunSpec& run_;
  Environment& environment_;
  const Mesh& mesh_;
  Device& device_;
  const double flops_per_step_, peak_flops_;
  std::unique_ptr<RunProfiler> profiler_;
  StragglerWatch stragglers_;
  MetricsSinks* sinks_ = nullptr;  // rank 0
  Console* console_ = nullptr;     // rank 0

  // Of the step in progress, or the last one.
  double collectives_before_ = 0, communication_seconds_ = 0, checkpoint_seconds_ = 0;
  bool first_step_ = true, logged_ = false, in_step_ = false;
  // Of the steps since the last log interval ended.
  struct Interval {
    int64_t num_steps = 0;
    double seconds = 0, communication = 0, checkpoint = 0;
    double data_wait_before = 0;
  } interval_;
  StepMetrics measured_;  // the members of the newest interval
};

// Entropy of single tokens in nats, from up to `max_tokens` tokens spread over the data.
double UnigramEntropy(const Dataset& data, int64_t vocab_size, int64_t max_tokens = 1'000'000);
// "replicate 2, tensor 4"; "one rank".
std::string DescribeMesh(const Mesh& mesh);
}  // namespace carousel
