#include "launcher/plan/plan.h"

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
#include "launcher/train/run_saver.h"
#include "launcher/train/train_setup.h"
#include "parallel/mesh_builder.h"
#include "parallel/sharded_sync.h"

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
}  // namespace

absl::StatusOr<RunPlan> MakePlan(const RunSpec& run, int64_t world, Device& device,
                                 const CostAssumptions& assumptions) {
  constexpr int64_t kMaxWorld = 1 << 24;
  if (world > kMaxWorld) {
    return absl::InvalidArgumentError(absl::StrCat("--world ", world, " is above ", kMaxWorld, " ranks"));
  }
  CAROUSEL_RETURN_IF_ERROR(ValidateMesh(MakeMeshSpec(run, world)));
  RunPlan plan;
  plan.world = world;

  // The whole model, as one rank would have it.
  ParamStore params(run.compute, /*num_shards=*/1, /*shard_index=*/0);
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

  plan.mesh = ResolveSizes(MakeMeshSpec(run, world));
  plan.assumptions = assumptions;
  plan.flops_per_token = TrainFlopsPerToken(run.model, run.sequence_length);
  const double step_flops =
      plan.flops_per_token * static_cast<double>(run.global_batch * run.sequence_length);
  const int64_t data_ranks = plan.mesh.replicate * plan.mesh.shard;
  for (int64_t stage = 0; stage < plan.mesh.pipe; ++stage) {
    CAROUSEL_ASSIGN_OR_RETURN(StepWalk walk, WalkStep(run, plan.mesh, {.pipe = stage}, device));
    // Stages have about equal parts of the work.
    plan.costs.push_back(PredictStep(walk, plan.mesh, step_flops / static_cast<double>(world),
                                     run.micro_batches_per_step() / data_ranks, assumptions));
    plan.stages.push_back(std::move(walk));
    if (plan.stages.back().total_bytes > plan.largest().total_bytes)
      plan.largest_stage = plan.stages.size() - 1;
    if (plan.costs.back().step_seconds() > plan.costs[plan.slowest_stage].step_seconds()) {
      plan.slowest_stage = plan.costs.size() - 1;
    }
  }
  plan.device = device.name();
  plan.device_memory = device.memory();
  plan.checkpoint_bytes = 3 * SizeOf(WideOf(run.compute)) * plan.num_parameters;
  plan.staging_bytes = RunSaver::PlannedStagingBytes(run, plan.largest().memory_bytes);
  return plan;
}
}  // namespace carousel
