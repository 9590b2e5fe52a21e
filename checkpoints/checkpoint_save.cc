// SaveCheckpoint: plan, write in a temporary directory, agree, commit by renames (FORMAT.md, "Commit").
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "checkpoints/checkpoint.h"
#include "checkpoints/checkpoint_store.h"
#include "checkpoints/collective.h"
#include "checkpoints/digest.h"
#include "checkpoints/manifest.h"
#include "checkpoints/shard_plan.h"
#include "checkpoints/shard_writer.h"
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

// Collective. Every rank's report, in rank order.
std::vector<pb::RankReport> GatherReports(Communicator* communicator, const pb::RankReport& mine) {
  std::vector<pb::RankReport> reports;
  for (const std::string& bytes : GatherBytes(communicator, mine.SerializeAsString())) {
    reports.emplace_back();
    CAROUSEL_CHECK(reports.back().ParseFromString(bytes));
  }
  return reports;
}

// One save on one rank. The public methods are its phases, in order; those without "Collective" are local.
class Save {
 public:
  Save(const SaveRequest& request, FileSystem& files)
      : request_(request),
        files_(files),
        rank_(RankOf(request.communicator)),
        name_(StepName(request.state.step)) {}

  absl::Status Run();

 private:
  absl::Status Plan();                 // collective: what goes where; the same on every rank
  pb::RootMessage Prepare();           // rank 0: lease, space, temporary directory
  absl::Status Begin();                // collective: rank 0's Prepare for all
  absl::Status CompareWithExisting();  // collective
  pb::RankReport WriteShards() const;  // this rank's files
  absl::Status WriteShard(const PlannedFile& file, pb::RankReport* report) const;
  absl::Status Collect(const std::vector<pb::RankReport>& reports);  // rank 0: fills the manifest
  absl::Status Commit();                                             // rank 0: the manifest and the renames
  absl::Status Finish(const absl::Status& mine);  // collective: the result of rank 0 for all

  pb::RankReport SliceDigests() const;  // only these
  // Of every tensor. FailedPrecondition if replicas differ.
  absl::StatusOr<std::vector<uint64_t>> TensorDigests(const std::vector<pb::RankReport>& reports) const;

  const SaveRequest& request_;
  FileSystem& files_;
  const int rank_;
  const std::string name_;  // "step-000000200"
  std::vector<PlannedTensor> tensors_;
  std::vector<PlannedFile> planned_;
  std::unique_ptr<RunLease> own_lease_;
  std::string temporary_dir_;
  bool exists_ = false;
  bool committed_ = false;
  pb::Manifest manifest_;
};

absl::Status Save::Run() {
  CAROUSEL_RETURN_IF_ERROR(Plan());
  CAROUSEL_RETURN_IF_ERROR(Begin());
  if (exists_) return CompareWithExisting();

  const std::vector<pb::RankReport> reports = GatherReports(request_.communicator, WriteShards());
  std::vector<absl::Status> statuses;
  for (const pb::RankReport& report : reports) {
    statuses.emplace_back(static_cast<absl::StatusCode>(report.code()), report.message());
  }
  absl::Status status = CombineStatuses(statuses);
  if (rank_ == 0) {
    if (status.ok()) status = Collect(reports);
    if (status.ok()) status = Commit();
    if (!committed_) {
      const absl::Status removed = RemoveTree(files_, temporary_dir_);
      if (!removed.ok()) CAROUSEL_LOG(WARNING) << "left behind: " << removed.message();
    }
    if (status.ok()) {
      // Neither changes what is there: trouble here is told, the save was a success.
      absl::Status after = WriteLatest(files_, request_.run_dir, name_);
      // Nothing is deleted before the new one was found to be complete.
      if (after.ok()) after = OpenAndCheck(files_, JoinPath(StoreDir(request_.run_dir), name_)).status();
      if (after.ok()) after = PruneCheckpoints(request_.run_dir, request_.keep_last, &files_);
      if (!after.ok()) CAROUSEL_LOG(WARNING) << "after saving " << name_ << ": " << after.message();
    }
  }
  return Finish(status);
}

