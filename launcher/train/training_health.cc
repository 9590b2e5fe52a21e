// TrainingRun: steps that look wrong. What was found is health_policy.h's; here is what is done about it.
#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "checkpoints/rollback.h"
#include "core/base/log.h"
#include "core/base/status_exit_code.h"
#include "core/base/status_macros.h"
#include "launcher/launch/suspect_hosts.h"
#include "launcher/train/rollback_journal.h"
#include "launcher/train/training_run.h"

namespace carousel {
namespace {

constexpr double kMaxMarksSeconds = 60;

const char* FieldOf(HealthPolicy::Finding finding) {
  return finding == HealthPolicy::Finding::kNotFinite ? "health.on_non_finite" : "health.on_spike";
}
}  // namespace

StepOptions TrainingRun::HealthOptions() {
  policy_.Forget();
  const int64_t every = run_.health.gate_stats_every_steps;
  StepOptions options;
  options.num_skipped = state_.skipped_steps;
  options.judge = [this](const StepResult& result) { return policy_.Judge(result); };
  options.measure_gates = every > 0 && (state_.step + 1) % every == 0;
  return options;
}

void TrainingRun::NoteHealth(int64_t step, const std::string& kind, const std::string& message) {
  if (!IsMain()) return;
  CAROUSEL_LOG(WARNING) << message;
  const absl::Status noted = metrics_->AppendHealth({.step = step, .kind = kind, .message = message});
  if (!noted.ok()) CAROUSEL_LOG(WARNING) << noted.message();
}

absl::Status TrainingRun::ActOnHealth(const StepResult& result, bool* went_back) {
  *went_back = false;
  const int64_t step = state_.step + 1;
  const std::string found = policy_.Describe(result);
  if (result.rerun.has_value()) {
    // The second reading of the batches is no new data.
    loader_->TakeDigest();
    if (!result.rerun->differences.empty()) return HardwareSuspected(step, found, *result.rerun);
    NoteHealth(state_.step, "rerun",
               absl::StrCat("step ", step, " was computed twice, with the same bits on every rank (", found,
                            "): it is not the hardware"));
  }
  if (policy_.finding() == HealthPolicy::Finding::kFine) return absl::OkStatus();
  switch (policy_.action()) {
    case HealthAction::kNote:
      NoteHealth(step, "spike", absl::StrCat("step ", step, ": ", found, "; the update is made"));
      return absl::OkStatus();
    case HealthAction::kSkip:
      NoteHealth(step, "skipped", absl::StrCat("step ", step, " skipped: ", found));
      return absl::OkStatus();
    case HealthAction::kRollback:
      *went_back = true;
      return RollBack(step, found);
    case HealthAction::kStop:
      break;
  }
  // Not saved: keeping the last checkpoints could cost the good ones.
  return NumericError(
      absl::StrCat("step ", step, ": ", found, ", and ", FieldOf(policy_.finding()), " is STOP"));
}

absl::Status TrainingRun::CheckSkipped() {
  if (state_.skipped_in_row < run_.health.max_skipped_in_row) return absl::OkStatus();
  return NumericError(absl::StrCat(state_.skipped_in_row, " steps in a row were skipped (",
                                   "health.max_skipped_in_row), the last that was not is ",
                                   state_.step - state_.skipped_in_row));
}

absl::Status TrainingRun::NumericError(const std::string& what) {
  // A mark may still be on its way to the disk; all ranks name the same checkpoint.
  EnterSection(options_.watchdog, Watchdog::Section::kSave);
  if (IsMain() && !saver_->hung()) static_cast<void>(health_->Finish(kMaxMarksSeconds));
  CAROUSEL_RETURN_IF_ERROR(Agree(absl::OkStatus()));
  const absl::StatusOr<std::string> good = FindGoodCheckpoint(run_.run_dir);
  return WithExitCode(
      absl::DataLossError(
          absl::StrCat(what, "; go on from ",
                       good.ok() ? absl::StrCat(*good, ", the newest that is marked as good (--from_good),")
                                 : "an earlier checkpoint (move the later ones away)",
                       " with a lower schedule.peak_lr or optimizer.clip_norm, or leave out data "
                       "(health.data_skip_steps)")),
      kExitNumeric);
}

absl::Status TrainingRun::HardwareSuspected(int64_t step, const std::string& found, const Rerun& rerun) {
  const std::vector<std::string> names =
      AllGatherBytes(environment_.world(), absl::StrCat(environment_.host(), "\n", device_->name()));
  std::vector<std::string> lines, hosts;
  for (const Rerun::Difference& d : rerun.differences) {
    const std::string& name = names[static_cast<size_t>(d.rank)];
    const size_t end = name.find('\n');
    hosts.push_back(name.substr(0, end));
    const char* what = d.sum    ? "the sum of all ranks' gradients, though what they gave to it was the same"
                       : d.loss ? (d.gradient ? "its losses and gradients" : "its losses")
                                : "its gradients";
    lines.push_back(
        absl::StrCat("rank ", d.rank, " on ", hosts.back(), ", ", name.substr(end + 1), ": ", what));
  }
  const std::string message = absl::StrCat(
      "step ", step, " (", found,
      ") was computed twice from the same batches and gave different bits: ", absl::StrJoin(lines, "; "),
      ". A machine computes wrong; go on without it. The run is not saved, the newest checkpoint is older");
  NoteHealth(state_.step, "hardware", message);
  return WithSuspectHosts(WithExitCode(absl::DataLossError(message), kExitHardware), hosts);
}

absl::Status TrainingRun::RollBack(int64_t bad_step, const std::string& why) {
  const int64_t number = state_.num_rollbacks + 1;
  const std::string where = absl::StrCat("step ", bad_step, ": ", why);
  if (number > run_.health.max_rollbacks) {
    return NumericError(absl::StrCat(where, ", and the run has gone back ", state_.num_rollbacks,
                                     " times already (health.max_rollbacks)"));
  }
  if (IsMain()) CAROUSEL_LOG(WARNING) << where << "; going back";
  EnterSection(options_.watchdog, Watchdog::Section::kSave);
  // What is in flight is of an earlier state; if it cannot be saved it is not there to go back to.
  if (const absl::Status saved = saver_->Finish(); !saved.ok() && IsMain()) {
    CAROUSEL_LOG(WARNING) << saved.message();
  }
  // Nor may a mark come late.
  absl::Status ended = absl::OkStatus();
  if (saver_->hung()) ended = absl::UnavailableError("a save hangs in the file system");
  if (IsMain() && ended.ok()) ended = health_->Finish(kMaxMarksSeconds);
  CAROUSEL_RETURN_IF_ERROR(Agree(WithExitCode(ended, kExitNotSaved)));

  const TrainState left = state_;
  TrainState good;
  const absl::StatusOr<WentBack> back = GoBackToGood(run_.run_dir, trainer_->States(), &good,
                                                     {.fallback = options_.checkpoint_fallback,
                                                      .communicator = &environment_.world(),
                                                      .progress = [this](int64_t, int64_t) { Progress(); }},
                                                     lease_.get());
  if (absl::IsNotFound(back.status())) {
    return NumericError(absl::StrCat(where,
                                     ", and no checkpoint is marked as good yet "
                                     "(checkpoint.every_steps, checkpoint.good_after_steps)"));
  }
  CAROUSEL_RETURN_IF_ERROR(WithExitCode(back.status(), kExitData));
  trainer_->LoadedStates();
  state_ = good;
  state_.wall_seconds = left.wall_seconds;
  state_.seed = run_.seed;
  state_.data_fingerprint = data_fingerprint_;
  loaded_step_ = state_.step;
  evaluated_step_ = -1;
  // A rollback to this checkpoint before this one may have left out data already.
  CAROUSEL_RETURN_IF_ERROR(ApplyRollbacks());
  Rollback rollback = {.number = number,
                       .bad_step = bad_step,
                       .to_step = state_.step,
                       .consumed_sequences = state_.consumed_sequences,
                       .why = why};
  if (run_.health.data_skip_steps > 0) {
    rollback.consumed_sequences = std::max(
        state_.consumed_sequences, left.consumed_sequences + run_.health.data_skip_steps * run_.global_batch);
  }
  // Before any step is made from there: a start after a crash must go on in the same way.
  CAROUSEL_RETURN_IF_ERROR(Agree(
      IsMain() ? WithExitCode(RecordRollback(run_.run_dir, rollback), kExitNotSaved) : absl::OkStatus()));
  const int64_t left_out = rollback.consumed_sequences - state_.consumed_sequences;
  ApplyRollback(rollback, &state_);

  policy_ = HealthPolicy(run_.health, state_);
  saver_.reset();
  sampler_ = loader_->sampler();
  loader_.reset();
  MakeLoader();
  if (IsMain()) {
    health_.reset();
    if (const absl::Status rewound = metrics_->Rewind(state_.step); !rewound.ok()) {
      CAROUSEL_LOG(WARNING) << rewound.message();
    }
  }
  CAROUSEL_RETURN_IF_ERROR(Agree(IsMain() ? WithExitCode(OpenHealth(), kExitNotSaved) : absl::OkStatus()));
  CAROUSEL_RETURN_IF_ERROR(Agree(MakeSaver()));
  NoteHealth(state_.step, "rollback",
             absl::StrCat(
                 where, ". Rollback ", number, " of at most ", run_.health.max_rollbacks, ", to ", back->dir,
                 left_out > 0 ? absl::StrCat("; ", left_out, " sequences of data are left out") : ""));
  return absl::OkStatus();
}

absl::Status TrainingRun::ApplyRollbacks() {
  std::string text;
  absl::Status status = absl::OkStatus();
  if (IsMain()) {
    // What the run will do anew has not been yet.
    status = ForgetRollbacksAfter(run_.run_dir, loaded_step_);
    if (status.ok()) {
      const absl::StatusOr<std::vector<Rollback>> mine = ReadRollbacks(run_.run_dir);
      status = mine.status();
      if (mine.ok()) text = ToText(*mine);
    }
  }
  CAROUSEL_RETURN_IF_ERROR(Agree(WithExitCode(status, kExitData)));
  text = BroadcastBytes(environment_.world(), text, 0);
  CAROUSEL_ASSIGN_OR_RETURN(const std::vector<Rollback> rollbacks,
                            ParseRollbacks(text, RollbackJournalPath(run_.run_dir)));
  if (const Rollback* rollback = RollbackTo(rollbacks, state_)) {
    if (IsMain()) {
      CAROUSEL_LOG(INFO) << "going on after rollback " << rollback->number << " (step " << rollback->bad_step
                         << ": " << rollback->why << ")";
    }
    ApplyRollback(*rollback, &state_);
  }
  return absl::OkStatus();
}
}  // namespace carousel
