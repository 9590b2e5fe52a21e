// ParamSync: all that a model and a trainer know about how weights and gradients cross ranks. Implemented in
// parallel/.
#pragma once
#include "core/tensor.h"

namespace carousel {

class ParamSync {
 public:
  virtual ~ParamSync() = default;
  virtual void Prefetch(int group) = 0;  // begin making the group's full weights readable
  virtual void Acquire(int group) = 0;   // the compute stream waits until they are; ParamStore shows them
  virtual void Release(int group) = 0;   // compute has read them for the last time in this pass
  // Before the backward pass of a micro-batch. leaf: its index among all micro-batches of the global step
  // (the leaf of the summation tree).
  virtual void BeginMicroBatch(int64_t leaf) = 0;
  // Before the first gradient of the group in this backward pass: ParamStore shows its gradient buffers, to
  // which the micro-batch adds. Once per micro-batch and group.
  virtual void BeginGradients(int group) = 0;
  // The group's gradients of this micro-batch are complete: they may be summed.
  virtual void GradReady(int group) = 0;
  // After the last micro-batch: this rank's shard of every group holds the gradient summed over all
  // micro-batches and all ranks that the parameters' placements ask for (ParamStore::ShardGrad).
  virtual void FinishStep() = 0;
  // After the optimizer updated this rank's shards of the group's weights: begin making those of all shards
  // readable. They are after the next Acquire of the group.
  virtual void WeightsUpdated(int group) = 0;
  // Before the first micro-batch of a step, the same on all ranks: from now on a digest (Ops::Digest) of what
  // this rank alone computed, its gradients before any other rank's are added to them, is added to `digest`,
  // (1) i64, by the time FinishStep returns (in the compute stream). Undefined: none is taken.
  virtual void SetDigest(Tensor digest) { static_cast<void>(digest); }
  // Whether the passes of this micro-batch may be one sequence of ops that a device records (core/device.h):
  // after Acquire of all groups the full weights stay readable at the same place, so that Prefetch, Acquire
  // and Release need not be called within; BeginGradients may come for all groups before, and GradReady for
  // all groups after the passes.
  virtual bool allows_recording(int64_t leaf) const {
    static_cast<void>(leaf);
    return false;
  }
};
}  // namespace carousel