absl::Status Save::Plan() {
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

pb::RootMessage Save::Prepare() {
  pb::RootMessage message;
  const auto prepare = [&]() -> absl::Status {
    const std::string& run_dir = request_.run_dir;
    const std::string store = StoreDir(run_dir);
    CAROUSEL_RETURN_IF_ERROR(CreateDirectories(files_, store));
    if (request_.lease == nullptr) {
      CAROUSEL_ASSIGN_OR_RETURN(own_lease_, RunLease::Acquire(run_dir, &files_));
    }
    const absl::Status swept = SweepLeftovers(run_dir, &files_);
    if (!swept.ok()) CAROUSEL_LOG(WARNING) << "cannot clean up " << store << ": " << swept.message();

    const std::string final_dir = JoinPath(store, name_);
    CAROUSEL_ASSIGN_OR_RETURN(const FileInfo there, files_.Stat(final_dir));
    if (there.exists) {
      CAROUSEL_ASSIGN_OR_RETURN(const FileInfo manifest, files_.Stat(JoinPath(final_dir, kManifestFile)));
      if (manifest.exists) {
        message.set_exists(true);
        return absl::OkStatus();
      }
      // Never committed: nobody reads it, but it may be somebody's.
      CAROUSEL_RETURN_IF_ERROR(MoveAside(files_, run_dir, name_, kBadPrefix, nullptr));
    }

    // Files, some room for manifests and for what a file system needs for itself.
    int64_t needed = int64_t{1} << 20;
    for (const PlannedFile& file : planned_) needed += file.num_bytes + file.num_bytes / 10;
    CAROUSEL_ASSIGN_OR_RETURN(int64_t available, files_.FreeBytes(store));
    if (available < needed) {
      CAROUSEL_RETURN_IF_ERROR(PruneCheckpoints(run_dir, request_.keep_last, &files_));
      CAROUSEL_ASSIGN_OR_RETURN(available, files_.FreeBytes(store));
    }
    if (available < needed) {
      return absl::ResourceExhaustedError(absl::StrCat("a checkpoint needs ", needed, " bytes and ",
                                                       available, " are free in ", store,
                                                       "; remove something, or keep fewer checkpoints"));
    }
    message.set_dir(JoinPath(store, absl::StrFormat("%s%s-%x-%x", kTemporaryPrefix, name_, UnixNanos(),
                                                    static_cast<int>(getpid()))));
    return files_.CreateDirectory(message.dir());
  };
  const absl::Status status = prepare();
  message.set_code(status.raw_code());
  message.set_message(std::string(status.message()));
  return message;
}

absl::Status Save::Begin() {
  const std::string mine = rank_ == 0 ? Prepare().SerializeAsString() : std::string();
  pb::RootMessage message;
  CAROUSEL_CHECK(message.ParseFromString(BytesOfRank0(request_.communicator, mine)));
  temporary_dir_ = message.dir();
  exists_ = message.exists();
  if (message.code() == 0) return absl::OkStatus();
  return absl::Status(static_cast<absl::StatusCode>(message.code()),
                      absl::StrCat("saving ", name_, ": ", message.message()));
}

pb::RankReport Save::SliceDigests() const {
  pb::RankReport report;
  for (const StateSlice& slice : request_.slices) report.add_digests(DigestSlice(slice));
  return report;
}

absl::StatusOr<std::vector<uint64_t>> Save::TensorDigests(const std::vector<pb::RankReport>& reports) const {
  std::vector<std::vector<uint64_t>> of_slices;
  for (const pb::RankReport& report : reports) {
    of_slices.emplace_back(report.digests().begin(), report.digests().end());
  }
  StateDigests digests = CombineDigests(tensors_, of_slices);
  if (digests.different_replicas.empty()) return std::move(digests.tensors);
  return absl::FailedPreconditionError(
      absl::StrCat("tensors that several ranks hold must be equal on all of them, and are not: ",
                   absl::StrJoin(digests.different_replicas, "; ")));
}

absl::Status Save::CompareWithExisting() {
  const std::vector<pb::RankReport> reports = GatherReports(request_.communicator, SliceDigests());
  absl::StatusOr<std::vector<uint64_t>> combined = TensorDigests(reports);
  absl::Status status = combined.status();
  if (rank_ == 0 && status.ok()) {
    const std::vector<uint64_t>& digests = *combined;
    const std::string dir = JoinPath(StoreDir(request_.run_dir), name_);
    const absl::StatusOr<OpenedCheckpoint> existing = OpenAndCheck(files_, dir);
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
    if (!different.empty()) {
      status = absl::AlreadyExistsError(absl::StrCat(
          dir, " exists and is not what would be saved (", different[0],
          different.size() > 1 ? absl::StrCat(" and ", different.size() - 1, " more differences") : "",
          "); move it away or use another run_dir"));
    }
  }
  return Finish(status);
}

absl::Status Save::WriteShard(const PlannedFile& file, pb::RankReport* report) const {
  absl::StatusOr<ShardWriter> created = ShardWriter::Create(files_, temporary_dir_, file.name);
  if (absl::IsNotFound(created.status())) {
    return absl::FailedPreconditionError(
        absl::StrCat(created.status().message(), "; run_dir must be on a file system that all ranks share"));
  }
  CAROUSEL_RETURN_IF_ERROR(created.status());
  ShardWriter& writer = *created;
  CAROUSEL_RETURN_IF_ERROR(writer.Append(file.prefix.data(), static_cast<int64_t>(file.prefix.size())));
  for (const PlannedBox& box : file.boxes) {
    const StateSlice& slice = request_.slices[static_cast<size_t>(box.slice)];
    absl::Status written;
    ForEachRun(slice, [&](int64_t, const char* data, int64_t count) {
      if (written.ok()) written = writer.Append(data, count * SizeOf(slice.dtype));
    });
    CAROUSEL_RETURN_IF_ERROR(written);
  }
  CAROUSEL_ASSIGN_OR_RETURN(*report->add_files(), writer.Finish());
  return absl::OkStatus();
}

pb::RankReport Save::WriteShards() const {
  // Of the state itself, before it becomes files: what is read back must give these digests.
  pb::RankReport report = SliceDigests();
  absl::Status status;
  for (const PlannedFile& file : planned_) {
    if (file.rank == rank_ && status.ok()) status = WriteShard(file, &report);
  }
  report.set_code(status.raw_code());
  report.set_message(std::string(status.message()));
  return report;
}

absl::Status Save::Collect(const std::vector<pb::RankReport>& reports) {
  DescribeRun(request_, &manifest_);
  manifest_.set_unix_nanos(UnixNanos());
  manifest_.set_world_size(static_cast<int64_t>(reports.size()));
  std::vector<int> next(reports.size(), 0);
  for (const PlannedFile& file : planned_) {
    const size_t rank = static_cast<size_t>(file.rank);
    const pb::FileEntry& entry = reports[rank].files(next[rank]++);
    const std::string path = JoinPath(temporary_dir_, file.name);
    CAROUSEL_ASSIGN_OR_RETURN(const FileInfo info, files_.Stat(path));
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
  CAROUSEL_ASSIGN_OR_RETURN(const std::vector<uint64_t> digests, TensorDigests(reports));
  for (size_t t = 0; t < tensors_.size(); ++t) {
    manifest_.mutable_tensors(static_cast<int>(t))->set_digest(digests[t]);
  }
  return absl::OkStatus();
}

absl::Status Save::Commit() {
  const std::string& tmp = temporary_dir_;
  CAROUSEL_ASSIGN_OR_RETURN(
      *manifest_.add_files(),
      WriteChecksummed(files_, tmp, kStateFile,
                       Frame(kStateMagic, ToProto(request_.state).SerializeAsString())));
  CAROUSEL_ASSIGN_OR_RETURN(*manifest_.add_files(),
                            WriteChecksummed(files_, tmp, kConfigFile, request_.config_text));
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
      WriteFile(files_, JoinPath(tmp, kManifestJsonFile), ManifestJson(manifest_, request_.state)));

  // The manifest is the last file, and the directory's final name makes it a checkpoint.
  CAROUSEL_RETURN_IF_ERROR(ReplaceFile(files_, JoinPath(tmp, kManifestFile), framed));
  const std::string store = StoreDir(request_.run_dir);
  CAROUSEL_RETURN_IF_ERROR(files_.Rename(tmp, JoinPath(store, name_)));
  committed_ = true;
  const absl::Status synced = files_.SyncDirectory(store);
  if (!synced.ok()) {
    return absl::Status(synced.code(), absl::StrCat(JoinPath(store, name_),
                                                    " is complete but might not survive a power failure: ",
                                                    synced.message()));
  }
  return absl::OkStatus();
}

absl::Status Save::Finish(const absl::Status& mine) {
  pb::RootMessage message;
  message.set_code(mine.raw_code());
  message.set_message(std::string(mine.message()));
  const std::string bytes = rank_ == 0 ? message.SerializeAsString() : std::string();
  CAROUSEL_CHECK(message.ParseFromString(BytesOfRank0(request_.communicator, bytes)));
  if (message.code() == 0) return absl::OkStatus();
  return absl::Status(static_cast<absl::StatusCode>(message.code()),
                      absl::StrCat("saving ", name_, ": ", message.message()));
}
}  // namespace

absl::Status SaveCheckpoint(const SaveRequest& request) {
  PosixFileSystem posix;
  return Save(request, request.files != nullptr ? *request.files : posix).Run();
}
}  // namespace carousel
