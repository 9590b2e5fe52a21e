#include "launcher/report/run_reporter.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <span>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "core/base/log.h"
#include "core/comm/comm_time.h"
#include "kernels/cuda/profiler.h"
#include "launcher/plan/device_peak.h"
#include "launcher/report/html_report_sink.h"
#include "launcher/report/prometheus_sink.h"
#include "launcher/report/tensorboard_sink.h"
#include "launcher/version.h"

namespace carousel {
namespace {

std::string DescribeDevice(const Device& device) {
  const std::string model = cuda::ModelName(device.name());
  return model.empty() ? device.name() : absl::StrCat(device.name(), " (", model, ")");
}

// Whether the rank's threads take turns on its cores. Beside a GPU they mostly sleep.
bool IsCrowded(const RunSpec& run, const Environment& environment, const Device& device) {
  const int64_t threads = run.threads > 0 ? run.threads : environment.default_threads();
  return device.name() == "cpu" && environment.own_cores() > 0 &&
         static_cast<double>(threads) > environment.own_cores() + 1e-6;
}
}  // namespace

std::string DescribeMesh(const Mesh& mesh) {
  std::vector<std::string> axes;
  const auto add = [&](const char* name, const Axis& axis) {
    if (axis.size > 1) axes.push_back(absl::StrCat(name, " ", axis.size));
  };
  add("pipe", mesh.pipe);
  add("replicate", mesh.replicate);
  add("shard", mesh.shard);
  add("sequence", mesh.sequence);
  add("tensor", mesh.tensor);
  return axes.empty() ? "one rank" : absl::StrJoin(axes, ", ");
}

double UnigramEntropy(const Dataset& data, int64_t vocab_size, int64_t max_tokens) {
  // Pieces at even distances, of each source in proportion to its tokens.
  constexpr int64_t kPiece = 4096;
  const int64_t total = data.num_tokens();
  if (total <= 0 || vocab_size <= 0) return 0;
  std::vector<int64_t> counts(static_cast<size_t>(vocab_size));
  std::vector<int32_t> ids(kPiece);
  int64_t counted = 0;
  for (int64_t source = 0; source < data.num_sources(); ++source) {
    const TokenFile& file = data.file(source);
    const int64_t stride = std::max(kPiece, kPiece * (total / std::max<int64_t>(max_tokens, 1)));
    for (int64_t begin = 0; begin < file.num_tokens(); begin += stride) {
      const int64_t n = std::min(kPiece, file.num_tokens() - begin);
      file.Read(begin, std::span<int32_t>(ids.data(), static_cast<size_t>(n)));
      for (int64_t i = 0; i < n; ++i) {
        const int64_t id = ids[static_cast<size_t>(i)];
        if (id >= 0 && id < vocab_size) ++counts[static_cast<size_t>(id)], ++counted;
      }
    }
  }
  double entropy = 0;
  for (const int64_t count : counts) {
    if (count == 0) continue;
    const double p = static_cast<double>(count) / static_cast<double>(counted);
    entropy -= p * std::log(p);
  }
  return entropy;
}

RunReporter::RunReporter(const RunSpec& run, Environment& environment, const Mesh& mesh, Device& device,
                         const std::optional<ProfileSpec>& profile)
    : run_(run),
      environment_(environment),
      mesh_(mesh),
      device_(device),
      flops_per_step_(TrainFlopsPerToken(run.model, run.sequence_length) *
                      static_cast<double>(run.global_batch * run.sequence_length)),
      peak_flops_(run.log.peak_flops > 0 ? run.log.peak_flops
                                         : PeakFlops(cuda::ModelName(device.name()), run.compute)),
      stragglers_(environment.world(),
                  {.host = environment.host(),
                   .stage = mesh.pipe.index,
                   .crowded = IsCrowded(run, environment, device)},
                  run.log.straggler_percent, run.log.straggler_steps) {
  const auto named = [&](int64_t rank) { return rank == environment.rank(); };
  if (profile.has_value() && std::any_of(profile->ranks.begin(), profile->ranks.end(), named)) {
    profiler_ =
        std::make_unique<RunProfiler>(*profile, device, run.run_dir, environment.rank(), environment.host());
  }
}

RunReporter::~RunReporter() = default;

absl::Status RunReporter::Open(const RunStart& given, const Dataset& data, MetricsSinks* sinks,
                               Console* console) {
  sinks_ = sinks;
  console_ = console;
  if (run_.log.tensorboard) {
    sinks->Add(std::make_unique<TensorboardSink>(run_.run_dir + "/tensorboard", environment_.host()));
  }
  if (run_.log.prometheus) {
    sinks->Add(std::make_unique<PrometheusSink>(
        run_.log.prometheus_path.empty() ? run_.run_dir + "/metrics.prom" : run_.log.prometheus_path,
        run_.run_dir, /*seconds_between=*/1));
  }
  sinks->Add(std::make_unique<HtmlReportSink>(run_.run_dir, run_.log.report, run_.log.report_every_seconds));
  sinks->CompleteSteps([this](StepMetrics* metrics) { Complete(metrics); });

  RunStart start = given;
  start.total_steps = run_.steps;
  start.num_ranks = environment_.size();
  for (const RankPlace& place : stragglers_.places()) {
    if (std::find(start.hosts.begin(), start.hosts.end(), place.host) == start.hosts.end()) {
      start.hosts.push_back(place.host);
    }
  }
  start.mesh = DescribeMesh(mesh_);
  start.device = DescribeDevice(device_);
  start.build = VersionLine();
  start.config = run_.resolved_text;
  start.num_parameters = NumParameters(run_.model);
  start.tokens_per_step = run_.global_batch * run_.sequence_length;
  start.vocab_size = run_.model.vocab_size;
  start.unigram_entropy =
      run_.tokenizer == TokenizerKind::kTask ? 0 : UnigramEntropy(data, run_.model.vocab_size);
  start.unix_seconds =
      std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  return sinks->Start(start);
}

void RunReporter::BeforeStep(int64_t step) {
  collectives_before_ = ThreadCollectiveSeconds();
  checkpoint_seconds_ = 0;
  if (profiler_ != nullptr) profiler_->BeforeStep(step);
  // For profilers of the device: everything until AfterStep belongs to it. A step that did not count has no
  // AfterStep.
  if (in_step_) device().ops().EndRange();
  in_step_ = true;
  device().ops().BeginRange(absl::StrCat("step ", step).c_str());
}

void RunReporter::AfterStep(int64_t step, double seconds, double data_wait_seconds) {
  device().ops().EndRange();
  in_step_ = false;
  communication_seconds_ = ThreadCollectiveSeconds() - collectives_before_;
  if (profiler_ != nullptr) {
    const absl::StatusOr<std::string> text = profiler_->AfterStep(step, mesh_);
    if (!text.ok()) {
      CAROUSEL_LOG(WARNING) << "the profile could not be written: " << text.status().message();
    } else if (!text->empty() && console_ != nullptr) {
      console_->Message(*text);
    } else if (!text->empty()) {
      CAROUSEL_LOG(INFO) << *text;
    }
  }
  // The first step makes the libraries' kernels; that says nothing about a rank.
  if (!first_step_) stragglers_.AddStep(std::max(0.0, seconds - communication_seconds_));
  const bool first = std::exchange(first_step_, false);
  ++interval_.num_steps;
  interval_.seconds += seconds;
  interval_.communication += communication_seconds_;
  interval_.checkpoint += checkpoint_seconds_;

  logged_ = first || step % run_.log_every_steps == 0 || step >= run_.steps;
  if (!logged_) return;
  measured_ = {};
  measured_.ranks = stragglers_.Compare();
  if (environment_.rank() == 0) {
    Measure(step);
    if (console_ != nullptr && interval_.seconds > 0) {
      const auto percent = [&](double part) { return 100 * part / interval_.seconds; };
      console_->SetRates({.flops_per_second = measured_.flops_per_second,
                          .mfu = measured_.mfu,
                          .data_percent = percent(data_wait_seconds - interval_.data_wait_before),
                          .checkpoint_percent = percent(interval_.checkpoint),
                          .communication_percent = percent(interval_.communication)});
    }
  }
  interval_ = {.data_wait_before = data_wait_seconds};
}

void RunReporter::Measure(int64_t step) {
  measured_.memory_bytes = ResidentBytes();
  if (interval_.seconds > 0) {
    measured_.flops_per_second =
        flops_per_step_ * static_cast<double>(interval_.num_steps) / interval_.seconds;
  }
  if (peak_flops_ > 0) {
    measured_.mfu = measured_.flops_per_second / (peak_flops_ * static_cast<double>(environment_.size()));
  }
  const auto note = [&](const std::string& message) {
    CAROUSEL_LOG(WARNING) << message;
    if (sinks_ != nullptr) {
      static_cast<void>(sinks_->AppendHealth({.step = step, .kind = "straggler", .message = message}));
    }
  };
  if (const std::string& host = stragglers_.newly_crowded(); !host.empty()) {
    note(absl::StrCat(
        "ranks on ", host,
        " compute with more threads than they have cores and wait for each other there: which of "
        "them is slow is not told (start fewer ranks per machine, or lower parallel.threads)"));
  }
  for (const RankTimings::Rank& rank : stragglers_.newly_chronic()) {
    const std::string message = absl::StrFormat(
        "rank %d on %s is slow: %.4g s per step between collectives, %.1f %% above the median, for at least "
        "%d "
        "steps; everybody waits for it (carousel doctor on that machine may say why)",
        rank.rank, rank.host, rank.seconds, rank.percent_over, stragglers_.steps());
    note(message);
  }
}

void RunReporter::Complete(StepMetrics* metrics) const {
  metrics->communication_seconds = communication_seconds_;
  metrics->checkpoint_seconds = checkpoint_seconds_;
  metrics->logged = logged_;
  if (!logged_) return;
  metrics->memory_bytes = measured_.memory_bytes;
  metrics->flops_per_second = measured_.flops_per_second;
  metrics->mfu = measured_.mfu;
  metrics->ranks = measured_.ranks;
}
}  // namespace carousel
