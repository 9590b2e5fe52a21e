// Which fields of a config may differ when a run goes on: every field of run.proto is here with its class,
// and a field that is not here fails.
#include <google/protobuf/descriptor.h>
#include <gtest/gtest.h>

#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "configs/load.h"
#include "configs/run.pb.h"
#include "launcher/train/run_directory.h"

namespace carousel {
namespace {

enum class Class : uint8_t {
  kIdentity,  // what the checkpoint is of: never
  kSchedule,  // what the run computes from here on: with --accept_change
  kRun,       // where and how fast, what is shown and kept; what only the first step reads: freely
};
constexpr Class kIdentity = Class::kIdentity, kSchedule = Class::kSchedule, kRun = Class::kRun;

// Configs of all kinds of models, small.
const std::map<std::string, std::string>& Bases() {
  static const auto& bases = *new std::map<std::string, std::string>{
      {"large",
       "model { embedding_dim: 64 num_blocks: 4 num_heads: 4 slstm_at: [1] slstm_conv_kernel: 4 "
       "slstm_num_heads: 4 }"
       "data { train { path: 'a' weight: 1 } train { path: 'b' weight: 1 } validation { path: 'v' } }"
       "train { steps: 100 global_batch: 8 micro_batch: 1 compute: F32 }"},
      {"paper",
       "model { family: XLSTM_PAPER embedding_dim: 64 num_blocks: 4 num_heads: 4 slstm_at: [1] }"
       "data { train { path: 'a' } validation { path: 'v' } } train { steps: 100 compute: F32 }"},
      {"sigmoid",
       "model { embedding_dim: 64 num_blocks: 4 num_heads: 4 input_gate: SIGMOID }"
       "data { train { path: 'a' } } train { steps: 100 compute: F32 }"}};
  return bases;
}

// A field and another value for it. Where one field alone cannot be changed, `sets` has more than one.
struct Field {
  const char* path;
  Class rule;
  const char* base;
  std::vector<std::string> sets;
};
const std::vector<Field>& Fields() {
  static const auto& fields = *new std::vector<Field>{
      {"model.family", kIdentity, "large", {"model.family=XLSTM_PAPER"}},
      {"model.vocab_size", kIdentity, "large", {"model.vocab_size=512"}},
      {"model.embedding_dim", kIdentity, "large", {"model.embedding_dim=128"}},
      {"model.num_blocks", kIdentity, "large", {"model.num_blocks=5"}},
      {"model.num_heads", kIdentity, "large", {"model.num_heads=2"}},
      {"model.qk_dim_factor", kIdentity, "large", {"model.qk_dim_factor=1"}},
      {"model.v_dim_factor", kIdentity, "large", {"model.v_dim_factor=2"}},
      {"model.ffn_proj_factor", kIdentity, "large", {"model.ffn_proj_factor=5"}},
      {"model.ffn_dim", kIdentity, "large", {"model.ffn_dim=128"}},
      {"model.use_bias", kIdentity, "large", {"model.use_bias=true"}},
      {"model.add_out_norm", kIdentity, "large", {"model.add_out_norm=false"}},
      {"model.norm_eps", kIdentity, "large", {"model.norm_eps=1e-4"}},
      {"model.cell_eps", kIdentity, "large", {"model.cell_eps=1e-4"}},
      {"model.gate_soft_cap", kIdentity, "large", {"model.gate_soft_cap=7"}},
      {"model.logit_soft_cap", kIdentity, "large", {"model.logit_soft_cap=7"}},
      {"model.input_gate", kIdentity, "large", {"model.input_gate=SIGMOID"}},
      {"model.normalize_sigmoid", kIdentity, "sigmoid", {"model.normalize_sigmoid=false"}},
      {"model.igate_bias_init", kRun, "large", {"model.igate_bias_init=-2"}},
      {"model.igate_bias_std", kRun, "large", {"model.igate_bias_std=0.5"}},
      {"model.normalizer_gradient", kIdentity, "large", {"model.normalizer_gradient=FROZEN"}},
      {"model.chunk_length", kRun, "large", {"model.chunk_length=16"}},
      {"model.recompute", kRun, "large", {"model.recompute=RECOMPUTE"}},
      {"model.loss_chunk_tokens", kRun, "large", {"model.loss_chunk_tokens=64"}},
      {"model.tie_embeddings", kIdentity, "large", {"model.tie_embeddings=true"}},
      {"model.slstm_at", kIdentity, "large", {"model.slstm_at=2"}},
      {"model.slstm_all", kIdentity, "large", {"model.slstm_at=", "model.slstm_all=true"}},
      {"model.slstm_num_heads", kIdentity, "large", {"model.slstm_num_heads=2"}},
      {"model.slstm_conv_kernel", kIdentity, "large", {"model.slstm_conv_kernel=3"}},
      {"model.slstm_norm_weight", kIdentity, "large", {"model.slstm_norm_weight=false"}},
      {"model.slstm_bias_init", kRun, "large", {"model.slstm_bias_init=ZEROS"}},
      {"model.slstm_recurrent_init", kRun, "large", {"model.slstm_recurrent_init=STANDARD"}},
      {"model.slstm_gradient_clip", kIdentity, "large", {"model.slstm_gradient_clip=5"}},
      {"model.slstm_gradient_cut", kIdentity, "large", {"model.slstm_gradient_cut=true"}},
      {"model.proj_factor", kIdentity, "paper", {"model.proj_factor=3"}},
      {"model.proj_multiple_of", kIdentity, "paper", {"model.proj_factor=1.5", "model.proj_multiple_of=96"}},
      {"model.inner_dim", kIdentity, "paper", {"model.inner_dim=192"}},
      {"model.conv_kernel", kIdentity, "paper", {"model.conv_kernel=3"}},
      {"model.qkv_block_size", kIdentity, "paper", {"model.qkv_block_size=8"}},
      {"model.ffn_bias", kIdentity, "paper", {"model.ffn_bias=true"}},
      {"model.dropout", kSchedule, "paper", {"model.dropout=0.1"}},
      {"model.ffn_dropout", kSchedule, "paper", {"model.ffn_dropout=0.1"}},
      {"model.embedding_dropout", kSchedule, "paper", {"model.embedding_dropout=0.1"}},
      {"data.tokenizer", kSchedule, "large", {"model.vocab_size=320", "data.tokenizer=NONE"}},
      {"data.train.path", kSchedule, "large", {"data.train[1].path=c"}},
      {"data.train.weight", kSchedule, "large", {"data.train[1].weight=2"}},
      {"data.validation.path", kRun, "large", {"data.validation[0].path=w"}},
      {"data.validation.weight", kRun, "large", {"data.validation[0].weight=2"}},
      {"data.sequence_length", kSchedule, "large", {"data.sequence_length=128"}},
      {"data.reset_at_document", kSchedule, "large", {"data.reset_at_document=false"}},
      {"optimizer.beta1", kSchedule, "large", {"optimizer.beta1=0.8"}},
      {"optimizer.beta2", kSchedule, "large", {"optimizer.beta2=0.8"}},
      {"optimizer.eps", kSchedule, "large", {"optimizer.eps=1e-6"}},
      {"optimizer.weight_decay", kSchedule, "large", {"optimizer.weight_decay=0"}},
      {"optimizer.decay_embedding", kSchedule, "large", {"optimizer.decay_embedding=true"}},
      {"optimizer.clip_norm", kSchedule, "large", {"optimizer.clip_norm=0"}},
      {"schedule.kind", kSchedule, "large", {"schedule.kind=CONSTANT"}},
      {"schedule.peak_lr", kSchedule, "large", {"schedule.peak_lr=1e-4"}},
      {"schedule.final_factor", kSchedule, "large", {"schedule.final_factor=0.5"}},
      {"schedule.warmup_steps", kSchedule, "large", {"schedule.warmup_steps=3"}},
      {"schedule.cooldown_steps", kSchedule, "large", {"schedule.cooldown_steps=3"}},
      {"train.steps", kSchedule, "large", {"train.steps=200"}},
      {"train.global_batch", kSchedule, "large", {"train.global_batch=16"}},
      {"train.micro_batch", kSchedule, "large", {"train.micro_batch=2"}},
      {"train.compute", kSchedule, "large", {"train.compute=BF16"}},
      {"train.seed", kSchedule, "large", {"train.seed=7"}},
      {"train.max_tokens", kRun, "large", {"train.max_tokens=100000"}},
      {"train.max_minutes", kRun, "large", {"train.max_minutes=5"}},
      {"parallel.data", kRun, "large", {"parallel.data=2"}},
      {"parallel.threads", kRun, "large", {"parallel.threads=3"}},
      {"parallel.replicate", kRun, "large", {"parallel.replicate=2"}},
      {"parallel.shard", kRun, "large", {"parallel.shard=2"}},
      {"parallel.sequence", kRun, "large", {"parallel.sequence=2"}},
      {"parallel.tensor", kRun, "large", {"parallel.tensor=2"}},
      {"parallel.pipe", kRun, "large", {"parallel.pipe=2"}},
      {"parallel.reduction", kRun, "large", {"parallel.reduction=UNORDERED"}},
      {"parallel.gradient_wire",
       kSchedule,
       "large",
       {"parallel.reduction=UNORDERED", "parallel.gradient_wire=BF16"}},
      {"parallel.sequence_mode", kRun, "large", {"parallel.sequence_mode=HEADS"}},
      {"parallel.audit_every_steps", kRun, "large", {"parallel.audit_every_steps=7"}},
      {"parallel.verify_calls", kRun, "large", {"parallel.verify_calls=true"}},
      {"eval.every_steps", kRun, "large", {"eval.every_steps=7"}},
      {"eval.num_windows", kRun, "large", {"eval.num_windows=7"}},
      {"eval.sequence_length", kRun, "large", {"eval.sequence_length=512"}},
      {"sample.every_steps", kRun, "large", {"sample.every_steps=7"}},
      {"sample.prompt", kRun, "large", {"sample.prompt=Once"}},
      {"sample.num_tokens", kRun, "large", {"sample.num_tokens=7"}},
      {"sample.temperature", kRun, "large", {"sample.temperature=1"}},
      {"sample.top_k", kRun, "large", {"sample.top_k=7"}},
      {"sample.top_p", kRun, "large", {"sample.top_p=0.5"}},
      {"checkpoint.every_steps", kRun, "large", {"checkpoint.every_steps=7"}},
      {"checkpoint.keep_last", kRun, "large", {"checkpoint.keep_last=7"}},
      {"checkpoint.initial_weights", kRun, "large", {"checkpoint.initial_weights=elsewhere"}},
      {"checkpoint.asynchronous", kRun, "large", {"checkpoint.asynchronous=false"}},
      {"checkpoint.staging_mib", kRun, "large", {"checkpoint.staging_mib=64"}},
      {"checkpoint.max_failed_saves", kRun, "large", {"checkpoint.max_failed_saves=7"}},
      {"checkpoint.timeout_minutes", kRun, "large", {"checkpoint.timeout_minutes=7"}},
      {"checkpoint.keep_every_steps", kRun, "large", {"checkpoint.keep_every_steps=700"}},
      {"checkpoint.keep_best", kRun, "large", {"checkpoint.keep_best=1"}},
      {"checkpoint.good_after_steps", kRun, "large", {"checkpoint.good_after_steps=7"}},
      {"health.on_spike", kRun, "large", {"health.on_spike=SKIP"}},
      {"health.on_non_finite", kRun, "large", {"health.on_non_finite=STOP"}},
      {"health.rerun", kRun, "large", {"health.rerun=true"}},
      {"health.spike_z", kRun, "large", {"health.spike_z=7"}},
      {"health.spike_percent", kRun, "large", {"health.spike_percent=7"}},
      {"health.spike_norm_z", kRun, "large", {"health.spike_norm_z=7"}},
      {"health.max_skipped_in_row", kRun, "large", {"health.max_skipped_in_row=7"}},
      {"health.max_rollbacks", kRun, "large", {"health.max_rollbacks=7"}},
      {"health.data_skip_steps", kRun, "large", {"health.on_spike=ROLLBACK", "health.data_skip_steps=7"}},
      {"health.gate_stats_every_steps", kRun, "large", {"health.gate_stats_every_steps=7"}},
      {"log.format", kRun, "large", {"log.format=JSON"}},
      {"log.tensorboard", kRun, "large", {"log.tensorboard=false"}},
      {"log.prometheus", kRun, "large", {"log.prometheus=false"}},
      {"log.prometheus_path", kRun, "large", {"log.prometheus_path=elsewhere"}},
      {"log.report", kRun, "large", {"log.report=false"}},
      {"log.report_every_seconds", kRun, "large", {"log.report_every_seconds=7"}},
      {"log.straggler_percent", kRun, "large", {"log.straggler_percent=7"}},
      {"log.straggler_steps", kRun, "large", {"log.straggler_steps=7"}},
      {"log.peak_tflops", kRun, "large", {"log.peak_tflops=7"}},
      {"watchdog.enabled", kRun, "large", {"watchdog.enabled=false"}},
      {"watchdog.scale", kRun, "large", {"watchdog.scale=7"}},
      {"watchdog.setup_seconds", kRun, "large", {"watchdog.setup_seconds=7"}},
      {"watchdog.step_seconds", kRun, "large", {"watchdog.step_seconds=7"}},
      {"watchdog.evaluation_seconds", kRun, "large", {"watchdog.evaluation_seconds=7"}},
      {"watchdog.sample_seconds", kRun, "large", {"watchdog.sample_seconds=7"}},
      {"watchdog.save_seconds", kRun, "large", {"watchdog.save_seconds=7"}},
      {"watchdog.finish_seconds", kRun, "large", {"watchdog.finish_seconds=7"}},
      {"watchdog.heartbeat_seconds", kRun, "large", {"watchdog.heartbeat_seconds=7"}},
      {"watchdog.heartbeat_interface", kRun, "large", {"watchdog.heartbeat_interface=eth0"}},
      {"log.every_steps", kRun, "large", {"log.every_steps=7"}},
      {"run_dir", kRun, "large", {"run_dir=elsewhere"}}};
  return fields;
}

// All fields that have a value of their own, by their paths without indices.
void CollectFields(const google::protobuf::Descriptor& type, const std::string& prefix,
                   std::set<std::string>* paths) {
  for (int i = 0; i < type.field_count(); ++i) {
    const google::protobuf::FieldDescriptor& field = *type.field(i);
    const std::string path = absl::StrCat(prefix, field.name());
    if (field.message_type() != nullptr) {
      CollectFields(*field.message_type(), path + ".", paths);
    } else {
      paths->insert(path);
    }
  }
}

RunSpec Load(const char* base, const std::vector<std::string>& sets) {
  const auto run = LoadRunFromText(Bases().at(base), base, {.sets = sets});
  EXPECT_TRUE(run.ok()) << run.status();
  return run.ok() ? *run : RunSpec{};
}

TEST(ResumeFields, EveryFieldOfTheConfigHasAClass) {
  std::set<std::string> paths, classified;
  CollectFields(*config::RunConfig::descriptor(), "", &paths);
  EXPECT_GE(paths.size(), 90u);
  for (const Field& field : Fields()) {
    EXPECT_TRUE(classified.insert(field.path).second) << field.path << " is here twice";
    EXPECT_EQ(paths.count(field.path), 1u) << field.path << " is no field of run.proto";
  }
  for (const std::string& path : paths) {
    EXPECT_EQ(classified.count(path), 1u)
        << path << " has no class: say here whether a run may go on with another value, and if not, compare "
        << "it in ConfigDifferences (launcher/train/run_directory.cc)";
  }
}

TEST(ResumeFields, AnotherValueIsTreatedAsItsClassSays) {
  for (const Field& field : Fields()) {
    SCOPED_TRACE(field.path);
    const RunSpec earlier = Load(field.base, {}), now = Load(field.base, field.sets);
    EXPECT_NE(earlier.resolved_text, now.resolved_text) << "the value is not another one";
    EXPECT_TRUE(ConfigDifferences(now, now).empty());
    const std::vector<ConfigDifference> differences = ConfigDifferences(earlier, now);
    EXPECT_EQ(ConfigDifferences(now, earlier).size(), differences.size()) << "it depends on the direction";
    bool any_refused = false;
    for (const ConfigDifference& difference : differences) any_refused |= !difference.acceptable;
    EXPECT_EQ(differences.empty(), field.rule == Class::kRun)
        << (differences.empty() ? "the change is not noticed" : differences[0].text);
    EXPECT_EQ(any_refused, field.rule == Class::kIdentity);
  }
}

// Several changes at once: all are told.
TEST(ResumeFields, AllDifferencesAreToldAtOnce) {
  std::vector<std::string> sets;
  size_t expected = 0;
  for (const Field& field : Fields()) {
    if (std::string(field.base) != "large" || field.sets.size() != 1 || field.rule != Class::kSchedule)
      continue;
    sets.push_back(field.sets[0]);
    ++expected;
  }
  EXPECT_GE(expected, 18u);
  EXPECT_EQ(ConfigDifferences(Load("large", {}), Load("large", sets)).size(), expected);
}
}  // namespace
}  // namespace carousel
