#include "checkpoints/save_attempt.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "checkpoints/checkpoint_store.h"
#include "checkpoints/collective.h"
#include "checkpoints/digest.h"
#include "checkpoints/manifest.h"
#include "checkpoints/run_identity.h"
#include "checkpoints/worker.h"
#include "core/base/log.h"
#include "core/base/status_macros.h"
#include "core/train/agreement.h"

namespace carousel {
namespace pb = checkpoint;
namespace {

int64_t UnixNanos() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

std::string Serialize(const absl::Status& status, pb::RootMessage message = {}) {
  message.set_code(status.raw_code());
  message.set_message(std::string(status.message()));
  return message.SerializeAsString();
}
// What a sink gets at once: mostly written from where it lies.
constexpr int64_t kPieceBytes = int64_t{16} << 20;

absl::Status StatusIn(int code, const std::string& message) {
  return absl::Status(static_cast<absl::StatusCode>(code), message);
}
}  // namespace

const char* DescribeActivity(SaveActivity activity) {
  switch (activity) {
    case SaveActivity::kWaiting:
      return "waiting for marks of checkpoints to be written";
    case SaveActivity::kDirectory:
      return "making a directory";
    case SaveActivity::kSweeping:
      return "removing what earlier attempts left behind";
    case SaveActivity::kMakingRoom:
      return "removing older checkpoints, since the disk is full";
    case SaveActivity::kWriting:
      return "writing and syncing shards";
    case SaveActivity::kCollecting:
      return "looking at the shards of all ranks";
    case SaveActivity::kRecords:
      return "syncing the records of the run";
    case SaveActivity::kCommitting:
      return "writing the manifest and renaming the directory";
    case SaveActivity::kPruning:
      return "reading the new checkpoint and removing older ones";
  }
  return "nothing";
}

SaveAttempt::SaveAttempt(const SaveRequest& request)
    : request_(request),
      disk_(request.files != nullptr ? *request.files : posix_),
      rank_(RankOf(request.communicator)),
      name_(StepName(request.state.step)) {}

absl::Status SaveAttempt::StopIfCancelled() const {
  return cancelled_ ? absl::CancelledError("the save was given up") : absl::OkStatus();
}

int64_t SaveAttempt::num_bytes() const {
  int64_t bytes = 0;
  for (const PlannedFile& file : planned_) bytes += file.num_bytes;
  return bytes;
}

absl::Status SaveAttempt::Plan() {
  std::vector<pb::RankSlices> ranks;
  for (const std::string& bytes : GatherBytes(
           request_.communicator, DescribeSlices(request_.slices, request_.state).SerializeAsString())) {
    ranks.emplace_back();
    CAROUSEL_CHECK(ranks.back().ParseFromString(bytes));
  }
  for (size_t r = 1; r < ranks.size(); ++r) {
    ranks[r].mutable_state()->set_wall_seconds(ranks[0].state().wall_seconds());  // clocks differ
    if (ranks[r].state().SerializeAsString() != ranks[0].state().SerializeAsString()) {
      return absl::InvalidArgumentError(
          absl::StrCat("ranks 0 and ", r, " are in different states: ", ranks[0].state().ShortDebugString(),
                       " and ", ranks[r].state().ShortDebugString()));
    }
  }
  if (request_.state.step < 0) {
    return absl::InvalidArgumentError(absl::StrCat("there is no step ", request_.state.step));
  }
  CAROUSEL_ASSIGN_OR_RETURN(tensors_, PlanTensors(ranks));
  CAROUSEL_ASSIGN_OR_RETURN(planned_, PlanFiles(tensors_, request_.max_file_bytes,
                                                {{"format", "pt"},
                                                 {"run_id", request_.run_id},
                                                 {"step", absl::StrCat(request_.state.step)}}));
  return absl::OkStatus();
}

std::string SaveAttempt::Prepare() {
  pb::RootMessage message;
  const absl::Status status = PrepareDirectory(&message);
  return Serialize(status, std::move(message));
}

std::string SaveAttempt::Refusal(const absl::Status& status) { return Serialize(status); }

absl::Status SaveAttempt::PrepareDirectory(pb::RootMessage* message) {
  const std::string& run_dir = request_.run_dir;
  const std::string store = StoreDir(run_dir);
  activity_ = SaveActivity::kDirectory;
  CAROUSEL_RETURN_IF_ERROR(CreateDirectories(disk_, store));
  if (request_.lease == nullptr) {
    CAROUSEL_ASSIGN_OR_RETURN(own_lease_, RunLease::Acquire(run_dir, &disk_));
  }
  // What looks left over may be what a successor writes just now.
  CAROUSEL_RETURN_IF_ERROR(lease().StillHeld());
  CAROUSEL_RETURN_IF_ERROR(CheckStillSame(run_dir, request_.run_id, disk_));
  activity_ = SaveActivity::kSweeping;
  const absl::Status swept = SweepLeftovers(run_dir, &disk_);
  activity_ = SaveActivity::kDirectory;
  if (!swept.ok()) CAROUSEL_LOG(WARNING) << "cannot clean up " << store << ": " << swept.message();

  const std::string final_dir = JoinPath(store, name_);
  CAROUSEL_ASSIGN_OR_RETURN(const FileInfo there, disk_.Stat(final_dir));
  if (there.exists) {
    CAROUSEL_ASSIGN_OR_RETURN(const FileInfo manifest, disk_.Stat(JoinPath(final_dir, kManifestFile)));
    if (manifest.exists) {
      message->set_exists(true);
      return absl::OkStatus();
    }
    // Never committed: nobody reads it, but it may be somebody's.
    std::string aside;
    CAROUSEL_RETURN_IF_ERROR(MoveAside(disk_, run_dir, name_, kBadPrefix, &aside));
    CAROUSEL_LOG(WARNING) << final_dir << (there.is_directory ? " has no manifest" : " is a file")
                          << " and not a checkpoint; moved to " << aside;
  }
  CAROUSEL_RETURN_IF_ERROR(MakeRoom());
  CAROUSEL_RETURN_IF_ERROR(StopIfCancelled());
  message->set_dir(JoinPath(store, absl::StrFormat("%s%s-%x-%x", kTemporaryPrefix, name_, UnixNanos(),
                                                   static_cast<int>(getpid()))));
  return disk_.CreateDirectory(message->dir());
}

// Is there space? If not, is there with what need not stay?
absl::Status SaveAttempt::MakeRoom() {
  const std::string store = StoreDir(request_.run_dir);
  // Files, some room for manifests and for what a file system needs for itself.
  int64_t needed = int64_t{1} << 20;
  for (const PlannedFile& file : planned_) needed += file.num_bytes + file.num_bytes / 10;
  CAROUSEL_ASSIGN_OR_RETURN(int64_t available, disk_.FreeBytes(store));
  if (available >= needed) return absl::OkStatus();
  activity_ = SaveActivity::kMakingRoom;
  const absl::Status pruned = PruneCheckpoints(request_.run_dir, request_.keep, &disk_, &lease());
  activity_ = SaveActivity::kDirectory;
  CAROUSEL_RETURN_IF_ERROR(pruned);
  CAROUSEL_ASSIGN_OR_RETURN(available, disk_.FreeBytes(store));
  if (available >= needed) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat("a checkpoint needs ", needed, " bytes and ", available,
                                                   " are free in ", store,
                                                   "; remove something, or keep fewer checkpoints"));
}

