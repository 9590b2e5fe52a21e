// TrainingRun: the loop over steps and what happens between them.
#include <sys/resource.h>

#include <chrono>
#include <cmath>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "core/base/log.h"
#include "core/base/status_macros.h"
#include "core/text/tokenizer.h"
#include "core/text/utf8.h"
#include "launcher/exit_codes.h"
#include "launcher/signals.h"
#include "launcher/train/training_run.h"
#include "launcher/watch/run_watchdog.h"

namespace carousel {
namespace {

double Seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}
// A metrics line or a mark that cannot be written (a full disk) is no reason to lose the run.
void Warn(const absl::Status& status) {
  if (!status.ok()) CAROUSEL_LOG(WARNING) << status.message();
}
}  // namespace

absl::Status TrainingRun::Train() {
  if (IsMain()) {
    CAROUSEL_LOG(INFO) << environment_.Describe();
    CAROUSEL_LOG(INFO) << absl::StrFormat(
        "%d parameters, %d tokens per step, %d training tokens, %s on %s, %.1f MiB planned per rank and %.1f "
        "MiB to save through",
        NumParameters(run_.model), run_.global_batch * run_.sequence_length, train_data_->num_tokens(),
        NameOf(run_.compute), device_->name(),
        static_cast<double>(trainer_->arena().total_bytes()) / (1 << 20),
        static_cast<double>(saver_->staging_bytes()) / (1 << 20));
    if (state_.step >= run_.steps) CAROUSEL_LOG(INFO) << "all " << run_.steps << " steps are done already";
  }
  last_turn_ = Seconds();
  Stop stop = Stop::kNo;
  if (const absl::Status trained = TrainSteps(&stop); !trained.ok()) {
    EnterSection(options_.watchdog, Watchdog::Section::kSave);
    // A save in flight is of an earlier, good state.
    if (const absl::Status saved = saver_->Finish(); !saved.ok() && IsMain()) {
      CAROUSEL_LOG(WARNING) << saved.message();
    }
    return Ended(trained, absl::StrCat("failed: ", trained.message()));
  }
  // Whoever sent a signal may not wait long: save first, and leave the evaluation to the run that goes on.
  if (state_.step >= run_.steps) stop = Stop::kNo;
  // Nothing was trained: what there was before is left as it was.
  EnterSection(options_.watchdog, Watchdog::Section::kSave);
  if (stop != Stop::kSignal || state_.step > 0) {
    if (const absl::Status saved = saver_->SaveNow(StateToSave()); !saved.ok()) {
      return Ended(saved, absl::StrCat("failed: ", saved.message()));
    }
  }
  if (stop != Stop::kSignal && evaluation_.has_value() && evaluated_step_ != state_.step) Evaluate();
  if (IsMain() && options_.watchdog != nullptr) {
    RememberLimits(*options_.watchdog, run_.run_dir, environment_.size());
  }
  EnterSection(options_.watchdog, Watchdog::Section::kFinish);
  if (IsMain()) {
    if (evaluated_step_ == state_.step && !evaluation_report_.by_length.empty()) {
      console_->Message(FormatAccuracyTable(evaluation_report_));
    }
    const char* why = stop == Stop::kTokens   ? "token budget used up"
                      : stop == Stop::kTime   ? "time budget used up"
                      : stop == Stop::kSignal ? "stopped by a signal"
                                              : "finished";
    console_->Message(absl::StrFormat(
        "%s at step %d, %d tokens, %.1f min of training; %d steps skipped; run directory %s", why,
        state_.step, state_.consumed_tokens, state_.wall_seconds / 60, state_.skipped_steps, run_.run_dir));
    Warn(metrics_->End(state_.step, why));
  }
  return stop == Stop::kSignal ? StoppedBySignal() : absl::OkStatus();
}

absl::Status TrainingRun::StoppedBySignal() const {
  return WithExitCode(
      absl::CancelledError(absl::StrCat(
          "stopped by a signal at step ", state_.step,
          state_.step > 0 ? ", everything is saved" : ", nothing was trained yet", "; to go on: ",
          options_.resume_command.empty() ? "run the same command again" : options_.resume_command)),
      kExitStopped);
}

absl::Status TrainingRun::Ended(const absl::Status& status, const std::string& why) {
  // Not into a directory that another process has taken over.
  if (IsMain() && lease_->StillHeld().ok()) Warn(metrics_->End(state_.step, why));
  return status;
}

