#include "launcher/train/training_run.h"

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <iostream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "checkpoints/directory_probe.h"
#include "checkpoints/rollback.h"
#include "checkpoints/run_identity.h"
#include "configs/load.h"
#include "core/base/log.h"
#include "core/base/status_exit_code.h"
#include "core/base/status_macros.h"
#include "core/text/tokenizer.h"
#include "core/train/agreement.h"
#include "launcher/command_device.h"
#include "launcher/models/model_source.h"
#include "launcher/preflight/preflight_run.h"
#include "launcher/progress_bar.h"
#include "launcher/report/metrics_file.h"
#include "launcher/signals.h"
#include "launcher/train/run_directory.h"
#include "launcher/train/train_setup.h"
#include "launcher/version.h"
#include "parallel/mesh_builder.h"

namespace carousel {
namespace {

std::vector<DatasetSource> Sources(const std::vector<DataSourceSpec>& specs) {
  std::vector<DatasetSource> sources;
  for (const DataSourceSpec& s : specs) sources.push_back({.path = s.path, .weight = s.weight});
  return sources;
}

// What reading all token files may take where the disk is slow.
double SecondsToRead(const RunSpec& run) {
  constexpr double kLeastRate = 50e6;  // bytes per second
  double bytes = 0;
  for (const std::string& prefix : TokenFilesOf(run)) {
    std::error_code error;
    const auto size = std::filesystem::file_size(prefix + ".bin", error);
    if (!error) bytes += static_cast<double>(size);
  }
  return bytes / kLeastRate;
}

// A file is missing or damaged; unless what the user wrote is wrong.
absl::Status DataError(const absl::Status& status) {
  return absl::IsInvalidArgument(status) ? status : WithExitCode(status, kExitData);
}
}  // namespace

TrainingRun::TrainingRun(const RunSpec& run, const TrainOptions& options, Environment& environment)
    : run_(run), options_(options), environment_(environment), sync_factory_(MakeSyncOptions(run)) {}

TrainingRun::~TrainingRun() {
  if (options_.watchdog != nullptr) options_.watchdog->ForgetCommunicators();
  constexpr double kMaxMarksSeconds = 60;
  bool hung = saver_ != nullptr && saver_->hung();
  if (health_ != nullptr && !hung) {
    const absl::Status marked = health_->Finish(kMaxMarksSeconds);
    if (!marked.ok()) CAROUSEL_LOG(WARNING) << marked.message();
    hung = !health_->worker()->WaitIdle(0);
  }
  // A thread that hangs in the file system may come back, look at the lease, read the state and give its
  // memory back to the device; it ends with the process.
  if (hung) {
    static_cast<void>(lease_.release());
    static_cast<void>(trainer_.release());
    static_cast<void>(device_.release());
  }
}

absl::Status TrainingRun::Agree(const absl::Status& mine) {
  return AgreeOnStatus(environment_.world(), mine.ok() && starting_ ? StopStatus() : mine);
}

void TrainingRun::Progress() {
  if (options_.watchdog != nullptr) options_.watchdog->Progress();
}

// What the watchdog sees of the ranks' calls, and tells when one hangs.
void TrainingRun::WatchCommunicators() {
  if (options_.watchdog == nullptr) return;
  const Mesh& mesh = mesh_->mesh();
  for (const Axis* axis : {&mesh.world, &mesh.pipe, &mesh.replicate, &mesh.shard, &mesh.replicas,
                           &mesh.sequence, &mesh.tensor}) {
    if (axis->communicator != nullptr) options_.watchdog->Watch(*axis->communicator);
    if (axis->control != nullptr) options_.watchdog->Watch(*axis->control, "(host)");
    if (axis->background != nullptr) options_.watchdog->Watch(*axis->background, "(side)");
  }
}

absl::StatusOr<std::unique_ptr<TrainingRun>> TrainingRun::Create(const RunSpec& run,
                                                                 const TrainOptions& options,
                                                                 Environment& environment) {
  std::unique_ptr<TrainingRun> self(new TrainingRun(run, options, environment));
  // Each stage is tried by all ranks; a failure of any is everybody's.
  const MeshSpec mesh = MakeMeshSpec(self->run_, environment.size());
  CAROUSEL_RETURN_IF_ERROR(ValidateMesh(mesh));
  CAROUSEL_RETURN_IF_ERROR(self->Agree(self->OpenDevice()));
  environment.world().set_name("world");
  environment.world().set_verify_calls(run.parallel.verify_calls);
  CAROUSEL_ASSIGN_OR_RETURN(self->mesh_, RunMesh::Connect(ResolveSizes(mesh), options.transport,
                                                          environment.world(), *self->device_));
  self->WatchCommunicators();
  CAROUSEL_RETURN_IF_ERROR(PreflightRun({.mode = options.preflight,
                                         .run = &self->run_,
                                         .environment = &environment,
                                         .device = self->device_.get(),
                                         .device_name = options.device,
                                         .transport = options.transport,
                                         .mesh = &self->mesh_->mesh()}));
  CAROUSEL_RETURN_IF_ERROR(self->Agree(absl::OkStatus()));
  if (options.profile.has_value()) {
    CAROUSEL_RETURN_IF_ERROR(CheckProfile(*options.profile, run.steps, environment.size()));
  }
  self->reporter_ = std::make_unique<RunReporter>(self->run_, environment, self->mesh_->mesh(),
                                                  *self->device_, options.profile);
  // One rank of a machine reads all tokens, the others wait for it.
  if (options.watchdog != nullptr) options.watchdog->Allow(SecondsToRead(run));
  CAROUSEL_RETURN_IF_ERROR(self->Agree(DataError(self->OpenData())));
  EnterSection(options.watchdog, Watchdog::Section::kSetup);
  CAROUSEL_RETURN_IF_ERROR(
      self->Agree(self->IsMain() ? WithExitCode(self->PrepareDirectory(), kExitNotSaved) : absl::OkStatus()));
  self->run_id_ = BroadcastBytes(environment.world(), self->run_id_, /*root=*/0);
  CAROUSEL_RETURN_IF_ERROR(
      WithExitCode(ProbeRunDirectory(self->run_.run_dir, &environment.world(), environment.local_rank() == 0),
                   kExitNotSaved));
  CAROUSEL_RETURN_IF_ERROR(self->Agree(WithExitCode(self->BuildTrainer(), kExitUsage)));
  CAROUSEL_RETURN_IF_ERROR(self->LoadOrInitialize());
  CAROUSEL_RETURN_IF_ERROR(self->Agree(WithExitCode(self->MakeSaver(), kExitUsage)));
  self->starting_ = false;
  return self;
}

absl::Status TrainingRun::OpenDevice() {
  CAROUSEL_ASSIGN_OR_RETURN(device_, MakeRankDevice(options_.device, run_.threads, environment_));
  if (options_.wrap_device) device_ = options_.wrap_device(std::move(device_));
  return absl::OkStatus();
}

absl::Status TrainingRun::OpenData() {
  const ByteTokenizer bytes;
  DatasetChecks checks{.vocab_size = run_.model.vocab_size,
                       .scan_token_ids = environment_.local_rank() == 0,
                       .sequence_length = run_.sequence_length};
  switch (run_.tokenizer) {
    case TokenizerKind::kBytes:
      checks.tokenizer = bytes.name();
      break;
    case TokenizerKind::kTask:
      checks.tokenizer = kTaskTokenizer;
      break;
    case TokenizerKind::kNone:
      checks.tokenizer = "none";
      break;
  }
  if (run_.train_data.empty()) {
    return absl::InvalidArgumentError(
        "data.train names no token file; make one with `carousel data build` and add train { path: "
        "\"PREFIX\" } to data");
  }
  CAROUSEL_ASSIGN_OR_RETURN(train_data_, Dataset::Open(Sources(run_.train_data), checks));
  batch_shape_ = {.B = run_.micro_batch,
                  .T = run_.sequence_length,
                  .eod_id = -1,  // without a tokenizer no id starts a document
                  .reset_at_document = run_.reset_at_document};
  if (run_.tokenizer == TokenizerKind::kBytes) batch_shape_.eod_id = bytes.eod_id();
  if (const TokenMeta* meta = train_data_->task_meta()) batch_shape_.eod_id = meta->eod_id;
  CAROUSEL_ASSIGN_OR_RETURN(sampler_,
                            Sampler::Create(train_data_->SamplerSources(), run_.sequence_length, run_.seed));
  if (!run_.validation_data.empty() && run_.eval_every_steps > 0) {
    checks.sequence_length = run_.eval_sequence_length;
    checks.sequence_length_field = "eval.sequence_length";
    CAROUSEL_ASSIGN_OR_RETURN(validation_data_, Dataset::Open(Sources(run_.validation_data), checks));
    CAROUSEL_RETURN_IF_ERROR(CheckSameTask(*train_data_, *validation_data_));
    // As many tokens at a time as in training, but at least one sequence.
    BatchShape shape = batch_shape_;
    shape.T = run_.eval_sequence_length;
    shape.B = std::max<int64_t>(1, run_.micro_batch * run_.sequence_length / shape.T);
    CAROUSEL_ASSIGN_OR_RETURN(EvaluationSource evaluation,
                              EvaluationSource::Create(*validation_data_, shape, run_.eval_num_windows));
    evaluation_.emplace(std::move(evaluation));
  }
  data_fingerprint_ = train_data_->Fingerprint();
  return absl::OkStatus();
}

// The tokens must be the same on all ranks, and those that the checkpoint was trained on.
absl::Status TrainingRun::CheckLoadedData() {
  const std::string mine = absl::StrCat(absl::Hex(data_fingerprint_));
  const std::vector<std::string> all = AllGatherBytes(environment_.world(), mine);
  for (size_t rank = 1; rank < all.size(); ++rank) {
    if (all[rank] == all[0]) continue;
    return WithExitCode(absl::FailedPreconditionError(
                            absl::StrCat("ranks 0 and ", rank,
                                         " read different training tokens under the same paths; copy the "
                                         "same token files to every machine")),
                        kExitData);
  }
  // Known from the config as well, unless the checkpoint's was unreadable or an older one had to be taken.
  if (state_.step > 0 && state_.seed != run_.seed && !options_.accept_change) {
    return WithExitCode(absl::FailedPreconditionError(absl::StrCat(
                            "the checkpoint was trained with train.seed ", state_.seed, ", which is ",
                            run_.seed, " now; go on with the same value, or pass --accept_change")),
                        kExitUsage);
  }
  if (state_.data_fingerprint == 0 || state_.data_fingerprint == data_fingerprint_) return absl::OkStatus();
  if (options_.accept_change) {
    if (IsMain()) CAROUSEL_LOG(WARNING) << "the training tokens are not those the run was trained on so far";
    return absl::OkStatus();
  }
  return WithExitCode(
      absl::FailedPreconditionError("the token files of data.train are not those the run was trained on so "
                                    "far (rebuilt, or others under "
                                    "the same path); put the old ones back, or pass --accept_change"),
      kExitData);
}

// What the state says that each source gave so far is what the sampler says.
absl::Status TrainingRun::CheckLoadedMixture() {
  const std::vector<int64_t>& counts = state_.consumed_by_source;
  if (counts.empty()) return absl::OkStatus();
  bool same = static_cast<int64_t>(counts.size()) == sampler_->num_sources();
  for (size_t i = 0; same && i < counts.size(); ++i) {
    same = counts[i] == sampler_->CountBefore(state_.consumed_sequences, static_cast<int64_t>(i));
  }
  if (same) return absl::OkStatus();
  if (options_.accept_change) {
    if (IsMain()) CAROUSEL_LOG(WARNING) << "the sources of data.train gave other samples than they would now";
    return absl::OkStatus();
  }
  return WithExitCode(absl::FailedPreconditionError("the sources of data.train gave the run other numbers of "
                                                    "samples so far than their weights say now; "
                                                    "put sources and weights back, or pass --accept_change"),
                      kExitUsage);
}

// Sample n of the run stays sample n, also if earlier steps had another batch size.
void TrainingRun::MakeLoader() {
  const int64_t M = run_.micro_batches_per_step();
  const Leaves leaves = LeavesOf(mesh_->mesh(), M);
  loader_ = std::make_unique<TrainLoader>(
      *train_data_, std::move(*sampler_),
      TrainLoader::Options{.shape = batch_shape_,
                           .micro_batches_per_step = M,
                           .micro_begin = leaves.first,
                           .micro_end = leaves.at(leaves.count - 1) + 1,
                           .micro_stride = leaves.stride,
                           .first_sample = state_.consumed_sequences - state_.step * run_.global_batch});
  sampler_.reset();
}

// Rank 0 only.
absl::Status TrainingRun::PrepareDirectory() {
  CAROUSEL_RETURN_IF_ERROR(PrepareRunDirectory(run_.run_dir));
  attempt_ = NumStarts(run_.run_dir) + 1;
  absl::StatusOr<std::unique_ptr<RunLease>> lease =
      RunLease::Acquire(run_.run_dir, {.attempt = attempt_, .should_stop = StopRequested});
  if (absl::IsCancelled(lease.status())) return WithExitCode(lease.status(), kExitStopped);
  CAROUSEL_RETURN_IF_ERROR(lease.status());
  lease_ = *std::move(lease);
  CAROUSEL_RETURN_IF_ERROR(WithExitCode(CheckRunId(), kExitUsage));
  CAROUSEL_RETURN_IF_ERROR(WithExitCode(CheckEarlierConfig(), kExitUsage));
  return SweepLeftovers(run_.run_dir);
}

// Which run this is. What begins without a checkpoint is a new one.
absl::Status TrainingRun::CheckRunId() {
  CAROUSEL_ASSIGN_OR_RETURN(const std::vector<std::string> checkpoints, ListCheckpoints(run_.run_dir));
  if (!checkpoints.empty()) {
    // With --checkpoint_fallback the load sets aside what is of another run.
    CAROUSEL_ASSIGN_OR_RETURN(run_id_, RunIdOf(run_.run_dir, /*all=*/!options_.checkpoint_fallback));
  }
  if (run_id_.empty()) run_id_ = NewRunId();
  return absl::OkStatus();
}

// Rank 0 only, once nothing can be refused any more: a start that failed leaves the directory as it was.
absl::Status TrainingRun::OpenRecords() {
  CAROUSEL_ASSIGN_OR_RETURN(std::unique_ptr<MetricsFile> file,
                            MetricsFile::Open(MetricsPath(run_.run_dir), state_.step));
  const int64_t last_saved_step = file->last_saved_step();
  metrics_ = std::make_unique<MetricsSinks>();
  metrics_->Add(std::move(file));
  console_ = std::make_unique<Console>(std::cout, ConsoleOptions{.terminal = FindTerminal(),
                                                                 .log_every_steps = run_.log_every_steps,
                                                                 .json = run_.log.json});
  CAROUSEL_RETURN_IF_ERROR(OpenHealth());
  // It was committed, but the process died before it could say so.
  if (last_saved_step < loaded_step_) {
    CAROUSEL_RETURN_IF_ERROR(metrics_->AppendCheckpoint({.step = loaded_step_, .outcome = "found"}));
  }
  const absl::Status identified = WriteRunId(run_.run_dir, run_id_);
  // Without it the checkpoints say which run this is.
  if (absl::IsResourceExhausted(identified)) CAROUSEL_LOG(WARNING) << identified.message();
  if (!identified.ok() && !absl::IsResourceExhausted(identified)) return identified;
  CAROUSEL_RETURN_IF_ERROR(RecordStart(
      run_, absl::StrCat(VersionLine(), " | ", environment_.size(), " ranks | ", options_.command_line)));
  return reporter_->Open({.attempt = attempt_, .step = state_.step, .command = options_.command_line},
                         *train_data_, metrics_.get(), console_.get());
}

// Rank 0 only.
absl::Status TrainingRun::OpenHealth() {
  CAROUSEL_ASSIGN_OR_RETURN(
      health_, RunHealth::Open(run_.run_dir, state_.step, state_.last_skipped_step,
                               run_.checkpoint.good_after_steps, /*files=*/nullptr, lease_.get()));
  if (loaded_step_ >= 0) health_->Committed(loaded_step_);
  return absl::OkStatus();
}

absl::Status TrainingRun::CheckEarlierConfig() {
  CAROUSEL_ASSIGN_OR_RETURN(const std::vector<std::string> checkpoints, ListCheckpoints(run_.run_dir));
  if (checkpoints.empty()) return absl::OkStatus();
  if (options_.fresh) {
    return absl::FailedPreconditionError(
        absl::StrCat("--fresh, but ", run_.run_dir, " holds ", checkpoints.size(),
                     checkpoints.size() == 1 ? " checkpoint" : " checkpoints",
                     "; choose another --run_dir, or move them away"));
  }
  // What the newest checkpoint was made with; if it is too damaged to say, what the run was started with
  // last.
  const absl::StatusOr<std::string> good = FindGoodCheckpoint(run_.run_dir);
  const std::string from = options_.from_good && good.ok() ? *good : checkpoints.back();
  const absl::StatusOr<std::string> saved = ReadCheckpointConfig(from);
  const RunOverrides here{.run_dir = run_.run_dir};
  std::string taken_from;
  const absl::StatusOr<RunSpec> of_directory = LoadRunOf(run_.run_dir, here, &taken_from);
  if (!taken_from.empty()) {
    CAROUSEL_LOG(WARNING) << ConfigPath(run_.run_dir) << " is missing; "
                          << (options_.has_config ? "it is written anew, from --config"
                                                  : absl::StrCat("the run goes on with ", taken_from));
  }
  CAROUSEL_ASSIGN_OR_RETURN(const RunSpec earlier,
                            saved.ok() ? LoadRunFromText(*saved, ConfigPath(from), here) : of_directory);
  // An imported run has trained nothing yet: it becomes what the config says, if the model is the same.
  const absl::StatusOr<CheckpointInfo> newest = OpenCheckpoint(from);
  const bool untrained = newest.ok() && newest->state.step == 0;
  const bool accept = options_.accept_change || untrained;
  std::vector<std::string> refused;
  for (const ConfigDifference& difference : ConfigDifferences(earlier, run_)) {
    if (!difference.acceptable || !accept) refused.push_back("  " + difference.text);
    if (difference.acceptable && accept && !untrained) {
      CAROUSEL_LOG(WARNING) << "config changed: " << difference.text;
    }
  }
  if (refused.empty()) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(run_.run_dir, " was begun with another config:\n",
                                                    absl::StrJoin(refused, "\n"),
                                                    "\nGo on with the same values, start another run with "
                                                    "--run_dir, or pass --accept_change (which cannot change "
                                                    "model.*)"));
}

