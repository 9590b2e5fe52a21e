// What one rank of a mesh does in one training step, found by running that step: the trainer, the model and
// the sync are the real ones, on a DryDevice and with communicators that count.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "configs/run_spec.h"
#include "core/device.h"
#include "parallel/mesh_builder.h"

namespace carousel {

// Calls of one kind along one axis of the mesh.
struct AxisTraffic {
  std::string axis;  // "replicas", "shard", "sequence", "tensor", "pipe", "world"
  std::string op;    // "AllGather", ...
  int64_t num_calls = 0;
  int64_t wire_bytes = 0;  // sent by this rank
};

struct StepWalk {
  MeshPlace place;
  std::vector<AxisTraffic> traffic;             // in the order of the axes above
  std::map<std::string, int64_t> memory_bytes;  // by category of the arena
  int64_t scratch_bytes = 0, total_bytes = 0;
  int64_t num_parameters = 0;  // elements that this rank holds weights of while it computes
  int64_t updated_elems = 0;   // of the optimizer's shard
  int64_t AxisBytes(const std::string& axis) const;
  int64_t AxisCalls(const std::string& axis) const;
};

// The walk of the rank at `place`. `like`: whose kernels say how much memory they need in between.
// REQUIRES: the mesh has no violations.
absl::StatusOr<StepWalk> WalkStep(const RunSpec& run, const MeshSizes& sizes, const MeshPlace& place,
                                  Device& like);
}  // namespace carousel
