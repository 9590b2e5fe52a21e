#include "checkpoints/background_saver.h"

#include <algorithm>
#include <atomic>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "checkpoints/collective.h"
#include "checkpoints/save_attempt.h"
#include "checkpoints/staging.h"
#include "checkpoints/worker.h"
#include "core/base/check.h"
#include "core/base/status_macros.h"
#include "core/train/agreement.h"

namespace carousel {
namespace {
constexpr int64_t kMaxDefaultStagingBytes = int64_t{2} << 30;
// Blocks beyond the state: a file may end with a block that is not full.
constexpr int64_t kSpareBlocks = 2;
// How long a new save waits for the end of one that was given up.
constexpr double kIdleSeconds = 1;
// How long training waits for a directory.
constexpr double kMaxPrepareSeconds = 60;
constexpr auto kPollInterval = std::chrono::milliseconds(2);

std::chrono::steady_clock::duration DurationOf(double seconds) {
  return std::chrono::duration_cast<std::chrono::steady_clock::duration>(
      std::chrono::duration<double>(seconds));
}
}  // namespace

int64_t StagingBytes(int64_t state_bytes, int64_t limit_bytes) {
  const int64_t needed = (state_bytes + kStagingBlockBytes - 1) / kStagingBlockBytes + kSpareBlocks;
  const int64_t limit = (limit_bytes > 0 ? limit_bytes : kMaxDefaultStagingBytes) / kStagingBlockBytes;
  return std::clamp<int64_t>(needed, 1, std::max<int64_t>(limit, 1)) * kStagingBlockBytes;
}

// What the threads of one save share. Statuses are read by the training thread when the worker is idle, or
// when `failed` says so, by which they are published.
struct BackgroundSaver::Save {
  Save(const SaveRequest& request, Clock::time_point its_start, Clock::time_point its_deadline)
      : attempt(request), start(its_start), deadline(its_deadline) {}

  SaveAttempt attempt;
  const Clock::time_point start, deadline;
  std::unique_ptr<StagedState> staged;
  std::atomic<bool> failed = false;
  std::string prepared;    // rank 0
  absl::Status completed;  // rank 0
  double stalled_seconds = 0;

  void GiveUp() {
    attempt.Cancel();
    if (staged != nullptr) staged->Cancel();
  }
};

class BackgroundSaver::Stall {
 public:
  explicit Stall(std::shared_ptr<Save> save) : save_(std::move(save)), start_(Clock::now()) {}
  ~Stall() { save_->stalled_seconds += seconds(); }
  Stall(const Stall&) = delete;
  Stall& operator=(const Stall&) = delete;
  double seconds() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }
  double total_seconds() const { return save_->stalled_seconds + seconds(); }

 private:
  const std::shared_ptr<Save> save_;
  const Clock::time_point start_;
};

BackgroundSaver::BackgroundSaver(const BackgroundSaveOptions& options, StateCopier* copier)
    : options_(options),
      copier_(copier),
      worker_(std::make_unique<Worker>()),
      pool_(std::make_shared<StagingPool>(options.staging_bytes / kStagingBlockBytes, copier)) {}

BackgroundSaver::~BackgroundSaver() {
  if (save_ != nullptr) save_->GiveUp();
  StopStaging();
}

bool BackgroundSaver::hung() const { return !worker_->WaitIdle(kIdleSeconds); }

absl::Status BackgroundSaver::CheckMemory() const {
  if (pool_->ok()) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat("there is no host memory for the ", options_.staging_bytes >> 20,
                   " MiB that saves pass through; set checkpoint.staging_mib to less"));
}

void BackgroundSaver::StopStaging() {
  if (copying_.joinable()) copying_.join();
  if (staged_) return;
  if (copier_ != nullptr) copier_->Wait();
  most_used_bytes_ = std::max(most_used_bytes_, save_->staged->most_blocks_used() * kStagingBlockBytes);
  staged_ = true;
}

absl::Status BackgroundSaver::Start(const SaveRequest& request) {
  CAROUSEL_CHECK_MSG(!in_flight(), "one save at a time");
  CAROUSEL_CHECK(request.copier == copier_);
  const Clock::time_point start = Clock::now();
  absl::Status usable = CheckMemory();
  if (usable.ok() && !worker_->WaitIdle(kIdleSeconds)) {
    usable = absl::UnavailableError("an earlier save still hangs in the file system");
  }
  CAROUSEL_RETURN_IF_ERROR(AgreeOn(request.communicator, usable));

  const auto save = std::make_shared<Save>(request, start, start + DurationOf(options_.timeout_seconds));
  const Stall stall(save);
  CAROUSEL_RETURN_IF_ERROR(save->attempt.Plan());
  save_ = save;
  const absl::Status begun = save->attempt.Begin(save->attempt.rank() == 0 ? Prepare() : std::string());
  if (!begun.ok()) {
    save->GiveUp();
    save_.reset();
    return begun;
  }
  StartThreads();
  phase_ = Phase::kWriting;
  return absl::OkStatus();
}

// Rank 0: the file system may hang here too.
std::string BackgroundSaver::Prepare() {
  const double seconds = std::min(options_.timeout_seconds, kMaxPrepareSeconds);
  worker_->Run([save = save_] { save->prepared = save->attempt.Prepare(); });
  if (worker_->WaitIdle(seconds)) return save_->prepared;
  return SaveAttempt::Refusal(
      absl::DeadlineExceededError(absl::StrFormat("making a directory took more than %g s", seconds)));
}