absl::Status TrainingRun::BuildTrainer() {
  TrainSpec spec = MakeTrainSpec(run_);
  spec.graphs = options_.graphs;
  CAROUSEL_ASSIGN_OR_RETURN(trainer_,
                            Trainer::Create(spec, reporter_->device(), mesh_->mesh(), sync_factory_));
  if (IsMain() && run_.sample.every_steps > 0)
    generator_ = std::make_unique<Generator>(trainer_->model(), *device_);
  return absl::OkStatus();
}

// The newest checkpoint, or the newest good one; its directory. NotFound: the run has none yet.
absl::StatusOr<std::string> TrainingRun::LoadEarlier() {
  std::optional<ProgressBar> bar(std::in_place, "loading");
  auto told = std::chrono::steady_clock::now();
  const LoadOptions options{.fallback = options_.checkpoint_fallback,
                            .communicator = &environment_.world(),
                            .progress = [&](int64_t done, int64_t total) {
                              bar->Show(done, total);
                              Progress();
                              const auto now = std::chrono::steady_clock::now();
                              if (now - told < std::chrono::seconds(10)) return;
                              told = now;
                              CAROUSEL_LOG(INFO)
                                  << "loading: " << 100 * done / std::max<int64_t>(total, 1) << " %";
                            }};
  if (!options_.from_good) return LoadNewestGood(run_.run_dir, trainer_->States(), &state_, options);
  const absl::StatusOr<WentBack> went =
      GoBackToGood(run_.run_dir, trainer_->States(), &state_, options, lease_.get());
  bar.reset();
  if (absl::IsNotFound(went.status())) {
    return WithExitCode(
        absl::FailedPreconditionError(absl::StrCat("--from_good: ", went.status().message(),
                                                   "; start without --from_good to go on from the newest")),
        kExitUsage);
  }
  CAROUSEL_RETURN_IF_ERROR(went.status());
  for (const std::string& dir : went->set_aside) {
    CAROUSEL_LOG(WARNING) << "going back to " << went->dir << ": a later checkpoint is set aside as " << dir
                          << "; remove it when it is not needed";
  }
  return went->dir;
}

