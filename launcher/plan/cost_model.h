// How long a step takes on GPUs, predicted from what is computed and sent: a model with few, stated
// assumptions, to compare meshes with before they are rented. Times in seconds.
//   compute    FLOPs of the rank / (mfu * peak); a pipe of p stages and m micro-batches adds (p-1)/m of it
//   optimizer  30 bytes per updated element from and to memory
//   transfer   bytes sent / bandwidth of the link + latency * calls
//   exposed    of the replicas axis: what is left after overlap * the backward's share of compute;
//              of the shard axis: what is left after compute; of the other axes: all of it
#pragma once
#include <string>
#include <vector>

#include "launcher/plan/step_walk.h"

namespace carousel {

struct CostAssumptions {
  double peak_flops = 989e12;  // bf16, dense, of an H100
  double mfu = 0.45;           // share of it that the computation alone reaches
  int64_t ranks_per_node = 8;
  int64_t nics_per_node = 8;        // of 400 Gb/s each
  double node_bytes_per_s = 360e9;  // per rank, within a node: 0.8 of NVLink's 450
  double nic_bytes_per_s = 0.85 * 50e9;
  double latency_seconds = 8e-6;  // per call
  double memory_bytes_per_s = 2.7e12;
  double overlap = 0.85;            // how much of the time beside which one sends can be used
  double backward_share = 2.0 / 3;  // of compute
  // Per rank between nodes: the ring through all NICs of a node, at most what a rank takes within it.
  double network_bytes_per_s() const;
};

struct AxisCost {
  std::string axis;
  bool within_node = false;
  double bytes_per_s = 0;
  double transfer_seconds = 0, exposed_seconds = 0;
};
struct StepCost {
  std::vector<AxisCost> axes;
  double compute_seconds = 0, bubble_seconds = 0, optimizer_seconds = 0, exposed_seconds = 0;
  double step_seconds() const {
    return compute_seconds + bubble_seconds + optimizer_seconds + exposed_seconds;
  }
};

// flops: of this rank in one step. micro_batches: of one rank's step.
StepCost PredictStep(const StepWalk& walk, const MeshSizes& sizes, double flops, int64_t micro_batches,
                     const CostAssumptions& assumptions);
// How many consecutive ranks an axis spans, first to last.
int64_t SpanOf(const MeshSizes& sizes, const std::string& axis);
}  // namespace carousel
