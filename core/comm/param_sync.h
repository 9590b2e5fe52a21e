// ParamSync: all that a model and a trainer know about how weights and gradients cross ranks. Implemented in
// parallel/.
#pragma once
#include "core/tensor.h"

namespace carousel {

class ParamSync {
 public:
  virtual ~ParamSync() = default;
  // Before a micro-batch. leaf: its index among all micro-batches of the global step (the leaf of the
  // summation tree). The gradients of every group read 0 afterwards.
  virtual void BeginMicroBatch(int64_t leaf) = 0;
  virtual void Prefetch(int group) = 0;  // begin making the group's full weights readable
  virtual void Acquire(int group) = 0;   // the compute stream waits until they are
  virtual void Release(int group) = 0;   // compute has read them for the last time in this pass
  virtual void GradReady(
      int group) = 0;  // the group's gradients of this micro-batch are complete: they may be summed
  // After the last micro-batch: this rank's shard of every group holds the gradient summed over all
  // micro-batches of all ranks (ParamStore::shard(...).grad).
  virtual void FinishStep() = 0;
  // After the optimizer updated this rank's shards of the weights: makes the weights of all shards readable.
  virtual void GatherWeights() = 0;
  // Whether the passes of a micro-batch may be one sequence of ops that a device records (core/device.h): the
  // full weights are always readable, at the same place, so that Prefetch, Acquire and Release need not be
  // called; and GradReady may come for all groups after the whole backward pass.
  virtual bool allows_recording() const { return false; }
};
}  // namespace carousel
