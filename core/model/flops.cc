// FLOPs of the model. Matmuls count 2 M N K. The mLSTM cell counts its matrix products and the work on n in
// the chunkwise form with chunks of length L; element-wise work elsewhere is not counted.
#include <algorithm>

#include "core/model/spec.h"

namespace carousel {
namespace {

// One head, one chunk, forward: chunk state, inside the chunk, from the state, joined (arXiv:2503.14376).
double CellChunkFlops(double L, double K, double V) {
  const double states = 2 * L * K * V + 2 * K * V + L * K + 2 * K + 2 * L * K;
  const double intra = 2 * L * L * (K + V) + 3 * L * L;
  const double inter = 2 * L * K * V + 3 * L * K;
  const double combine = 2 * L * V;
  return states + intra + inter + combine;
}
}  // namespace

double TrainFlopsPerToken(const ModelSpec& s, int64_t T) {
  const double D = static_cast<double>(s.embedding_dim);
  const double L = static_cast<double>(std::max<int64_t>(1, std::min(s.chunk_length, T)));
  const double qkvo = static_cast<double>(2 * s.qk_dim + 2 * s.v_dim);
  const double NH = static_cast<double>(s.num_heads);
  const double cell =
      NH * CellChunkFlops(L, static_cast<double>(s.head_dim_qk()), static_cast<double>(s.head_dim_v())) / L;
  const double block = 2 * D * (qkvo + 2 * NH) + 2 * D * static_cast<double>(s.v_dim) +
                       6 * D * static_cast<double>(s.ffn_dim) + cell;
  const double forward =
      static_cast<double>(s.num_blocks) * block + 2 * D * static_cast<double>(s.vocab_size);
  return 3 * forward;
}
}  // namespace carousel
