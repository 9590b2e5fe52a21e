#include "launcher/plan.h"

#include <algorithm>
#include <map>
#include <memory>
#include <set>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "core/base/status_macros.h"
#include "core/comm/mesh.h"
#include "core/model/language_model.h"
#include "core/train/trainer.h"
#include "launcher/train_setup.h"
#include "parallel/sharded_sync.h"
#include "parallel/mesh_builder.h"

namespace carousel {
namespace {

// "backbone.blocks.3.mlstm_layer.q.weight" -> "3", "lm_head.weight" -> "".
std::string BlockOf(const std::string& name) {
  const std::string blocks = "backbone.blocks.";
  if (name.compare(0, blocks.size(), blocks) != 0) return "";
  return name.substr(blocks.size(), name.find('.', blocks.size()) - blocks.size());
}

// "backbone.blocks.3.mlstm_layer.q.weight" -> "blocks: mlstm_layer", "lm_head.weight" -> "lm_head".
std::string PartOf(const std::string& name) {
  const std::string backbone = "backbone.", blocks = "backbone.blocks.";
  if (name.compare(0, blocks.size(), blocks) == 0) {
    const size_t index_end = name.find('.', blocks.size());
    const size_t part_end = name.find('.', index_end + 1);
    return "blocks: " + name.substr(index_end + 1, part_end - index_end - 1);
  }
  const size_t begin = name.compare(0, backbone.size(), backbone) == 0 ? backbone.size() : 0;
  return name.substr(begin, name.find('.', begin) - begin);
}

// 6865424896 -> "6,865,424,896".
std::string WithCommas(int64_t value) {
  std::string digits = absl::StrCat(value);
  for (int64_t i = static_cast<int64_t>(digits.size()) - 3; i > 0; i -= 3)
    digits.insert(static_cast<size_t>(i), ",");
  return digits;
}

std::string Binary(int64_t bytes) {
  const char* const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  while (value >= 1024 && unit < 6) value /= 1024, ++unit;
  return absl::StrFormat(unit == 0 ? "%.0f %s" : "%.2f %s", value, units[unit]);
}

std::string MlstmNote(const ModelSpec& spec) {
  return absl::StrFormat("%d wide keys, %d wide values per head", spec.head_dim_qk(), spec.head_dim_v());
}
std::string SlstmNote(const ModelSpec& spec) {
  constexpr size_t kMaxShown = 16;
  std::string at = absl::StrJoin(
      spec.slstm_at.begin(),
      spec.slstm_at.begin() + static_cast<int64_t>(std::min(spec.slstm_at.size(), kMaxShown)), ", ");
  if (spec.slstm_at.size() > kMaxShown) absl::StrAppend(&at, ", ...");
  return absl::StrFormat("%d heads of %d; block%s %s", spec.slstm_num_heads, spec.slstm_head_dim(),
                         spec.slstm_at.size() == 1 ? "" : "s", at);
}

class Table {
 public:
  void Title(const std::string& title) { absl::StrAppend(&text_, text_.empty() ? "" : "\n", title, "\n"); }
  void Row(const std::string& label, const std::string& value, const std::string& note = "") {
    absl::StrAppendFormat(&text_, "  %-30s %26s", label, value);
    absl::StrAppend(&text_, note.empty() ? "" : "   ", note, "\n");
  }
  void Bytes(const std::string& label, int64_t bytes) { Row(label, WithCommas(bytes), Binary(bytes)); }
  std::string text() const { return text_; }

