// RunSpec: a whole run as plain, resolved and validated structs. What the launcher reads; Protobuf stays in
// configs/.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "core/comm/model_axes.h"
#include "core/model/spec.h"
#include "core/optim/adamw.h"
#include "core/optim/schedule.h"

namespace carousel {

struct DataSourceSpec {
  std::string path;  // prefix of .bin and .idx
  double weight = 1;
};

// kNone: token files made elsewhere, ids only; kTask: the symbols of a task with a known answer.
enum class TokenizerKind : uint8_t { kBytes, kNone, kTask };

// The axes of the mesh; 0: derived from the number of ranks.
struct ParallelSpec {
  int64_t data = 0, replicate = 0, shard = 1, sequence = 1, tensor = 1, pipe = 1;
  bool ordered = true;     // gradients are added along one fixed tree
  bool bf16_wire = false;  // gradients are sent in bf16
  SequenceMode sequence_mode = SequenceMode::kAuto;
  int64_t audit_every_steps = 0;
  bool verify_calls = false;
  // replicate, or what `data` says of it; 0: what is left.
  int64_t wanted_replicate() const { return replicate > 0 ? replicate : data / shard; }
};
enum class HealthAction : uint8_t { kNote, kSkip, kRollback, kStop };
// config::HealthConfig, whose comments say what the fields mean.
struct HealthSpec {
  HealthAction on_spike = HealthAction::kNote, on_non_finite = HealthAction::kSkip;
  bool rerun = false;
  double spike_z = 6, spike_percent = 5, spike_norm_z = 0;
  int64_t max_skipped_in_row = 20, max_rollbacks = 3, data_skip_steps = 0;
  int64_t gate_stats_every_steps = 0;
};
struct RunSpec {
  ModelSpec model;
  TokenizerKind tokenizer = TokenizerKind::kBytes;
  std::vector<DataSourceSpec> train_data, validation_data;
  int64_t sequence_length = 0;  // T
  bool reset_at_document = true;
  AdamWSpec adamw;
  bool decay_embedding = false;
  ScheduleSpec schedule;
  int64_t steps = 0, global_batch = 0, micro_batch = 0;
  DType compute = DType::kBF16;
  uint64_t seed = 0;
  int64_t max_tokens = 0;
  double max_minutes = 0;
  ParallelSpec parallel;
  int64_t threads = 0;
  int64_t eval_every_steps = 0, eval_num_windows = 0;
  int64_t eval_sequence_length = 0;  // T of validation
  struct Sample {
    int64_t every_steps = 0, num_tokens = 0, top_k = 0;
    std::string prompt;
    double temperature = 1, top_p = 1;
  } sample;
  struct Checkpoint {
    int64_t every_steps = 0;  // 0: only at the end
    bool asynchronous = true;
    int64_t staging_bytes = 0;  // per rank; 0: what its state needs, at most 2 GiB
    int64_t max_failed_saves = 0;
    double timeout_seconds = 0;
    int64_t keep_last = 0, keep_every_steps = 0, keep_best = 0;  // 0: all; none; none
    int64_t good_after_steps = 0;
  } checkpoint;
  HealthSpec health;
  struct Watchdog {
    bool enabled = true;
    double scale = 1;
    double setup_seconds = 600, step_seconds = 60, evaluation_seconds = 60, sample_seconds = 120;
    double save_seconds = 300, finish_seconds = 120;
  } watchdog;
  struct Heartbeat {
    double limit_seconds = 0;  // 0: none
    std::string interface;     // empty: chosen
  } heartbeat;
  std::string initial_weights;
  int64_t log_every_steps = 0;
  struct Log {
    bool json = false;  // what a run prints about its steps
    bool tensorboard = false, prometheus = false, report = false;
    std::string prometheus_path;  // empty: in the run directory
    double report_every_seconds = 30;
    double straggler_percent = 8;
    int64_t straggler_steps = 50;
    double peak_flops = 0;  // of a rank's device; 0: by its name
  } log;
  std::string run_dir;
  std::string resolved_text;  // the resolved config in text format
  int64_t micro_batches_per_step() const { return global_batch / micro_batch; }
};
}  // namespace carousel