absl::Status SaveAttempt::Begin(const std::string& prepared) {
  pb::RootMessage message;
  CAROUSEL_CHECK(message.ParseFromString(BytesOfRank0(request_.communicator, prepared)));
  temporary_dir_ = message.dir();
  exists_ = message.exists();
  if (message.code() == 0) return absl::OkStatus();
  return StatusIn(message.code(), absl::StrCat("saving ", name_, ": ", message.message()));
}

absl::StatusOr<std::vector<uint64_t>> SaveAttempt::TensorDigests() const {
  std::vector<std::vector<uint64_t>> of_slices;
  for (const pb::RankReport& report : reports_) {
    of_slices.emplace_back(report.digests().begin(), report.digests().end());
  }
  StateDigests digests = CombineDigests(tensors_, of_slices);
  if (digests.different_replicas.empty()) return std::move(digests.tensors);
  return absl::FailedPreconditionError(
      absl::StrCat("tensors that several ranks hold must be equal on all of them, and are not: ",
                   absl::StrJoin(digests.different_replicas, "; ")));
}

absl::Status SaveAttempt::CompareWithExisting() const {
  CAROUSEL_ASSIGN_OR_RETURN(const std::vector<uint64_t> digests, TensorDigests());
  const std::string dir = JoinPath(StoreDir(request_.run_dir), name_);
  const absl::StatusOr<OpenedCheckpoint> existing = OpenAndCheck(disk_, dir);
  std::vector<std::string> different;
  if (existing.ok()) {
    TrainState state = request_.state;
    state.wall_seconds = existing->state.wall_seconds;  // the same work may take another time
    if (ToProto(state).SerializeAsString() != ToProto(existing->state).SerializeAsString()) {
      different.push_back("the state");
    }
    if (!CompareTensors(tensors_, existing->manifest, dir).ok()) different.push_back("names or shapes");
    for (const pb::TensorEntry& entry : existing->manifest.tensors()) {
      for (size_t t = 0; t < tensors_.size(); ++t) {
        if (tensors_[t].name == entry.name() && ToProto(tensors_[t].kind) == entry.kind() &&
            digests[t] != entry.digest()) {
          different.push_back(Describe(entry.name(), tensors_[t].kind));
        }
      }
    }
  } else {
    different.push_back(std::string(existing.status().message()));
  }
  if (different.empty()) return absl::OkStatus();
  return absl::AlreadyExistsError(absl::StrCat(
      dir, " exists and is not what would be saved (", different[0],
      different.size() > 1 ? absl::StrCat(" and ", different.size() - 1, " more differences") : "",
      "); move it away or use another run_dir"));
}

