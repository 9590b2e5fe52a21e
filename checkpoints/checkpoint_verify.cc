// VerifyCheckpoint: every byte of every file, against everything that the manifest says about it.
#include <algorithm>
#include <map>
#include <set>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "checkpoints/checkpoint_store.h"
#include "checkpoints/checkpoint_tensors.h"
#include "checkpoints/crc32c.h"
#include "checkpoints/damage.h"
#include "checkpoints/manifest.h"
#include "checkpoints/safetensors.h"
#include "checkpoints/shard_plan.h"
#include "checkpoints/shard_reader.h"
#include "core/base/status_macros.h"

namespace carousel {
namespace pb = checkpoint;
namespace {

// One box, where it lies, and how its bytes become elements of the tensor.
struct PlacedBox {
  int tensor = 0;
  int64_t k = 0;
  int64_t begin = 0, end = 0;  // bytes in the file
};

class Verifier {
 public:
  Verifier(FileSystem& files, std::string dir, pb::Manifest manifest,
           const std::function<void(int64_t, int64_t)>& progress)
      : files_(files), dir_(std::move(dir)), manifest_(std::move(manifest)), progress_(progress) {}

  VerifyReport Run();

 private:
  void VerifyFile(int file);
  // Adds what bytes [begin, begin + n) of a file contribute to the digests.
  void AddDigests(const std::vector<PlacedBox>& boxes, const char* data, int64_t begin, int64_t n);
  void VerifyHeader(int file, const std::vector<PlacedBox>& boxes, const std::string& prefix);
  // Says of every damaged block which tensors it changed.
  void ReportBlocks();
  void VerifyState();
  bool Changed(int tensor) const {
    return digests_[static_cast<size_t>(tensor)] != manifest_.tensors(tensor).digest();
  }
  std::vector<PlacedBox> BoxesOfFile(int file) const;  // in the order of their bytes
  void Problem(std::string text) { report_.problems.push_back(std::move(text)); }
  std::string PathOf(int file) const { return JoinPath(dir_, manifest_.files(file).name()); }

