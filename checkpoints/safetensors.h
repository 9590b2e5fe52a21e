// The safetensors format (github.com/huggingface/safetensors, as of 0.8): 8 bytes header length N (u64,
// little endian), N bytes of JSON, then one buffer of row-major little-endian tensors without holes.
//
//   {"__metadata__":{"key":"value"},"name":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}, ...}
//
// Reading trusts nothing: a file that is opened without an error is consistent to the last byte. Errors are
// InvalidArgument (the file is not valid; the message names file, tensor and reason) or what the file system
// says. This header is for files that come from other programs or go to them; the shards of a checkpoint are
// read through shard_reader.h, which also checks their checksums.
#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "checkpoints/file_system.h"
#include "core/base/dtype.h"

namespace carousel {

// In the order of the reference library, which is by rising alignment.
enum class SafetensorsDType : uint8_t {
  kBOOL,
  kF4,
  kF6_E2M3,
  kF6_E3M2,
  kU8,
  kI8,
  kF8_E5M2,
  kF8_E4M3,
  kF8_E8M0,
  kF8_E4M3FNUZ,
  kF8_E5M2FNUZ,
  kI16,
  kU16,
  kF16,
  kBF16,
  kI32,
  kU32,
  kF32,
  kC64,
  kF64,
  kI64,
  kU64,
};
const char* NameOf(SafetensorsDType dtype);  // "F32"
int BitsOf(SafetensorsDType dtype);          // 32
SafetensorsDType ToSafetensors(DType dtype);
// The same type here; Unimplemented for types that tensors of ours cannot have (F16, I16, ...).
absl::StatusOr<DType> FromSafetensors(SafetensorsDType dtype);

// IEEE half precision. FloatToHalf rounds to nearest, ties to even; NaN stays NaN.
float HalfToFloat(uint16_t half);
uint16_t FloatToHalf(float value);

// What a header says about one tensor.
struct SafetensorsEntry {
  std::string name;
  SafetensorsDType dtype = SafetensorsDType::kF32;
  std::vector<int64_t> shape;  // empty: a scalar
  int64_t begin = 0, end = 0;  // bytes within the data buffer
  int64_t num_bytes() const { return end - begin; }
  int64_t num_elems() const;
};

struct SafetensorsHeader {
  std::map<std::string, std::string> metadata;
  std::vector<SafetensorsEntry> tensors;  // in the order of their bytes
  int64_t data_begin = 0;                 // of the data buffer in the file: 8 + N
  int64_t file_bytes = 0;
  // Null if there is none. O(log n).
  const SafetensorsEntry* Find(const std::string& name) const;
  std::map<std::string, size_t> index;  // name -> position in `tensors`
};

constexpr int64_t kMaxSafetensorsHeaderBytes = 100'000'000;  // as the reference library

// Parses and validates. `prefix` holds the first bytes of a file of file_bytes bytes: at least 8, and all of
// the header (ask SafetensorsHeaderBytes how many). `file` is the name used in messages.
absl::StatusOr<int64_t> SafetensorsHeaderBytes(const void* first_8_bytes, int64_t file_bytes,
                                               const std::string& file);  // 8 + N
absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(const std::string& prefix, int64_t file_bytes,
                                                         const std::string& file);

// Both for an open file.
absl::StatusOr<SafetensorsHeader> ReadSafetensorsHeader(const ReadableFile& file, const std::string& path);

// A whole file in memory: for reference dumps and tests. Movable; views live as long as the reader. What may
// be large is read through model_files.h.
class SafetensorsReader {
 public:
  static absl::StatusOr<SafetensorsReader> Open(const std::string& path, FileSystem* files = nullptr);

  const std::string& path() const { return path_; }
  const std::map<std::string, std::string>& metadata() const { return header_.metadata; }
  const std::vector<SafetensorsEntry>& tensors() const { return header_.tensors; }
  const SafetensorsEntry* Find(const std::string& name) const { return header_.Find(name); }
  // Find, or NotFound that names the file and the closest names.
  absl::StatusOr<SafetensorsEntry> Get(const std::string& name) const;

  // The bytes of a tensor of this file. Not necessarily aligned to its type: copy with memcpy.
  const void* data(const SafetensorsEntry& entry) const { return data_.get() + entry.begin; }

  // A whole tensor converted. F64 F32 F16 BF16 and all integers and BOOL; others are Unimplemented.
  absl::StatusOr<std::vector<double>> ReadAsDouble(const std::string& name) const;
  absl::StatusOr<std::vector<float>> ReadAsFloat(const std::string& name) const;
  // Integers and BOOL only (U64 beyond the range is OutOfRange).
  absl::StatusOr<std::vector<int64_t>> ReadAsInt64(const std::string& name) const;

 private:
  SafetensorsReader() = default;
  std::string path_;
  SafetensorsHeader header_;
  std::unique_ptr<std::byte[]> data_;  // behind the header
};

// What a file will hold, known before its first byte is written.
struct SafetensorsSpec {
  std::string name;
  SafetensorsDType dtype = SafetensorsDType::kF32;
  std::vector<int64_t> shape;
};
struct SafetensorsLayout {
  std::string prefix;  // the length and the header, padded with spaces
  std::vector<SafetensorsEntry>
      tensors;  // in file order: by falling dtype, then by name, as the reference library
  int64_t file_bytes = 0;
  int64_t data_begin() const { return static_cast<int64_t>(prefix.size()); }
};
// data_alignment: the data buffer begins at a multiple of it in the file (8 as the reference library, or
// more). InvalidArgument: a name twice or "__metadata__", text that is not UTF-8, sizes that overflow.
absl::StatusOr<SafetensorsLayout> PlanSafetensors(std::vector<SafetensorsSpec> tensors,
                                                  const std::map<std::string, std::string>& metadata,
                                                  int64_t data_alignment = 8);

// Writes a file of known layout, tensor by tensor, with no buffer of its own.
//   auto writer = SafetensorsWriter::Create(path, layout, files);
//   for (const SafetensorsEntry& t : layout.tensors) writer->Append(t.name, pointer, t.num_bytes());
//   writer->Finish();
class SafetensorsWriter {
 public:
  // `path` must not exist. `files` must outlive the writer.
  static absl::StatusOr<std::unique_ptr<SafetensorsWriter>> Create(const std::string& path,
                                                                   const SafetensorsLayout& layout,
                                                                   FileSystem& files);
  // The next bytes of the tensor; in the order of layout.tensors, each tensor in one or several parts.
  absl::Status Append(const std::string& name, const void* data, int64_t num_bytes);
  // Everything is there, synced and closed. The name is durable after SyncDirectory of the folder.
  absl::Status Finish();

 private:
  SafetensorsWriter() = default;
  std::string path_;
  SafetensorsLayout layout_;
  std::unique_ptr<WritableFile> file_;
  size_t tensor_ = 0;         // the one being written
  int64_t tensor_bytes_ = 0;  // of it, written so far
};
}  // namespace carousel
