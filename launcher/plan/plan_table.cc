// The plan as a table for people.
#include <algorithm>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "launcher/plan/plan.h"

namespace carousel {
namespace {

// 6865424896 -> "6,865,424,896".
std::string WithCommas(int64_t value) {
  std::string digits = absl::StrCat(value);
  for (int64_t i = static_cast<int64_t>(digits.size()) - 3; i > 0; i -= 3)
    digits.insert(static_cast<size_t>(i), ",");
  return digits;
}

std::string Binary(double value) {
  const char* const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  size_t unit = 0;
  while (value >= 1024 && unit < 6) value /= 1024, ++unit;
  return absl::StrFormat(unit == 0 ? "%.0f %s" : "%.2f %s", value, units[unit]);
}

std::string Binary(int64_t bytes) { return Binary(static_cast<double>(bytes)); }

// What the policy keeps, the newest good one and the one being written, of all that the run saves.
int64_t MostCheckpoints(const RunSpec& run) {
  const RunSpec::Checkpoint& c = run.checkpoint;
  const int64_t saves = c.every_steps > 0 ? (run.steps + c.every_steps - 1) / c.every_steps : 1;
  if (c.keep_last == 0) return saves;
  const int64_t for_ever = c.keep_every_steps > 0 ? run.steps / c.keep_every_steps : 0;
  return std::min(saves, c.keep_last + c.keep_best + for_ever + 2);
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

std::string Milliseconds(double seconds) { return absl::StrFormat("%.3f ms", 1e3 * seconds); }

void AddMesh(const RunPlan& plan, Table* table) {
  const MeshSizes& mesh = plan.mesh;
  if (plan.world == 1) return;
  table->Title("mesh");
  const auto row = [&](const char* axis, int64_t size, const char* what) {
    if (size > 1) table->Row(axis, WithCommas(size), what);
  };
  row("pipe", mesh.pipe, "stages of blocks");
  row("replicate", mesh.replicate, "different sequences, all weights, a part of the optimizer");
  row("shard", mesh.shard, "different sequences, a part of the weights and of the optimizer");
  row("sequence", mesh.sequence, "different tokens of the same sequences");
  row("tensor", mesh.tensor, "different heads, features and vocabulary");
}

void AddTraffic(const RunSpec& run, const RunPlan& plan, Table* table) {
  const StepWalk& rank = plan.stages[plan.slowest_stage];
  table->Title(plan.mesh.pipe == 1
                   ? "sent per rank and step, bytes"
                   : absl::StrFormat("sent per rank of stage %d and step, bytes", plan.slowest_stage));
  int64_t within_node = 0, between_nodes = 0;
  for (const AxisTraffic& row : rank.traffic) {
    const bool within = SpanOf(plan.mesh, row.axis) <= plan.assumptions.ranks_per_node;
    table->Row(absl::StrCat(row.axis, ": ", row.op), WithCommas(row.wire_bytes),
               absl::StrFormat("%s in %s calls", Binary(row.wire_bytes), WithCommas(row.num_calls)));
    (within ? within_node : between_nodes) += row.wire_bytes;
  }
  table->Bytes("total", within_node + between_nodes);
  if (plan.world == 1) return;
  const std::string of_ranks = absl::StrFormat(", of %d ranks", plan.assumptions.ranks_per_node);
  table->Row("axes within a node", WithCommas(within_node), Binary(within_node) + of_ranks);
  table->Row("axes across nodes", WithCommas(between_nodes), Binary(between_nodes));
  // Not of every step: how long each rank took, report/rank_timings.h.
  const int64_t timings = 8 * (plan.world - 1);
  table->Row("who is slow", WithCommas(timings),
             absl::StrFormat("%s in 1 call every %d steps, not in the sums above", Binary(timings),
                             run.log_every_steps));
}

void AddTime(const RunSpec& run, const RunPlan& plan, Table* table) {
  const StepCost& cost = plan.costs[plan.slowest_stage];
  const CostAssumptions& a = plan.assumptions;
  table->Title("time of a step, predicted (not measured)");
  table->Row("compute", Milliseconds(cost.compute_seconds),
             absl::StrFormat("%.0f%% of %.0f TFLOP/s", 100 * a.mfu, a.peak_flops / 1e12));
  if (plan.mesh.pipe > 1) table->Row("stages that wait", Milliseconds(cost.bubble_seconds));
  table->Row("optimizer", Milliseconds(cost.optimizer_seconds));
  for (const AxisCost& axis : cost.axes) {
    table->Row(absl::StrCat("exposed: ", axis.axis), Milliseconds(axis.exposed_seconds),
               absl::StrFormat("of %s %s at %.0f GB/s", Milliseconds(axis.transfer_seconds),
                               axis.within_node ? "within a node" : "between nodes", axis.bytes_per_s / 1e9));
  }
  table->Row("step", Milliseconds(cost.step_seconds()),
             absl::StrFormat("%.1f%% of it computes", 100 * cost.compute_seconds / cost.step_seconds()));
  const double tokens = static_cast<double>(run.global_batch * run.sequence_length);
  table->Row(
      "tokens per second", WithCommas(static_cast<int64_t>(tokens / cost.step_seconds())),
      absl::StrFormat("%.0f per rank", tokens / cost.step_seconds() / static_cast<double>(plan.world)));
  table->Row("assumed", absl::StrFormat("%d ranks per node", a.ranks_per_node),
             absl::StrFormat("%d NICs, %.0f us per call, %.0f%% of backward overlaps", a.nics_per_node,
                             1e6 * a.latency_seconds, 100 * a.overlap));
}
}  // namespace

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

  AddMesh(plan, &table);

  const StepWalk& rank = plan.largest();
  table.Title(plan.mesh.pipe == 1 ? "memory per rank, bytes"
                                  : absl::StrFormat("memory per rank of stage %d, which has the most, bytes",
                                                    plan.largest_stage));
  for (const auto& [category, bytes] : rank.memory_bytes) table.Bytes(category, bytes);
  table.Bytes("scratch (largest layer)", rank.scratch_bytes);
  table.Bytes("total", rank.total_bytes);
  table.Bytes("host memory, to save through", plan.staging_bytes);
  if (plan.device_memory.total_bytes > 0) {
    table.Bytes(absl::StrCat("memory of ", plan.device), plan.device_memory.total_bytes);
    table.Row("of it free", WithCommas(plan.device_memory.free_bytes),
              rank.total_bytes <= plan.device_memory.free_bytes ? "the plan fits" : "the plan does NOT fit");
  }

  const int64_t step_tokens = run.global_batch * T;
  const double tokens = static_cast<double>(step_tokens) * static_cast<double>(run.steps);
  table.Title("training");
  table.Row("steps", WithCommas(run.steps));
  table.Row(
      "micro-batches per step", WithCommas(run.micro_batches_per_step()),
      absl::StrFormat("%d per rank", run.micro_batches_per_step() / (plan.mesh.replicate * plan.mesh.shard)));
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
  const int64_t on_disk = MostCheckpoints(run);
  table.Row(absl::StrFormat("on disk, at most %d of them", on_disk), "",
            Binary(static_cast<double>(plan.checkpoint_bytes) * static_cast<double>(on_disk)));

  AddTraffic(run, plan, &table);
  if (plan.world > 1) AddTime(run, plan, &table);
  return table.text();
}
}  // namespace carousel
