// ReshardCheckpoint: the same tensors in other boxes and files.
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <random>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "checkpoints/checkpoint_store.h"
#include "checkpoints/checkpoint_tensors.h"
#include "checkpoints/digest.h"
#include "checkpoints/made_directories.h"
#include "checkpoints/manifest.h"
#include "checkpoints/rewrite.h"
#include "checkpoints/run_identity.h"
#include "checkpoints/run_lease.h"
#include "checkpoints/shard_plan.h"
#include "checkpoints/shard_writer.h"
#include "core/base/log.h"
#include "core/base/status_macros.h"

namespace carousel {
namespace pb = checkpoint;
namespace {

constexpr int64_t kMaxRanks = 100'000;  // file names have five digits

// As shards of an optimizer lie over ranks: the tensors of a kind one after the other, cut in equal parts; a
// part of a tensor that is larger than a file, in several.
std::vector<pb::RankSlices> CutEvenly(const std::vector<CheckpointTensor>& tensors, int64_t num_ranks,
                                      int64_t max_file_bytes) {
  std::vector<pb::RankSlices> ranks(static_cast<size_t>(num_ranks));
  for (const StateKind kind : {StateKind::kWeight, StateKind::kAdamM, StateKind::kAdamV}) {
    int64_t total = 0, at = 0;
    for (const CheckpointTensor& tensor : tensors) total += tensor.kind == kind ? tensor.num_elems : 0;
    const auto cut = [&](int64_t rank) {
      return total / num_ranks * rank + total % num_ranks * rank / num_ranks;
    };
    for (const CheckpointTensor& tensor : tensors) {
      if (tensor.kind != kind) continue;
      const auto add = [&](int64_t rank, const Box& box) {
        pb::SliceDescription& slice = *ranks[static_cast<size_t>(rank)].add_slices();
        slice.set_name(tensor.name);
        slice.set_kind(ToProto(kind));
        slice.set_dtype(ToProto(tensor.dtype));
        slice.mutable_shape()->Add(tensor.shape.begin(), tensor.shape.end());
        slice.mutable_offset()->Add(box.offset.begin(), box.offset.end());
        slice.mutable_size()->Add(box.size.begin(), box.size.end());
      };
      // A tensor without elements is known by its name and shape alone.
      if (tensor.num_elems == 0) add(0, {std::vector<int64_t>(tensor.shape.size(), 0), tensor.shape});
      const int64_t most = std::max<int64_t>(1, max_file_bytes / SizeOf(tensor.dtype));
      for (int64_t rank = 0; rank < num_ranks && tensor.num_elems > 0; ++rank) {
        const int64_t from = std::max(at, cut(rank)), to = std::min(at + tensor.num_elems, cut(rank + 1));
        for (int64_t begin = from; begin < to; begin += most) {
          for (const Box& box : BoxesOfRange(tensor.shape, begin - at, std::min(most, to - begin))) {
            add(rank, box);
          }
        }
      }
      at += tensor.num_elems;
    }
  }
  return ranks;
}

class Reshard {
 public:
  Reshard(CheckpointTensors source, const std::string& run_dir, FileSystem& files,
          const RewriteOptions& options)
      : source_(std::move(source)),
        name_(StepName(source_.info().state.step)),
        store_(StoreDir(run_dir)),
        files_(files),
        options_(options) {}

  absl::StatusOr<RewriteResult> Run(int64_t num_ranks, int64_t max_file_bytes);

 private:
  absl::Status WriteShards(const std::string& dir);
  absl::Status WriteBox(const PlannedBox& planned, ShardWriter* writer);
  absl::Status CompareDigests() const;
  absl::Status Commit(const std::string& dir);

