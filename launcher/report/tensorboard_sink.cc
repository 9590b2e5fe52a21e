#include "launcher/report/tensorboard_sink.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "core/base/status_macros.h"
#include "core/text/utf8.h"
#include "launcher/config_leaves.h"

namespace carousel {
namespace {
using Scalars = std::vector<std::pair<std::string, double>>;

// Text as it is, in a font of equal widths: every line is code in Markdown.
std::string Verbatim(const std::string& text) {
  const std::string valid = ValidUtf8(text);
  std::string result;
  for (const absl::string_view line : absl::StrSplit(valid, '\n')) {
    absl::StrAppend(&result, "    ", line, "\n");
  }
  return result;
}

void AddGate(const std::string& prefix, const ValueStats& stats, Scalars* values) {
  if (stats.count == 0) return;
  values->emplace_back(prefix + "_mean", stats.mean);
  values->emplace_back(prefix + "_min", stats.min);
  values->emplace_back(prefix + "_max", stats.max);
  values->emplace_back(prefix + "_at_cap", stats.beyond);
}
}  // namespace

absl::StatusOr<TensorboardFile*> TensorboardSink::File() {
  if (file_ == nullptr) {
    CAROUSEL_ASSIGN_OR_RETURN(file_, TensorboardFile::Create(dir_, host_, first_step_));
  }
  return file_.get();
}

absl::Status TensorboardSink::Start(const RunStart& start) {
  first_step_ = start.step + 1;
  CAROUSEL_ASSIGN_OR_RETURN(TensorboardFile * file, File());
  CAROUSEL_RETURN_IF_ERROR(file->Text(start.step, "config", Verbatim(start.config)));
  CAROUSEL_RETURN_IF_ERROR(
      file->Text(start.step, "command",
                 Verbatim(absl::StrCat("start ", start.attempt, ": ", start.command, "\n", start.build, "\n",
                                       start.num_ranks, " ranks, ", start.mesh, ", ", start.device))));
  return file->Hparams(ConfigLeaves(start.config));
}

absl::Status TensorboardSink::Append(const StepMetrics& m) {
  CAROUSEL_ASSIGN_OR_RETURN(TensorboardFile * file, File());
  first_step_ = m.step + 1;
  Scalars values = {{"loss/train", m.loss},
                    {"optimizer/grad_norm", m.grad_norm},
                    {"optimizer/lr", m.lr},
                    {"optimizer/skipped", m.skipped ? 1.0 : 0.0},
                    {"speed/step_seconds", m.seconds},
                    {"speed/communication_seconds", m.communication_seconds},
                    {"speed/checkpoint_seconds", m.checkpoint_seconds},
                    {"speed/data_wait_seconds", std::max(0.0, m.data_wait_seconds - last_data_wait_)}};
  if (last_tokens_ >= 0 && m.seconds > 0) {
    values.emplace_back("speed/tokens_per_second", static_cast<double>(m.tokens - last_tokens_) / m.seconds);
  }
  last_tokens_ = m.tokens;
  last_data_wait_ = m.data_wait_seconds;
  if (std::isfinite(m.loss_z)) values.emplace_back("loss/train_z", m.loss_z);
  if (std::isfinite(m.grad_norm_z)) values.emplace_back("optimizer/grad_norm_z", m.grad_norm_z);
  if (m.logged) {
    values.emplace_back("memory/resident_mib", static_cast<double>(m.memory_bytes) / (1 << 20));
    values.emplace_back("speed/tflops", m.flops_per_second / 1e12);
    if (std::isfinite(m.mfu)) values.emplace_back("speed/mfu_percent", 100 * m.mfu);
    if (m.ranks.has_value()) {
      values.emplace_back("ranks/fastest_seconds", m.ranks->min_seconds);
      values.emplace_back("ranks/median_seconds", m.ranks->median_seconds);
      values.emplace_back("ranks/slowest_seconds", m.ranks->max_seconds);
    }
  }
  return file->Scalars(m.step, values);
}

absl::Status TensorboardSink::AppendEvaluation(const EvaluationReport& report) {
  CAROUSEL_ASSIGN_OR_RETURN(TensorboardFile * file, File());
  Scalars values = {{"loss/validation", report.loss}, {"accuracy/validation", report.accuracy}};
  if (std::isfinite(report.bits_per_byte)) {
    values.emplace_back("loss/validation_bits_per_byte", report.bits_per_byte);
  }
  if (report.source_entropy > 0) values.emplace_back("loss/source_entropy", report.source_entropy);
  for (const LengthBucket& bucket : report.by_length) {
    values.emplace_back(absl::StrFormat("accuracy_by_length/%d_to_%d", bucket.first, bucket.last),
                        bucket.accuracy());
  }
  return file->Scalars(report.step, values);
}

absl::Status TensorboardSink::AppendSample(int64_t step, const std::string& text) {
  CAROUSEL_ASSIGN_OR_RETURN(TensorboardFile * file, File());
  return file->Text(step, "sample", Verbatim(text));
}

absl::Status TensorboardSink::AppendCheckpoint(const CheckpointMetrics& metrics) {
  if (metrics.outcome != "saved") return absl::OkStatus();
  CAROUSEL_ASSIGN_OR_RETURN(TensorboardFile * file, File());
  return file->Scalars(metrics.step, {{"checkpoint/seconds", metrics.seconds},
                                      {"checkpoint/seconds_stalled", metrics.seconds_stalled}});
}

absl::Status TensorboardSink::AppendGates(const GateStats& stats) {
  CAROUSEL_ASSIGN_OR_RETURN(TensorboardFile * file, File());
  Scalars values;
  for (const GateStats::Layer& layer : stats.layers) {
    AddGate(absl::StrFormat("gates_input/block_%02d", layer.block), layer.input_gate, &values);
    AddGate(absl::StrFormat("gates_forget/block_%02d", layer.block), layer.forget_gate, &values);
  }
  if (stats.logits.count > 0) {
    values.emplace_back("logits/max", stats.logits.max);
    values.emplace_back("logits/rms", stats.logits.rms);
    values.emplace_back("logits/at_cap", stats.logits.beyond);
  }
  if (stats.log_sum_exp.count > 0) values.emplace_back("logits/log_sum_exp", stats.log_sum_exp.mean);
  return file->Scalars(stats.step, values);
}

absl::Status TensorboardSink::AppendHealth(const HealthEvent& event) {
  CAROUSEL_ASSIGN_OR_RETURN(TensorboardFile * file, File());
  return file->Text(event.step, "health", Verbatim(absl::StrCat(event.kind, ": ", event.message)));
}

absl::Status TensorboardSink::Rewind(int64_t finished_steps) {
  file_.reset();
  first_step_ = finished_steps + 1;
  last_tokens_ = -1;
  return File().status();
}

absl::Status TensorboardSink::End(int64_t, const std::string& why) {
  CAROUSEL_ASSIGN_OR_RETURN(TensorboardFile * file, File());
  return file->HparamsEnd(why == "finished");
}
}  // namespace carousel
