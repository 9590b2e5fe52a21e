#include "checkpoints/checkpoint_tensors.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <optional>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "checkpoints/checkpoint_store.h"
#include "checkpoints/digest.h"
#include "checkpoints/manifest.h"
#include "checkpoints/shard_plan.h"
#include "checkpoints/shard_reader.h"
#include "core/base/status_macros.h"

namespace carousel {
namespace pb = checkpoint;

struct CheckpointTensors::Impl {
  PosixFileSystem posix;
  FileSystem* files = nullptr;
  CheckpointInfo info;
  pb::Manifest manifest;
  std::vector<CheckpointTensor> tensors;
  std::map<std::pair<std::string, StateKind>, std::pair<size_t, int>> index;  // in `tensors`, in the manifest
  std::unique_ptr<ShardReader> reader;
};

CheckpointTensors::CheckpointTensors(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
CheckpointTensors::CheckpointTensors(CheckpointTensors&&) noexcept = default;
CheckpointTensors& CheckpointTensors::operator=(CheckpointTensors&&) noexcept = default;
CheckpointTensors::~CheckpointTensors() = default;

const CheckpointInfo& CheckpointTensors::info() const { return impl_->info; }
const std::vector<CheckpointTensor>& CheckpointTensors::tensors() const { return impl_->tensors; }

absl::StatusOr<CheckpointTensors> CheckpointTensors::Open(const std::string& dir, FileSystem* files) {
  auto impl = std::make_unique<Impl>();
  impl->files = files != nullptr ? files : &impl->posix;
  CAROUSEL_ASSIGN_OR_RETURN(OpenedCheckpoint opened, OpenAndCheck(*impl->files, dir));
  impl->info = InfoOf(opened, dir);
  impl->manifest = std::move(opened.manifest);
  std::map<std::pair<std::string, StateKind>, int> sorted;
  for (int t = 0; t < impl->manifest.tensors_size(); ++t) {
    const pb::TensorEntry& entry = impl->manifest.tensors(t);
    sorted[{entry.name(), FromProto(entry.kind())}] = t;
  }
  for (const auto& [key, t] : sorted) {
    const pb::TensorEntry& entry = impl->manifest.tensors(t);
    impl->index[key] = {impl->tensors.size(), t};
    impl->tensors.push_back({.name = entry.name(),
                             .kind = key.second,
                             .dtype = FromProto(entry.dtype()),
                             .shape = ShapeOf(entry),
                             .num_elems = NumElems(ShapeOf(entry)),
                             .digest = entry.digest()});
  }
  impl->reader = std::make_unique<ShardReader>(*impl->files, dir, impl->manifest);
  return CheckpointTensors(std::move(impl));
}

const CheckpointTensor* CheckpointTensors::Find(const std::string& name, StateKind kind) const {
  const auto it = impl_->index.find({name, kind});
  return it == impl_->index.end() ? nullptr : &impl_->tensors[it->second.first];
}

absl::Status CheckpointTensors::Read(const CheckpointTensor& tensor, int64_t begin, int64_t count,
                                     void* data) {
  CAROUSEL_CHECK(begin >= 0 && count >= 0 && count <= tensor.num_elems - begin);
  const pb::TensorEntry& entry = impl_->manifest.tensors(impl_->index.at({tensor.name, tensor.kind}).second);
  std::vector<FileRun> runs;
  for (const Box& box : BoxesOfRange(tensor.shape, begin, count)) AppendRuns(entry, box, 0, &runs);
  std::sort(runs.begin(), runs.end(), [](const FileRun& a, const FileRun& b) {
    return std::tie(a.file, a.byte_offset) < std::tie(b.file, b.byte_offset);
  });
  const int64_t elem_bytes = SizeOf(tensor.dtype);
  for (const FileRun& run : runs) {
    char* to = static_cast<char*>(data) + (run.elem - begin) * elem_bytes;
    CAROUSEL_RETURN_IF_ERROR(impl_->reader->Read(run.file, run.byte_offset, run.count * elem_bytes,
                                                 [&](const char* bytes, int64_t n) {
                                                   std::memcpy(to, bytes, static_cast<size_t>(n));
                                                   to += n;
                                                 }));
  }
  if (count == tensor.num_elems && DigestRange(data, tensor.dtype, 0, count) != tensor.digest) {
    return absl::DataLossError(absl::StrCat(impl_->info.dir, ": the digest of tensor ",
                                            Describe(tensor.name, tensor.kind),
                                            " is not the one it was saved with"));
  }
  return absl::OkStatus();
}

absl::Status CheckpointTensors::Stream(
    const CheckpointTensor& tensor,
    const std::function<absl::Status(int64_t begin, int64_t count, const void* data)>& use) {
  const int64_t piece = kPieceBytes / SizeOf(tensor.dtype);
  std::vector<char> data(static_cast<size_t>(std::min(piece, tensor.num_elems) * SizeOf(tensor.dtype)));
  uint64_t digest = 0;
  for (int64_t begin = 0; begin < tensor.num_elems; begin += piece) {
    const int64_t count = std::min(piece, tensor.num_elems - begin);
    CAROUSEL_RETURN_IF_ERROR(Read(tensor, begin, count, data.data()));
    digest += DigestRange(data.data(), tensor.dtype, begin, count);
    CAROUSEL_RETURN_IF_ERROR(use(begin, count, data.data()));
  }
  if (digest == tensor.digest) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat(impl_->info.dir, ": the digest of tensor ",
                                          Describe(tensor.name, tensor.kind),
                                          " is not the one it was saved with"));
}

namespace {

class CheckpointWeights final : public WeightSource {
 public:
  explicit CheckpointWeights(CheckpointTensors tensors) : tensors_(std::move(tensors)) {
    for (const CheckpointTensor& tensor : tensors_.tensors()) {
      if (tensor.kind != StateKind::kWeight) continue;
      Param param;
      param.name = tensor.name;
      param.shape = tensor.shape;
      params_.push_back(std::move(param));
    }
  }