absl::Status SaveAttempt::WriteShard(const PlannedFile& file, StateSource& source) {
  absl::StatusOr<ShardWriter> created = ShardWriter::Create(disk_, temporary_dir_, file.name);
  if (absl::IsNotFound(created.status())) {
    return absl::FailedPreconditionError(
        absl::StrCat(created.status().message(), "; run_dir must be on a file system that all ranks share"));
  }
  CAROUSEL_RETURN_IF_ERROR(created.status());
  ShardWriter& writer = *created;
  CAROUSEL_RETURN_IF_ERROR(writer.Append(file.prefix.data(), static_cast<int64_t>(file.prefix.size())));
  CAROUSEL_RETURN_IF_ERROR(writer.Flush());
  CAROUSEL_RETURN_IF_ERROR(source.Read(file, [&](const void* data, int64_t num_bytes) -> absl::Status {
    CAROUSEL_RETURN_IF_ERROR(StopIfCancelled());
    return writer.Append(data, num_bytes);
  }));
  CAROUSEL_ASSIGN_OR_RETURN(*report_.add_files(), writer.Finish());
  return absl::OkStatus();
}

void SaveAttempt::Write(StateSource& source) {
  activity_ = SaveActivity::kWriting;
  absl::Status status;
  for (const PlannedFile& file : planned_) {
    if (file.rank == rank_ && status.ok() && !exists_) status = WriteShard(file, source);
  }
  if (status.ok()) {
    const absl::StatusOr<std::vector<uint64_t>> digests = source.Digests();
    status = digests.status();
    if (digests.ok()) report_.mutable_digests()->Add(digests->begin(), digests->end());
  }
  report_.set_code(status.raw_code());
  report_.set_message(std::string(status.message()));
}

void SaveAttempt::FailWrite(const absl::Status& status) noexcept {
  report_.set_code(status.raw_code());
  static_cast<void>(WithoutThrowing([&] {
    report_.set_message(std::string(status.message()));
    return absl::OkStatus();
  }));
}

absl::Status SaveAttempt::written() const { return StatusIn(report_.code(), report_.message()); }

