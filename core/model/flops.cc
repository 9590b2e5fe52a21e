// FLOPs of the model. A product of (M, K) and (K, N) counts 2 M N K; so do its special forms: a
// block-diagonal map of width W with blocks of size s is W / s products of (s, s): 2 W s per token; a
// depthwise convolution with K taps is 2 W K. The mLSTM cell counts its matrix products and the work on n in
// the chunkwise form with chunks of length L; the sLSTM cell its four recurrent maps, 8 D D / NH.
// Element-wise work elsewhere is not counted. Per token, forward, with D = embedding_dim, W = qk_dim of the
// paper family, F = ffn_dim:
//   large mLSTM    2 D (2 qk + 2 v + 2 NH) + 2 D v + cell
//   paper mLSTM    6 D W (up, down) + 2 W conv_kernel + 6 W qkv_block_size + 12 W NH (gates) + cell
//   sLSTM          8 D D / NH (input maps) + 8 D D / NH (recurrence) + 2 D conv_kernel
//   feed-forward   6 D F
//   head           2 D V
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

// All heads, per token.
double CellFlops(const ModelSpec& s, int64_t T) {
  const double L = static_cast<double>(std::max<int64_t>(1, std::min(s.chunk_length, T)));
  const double K = static_cast<double>(s.head_dim_qk()), V = static_cast<double>(s.head_dim_v());
  return static_cast<double>(s.num_heads) * CellChunkFlops(L, K, V) / L;
}

double MlstmFlops(const ModelSpec& s, int64_t T) {
  const double D = static_cast<double>(s.embedding_dim), NH = static_cast<double>(s.num_heads);
  const double qk = static_cast<double>(s.qk_dim), v = static_cast<double>(s.v_dim);
  if (s.family == Family::kLarge) return 2 * D * (2 * qk + 2 * v + 2 * NH) + 2 * D * v + CellFlops(s, T);
  return 6 * D * qk + 2 * qk * static_cast<double>(s.conv_kernel) +
         6 * qk * static_cast<double>(s.qkv_block_size) + 12 * qk * NH + CellFlops(s, T);
}

double SlstmFlops(const ModelSpec& s) {
  const double D = static_cast<double>(s.embedding_dim);
  return 16 * D * static_cast<double>(s.slstm_head_dim()) + 2 * D * static_cast<double>(s.slstm_conv_kernel);
}
}  // namespace

double TrainFlopsPerToken(const ModelSpec& s, int64_t T) {
  const double D = static_cast<double>(s.embedding_dim);
  const double slstm_blocks = static_cast<double>(s.slstm_at.size());
  const double mlstm_blocks = static_cast<double>(s.num_blocks) - slstm_blocks;
  const double ffn_blocks = s.family == Family::kLarge ? static_cast<double>(s.num_blocks) : slstm_blocks;
  double forward = 6 * D * static_cast<double>(s.ffn_dim) * ffn_blocks;
  if (mlstm_blocks > 0) forward += mlstm_blocks * MlstmFlops(s, T);
  if (slstm_blocks > 0) forward += slstm_blocks * SlstmFlops(s);
  forward += 2 * D * static_cast<double>(s.vocab_size);
  return 3 * forward;
}
}  // namespace carousel
