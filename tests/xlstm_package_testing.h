// What the tests of the format of the Python package xlstm share.
#pragma once
#include <string>
#include <utility>
#include <vector>

#include "checkpoints/xlstm_package_config.h"
#include "tests/hf_testing.h"

namespace carousel::testing {

// Two mLSTM blocks around an sLSTM block, no two sizes equal.
inline ModelSpec MixedPaperSpec() {
  ModelSpec spec;
  spec.family = Family::kPaper;
  spec.vocab_size = 320;
  spec.embedding_dim = 24;
  spec.num_blocks = 3;
  spec.num_heads = 4;
  spec.qk_dim = spec.v_dim = 64;
  spec.ffn_dim = 40;
  spec.norm_eps = kPackageNormEps;
  spec.gate_soft_cap = spec.logit_soft_cap = 0;
  spec.igate_bias_init = 0;
  spec.igate_bias_std = kPackageIgateBiasStd;
  spec.conv_kernel = 3;
  spec.qkv_block_size = 8;
  spec.slstm_at = {1};
  spec.slstm_num_heads = 2;
  spec.slstm_conv_kernel = 5;
  return spec;
}

// One of each kind of model that the package can describe.
inline std::vector<std::pair<std::string, ModelSpec>> PaperSpecs() {
  std::vector<std::pair<std::string, ModelSpec>> specs = {{"mixed", MixedPaperSpec()}};
  ModelSpec mlstm = MixedPaperSpec();  // tied
  mlstm.slstm_at.clear();
  mlstm.slstm_num_heads = mlstm.ffn_dim = mlstm.slstm_conv_kernel = 0;
  mlstm.tie_embeddings = true;
  specs.emplace_back("mlstm_tied", mlstm);
  ModelSpec slstm = MixedPaperSpec();  // nothing optional
  slstm.slstm_at = {0, 1, 2};
  slstm.qk_dim = slstm.v_dim = slstm.embedding_dim;
  slstm.num_heads = slstm.slstm_num_heads = 3;
  slstm.slstm_conv_kernel = slstm.ffn_dim = 0;
  slstm.slstm_norm_weight = slstm.add_out_norm = false;
  slstm.conv_kernel = slstm.qkv_block_size = 4;
  slstm.igate_bias_init = -10;
  slstm.igate_bias_std = 0;
  specs.emplace_back("slstm_bare", slstm);
  ModelSpec biases = MixedPaperSpec();
  biases.use_bias = biases.ffn_bias = true;
  biases.slstm_at = {0, 2};
  biases.slstm_num_heads = 1;
  specs.emplace_back("biases", biases);
  ModelSpec wide_heads = MixedPaperSpec();  // as many heads as columns
  wide_heads.slstm_num_heads = 24;
  specs.emplace_back("heads_of_one", wide_heads);
  return specs;
}
}  // namespace carousel::testing
