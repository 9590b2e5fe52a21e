#include "core/model/spec.h"

#include <algorithm>
#include <cmath>

namespace carousel {
namespace {

// One mLSTM layer with its input norm, and what follows it where blocks have a second half.
int64_t LargeMlstmParameters(const ModelSpec& s) {
  const int64_t D = s.embedding_dim, NH = s.num_heads;
  const int64_t qkvo = 2 * s.qk_dim + 2 * s.v_dim;
  // Projections, gates (always with bias), output, head norm.
  int64_t count = D * qkvo + 2 * (NH * D + NH) + s.v_dim * D + s.v_dim;
  if (s.use_bias) count += qkvo + D + s.v_dim;
  return count;
}

int64_t PaperMlstmParameters(const ModelSpec& s) {
  const int64_t D = s.embedding_dim, NH = s.num_heads, W = s.qk_dim;
  // Up- and down-projection, convolution with bias, block-diagonal q, k, v, gates over [q|k|v] (always with
  // bias), head norm, skip.
  int64_t count =
      3 * W * D + W * (s.conv_kernel + 1) + 3 * W * s.qkv_block_size + 2 * (3 * W * NH + NH) + 2 * W;
  if (s.use_bias) count += 2 * W + 3 * W + D;
  return count;
}

int64_t SlstmParameters(const ModelSpec& s) {
  const int64_t D = s.embedding_dim;
  int64_t count = 8 * D * s.slstm_head_dim() + 4 * D;  // head-wise input and recurrent maps, biases
  if (s.slstm_conv_kernel > 0) count += D * (s.slstm_conv_kernel + 1);
  if (s.slstm_norm_weight) count += D;
  return count;
}

int64_t FfnParameters(const ModelSpec& s) {
  const int64_t D = s.embedding_dim, F = s.ffn_dim;
  return 3 * D * F + (s.has_ffn_bias() ? 2 * F + D : 0);
}

// Norms of the width of the stream: only the large family's have biases.
int64_t NormParameters(const ModelSpec& s) {
  return s.family == Family::kLarge && s.use_bias ? 2 * s.embedding_dim : s.embedding_dim;
}

int64_t BlockParameters(const ModelSpec& s, bool slstm) {
  int64_t count = NormParameters(s);
  if (slstm) {
    count += SlstmParameters(s);
  } else {
    count += s.family == Family::kLarge ? LargeMlstmParameters(s) : PaperMlstmParameters(s);
  }
  const bool ffn = s.family == Family::kLarge || (slstm && s.ffn_dim > 0);
  return ffn ? count + NormParameters(s) + FfnParameters(s) : count;
}
}  // namespace

int64_t ProjectionDim(int64_t embedding_dim, double factor, int64_t multiple_of) {
  const double m = static_cast<double>(multiple_of);
  // The subtraction forgives the rounding of a factor that was given as width / embedding_dim.
  const double multiples = std::ceil(static_cast<double>(embedding_dim) * factor / m - 1e-9);
  return multiple_of * std::max<int64_t>(1, static_cast<int64_t>(multiples));
}

int64_t FfnDim(int64_t embedding_dim, double factor) { return ProjectionDim(embedding_dim, factor, 64); }

int64_t NumParameters(const ModelSpec& s) {
  int64_t count = (s.tie_embeddings ? 1 : 2) * s.vocab_size * s.embedding_dim;
  const int64_t slstm_blocks = static_cast<int64_t>(s.slstm_at.size());
  if (slstm_blocks > 0) count += slstm_blocks * BlockParameters(s, /*slstm=*/true);
  if (slstm_blocks < s.num_blocks) count += (s.num_blocks - slstm_blocks) * BlockParameters(s, false);
  return s.add_out_norm ? count + NormParameters(s) : count;
}
}  // namespace carousel
