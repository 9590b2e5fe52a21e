#include "launcher/report/prometheus_sink.h"

#include <cmath>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "core/text/utf8.h"
#include "launcher/report/appended_file.h"

namespace carousel {
namespace {

std::string Number(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value > 0 ? "+Inf" : "-Inf";
  return absl::StrFormat("%.17g", value);
}

// Metric families, each with its help before its samples.
class Writer {
 public:
  using Labels = std::vector<std::pair<std::string, std::string>>;
  explicit Writer(const std::string& run) : run_(EscapedLabel(run)) {}

  void Family(const std::string& name, const char* type, const char* help) {
    name_ = absl::StrCat("carousel_", name);
    absl::StrAppend(&text_, "# HELP ", name_, " ", help, "\n# TYPE ", name_, " ", type, "\n");
  }
  void Sample(double value, const Labels& labels = {}) {
    absl::StrAppend(&text_, name_, "{run=\"", run_, "\"");
    for (const auto& [label, content] : labels) {
      absl::StrAppend(&text_, ",", label, "=\"", EscapedLabel(content), "\"");
    }
    absl::StrAppend(&text_, "} ", Number(value), "\n");
  }
  void Gauge(const std::string& name, const char* help, double value) {
    Family(name, "gauge", help);
    Sample(value);
  }
  void Counter(const std::string& name, const char* help, double value) {
    Family(name, "counter", help);
    Sample(value);
  }
  std::string TakeText() { return std::move(text_); }

