// Trainer: one optimisation step over all micro-batches, on one rank of any mesh. It does not log, save,
// parse or decide when to stop.
//
// Passes of the micro-batches in the order of an action list (core/train/actions.h), then the sum of
// gradients (core/comm/param_sync.h), then one all-reduce of scalars, by which all ranks decide alike, then
// the update of this rank's shards.
#pragma once
#include <cmath>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "core/comm/mesh.h"
#include "core/device.h"
#include "core/model/language_model.h"
#include "core/optim/adamw.h"
#include "core/optim/schedule.h"
#include "core/train/actions.h"
#include "core/train/batch.h"
#include "core/train/evaluator.h"
#include "core/train/gate_stats.h"
#include "core/train/state_copier.h"
#include "core/train/state_visitor.h"

namespace carousel {

struct TrainSpec {
  ModelSpec model;
  AdamWSpec adamw;
  ScheduleSpec schedule;
  bool decay_embedding = false;
  uint64_t dropout_seed = 0;           // dropout masks are a function of it, the step and the micro-batch
  int64_t T = 0;                       // tokens per sequence
  int64_t longest_eval_T = 0;          // Evaluate may have sequences up to this long; 0: up to T
  int64_t micro_batch = 0;             // B
  int64_t micro_batches_per_step = 0;  // over all ranks: the leaves of the summation tree
  DType compute = DType::kF32;
  SequenceMode sequence_mode = SequenceMode::kAuto;
  // The order of passes and exchanges on a pipe axis; needed where it has several stages.
  ActionSchedule actions = {};
  // Where the device records sequences of ops (Device::records): play micro-batches that are alike from a
  // record instead of issuing their ops one by one. The results have the same bits.
  bool graphs = true;
  bool gate_stats = false;  // StepOptions::measure_gates may be asked for
  bool digests = false;  // StepOptions::judge may answer kRerun: costs one pass over the gradients per step
};

// What becomes of a step whose loss and gradient are known.
enum class StepVerdict : uint8_t {
  kUpdate,
  kSkip,   // no rank updates anything
  kRerun,  // its passes are run once more, from the same batches, and what every rank computed is compared
};

// What two runs of one step had in common. The same on every rank.
struct Rerun {
  // The ranks that got something else the second time, and what: their losses, the gradients of their
  // micro-batches, or only their shards of the gradients' sum, though all that went into it was the same.
  // Ranks that share sequences, or a model, see each other's errors: all of them differ then.
  struct Difference {
    int rank = 0;  // of the world
    bool loss = false, gradient = false, sum = false;
  };
  std::vector<Difference> differences;  // by rank; empty: every bit was the same
};

struct StepResult {
  double loss = 0;       // mean over the global number of target tokens, nats
  double grad_norm = 0;  // of the mean loss, before clipping
  double lr = 0;
  int64_t num_targets = 0;  // global
  // Terms that were not finite: losses of tokens, and blocks of kSquaredNormBlock elements of the gradient.
  int64_t num_non_finite = 0;
  std::vector<int64_t> contributed;  // StepOptions::contribute, summed over all ranks
  // No rank updated anything: there was no target, the loss or the gradient was not finite (that one is NaN
  // or infinite), StepOptions::judge said so, or a second run gave something else.
  bool skipped = false;
  bool finite() const { return std::isfinite(loss) && std::isfinite(grad_norm); }
  std::optional<Rerun> rerun = {};
  std::optional<GateStats> gates = {};  // if they were measured; `step` counts this step
};

struct StepOptions {
  std::optional<double> lr = {};  // instead of the schedule's rate
  int64_t num_skipped =
      0;  // steps before this one that made no update: Adam's bias correction counts updates
  // Called when this step's batches have been read, before the all-reduce of scalars: appends a few numbers
  // (as many on every rank) that are summed over all ranks with them, modulo 2^64.
  std::function<void(std::vector<int64_t>*)> contribute = {};
  // Called with loss, norm and rate when they are known, unless there was no target; again, with `rerun`,
  // when a second run had the same bits. The same answer on every rank, from what is the same on every rank.
  // Not kUpdate for what is not finite; kRerun once, and only with TrainSpec::digests. Null: update what is
  // finite.
  std::function<StepVerdict(const StepResult&)> judge = {};
  bool measure_gates = false;  // the same on every rank; with TrainSpec::gate_stats
  // Called before this step changes any of States(), if it does: on a step that is skipped not at all.
  std::function<void()> before_update = {};
};

// How a mesh spreads parameters: the optimizer over shard x replicas (shard outermost), weights over shard.
ParamPartition PartitionOf(const Mesh& mesh);

// Makes the ParamSync for a store once all parameters are registered (parallel/ implements; NoSync for a
// single rank in tests). Its Bind places gradient buffers (category "gradients").
class ParamSyncFactory {
 public:
  virtual ~ParamSyncFactory() = default;
  // `params` is partitioned as PartitionOf(mesh). All must outlive the sync.
  virtual std::unique_ptr<ParamSync> Make(ParamStore& params, Device& device, const Mesh& mesh,
                                          int64_t micro_batches_per_step) = 0;
  // Places the buffers of `sync`, which this factory made. Called once for counting and once for real.
  virtual void Bind(ParamSync& sync, Arena& arena) = 0;
};

class Trainer {
 public:
  // mesh.data_size() must divide micro_batches_per_step; this rank computes LeavesOf(mesh, M). The sequence
  // axis times the tensor axis must divide the length of every sequence, a pipe axis has no more stages than
  // there are blocks. All references must outlive the trainer. Allocates everything (memory is planned by
  // binding twice). A device without enough memory is an error that says how much is needed, what it has and
  // what to reduce.
  // On a device whose memory the host cannot read, an axis of several ranks has `control` (core/comm/mesh.h).
  static absl::StatusOr<std::unique_ptr<Trainer>> Create(const TrainSpec& spec, Device& device,
                                                         const Mesh& mesh, ParamSyncFactory& sync_factory);
  // The same where memory is known to suffice: a CHECK instead of an error.
  Trainer(const TrainSpec& spec, Device& device, const Mesh& mesh, ParamSyncFactory& sync_factory);
  ~Trainer();

