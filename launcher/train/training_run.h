// One training run on this rank: everything that is built from a config, and the loop over steps. The train
// command is a thin shell around it. All methods are collective over the environment's world and return the
// same status on every rank.
#pragma once
#include <array>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "checkpoints/checkpoint.h"
#include "checkpoints/run_health.h"
#include "configs/run_spec.h"
#include "core/data/dataset.h"
#include "core/data/loader.h"
#include "core/model/generator.h"
#include "core/train/trainer.h"
#include "launcher/console.h"
#include "launcher/environment.h"
#include "launcher/launch/attempt_recorder.h"
#include "launcher/preflight/preflight.h"
#include "launcher/report/evaluation_report.h"
#include "launcher/report/metrics_sinks.h"
#include "launcher/report/run_reporter.h"
#include "launcher/train/health_policy.h"
#include "launcher/train/run_mesh.h"
#include "launcher/train/run_saver.h"
#include "launcher/watch/watchdog.h"
#include "parallel/sharded_sync.h"

namespace carousel {

struct TrainOptions {
  bool fresh = false;                // refuse a run directory that already holds a checkpoint
  bool checkpoint_fallback = false;  // take the newest checkpoint that is intact
  bool from_good = false;   // take the newest checkpoint that is marked as good, set later ones aside
  bool has_config = false;  // the config is not that of the run directory
  bool accept_change =
      false;  // go on although data, batch, optimizer or schedule differ from the run's config
  std::string device = "cpu";  // as --device takes it (launcher/command_device.h)
  bool graphs = true;          // TrainSpec::graphs
  RunMesh::Transport transport = RunMesh::Transport::kAuto;  // between GPUs
  PreflightMode preflight = PreflightMode::kFast;
  std::string command_line;             // for build.txt
  AttemptRecorder* recorder = nullptr;  // null: nobody asks how this rank ends
  // Stands between the run and the device that it would compute on: for tests of devices that fail. Null:
  // none.
  std::function<std::unique_ptr<Device>(std::unique_ptr<Device>)> wrap_device = {};
  std::string resume_command;               // what goes on with the run, for people (resume_command.h)
  Watchdog* watchdog = nullptr;             // outlives the run; null: none
  std::optional<ProfileSpec> profile = {};  // steps to look into
};

class TrainingRun {
 public:
  // Builds everything and loads the newest checkpoint of the run directory, if there is one. Nothing is
  // written before config, mesh and data have been found good on every rank.
  static absl::StatusOr<std::unique_ptr<TrainingRun>> Create(const RunSpec& run, const TrainOptions& options,
                                                             Environment& environment);
  ~TrainingRun();

  // Trains until the last step, a budget or a signal; evaluates, samples and saves on the way and at the end.
  absl::Status Train();

 private:
  enum class Stop : uint8_t { kNo, kTokens, kTime, kSignal };

  TrainingRun(const RunSpec& run, const TrainOptions& options, Environment& environment);
  // Training has ended for this reason; passes it on.
  absl::Status Ended(const absl::Status& status, const std::string& why);
  bool IsMain() const { return environment_.rank() == 0; }
  int64_t tokens_per_step() const { return run_.global_batch * run_.sequence_length; }
  // On the status of all; until Create has ended also on whether a signal stops the start.
  absl::Status Agree(const absl::Status& mine);
  void WatchCommunicators();
  void Progress();  // a sign of life

  // The stages of Create.
  absl::Status PrepareDirectory();
  absl::Status CheckRunId();
  absl::Status CheckEarlierConfig();
  absl::Status OpenDevice();
  absl::Status OpenData();
  absl::Status BuildTrainer();
  absl::Status LoadOrInitialize();
  absl::StatusOr<std::string> LoadEarlier();
  absl::Status CheckLoadedData();
  absl::Status CheckLoadedMixture();
  void MakeLoader();
  absl::Status ApplyRollbacks();
  absl::Status OpenRecords();
  absl::Status OpenHealth();
  absl::Status MakeSaver();

  // The stages of Train, and of one turn of its loop.
  absl::Status TrainSteps(Stop* stop);
  absl::Status AfterStep(const StepResult& result, double step_seconds);
  // Steps that look wrong (training_health.cc). ActOnHealth: before the step counts; *went_back: it does not,
  // the run is at an earlier step.
  StepOptions HealthOptions();
  absl::Status ActOnHealth(const StepResult& result, bool* went_back);
  absl::Status RollBack(int64_t bad_step, const std::string& why);
  absl::Status CheckSkipped();
  absl::Status HardwareSuspected(int64_t step, const std::string& found, const Rerun& rerun);
  absl::Status NumericError(const std::string& what);
  void NoteHealth(int64_t step, const std::string& kind, const std::string& message);
  void Evaluate();  // nothing is noted if a signal stops it
  absl::Status StoppedBySignal() const;
  void Sample();
  absl::Status SaveIfDue();
  TrainState StateToSave() const;
  // This rank's reason to stop now, as a number of each.
  std::array<int64_t, 3> StopCounts();
  Stop StopReason(const std::array<int64_t, 3>& counts) const;  // agreed: summed over all ranks
  Stop StopBeforeTraining();                                    // collective

  RunSpec run_;
  TrainOptions options_;
  Environment& environment_;
  std::unique_ptr<RunLease> lease_;  // rank 0
  std::string run_id_;
  std::unique_ptr<Device> device_;
  std::unique_ptr<RunMesh> mesh_;
  std::optional<Dataset> train_data_, validation_data_;
  uint64_t data_fingerprint_ = 0;
  std::optional<Sampler> sampler_;  // until the loader is made
  BatchShape batch_shape_;
  std::unique_ptr<TrainLoader> loader_;
  std::optional<EvaluationSource> evaluation_;
  std::unique_ptr<RunReporter> reporter_;
  ShardedSyncFactory sync_factory_;
  std::unique_ptr<Trainer> trainer_;
  std::unique_ptr<Generator> generator_;   // rank 0, if samples are wanted
  std::unique_ptr<MetricsSinks> metrics_;  // rank 0
  std::unique_ptr<Console> console_;       // rank 0
  std::unique_ptr<RunHealth> health_;      // rank 0
  std::unique_ptr<RunSaver> saver_;        // reads the trainer's memory, writes to the console
  TrainState state_;
  HealthPolicy policy_;
  bool starting_ = true;                // until Create has ended
  int64_t loaded_step_ = -1;            // step of the checkpoint that the run went on from; -1: none
  int64_t attempt_ = 0;                 // rank 0: which start of the run this is, from 1
  int64_t evaluated_step_ = -1;         // of the last evaluation by this process
  bool evaluation_stopped_ = false;     // by a signal: the run that goes on begins with it
  EvaluationReport evaluation_report_;  // rank 0: of the last evaluation
  double last_turn_ = 0;                // clock of rank 0 when wall_seconds was last brought up to date
};
}  // namespace carousel
