// What a run will take, computed from its config alone: nothing is allocated, no data is opened, any machine
// and any number of ranks will do.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "configs/run_spec.h"
#include "core/device.h"
#include "launcher/plan/cost_model.h"
#include "launcher/plan/step_walk.h"

namespace carousel {

struct RunPlan {
  int64_t world = 1;
  MeshSizes mesh;
  // Parameters by part of the model in its order: "embedding", "blocks: mlstm_layer", ...; exact.
  struct Part {
    std::string name;
    int64_t num_parameters = 0;
    int64_t num_blocks = 0;  // that have it; 0: it is not in the blocks
  };
  std::vector<Part> parts;
  int64_t num_parameters = 0;
  // What the first rank of every stage of the pipe axis does in a step, and holds.
  std::vector<StepWalk> stages;
  size_t largest_stage = 0;     // that holds the most
  size_t slowest_stage = 0;     // by the predicted time
  std::vector<StepCost> costs;  // of the stages
  const StepWalk& largest() const { return stages[largest_stage]; }
  CostAssumptions assumptions;
  std::string device;
  MemoryInfo device_memory;
  double flops_per_token = 0;    // forward and backward
  int64_t checkpoint_bytes = 0;  // master weights and both Adam moments
  int64_t staging_bytes = 0;     // host memory of the largest rank that saves pass through
};

// `device`: where it is to run: how much its kernels need in between, and how much memory it has.
// Errors: InvalidArgument with everything that is wrong with the mesh at once.
absl::StatusOr<RunPlan> MakePlan(const RunSpec& run, int64_t world, Device& device,
                                 const CostAssumptions& assumptions = {});
// A table for people.
std::string FormatPlan(const RunSpec& run, const RunPlan& plan);
}  // namespace carousel
