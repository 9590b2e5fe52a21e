// Saving while training goes on: SaveCheckpoint in parts. Training waits for two things only: for Start,
// which plans and makes a directory, and before the next update of the state, until what it would change has
// been copied (WaitUntilStaged). Everything else is done by other threads, which talk to no other rank; what
// ranks must know of each other goes with numbers that they add up once per step anyway.
//
//   saver.Start(request)                    all ranks, after an update: the state of this moment is saved
//   saver.WaitUntilStaged()                 each rank, before the next update
//   saver.Contribute(&numbers)              each rank, every step: kNumNumbers of them, to be summed
//   outcome = saver.Advance(sums)           all ranks, with the sums: goes on to the next phase when all can
//   outcome = saver.Finish()                all ranks: waits for the save in flight
//
// Memory: a pool of staging_bytes, from the beginning, through which the state passes block by block: its
// copies wait for blocks that have been written, if it is larger than the pool. Beside it a buffer of 1 MiB
// and what names and places take.
//
// Digests are taken from the state itself, by the thread that copies it, so that they also cover the copy;
// where a StateCopier copies, from what arrived.
//
// A save that fails on any rank, or takes longer than timeout_seconds, is given up by all; training goes on.
// So is one whose threads threw an exception (no memory, no thread), which is told like any other failure. A
// thread that hangs in a call to a dead disk is left behind: until it comes back, new saves fail at once.
//
// Without a pool (staging_bytes 0) the state is read where it lies, and WaitUntilStaged waits until it is
// written: for saves during which training waits, Start and Finish one after the other. Limits and failures
// are the same.
#pragma once
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "checkpoints/checkpoint.h"

namespace carousel {

class SaveAttempt;
class StagedState;
class StagingPool;
class Worker;

struct BackgroundSaveOptions {
  int64_t staging_bytes = 0;  // StagingBytes; 0: no pool
  double timeout_seconds = 3600;
  // How long Start waits for the directory of the checkpoint, unless something must be removed for it.
  double directory_seconds = 60;
  // All must be copied so long after Start: while a rank waits for a block its neighbours wait for it in a
  // call, and calls that wait 1800 s end the job.
  double staging_timeout_seconds = 1200;
  // A sign of life, for every block that is copied and while a save is waited for; by any thread. May be
  // null.
  std::function<void()> progress = nullptr;
};

// What the pool takes for a rank that has state_bytes of state, of which at most limit_bytes are wanted (0:
// at most 2 GiB): a multiple of 1 MiB.
int64_t StagingBytes(int64_t state_bytes, int64_t limit_bytes);

struct SaveOutcome {
  int64_t step = 0;
  absl::Status status;         // the same on every rank
  double stalled_seconds = 0;  // that training waited, on this rank
  double seconds = 0;          // from Start until the checkpoint was there (rank 0), or the failure known
  int64_t num_bytes = 0;       // of the shards of all ranks
};

class BackgroundSaver {
 public:
  // `copier` (for all requests; null: the host reads the state) must outlive the saver. `worker` writes to
  // the disk, in the order of the jobs it is given, by others too; null: one of its own.
  BackgroundSaver(const BackgroundSaveOptions& options, StateCopier* copier,
                  std::shared_ptr<Worker> worker = nullptr);
  // Gives up what is in flight. If a thread hangs, what its request and the copier point to must live on
  // until the process ends.
  ~BackgroundSaver();
  BackgroundSaver(const BackgroundSaver&) = delete;
  BackgroundSaver& operator=(const BackgroundSaver&) = delete;

  // ResourceExhausted: there was no memory for the pool; every Start fails.
  absl::Status CheckMemory() const;
  int64_t staging_bytes() const { return options_.staging_bytes; }
  int64_t most_staging_bytes_used() const { return most_used_bytes_; }

  // Collective. Begins a save: slices are read until WaitUntilStaged has returned, all else is copied. The
  // file system and the lease must live until the save has ended. After an error nothing is in flight. Errors
  // as SaveCheckpoint's, Unavailable if an earlier save hangs, and DeadlineExceeded if the directory was not
  // there after directory_seconds, or after timeout_seconds where old checkpoints had to be removed to make
  // room. REQUIRES: !in_flight().
  absl::Status Start(const SaveRequest& request);
  bool in_flight() const { return phase_ != Phase::kNone; }
  // Returns when the state may be changed, at the latest when one of the save's times is up (then it has
  // failed).
  void WaitUntilStaged();

  static constexpr size_t kNumNumbers = 3;
  void Contribute(std::vector<int64_t>* numbers);
  // Collective. `sums`: kNumNumbers, over all ranks. An outcome if the save has ended.
  std::optional<SaveOutcome> Advance(const int64_t* sums);
  // Collective. Waits for the save in flight and returns its outcome; nothing if there was none.
  std::optional<SaveOutcome> Finish();

  // Whether a save is stuck in the file system; waits for it a second.
  bool hung() const;

 private:
  enum class Phase : uint8_t { kNone, kWriting, kCompleting };
  using Clock = std::chrono::steady_clock;
  struct Save;
  class Stall;  // counts the time that training waits

  std::string Prepare();  // collective
  void Live() const;
  void StartThreads();
  void StartCopying();
  void StopStaging();
  std::optional<SaveOutcome> AdvancePhase(bool busy, bool failed, bool timed_out);
  std::optional<SaveOutcome> AfterWriting(bool timed_out);
  SaveOutcome AfterCompleting(bool timed_out);
  absl::Status TookTooLong() const;
  SaveOutcome End(const absl::Status& status);

  const BackgroundSaveOptions options_;
  StateCopier* const copier_;
  const std::shared_ptr<Worker> worker_;
  uint64_t ticket_ = 0;                // of the newest job of a save
  std::shared_ptr<StagingPool> pool_;  // null: none
  std::thread copying_;                // without a copier
  Phase phase_ = Phase::kNone;
  std::shared_ptr<Save> save_;  // shared with the threads
  bool staged_ = true;
  bool gave_up_ = false;  // this rank has counted itself as one that ran out of time
  int64_t most_used_bytes_ = 0;
};
}  // namespace carousel
