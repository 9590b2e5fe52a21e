// ModelAxes: the axes of the mesh that cut the model itself. Layers ask them for the exchanges of
// core/comm/{tensor_boundary,head_exchange,sequence_carry,conv_halo}.h and never for ranks.
#pragma once
#include "core/comm/mesh.h"

namespace carousel {

// How an mLSTM cell gets over the border between ranks that hold consecutive tokens of a sequence: by the
// state that is carried over it, or by giving each rank all tokens of some heads. kAuto: the one that sends
// fewer bytes (and kState where the heads do not divide).
enum class SequenceMode : uint8_t { kAuto, kState, kHeads };

struct ModelAxes {
  Axis tensor, sequence, pipe;
  SequenceMode sequence_mode = SequenceMode::kAuto;
};
inline ModelAxes AxesOf(const Mesh& mesh, SequenceMode mode = SequenceMode::kAuto) {
  return {.tensor = mesh.tensor, .sequence = mesh.sequence, .pipe = mesh.pipe, .sequence_mode = mode};
}
}  // namespace carousel
