// RunHistory: what metrics.jsonl says about a run, in bounded memory however long it is: for the report.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "launcher/report/curve.h"
#include "launcher/report/metrics_sink.h"

namespace carousel {

class RunHistory {
 public:
  // One line of metrics.jsonl (launcher/report/metrics_file.h), without its line break. What is not
  // understood is left out and counted.
  void AddLine(std::string_view line);

  // ---- steps
  int64_t last_step = 0, tokens = 0;  // of the newest
  double last_loss = 0, wall_seconds = 0;
  Curve loss, grad_norm, lr;
  // All of these have the same buckets as `loss`; sums give shares and rates.
  Curve seconds, step_tokens, data_wait, communication, checkpoint_stall;
  double recent_step_seconds = 0;  // mean of the newest steps
  ThinnedList<int64_t> skipped{200};
  // ---- log intervals
  Curve memory, flops, mfu;
  Curve rank_min, rank_median, rank_max;
  RankTimings ranks;  // newest; num_ranks 0: none
  int64_t ranks_step = 0;
  // Ranks that were chronically slow: "rank 3 on node7", the last step, how far over.
  struct Chronic {
    int64_t first_step = 0, last_step = 0, rank = 0;
    std::string host;
    double percent_over = 0;  // the largest
  };
  std::map<int64_t, Chronic> chronic;  // by rank
  // ---- evaluations
  Curve validation, accuracy;
  double last_validation = 0, last_accuracy = 0, last_bits_per_byte = 0, source_entropy = 0;
  int64_t last_validation_step = 0;
  struct LengthAccuracy {
    int64_t from = 0, to = 0, count = 0;
    double accuracy = 0;
  };
  std::vector<LengthAccuracy> by_length;  // of the newest evaluation that has it
  // ---- events
  struct Sample {
    int64_t step = 0;
    std::string text;  // at most kMaxSampleBytes
  };
  static constexpr size_t kMaxSampleBytes = 4000;
  ThinnedList<Sample> samples{12};
  ThinnedList<CheckpointMetrics> checkpoints{64};
  std::map<std::string, int64_t> checkpoint_outcomes;
  ThinnedList<int64_t> saved_steps{64};
  CheckpointMetrics last_saved;
  std::vector<CheckpointMetrics> failures;  // the newest ones that were not saved, at most kMaxNewest
  std::vector<HealthEvent> health;          // the newest, at most kMaxNewest
  static constexpr size_t kMaxNewest = 50;
  std::map<std::string, int64_t> health_kinds;
  ThinnedList<int64_t> spikes{200};     // steps of health events of the kind "spike"
  ThinnedList<int64_t> rollbacks{200};  // and "rollback": the steps that the run went back to
  // ---- gates
  struct GateCurves {
    int64_t block = 0;
    bool slstm = false;
    struct Gate {
      Curve mean{48}, min{48}, max{48}, below{48}, above{48}, beyond{48};
      void Add(int64_t step, const ValueStats& stats);
    };
    Gate input, forget;
  };
  std::vector<GateCurves> gates;  // at most kMaxBlocks
  static constexpr size_t kMaxBlocks = 512;
  Curve logits_max, logits_rms, log_sum_exp;
  int64_t gates_step = 0;

  int64_t num_lines = 0, num_not_understood = 0;

 private:
  struct Scanned;
  void AddStep(const Scanned& s);
  double data_wait_before_ = 0;
  int64_t tokens_before_ = -1;
};

// Reads a metrics.jsonl that may be growing.
class MetricsTail {
 public:
  explicit MetricsTail(std::string path) : path_(std::move(path)) {}
  // Takes in the whole lines that were appended since the last call. A file that was replaced or cut (the run
  // went back to a checkpoint) is read again from the beginning. A missing file is an empty history. A line
  // of more than 64 MiB (zeros after a power failure) is left out and counted like others that are not ours.
  absl::Status Read();
  const RunHistory& history() const { return history_; }

 private:
  const std::string path_;
  RunHistory history_;
  uint64_t device_ = 0, inode_ = 0;
  int64_t offset_ = 0;         // of the first byte that was not taken in
  bool in_long_line_ = false;  // the bytes before it are of a line too long to be one of ours
};
}  // namespace carousel
