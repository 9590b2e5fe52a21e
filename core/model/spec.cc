#include "core/model/spec.h"

#include <cmath>

namespace carousel {

int64_t FfnDim(int64_t embedding_dim, double factor) {
  // The subtraction forgives the rounding of a factor that was given as ffn_dim / embedding_dim.
  return 64 * static_cast<int64_t>(std::ceil(static_cast<double>(embedding_dim) * factor / 64 - 1e-9));
}

int64_t NumParameters(const ModelSpec& s) {
  const int64_t D = s.embedding_dim, NH = s.num_heads, F = s.ffn_dim;
  const int64_t qkvo = 2 * s.qk_dim + 2 * s.v_dim;
  int64_t block = D * qkvo + 2 * (NH * D + NH) + s.v_dim * D  // projections, gates (always with bias), output
                  + 2 * D + s.v_dim                           // two norms, head norm
                  + 3 * D * F;
  if (s.use_bias) block += qkvo + D + 2 * D + s.v_dim + 2 * F + D;
  int64_t total = 2 * s.vocab_size * D + s.num_blocks * block;  // embedding and head are not tied
  if (s.add_out_norm) total += s.use_bias ? 2 * D : D;
  return total;
}
}  // namespace carousel
