#include "launcher/train/run_saver.h"

#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "core/base/log.h"
#include "core/base/status_macros.h"
#include "core/train/agreement.h"
#include "launcher/exit_codes.h"
#include "launcher/version.h"

namespace carousel {
namespace {

double Seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}
// A line of metrics or a mark that cannot be written is no reason to lose the run.
void Warn(const absl::Status& status) {
  if (!status.ok()) CAROUSEL_LOG(WARNING) << status.message();
}
// How long a save took and how long training stood still for it: a part of that time, or more, where training
// also waited for what follows the commit.
std::string SaveTimes(double seconds, double stalled_seconds) {
  return stalled_seconds > seconds
             ? absl::StrFormat("on disk after %.2f s; training waited %.2f s, for the tidying up as well",
                               seconds, stalled_seconds)
             : absl::StrFormat("on disk after %.2f s; training waited %.2f s of it", seconds,
                               stalled_seconds);
}
}  // namespace

int64_t RunSaver::PlannedStagingBytes(const RunSpec& run, const std::map<std::string, int64_t>& categories) {
  if (!run.checkpoint.asynchronous) return 0;
  const auto state = categories.find("optimizer");
  return StagingBytes(state == categories.end() ? 0 : state->second, run.checkpoint.staging_bytes);
}

RunSaver::RunSaver(const Parts& parts, int64_t saved_step) : parts_(parts), saved_step_(saved_step) {
  const RunSpec& run = *parts.run;
  if (run.checkpoint.asynchronous) copier_ = parts.trainer->MakeStateCopier();
  saver_ = std::make_unique<BackgroundSaver>(
      BackgroundSaveOptions{
          .staging_bytes = PlannedStagingBytes(run, parts.trainer->arena().bytes_by_category()),
          .timeout_seconds = run.checkpoint.timeout_seconds,
          .progress = parts.progress},
      copier_.get(), parts.health != nullptr ? parts.health->worker() : nullptr);
}

RunSaver::~RunSaver() {
  // What hangs may come back and look at the copier's memory.
  if (hung()) static_cast<void>(copier_.release());
}

int64_t RunSaver::staging_bytes() const { return saver_->staging_bytes(); }
bool RunSaver::hung() const { return saver_->hung(); }
absl::Status RunSaver::CheckMemory() const { return saver_->CheckMemory(); }

SaveRequest RunSaver::MakeRequest(const TrainState& state) const {
  const RunSpec::Checkpoint& settings = parts_.run->checkpoint;
  return {.run_dir = parts_.run->run_dir,
          .run_id = parts_.run_id,
          .state = state,
          .slices = {},
          .config_text = parts_.run->resolved_text,
          .writer = VersionLine(),
          .attempt = parts_.attempt,
          .mesh = parts_.mesh,
          .keep = {.keep_last = settings.keep_last,
                   .keep_every_steps = settings.keep_every_steps,
                   .keep_best = settings.keep_best},
          .communicator = parts_.world,
          .records = parts_.records,
          .lease = parts_.lease,
          .files = parts_.files};
}

absl::Status RunSaver::SaveDue(const TrainState& state) {
  if (saver_->in_flight()) {
    ++num_skipped_;
    if (parts_.console != nullptr) {
      parts_.console->Message(absl::StrFormat(
          "step %d  checkpoint SKIPPED: the one before is still being written (%d skipped so far; "
          "checkpoint.every_steps may be too small for this disk)",
          state.step, num_skipped_));
    }
    if (parts_.metrics != nullptr) {
      Warn(parts_.metrics->AppendCheckpoint(
          {.step = state.step, .outcome = "skipped", .num_skipped = num_skipped_}));
    }
    return absl::OkStatus();
  }
  const double start = Seconds();
  const bool asynchronous = parts_.run->checkpoint.asynchronous;
  SaveRequest request = MakeRequest(state);
  request.slices = asynchronous ? parts_.trainer->StatesInPlace() : parts_.trainer->States();
  request.copier = copier_.get();
  const absl::Status started = saver_->Start(request);
  if (started.ok()) return asynchronous ? absl::OkStatus() : Finish();
  const double seconds = Seconds() - start;
  return Report({.step = state.step, .status = started, .stalled_seconds = seconds, .seconds = seconds});
}