absl::Status SaveAttempt::Vote(const absl::Status& instead) {
  pb::RankReport failure;
  failure.set_code(instead.raw_code());
  failure.set_message(std::string(instead.message()));
  reports_.clear();
  std::vector<absl::Status> statuses;
  bool cancelled = false, failed = false;
  for (const std::string& bytes :
       GatherBytes(request_.communicator, (instead.ok() ? report_ : failure).SerializeAsString())) {
    reports_.emplace_back();
    CAROUSEL_CHECK(reports_.back().ParseFromString(bytes));
    statuses.push_back(StatusIn(reports_.back().code(), reports_.back().message()));
    cancelled |= absl::IsCancelled(statuses.back());
    failed |= !statuses.back().ok() && !absl::IsCancelled(statuses.back());
  }
  // Who gave up because of another rank's failure has nothing to add to it.
  for (absl::Status& status : statuses) {
    if (failed && absl::IsCancelled(status)) status = absl::OkStatus();
  }
  return CombineStatuses(statuses);
}

absl::Status SaveAttempt::Collect() {
  activity_ = SaveActivity::kCollecting;
  DescribeRun(request_, &manifest_);
  manifest_.set_unix_nanos(UnixNanos());
  manifest_.set_world_size(static_cast<int64_t>(reports_.size()));
  std::vector<int> next(reports_.size(), 0);
  for (const PlannedFile& file : planned_) {
    const size_t rank = static_cast<size_t>(file.rank);
    const pb::FileEntry& entry = reports_[rank].files(next[rank]++);
    const std::string path = JoinPath(temporary_dir_, file.name);
    CAROUSEL_ASSIGN_OR_RETURN(const FileInfo info, disk_.Stat(path));
    if (!info.exists) {
      return absl::FailedPreconditionError(
          absl::StrCat("rank 0 does not see ", path, ", which rank ", file.rank,
                       " wrote; run_dir must be on a file system that all ranks share"));
    }
    if (entry.name() != file.name || entry.size() != file.num_bytes || info.size != file.num_bytes) {
      return absl::DataLossError(absl::StrCat(path, " has ", info.size, " bytes; ", entry.size(),
                                              " were written and ", file.num_bytes, " planned"));
    }
    *manifest_.add_files() = entry;
  }
  AddTensors(tensors_, planned_, &manifest_);
  CAROUSEL_ASSIGN_OR_RETURN(const std::vector<uint64_t> digests, TensorDigests());
  for (size_t t = 0; t < tensors_.size(); ++t) {
    manifest_.mutable_tensors(static_cast<int>(t))->set_digest(digests[t]);
  }
  return absl::OkStatus();
}

absl::Status SaveAttempt::SyncRecords() {
  activity_ = SaveActivity::kRecords;
  for (const std::string& path : request_.records) {
    CAROUSEL_ASSIGN_OR_RETURN(const FileInfo info, disk_.Stat(path));
    if (!info.exists) continue;
    CAROUSEL_RETURN_IF_ERROR(disk_.SyncFile(path));
    CAROUSEL_RETURN_IF_ERROR(disk_.SyncDirectory(ParentPath(path)));
  }
  return absl::OkStatus();
}

absl::Status SaveAttempt::Commit() {
  CAROUSEL_RETURN_IF_ERROR(SyncRecords());
  activity_ = SaveActivity::kCommitting;
  const std::string& tmp = temporary_dir_;
  CAROUSEL_ASSIGN_OR_RETURN(
      *manifest_.add_files(),
      WriteChecksummed(disk_, tmp, kStateFile,
                       Frame(kStateMagic, ToProto(request_.state).SerializeAsString())));
  CAROUSEL_ASSIGN_OR_RETURN(*manifest_.add_files(),
                            WriteChecksummed(disk_, tmp, kConfigFile, request_.config_text));
  const std::string payload = manifest_.SerializeAsString();
  // What is written can be read: boxes tile, sizes fit.
  const absl::Status readable = ParseManifest(payload, "the new manifest").status();
  if (!readable.ok()) return absl::InternalError(std::string(readable.message()));
  const std::string framed = Frame(kManifestMagic, payload);
  if (static_cast<int64_t>(framed.size()) > kMaxManifestBytes) {
    return absl::ResourceExhaustedError(absl::StrCat("the new manifest has ", framed.size(),
                                                     " bytes; at most ", kMaxManifestBytes,
                                                     " can be read: use fewer ranks or tensors"));
  }
  CAROUSEL_RETURN_IF_ERROR(
      WriteFile(disk_, JoinPath(tmp, kManifestJsonFile), ManifestJson(manifest_, request_.state)));

  // The manifest is the last file, and the directory's final name makes it a checkpoint.
  CAROUSEL_RETURN_IF_ERROR(ReplaceFile(disk_, JoinPath(tmp, kManifestFile), framed));
  CAROUSEL_RETURN_IF_ERROR(StopIfCancelled());
  CAROUSEL_RETURN_IF_ERROR(lease().StillHeld());
  const std::string store = StoreDir(request_.run_dir);
  CAROUSEL_RETURN_IF_ERROR(StopIfCancelled());
  CAROUSEL_RETURN_IF_ERROR(disk_.Rename(tmp, JoinPath(store, name_)));
  renamed_ = true;
  const absl::Status synced = disk_.SyncDirectory(store);
  if (!synced.ok()) {
    return absl::Status(synced.code(), absl::StrCat(JoinPath(store, name_),
                                                    " is complete but might not survive a power failure: ",
                                                    synced.message()));
  }
  committed_at_ = std::chrono::steady_clock::now();
  durable_ = true;
  return absl::OkStatus();
}

