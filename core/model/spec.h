// ModelSpec: the architecture as plain numbers, already validated. The names follow the published configs.
#pragma once
#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "core/ops.h"

namespace carousel {

enum class Recompute : uint8_t { kSave, kRecompute };  // keep a block's activations, or only its input

// kLarge: the blocks of xLSTM 7B (arXiv:2503.13427): RMS norm, mixer, RMS norm, SwiGLU; soft caps.
// kPaper: the blocks of the xLSTM paper (arXiv:2405.04517): layer norms whose stored weight is the scale
// minus
//   1; mLSTM blocks that project up before the cell and have no feed-forward; sLSTM blocks with a gated GELU
//   feed-forward; no soft caps.
enum class Family : uint8_t { kLarge, kPaper };

// Initial bias of the sLSTM's forget gate, and of nothing else unless said so. Head-local column j of D,
// block l of n: kPowerLaw: 5 - 12 (j / (D-1))^(0.3 + 1.3 l/(n-1));  kSmall: linspace(3, 6) over a head;
// kZero;  kStandard: all four gates uniform within 1/sqrt(embedding_dim).
enum class SlstmBiasInit : uint8_t { kPowerLaw, kSmall, kZero, kStandard };
enum class RecurrentInit : uint8_t { kZero, kStandard };  // kStandard: uniform within 1/sqrt(embedding_dim)

struct ModelSpec {
  Family family = Family::kLarge;
  int64_t vocab_size = 0;     // V, already padded
  int64_t embedding_dim = 0;  // D
  int64_t num_blocks = 0;
  int64_t num_heads = 0;  // NH of the mLSTM
  int64_t qk_dim = 0;     // NH * DHQK; paper: the width after the up-projection
  int64_t v_dim = 0;      // NH * DHV; paper: equal to qk_dim
  int64_t ffn_dim = 0;    // F; paper: of sLSTM blocks, 0 = they have no feed-forward
  bool use_bias = false;  // large: a bias on every linear map and norm; paper: on the maps of the mLSTM layer
  bool ffn_bias = false;  // paper: a bias on the maps of the feed-forward
  bool add_out_norm = true;
  bool tie_embeddings = false;  // the head multiplies by the embedding's matrix
  double norm_eps = 1e-6;       // all norms
  double cell_eps = 1e-6;       // added to the mLSTM denominator
  double gate_soft_cap = 15;    // large: on the mLSTM's gates; <= 0: none
  double logit_soft_cap = 30;   // <= 0: none
  InputGate input_gate = InputGate::kExponential;
  bool normalize_sigmoid = true;  // kSigmoid: divide by max(|n.q|, 1) + eps
  double igate_bias_init = -10;   // mean of the mLSTM's input gate bias
  double igate_bias_std = 0;      // and its standard deviation
  NormalizerGradient normalizer_gradient = NormalizerGradient::kExact;
  int64_t chunk_length = 64;  // L of the mLSTM
  Recompute recompute = Recompute::kSave;
  int64_t loss_chunk_tokens = 1024;  // rows of logits that exist at one time

  // Paper mLSTM.
  int64_t conv_kernel = 4;     // K of the causal convolution, >= 1
  int64_t qkv_block_size = 4;  // q, k, v are block-diagonal maps with blocks of this size; divides qk_dim

  // sLSTM, in either family.
  std::vector<int64_t> slstm_at = {};  // blocks with an sLSTM mixer: ascending, no repetition
  int64_t slstm_num_heads = 0;         // divides embedding_dim
  int64_t slstm_conv_kernel = 0;       // 0: no convolution before the input and forget gates
  bool slstm_norm_weight = true;       // the norm after the cell has a weight
  SlstmBiasInit slstm_bias_init = SlstmBiasInit::kPowerLaw;
  RecurrentInit slstm_recurrent_init = RecurrentInit::kZero;
  double slstm_gradient_clip = 0;   // > 0: clamps the gradient that comes back through the recurrence
  bool slstm_gradient_cut = false;  // drops that gradient

  // Dropout rates, in training only.
  double dropout = 0;            // on the mLSTM layer's output and on the sLSTM cell's
  double ffn_dropout = 0;        // on the feed-forward's output
  double embedding_dropout = 0;  // on the embedding
  bool drops() const { return dropout > 0 || ffn_dropout > 0 || embedding_dropout > 0; }

  int64_t head_dim_qk() const { return qk_dim / num_heads; }
  int64_t head_dim_v() const { return v_dim / num_heads; }
  int64_t slstm_head_dim() const { return embedding_dim / slstm_num_heads; }
  bool is_slstm(int64_t block) const { return std::binary_search(slstm_at.begin(), slstm_at.end(), block); }
  bool has_ffn_bias() const { return family == Family::kLarge ? use_bias : ffn_bias; }
  // Norm weights are stored as scale - 1.
  bool residual_norm_weights() const { return family == Family::kPaper; }
  bool has_ffn(int64_t block) const { return family == Family::kLarge || (is_slstm(block) && ffn_dim > 0); }
};

// multiple_of * ceil(embedding_dim * factor / multiple_of).
int64_t ProjectionDim(int64_t embedding_dim, double factor, int64_t multiple_of);
// The same with 64: the width used by the published checkpoints (a true ceiling).
int64_t FfnDim(int64_t embedding_dim, double factor);
// Exact number of parameters.
int64_t NumParameters(const ModelSpec&);
// FLOPs of one training token (forward and backward, 3x the forward): matmuls, block-diagonal maps, cells and
// convolutions, logits counted.
double TrainFlopsPerToken(const ModelSpec&, int64_t T);
}  // namespace carousel