  void Initialize(uint64_t seed);
  // One step; `step` counts from 0. Waits for the device once, for the loss and the norm.
  StepResult Step(int64_t step, BatchSource& source, const StepOptions& options = {});
  // Mean loss and accuracy over all target tokens of the batches [0, num_batches) of step 0 of `source`,
  // spread over the data axis; same bits for every number of ranks. Sequences are at most
  // max(T, longest_eval_T) long, batches have at most max_eval_tokens() tokens.
  EvaluationResult Evaluate(BatchSource& source, int64_t num_batches,
                            const std::function<bool()>& should_stop = nullptr);
  int64_t max_eval_tokens() const;

  // Every slice of state this rank owns, in host-accessible memory (on a device that is not, a copy made by
  // this call). Call LoadedStates() after writing into it.
  std::vector<StateSlice> States();
  // The same slices where they live. On a device whose memory the host cannot read, `data` is for the copier
  // of MakeStateCopier only, which is null on others.
  std::vector<StateSlice> StatesInPlace();
  std::unique_ptr<StateCopier> MakeStateCopier();
  // After the memory of States() was filled: weights := master, gathered over ranks.
  void LoadedStates();
  // Collective. Waits until params() shows the weights of the last update, for reading them outside of a
  // step. REQUIRES: every rank has whole weights (the shard axis has one rank).
  void WaitForWeights();
  // Collective. Whether the weights that ranks hold several times are the same: core/train/replica_audit.h.
  absl::Status AuditReplicas();

  ParamStore& params();
  LanguageModel& model();
  const Arena& arena() const;  // the real one, for the plan's table
  // What Trainer would place, without a device's memory: the counting arena for the same arguments.
  static Arena Plan(const TrainSpec& spec, Device& device, const Mesh& mesh, ParamSyncFactory& sync_factory);

 private:
  struct Impl;
  explicit Trainer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};
}  // namespace carousel