 private:
  std::string text_;
};
}  // namespace

absl::StatusOr<RunPlan> MakePlan(const RunSpec& run, int64_t world, Device& device) {
  constexpr int64_t kMaxWorld = 1 << 24;
  if (world > kMaxWorld) {
    return absl::InvalidArgumentError(absl::StrCat("--world ", world, " is above ", kMaxWorld, " ranks"));
  }
  CAROUSEL_RETURN_IF_ERROR(ValidateMesh(MeshSpec{.world = world,
                                                 .sizes = {.replicate = run.parallel_data},
                                                 .global_batch = run.global_batch,
                                                 .micro_batch = run.micro_batch}));
  RunPlan plan;
  plan.world = world;

  // The same registration and the same Bind as in training, against a counting arena.
  ParamStore params(run.compute, world, /*shard_index=*/0);
  const LanguageModel model(run.model, params, run.decay_embedding);
  std::map<std::string, std::set<std::string>> blocks_of;
  for (const Param& param : params.params()) {
    const std::string name = PartOf(param.name), block = BlockOf(param.name);
    auto part = std::find_if(plan.parts.begin(), plan.parts.end(),
                             [&](const RunPlan::Part& known) { return known.name == name; });
    if (part == plan.parts.end()) part = plan.parts.insert(part, {.name = name});
    part->num_parameters += param.num_elems;
    if (!block.empty() && blocks_of[name].insert(block).second) ++part->num_blocks;
  }
  plan.num_parameters = params.num_parameters();

  CountingCommunicator communicator(/*rank=*/0, static_cast<int>(world));
  const Mesh mesh = ReplicateMesh({.size = world,
                                   .index = 0,
                                   .communicator = world > 1 ? &communicator : nullptr,
                                   .control = world > 1 ? &communicator : nullptr});
  ShardedSyncFactory sync_factory;
  const Arena arena = Trainer::Plan(MakeTrainSpec(run), device, mesh, sync_factory);
  plan.memory_bytes = arena.bytes_by_category();
  plan.scratch_bytes = arena.peak_scratch_bytes();
  plan.total_bytes = arena.total_bytes();
  plan.device = device.name();
  plan.device_memory = device.memory();

  plan.flops_per_token = TrainFlopsPerToken(run.model, run.sequence_length);
  plan.checkpoint_bytes = 3 * SizeOf(WideOf(run.compute)) * plan.num_parameters;
  if (world > 1) {
    Arena counting;
    params.Bind(counting, /*train=*/true);
    plan.communication = CountStepCommunication(params, world, run.micro_batches_per_step());
  }
  return plan;
}

std::string FormatPlan(const RunSpec& run, const RunPlan& plan) {
  Table table;
  const int64_t T = run.sequence_length;
  table.Title(absl::StrFormat("plan for %d rank%s, %d x %d tokens per forward pass, %s", plan.world,
                              plan.world == 1 ? "" : "s", run.micro_batch, T, NameOf(run.compute)));

  table.Title("model");
  table.Row("family", run.model.family == Family::kPaper ? "paper" : "large",
            absl::StrFormat("%d wide, %d heads", run.model.embedding_dim, run.model.num_heads));
  const int64_t num_slstm = static_cast<int64_t>(run.model.slstm_at.size());
  const int64_t num_mlstm = run.model.num_blocks - num_slstm;
  table.Row("mLSTM blocks", WithCommas(num_mlstm), num_mlstm == 0 ? "" : MlstmNote(run.model));
  table.Row("sLSTM blocks", WithCommas(num_slstm), num_slstm == 0 ? "" : SlstmNote(run.model));

  table.Title("parameters");
  for (const RunPlan::Part& part : plan.parts) {
    const std::string note =
        part.num_blocks == 0
            ? ""
            : absl::StrFormat("%d x %s", part.num_blocks, WithCommas(part.num_parameters / part.num_blocks));
    table.Row(part.name, WithCommas(part.num_parameters), note);
  }
  table.Row("total", WithCommas(plan.num_parameters));

  table.Title("memory per rank, bytes");
  for (const auto& [category, bytes] : plan.memory_bytes) table.Bytes(category, bytes);
  table.Bytes("scratch (largest layer)", plan.scratch_bytes);
  table.Bytes("total", plan.total_bytes);
  if (plan.device_memory.total_bytes > 0) {
    table.Bytes(absl::StrCat("memory of ", plan.device), plan.device_memory.total_bytes);
    table.Row("of it free", WithCommas(plan.device_memory.free_bytes),
              plan.total_bytes <= plan.device_memory.free_bytes ? "the plan fits" : "the plan does NOT fit");
  }

  const int64_t step_tokens = run.global_batch * T;
  const double tokens = static_cast<double>(step_tokens) * static_cast<double>(run.steps);
  table.Title("training");
  table.Row("steps", WithCommas(run.steps));
  table.Row("micro-batches per step", WithCommas(run.micro_batches_per_step()),
            absl::StrFormat("%d per rank", run.micro_batches_per_step() / plan.world));
  table.Row("tokens per step", WithCommas(step_tokens), absl::StrFormat("%d x %d", run.global_batch, T));
  table.Row("tokens", WithCommas(step_tokens * run.steps),
            absl::StrFormat("%.2f per parameter", tokens / static_cast<double>(plan.num_parameters)));
  if (run.max_tokens > 0) table.Row("stops early after tokens", WithCommas(run.max_tokens));
  if (run.max_minutes > 0) table.Row("stops early after minutes", absl::StrFormat("%g", run.max_minutes));
  table.Row("FLOPs per token", absl::StrFormat("%.4g", plan.flops_per_token), "forward and backward");
  table.Row("FLOPs per step and rank",
            absl::StrFormat("%.4g", plan.flops_per_token * static_cast<double>(step_tokens) /
                                        static_cast<double>(plan.world)));
  table.Row("FLOPs of the run", absl::StrFormat("%.4g", plan.flops_per_token * tokens));

  table.Title("checkpoint, bytes");
  table.Row("one", WithCommas(plan.checkpoint_bytes),
            absl::StrFormat("%s, %d per parameter", Binary(plan.checkpoint_bytes),
                            plan.checkpoint_bytes / plan.num_parameters));
  if (run.checkpoint_keep_last > 0) {
    const double kept = static_cast<double>(run.checkpoint_keep_last + 1);
    table.Row(absl::StrFormat("on disk, %g of them", kept), "",
              absl::StrFormat("%.2f GiB", static_cast<double>(plan.checkpoint_bytes) * kept / (1 << 30)));
  }

  table.Title("sent per rank and step, bytes");
  for (const auto& [tag, row] : plan.communication.by_tag) {
    table.Row(tag, WithCommas(row.wire_bytes),
              absl::StrFormat("%s in %d calls", Binary(row.wire_bytes), row.num_calls));
  }
  table.Bytes("total", plan.communication.total.wire_bytes);
  return table.text();
}
}  // namespace carousel