absl::Status SaveAttempt::AfterCommit() {
  activity_ = SaveActivity::kPruning;
  CAROUSEL_RETURN_IF_ERROR(WriteLatest(disk_, request_.run_dir, name_));
  // Nothing is deleted before the new one was found to be complete.
  CAROUSEL_RETURN_IF_ERROR(OpenAndCheck(disk_, JoinPath(StoreDir(request_.run_dir), name_)).status());
  return PruneCheckpoints(request_.run_dir, request_.keep, &disk_, &lease());
}

absl::Status SaveAttempt::Complete(const absl::Status& voted) {
  CAROUSEL_CHECK(rank_ == 0);
  absl::Status status = voted;
  if (exists_) {
    if (status.ok()) status = CompareWithExisting();
    committed_at_ = std::chrono::steady_clock::now();
    durable_ = status.ok();
  } else {
    if (status.ok()) status = Collect();
    if (status.ok()) status = Commit();
    if (!renamed_) {
      Discard();
    } else if (status.ok()) {
      // Neither changes what is there: trouble here is told, the save was a success.
      const absl::Status after = AfterCommit();
      if (!after.ok()) CAROUSEL_LOG(WARNING) << "after saving " << name_ << ": " << after.message();
    }
  }
  own_lease_.reset();
  return status;
}

void SaveAttempt::Discard() {
  if (exists_ || renamed_) return;
  const absl::Status removed = RemoveTree(disk_, temporary_dir_);
  if (!removed.ok()) CAROUSEL_LOG(WARNING) << "left behind: " << removed.message();
}

absl::Status SaveAttempt::Announce(const absl::Status& of_rank0) {
  pb::RootMessage message;
  CAROUSEL_CHECK(message.ParseFromString(
      BytesOfRank0(request_.communicator, rank_ == 0 ? Serialize(of_rank0) : std::string())));
  if (message.code() == 0) return absl::OkStatus();
  return StatusIn(message.code(), absl::StrCat("saving ", name_, ": ", message.message()));
}

// ---- the state where it lies

DirectSource::DirectSource(const std::vector<StateSlice>& slices) : slices_(slices) {
  for (const StateSlice& slice : slices) digests_.push_back(DigestSlice(slice));
}

absl::Status DirectSource::Read(const PlannedFile& file, const Sink& sink) {
  for (const PlannedBox& box : file.boxes) {
    const StateSlice& slice = slices_[static_cast<size_t>(box.slice)];
    for (SliceRuns runs(slice); !runs.done(); runs.Next()) {
      // In pieces, between which the sink can end it.
      const int64_t num_bytes = runs.count() * SizeOf(slice.dtype);
      for (int64_t at = 0; at < num_bytes; at += kPieceBytes) {
        CAROUSEL_RETURN_IF_ERROR(sink(runs.data() + at, std::min(kPieceBytes, num_bytes - at)));
      }
    }
  }
  return absl::OkStatus();
}
}  // namespace carousel