absl::Status TrainingRun::TrainSteps(Stop* stop) {
  *stop = state_.step < run_.steps ? StopBeforeTraining() : Stop::kNo;
  // The attempt before this one was stopped in this evaluation, or before it.
  if (*stop == Stop::kNo && state_.step > 0 && state_.step < run_.steps && evaluation_.has_value() &&
      state_.step % run_.eval_every_steps == 0 && state_.evaluated_step < state_.step) {
    Evaluate();
  }
  if (evaluation_stopped_) *stop = Stop::kSignal;
  bool waits = false;  // this step, for copies of the state on any rank, or for a sample of rank 0
  while (state_.step < run_.steps && *stop == Stop::kNo) {
    EnterSection(options_.watchdog, waits ? Watchdog::Section::kStepAfterSave : Watchdog::Section::kStep);
    reporter_->BeforeStep(state_.step + 1);
    const double start = Seconds();
    // What else all ranks must know after this step goes with its one reduction of scalars: the digest of the
    // tokens, counted once for each, the reasons to stop, and how far the save in flight is.
    const auto contribute = [this](std::vector<int64_t>* numbers) {
      const uint64_t digest = loader_->TakeDigest();
      numbers->push_back(mesh_->mesh().speaks_for_data() ? static_cast<int64_t>(digest) : 0);
      for (const int64_t count : StopCounts()) numbers->push_back(count);
      saver_->Contribute(numbers);
    };
    StepOptions options = HealthOptions();
    options.contribute = contribute;
    options.before_update = [this] { saver_->BeforeUpdate(); };
    const StepResult result = trainer_->Step(state_.step, *loader_, options);
    constexpr size_t kOwnNumbers = 4;
    CAROUSEL_CHECK_EQ(result.contributed.size(), kOwnNumbers + RunSaver::kNumNumbers);
    CAROUSEL_RETURN_IF_ERROR(saver_->CheckLease(result.contributed.data() + kOwnNumbers));
    bool went_back = false;
    CAROUSEL_RETURN_IF_ERROR(ActOnHealth(result, &went_back));
    if (!went_back) {
      CAROUSEL_RETURN_IF_ERROR(AfterStep(result, Seconds() - start));
      CAROUSEL_RETURN_IF_ERROR(saver_->AfterStep(result.contributed.data() + kOwnNumbers));
      const bool due = run_.checkpoint.every_steps > 0 && state_.step % run_.checkpoint.every_steps == 0;
      waits = due || (run_.sample.every_steps > 0 && state_.step % run_.sample.every_steps == 0);
      if (due) EnterSection(options_.watchdog, Watchdog::Section::kSave);
      CAROUSEL_RETURN_IF_ERROR(SaveIfDue());
    }
    // Without another step: at the start of a run the evaluation of its own step is made up for.
    *stop = evaluation_stopped_
                ? Stop::kSignal
                : StopReason({result.contributed[1], result.contributed[2], result.contributed[3]});
  }
  return absl::OkStatus();
}

absl::Status TrainingRun::AfterStep(const StepResult& result, double step_seconds) {
  // The tokens that all ranks saw as one number: runs with equal digests saw equal data.
  const uint64_t digest = static_cast<uint64_t>(result.contributed[0]);
  const int64_t tokens = tokens_per_step();
  reporter_->AfterStep(state_.step + 1, step_seconds, loader_->starved_seconds());
  state_.step += 1;
  if (options_.recorder != nullptr) options_.recorder->CompletedStep(state_.step);
  state_.consumed_sequences += run_.global_batch;
  state_.consumed_tokens += tokens;
  state_.wall_seconds += Seconds() - last_turn_;  // evaluations and saves since the last step included
  last_turn_ = Seconds();
  policy_.Remember(result, &state_);
  const bool healthy = !result.skipped && policy_.finding() == HealthPolicy::Finding::kFine;

  if (IsMain()) {
    Warn(metrics_->Append({.step = state_.step,
                           .tokens = state_.consumed_tokens,
                           .loss = result.loss,
                           .grad_norm = result.grad_norm,
                           .lr = result.lr,
                           .seconds = step_seconds,
                           .wall_seconds = state_.wall_seconds,
                           .data_wait_seconds = loader_->starved_seconds(),
                           .data_digest = digest,
                           .skipped = result.skipped,
                           .loss_z = policy_.loss_z(),
                           .grad_norm_z = policy_.grad_norm_z()}));
    if (result.gates.has_value()) Warn(metrics_->AppendGates(*result.gates));
    console_->Step({.step = state_.step,
                    .total_steps = run_.steps,
                    .loss = result.loss,
                    .grad_norm = result.grad_norm,
                    .lr = result.lr,
                    .tokens = tokens,
                    .seconds = step_seconds,
                    .loss_z = policy_.loss_z(),
                    .grad_norm_z = policy_.grad_norm_z()});
    Warn(health_->AfterStep(state_.step, healthy));
  }
  CAROUSEL_RETURN_IF_ERROR(CheckSkipped());
  if (run_.parallel.audit_every_steps > 0 && state_.step % run_.parallel.audit_every_steps == 0) {
    // Not saved either: nobody knows which of the ranks is right.
    CAROUSEL_RETURN_IF_ERROR(trainer_->AuditReplicas());
  }
  if (evaluation_.has_value() && state_.step % run_.eval_every_steps == 0) Evaluate();
  if (run_.sample.every_steps > 0 && state_.step % run_.sample.every_steps == 0) Sample();
  return absl::OkStatus();
}

