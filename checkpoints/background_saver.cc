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
#include "core/base/log.h"
#include "core/base/status_macros.h"
#include "core/train/agreement.h"

namespace carousel {
namespace {
constexpr int64_t kMaxDefaultStagingBytes = int64_t{2} << 30;
// Blocks beyond the state: a file may end with a block that is not full.
constexpr int64_t kSpareBlocks = 2;
// How long a new save waits for the end of one that was given up.
constexpr double kIdleSeconds = 1;
constexpr double kPollSeconds = 0.002;

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

  // The jobs of the worker. None throws.
  void Prepare() {
    const absl::Status status = WithoutThrowing([&] {
      prepared = attempt.Prepare();
      return absl::OkStatus();
    });
    if (!status.ok()) prepared = SaveAttempt::Refusal(status);
  }
  void Write() {
    const absl::Status status = WithoutThrowing([&] {
      if (staged != nullptr) {
        attempt.Write(*staged);
      } else {
        DirectSource source(attempt.request().slices);
        attempt.Write(source);
      }
      return absl::OkStatus();
    });
    if (!status.ok()) attempt.FailWrite(status);
    if (attempt.written().ok()) return;
    failed = true;
    if (staged != nullptr) staged->Cancel();  // nobody takes the blocks any more
  }
  void Complete(const absl::Status& voted) {
    const absl::Status status = WithoutThrowing([&] {
      completed = attempt.Complete(voted);
      return absl::OkStatus();
    });
    if (status.ok()) return;
    // What comes after the commit is no failure of the save.
    completed = attempt.committed() ? absl::OkStatus() : status;
    const absl::Status discarded = WithoutThrowing([&] {
      attempt.Discard();
      return absl::OkStatus();
    });
    for (const absl::Status& trouble : {status, discarded}) {
      if (!trouble.ok()) CAROUSEL_LOG(WARNING) << attempt.name() << ": " << trouble.message();
    }
  }
  // Of the thread that copies. What ends it early ends the worker's reading too, which reports it.
  void Copy() {
    const absl::Status copied = WithoutThrowing([&] { return staged->CopyAll(); });
    if (!copied.ok()) staged->Cancel(copied);
  }

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

BackgroundSaver::BackgroundSaver(const BackgroundSaveOptions& options, StateCopier* copier,
                                 std::shared_ptr<Worker> worker)
    : options_(options),
      copier_(copier),
      worker_(worker != nullptr ? std::move(worker) : std::make_shared<Worker>()) {
  CAROUSEL_CHECK_MSG(options.staging_bytes > 0 || copier == nullptr, "what is copied needs a pool");
  if (options.staging_bytes == 0) return;
  pool_ = std::make_shared<StagingPool>(options.staging_bytes / kStagingBlockBytes, copier);
}

BackgroundSaver::~BackgroundSaver() {
  if (save_ != nullptr) save_->GiveUp();
  StopStaging();
  static_cast<void>(worker_->WaitDone(ticket_, Worker::kMaxEndSeconds));
}

bool BackgroundSaver::hung() const { return !worker_->WaitDone(ticket_, kIdleSeconds); }

absl::Status BackgroundSaver::CheckMemory() const {
  if (pool_ == nullptr || pool_->ok()) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat("there is no host memory for the ", options_.staging_bytes >> 20,
                   " MiB that saves pass through; set checkpoint.staging_mib to less"));
}

void BackgroundSaver::StopStaging() {
  if (copying_.joinable()) copying_.join();
  if (staged_) return;
  if (copier_ != nullptr) copier_->Wait();
  if (save_->staged != nullptr) {
    most_used_bytes_ = std::max(most_used_bytes_, save_->staged->most_blocks_used() * kStagingBlockBytes);
  }
  staged_ = true;
}

absl::Status BackgroundSaver::Start(const SaveRequest& request) {
  CAROUSEL_CHECK_MSG(!in_flight(), "one save at a time");
  CAROUSEL_CHECK(request.copier == copier_);
  const Clock::time_point start = Clock::now();
  absl::Status usable = CheckMemory();
  if (usable.ok() && hung()) {
    usable = absl::UnavailableError("an earlier save still hangs in the file system");
  }
  CAROUSEL_RETURN_IF_ERROR(AgreeOn(request.communicator, usable));

  const auto save = std::make_shared<Save>(request, start, start + DurationOf(options_.timeout_seconds));
  const Stall stall(save);
  CAROUSEL_RETURN_IF_ERROR(save->attempt.Plan());
  save_ = save;
  const absl::Status begun = save->attempt.Begin(Prepare());
  if (!begun.ok()) {
    save->GiveUp();
    save_.reset();
    return begun;
  }
  StartThreads();
  phase_ = Phase::kWriting;
  return absl::OkStatus();
}

// By rank 0, while all wait: the file system may hang here too. They wait outside of calls, which have limits
// of their own.
std::string BackgroundSaver::Prepare() {
  const bool main = save_->attempt.rank() == 0;
  if (main) ticket_ = worker_->Run([save = save_] { save->Prepare(); });
  SaveActivity activity = SaveActivity::kWaiting;
  Clock::time_point since = Clock::now();
  std::string refusal;
  while (true) {
    int64_t busy = main && !worker_->WaitDone(ticket_, kPollSeconds);
    if (busy != 0) {
      const Clock::time_point now = Clock::now();
      const SaveActivity now_doing = save_->attempt.activity();
      if (now_doing != activity) since = now;
      activity = now_doing;
      // Reading and removing old checkpoints takes the time it takes, up to what is set.
      const bool removing = activity == SaveActivity::kMakingRoom || activity == SaveActivity::kSweeping;
      if (now >= save_->deadline) {
        refusal = SaveAttempt::Refusal(TookTooLong());
      } else if (!removing && now >= since + DurationOf(options_.directory_seconds)) {
        refusal = SaveAttempt::Refusal(absl::DeadlineExceededError(
            absl::StrFormat("%s took more than %g s; is the disk there?", DescribeActivity(activity),
                            options_.directory_seconds)));
      }
      busy = refusal.empty();
    }
    Communicator* const communicator = save_->attempt.request().communicator;
    if (communicator != nullptr) communicator->AllReduceSum(Tensor(&busy, DType::kI64, {1}));
    Live();
    if (busy == 0) return refusal.empty() ? save_->prepared : refusal;
    if (!main) std::this_thread::sleep_for(DurationOf(kPollSeconds));
  }
}

// Waiting for a save is no hang: saves have limits of their own.
void BackgroundSaver::Live() const {
  if (options_.progress != nullptr) options_.progress();
}

void BackgroundSaver::StartThreads() {
  gave_up_ = false;
  const absl::Status copying = WithoutThrowing([&] {
    StartCopying();
    return absl::OkStatus();
  });
  // Told with the others' reports, since they have begun.
  if (!copying.ok() && save_->staged != nullptr) save_->staged->Cancel(copying);
  ticket_ = worker_->Run([save = save_, copying] {
    if (copying.ok() || save->staged != nullptr) return save->Write();
    save->attempt.FailWrite(copying);
    save->failed = true;
  });
}

void BackgroundSaver::StartCopying() {
  const std::shared_ptr<Save> save = save_;
  if (pool_ == nullptr) {
    staged_ = false;  // until it is written
    return;
  }
  const Clock::time_point staging_deadline =
      std::min(save->deadline, save->start + DurationOf(options_.staging_timeout_seconds));
  save->staged =
      std::make_unique<StagedState>(pool_, copier_, save->attempt, staging_deadline, options_.progress);
  staged_ = false;
  if (copier_ != nullptr) {
    copier_->Begin();
    save->staged->CopyWhatFits();
  } else {
    copying_ = std::thread([save] { save->Copy(); });
  }
}

void BackgroundSaver::WaitUntilStaged() {
  if (staged_) return;
  const Stall stall(save_);
  if (copier_ != nullptr) save_->Copy();
  if (pool_ == nullptr && phase_ == Phase::kWriting) {
    const Clock::duration left = save_->deadline - Clock::now();
    if (!worker_->WaitDone(ticket_, std::max(0.0, std::chrono::duration<double>(left).count()))) {
      save_->attempt.Cancel();
    }
  }
  StopStaging();
}

// How many ranks are busy, have failed, have run out of time.
void BackgroundSaver::Contribute(std::vector<int64_t>* numbers) {
  const bool busy = in_flight() && !worker_->Done(ticket_);
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
  const bool idle = worker_->WaitDone(ticket_, kIdleSeconds);
  if (gave_up_) {
    instead = TookTooLong();
  } else if (!idle) {
    instead = absl::CancelledError("the save was given up");
  }
  const absl::Status voted = attempt.Vote(instead);
  if (attempt.rank() == 0 && idle) {
    ticket_ = worker_->Run([save = save_, voted] { save->Complete(voted); });
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
    status = timed_out ? TookTooLong() : save_->completed;
  }
  return End(attempt.Announce(status));
}

// The limit that is set is up.
absl::Status BackgroundSaver::TookTooLong() const {
  return absl::DeadlineExceededError(absl::StrFormat(
      "given up after %g s, while %s; is the disk there, or is checkpoint.timeout_minutes too "
      "short?",
      options_.timeout_seconds, DescribeActivity(save_->attempt.activity())));
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
  if (pool_ != nullptr) WaitUntilStaged();  // else what follows waits for the same
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
    Live();
    std::this_thread::sleep_for(DurationOf(kPollSeconds));
  }
}
}  // namespace carousel
