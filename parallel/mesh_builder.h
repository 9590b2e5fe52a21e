// From "how many ranks were started" and "how the run is cut" to a Mesh, with every problem named at once.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/comm/model_axes.h"
#include "core/model/spec.h"

namespace carousel {

// Sizes of the axes, as the user gives them.
struct MeshSizes {
  int64_t pipe = 1, replicate = 1, shard = 1, sequence = 1, tensor = 1;
  int64_t world() const;  // their product; the largest int64 if it does not fit
  int64_t of(MeshAxis axis) const;
};

// Where a rank stands: tensor is innermost, then sequence, shard, replicate; pipe is outermost.
struct MeshPlace {
  int64_t pipe = 0, replicate = 0, shard = 0, sequence = 0, tensor = 0;
  int64_t of(MeshAxis axis) const;
};
MeshPlace PlaceOf(const MeshSizes& sizes, int64_t rank);
int64_t RankOf(const MeshSizes& sizes, const MeshPlace& place);

struct MeshSpec {
  int64_t world = 1;                   // ranks that were started
  MeshSizes sizes = {.replicate = 0};  // parallel.*; replicate 0: whatever the other axes leave
  int64_t global_batch = 0;            // train.global_batch, sequences
  int64_t micro_batch = 0;             // train.micro_batch, sequences
  // What the other axes must divide. Null: not checked.
  const ModelSpec* model = nullptr;
  int64_t sequence_length = 0;       // data.sequence_length
  int64_t eval_sequence_length = 0;  // eval.sequence_length; 0: no evaluation
  SequenceMode sequence_mode = SequenceMode::kAuto;
};

// One sentence per problem, each with the nearest values that are valid; empty if the mesh can be built.
std::vector<std::string> MeshViolations(const MeshSpec& spec);
// InvalidArgument with all violations, or OK.
absl::Status ValidateMesh(const MeshSpec& spec);
// The sizes with replicate filled in. REQUIRES: no violations.
MeshSizes ResolveSizes(const MeshSpec& spec);

// A mesh and the communicators that were made for it.
class BuiltMesh {
 public:
  const Mesh& mesh() const { return mesh_; }
  Mesh& mesh() { return mesh_; }

 private:
  friend std::unique_ptr<BuiltMesh> BuildMesh(const MeshSizes& sizes, Communicator& world);
  Mesh mesh_;
  std::vector<std::unique_ptr<Communicator>> communicators_;
};
// Collective over `world`, which must outlive the result. Axes of one rank get no communicator; an axis that
// is all ranks uses `world` itself. REQUIRES: sizes.world() == world.size().
std::unique_ptr<BuiltMesh> BuildMesh(const MeshSizes& sizes, Communicator& world);
// The same after ValidateMesh.
absl::StatusOr<std::unique_ptr<BuiltMesh>> BuildMesh(const MeshSpec& spec, Communicator& world);

// The numbers of ranks that can share this many micro-batches, ascending (its divisors).
std::vector<int64_t> WorldSizesThatFit(int64_t micro_batches);
}  // namespace carousel
