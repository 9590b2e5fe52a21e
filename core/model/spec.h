// ModelSpec: the architecture as plain numbers, already validated. The names follow the published configs.
#pragma once
#include <cstdint>
#include <string>

#include "core/ops.h"

namespace carousel {

enum class Recompute : uint8_t { kSave, kRecompute };  // keep a block's activations, or only its input

// The large family (xLSTM 7B, arXiv:2503.13427).
struct ModelSpec {
  int64_t vocab_size = 0;     // V, already padded
  int64_t embedding_dim = 0;  // D
  int64_t num_blocks = 0;
  int64_t num_heads = 0;  // NH
  int64_t qk_dim = 0;     // NH * DHQK
  int64_t v_dim = 0;      // NH * DHV
  int64_t ffn_dim = 0;    // F
  bool use_bias = false;  // a bias on every linear map and norm
  bool add_out_norm = true;
  double norm_eps = 1e-6;      // RMS norms and head norm
  double cell_eps = 1e-6;      // added to the mLSTM denominator
  double gate_soft_cap = 15;   // <= 0: none
  double logit_soft_cap = 30;  // <= 0: none
  InputGate input_gate = InputGate::kExponential;
  bool normalize_sigmoid = true;  // kSigmoid: divide by max(|n.q|, 1) + eps
  double igate_bias_init = -10;
  NormalizerGradient normalizer_gradient = NormalizerGradient::kExact;
  int64_t chunk_length = 64;  // L of the mLSTM
  Recompute recompute = Recompute::kSave;
  int64_t loss_chunk_tokens = 1024;  // rows of logits that exist at one time

  int64_t head_dim_qk() const { return qk_dim / num_heads; }
  int64_t head_dim_v() const { return v_dim / num_heads; }
};

// 64 * ceil(embedding_dim * factor / 64): the width used by the published checkpoints (a true ceiling).
int64_t FfnDim(int64_t embedding_dim, double factor);
// Exact number of parameters.
int64_t NumParameters(const ModelSpec&);
// FLOPs of one training token (forward and backward, 3x the forward), matmuls and mLSTM cell, logits counted.
double TrainFlopsPerToken(const ModelSpec&, int64_t T);
}  // namespace carousel
