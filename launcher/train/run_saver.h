// When and how a run is saved, and what becomes of it: due checkpoints in the background, the last one while
// everybody waits. Outcomes go to the console and to metrics.jsonl; a save that failed is told and training
// goes on, until so many in a row have failed that the run stops. A run whose lease was taken over stops
// after the step in which that was seen, some seconds later, and writes nothing more.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "checkpoints/background_saver.h"
#include "checkpoints/checkpoint.h"
#include "checkpoints/run_health.h"
#include "configs/run_spec.h"
#include "core/train/trainer.h"
#include "launcher/console.h"
#include "launcher/report/metrics_sink.h"

namespace carousel {

class RunSaver {
 public:
  // Everything outlives the saver. `world` null: a single rank.
  struct Parts {
    const RunSpec* run = nullptr;
    std::string run_id = {};  // checkpoints/run_identity.h; the same on every rank
    Trainer* trainer = nullptr;
    Communicator* world = nullptr;
    int64_t attempt = 0;  // SaveRequest::attempt
    MeshSummary mesh = {};
    const RunLease* lease = nullptr;        // rank 0
    MetricsSink* metrics = nullptr;         // rank 0
    Console* console = nullptr;             // rank 0
    RunHealth* health = nullptr;            // rank 0
    std::vector<std::string> records = {};  // rank 0: SaveRequest::records
    FileSystem* files = nullptr;            // null: the real one
    std::function<void()> progress = {};    // BackgroundSaveOptions::progress
  };
  // saved_step: of the newest checkpoint; -1: none.
  RunSaver(const Parts& parts, int64_t saved_step);
  ~RunSaver();

  // The memory that saves pass through (background_saver.h): 0 if training waits for every save.
  int64_t staging_bytes() const;
  // Whether a rank whose trainer has these categories of memory would have so much: for plans.
  static int64_t PlannedStagingBytes(const RunSpec& run, const std::map<std::string, int64_t>& categories);
  absl::Status CheckMemory() const;

  // Collective. A checkpoint of this state is due. Not begun if the one before is still being written. An
  // error, with an exit code, when the run must stop.
  absl::Status SaveDue(const TrainState& state);
  // For StepOptions: before the state is changed, and into the step's sum over ranks.
  void BeforeUpdate();
  static constexpr size_t kNumNumbers = BackgroundSaver::kNumNumbers + 1;
  void Contribute(std::vector<int64_t>* numbers);
  // Collective, after every step and before anything is written about it, with the sums of what was
  // contributed. An error, with an exit code, if another process has the run directory now: says which.
  absl::Status CheckLease(const int64_t* sums);
  // Collective, after every step, with the sums of what was contributed. Errors as SaveDue.
  absl::Status AfterStep(const int64_t* sums);
  // Collective. Returns when the save in flight has ended.
  absl::Status Finish();
  // Collective. Finishes, then saves this state if it is not saved yet; tries as often as saves may fail in a
  // row. On success it is on the disk.
  absl::Status SaveNow(const TrainState& state);

  int64_t saved_step() const { return saved_step_; }
  int64_t num_skipped() const { return num_skipped_; }
  // A save hangs in the file system: the lease must live until the process ends.
  bool hung() const;

 private:
  SaveRequest MakeRequest(const TrainState& state) const;
  absl::Status Report(const SaveOutcome& outcome);  // collective
  // Collective: what rank 0 finds, on all.
  absl::Status LostLease(const absl::Status& found);

  const Parts parts_;
  std::unique_ptr<StateCopier> copier_;
  std::unique_ptr<BackgroundSaver> saver_;  // without a pool: training waits for every save
  int64_t saved_step_;
  int64_t num_skipped_ = 0;  // due checkpoints that were not begun, since this process started
  int64_t failed_in_row_ = 0;
  bool lost_ = false;  // the lease
};
}  // namespace carousel
