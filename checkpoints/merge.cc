// MergeCheckpoint: all shards as one safetensors file.
#include <algorithm>
#include <map>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "checkpoints/checkpoint_tensors.h"
#include "checkpoints/digest.h"
#include "checkpoints/rewrite.h"
#include "checkpoints/run_identity.h"
#include "checkpoints/safetensors.h"
#include "core/base/status_macros.h"

namespace carousel {
namespace {

std::string MergedName(const CheckpointTensor& tensor) {
  return tensor.kind == StateKind::kWeight ? tensor.name
                                           : absl::StrCat(tensor.name, ".", NameOf(tensor.kind));
}

class Merge {
 public:
  Merge(CheckpointTensors source, FileSystem& files, const RewriteOptions& options)
      : source_(std::move(source)), files_(files), options_(options) {}

  absl::StatusOr<RewriteResult> Run(const std::string& out, bool moments);

 private:
  absl::Status Plan(bool moments);
  absl::Status Write(const std::string& path);
  absl::Status ReadBack(const std::string& path);
  void Progress(int64_t bytes) {
    done_bytes_ += bytes;
    // Everything is written, then read.
    if (options_.progress) options_.progress(done_bytes_, 2 * layout_.file_bytes);
  }

  CheckpointTensors source_;
  FileSystem& files_;
  const RewriteOptions& options_;
  std::map<std::string, const CheckpointTensor*> tensors_;  // by their names in the file
  SafetensorsLayout layout_;
  int64_t done_bytes_ = 0;
};

absl::Status Merge::Plan(bool moments) {
  std::vector<SafetensorsSpec> specs;
  for (const CheckpointTensor& tensor : source_.tensors()) {
    if (tensor.kind != StateKind::kWeight && !moments) continue;
    specs.push_back({MergedName(tensor), ToSafetensors(tensor.dtype), tensor.shape});
    tensors_[specs.back().name] = &tensor;
  }
  const CheckpointInfo& info = source_.info();
  CAROUSEL_ASSIGN_OR_RETURN(
      layout_,
      PlanSafetensors(std::move(specs),
                      {{"format", "pt"}, {"run_id", info.run_id}, {"step", absl::StrCat(info.state.step)}}));
  return absl::OkStatus();
}

absl::Status Merge::Write(const std::string& path) {
  CAROUSEL_ASSIGN_OR_RETURN(const std::unique_ptr<SafetensorsWriter> writer,
                            SafetensorsWriter::Create(path, layout_, files_));
  Progress(layout_.data_begin());
  for (const SafetensorsEntry& entry : layout_.tensors) {
    const CheckpointTensor& tensor = *tensors_.at(entry.name);
    const auto append = [&](int64_t, int64_t count, const void* data) {
      const int64_t bytes = count * SizeOf(tensor.dtype);
      const absl::Status appended = writer->Append(entry.name, data, bytes);
      Progress(bytes);
      return appended;
    };
    CAROUSEL_RETURN_IF_ERROR(source_.Stream(tensor, append));
  }
  return writer->Finish();
}

absl::Status Merge::ReadBack(const std::string& path) {
  CAROUSEL_ASSIGN_OR_RETURN(const std::unique_ptr<ReadableFile> file, files_.OpenFile(path));
  const auto damaged = [&](const std::string& what) {
    return absl::DataLossError(
        absl::StrCat(path, ": ", what, " is not what was written; is the disk sound?"));
  };
  if (file->size() != layout_.file_bytes) return damaged("its size");
  std::string prefix(layout_.prefix.size(), '\0');
  CAROUSEL_RETURN_IF_ERROR(file->ReadAt(0, prefix.data(), layout_.data_begin()));
  if (prefix != layout_.prefix) return damaged("its header");
  Progress(layout_.data_begin());
  std::vector<char> piece;
  for (const SafetensorsEntry& entry : layout_.tensors) {
    const CheckpointTensor& tensor = *tensors_.at(entry.name);
    const int64_t elem_bytes = SizeOf(tensor.dtype);
    const int64_t piece_elems = CheckpointTensors::kPieceBytes / elem_bytes;
    uint64_t digest = 0;
    for (int64_t begin = 0; begin < tensor.num_elems; begin += piece_elems) {
      const int64_t count = std::min(piece_elems, tensor.num_elems - begin);
      piece.resize(static_cast<size_t>(count * elem_bytes));
      CAROUSEL_RETURN_IF_ERROR(file->ReadAt(layout_.data_begin() + entry.begin + begin * elem_bytes,
                                            piece.data(), count * elem_bytes));
      digest += DigestRange(piece.data(), tensor.dtype, begin, count);
      Progress(count * elem_bytes);
    }
    if (digest != tensor.digest) return damaged(absl::StrCat("tensor ", entry.name));
  }
  return absl::OkStatus();
}

absl::StatusOr<RewriteResult> Merge::Run(const std::string& out, bool moments) {
  CAROUSEL_RETURN_IF_ERROR(Plan(moments));
  const std::string parent = ParentPath(out), temporary = out + ".tmp";
  CAROUSEL_ASSIGN_OR_RETURN(const FileInfo there, files_.Stat(out));
  if (there.exists)
    return absl::AlreadyExistsError(absl::StrCat(out, " exists; remove it or choose another"));
  CAROUSEL_ASSIGN_OR_RETURN(const FileInfo folder, files_.Stat(parent));
  if (!folder.is_directory)
    return absl::NotFoundError(absl::StrCat(parent, " is no directory; make it, or choose another"));
  CAROUSEL_ASSIGN_OR_RETURN(const int64_t available, files_.FreeBytes(parent));
  if (available < layout_.file_bytes) {
    return absl::ResourceExhaustedError(absl::StrCat(out, " needs ", layout_.file_bytes, " bytes and ",
                                                     available,
                                                     " are free; make room or choose another disk"));
  }
  // What an attempt left that died. A file of ours or nobody's: a directory is not removed.
  const absl::Status removed = files_.RemoveFile(temporary);
  if (!removed.ok() && !absl::IsNotFound(removed)) return removed;
  absl::Status status = Write(temporary);
  if (status.ok()) status = ReadBack(temporary);
  if (status.ok()) status = files_.Rename(temporary, out);
  if (!status.ok()) {
    (void)files_.RemoveFile(temporary);  // the first error is the one to report
    return status;
  }
  CAROUSEL_RETURN_IF_ERROR(files_.SyncDirectory(parent));
  return RewriteResult{.num_tensors = static_cast<int64_t>(layout_.tensors.size()),
                       .num_files = 1,
                       .num_bytes = layout_.file_bytes};
}

// The file must not become part of a checkpoint, nor end up in the directory of another run.
absl::Status CheckPlace(const std::string& out, const std::string& id, FileSystem& files) {
  const std::string folder = ParentPath(out);
  CAROUSEL_RETURN_IF_ERROR(CheckOutsideCheckpoints(out, files));
  CAROUSEL_ASSIGN_OR_RETURN(const std::string of_folder, ReadRunIdFile(folder, &files));
  if (of_folder.empty() || of_folder == id) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      folder, " belongs to run ", of_folder, ", and the checkpoint is of ",
      IsRunId(id) ? absl::StrCat("run ", id) : std::string("an unknown run"), "; write the file elsewhere"));
}
}  // namespace

absl::StatusOr<RewriteResult> MergeCheckpoint(const std::string& dir, const std::string& out, bool moments,
                                              const RewriteOptions& options) {
  PosixFileSystem posix;
  FileSystem& files = options.files != nullptr ? *options.files : posix;
  CAROUSEL_ASSIGN_OR_RETURN(CheckpointTensors source, CheckpointTensors::Open(dir, &files));
  CAROUSEL_RETURN_IF_ERROR(CheckPlace(out, source.info().run_id, files));
  return Merge(std::move(source), files, options).Run(out, moments);
}
}  // namespace carousel