  const std::vector<Param>& params() const override { return params_; }

  absl::Status Read(const std::string& name, int64_t begin, int64_t count, DType dtype,
                    void* data) const override {
    const CheckpointTensor* const tensor = tensors_.Find(name, StateKind::kWeight);
    if (tensor == nullptr) {
      return absl::NotFoundError(absl::StrCat(tensors_.info().dir, " has no weight ", name));
    }
    if (tensor->dtype == dtype) return tensors_.Read(*tensor, begin, count, data);
    // Converted in large pieces: where each touches many files, each costs a block of every one.
    std::vector<char> piece(static_cast<size_t>(std::min(count, kWeightPieceElems) * SizeOf(tensor->dtype)));
    for (int64_t done = 0; done < count;) {
      const int64_t n = std::min(count - done, kWeightPieceElems);
      CAROUSEL_RETURN_IF_ERROR(tensors_.Read(*tensor, begin + done, n, piece.data()));
      ConvertElems(dtype, static_cast<char*>(data) + done * SizeOf(dtype), tensor->dtype, piece.data(), n);
      done += n;
    }
    return absl::OkStatus();
  }

  std::optional<StatedDigest> Stated(const std::string& name) const override {
    const CheckpointTensor* const tensor = tensors_.Find(name, StateKind::kWeight);
    if (tensor == nullptr) return std::nullopt;
    return StatedDigest{tensor->dtype, tensor->digest};
  }

 private:
  mutable CheckpointTensors tensors_;  // reading moves its block along
  std::vector<Param> params_;
};
}  // namespace

absl::StatusOr<std::unique_ptr<WeightSource>> OpenCheckpointWeights(const std::string& dir,
                                                                    FileSystem* files) {
  CAROUSEL_ASSIGN_OR_RETURN(CheckpointTensors tensors, CheckpointTensors::Open(dir, files));
  return std::unique_ptr<WeightSource>(std::make_unique<CheckpointWeights>(std::move(tensors)));
}

absl::StatusOr<std::vector<std::string>> DiffCheckpoints(const std::string& a, const std::string& b,
                                                         bool weights_only, FileSystem* files) {
  CAROUSEL_ASSIGN_OR_RETURN(const CheckpointTensors in_a, CheckpointTensors::Open(a, files));
  CAROUSEL_ASSIGN_OR_RETURN(const CheckpointTensors in_b, CheckpointTensors::Open(b, files));
  std::vector<std::string> lines;
  for (const CheckpointTensor& tensor : in_a.tensors()) {
    if (weights_only && tensor.kind != StateKind::kWeight) continue;
    const CheckpointTensor* const other = in_b.Find(tensor.name, tensor.kind);
    const std::string what = Describe(tensor.name, tensor.kind);
    if (other == nullptr) {
      lines.push_back(absl::StrCat(what, ": only in ", a));
    } else if (tensor.shape != other->shape || tensor.dtype != other->dtype) {
      lines.push_back(absl::StrCat(what, ": other shape or dtype"));
    } else if (tensor.digest != other->digest) {
      lines.push_back(absl::StrCat(what, ": other values"));
    }
  }
  for (const CheckpointTensor& tensor : in_b.tensors()) {
    if (weights_only && tensor.kind != StateKind::kWeight) continue;
    if (in_a.Find(tensor.name, tensor.kind) == nullptr) {
      lines.push_back(absl::StrCat(Describe(tensor.name, tensor.kind), ": only in ", b));
    }
  }
  return lines;
}
}  // namespace carousel
