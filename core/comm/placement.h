// Placement: how a tensor lies on the ranks of one axis of the mesh. Parameters and activations have one per
// axis, and which gradients must be summed over which axis follows from them: nobody writes it down.
#pragma once
#include <cstdint>

namespace carousel {

enum class MeshAxis : uint8_t { kPipe, kReplicate, kShard, kSequence, kTensor };
constexpr int kNumMeshAxes = 5;
const char* NameOf(MeshAxis axis);

struct Placement {
  enum class Kind : uint8_t {
    kReplicate,  // every rank has the whole tensor
    kShard,      // every rank has an equal part of dim `dim`
    kPartial,    // the tensor is the sum of the ranks' tensors
  };
  Kind kind = Kind::kReplicate;
  int8_t dim = 0;
  // kShard: dim consists of so many equal parts, each of which is split over the ranks: [xm | z] by heads has
  // two, and rank r holds [part r of xm | part r of z].
  int32_t parts = 1;
  bool operator==(const Placement&) const = default;
};
constexpr Placement Replicated() { return {}; }
constexpr Placement Sharded(int dim, int parts = 1) {
  return {.kind = Placement::Kind::kShard, .dim = static_cast<int8_t>(dim), .parts = parts};
}
constexpr Placement PartialSum() { return {.kind = Placement::Kind::kPartial}; }

// Activations are (tokens, features).
constexpr Placement kByTokens = Sharded(0);
constexpr Placement kByFeatures = Sharded(1);

// Where the gradient of a weight lies, if the activation that the weight meets (the one whose elements its
// gradient sums over) lies as `activation`. A sharded weight meets exactly the features of its part: its
// gradient is sharded alike. A replicated weight that meets only a part of the tokens, or of the heads, has
// seen only a part of its gradient.
constexpr Placement GradientPlacement(Placement weight, Placement activation) {
  if (weight.kind == Placement::Kind::kShard) return weight;
  return activation.kind == Placement::Kind::kReplicate ? Replicated() : PartialSum();
}
// Whether the ranks of the axis must sum their gradients.
constexpr bool MustReduce(Placement weight, Placement gradient) {
  return weight.kind == Placement::Kind::kReplicate && gradient.kind == Placement::Kind::kPartial;
}
}  // namespace carousel