void RunSaver::BeforeUpdate() { saver_->WaitUntilStaged(); }

void RunSaver::Contribute(std::vector<int64_t>* numbers) {
  saver_->Contribute(numbers);
  numbers->push_back(parts_.lease != nullptr && !parts_.lease->SeenLost().ok());
}

absl::Status RunSaver::CheckLease(const int64_t* sums) {
  if (sums[BackgroundSaver::kNumNumbers] == 0) return absl::OkStatus();
  return WithExitCode(LostLease(parts_.lease != nullptr ? parts_.lease->SeenLost() : absl::OkStatus()),
                      kExitNotSaved);
}

absl::Status RunSaver::AfterStep(const int64_t* sums) {
  const std::optional<SaveOutcome> outcome = saver_->Advance(sums);
  return outcome.has_value() ? Report(*outcome) : absl::OkStatus();
}

absl::Status RunSaver::Finish() {
  const std::optional<SaveOutcome> outcome = saver_->Finish();
  return outcome.has_value() ? Report(*outcome) : absl::OkStatus();
}

absl::Status RunSaver::SaveNow(const TrainState& state) {
  CAROUSEL_RETURN_IF_ERROR(Finish());
  while (saved_step_ != state.step) {
    CAROUSEL_RETURN_IF_ERROR(SaveDue(state));
    CAROUSEL_RETURN_IF_ERROR(Finish());
  }
  return absl::OkStatus();
}

absl::Status RunSaver::LostLease(const absl::Status& found) {
  std::string why = absl::IsFailedPrecondition(found) ? std::string(found.message()) : "";
  if (parts_.world != nullptr) why = BroadcastBytes(*parts_.world, why, 0);
  if (why.empty()) return absl::OkStatus();
  lost_ = true;
  return absl::FailedPreconditionError(why);
}

absl::Status RunSaver::Report(const SaveOutcome& outcome) {
  // Metrics and marks belong to another process then.
  if (absl::IsFailedPrecondition(outcome.status)) {
    static_cast<void>(LostLease(parts_.lease != nullptr ? parts_.lease->StillHeld() : absl::OkStatus()));
  }
  if (lost_) return WithExitCode(outcome.status, kExitNotSaved);
  const bool saved = outcome.status.ok();
  const std::string why(outcome.status.message());
  if (saved) saved_step_ = outcome.step;
  failed_in_row_ = saved ? 0 : failed_in_row_ + 1;
  const int64_t allowed = parts_.run->checkpoint.max_failed_saves;
  if (parts_.console != nullptr) {
    parts_.console->Message(
        saved ? absl::StrFormat("step %d  checkpoint saved (%s)", outcome.step,
                                SaveTimes(outcome.seconds, outcome.stalled_seconds))
              : absl::StrFormat(
                    "step %d  checkpoint FAILED (%d in a row, %s; earlier checkpoints are untouched): %s",
                    outcome.step, failed_in_row_,
                    failed_in_row_ < allowed ? absl::StrCat("training goes on until ", allowed)
                                             : "the run ends",
                    why));
  }
  if (parts_.metrics != nullptr) {
    Warn(parts_.metrics->AppendCheckpoint({.step = outcome.step,
                                           .outcome = saved ? "saved" : "failed",
                                           .seconds = outcome.seconds,
                                           .seconds_stalled = outcome.stalled_seconds,
                                           .num_bytes = saved ? outcome.num_bytes : 0,
                                           .num_skipped = num_skipped_,
                                           .failed_in_row = failed_in_row_,
                                           .message = why}));
  }
  if (saved && parts_.health != nullptr) parts_.health->Committed(outcome.step);
  if (failed_in_row_ < allowed) return absl::OkStatus();
  return WithExitCode(
      absl::Status(
          outcome.status.code(),
          absl::StrCat(failed_in_row_,
                       " saves in a row failed (checkpoint.max_failed_saves), the newest "
                       "checkpoint is ",
                       saved_step_ < 0 ? "missing" : absl::StrCat("that of step ", saved_step_),
                       "; make room or repair the disk and run the same command again. The last one: ", why)),
      kExitNotSaved);
}
}  // namespace carousel