void TrainingRun::Evaluate() {
  const double start = Seconds();
  const EvaluationResult result = trainer_->Evaluate(*evaluation_, evaluation_->num_batches(), [this] {
    EnterSection(options_.watchdog, Watchdog::Section::kEvaluation);
    return StopRequested();
  });
  evaluation_stopped_ = result.stopped;
  if (result.stopped) return;
  evaluated_step_ = state_.step;
  if (result.num_targets > 0) {
    state_.evaluated_step = state_.step;
    state_.validation_loss = result.loss;
    if (IsMain()) health_->RecordLoss(state_.step, result.loss);
  }
  if (!IsMain()) return;
  // With the byte tokenizer a token is a byte, so nats per token become bits per byte.
  const bool is_bytes = run_.tokenizer == TokenizerKind::kBytes;
  const bool one_task = validation_data_->num_sources() == 1 && validation_data_->file(0).task() != nullptr;
  EvaluationReport& report = evaluation_report_;
  report = {.step = state_.step,
            .loss = result.loss,
            .num_targets = result.num_targets,
            .accuracy = result.accuracy(),
            .bits_per_byte = is_bytes ? result.loss / std::log(2.0) : std::nan(""),
            .source_entropy = validation_data_->entropy_nats_per_token(),
            .by_length = BucketsByLength(result.by_length),
            .chance = one_task ? validation_data_->file(0).task()->chance : 0,
            .seconds = Seconds() - start};
  Warn(metrics_->AppendEvaluation(report));
  console_->Message(FormatEvaluation(report));
}

void TrainingRun::Sample() {
  EnterSection(options_.watchdog, Watchdog::Section::kSample);
  trainer_->WaitForWeights();
  if (!IsMain()) return;
  const ByteTokenizer tokenizer;
  GenerateArgs args{.prompt = {tokenizer.eod_id()},
                    .max_new_tokens = run_.sample.num_tokens,
                    .stop_ids = {tokenizer.eod_id()},
                    .reset_id = run_.reset_at_document ? tokenizer.eod_id() : -1,
                    .sampling = {.temperature = run_.sample.temperature,
                                 .top_k = run_.sample.top_k,
                                 .top_p = run_.sample.top_p,
                                 .seed = run_.seed,
                                 .num_allowed_ids = std::min(tokenizer.size(), run_.model.vocab_size)}};
  tokenizer.Encode(run_.sample.prompt, &args.prompt);
  const std::vector<int32_t> ids = generator_->Generate(args);
  const std::string text = run_.sample.prompt + tokenizer.Decode(ids);
  Warn(metrics_->AppendSample(state_.step, text));
  console_->Message(absl::StrCat("step ", state_.step, "  sample: ", text));
}

absl::Status TrainingRun::SaveIfDue() {
  const int64_t every = run_.checkpoint.every_steps;
  if (every <= 0 || state_.step % every != 0) return absl::OkStatus();
  // The last step is saved when training has ended, whatever is in flight now.
  if (state_.step >= run_.steps) return absl::OkStatus();
  const double start = Seconds();
  const absl::Status saved = saver_->SaveDue(StateToSave());
  reporter_->AddCheckpointSeconds(Seconds() - start);
  return saved;
}

TrainState TrainingRun::StateToSave() const {
  TrainState state = state_;
  state.consumed_by_source.clear();
  for (int64_t i = 0; i < loader_->sampler().num_sources(); ++i) {
    state.consumed_by_source.push_back(loader_->sampler().CountBefore(state.consumed_sequences, i));
  }
  return state;
}

// Clocks and signals differ between ranks: any rank's reason stops all, the largest wins.
std::array<int64_t, 3> TrainingRun::StopCounts() {
  const double wall_seconds = state_.wall_seconds + (Seconds() - last_turn_);
  const bool tokens = run_.max_tokens > 0 && state_.consumed_tokens + tokens_per_step() >= run_.max_tokens;
  const bool time = IsMain() && run_.max_minutes > 0 && wall_seconds >= 60 * run_.max_minutes;
  return {tokens, time, StopRequested()};
}

TrainingRun::Stop TrainingRun::StopReason(const std::array<int64_t, 3>& counts) const {
  return counts[2] > 0   ? Stop::kSignal
         : counts[1] > 0 ? Stop::kTime
         : counts[0] > 0 ? Stop::kTokens
                         : Stop::kNo;
}

TrainingRun::Stop TrainingRun::StopBeforeTraining() {
  std::array<int64_t, 3> counts = {
      run_.max_tokens > 0 && state_.consumed_tokens >= run_.max_tokens,
      IsMain() && run_.max_minutes > 0 && state_.wall_seconds >= 60 * run_.max_minutes, StopRequested()};
  environment_.world().AllReduceSum(Tensor(counts.data(), DType::kI64, {3}));
  return StopReason(counts);
}
}  // namespace carousel
