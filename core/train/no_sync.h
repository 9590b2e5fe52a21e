// NoSync: the ParamSync of a single rank without communication. One gradient buffer per segment, in which the
// micro-batches of a step accumulate in order. For tests and tools: a training run uses
// parallel/sharded_sync.h also on one rank, whose summation tree gives the same bits for every number of
// ranks.
#pragma once
#include <memory>
#include <vector>

#include "core/train/trainer.h"

namespace carousel {

class NoSyncFactory final : public ParamSyncFactory {
 public:
  // REQUIRES: mesh.world.size == 1.
  std::unique_ptr<ParamSync> Make(ParamStore& params, Device& device, const Mesh& mesh,
                                  int64_t micro_batches_per_step) override;
  void Bind(ParamSync& sync, Arena& arena) override;
};
}  // namespace carousel
