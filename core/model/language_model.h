// xLSTM language model: embedding -> blocks -> out norm -> head and loss. Explicit backward.
//   x = dropout(Emb[ids]);  for each block: x += mixer(norm(x)); x += FFN(norm(x));
//   logits = cap(norm(x) W_head^T)
// with an mLSTM or an sLSTM as the mixer of each block (core/model/block.h).
//
// Groups of the ParamStore: 0 the embedding, 1..num_blocks the blocks, num_blocks + 1 the out norm and head.
// With tied embeddings the head's matrix is the embedding's, in group 0.
#pragma once
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/comm/param_sync.h"
#include "core/model/block.h"
#include "core/model/param_store.h"
#include "core/model/spec.h"

namespace carousel {

class LanguageModel {
 public:
  // Registers all parameters in `params`, which must outlive the model. The sizes in `spec` are positive and
  // num_heads divides qk_dim and v_dim (a CHECK).
  // Decay: matrices decay; the embedding only if decay_embedding; norms and biases never.
  LanguageModel(const ModelSpec& spec, ParamStore& params, bool decay_embedding);

  // Places activations for at most B*T tokens in sequences of at most T. train: also what backward needs.
  // `ops` gives workspace sizes. evaluation_T > 0: passes without gradients may also have sequences of this
  // length, as many as make up max(B*T, evaluation_T) tokens.
  void Bind(Arena& arena, const Ops& ops, int64_t B, int64_t T, bool train, int64_t evaluation_T = 0);
  int64_t bound_B() const { return B_; }
  int64_t bound_T() const { return T_; }

  struct Input {
    Tensor ids;            // (B*T) i32, 0 <= id < vocab_size
    Tensor targets = {};   // (B*T) i32; negative = none. Needed where a loss is computed
    Tensor resets = {};    // (B*T) u8, optional
    int64_t B = 0, T = 0;  // 0: as bound. B*T must not exceed what was bound, T not the longest bound T
    // Where few tokens have a target, logits of the others need not be computed. REQUIRES: bound with train.
    struct Rows {
      Tensor of_targets;  // (n) i32, ascending: the tokens that have a target, 0 <= n < B*T
      Tensor to_targets;  // (B*T) i32: which of these the token is, or n
      bool defined() const { return to_targets.defined(); }
    };
    Rows rows = {};  // if defined, `targets` is (n), and so is `correct` of ForwardLoss
    // The key of this pass's dropout masks: a function of seed, step and micro-batch, so that masks depend on
    // neither rank nor world size. None: dropout is off.
    std::optional<uint64_t> dropout_key = {};
  };
  // Forward and backward of one micro-batch. loss_sum: (kExactSumElems) i64 +=. Gradients of the sum of the
  // losses are accumulated in the store; `sync` is told as groups become ready (null: one rank, weights in
  // place, gradient buffers set by the caller). REQUIRES: bound with train.
  void ForwardBackward(Ops& ops, ParamSync* sync, const Input& input, Tensor loss_sum);
  // The loss alone; bound either way. correct: (B*T) u8 out, optional: 1 where the target has the largest
  // logit.
  void ForwardLoss(Ops& ops, ParamSync* sync, const Input& input, Tensor loss_sum, Tensor correct = {});
  // Logits after the soft cap of every token: (B*T, V) wide. For small checks and golden tests only.
  void ForwardLogits(Ops& ops, const Input& input, Tensor logits);
  // Generation: continues from `states` (one per block, updated in place) and gives the soft-capped logits of
  // the last token of each sequence, (B, V) wide.
  void ForwardStep(Ops& ops, const Input& input, const std::vector<LayerState>& states, Tensor last_logits);
  // States for B sequences, zero is the start state. Category "states".
  std::vector<LayerState> BindStates(Arena& arena, int64_t B) const;

  const ModelSpec& spec() const { return spec_; }

 private:
  struct Head {
    Tensor x;               // (N, D) wide saved: the stream after the last block
    NormLayer::Saved norm;  // (N) wide saved
    Tensor u;               // (N, D) compute saved: out_norm(x), input of the head
    Tensor du;              // (N, D) compute scratch
    Tensor logits;          // (loss chunk, V) wide scratch
    Tensor dlogits;         // (loss chunk, V) compute scratch
    Tensor loss;            // (N) wide scratch
  };
  LayerContext MakeContext(Ops& ops, const Input& input) const;
  Block::Mode mode() const;
  // Embedding, blocks, out norm: fills head_.u. states: null, or one per block, continued in place.
  void ForwardTrunk(const LayerContext&, ParamSync*, const Input&, const std::vector<LayerState>* states);
  void ForwardOutNorm(const LayerContext&);
  // Logits and loss; backward: also head_.du and the head's weight gradient.
  void HeadLoss(const LayerContext&, const Input&, Tensor loss_sum, bool backward, Tensor correct);
  // The same for u (n, D) compute and its targets (n), in chunks of loss_chunk_tokens. du (n, D) compute out,
  // may be u; undefined: no backward.
  void HeadLossOf(const LayerContext&, Tensor u, Tensor targets, Tensor loss_sum, Tensor du, Tensor correct);
  void BackwardOutNorm(const LayerContext&);
  // logits (n, V) wide = soft-capped head of u (n, D), which may have a row stride.
  void Logits(const LayerContext&, Tensor logits, Tensor u) const;

  ModelSpec spec_;
  ParamStore& params_;
  std::vector<std::unique_ptr<Block>> blocks_;
  std::vector<std::string> block_names_;  // "block 3 mLSTM", for profilers
  std::optional<NormLayer> out_norm_;
  int embedding_ = -1, head_weight_ = -1;

  // Set by Bind.
  int64_t B_ = 0, T_ = 0;
  PassShape bound_;
  bool train_ = false;
  std::vector<Block::Memory> block_memory_;
  Head head_;
  Tensor delta_;  // (N, D) compute scratch: what is still to be added to the stream
  Tensor dx_;     // (N, D) wide scratch: gradient of the stream
};
}  // namespace carousel
