// PassRunner: the passes of one step on one rank: its micro-batches forward and backward and their exchanges
// with neighbouring stages, in the order of the action list.
#pragma once
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "core/comm/stage_link.h"
#include "core/train/device_batch.h"
#include "core/train/trainer.h"

namespace carousel {

class PassRunner {
 public:
  // All must outlive the runner; `model` and `sync` are of `params`.
  PassRunner(const TrainSpec& spec, Device& device, const Mesh& mesh, ParamStore& params,
             LanguageModel& model, ParamSync& sync);

  // Passes that are between forward and backward at one time, for LanguageModel::Bind.
  int64_t num_slots() const { return static_cast<int64_t>(slots_.size()); }
  void Bind(Arena& arena);
  // Reads and computes this rank's micro-batches; gradients go to the sync. loss_sum += the losses that this
  // rank counts. Returns the number of targets in its micro-batches, the whole sequences'. gate_stats: as
  // LanguageModel::Input has it; such a step is not played from records.
  int64_t Run(int64_t step, BatchSource& source, Tensor loss_sum, Tensor gate_stats = {});

 private:
  // A micro-batch from before its forward until after its backward pass.
  struct Slot {
    DeviceBatch batch;
    LanguageModel::Input input;
    int64_t micro = -1;
    bool in_flight = false;  // between forward and backward
  };
  // What the arguments of a pass's ops depend on. Everything else stays where Bind put it.
  struct PassKey {
    bool resets;
    // The sync changes the buffers from leaf to leaf, and whether anything is in them.
    std::vector<std::pair<const void*, bool>> gradients;
    auto operator<=>(const PassKey&) const = default;
  };
  int64_t SlotOf(int64_t micro) const { return micro % num_slots(); }
  // The input of a micro-batch, read if it has not been.
  const LanguageModel::Input& InputOf(int64_t micro);
  void PrefetchAfter(size_t index);
  void Exchange(const Action& action);
  void ForwardBackward(int64_t micro);
  bool MayRecord(const LanguageModel::Input& input, int64_t leaf) const;
  PassKey KeyOf(const LanguageModel::Input& input) const;

  const TrainSpec& spec_;
  Device& device_;
  ParamStore& params_;
  LanguageModel& model_;
  ParamSync& sync_;
  Leaves leaves_;
  ModelAxes axes_;
  StageLink link_;
  std::vector<Action> actions_;
  std::vector<Slot> slots_;
  std::map<PassKey, std::unique_ptr<Recording>> passes_;

  // Of the step in progress.
  int64_t step_ = 0, num_targets_ = 0;
  BatchSource* source_ = nullptr;
  Tensor loss_sum_, gate_stats_;
  Batch batch_;
};
}  // namespace carousel
