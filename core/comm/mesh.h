// Mesh: the named axes along which ranks are arranged, outermost first: pipe, replicate, shard, sequence,
// tensor. An axis of size 1 has no communicator. Built by parallel/mesh_builder.
#pragma once
#include "core/comm/communicator.h"
#include "core/comm/placement.h"

namespace carousel {

class Stream;

struct Axis {
  int64_t size = 1;
  int64_t index = 0;
  Communicator* communicator = nullptr;  // not owned; null when size is 1
  // The same ranks, for tensors in host memory. Null: `communicator` takes those, as every communicator
  // without a device does. On a device whose memory the host cannot read, `communicator` takes that device's
  // tensors and this one is given.
  Communicator* control = nullptr;
  // The same ranks, with calls ordered by Mesh::side instead of the compute stream. Null: `communicator`.
  Communicator* background = nullptr;
  Communicator* host() const { return control != nullptr ? control : communicator; }
  Communicator* side() const { return background != nullptr ? background : communicator; }
};

struct Mesh {
  Axis pipe;       // stages of consecutive blocks
  Axis replicate;  // ranks that see different micro-batches and have the same weights
  Axis shard;      // ranks that see different micro-batches and share one copy of the weights
  Axis sequence;   // ranks that see different tokens of the same sequences
  Axis tensor;     // ranks that see the same tokens and have different heads, features, vocabulary
  // replicate x sequence, sequence innermost: ranks with the same piece of the weights. They sum their
  // gradients and share the optimizer's work on it.
  Axis replicas;
  Axis world;  // all ranks
  // The stream of the axes' background communicators; not owned. Null: there is only the compute stream.
  Stream* side = nullptr;

  // replicate x shard: ranks that see different micro-batches.
  int64_t data_size() const { return replicate.size * shard.size; }
  int64_t data_index() const { return replicate.index * shard.size + shard.index; }
  // Of the ranks that see the same micro-batch one speaks for it where things are counted once.
  bool speaks_for_data() const { return pipe.index == 0 && sequence.index == 0 && tensor.index == 0; }
};

// The mesh of ranks that only replicate the model.
inline Mesh ReplicateMesh(const Axis& axis) {
  Mesh mesh;
  mesh.replicate = mesh.replicas = mesh.world = axis;
  return mesh;
}

// Which of the M micro-batches of a step (the leaves of the summation tree) a rank computes, in its order: a
// contiguous block of them belongs to each index of the replicate axis, and the ranks of the shard axis take
// turns in it, so that the leaves of one turn are consecutive.
struct Leaves {
  int64_t first = 0, stride = 1, count = 0;
  int64_t at(int64_t j) const { return first + j * stride; }
};
// REQUIRES: mesh.data_size() divides num_leaves.
inline Leaves LeavesOf(const Mesh& mesh, int64_t num_leaves) {
  CAROUSEL_CHECK_EQ(num_leaves % mesh.data_size(), int64_t{0});
  return {.first = mesh.replicate.index * (num_leaves / mesh.replicate.size) + mesh.shard.index,
          .stride = mesh.shard.size,
          .count = num_leaves / mesh.data_size()};
}
}  // namespace carousel
