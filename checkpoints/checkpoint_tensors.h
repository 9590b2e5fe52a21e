// One checkpoint as a set of named tensors, for tools: whatever the layout of its shards, verified while it
// is read, with memory for one block (16 MiB) whatever the size of the tensors.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "checkpoints/checkpoint.h"
#include "checkpoints/weight_source.h"

namespace carousel {

struct CheckpointTensor {
  std::string name;
  StateKind kind = StateKind::kWeight;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  int64_t num_elems = 0;
  uint64_t digest = 0;  // TensorDigest of all elements (digest.h): independent of the layout
};
const char* NameOf(StateKind kind);  // "weight", "exp_avg", "exp_avg_sq"

// Not for use by several threads at once.
class CheckpointTensors {
 public:
  static absl::StatusOr<CheckpointTensors> Open(const std::string& dir, FileSystem* files = nullptr);
  CheckpointTensors(CheckpointTensors&&) noexcept;
  CheckpointTensors& operator=(CheckpointTensors&&) noexcept;
  ~CheckpointTensors();

  const CheckpointInfo& info() const;
  const std::vector<CheckpointTensor>& tensors() const;  // by name, then kind
  const CheckpointTensor* Find(const std::string& name, StateKind kind) const;
  // Elements [begin, begin + count) of the row-major tensor, in its dtype. Checked block by block; a read of
  // a whole tensor also against its digest.
  absl::Status Read(const CheckpointTensor& tensor, int64_t begin, int64_t count, void* data);
  // Gives `use` all elements in order, in pieces of at most kPieceBytes, and compares the digest at the end:
  // what was used before may be damaged in a way that the checksums of the blocks do not show. Ends with the
  // first error, its own or that of `use`.
  static constexpr int64_t kPieceBytes = int64_t{32} << 20;
  absl::Status Stream(const CheckpointTensor& tensor,
                      const std::function<absl::Status(int64_t begin, int64_t count, const void* data)>& use);

 private:
  struct Impl;
  explicit CheckpointTensors(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// The weights of a checkpoint for export, generation and import. Not for use by several threads at once.
absl::StatusOr<std::unique_ptr<WeightSource>> OpenCheckpointWeights(const std::string& dir,
                                                                    FileSystem* files = nullptr);

struct VerifyReport {
  std::vector<std::string> problems;  // one line each: file, block, tensor. Empty: every bit is as written
  int64_t num_files = 0, num_bytes = 0, num_tensors = 0;  // files and bytes as in CheckpointInfo
};
// Reads every byte: block and file checksums, the headers of the shards against the manifest, the digests of
// all tensors, files that are missing or that do not belong there. progress(done, total) is called after
// every block; it may be null. An error status only if the manifest itself cannot be used.
absl::StatusOr<VerifyReport> VerifyCheckpoint(
    const std::string& dir, const std::function<void(int64_t done_bytes, int64_t total_bytes)>& progress,
    FileSystem* files = nullptr);

// What differs between two checkpoints, by digests alone: one line per difference; empty means equal tensors.
// `weights_only` leaves the moments out.
absl::StatusOr<std::vector<std::string>> DiffCheckpoints(const std::string& a, const std::string& b,
                                                         bool weights_only, FileSystem* files = nullptr);
}  // namespace carousel
