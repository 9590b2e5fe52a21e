// From "how many ranks were started" and "how the run is cut" to a Mesh, with every problem named at once.
#pragma once
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/comm/mesh.h"

namespace carousel {

struct MeshSpec {
  int64_t world = 1;         // ranks that were started
  int64_t data = 0;          // parallel.data: data-parallel ranks; 0 = all ranks
  int64_t global_batch = 0;  // train.global_batch, sequences
  int64_t micro_batch = 0;   // train.micro_batch, sequences
};

// One sentence per problem, each with the nearest values that are valid; empty if the mesh can be built.
std::vector<std::string> MeshViolations(const MeshSpec& spec);
// InvalidArgument with all violations, or OK.
absl::Status ValidateMesh(const MeshSpec& spec);
// The ranks of `world` along the data axis. world.size() must be spec.world; not owned, must outlive the
// mesh.
absl::StatusOr<Mesh> BuildMesh(const MeshSpec& spec, Communicator& world);
// The numbers of ranks that can share this many micro-batches, ascending (its divisors).
std::vector<int64_t> WorldSizesThatFit(int64_t micro_batches);
}  // namespace carousel
