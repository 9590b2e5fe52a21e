#include "launcher/plan/cost_model.h"

#include <algorithm>

#include "core/base/check.h"

namespace carousel {

double CostAssumptions::network_bytes_per_s() const {
  return std::min(node_bytes_per_s, static_cast<double>(nics_per_node) * nic_bytes_per_s);
}

int64_t SpanOf(const MeshSizes& sizes, const std::string& axis) {
  const int64_t sequence = sizes.sequence * sizes.tensor, shard = sequence * sizes.shard;
  if (axis == "tensor") return sizes.tensor;
  if (axis == "sequence") return sequence;
  if (axis == "shard") return shard;
  if (axis == "replicas") return sizes.replicate > 1 ? shard * sizes.replicate : sequence;
  CAROUSEL_CHECK(axis == "pipe" || axis == "world");
  return sizes.world();
}

StepCost PredictStep(const StepWalk& walk, const MeshSizes& sizes, double flops, int64_t micro_batches,
                     const CostAssumptions& a) {
  StepCost cost;
  cost.compute_seconds = flops / (a.mfu * a.peak_flops);
  cost.bubble_seconds =
      cost.compute_seconds * static_cast<double>(sizes.pipe - 1) / static_cast<double>(micro_batches);
  cost.optimizer_seconds = 30.0 * static_cast<double>(walk.updated_elems) / a.memory_bytes_per_s;
  for (const char* name : {"replicas", "shard", "sequence", "tensor", "pipe", "world"}) {
    AxisCost axis;
    axis.axis = name;
    const int64_t calls = walk.AxisCalls(name);
    if (calls == 0) continue;
    axis.within_node = SpanOf(sizes, name) <= a.ranks_per_node;
    axis.bytes_per_s = axis.within_node ? a.node_bytes_per_s : a.network_bytes_per_s();
    axis.transfer_seconds = static_cast<double>(walk.AxisBytes(name)) / axis.bytes_per_s +
                            static_cast<double>(calls) * a.latency_seconds;
    double hidden = 0;
    if (axis.axis == "replicas") hidden = a.overlap * a.backward_share * cost.compute_seconds;
    if (axis.axis == "shard") hidden = cost.compute_seconds;
    axis.exposed_seconds = std::max(0.0, axis.transfer_seconds - hidden);
    cost.exposed_seconds += axis.exposed_seconds;
    cost.axes.push_back(axis);
  }
  return cost;
}
}  // namespace carousel
