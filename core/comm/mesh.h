// Mesh: the named axes along which ranks are arranged. An axis of size 1 has no communicator.
#pragma once
#include "core/comm/communicator.h"

namespace carousel {

struct Axis {
  int64_t size = 1;
  int64_t index = 0;
  Communicator* communicator = nullptr;  // not owned; null when size is 1
  // The same ranks, for tensors in host memory. Null: `communicator` takes those, as every communicator
  // without a device does. On a device whose memory the host cannot read, `communicator` takes that device's
  // tensors and this one is given.
  Communicator* control = nullptr;
  Communicator* host() const { return control != nullptr ? control : communicator; }
};

struct Mesh {
  Axis data;                           // ranks that see different micro-batches (and shard the optimizer)
  Axis shard, sequence, tensor, pipe;  // size 1 in this version
};
}  // namespace carousel