  CheckpointTensors source_;
  const std::string name_, store_;
  FileSystem& files_;
  const RewriteOptions& options_;
  OpenedCheckpoint opened_;
  std::vector<PlannedTensor> tensors_;
  std::vector<PlannedFile> planned_;
  std::vector<uint64_t> digests_;  // of what was written
  std::vector<char> piece_;
  pb::Manifest manifest_;
  int64_t done_bytes_ = 0, total_bytes_ = 0;
};

absl::Status Reshard::WriteBox(const PlannedBox& planned, ShardWriter* writer) {
  const PlannedTensor& tensor = tensors_[static_cast<size_t>(planned.tensor)];
  const CheckpointTensor& from = *source_.Find(tensor.name, tensor.kind);
  const int64_t elem_bytes = SizeOf(tensor.dtype), elems = planned.box.num_elems();
  if (elems == 0) return absl::OkStatus();
  // A box of a flat range is contiguous in the tensor.
  const int64_t first = FirstElem(tensor.shape, planned.box);
  const int64_t piece_elems = CheckpointTensors::kPieceBytes / elem_bytes;
  for (int64_t done = 0; done < elems; done += piece_elems) {
    const int64_t count = std::min(piece_elems, elems - done);
    piece_.resize(static_cast<size_t>(count * elem_bytes));
    CAROUSEL_RETURN_IF_ERROR(source_.Read(from, first + done, count, piece_.data()));
    digests_[static_cast<size_t>(planned.tensor)] +=
        DigestRange(piece_.data(), tensor.dtype, first + done, count);
    CAROUSEL_RETURN_IF_ERROR(writer->Append(piece_.data(), count * elem_bytes));
    done_bytes_ += count * elem_bytes;
    // Everything is written, then read.
    if (options_.progress) options_.progress(done_bytes_, 2 * total_bytes_);
  }
  return absl::OkStatus();
}

absl::Status Reshard::WriteShards(const std::string& dir) {
  digests_.assign(tensors_.size(), 0);
  for (const PlannedFile& file : planned_) {
    CAROUSEL_ASSIGN_OR_RETURN(ShardWriter writer, ShardWriter::Create(files_, dir, file.name));
    CAROUSEL_RETURN_IF_ERROR(writer.Append(file.prefix.data(), static_cast<int64_t>(file.prefix.size())));
    done_bytes_ += static_cast<int64_t>(file.prefix.size());
    for (const PlannedBox& box : file.boxes) CAROUSEL_RETURN_IF_ERROR(WriteBox(box, &writer));
    CAROUSEL_ASSIGN_OR_RETURN(*manifest_.add_files(), writer.Finish());
  }
  return CompareDigests();
}

absl::Status Reshard::CompareDigests() const {
  for (size_t t = 0; t < tensors_.size(); ++t) {
    const CheckpointTensor& from = *source_.Find(tensors_[t].name, tensors_[t].kind);
    if (digests_[t] == from.digest) continue;
    return absl::DataLossError(absl::StrCat(source_.info().dir, ": the digest of tensor ",
                                            Describe(from.name, from.kind),
                                            " is not the one it was saved with"));
  }
  return absl::OkStatus();
}

absl::Status Reshard::Commit(const std::string& dir) {
  const std::string framed_state = Frame(kStateMagic, opened_.state_payload);
  CAROUSEL_ASSIGN_OR_RETURN(*manifest_.add_files(), WriteChecksummed(files_, dir, kStateFile, framed_state));
  CAROUSEL_ASSIGN_OR_RETURN(const std::string config, ReadCheckpointConfig(source_.info().dir, &files_));
  CAROUSEL_ASSIGN_OR_RETURN(*manifest_.add_files(), WriteChecksummed(files_, dir, kConfigFile, config));
  AddTensors(tensors_, planned_, &manifest_);
  for (size_t t = 0; t < tensors_.size(); ++t) {
    manifest_.mutable_tensors(static_cast<int>(t))->set_digest(digests_[t]);
  }
  const std::string payload = manifest_.SerializeAsString();
  const absl::Status readable = ParseManifest(payload, "the new manifest").status();
  if (!readable.ok()) return absl::InternalError(std::string(readable.message()));
  CAROUSEL_RETURN_IF_ERROR(
      WriteFile(files_, JoinPath(dir, kManifestJsonFile), ManifestJson(manifest_, opened_.state)));
  CAROUSEL_RETURN_IF_ERROR(ReplaceFile(files_, JoinPath(dir, kManifestFile), Frame(kManifestMagic, payload)));
  // What lies on the disk is read again, every byte, before it gets its name.
  const auto verified = [&](int64_t done, int64_t) {  // of somewhat more than total_bytes_
    if (options_.progress) options_.progress(total_bytes_ + std::min(done, total_bytes_), 2 * total_bytes_);
  };
  CAROUSEL_ASSIGN_OR_RETURN(const VerifyReport report, VerifyCheckpoint(dir, verified, &files_));
  if (!report.problems.empty()) return absl::DataLossError(report.problems[0]);
  CAROUSEL_RETURN_IF_ERROR(files_.Rename(dir, JoinPath(store_, name_)));
  return files_.SyncDirectory(store_);
}

absl::StatusOr<RewriteResult> Reshard::Run(int64_t num_ranks, int64_t max_file_bytes) {
  const std::string& from = source_.info().dir;
  CAROUSEL_ASSIGN_OR_RETURN(opened_, OpenAndCheck(files_, from));
  const std::string final_dir = JoinPath(store_, name_);
  CAROUSEL_ASSIGN_OR_RETURN(const FileInfo there, files_.Stat(final_dir));
  if (there.exists) {
    return absl::AlreadyExistsError(absl::StrCat(final_dir, " exists; choose another run directory"));
  }
  CAROUSEL_ASSIGN_OR_RETURN(tensors_, PlanTensors(CutEvenly(source_.tensors(), num_ranks, max_file_bytes)));
  CAROUSEL_ASSIGN_OR_RETURN(planned_, PlanFiles(tensors_, max_file_bytes,
                                                {{"format", "pt"},
                                                 {"run_id", opened_.manifest.run_id()},
                                                 {"step", absl::StrCat(opened_.manifest.step())}}));
  // Who made the state and when stays as it was; how it is cut is new.
  manifest_ = opened_.manifest;
  manifest_.clear_files();
  manifest_.clear_tensors();
  manifest_.set_world_size(num_ranks);
  for (const PlannedFile& file : planned_) total_bytes_ += file.num_bytes;
  CAROUSEL_ASSIGN_OR_RETURN(const int64_t available, files_.FreeBytes(store_));
  const int64_t needed = total_bytes_ + total_bytes_ / 10 + (int64_t{1} << 20);
  if (available < needed) {
    return absl::ResourceExhaustedError(absl::StrCat(final_dir, " needs ", needed, " bytes and ", available,
                                                     " are free; make room or choose another disk"));
  }
  std::random_device random;
  const std::string dir = JoinPath(
      store_, absl::StrFormat("%s%s-%08x-%x", kTemporaryPrefix, name_, random(), static_cast<int>(getpid())));
  CAROUSEL_RETURN_IF_ERROR(files_.CreateDirectory(dir));
  absl::Status status = WriteShards(dir);
  if (status.ok()) status = Commit(dir);
  if (!status.ok()) {
    const absl::Status removed = RemoveTree(files_, dir);
    if (!removed.ok()) CAROUSEL_LOG(WARNING) << "left behind: " << removed.message();
    return status;
  }
  return RewriteResult{.num_tensors = static_cast<int64_t>(tensors_.size()),
                       .num_files = manifest_.files_size() + 1,
                       .num_bytes = total_bytes_};
}

absl::StatusOr<RewriteResult> ReshardInto(CheckpointTensors source, const std::string& id,
                                          const std::string& run_dir, int64_t num_ranks,
                                          int64_t max_file_bytes, FileSystem& files,
                                          const RewriteOptions& options) {
  CAROUSEL_ASSIGN_OR_RETURN(const std::unique_ptr<RunLease> lease, RunLease::Acquire(run_dir, &files));
  // Again, now that nobody else writes here.
  CAROUSEL_RETURN_IF_ERROR(CheckMayReceive(run_dir, id, source.info().dir, &files));
  CAROUSEL_RETURN_IF_ERROR(SweepLeftovers(run_dir, &files));
  CAROUSEL_ASSIGN_OR_RETURN(
      const RewriteResult result,
      Reshard(std::move(source), run_dir, files, options).Run(num_ranks, max_file_bytes));
  // A copy of a checkpoint is of the same run. Where this cannot be written the checkpoint says so.
  const absl::Status identified = id.empty() ? absl::OkStatus() : WriteRunId(run_dir, id, &files);
  if (!identified.ok()) CAROUSEL_LOG(WARNING) << identified.message();
  return result;
}
}  // namespace

absl::StatusOr<RewriteResult> ReshardCheckpoint(const std::string& dir, const std::string& run_dir,
                                                int64_t num_ranks, int64_t max_file_bytes,
                                                const RewriteOptions& options) {
  if (num_ranks < 1 || num_ranks > kMaxRanks || max_file_bytes < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("cannot write files of ", num_ranks, " ranks with at most ", max_file_bytes,
                     " bytes each; give 1 to ", kMaxRanks, " ranks and at least one byte"));
  }
  PosixFileSystem posix;
  FileSystem& files = options.files != nullptr ? *options.files : posix;
  CAROUSEL_ASSIGN_OR_RETURN(CheckpointTensors source, CheckpointTensors::Open(dir, &files));
  const std::string id = IsRunId(source.info().run_id) ? source.info().run_id : std::string();
  CAROUSEL_RETURN_IF_ERROR(CheckOutsideCheckpoints(JoinPath(run_dir, "checkpoints"), files));
  CAROUSEL_RETURN_IF_ERROR(CheckMayReceive(run_dir, id, dir, &files));
  CAROUSEL_ASSIGN_OR_RETURN(const MadeDirectories made, MadeDirectories::Note(run_dir, files));
  const absl::StatusOr<RewriteResult> result =
      ReshardInto(std::move(source), id, run_dir, num_ranks, max_file_bytes, files, options);
  if (!result.ok()) made.RemoveAgain();
  return result;
}
}  // namespace carousel
