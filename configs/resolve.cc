#include "configs/resolve.h"

#include <google/protobuf/message.h>
#include <google/protobuf/text_format.h>

#include <algorithm>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/base/check.h"
#include "core/text/tokenizer.h"

namespace carousel {
namespace {
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;
using google::protobuf::TextFormat;

constexpr int64_t kDefaultWarmupSteps = 100, kDefaultMicroBatch = 8, kDefaultEvalSteps = 100;

// The largest divisor of n up to `limit`. REQUIRES: n, limit >= 1.
int64_t LargestDivisorUpTo(int64_t n, int64_t limit) {
  for (int64_t d = std::min(n, limit); d > 1; --d) {
    if (n % d == 0) return d;
  }
  return 1;
}

// Gives every unset singular field that has a plain default in the schema (or none but an empty string)
// that value, in this message and below. Derived fields have no default in the schema.
void FillSchemaDefaults(Message* message) {
  const Reflection& reflection = *message->GetReflection();
  const google::protobuf::Descriptor& type = *message->GetDescriptor();
  for (int i = 0; i < type.field_count(); ++i) {
    const FieldDescriptor* field = type.field(i);
    const bool nested = field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE;
    if (field->is_repeated()) {
      for (int j = 0; nested && j < reflection.FieldSize(*message, field); ++j) {
        FillSchemaDefaults(reflection.MutableRepeatedMessage(message, field, j));
      }
      continue;
    }
    if (nested) {
      FillSchemaDefaults(reflection.MutableMessage(message, field));
      continue;
    }
    const bool string = field->cpp_type() == FieldDescriptor::CPPTYPE_STRING;
    if (reflection.HasField(*message, field) || (!field->has_default_value() && !string)) continue;
    switch (field->cpp_type()) {
      case FieldDescriptor::CPPTYPE_INT64:
        reflection.SetInt64(message, field, field->default_value_int64());
        break;
      case FieldDescriptor::CPPTYPE_UINT64:
        reflection.SetUInt64(message, field, field->default_value_uint64());
        break;
      case FieldDescriptor::CPPTYPE_DOUBLE:
        reflection.SetDouble(message, field, field->default_value_double());
        break;
      case FieldDescriptor::CPPTYPE_BOOL:
        reflection.SetBool(message, field, field->default_value_bool());
        break;
      case FieldDescriptor::CPPTYPE_ENUM:
        reflection.SetEnum(message, field, field->default_value_enum());
        break;
      case FieldDescriptor::CPPTYPE_STRING:
        reflection.SetString(message, field, field->default_value_string());
        break;
      default:
        CheckFailed(__FILE__, __LINE__, "run.proto has a field type that resolve.cc does not know");
    }
  }
}

// The value of a field that is not a message; of a list, the element at `index`.
std::string PrintedValue(const Message& message, const FieldDescriptor& field, int index) {
  const Reflection& reflection = *message.GetReflection();
  std::string text;
  if (field.cpp_type() == FieldDescriptor::CPPTYPE_STRING) {
    const std::string value = field.is_repeated() ? reflection.GetRepeatedString(message, &field, index)
                                                  : reflection.GetString(message, &field);
    return absl::StrCat("\"", absl::Utf8SafeCEscape(value), "\"");
  }
  TextFormat::PrintFieldValueToString(message, &field, field.is_repeated() ? index : -1, &text);
  return text;
}

void PrintMessage(const Message& message, const FieldNotes& notes, const std::string& path, int depth,
                  std::string* text) {
  const Reflection& reflection = *message.GetReflection();
  const google::protobuf::Descriptor& type = *message.GetDescriptor();
  const std::string indent(static_cast<size_t>(2 * depth), ' ');
  for (int i = 0; i < type.field_count(); ++i) {
    const FieldDescriptor* field = type.field(i);
    const std::string field_path = path + field->name();
    const auto note = notes.find(field_path);
    const int count = field->is_repeated() ? reflection.FieldSize(message, field)
                                           : static_cast<int>(reflection.HasField(message, field));
    if (count == 0 && note != notes.end()) absl::StrAppend(text, indent, "# ", note->second, "\n");
    if (field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
      for (int j = 0; j < count; ++j) {
        const Message& value = field->is_repeated() ? reflection.GetRepeatedMessage(message, field, j)
                                                    : reflection.GetMessage(message, field);
        absl::StrAppend(text, indent, field->name(), " {\n");
        PrintMessage(value, notes, field_path + ".", depth + 1, text);
        absl::StrAppend(text, indent, "}\n");
      }
      continue;
    }
    if (count == 0) continue;
    std::vector<std::string> values;
    for (int j = 0; j < count; ++j) values.push_back(PrintedValue(message, *field, j));
    const std::string list = absl::StrJoin(values, ", ");
    absl::StrAppend(text, indent, field->name(), ": ", field->is_repeated() ? "[" + list + "]" : list);
    absl::StrAppend(text, note == notes.end() ? "" : "  # " + note->second, "\n");
  }
}
}  // namespace

int64_t TokenizerVocabulary(config::DataConfig::Tokenizer tokenizer) {
  return tokenizer == config::DataConfig::BYTES ? ByteTokenizer().size() : 0;
}

void ResolveDefaults(config::RunConfig* config) {
  const config::ModelConfig given = config->model();
  FillSchemaDefaults(config);
  ResolveModel(given, TokenizerVocabulary(config->data().tokenizer()), config->mutable_model());

  config::TrainConfig& train = *config->mutable_train();
  if (!train.has_micro_batch() && train.global_batch() > 0) {
    train.set_micro_batch(LargestDivisorUpTo(train.global_batch(), kDefaultMicroBatch));
  }
  if (!config->schedule().has_warmup_steps()) {
    config->mutable_schedule()->set_warmup_steps(
        std::min(kDefaultWarmupSteps, std::max<int64_t>(train.steps(), 0) / 10));
  }
  if (!config->eval().has_sequence_length()) {
    config->mutable_eval()->set_sequence_length(config->data().sequence_length());
  }
  if (!config->eval().has_every_steps()) {
    config->mutable_eval()->set_every_steps(config->data().validation_size() > 0 ? kDefaultEvalSteps : 0);
  }
}

FieldNotes NotesOn(const config::RunConfig& config) {
  FieldNotes notes;
  AddModelNotes(config.model(), TokenizerVocabulary(config.data().tokenizer()), &notes);
  const config::TrainConfig& train = config.train();
  notes["train.micro_batch"] = absl::StrCat(train.global_batch() / std::max<int64_t>(train.micro_batch(), 1),
                                            " micro-batches per step, over all ranks");
  notes["train.global_batch"] =
      absl::StrCat(train.global_batch() * config.data().sequence_length(), " tokens per step");
  if (train.max_tokens() == 0) notes["train.max_tokens"] = "no limit";
  if (train.max_minutes() == 0) notes["train.max_minutes"] = "no limit";
  if (config.parallel().data() == 0) notes["parallel.data"] = "what the other axes leave";
  if (config.parallel().replicate() == 0) notes["parallel.replicate"] = "parallel.data / parallel.shard";
  if (config.parallel().audit_every_steps() == 0) notes["parallel.audit_every_steps"] = "never";
  if (config.parallel().threads() == 0) notes["parallel.threads"] = "cores of the machine / ranks on it";
  if (config.eval().every_steps() == 0) notes["eval.every_steps"] = "never";
  if (config.sample().every_steps() == 0) notes["sample.every_steps"] = "never";
  if (config.checkpoint().keep_last() == 0) notes["checkpoint.keep_last"] = "all";
  if (config.checkpoint().every_steps() == 0) notes["checkpoint.every_steps"] = "only at the end";
  if (config.checkpoint().staging_mib() == 0) {
    notes["checkpoint.staging_mib"] = "the rank's state, at most 2048";
  }
  if (config.checkpoint().keep_every_steps() == 0) notes["checkpoint.keep_every_steps"] = "none for ever";
  if (config.health().gate_stats_every_steps() == 0) notes["health.gate_stats_every_steps"] = "never";
  if (config.health().spike_z() == 0) notes["health.spike_z"] = "no loss is a spike";
  if (config.health().spike_norm_z() == 0) notes["health.spike_norm_z"] = "no gradient norm is a spike";
  if (config.health().data_skip_steps() == 0) notes["health.data_skip_steps"] = "the same data again";
  if (config.watchdog().heartbeat_seconds() == 0) notes["watchdog.heartbeat_seconds"] = "none";
  if (config.optimizer().clip_norm() == 0) notes["optimizer.clip_norm"] = "no clipping";
  return notes;
}

std::string ResolvedText(const config::RunConfig& config, const FieldNotes& notes) {
  std::string text =
      "# A run, resolved: every field with its value. Fields are explained in configs/run.proto.\n";
  PrintMessage(config, notes, "", 0, &text);
  return text;
}

RunSpec ToRunSpec(const config::RunConfig& config) {
  RunSpec run;
  run.model = ToModelSpec(config.model());

  run.tokenizer = config.data().tokenizer() == config::DataConfig::NONE   ? TokenizerKind::kNone
                  : config.data().tokenizer() == config::DataConfig::TASK ? TokenizerKind::kTask
                                                                          : TokenizerKind::kBytes;
  for (const config::DataSource& s : config.data().train()) run.train_data.push_back({s.path(), s.weight()});
  for (const config::DataSource& s : config.data().validation()) {
    run.validation_data.push_back({s.path(), s.weight()});
  }
  run.sequence_length = config.data().sequence_length();
  run.reset_at_document = config.data().reset_at_document();

  const config::OptimizerConfig& o = config.optimizer();
  run.adamw = {.beta1 = o.beta1(),
               .beta2 = o.beta2(),
               .eps = o.eps(),
               .weight_decay = o.weight_decay(),
               .clip_norm = o.clip_norm()};
  run.decay_embedding = o.decay_embedding();
  const config::ScheduleConfig& s = config.schedule();
  switch (s.kind()) {
    case config::ScheduleConfig::CONSTANT:
      run.schedule.kind = ScheduleKind::kConstant;
      break;
    case config::ScheduleConfig::COSINE:
      run.schedule.kind = ScheduleKind::kCosine;
      break;
    case config::ScheduleConfig::EXPONENTIAL:
      run.schedule.kind = ScheduleKind::kExponential;
      break;
    case config::ScheduleConfig::WARMUP_STABLE_DECAY:
      run.schedule.kind = ScheduleKind::kWarmupStableDecay;
      break;
  }
  run.schedule.peak_lr = s.peak_lr();
  run.schedule.final_factor = s.final_factor();
  run.schedule.warmup_steps = s.warmup_steps();
  run.schedule.cooldown_steps = s.cooldown_steps();
  run.schedule.total_steps = config.train().steps();

  const config::TrainConfig& t = config.train();
  run.steps = t.steps();
  run.global_batch = t.global_batch();
  run.micro_batch = t.micro_batch();
  run.compute = t.compute() == config::TrainConfig::F64   ? DType::kF64
                : t.compute() == config::TrainConfig::F32 ? DType::kF32
                                                          : DType::kBF16;
  run.seed = t.seed();
  run.max_tokens = t.max_tokens();
  run.max_minutes = t.max_minutes();
  const config::ParallelConfig& p = config.parallel();
  run.parallel = {.data = p.data(),
                  .replicate = p.replicate(),
                  .shard = p.shard(),
                  .sequence = p.sequence(),
                  .tensor = p.tensor(),
                  .pipe = p.pipe(),
                  .ordered = p.reduction() == config::ParallelConfig::ORDERED,
                  .bf16_wire = p.gradient_wire() == config::ParallelConfig::BF16,
                  .sequence_mode = p.sequence_mode() == config::ParallelConfig::STATE   ? SequenceMode::kState
                                   : p.sequence_mode() == config::ParallelConfig::HEADS ? SequenceMode::kHeads
                                                                                        : SequenceMode::kAuto,
                  .audit_every_steps = p.audit_every_steps(),
                  .verify_calls = p.verify_calls()};
  run.threads = config.parallel().threads();
  run.eval_every_steps = config.eval().every_steps();
  run.eval_num_windows = config.eval().num_windows();
  run.eval_sequence_length = config.eval().sequence_length();
  run.sample = {.every_steps = config.sample().every_steps(),
                .num_tokens = config.sample().num_tokens(),
                .top_k = config.sample().top_k(),
                .prompt = config.sample().prompt(),
                .temperature = config.sample().temperature(),
                .top_p = config.sample().top_p()};
  const config::CheckpointConfig& c = config.checkpoint();
  run.checkpoint = {.every_steps = c.every_steps(),
                    .asynchronous = c.asynchronous(),
                    .staging_bytes = c.staging_mib() << 20,
                    .max_failed_saves = c.max_failed_saves(),
                    .timeout_seconds = 60 * c.timeout_minutes(),
                    .keep_last = c.keep_last(),
                    .keep_every_steps = c.keep_every_steps(),
                    .keep_best = c.keep_best(),
                    .good_after_steps = c.good_after_steps()};
  const config::HealthConfig& h = config.health();
  const auto action = [](config::HealthConfig::Action a) {
    return a == config::HealthConfig::SKIP       ? HealthAction::kSkip
           : a == config::HealthConfig::ROLLBACK ? HealthAction::kRollback
           : a == config::HealthConfig::STOP     ? HealthAction::kStop
                                                 : HealthAction::kNote;
  };
  run.health = {.on_spike = action(h.on_spike()),
                .on_non_finite = action(h.on_non_finite()),
                .rerun = h.rerun(),
                .spike_z = h.spike_z(),
                .spike_percent = h.spike_percent(),
                .spike_norm_z = h.spike_norm_z(),
                .max_skipped_in_row = h.max_skipped_in_row(),
                .max_rollbacks = h.max_rollbacks(),
                .data_skip_steps = h.data_skip_steps(),
                .gate_stats_every_steps = h.gate_stats_every_steps()};
  run.initial_weights = c.initial_weights();
  const config::LogConfig& log = config.log();
  run.log_every_steps = log.every_steps();
  run.log = {.json = log.format() == config::LogConfig::JSON,
             .tensorboard = log.tensorboard(),
             .prometheus = log.prometheus(),
             .report = log.report(),
             .prometheus_path = log.prometheus_path(),
             .report_every_seconds = log.report_every_seconds(),
             .straggler_percent = log.straggler_percent(),
             .straggler_steps = log.straggler_steps(),
             .peak_flops = 1e12 * log.peak_tflops()};
  run.run_dir = config.run_dir();
  const config::WatchdogConfig& w = config.watchdog();
  run.watchdog = {.enabled = w.enabled(),
                  .scale = w.scale(),
                  .setup_seconds = w.setup_seconds(),
                  .step_seconds = w.step_seconds(),
                  .evaluation_seconds = w.evaluation_seconds(),
                  .sample_seconds = w.sample_seconds(),
                  .save_seconds = w.save_seconds(),
                  .finish_seconds = w.finish_seconds()};
  run.heartbeat = {.limit_seconds = config.watchdog().heartbeat_seconds(),
                   .interface = config.watchdog().heartbeat_interface()};
  return run;
}
}  // namespace carousel
