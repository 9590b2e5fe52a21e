#include "checkpoints/run_lease.h"

#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <map>
#include <random>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/time/time.h"
#include "checkpoints/checkpoint_store.h"
#include "checkpoints/marks.h"
#include "checkpoints/worker.h"
#include "core/base/log.h"
#include "core/base/status_macros.h"

namespace carousel {
namespace {

constexpr int64_t kMaxLeaseBytes = 4096;
constexpr double kSecondLookSeconds = 1;

class RealClock final : public LeaseClock {
 public:
  int64_t UnixNanos() override {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(
               std::chrono::system_clock::now().time_since_epoch())
        .count();
  }
  double Seconds() override {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
  }
  void Sleep(double seconds) override { std::this_thread::sleep_for(std::chrono::duration<double>(seconds)); }
};

// A word of the file: no spaces, not empty.
std::string Word(std::string text) {
  for (char& c : text) {
    if (c <= ' ' || c > '~') c = '_';
  }
  return text.empty() ? "unknown" : text;
}

std::string FormatUtc(int64_t unix_nanos) {
  return absl::FormatTime("%Y-%m-%d %H:%M:%S UTC", absl::FromUnixNanos(unix_nanos), absl::UTCTimeZone());
}

// True only if there is no process of this number here.
bool ProcessIsGone(int64_t pid) { return pid > 0 && kill(static_cast<pid_t>(pid), 0) != 0 && errno == ESRCH; }

// The file as it is; empty if there is none.
absl::StatusOr<std::string> ReadLeaseFile(FileSystem& files, const std::string& path) {
  absl::StatusOr<std::string> text = ReadFile(files, path, kMaxLeaseBytes);
  if (absl::IsNotFound(text.status())) return std::string();
  if (text.ok() && text->empty()) return std::string("(empty)");
  return text;
}
}  // namespace

LeaseOwner ThisProcess() {
  LeaseOwner owner;
  char host[256] = {};
  if (gethostname(host, sizeof(host) - 1) == 0) owner.host = host;
  owner.host = Word(owner.host);
  owner.pid = getpid();
  // New at every boot, and the same in all containers of a machine.
  PosixFileSystem files;
  constexpr int64_t kUuidBytes = 36;
  std::string boot_id(kUuidBytes, '\0');
  const absl::StatusOr<std::unique_ptr<ReadableFile>> file =
      files.OpenFile("/proc/sys/kernel/random/boot_id");
  owner.machine =
      file.ok() && (*file)->ReadAt(0, boot_id.data(), kUuidBytes).ok() ? Word(boot_id) : owner.host;
  struct stat space;
  if (stat("/proc/self/ns/pid", &space) == 0) owner.pid_space = absl::StrCat(space.st_ino);
  return owner;
}

// What the file says.
struct RunLease::Record {
  LeaseOwner owner;
  int64_t attempt = 0, started_unix_nanos = 0, count = 0;
  std::string nonce;
  std::string locks;  // the domain of its lock; empty: it has none