absl::Status TrainingRun::LoadOrInitialize() {
  const absl::StatusOr<std::string> loaded = LoadEarlier();
  if (loaded.ok()) {
    trainer_->LoadedStates();
    loaded_step_ = state_.step;
    if (IsMain()) CAROUSEL_LOG(INFO) << "resuming from " << *loaded;
  } else if (!absl::IsNotFound(loaded.status())) {
    return absl::IsDataLoss(loaded.status()) ? WithExitCode(loaded.status(), kExitData) : loaded.status();
  } else if (!run_.initial_weights.empty()) {
    absl::Status status = absl::OkStatus();
    const absl::StatusOr<ModelSource> source = OpenModel(run_.initial_weights);
    status = source.ok() ? FillWeights(*source->weights, trainer_->States()) : source.status();
    CAROUSEL_RETURN_IF_ERROR(Agree(DataError(status)));
    trainer_->LoadedStates();
    if (IsMain()) CAROUSEL_LOG(INFO) << "weights from " << source->description;
  } else {
    trainer_->Initialize(run_.seed);
  }
  CAROUSEL_RETURN_IF_ERROR(CheckLoadedData());
  CAROUSEL_RETURN_IF_ERROR(CheckLoadedMixture());
  CAROUSEL_RETURN_IF_ERROR(ApplyRollbacks());
  if (options_.profile.has_value()) {
    CAROUSEL_RETURN_IF_ERROR(WithExitCode(CheckProfileIsAhead(*options_.profile, state_.step), kExitUsage));
  }
  policy_ = HealthPolicy(run_.health, state_);
  state_.seed = run_.seed;
  state_.data_fingerprint = data_fingerprint_;
  MakeLoader();
  return Agree(IsMain() ? WithExitCode(OpenRecords(), kExitNotSaved) : absl::OkStatus());
}

absl::Status TrainingRun::MakeSaver() {
  const MeshSizes sizes = ResolveSizes(MakeMeshSpec(run_, environment_.size()));
  saver_ = std::make_unique<RunSaver>(RunSaver::Parts{.run = &run_,
                                                      .run_id = run_id_,
                                                      .trainer = trainer_.get(),
                                                      .world = &environment_.world(),
                                                      .attempt = attempt_,
                                                      .mesh = {.replicate = sizes.replicate,
                                                               .shard = sizes.shard,
                                                               .sequence = sizes.sequence,
                                                               .tensor = sizes.tensor,
                                                               .pipe = sizes.pipe},
                                                      .lease = lease_.get(),
                                                      .metrics = metrics_.get(),
                                                      .console = console_.get(),
                                                      .health = health_.get(),
                                                      .records = {MetricsPath(run_.run_dir)},
                                                      .progress = [this] { Progress(); }},
                                      loaded_step_);
  return saver_->CheckMemory();
}
}  // namespace carousel
