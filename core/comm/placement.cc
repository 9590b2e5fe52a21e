#include "core/comm/placement.h"

namespace carousel {

const char* NameOf(MeshAxis axis) {
  switch (axis) {
    case MeshAxis::kPipe:
      return "pipe";
    case MeshAxis::kReplicate:
      return "replicate";
    case MeshAxis::kShard:
      return "shard";
    case MeshAxis::kSequence:
      return "sequence";
    case MeshAxis::kTensor:
      return "tensor";
  }
  return "?";
}
}  // namespace carousel