void BackgroundSaver::StartThreads() {
  const std::shared_ptr<Save> save = save_;
  staged_ = false;
  gave_up_ = false;
  if (copier_ != nullptr) copier_->Begin();
  const Clock::time_point staging_deadline =
      std::min(save->deadline, save->start + DurationOf(options_.staging_timeout_seconds));
  save->staged = std::make_unique<StagedState>(pool_, copier_, save->attempt, staging_deadline);
  if (copier_ != nullptr) {
    save->staged->CopyWhatFits();
  } else {
    // What ends it early ends the worker's reading too, which reports it.
    copying_ = std::thread([save] { static_cast<void>(save->staged->CopyAll()); });
  }
  worker_->Run([save] {
    save->attempt.Write(*save->staged);
    if (save->attempt.written().ok()) return;
    save->failed = true;
    save->staged->Cancel();  // nobody takes the blocks any more
  });
}

void BackgroundSaver::WaitUntilStaged() {
  if (staged_) return;
  const Stall stall(save_);
  if (copier_ != nullptr) static_cast<void>(save_->staged->CopyAll());
  StopStaging();
}

// How many ranks are busy, have failed, have run out of time.
void BackgroundSaver::Contribute(std::vector<int64_t>* numbers) {
  const bool busy = in_flight() && !worker_->idle();
  gave_up_ = busy && Clock::now() >= save_->deadline;
  const bool failed = in_flight() && save_->failed;
  numbers->insert(numbers->end(), {busy, failed, gave_up_});
}

std::optional<SaveOutcome> BackgroundSaver::Advance(const int64_t* sums) {
  if (!in_flight()) return std::nullopt;
  const Stall stall(save_);
  std::optional<SaveOutcome> outcome = AdvancePhase(sums[0] > 0, sums[1] > 0, sums[2] > 0);
  if (outcome.has_value()) outcome->stalled_seconds = stall.total_seconds();
  return outcome;
}

std::optional<SaveOutcome> BackgroundSaver::AdvancePhase(bool busy, bool failed, bool timed_out) {
  if (timed_out || failed) save_->GiveUp();
  if (busy && !timed_out) return std::nullopt;
  return phase_ == Phase::kWriting ? AfterWriting(timed_out) : AfterCompleting(timed_out);
}

std::optional<SaveOutcome> BackgroundSaver::AfterWriting(bool timed_out) {
  SaveAttempt& attempt = save_->attempt;
  absl::Status instead;
  const bool idle = worker_->WaitIdle(kIdleSeconds);
  if (gave_up_) {
    instead = TookTooLong("writing it");
  } else if (!idle) {
    instead = absl::CancelledError("the save was given up");
  }
  const absl::Status voted = attempt.Vote(instead);
  if (attempt.rank() == 0 && idle) {
    worker_->Run([save = save_, voted] { save->completed = save->attempt.Complete(voted); });
  }
  if (!timed_out) {
    phase_ = Phase::kCompleting;
    return std::nullopt;
  }
  // Nobody waits for the removal of what was written.
  return End(absl::Status(voted.code(),
                          absl::StrCat("saving ", attempt.name(), ": ", std::string(voted.message()))));
}

SaveOutcome BackgroundSaver::AfterCompleting(bool timed_out) {
  SaveAttempt& attempt = save_->attempt;
  absl::Status status;
  // What hangs after the commit, the removal of older checkpoints, is no failure of the save.
  if (attempt.rank() == 0 && !(timed_out && attempt.committed())) {
    status = timed_out ? TookTooLong("committing it") : save_->completed;
  }
  return End(attempt.Announce(status));
}

absl::Status BackgroundSaver::TookTooLong(const std::string& what) const {
  return absl::DeadlineExceededError(
      absl::StrFormat("%s was not done after %g s; is the disk there, or is "
                      "checkpoint.timeout_minutes too short?",
                      what, options_.timeout_seconds));
}

SaveOutcome BackgroundSaver::End(const absl::Status& status) {
  StopStaging();
  const SaveAttempt& attempt = save_->attempt;
  const Clock::time_point ended = status.ok() && attempt.rank() == 0 ? attempt.committed_at() : Clock::now();
  SaveOutcome outcome = {.step = attempt.request().state.step,
                         .status = status,
                         .seconds = std::chrono::duration<double>(ended - save_->start).count(),
                         .num_bytes = attempt.num_bytes()};
  phase_ = Phase::kNone;
  save_.reset();
  return outcome;
}

std::optional<SaveOutcome> BackgroundSaver::Finish() {
  if (!in_flight()) return std::nullopt;
  const Stall stall(save_);
  const double before = save_->stalled_seconds;
  Communicator* const communicator = save_->attempt.request().communicator;
  WaitUntilStaged();
  while (true) {
    std::vector<int64_t> numbers;
    Contribute(&numbers);
    if (communicator != nullptr) {
      communicator->AllReduceSum(Tensor(numbers.data(), DType::kI64, {static_cast<int64_t>(kNumNumbers)}));
    }
    if (std::optional<SaveOutcome> outcome = Advance(numbers.data())) {
      outcome->stalled_seconds = before + stall.seconds();
      return outcome;
    }
    std::this_thread::sleep_for(kPollInterval);
  }
}
}  // namespace carousel