  std::string Text() const {
    return Checksummed(absl::StrCat("host=", owner.host, " machine=", owner.machine, " pid=", owner.pid,
                                    " pids=", owner.pid_space, " locks=", locks, " attempt=", attempt,
                                    " started=", started_unix_nanos, " nonce=", nonce, " count=", count));
  }
  // False if it is damaged.
  static bool Parse(const std::string& line, Record* record) {
    const absl::StatusOr<std::string> text = Unchecksummed(line, "");
    if (!text.ok()) return false;
    std::map<std::string, std::string> fields;
    for (const absl::string_view word : absl::StrSplit(*text, ' ')) {
      const std::pair<std::string, std::string> field = absl::StrSplit(word, absl::MaxSplits('=', 1));
      fields.insert(field);
    }
    record->owner.host = fields["host"];
    record->owner.machine = fields["machine"];
    record->owner.pid_space = fields["pids"];
    record->locks = fields["locks"];
    record->nonce = fields["nonce"];
    return absl::SimpleAtoi(fields["pid"], &record->owner.pid) &&
           absl::SimpleAtoi(fields["attempt"], &record->attempt) &&
           absl::SimpleAtoi(fields["started"], &record->started_unix_nanos) &&
           absl::SimpleAtoi(fields["count"], &record->count) && !record->nonce.empty();
  }
  // "process 4242 on node17, attempt 3, since 2026-01-02 03:04:05 UTC"
  static std::string Describe(const std::string& line) {
    Record record;
    if (!Parse(line, &record)) return "an unknown process (its lease cannot be read)";
    return absl::StrCat("process ", record.owner.pid, " on ", record.owner.host,
                        record.attempt > 0 ? absl::StrCat(", attempt ", record.attempt) : "", ", since ",
                        FormatUtc(record.started_unix_nanos));
  }
};

absl::Status RunLease::Refused(const std::string& text, bool alive) const {
  return absl::FailedPreconditionError(
      absl::StrCat(run_dir_, " is in use by ", Record::Describe(text),
                   "; wait until it ends, stop it, or use another run_dir",
                   alive ? "" : absl::StrCat(" (if you are certain that it is dead: remove ", path_, ")")));
}

absl::StatusOr<std::unique_ptr<RunLease>> RunLease::Acquire(const std::string& run_dir, FileSystem* files) {
  return Acquire(run_dir, LeaseOptions{.files = files});
}

absl::StatusOr<std::unique_ptr<RunLease>> RunLease::Acquire(const std::string& run_dir,
                                                            const LeaseOptions& options) {
  std::unique_ptr<RunLease> lease(new RunLease);
  lease->run_dir_ = run_dir;
  lease->path_ = JoinPath(StoreDir(run_dir), kLeaseFile);
  lease->options_ = options;
  if (options.owner.machine.empty()) lease->options_.owner = ThisProcess();
  lease->files_ = options.files != nullptr ? options.files : &lease->posix_;
  if (options.clock == nullptr) lease->own_clock_ = std::make_unique<RealClock>();
  lease->clock_ = options.clock != nullptr ? options.clock : lease->own_clock_.get();
  CAROUSEL_RETURN_IF_ERROR(CreateDirectories(*lease->files_, StoreDir(run_dir)));
  CAROUSEL_RETURN_IF_ERROR(lease->Claim());
  if (options.thread) lease->thread_ = std::thread([self = lease.get()] { self->BeatUntilStopped(); });
  return lease;
}

absl::Status RunLease::Claim() {
  std::random_device random;
  nonce_ = absl::StrFormat("%08x%08x", random(), random());
  started_unix_nanos_ = clock_->UnixNanos();
  absl::StatusOr<std::unique_ptr<FileLock>> lock = files_->Lock(path_ + kLeaseLockSuffix, Mine().Text());
  if (absl::IsFailedPrecondition(lock.status())) {
    const absl::StatusOr<std::string> holder = ReadLeaseFile(*files_, path_);
    Record record;
    const bool readable = holder.ok() && Record::Parse(*holder, &record);
    // Whoever has the lock is there.
    return Refused(readable ? *holder : std::string(lock.status().message()), /*alive=*/true);
  }
  // Without locks (some network file systems) the count alone decides.
  if (!lock.ok() && !absl::IsUnimplemented(lock.status())) return lock.status();
  if (lock.ok()) lock_ = std::move(*lock);
  const Record mine = Mine();

  // Ends: a file that comes and goes means that others acquire and release, or lose against each other.
  for (int tries = 0; tries < 100; ++tries) {
    CAROUSEL_ASSIGN_OR_RETURN(const std::string found_text, ReadLeaseFile(*files_, path_));
    if (found_text.empty()) {
      const absl::Status created = CreateOrReplace(mine.Text(), /*create=*/true);
      if (absl::IsAlreadyExists(created)) continue;
      CAROUSEL_RETURN_IF_ERROR(created);
      claimed_ = true;
      return RemoveTemporaries();
    }
    Record found;
    const bool here = Record::Parse(found_text, &found) && found.owner.machine == options_.owner.machine;
    // Its process held the lock that this one has now for as long as it lived, or is not there any more.
    const bool same_locks = !found.locks.empty() && found.locks == mine.locks;
    const bool same_pids = !found.owner.pid_space.empty() && found.owner.pid_space == mine.owner.pid_space;
    const bool dead = here && (same_locks || (same_pids && ProcessIsGone(found.owner.pid)));
    if (dead) {
      CAROUSEL_RETURN_IF_ERROR(CreateOrReplace(mine.Text(), /*create=*/false));
      claimed_ = true;
      return RemoveTemporaries();
    }
    CAROUSEL_RETURN_IF_ERROR(WaitForDeath(found_text));
    CAROUSEL_ASSIGN_OR_RETURN(const std::string still, ReadLeaseFile(*files_, path_));
    if (still.empty()) continue;
    if (still != found_text) return Refused(still, /*alive=*/false);
    CAROUSEL_RETURN_IF_ERROR(CreateOrReplace(mine.Text(), /*create=*/false));
    // Another process that watched as well may have written at the same time: the last one holds it.
    clock_->Sleep(options_.beat_seconds);
    CAROUSEL_ASSIGN_OR_RETURN(const std::string now, ReadLeaseFile(*files_, path_));
    if (now != mine.Text()) return Refused(now, /*alive=*/false);
    claimed_ = true;
    CAROUSEL_LOG(WARNING) << "took over " << run_dir_ << " from " << Record::Describe(found_text)
                          << ", which has shown no sign of life for " << options_.stale_seconds << " s";
    return RemoveTemporaries();
  }
  return absl::UnavailableError(absl::StrCat(path_, " appears and disappears; who uses ", run_dir_, "?"));
}

RunLease::Record RunLease::Mine() const {
  return {.owner = options_.owner,
          .attempt = options_.attempt,
          .started_unix_nanos = started_unix_nanos_,
          .count = count_,
          .nonce = nonce_,
          .locks = lock_ != nullptr ? Word(lock_->domain()) : ""};
}

std::string RunLease::TemporaryPath() const { return absl::StrCat(path_, "-", nonce_); }

absl::Status RunLease::WriteTemporary(const std::string& text) {
  CAROUSEL_RETURN_IF_ERROR(RemoveTree(*files_, TemporaryPath()));
  return WriteFile(*files_, TemporaryPath(), text);
}

// The file is seen whole or not at all, also after a crash. create: AlreadyExists if there is one; of several
// processes that try, one succeeds.
absl::Status RunLease::CreateOrReplace(const std::string& text, bool create) {
  const std::string temporary = TemporaryPath();
  absl::Status status = WriteTemporary(text);
  if (status.ok() && create) {
    status = files_->LinkFile(temporary, path_);
    // A file system without links.
    if (absl::IsUnimplemented(status)) return files_->Rename(temporary, path_);
    (void)files_->RemoveFile(temporary);
    return status;
  }
  if (status.ok()) status = files_->Rename(temporary, path_);
  if (!status.ok()) (void)files_->RemoveFile(temporary);  // the first error is the one to report
  return status;
}

// What processes left that died while they wrote.
absl::Status RunLease::RemoveTemporaries() {
  const std::string store = StoreDir(run_dir_);
  CAROUSEL_ASSIGN_OR_RETURN(const std::vector<std::string> names, files_->ListDirectory(store));
  for (const std::string& name : names) {
    if (!absl::StartsWith(name, absl::StrCat(kLeaseFile, "-"))) continue;
    CAROUSEL_RETURN_IF_ERROR(RemoveTree(*files_, JoinPath(store, name)));
  }
  return absl::OkStatus();
}

// OK: the lease has stood still for long enough, or is gone.
absl::Status RunLease::WaitForDeath(const std::string& found_text) {
  CAROUSEL_LOG(WARNING) << run_dir_ << " is held by " << Record::Describe(found_text) << "; watching up to "
                        << options_.stale_seconds << " s whether that process lives";
  const double begin = clock_->Seconds();
  while (clock_->Seconds() - begin < options_.stale_seconds) {
    clock_->Sleep(std::min(options_.beat_seconds / 4, options_.stale_seconds / 4));
    if (options_.should_stop && options_.should_stop()) {
      return absl::CancelledError(
          absl::StrCat("stopped while watching whether ", Record::Describe(found_text), " lives"));
    }
    CAROUSEL_ASSIGN_OR_RETURN(const std::string now, ReadLeaseFile(*files_, path_));
    if (now.empty()) return absl::OkStatus();
    if (now != found_text) return Refused(now, /*alive=*/false);
  }
  return absl::OkStatus();
}

RunLease::~RunLease() {
  {
    const std::lock_guard<std::mutex> guard(mutex_);
    stop_ = true;
  }
  stopped_.notify_all();
  if (thread_.joinable()) thread_.join();
  const absl::Status given_back = WithoutThrowing(
      [this] { return claimed_ && StillHeld().ok() ? files_->RemoveFile(path_) : absl::OkStatus(); });
  if (!given_back.ok()) CAROUSEL_LOG(WARNING) << "cannot give back the lease: " << given_back.message();
}

absl::Status RunLease::CheckLocked() const {
  CAROUSEL_ASSIGN_OR_RETURN(const std::string text, ReadLeaseFile(*files_, path_));
  Record record;
  if (Record::Parse(text, &record) && record.nonce == nonce_) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      "this process has lost ", run_dir_, ": ",
      text.empty() ? absl::StrCat(path_, " was removed")
                   : absl::StrCat("it was taken over by ", Record::Describe(text)),
      "; it was too slow, or cut off from the file system, and must not write there any more. Stop it"));
}

