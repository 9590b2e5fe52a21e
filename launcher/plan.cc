#include "launcher/plan.h"

#include <algorithm>
#include <memory>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "core/base/status_macros.h"
#include "core/comm/mesh.h"
#include "core/model/language_model.h"
#include "core/train/trainer.h"
#include "kernels/make_device.h"
#include "launcher/train_setup.h"
#include "parallel/data_parallel_sync.h"
#include "parallel/mesh_builder.h"

namespace carousel {
namespace {

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

absl::StatusOr<RunPlan> MakePlan(const RunSpec& run, int64_t world) {
  constexpr int64_t kMaxWorld = 1 << 24;
  if (world > kMaxWorld) {
    return absl::InvalidArgumentError(absl::StrCat("--world ", world, " is above ", kMaxWorld, " ranks"));
  }
  CAROUSEL_RETURN_IF_ERROR(ValidateMesh({.world = world,
                                         .data = run.parallel_data,
                                         .global_batch = run.global_batch,
                                         .micro_batch = run.micro_batch}));
  RunPlan plan;
  plan.world = world;

  // The same registration and the same Bind as in training, against a counting arena.
  ParamStore params(run.compute, world, /*shard_index=*/0);
  const LanguageModel model(run.model, params, run.decay_embedding);
  for (const Param& param : params.params()) {
    const std::string part = PartOf(param.name);
    const auto found = std::find_if(plan.parameters.begin(), plan.parameters.end(),
                                    [&](const auto& row) { return row.first == part; });
    if (found == plan.parameters.end()) {
      plan.parameters.emplace_back(part, param.num_elems);
    } else {
      found->second += param.num_elems;
    }
  }
  plan.num_parameters = params.num_parameters();

  std::string error;
  const std::unique_ptr<Device> device = MakeDevice("cpu", /*threads=*/1, &error);
  if (device == nullptr) return absl::UnavailableError(error);
  CountingCommunicator communicator(/*rank=*/0, static_cast<int>(world));
  Mesh mesh;
  mesh.data = {.size = world, .index = 0, .communicator = world > 1 ? &communicator : nullptr};
  DataParallelSyncFactory sync_factory;
  const Arena arena = Trainer::Plan(MakeTrainSpec(run), *device, mesh, sync_factory);
  plan.memory_bytes = arena.bytes_by_category();
  plan.scratch_bytes = arena.peak_scratch_bytes();
  plan.total_bytes = arena.total_bytes();

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

  table.Title("parameters");
  const auto block_note = [&](const std::string& part, int64_t count) {
    if (part.compare(0, 6, "blocks") != 0) return std::string();
    return absl::StrFormat("%d x %s", run.model.num_blocks, WithCommas(count / run.model.num_blocks));
  };
  for (const auto& [part, count] : plan.parameters)
    table.Row(part, WithCommas(count), block_note(part, count));
  table.Row("total", WithCommas(plan.num_parameters));

  table.Title("memory per rank, bytes");
  for (const auto& [category, bytes] : plan.memory_bytes) table.Bytes(category, bytes);
  table.Bytes("scratch (largest layer)", plan.scratch_bytes);
  table.Bytes("total", plan.total_bytes);

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
