#include "checkpoints/damage.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "checkpoints/boxes.h"
#include "checkpoints/digest.h"
#include "checkpoints/manifest.h"
#include "core/base/status_macros.h"

namespace carousel {
namespace pb = checkpoint;

uint64_t DigestOfBoxElems(const pb::TensorEntry& tensor, int64_t k, int64_t first, int64_t count,
                          const char* data) {
  const DType dtype = FromProto(tensor.dtype());
  const std::vector<int64_t> shape = ShapeOf(tensor);
  const Box box = BoxOf(tensor.boxes(static_cast<int>(k)));
  uint64_t digest = 0;
  // A range of the box is boxes within it, and these are runs of elements of the tensor.
  for (Box part : BoxesOfRange(box.size, first, count)) {
    for (size_t d = 0; d < part.offset.size(); ++d) part.offset[d] += box.offset[d];
    ForEachRun(shape, box, part, [&](int64_t elem, int64_t box_elem, int64_t num) {
      digest += DigestRange(data + (box_elem - first) * SizeOf(dtype), dtype, elem, num);
    });
  }
  return digest;
}

std::vector<int> TensorsInBytes(const pb::Manifest& manifest, int64_t file, int64_t begin, int64_t end) {
  std::vector<int> tensors;
  for (int t = 0; t < manifest.tensors_size(); ++t) {
    const pb::TensorEntry& tensor = manifest.tensors(t);
    for (const pb::Box& box : tensor.boxes()) {
      const int64_t bytes = BoxOf(box).num_elems() * SizeOf(FromProto(tensor.dtype()));
      if (box.file() != file || box.byte_offset() >= end || box.byte_offset() + bytes <= begin) continue;
      tensors.push_back(t);
      break;
    }
  }
  return tensors;
}

namespace {

absl::StatusOr<uint64_t> DigestOnDisk(FileSystem& files, const std::string& dir, const pb::Manifest& manifest,
                                      const pb::TensorEntry& tensor) {
  constexpr int64_t kPieceElems = int64_t{1} << 20;
  const int64_t elem_bytes = SizeOf(FromProto(tensor.dtype()));
  std::vector<char> piece;
  uint64_t digest = 0;
  for (int k = 0; k < tensor.boxes_size(); ++k) {
    const pb::Box& box = tensor.boxes(k);
    CAROUSEL_ASSIGN_OR_RETURN(
        const std::unique_ptr<ReadableFile> file,
        files.OpenFile(JoinPath(dir, manifest.files(static_cast<int>(box.file())).name())));
    const int64_t num_elems = BoxOf(box).num_elems();
    for (int64_t first = 0; first < num_elems; first += kPieceElems) {
      const int64_t count = std::min(kPieceElems, num_elems - first);
      piece.resize(static_cast<size_t>(count * elem_bytes));
      CAROUSEL_RETURN_IF_ERROR(
          file->ReadAt(box.byte_offset() + first * elem_bytes, piece.data(), count * elem_bytes));
      digest += DigestOfBoxElems(tensor, k, first, count, piece.data());
    }
  }
  return digest;
}
}  // namespace

std::vector<int> ChangedTensors(FileSystem& files, const std::string& dir, const pb::Manifest& manifest,
                                const std::vector<int>& tensors) {
  std::vector<int> changed;
  for (const int t : tensors) {
    const absl::StatusOr<uint64_t> digest = DigestOnDisk(files, dir, manifest, manifest.tensors(t));
    if (!digest.ok() || *digest != manifest.tensors(t).digest()) changed.push_back(t);
  }
  return changed;
}

std::string NameTensors(const pb::Manifest& manifest, const std::vector<int>& tensors) {
  constexpr size_t kShown = 4;
  std::vector<std::string> names;
  for (size_t i = 0; i < tensors.size() && i < kShown; ++i) {
    const pb::TensorEntry& tensor = manifest.tensors(tensors[i]);
    names.push_back(Describe(tensor.name(), FromProto(tensor.kind())));
  }
  if (names.empty()) return "";
  return absl::StrCat(names.size() == 1 ? "tensor " : "tensors ", absl::StrJoin(names, ", "),
                      tensors.size() > kShown ? absl::StrCat(" and ", tensors.size() - kShown, " more, ",
                                                             tensors.size(), " in all")
                                              : "");
}

std::string HeldBy(const pb::Manifest& manifest, int64_t file) {
  const int64_t size = manifest.files(static_cast<int>(file)).size();
  const std::string names = NameTensors(manifest, TensorsInBytes(manifest, file, 0, size));
  return names.empty() ? "" : absl::StrCat("; it holds ", names);
}

absl::Status DamagedBlock(const std::string& dir, const pb::Manifest& manifest, int64_t file, int64_t block,
                          const std::string& why, const std::vector<int>& changed) {
  const pb::FileEntry& entry = manifest.files(static_cast<int>(file));
  const int64_t begin = block * kBlockBytes, end = std::min(begin + kBlockBytes, entry.size());
  std::string what;
  if (!TensorsInBytes(manifest, file, 0, entry.size()).empty()) {
    what = changed.empty() ? "; changed: the file's header, no tensor"
                           : absl::StrCat("; changed: ", NameTensors(manifest, changed));
  }
  return absl::DataLossError(absl::StrCat(JoinPath(dir, entry.name()), ": block ", block, " (bytes ", begin,
                                          " to ", end, ") is damaged: ", why, what));
}
}  // namespace carousel
