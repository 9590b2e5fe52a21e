// What a run reports while it works, and the seam to where it goes. The loop fills these structs; each
// MetricsSink writes them somewhere: metrics.jsonl (metrics_file.h), TensorBoard event files
// (tensorboard_sink.h), a Prometheus text file (prometheus_sink.h), the HTML report (html_report_sink.h).
// Rank 0 only, from the thread that trains.
#pragma once
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "core/train/gate_stats.h"
#include "launcher/report/evaluation_report.h"

namespace carousel {

// Seconds per step that ranks spend between collectives: computing, reading data, waiting for the disk; not
// waiting for each other. Over the steps of one log interval.
struct RankTimings {
  struct Rank {
    int64_t rank = 0;
    std::string host = {};
    double seconds = 0;       // per step
    double percent_over = 0;  // over the median of the ranks with the same work (its stage of the pipe axis)
  };
  int64_t num_steps = 0;  // of the interval
  int64_t num_ranks = 0;
  double min_seconds = 0, median_seconds = 0, max_seconds = 0;
  std::vector<Rank> worst = {};    // at most 3 hosts, each by its slowest rank, the slowest first
  std::vector<Rank> chronic = {};  // that have been too slow for long: rank_timings.h
  std::vector<std::string> crowded_hosts = {};  // at most 3 where ranks share cores: nobody is named there
};

struct StepMetrics {
  int64_t step = 0;    // finished steps, this one included
  int64_t tokens = 0;  // since the beginning of the run
  double loss = 0;     // nats per target token
  double grad_norm = 0, lr = 0;
  double seconds = 0;            // of this step
  double wall_seconds = 0;       // of all steps of the run
  double data_wait_seconds = 0;  // since this process started
  uint64_t data_digest = 0;
  bool skipped = false;

  // Standard deviations from the mean of the steps before. NaN: not known (yet).
  double loss_z = std::numeric_limits<double>::quiet_NaN();
  double grad_norm_z = std::numeric_limits<double>::quiet_NaN();
  // Of this step on this rank: inside of collectives; until the state had been copied for a save.
  double communication_seconds = 0, checkpoint_seconds = 0;

  // The first step of a process, those that log.every_steps divides, and the last one have what follows.
  bool logged = false;
  int64_t memory_bytes = 0;                               // resident, of this rank
  double flops_per_second = 0;                            // of the model, over the interval, all ranks
  double mfu = std::numeric_limits<double>::quiet_NaN();  // share of the devices' peak; NaN: not known
  std::optional<RankTimings> ranks = {};                  // if there are several
};

struct CheckpointMetrics {
  int64_t step = 0;
  std::string outcome;
  double seconds = 0, seconds_stalled = 0;
  int64_t num_bytes = 0;  // of the shards of all ranks
  int64_t num_skipped = 0, failed_in_row = 0;
  std::string message = {};
};

// Something about the run's numbers that people want to know: a spike, a step that was run again, a rank that
// is too slow.
struct HealthEvent {
  int64_t step = 0;
  std::string kind;     // "spike", "skipped", "rerun", "straggler", ...: one word, for sorting
  std::string message;  // for people
};

// What is known when a run starts, or starts again.
struct RunStart {
  int64_t attempt = 1;  // which start of the run this is
  int64_t step = 0;     // finished before
  int64_t total_steps = 0;
  int64_t num_ranks = 1;
  std::vector<std::string> hosts = {};  // of the ranks, each once
  std::string mesh = {};                // "replicate 2, tensor 4"; "one rank"
  std::string device = {};              // "cpu", "cuda:0 (NVIDIA H100)"
  std::string build = {};               // version, git revision, compiler
  std::string command = {};             // the command line
  std::string config = {};              // the resolved config as text
  int64_t num_parameters = 0;
  int64_t tokens_per_step = 0;
  int64_t vocab_size = 0;
  double unigram_entropy = 0;  // of single tokens of the training data, nats; 0: not known
  double unix_seconds = 0;
};

class MetricsSink {
 public:
  virtual ~MetricsSink() = default;
  // "metrics.jsonl": for the warning when it fails.
  virtual std::string name() const = 0;

  // Each is called when the thing has happened. A sink that cannot write says so and stays usable: the next
  // call may work again. Nothing here may block for long: training waits.
  virtual absl::Status Start(const RunStart&) { return absl::OkStatus(); }
  virtual absl::Status Append(const StepMetrics& metrics) = 0;
  virtual absl::Status AppendEvaluation(const EvaluationReport& report) = 0;
  virtual absl::Status AppendSample(int64_t step, const std::string& text) = 0;
  virtual absl::Status AppendCheckpoint(const CheckpointMetrics& metrics) = 0;
  virtual absl::Status AppendGates(const GateStats&) { return absl::OkStatus(); }
  virtual absl::Status AppendHealth(const HealthEvent&) { return absl::OkStatus(); }
  // The run goes back to a checkpoint, without a new start: what was reported about later steps than the
  // `finished_steps` behind it then is void.
  virtual absl::Status Rewind(int64_t finished_steps) {
    static_cast<void>(finished_steps);
    return absl::OkStatus();
  }
  // The last call of this process, if it ends in an orderly way: "finished", "stopped by a signal", an error.
  virtual absl::Status End(int64_t step, const std::string& why) {
    static_cast<void>(step), static_cast<void>(why);
    return absl::OkStatus();
  }
};
}  // namespace carousel
