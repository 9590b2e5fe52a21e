#include "configs/validate.h"

#include <google/protobuf/message.h>

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <limits>
#include <vector>

#include "absl/strings/str_format.h"
#include "configs/divisors.h"
#include "configs/resolve.h"
#include "configs/validate_model.h"

namespace carousel {
namespace {
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

constexpr int64_t kInt32Max = std::numeric_limits<int32_t>::max();  // ids and row numbers are 32 bits
constexpr int64_t kMaxSteps = int64_t{1} << 40;
constexpr int64_t kMaxTokens = int64_t{1} << 60;
// Bound of the sum of all arrays of a run: no size computed later can overflow.
constexpr double kMaxBytes = 0x1p60;

// Allowed values of an integer field. Upper limits are far above what a machine can hold; they keep products
// of sizes within 64 bits.
struct IntRange {
  const char* path;
  int64_t min, max;
  int64_t example;
};
constexpr IntRange kIntRanges[] = {
    {"model.vocab_size", 2, kInt32Max, 320},
    {"model.embedding_dim", 1, 1 << 20, 256},
    {"model.num_blocks", 1, 1 << 16, 6},
    {"model.num_heads", 1, 1 << 16, 4},
    {"model.ffn_dim", 0, kMaxLayerDim, 704},
    {"model.chunk_length", 1, 1 << 16, 64},
    {"model.loss_chunk_tokens", 1, kInt32Max, 1024},
    {"model.slstm_at", 0, (1 << 16) - 1, 1},
    {"model.slstm_num_heads", 1, 1 << 16, 4},
    {"model.slstm_conv_kernel", 0, 1 << 10, 4},
    {"model.proj_multiple_of", 1, 1 << 16, 64},
    {"model.inner_dim", 1, kMaxLayerDim, 512},
    {"model.conv_kernel", 1, 1 << 10, 4},
    {"model.qkv_block_size", 1, kMaxLayerDim, 4},
    {"data.sequence_length", 1, kInt32Max, 256},
    {"schedule.warmup_steps", 0, kMaxSteps, 100},
    {"schedule.cooldown_steps", 0, kMaxSteps, 0},
    {"train.steps", 1, kMaxSteps, 1000},
    {"train.global_batch", 1, kInt32Max, 8},
    {"train.micro_batch", 1, kInt32Max, 8},
    {"train.max_tokens", 0, kMaxTokens, 0},
    {"parallel.data", 0, 1 << 24, 0},
    {"parallel.replicate", 0, 1 << 24, 0},
    {"parallel.shard", 1, 1 << 24, 1},
    {"parallel.sequence", 1, 1 << 24, 1},
    {"parallel.tensor", 1, 1 << 24, 1},
    {"parallel.pipe", 1, 1 << 16, 1},
    {"parallel.audit_every_steps", 0, kMaxSteps, 500},
    {"parallel.threads", 0, 4096, 0},
    {"eval.every_steps", 0, kMaxSteps, 100},
    {"eval.num_windows", 1, kInt32Max, 64},
    {"eval.sequence_length", 1, kInt32Max, 256},
    {"sample.every_steps", 0, kMaxSteps, 0},
    {"sample.num_tokens", 1, kInt32Max, 200},
    {"sample.top_k", 0, kInt32Max, 0},
    {"checkpoint.every_steps", 0, kMaxSteps, 200},
    {"checkpoint.keep_last", 0, kInt32Max, 3},
    {"checkpoint.staging_mib", 0, 1 << 24, 0},
    {"checkpoint.max_failed_saves", 1, kInt32Max, 3},
    {"checkpoint.keep_every_steps", 0, kMaxSteps, 0},
    {"checkpoint.keep_best", 0, kInt32Max, 0},
    {"checkpoint.good_after_steps", 1, kMaxSteps, 200},
    {"log.every_steps", 1, kMaxSteps, 10},
    {"log.straggler_steps", 1, kMaxSteps, 50},
    {"health.max_skipped_in_row", 1, kMaxSteps, 20},
    {"health.max_rollbacks", 0, kMaxSteps, 3},
    {"health.data_skip_steps", 0, kMaxSteps, 1},
    {"health.gate_stats_every_steps", 0, kMaxSteps, 100},
};

// Allowed values of a number: finite and from min to max, the ends included unless they are open.
struct DoubleRange {
  const char* path;
  double min, max;
  bool min_open, max_open;
  double example;
};
constexpr DoubleRange kDoubleRanges[] = {
    {"model.qk_dim_factor", 0, 64, true, false, 0.5},
    {"model.v_dim_factor", 0, 64, true, false, 1},
    {"model.ffn_proj_factor", 0, 1024, true, false, 2.667},
    {"model.norm_eps", 0, 1, true, false, 1e-6},
    {"model.cell_eps", 0, 1, false, false, 1e-6},
    {"model.gate_soft_cap", 0, 1e6, false, false, 15},
    {"model.logit_soft_cap", 0, 1e6, false, false, 30},
    {"model.igate_bias_init", -1e4, 1e4, false, false, -10},
    {"model.igate_bias_std", 0, 1e4, false, false, 0.1},
    {"model.slstm_gradient_clip", 0, 1e30, false, false, 10},
    {"model.proj_factor", 0, 1024, true, false, 2},
    {"model.dropout", 0, 1, false, true, 0.1},
    {"model.ffn_dropout", 0, 1, false, true, 0.1},
    {"model.embedding_dropout", 0, 1, false, true, 0.1},
    {"data.train.weight", 0, 1e12, true, false, 1},
    {"data.validation.weight", 0, 1e12, true, false, 1},
    {"optimizer.beta1", 0, 1, false, true, 0.9},
    {"optimizer.beta2", 0, 1, false, true, 0.95},
    {"optimizer.eps", 0, 1, true, false, 1e-8},
    {"optimizer.weight_decay", 0, 1e3, false, false, 0.1},
    {"optimizer.clip_norm", 0, 1e30, false, false, 1},
    {"schedule.peak_lr", 0, 1e3, false, false, 1e-3},
    {"schedule.final_factor", 0, 1, false, false, 0.1},
    {"train.max_minutes", 0, 1e9, false, false, 0},
    {"checkpoint.timeout_minutes", 0, 1e6, true, false, 60},
    {"health.spike_z", 0, 1e6, false, false, 6},
    {"health.spike_percent", 0, 1e6, false, false, 5},
    {"health.spike_norm_z", 0, 1e6, false, false, 20},
    {"watchdog.scale", 0, 1e6, true, false, 1},
    {"watchdog.setup_seconds", 0, 1e6, true, false, 600},
    {"watchdog.step_seconds", 0, 1e6, true, false, 60},
    {"watchdog.evaluation_seconds", 0, 1e6, true, false, 60},
    {"watchdog.sample_seconds", 0, 1e6, true, false, 120},
    {"watchdog.save_seconds", 0, 1e6, true, false, 300},
    {"watchdog.finish_seconds", 0, 1e6, true, false, 120},
    {"watchdog.heartbeat_seconds", 0, 86400, false, false, 20},
    {"sample.temperature", 0, 1e6, false, false, 0.8},
    {"sample.top_p", 0, 1, true, false, 1},
    {"log.report_every_seconds", 0, 1e9, false, false, 30},
    {"log.straggler_percent", 0, 1e6, true, false, 8},
    {"log.peak_tflops", 0, 1e6, false, false, 989},
};

bool CheckInt(const std::string& path, const std::string& rule_path, int64_t value, const Origins& origins,
              Problems* problems) {
  for (const IntRange& r : kIntRanges) {
    if (rule_path != r.path) continue;
    if (value >= r.min && value <= r.max) return true;
    problems->Add(origins, path,
                  absl::StrFormat("%s=%d is not between %d and %d; for example %d", path, value, r.min, r.max,
                                  r.example));
    return false;
  }
  problems->Add(absl::StrCat(path, " has no range in validate.cc"));
  return false;
}

bool CheckDouble(const std::string& path, const std::string& rule_path, double value, const Origins& origins,
                 Problems* problems) {
  for (const DoubleRange& r : kDoubleRanges) {
    if (rule_path != r.path) continue;
    const bool above = r.min_open ? value > r.min : value >= r.min;  // false for NaN
    const bool below = r.max_open ? value < r.max : value <= r.max;
    if (above && below && std::isfinite(value)) return true;
    problems->Add(origins, path,
                  absl::StrFormat("%s=%g must be %s %g and %s %g; for example %g", path, value,
                                  r.min_open ? "above" : "at least", r.min, r.max_open ? "below" : "at most",
                                  r.max, r.example));
    return false;
  }
  problems->Add(absl::StrCat(path, " has no range in validate.cc"));
  return false;
}

// Every element of a list of numbers.
bool CheckList(const Message& message, const FieldDescriptor& field, const std::string& path,
               const std::string& rule_path, const Origins& origins, Problems* problems) {
  const Reflection& reflection = *message.GetReflection();
  bool good = true;
  for (int i = 0; i < reflection.FieldSize(message, &field); ++i) {
    const std::string element = absl::StrCat(path, "[", i, "]");
    if (field.cpp_type() == FieldDescriptor::CPPTYPE_INT64) {
      const int64_t value = reflection.GetRepeatedInt64(message, &field, i);
      good = CheckInt(element, rule_path, value, origins, problems) && good;
    } else if (field.cpp_type() == FieldDescriptor::CPPTYPE_DOUBLE) {
      const double value = reflection.GetRepeatedDouble(message, &field, i);
      good = CheckDouble(element, rule_path, value, origins, problems) && good;
    }
  }
  return good;
}

// Walks the fields that are set. A list of numbers is wrong as a whole. rule_path is path without indices.
// Adds the paths of bad values to *wrong.
void CheckFields(const Message& message, const std::string& path, const std::string& rule_path,
                 const Origins& origins, std::set<std::string>* wrong, Problems* problems) {
  const Reflection& reflection = *message.GetReflection();
  std::vector<const FieldDescriptor*> fields;
  reflection.ListFields(message, &fields);
  for (const FieldDescriptor* field : fields) {
    const std::string field_path = path + field->name(), field_rule = rule_path + field->name();
    if (field->is_repeated() && field->cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE) {
      if (!CheckList(message, *field, field_path, field_rule, origins, problems)) wrong->insert(field_path);
    } else if (field->is_repeated()) {
      for (int i = 0; i < reflection.FieldSize(message, field); ++i) {
        CheckFields(reflection.GetRepeatedMessage(message, field, i), absl::StrCat(field_path, "[", i, "]."),
                    field_rule + ".", origins, wrong, problems);
      }
    } else if (field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
      CheckFields(reflection.GetMessage(message, field), field_path + ".", field_rule + ".", origins, wrong,
                  problems);
    } else if (field->cpp_type() == FieldDescriptor::CPPTYPE_INT64) {
      const int64_t value = reflection.GetInt64(message, field);
      if (!CheckInt(field_path, field_rule, value, origins, problems)) wrong->insert(field_path);
    } else if (field->cpp_type() == FieldDescriptor::CPPTYPE_DOUBLE) {
      const double value = reflection.GetDouble(message, field);
      if (!CheckDouble(field_path, field_rule, value, origins, problems)) wrong->insert(field_path);
    } else if (field->cpp_type() == FieldDescriptor::CPPTYPE_STRING &&
               reflection.GetString(message, field).find('\0') != std::string::npos) {
      problems->Add(origins, field_path, absl::StrCat(field_path, " must not contain a NUL byte"));
      wrong->insert(field_path);
    }
  }
}

void CheckSizes(const config::RunConfig& config, const Origins& origins, Problems* problems) {
  const config::TrainConfig& train = config.train();
  const int64_t T = config.data().sequence_length(), B = train.micro_batch();
  if (B > kInt32Max / T) {
    problems->Add(
        origins, "train.micro_batch",
        absl::StrFormat("train.micro_batch=%d times data.sequence_length=%d is above %d tokens; use a "
                        "micro_batch of at most %d",
                        B, T, kInt32Max, kInt32Max / T));
  }
  const double tokens =
      static_cast<double>(train.global_batch()) * static_cast<double>(T) * static_cast<double>(train.steps());
  if (tokens > static_cast<double>(kMaxTokens)) {
    problems->Add(
        origins, "train.steps",
        absl::StrFormat("train.steps=%d of %d x %d tokens are %g tokens, above %g; use fewer steps",
                        train.steps(), train.global_batch(), T, tokens, static_cast<double>(kMaxTokens)));
  }
  const config::ModelConfig& m = config.model();
  const bool complete =
      m.has_vocab_size() && m.has_embedding_dim() && m.has_num_blocks() && m.has_num_heads();
  const double batch_tokens = std::max(static_cast<double>(B) * static_cast<double>(T),
                                       static_cast<double>(config.eval().sequence_length()));
  if (complete && EstimateBytes(m, batch_tokens, static_cast<double>(B)) > kMaxBytes) {
    problems->Add(absl::StrFormat(
        "the model and one micro-batch need more than %g bytes; make "
        "model.embedding_dim=%d, model.num_blocks=%d, model.vocab_size=%d, "
        "train.micro_batch=%d or eval.sequence_length=%d smaller",
        kMaxBytes, m.embedding_dim(), m.num_blocks(), m.vocab_size(), B, config.eval().sequence_length()));
  }
}

void CheckVocabulary(const config::RunConfig& config, const Origins& origins, Problems* problems) {
  const int64_t ids = TokenizerVocabulary(config.data().tokenizer());
  if (config.model().vocab_size() >= ids) return;
  problems->Add(
      origins, "model.vocab_size",
      absl::StrFormat("model.vocab_size=%d is below the %d ids of data.tokenizer=%s; use %d, or leave "
                      "it out",
                      config.model().vocab_size(), ids,
                      config::DataConfig::Tokenizer_Name(config.data().tokenizer()), (ids + 63) / 64 * 64));
}

void CheckBatches(const config::RunConfig& config, const Origins& origins, Problems* problems) {
  const int64_t global = config.train().global_batch(), micro = config.train().micro_batch();
  if (global % micro != 0) {
    problems->Add(origins, "train.micro_batch",
                  absl::StrFormat("train.micro_batch=%d does not divide train.global_batch=%d; %s", micro,
                                  global, NearestDivisors(global, micro)));
    return;
  }
  const config::ParallelConfig& parallel = config.parallel();
  const bool by_data = parallel.data() > 0;
  const int64_t ranks =
      by_data ? parallel.data() : std::max<int64_t>(parallel.replicate(), 1) * parallel.shard();
  if (global / micro % ranks == 0) return;
  const std::string given = by_data ? absl::StrCat("parallel.data=", ranks)
                                    : absl::StrFormat("parallel.replicate x shard = %d", ranks);
  problems->Add(
      origins, by_data ? "parallel.data" : "parallel.shard",
      absl::StrFormat("%s does not divide the %d micro-batches of a step "
                      "(train.global_batch=%d / train.micro_batch=%d); %s",
                      given, global / micro, global, micro, NearestDivisors(global / micro, ranks)));
}

void CheckParallel(const config::RunConfig& config, const Origins& origins, Problems* problems) {
  const config::ParallelConfig& p = config.parallel();
  if (p.data() > 0 && p.replicate() > 0 && p.data() != p.replicate() * p.shard()) {
    problems->Add(
        origins, "parallel.data",
        absl::StrFormat("parallel.data=%d is not parallel.replicate=%d x parallel.shard=%d; use %d, or 0",
                        p.data(), p.replicate(), p.shard(), p.replicate() * p.shard()));
  } else if (p.data() > 0 && p.data() % p.shard() != 0) {
    problems->Add(origins, "parallel.shard",
                  absl::StrFormat("parallel.shard=%d does not divide parallel.data=%d; %s", p.shard(),
                                  p.data(), NearestDivisors(p.data(), p.shard())));
  }
  if (p.gradient_wire() == config::ParallelConfig::BF16 && p.reduction() == config::ParallelConfig::ORDERED) {
    problems->Add(
        origins, "parallel.gradient_wire",
        "parallel.gradient_wire=BF16 rounds sums that parallel.reduction=ORDERED promises to be the same "
        "for every number of ranks; use parallel.reduction=UNORDERED, or gradient_wire=WIDE");
  }
  if (config.sample().every_steps() > 0 && p.shard() * p.sequence() * p.tensor() * p.pipe() > 1) {
    problems->Add(
        origins, "sample.every_steps",
        absl::StrFormat("sample.every_steps=%d needs all weights on one rank, but parallel.shard, sequence, "
                        "tensor or pipe spreads them; use sample.every_steps=0 and `carousel generate` on a "
                        "checkpoint",
                        config.sample().every_steps()));
  }
}

void CheckHealth(const config::RunConfig& config, const Origins& origins, Problems* problems) {
  const config::HealthConfig& health = config.health();
  if (health.on_non_finite() == config::HealthConfig::NOTE) {
    problems->Add(origins, "health.on_non_finite",
                  "health.on_non_finite=NOTE would put NaN into the weights; use SKIP, ROLLBACK or STOP");
  }
  const bool rolls_back = health.on_spike() == config::HealthConfig::ROLLBACK ||
                          health.on_non_finite() == config::HealthConfig::ROLLBACK;
  if (health.data_skip_steps() > 0 && !rolls_back) {
    problems->Add(origins, "health.data_skip_steps",
                  absl::StrFormat("health.data_skip_steps=%d leaves out data after a rollback, but neither "
                                  "health.on_spike nor health.on_non_finite is ROLLBACK; set one of them, or "
                                  "use health.data_skip_steps=0",
                                  health.data_skip_steps()));
  }
}

void CheckSchedule(const config::RunConfig& config, const Origins& origins, Problems* problems) {
  const config::ScheduleConfig& schedule = config.schedule();
  const int64_t steps = config.train().steps();
  const int64_t warmup = schedule.warmup_steps(), cooldown = schedule.cooldown_steps();
  if (warmup + cooldown > steps) {
    const bool blame_warmup = cooldown < steps;
    const std::string path = blame_warmup ? "schedule.warmup_steps" : "schedule.cooldown_steps";
    problems->Add(origins, path,
                  absl::StrFormat("schedule.warmup_steps=%d and schedule.cooldown_steps=%d do not fit into "
                                  "train.steps=%d; use a %s of at most %d",
                                  warmup, cooldown, steps, path.substr(path.find('.') + 1),
                                  blame_warmup ? steps - cooldown : std::max<int64_t>(steps - warmup, 0)));
  }
  if (schedule.kind() == config::ScheduleConfig::EXPONENTIAL && schedule.final_factor() == 0) {
    problems->Add(origins, "schedule.final_factor",
                  "schedule.final_factor=0 cannot be reached by schedule.kind=EXPONENTIAL; for example 0.1");
  }
}
}  // namespace

std::set<std::string> CheckRanges(const config::RunConfig& config, const Origins& origins,
                                  Problems* problems) {
  std::set<std::string> wrong;
  CheckFields(config, "", "", origins, &wrong, problems);
  const auto check_paths = [&](const auto& sources, const char* name) {
    for (int i = 0; i < sources.size(); ++i) {
      if (!sources.Get(i).path().empty()) continue;
      problems->Add(
          origins, absl::StrCat("data.", name, "[", i, "]"),
          absl::StrCat("data.", name, "[", i, "].path is missing; it names PREFIX of the token files ",
                       "PREFIX.bin and PREFIX.idx that carousel data build wrote"));
    }
  };
  check_paths(config.data().train(), "train");
  check_paths(config.data().validation(), "validation");
  return wrong;
}

void CheckRequired(const config::RunConfig& config, Problems* problems) {
  const config::ModelConfig& model = config.model();
  if (!model.has_embedding_dim()) problems->Add("model.embedding_dim is required; for example 256");
  if (!model.has_num_blocks()) problems->Add("model.num_blocks is required; for example 6");
  if (!model.has_num_heads()) problems->Add("model.num_heads is required; for example 4");
  if (!model.has_vocab_size() && config.data().tokenizer() == config::DataConfig::NONE) {
    problems->Add(
        "model.vocab_size is required with data.tokenizer=NONE; every token id must be below it, for example "
        "50304");
  }
  if (!model.has_vocab_size() && config.data().tokenizer() == config::DataConfig::TASK) {
    problems->Add(
        "model.vocab_size is required with data.tokenizer=TASK: the number of ids that `carousel data task` "
        "printed and wrote into PREFIX.meta, for example 3 for parity");
  }
}

void CheckRelations(const config::RunConfig& config, const Origins& origins,
                    const std::set<std::string>& wrong, Problems* problems) {
  // True if all of these are what the user meant: a relation with a wrong value would only repeat that.
  const auto good = [&](std::initializer_list<const char*> paths) {
    return std::none_of(paths.begin(), paths.end(), [&](const char* path) { return wrong.count(path) > 0; });
  };
  CheckModel(config.model(), origins, wrong, problems);
  if (config.model().has_vocab_size() && good({"model.vocab_size"}))
    CheckVocabulary(config, origins, problems);
  if (good({"parallel.data", "parallel.replicate", "parallel.shard"})) {
    if (good({"train.global_batch", "train.micro_batch"})) CheckBatches(config, origins, problems);
    CheckParallel(config, origins, problems);
  }
  if (good({"train.steps", "schedule.warmup_steps", "schedule.cooldown_steps", "schedule.final_factor"})) {
    CheckSchedule(config, origins, problems);
  }
  CheckHealth(config, origins, problems);
  if (wrong.empty()) CheckSizes(config, origins, problems);
  if (config.sample().every_steps() > 0 && config.data().tokenizer() != config::DataConfig::BYTES) {
    problems->Add(origins, "sample.every_steps",
                  "sample.every_steps needs a tokenizer to read sample.prompt; use sample.every_steps=0 or "
                  "data.tokenizer=BYTES");
  }
}

void CheckForTraining(const config::RunConfig& config, const Origins& origins, Problems* problems) {
  if (config.data().train_size() == 0) {
    problems->Add(
        "data.train is empty; for example --set data.train.path=PREFIX with what carousel data build wrote");
  }
  if (config.eval().every_steps() > 0 && config.data().validation_size() == 0) {
    problems->Add(
        origins, "eval.every_steps",
        absl::StrCat("eval.every_steps=", config.eval().every_steps(),
                     " but data.validation is empty; add data.validation or use eval.every_steps=0"));
  }
  if (config.checkpoint().keep_best() > 0 && config.eval().every_steps() == 0) {
    problems->Add(
        origins, "checkpoint.keep_best",
        absl::StrFormat("checkpoint.keep_best=%d goes by the validation loss, which eval.every_steps=0 never "
                        "takes; add data.validation and eval.every_steps, or use checkpoint.keep_best=0",
                        config.checkpoint().keep_best()));
  }
}
}  // namespace carousel