absl::Status RunLease::StillHeld() const {
  const std::lock_guard<std::mutex> guard(mutex_);
  return CheckLocked();
}

absl::Status RunLease::Beat() {
  const std::lock_guard<std::mutex> guard(mutex_);
  ++count_;
  // Nothing slow between the look and the rename, which would hide a successor's lease.
  absl::Status status = WriteTemporary(Mine().Text());
  if (status.ok()) status = CheckLocked();
  if (status.ok()) status = files_->Rename(TemporaryPath(), path_);
  if (!status.ok()) (void)files_->RemoveFile(TemporaryPath());  // the first error is the one to report
  return status;
}

absl::Status RunLease::SeenLost() const {
  const std::lock_guard<std::mutex> guard(seen_mutex_);
  return seen_;
}

bool RunLease::StoppedWithin(double seconds) {
  std::unique_lock<std::mutex> guard(mutex_);
  return stopped_.wait_for(guard, std::chrono::duration<double>(seconds), [this] { return stop_; });
}

void RunLease::BeatUntilStopped() {
  bool failing = false, doubted = false;
  while (
      !StoppedWithin(doubted ? std::min(options_.beat_seconds, kSecondLookSeconds) : options_.beat_seconds)) {
    const absl::Status beat = WithoutThrowing([this] { return Beat(); });
    // Told when it is seen twice: a network file system may show nothing for a moment.
    if (absl::IsFailedPrecondition(beat)) {
      if (!std::exchange(doubted, true)) continue;
      CAROUSEL_LOG(ERROR) << beat.message();
      const std::lock_guard<std::mutex> guard(seen_mutex_);
      seen_ = beat;
      return;
    }
    doubted = false;
    // Said once: what follows is the same trouble.
    if (!beat.ok() && !failing) {
      CAROUSEL_LOG(WARNING) << "the lease cannot be kept alive: " << beat.message()
                            << "; another machine may take the run over in " << options_.stale_seconds
                            << " s";
    }
    failing = !beat.ok();
  }
}
}  // namespace carousel
