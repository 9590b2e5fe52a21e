// A mesh of ranks that are threads of one process.
#pragma once
#include <functional>
#include <memory>

#include "parallel/local_communicator.h"
#include "parallel/mesh_builder.h"

namespace carousel {

// Runs `body` on every rank of a mesh of these sizes; returns when all have returned.
inline void RunLocalMesh(const MeshSizes& sizes, const std::function<void(const Mesh&)>& body) {
  RunLocalRanks(static_cast<int>(sizes.world()), [&](Communicator& world) {
    const std::unique_ptr<BuiltMesh> built = BuildMesh(sizes, world);
    body(built->mesh());
  });
}
}  // namespace carousel
