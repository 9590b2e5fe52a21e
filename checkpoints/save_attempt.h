// One save on one rank, as phases: what SaveCheckpoint calls one after the other, and BackgroundSaver from
// several threads while training goes on (FORMAT.md, "Commit"). Internal to this folder.
//
//   all ranks   Plan                      collective   what goes where; the same on every rank
//   rank 0      Prepare                   local, disk  lease, space, temporary directory
//   all ranks   Begin                     collective   rank 0's Prepare, for all
//   all ranks   Write                     local, disk  this rank's shards, digests, report
//   all ranks   Vote                      collective   the reports, for rank 0
//   rank 0      Complete                  local, disk  compares, writes the manifest, renames, prunes
//   all ranks   Announce                  collective   rank 0's result, for all
//
// Local phases may run in another thread than collective ones, one phase at a time, and talk to nobody. After
// Cancel they stop at their next step, and nothing is committed any more.
#pragma once
#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "checkpoints/checkpoint.h"
#include "checkpoints/manifest.pb.h"
#include "checkpoints/shard_plan.h"
#include "checkpoints/shard_writer.h"

namespace carousel {

// Where the bytes of a rank's state come from when they are written.
class StateSource {
 public:
  virtual ~StateSource() = default;
  using Sink = std::function<absl::Status(const void* data, int64_t num_bytes)>;
  // Gives the sink the data of a file of this rank, after its header, in any pieces. Files come in the order
  // of the plan. Ends with the first error, its own or the sink's.
  virtual absl::Status Read(const PlannedFile& file, const Sink& sink) = 0;
  // Of the rank's slices in their order, when all of its files have been read.
  virtual absl::StatusOr<std::vector<uint64_t>> Digests() = 0;
};

// What a local phase is doing.
enum class SaveActivity : uint8_t {
  kWaiting,    // for what was to be written before
  kDirectory,  // looks at the run directory, makes one for the new checkpoint
  kSweeping,   // removes what earlier attempts left
  kMakingRoom,
  kWriting,
  kCollecting,  // sizes of what all ranks wrote
  kRecords,
  kCommitting,
  kPruning
};
// "removing older checkpoints, since the disk is full".
const char* DescribeActivity(SaveActivity activity);

class SaveAttempt {
 public:
  // Takes a copy of the request. The memory of its slices is read by the StateSource alone.
  explicit SaveAttempt(const SaveRequest& request);

  absl::Status Plan();
  std::string Prepare();                                   // for Begin
  static std::string Refusal(const absl::Status& status);  // instead of a Prepare that does not end
  absl::Status Begin(const std::string& prepared);
  void Write(StateSource& source);
  // `instead`, if it is an error: for a Write that does not end.
  absl::Status Vote(const absl::Status& instead = absl::OkStatus());
  absl::Status Complete(const absl::Status& voted);
  absl::Status Announce(const absl::Status& of_rank0);

  void Cancel() { cancelled_ = true; }
  // Instead of what a Write that was torn off by an exception would have reported.
  void FailWrite(const absl::Status& status) noexcept;
  // The rest of a Complete that was torn off by an exception: removes what was written, if it was not
  // committed.
  void Discard();
  // What is being done now, or was done last; any thread.
  SaveActivity activity() const { return activity_; }
  // A checkpoint of this step is there already: Write takes digests only, Complete compares.
  bool exists() const { return exists_; }
  const SaveRequest& request() const { return request_; }
  const std::string& name() const { return name_; }  // "step-000000200"
  const std::vector<PlannedFile>& files() const { return planned_; }
  int rank() const { return rank_; }
  int64_t num_bytes() const;  // of all ranks' shards
  // Whether the checkpoint is on the disk, though Complete may still be removing older ones; any thread.
  bool committed() const { return durable_; }
  // When, if committed().
  std::chrono::steady_clock::time_point committed_at() const { return committed_at_; }
  // After Write: what went wrong here.
  absl::Status written() const;

 private:
  const RunLease& lease() const { return request_.lease != nullptr ? *request_.lease : *own_lease_; }
  absl::Status PrepareDirectory(checkpoint::RootMessage* message);
  absl::Status MakeRoom();
  absl::Status WriteShard(const PlannedFile& file, StateSource& source);
  absl::Status StopIfCancelled() const;
  // Of every tensor. FailedPrecondition if replicas differ.
  absl::StatusOr<std::vector<uint64_t>> TensorDigests() const;
  absl::Status CompareWithExisting() const;
  absl::Status Collect();
  absl::Status SyncRecords();
  absl::Status Commit();
  absl::Status AfterCommit();

  const SaveRequest request_;
  PosixFileSystem posix_;
  FileSystem& disk_;
  const int rank_;
  const std::string name_;
  std::atomic<bool> cancelled_ = false;
  std::atomic<SaveActivity> activity_ = SaveActivity::kWaiting;
  std::vector<PlannedTensor> tensors_;
  std::vector<PlannedFile> planned_;
  std::unique_ptr<RunLease> own_lease_;
  std::string temporary_dir_;
  bool exists_ = false;
  bool renamed_ = false;
  std::chrono::steady_clock::time_point committed_at_ = {};
  std::atomic<bool> durable_ = false;            // publishes committed_at_
  checkpoint::RankReport report_;                // this rank's
  std::vector<checkpoint::RankReport> reports_;  // of all ranks, after Vote
  checkpoint::Manifest manifest_;
};

// The state read where it lies, by the thread that calls: nothing changes it meanwhile.
class DirectSource final : public StateSource {
 public:
  explicit DirectSource(const std::vector<StateSlice>& slices);  // must outlive this
  absl::Status Read(const PlannedFile& file, const Sink& sink) override;
  absl::StatusOr<std::vector<uint64_t>> Digests() override { return digests_; }

 private:
  const std::vector<StateSlice>& slices_;
  // Of the state itself, before it becomes files: what is read back must give these.
  std::vector<uint64_t> digests_;
};
}  // namespace carousel
