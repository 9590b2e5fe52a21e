// The right to write below a run directory: one process at a time, also where several machines share the
// file system.
//
//   <run_dir>/checkpoints/.lease        who holds it, and a count that rises while the holder lives
//   <run_dir>/checkpoints/.lease.lock   flock()ed by the holder
//
// Where the machine in the lease and the domain of its lock are the finder's own, a dead holder is known at
// once: the lock is free.
//
// Whoever finds any other lease watches it: if its count rises, the holder lives and the lease is refused; if
// it stands still for stale_seconds of the watcher's own steady clock, the holder is dead and the lease is
// taken over. Clocks of different machines are never compared: the time in the lease is for people. A holder
// that was only slow, so that another process took over, learns of it from StillHeld and must write no more:
// a save asks before it commits. Its own thread looks every beat_seconds and notes it for SeenLost.
#pragma once
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "checkpoints/file_system.h"

namespace carousel {

// Time as the lease sees it; tests bring their own.
class LeaseClock {
 public:
  virtual ~LeaseClock() = default;
  virtual int64_t UnixNanos() = 0;  // for people
  virtual double Seconds() = 0;     // rises steadily
  virtual void Sleep(double seconds) = 0;
};

// Who a process is.
struct LeaseOwner {
  std::string host;     // for people
  std::string machine;  // differs between machines, and between boots of one
  int64_t pid = 0;
  std::string pid_space = {};  // where that number means a process (a container has its own)
};
LeaseOwner ThisProcess();

struct LeaseOptions {
  FileSystem* files = nullptr;  // null: the real one
  LeaseClock* clock = nullptr;  // null: the real one
  LeaseOwner owner = {};        // without a machine: ThisProcess()
  int64_t attempt = 0;          // which start of the run this is, from 1, for people; 0: unknown
  double beat_seconds = 5;      // the count rises so often
  double stale_seconds = 60;    // a lease of another machine whose count stands still so long is dead
  bool thread = true;           // the count rises by itself; else whenever Beat is called
  // Asked while Acquire watches another's lease: true ends it with Cancelled. Null: never.
  std::function<bool()> should_stop = {};
};

class RunLease {
 public:
  // FailedPrecondition if another process holds it; the message says which, since when, and what to do.
  // Creates run_dir if need be. Waits, at most a little more than stale_seconds, if the lease is of another
  // machine.
  static absl::StatusOr<std::unique_ptr<RunLease>> Acquire(const std::string& run_dir,
                                                           FileSystem* files = nullptr);
  static absl::StatusOr<std::unique_ptr<RunLease>> Acquire(const std::string& run_dir,
                                                           const LeaseOptions& options);
  ~RunLease();  // gives it back
  RunLease(const RunLease&) = delete;
  RunLease& operator=(const RunLease&) = delete;

  const std::string& run_dir() const { return run_dir_; }
  // Looks at the disk. FailedPrecondition: another process has taken the lease over (or removed it); nothing
  // below run_dir may be written or removed any more. Other errors: the disk does not say. Any thread.
  absl::Status StillHeld() const;
  // What the lease's own thread saw when it looked last, at most a little more than beat_seconds ago: OK, or
  // FailedPrecondition as StillHeld says it, from then on. Costs nothing and touches no disk. Any thread.
  absl::Status SeenLost() const;
  // Raises the count, if the lease is still held. Any thread.
  absl::Status Beat();

 private:
  struct Record;
  RunLease() = default;
  absl::Status Claim();
  absl::Status WriteTemporary(const std::string& text);
  absl::Status CreateOrReplace(const std::string& text, bool create);
  absl::Status RemoveTemporaries();
  absl::Status WaitForDeath(const std::string& found_text);
  absl::Status CheckLocked() const;  // StillHeld, under the mutex
  absl::Status Refused(const std::string& text, bool alive) const;
  Record Mine() const;
  std::string TemporaryPath() const;
  bool StoppedWithin(double seconds);
  void BeatUntilStopped();

  std::string run_dir_, path_;
  LeaseOptions options_;
  PosixFileSystem posix_;
  FileSystem* files_ = nullptr;
  std::unique_ptr<LeaseClock> own_clock_;
  LeaseClock* clock_ = nullptr;
  std::string nonce_;  // of this lease alone
  int64_t started_unix_nanos_ = 0;
  std::unique_ptr<FileLock> lock_;  // null where the file system has no locks
  bool claimed_ = false;
  mutable std::mutex seen_mutex_;  // held for no longer than it takes to copy
  absl::Status seen_;
  mutable std::mutex mutex_;  // guards what follows, and the file
  int64_t count_ = 0;
  bool stop_ = false;
  std::condition_variable stopped_;
  std::thread thread_;
};
}  // namespace carousel