 private:
  const std::string run_;
  std::string name_, text_;
};
double AsDouble(int64_t value) { return static_cast<double>(value); }
}  // namespace

std::string EscapedLabel(const std::string& value) {
  std::string result;
  for (const char c : ValidUtf8(value)) {
    if (c == '\\') {
      result += "\\\\";
    } else if (c == '"') {
      result += "\\\"";
    } else if (c == '\n') {
      result += "\\n";
    } else {
      result += c;
    }
  }
  return result;
}

std::string PrometheusSink::Text() const {
  Writer out(run_);
  out.Gauge("running", "1 while the run trains, 0 when it has ended in an orderly way.", running_);
  out.Family("info", "gauge", "Always 1; the labels say what runs.");
  out.Sample(1, {{"build", start_.build}, {"device", start_.device}, {"mesh", start_.mesh}});
  out.Gauge("start_time_seconds", "When this start of the run began, in seconds since 1970.",
            start_.unix_seconds);
  out.Gauge("attempt", "Which start of the run this is, from 1.", AsDouble(start_.attempt));
  out.Gauge("ranks", "Ranks of the run.", AsDouble(start_.num_ranks));
  out.Gauge("parameters", "Parameters of the model.", AsDouble(start_.num_parameters));
  out.Gauge("steps_planned", "Steps when the run will be finished.", AsDouble(start_.total_steps));
  out.Counter("steps_total", "Finished steps.", AsDouble(step_.has_value() ? step_->step : start_.step));
  if (step_.has_value()) {
    const StepMetrics& m = *step_;
    out.Counter("tokens_total", "Tokens of the finished steps.", AsDouble(m.tokens));
    out.Gauge("loss", "Training loss of the newest step, nats per target token.", m.loss);
    out.Gauge("grad_norm", "Norm of the newest gradient before clipping.", m.grad_norm);
    out.Gauge("learning_rate", "Learning rate of the newest step.", m.lr);
    out.Gauge("step_seconds", "Seconds of the newest step.", m.seconds);
    out.Counter("wall_seconds_total", "Seconds of the run, earlier starts included.", m.wall_seconds);
    out.Counter("data_wait_seconds_total", "Seconds that training waited for data since this start.",
                m.data_wait_seconds);
    out.Gauge("tokens_per_second", "Tokens per second over the newest log interval.", tokens_per_second_);
    out.Gauge("flops_per_second", "Arithmetic of the model per second over the newest log interval.",
              m.flops_per_second);
    if (std::isfinite(m.mfu)) {
      out.Gauge("mfu_ratio", "flops_per_second as a share of the devices' peak.", m.mfu);
    }
    out.Gauge("memory_bytes", "Resident memory of rank 0.", AsDouble(m.memory_bytes));
    if (m.ranks.has_value()) {
      out.Family("rank_busy_seconds", "gauge", "Seconds per step that ranks spend between collectives.");
      out.Sample(m.ranks->min_seconds, {{"quantile", "0"}});
      out.Sample(m.ranks->median_seconds, {{"quantile", "0.5"}});
      out.Sample(m.ranks->max_seconds, {{"quantile", "1"}});
      out.Family("slow_rank_busy_seconds", "gauge", "The same of the slowest rank of the slowest hosts.");
      for (const RankTimings::Rank& rank : m.ranks->worst) {
        out.Sample(rank.seconds, {{"rank", absl::StrCat(rank.rank)}, {"host", rank.host}});
      }
      out.Gauge("chronic_stragglers", "Ranks that have been too slow for long.",
                AsDouble(static_cast<int64_t>(m.ranks->chronic.size())));
    }
  }
  out.Counter("skipped_steps_total", "Steps without an update since this start.",
              AsDouble(num_skipped_steps_));
  if (evaluation_.has_value()) {
    out.Gauge("validation_loss", "Loss of the newest evaluation, nats per target.", evaluation_->loss);
    out.Gauge("validation_accuracy", "Share of its targets that had the largest logit.",
              evaluation_->accuracy);
    out.Gauge("validation_step", "Step of the newest evaluation.", AsDouble(evaluation_->step));
  }
  if (!checkpoints_.empty()) {
    out.Family("checkpoints_total", "counter", "Checkpoints that were due since this start, by outcome.");
    for (const auto& [outcome, count] : checkpoints_) out.Sample(AsDouble(count), {{"outcome", outcome}});
  }
  if (last_checkpoint_.has_value()) {
    out.Gauge("checkpoint_step", "Step of the newest checkpoint.", AsDouble(last_checkpoint_->step));
    out.Gauge("checkpoint_seconds", "From its step until it was there.", last_checkpoint_->seconds);
    out.Gauge("checkpoint_stall_seconds", "How long training waited for it.",
              last_checkpoint_->seconds_stalled);
  }
  if (!health_.empty()) {
    out.Family("health_events_total", "counter", "What was reported about the run's health, by kind.");
    for (const auto& [kind, count] : health_) out.Sample(AsDouble(count), {{"kind", kind}});
  }
  return out.TakeText();
}

absl::Status PrometheusSink::Write() {
  last_write_ = std::chrono::steady_clock::now();
  written_ = ReplaceFileQuickly(path_, Text());
  if (!written_.ok()) {
    written_ = absl::Status(
        written_.code(), absl::StrCat(written_.message(),
                                      "; log.prometheus_path must name a file in a folder that is there and "
                                      "may be written to (log.prometheus=false writes none)"));
  }
  return written_;
}

absl::Status PrometheusSink::Start(const RunStart& start) {
  start_ = start;
  running_ = true;
  RemoveOldTemporaries(path_);
  return Write();
}

absl::Status PrometheusSink::Append(const StepMetrics& metrics) {
  if (tokens_before_ >= 0) interval_tokens_ += metrics.tokens - tokens_before_;
  if (tokens_before_ >= 0) interval_seconds_ += metrics.seconds;
  tokens_before_ = metrics.tokens;
  num_skipped_steps_ += metrics.skipped;
  if (!metrics.logged) return written_;
  step_ = metrics;
  if (interval_seconds_ > 0) tokens_per_second_ = AsDouble(interval_tokens_) / interval_seconds_;
  interval_tokens_ = 0;
  interval_seconds_ = 0;
  const std::chrono::duration<double> since = std::chrono::steady_clock::now() - last_write_;
  return since.count() < seconds_between_ ? written_ : Write();
}

absl::Status PrometheusSink::AppendEvaluation(const EvaluationReport& report) {
  evaluation_ = report;
  return Write();
}

absl::Status PrometheusSink::AppendCheckpoint(const CheckpointMetrics& metrics) {
  ++checkpoints_[metrics.outcome];
  if (metrics.outcome == "saved" || metrics.outcome == "found") last_checkpoint_ = metrics;
  return Write();
}

absl::Status PrometheusSink::AppendHealth(const HealthEvent& event) {
  ++health_[event.kind];
  return written_;  // written with the next interval
}

absl::Status PrometheusSink::End(int64_t, const std::string&) {
  running_ = false;
  return Write();
}
}  // namespace carousel
