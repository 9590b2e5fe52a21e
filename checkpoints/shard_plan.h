// What a save writes where, and how what a load wants relates to what was saved: pure functions, computed
// alike on every rank from the slices of all ranks. Internal to this folder.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "checkpoints/boxes.h"
#include "checkpoints/manifest.h"
#include "checkpoints/manifest.pb.h"
#include "checkpoints/safetensors.h"

namespace carousel {

// A global tensor and the boxes that its owners hold: they tile the tensor. By their first elements.
struct PlannedTensor {
  std::string name;
  StateKind kind = StateKind::kWeight;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  struct Piece {
    int rank = 0;
    int slice = 0;  // index in the rank's list
    Box box;
  };
  std::vector<Piece> pieces;
  struct Replica {
    int rank = 0;
    int slice = 0;
    size_t piece = 0;  // the one of the same box
  };
  std::vector<Replica> replicas;
};

// What one rank tells about its slices and state.
checkpoint::RankSlices DescribeSlices(const std::vector<StateSlice>& slices, const TrainState& state);

// All tensors, by name and kind. InvalidArgument if slices disagree about a tensor, lie outside of it, leave
// gaps or overlap, or if a replica's box is nobody's: all problems are named.
absl::StatusOr<std::vector<PlannedTensor>> PlanTensors(const std::vector<checkpoint::RankSlices>& ranks);

// What all ranks hold, from the digests of their slices: digests[rank][slice].
struct StateDigests {
  std::vector<uint64_t> tensors;  // of every tensor as a whole
  // Replicas that are not what the owner of their box has: "head.bias (exp_avg): rank 3 and rank 1", ...
  std::vector<std::string> different_replicas;
};
StateDigests CombineDigests(const std::vector<PlannedTensor>& tensors,
                            const std::vector<std::vector<uint64_t>>& digests);

// One rank's slice, on its way to a file.
struct PlannedBox {
  int tensor = 0;  // index of the PlannedTensor
  int64_t k = 0;   // index among the tensor's boxes
  int slice = 0;
  Box box;
  int64_t byte_offset = 0;  // in the file
};
struct PlannedFile {
  std::string name;
  int rank = 0;                   // who writes it
  std::vector<PlannedBox> boxes;  // in the order of their bytes
  std::string prefix;             // the safetensors header
  int64_t num_bytes = 0;          // of the file
};

// The shards of all ranks: model-* first, then optim-*, each by rank. A file ends when the next box would
// take it beyond max_file_bytes; a larger box has its own file. metadata goes into every header.
absl::StatusOr<std::vector<PlannedFile>> PlanFiles(const std::vector<PlannedTensor>& tensors,
                                                   int64_t max_file_bytes,
                                                   const std::map<std::string, std::string>& metadata);
// One box's entry in the metadata of its file: {"global_shape":[4,6],"offset":[2,0]}.
std::string BoxMetadata(const std::vector<int64_t>& shape, const Box& box);

// The manifest's tensors without digests, in the order of `tensors`. Files have the indices of `files`.
void AddTensors(const std::vector<PlannedTensor>& tensors, const std::vector<PlannedFile>& files,
                checkpoint::Manifest* manifest);

// FailedPrecondition that lists every difference in names, shapes and dtypes between what is wanted and what
// the checkpoint `dir` has, with the closest names. Kinds that are not wanted at all are left out.
absl::Status CompareTensors(const std::vector<PlannedTensor>& wanted, const checkpoint::Manifest& manifest,
                            const std::string& dir);

// A run of bytes of a file and the elements they are.
struct FileRun {
  int64_t file = 0;
  int64_t byte_offset = 0;
  int64_t elem = 0;  // flat index in the tensor
  int64_t count = 0;
  int64_t tag = 0;  // the caller's
};
// Appends the runs that hold the elements of a box of a manifest's tensor.
void AppendRuns(const checkpoint::TensorEntry& tensor, const Box& wanted, int64_t tag,
                std::vector<FileRun>* runs);
}  // namespace carousel
