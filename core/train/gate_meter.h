// GateMeter: where a step's statistics of gates and logits are added up on this rank, and how those of all
// ranks become one.
#pragma once
#include "core/arena.h"
#include "core/comm/mesh.h"
#include "core/device.h"
#include "core/model/language_model.h"
#include "core/train/gate_stats.h"

namespace carousel {

class GateMeter {
 public:
  // Category "reductions". `model` must outlive the meter.
  void Bind(Arena& arena, const LanguageModel& model);
  bool bound() const { return sums_.defined(); }
  // LanguageModel::Input::gate_stats of every pass of a step, after Clear.
  Tensor sums() const { return sums_; }
  void Clear(Ops& ops) const;
  // Collective over mesh.world: an all-reduce of about 1.1 KB and a gather of 16 bytes for every gate of the
  // whole model, of host memory. Waits for the device.
  GateStats Collect(Device& device, const Mesh& mesh) const;

 private:
  const LanguageModel* model_ = nullptr;
  Tensor sums_;  // (rows of the part, kValueSumElems) i64
};
}  // namespace carousel