  FileSystem& files_;
  const std::string dir_;
  const pb::Manifest manifest_;
  const std::function<void(int64_t, int64_t)>& progress_;
  VerifyReport report_;
  int64_t total_bytes_ = 0;
  std::vector<uint64_t> digests_;
  struct BadBlock {
    int file = 0;
    int64_t block = 0;
    std::string why;
  };
  std::vector<BadBlock> bad_blocks_;  // reported when the digests are known
  std::set<int> explained_;           // tensors whose damage was reported with a block or a file
};

VerifyReport Verifier::Run() {
  digests_.assign(static_cast<size_t>(manifest_.tensors_size()), 0);
  report_.num_files = 1;  // the manifest, which was read to come here
  std::set<std::string> known = {kManifestFile, kManifestJsonFile};
  for (const pb::FileEntry& entry : manifest_.files()) {
    total_bytes_ += entry.size();
    known.insert(entry.name());
  }
  for (int file = 0; file < manifest_.files_size(); ++file) VerifyFile(file);
  ReportBlocks();
  VerifyState();
  for (int t = 0; t < manifest_.tensors_size(); ++t) {
    const pb::TensorEntry& tensor = manifest_.tensors(t);
    ++report_.num_tensors;
    if (explained_.count(t) != 0 || !Changed(t)) continue;
    Problem(absl::StrFormat("%s: tensor %s has digest %016x and should have %016x", dir_,
                            Describe(tensor.name(), FromProto(tensor.kind())),
                            digests_[static_cast<size_t>(t)], tensor.digest()));
  }
  const absl::StatusOr<std::vector<std::string>> names = files_.ListDirectory(dir_);
  if (!names.ok()) Problem(std::string(names.status().message()));
  for (const std::string& name : names.ok() ? *names : std::vector<std::string>()) {
    if (known.count(name) == 0) Problem(absl::StrCat(JoinPath(dir_, name), " does not belong there"));
  }
  return std::move(report_);
}

std::vector<PlacedBox> Verifier::BoxesOfFile(int file) const {
  std::vector<PlacedBox> boxes;
  for (int t = 0; t < manifest_.tensors_size(); ++t) {
    const pb::TensorEntry& tensor = manifest_.tensors(t);
    for (int k = 0; k < tensor.boxes_size(); ++k) {
      const pb::Box& box = tensor.boxes(k);
      if (box.file() != file) continue;
      const int64_t bytes = BoxOf(box).num_elems() * SizeOf(FromProto(tensor.dtype()));
      boxes.push_back({t, k, box.byte_offset(), box.byte_offset() + bytes});
    }
  }
  std::sort(boxes.begin(), boxes.end(),
            [](const PlacedBox& a, const PlacedBox& b) { return a.begin < b.begin; });
  return boxes;
}

void Verifier::VerifyFile(int file) {
  const pb::FileEntry& entry = manifest_.files(file);
  const std::vector<PlacedBox> boxes = BoxesOfFile(file);
  ++report_.num_files;
  const absl::StatusOr<std::unique_ptr<ReadableFile>> opened = files_.OpenFile(PathOf(file));
  if (!opened.ok() || (*opened)->size() != entry.size()) {
    const std::vector<int> held = TensorsInBytes(manifest_, file, 0, entry.size());
    explained_.insert(held.begin(), held.end());
    Problem(absl::StrCat(!opened.ok() ? std::string(opened.status().message())
                                      : absl::StrCat(PathOf(file), " has ", (*opened)->size(),
                                                     " bytes and should have ", entry.size()),
                         held.empty() ? "" : "; it holds ", NameTensors(manifest_, held)));
    return;
  }
  const int64_t data_begin = boxes.empty() ? entry.size() : boxes.front().begin;
  std::string prefix;  // what comes before the first tensor
  std::vector<char> block;
  uint32_t file_crc = 0;
  bool damaged = false;
  for (int64_t b = 0; b < entry.block_crc32c_size(); ++b) {
    const int64_t begin = b * kBlockBytes, n = std::min(kBlockBytes, entry.size() - begin);
    block.resize(static_cast<size_t>(n));
    const absl::Status read = (*opened)->ReadAt(begin, block.data(), n);
    const uint32_t expected = entry.block_crc32c(static_cast<int>(b));
    const uint32_t actual = UpdateCrc32c(0, block.data(), n);
    if (!read.ok() || actual != expected) {
      damaged = true;
      bad_blocks_.push_back(
          {file, b,
           read.ok() ? absl::StrFormat("its checksum is %08x and should be %08x", actual, expected)
                     : std::string(read.message())});
    }
    file_crc = UpdateCrc32c(file_crc, block.data(), n);
    if (begin < data_begin) prefix.append(block.data(), static_cast<size_t>(std::min(n, data_begin - begin)));
    AddDigests(boxes, block.data(), begin, n);
    report_.num_bytes += n;
    if (progress_) progress_(report_.num_bytes, total_bytes_);
  }
  if (damaged) return;
  if (file_crc != entry.crc32c()) {
    Problem(absl::StrFormat("%s: its checksum is %08x and should be %08x, though every block has its own",
                            PathOf(file), file_crc, entry.crc32c()));
  }
  if (!boxes.empty()) VerifyHeader(file, boxes, prefix);
}

void Verifier::AddDigests(const std::vector<PlacedBox>& boxes, const char* data, int64_t begin, int64_t n) {
  for (const PlacedBox& placed : boxes) {
    const int64_t from = std::max(begin, placed.begin), to = std::min(begin + n, placed.end);
    if (from >= to) continue;
    // Neither a block nor a box begins within an element.
    const pb::TensorEntry& tensor = manifest_.tensors(placed.tensor);
    const int64_t elem_bytes = SizeOf(FromProto(tensor.dtype()));
    digests_[static_cast<size_t>(placed.tensor)] +=
        DigestOfBoxElems(tensor, placed.k, (from - placed.begin) / elem_bytes, (to - from) / elem_bytes,
                         data + (from - begin));
  }
}

void Verifier::ReportBlocks() {
  for (const BadBlock& bad : bad_blocks_) {
    const int64_t begin = bad.block * kBlockBytes;
    std::vector<int> changed;
    for (const int t : TensorsInBytes(manifest_, bad.file, begin, begin + kBlockBytes)) {
      if (Changed(t)) changed.push_back(t);
    }
    explained_.insert(changed.begin(), changed.end());
    Problem(std::string(DamagedBlock(dir_, manifest_, bad.file, bad.block, bad.why, changed).message()));
  }
}

void Verifier::VerifyHeader(int file, const std::vector<PlacedBox>& boxes, const std::string& prefix) {
  const std::string path = PathOf(file);
  if (prefix.size() < 8) return Problem(absl::StrCat(path, " has no safetensors header"));
  const int64_t file_bytes = manifest_.files(file).size();
  const absl::StatusOr<int64_t> header_bytes = SafetensorsHeaderBytes(prefix.data(), file_bytes, path);
  if (!header_bytes.ok()) return Problem(std::string(header_bytes.status().message()));
  if (*header_bytes > static_cast<int64_t>(prefix.size())) {
    return Problem(absl::StrCat(path, ": its header reaches into its tensors"));
  }
  const absl::StatusOr<SafetensorsHeader> header = ParseSafetensorsHeader(prefix, file_bytes, path);
  if (!header.ok()) return Problem(std::string(header.status().message()));
  if (header->tensors.size() != boxes.size()) {
    Problem(absl::StrCat(path, " has ", header->tensors.size(), " tensors in its header and ", boxes.size(),
                         " in the manifest"));
  }
  for (const PlacedBox& placed : boxes) {
    const pb::TensorEntry& tensor = manifest_.tensors(placed.tensor);
    const Box box = BoxOf(tensor.boxes(static_cast<int>(placed.k)));
    const std::string key = BoxKey(tensor.name(), FromProto(tensor.kind()), placed.k);
    const SafetensorsEntry* const entry = header->Find(key);
    const auto metadata = header->metadata.find(key);
    if (entry == nullptr || entry->dtype != ToSafetensors(FromProto(tensor.dtype())) ||
        entry->shape != box.size || header->data_begin + entry->begin != placed.begin ||
        metadata == header->metadata.end() || metadata->second != BoxMetadata(ShapeOf(tensor), box)) {
      Problem(absl::StrCat(path, ": the header does not say of ", key, " what the manifest says"));
    }
  }
}

void Verifier::VerifyState() {
  const absl::StatusOr<OpenedCheckpoint> opened = OpenAndCheck(files_, dir_);
  // Damaged files were reported above; what remains is what those bytes mean.
  if (!opened.ok() && report_.problems.empty()) Problem(std::string(opened.status().message()));
}
}  // namespace

absl::StatusOr<VerifyReport> VerifyCheckpoint(const std::string& dir,
                                              const std::function<void(int64_t, int64_t)>& progress,
                                              FileSystem* files) {
  PosixFileSystem posix;
  FileSystem& fs = files != nullptr ? *files : posix;
  CAROUSEL_ASSIGN_OR_RETURN(const std::string payload, ReadManifestPayload(fs, dir));
  CAROUSEL_ASSIGN_OR_RETURN(pb::Manifest manifest, ParseManifest(payload, JoinPath(dir, kManifestFile)));
  VerifyReport report = Verifier(fs, dir, std::move(manifest), progress).Run();
  report.num_bytes += static_cast<int64_t>(Frame(kManifestMagic, payload).size());
  return report;
}
}  // namespace carousel
