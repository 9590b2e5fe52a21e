// xLSTM language model: embedding -> blocks -> out norm -> head and loss. Explicit backward.
//   x = dropout(Emb[ids]);  for each block: x += mixer(norm(x)); x += FFN(norm(x));
//   logits = cap(norm(x) W_head^T)
// with an mLSTM or an sLSTM as the mixer of each block (core/model/block.h).
//
// Groups of the ParamStore: 0 the embedding, 1..num_blocks the blocks, num_blocks + 1 the out norm and head.
// With tied embeddings the head's matrix is the embedding's, in group 0.
//
// On a pipe axis a rank has a part of the model: some consecutive blocks, at the ends the embedding or the
// head. Names, groups, initial values and dropout masks are those of the whole model. Between parts goes the
// stream, complete and wide, and back goes its gradient: a pipeline has the bits of one rank. On a tensor
// axis the vocabulary of embedding and head is split over the ranks.
#pragma once
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/comm/param_sync.h"
#include "core/comm/tensor_boundary.h"
#include "core/model/block.h"
#include "core/model/gate_measure.h"
#include "core/model/param_store.h"
#include "core/model/spec.h"

namespace carousel {

// Which part of a model a rank has: at least one block.
struct ModelPart {
  int64_t first_block = 0, num_blocks = 0;
  bool embeds = true, has_head = true;  // the embedding; the out norm, head and loss
  bool whole() const { return embeds && has_head; }
};
ModelPart WholeModel(const ModelSpec& spec);
// The part of one stage: blocks as evenly as possible, earlier stages have one more; the first embeds, the
// last has the head. REQUIRES: pipe.size <= spec.num_blocks.
ModelPart PartOf(const ModelSpec& spec, const Axis& pipe);

class LanguageModel {
 public:
  // Registers the parameters of PartOf(spec, axes.pipe) in `params`, which must outlive the model and be
  // partitioned over the same tensor axis. The sizes in `spec` are positive, num_heads divides qk_dim and
  // v_dim, tied embeddings are not cut by the pipe axis (CHECKs).
  // Decay: matrices decay; the embedding only if decay_embedding; norms and biases never.
  LanguageModel(const ModelSpec& spec, ParamStore& params, bool decay_embedding, const ModelAxes& axes = {});

  // Places activations for at most B*T tokens in sequences of at most T; T and evaluation_T count the tokens
  // of one rank of the sequence axis. train: also what backward needs. `ops` gives workspace sizes.
  // evaluation_T > 0: passes without gradients may also have sequences of this length, as many as make up
  // max(B*T, evaluation_T) tokens. num_slots: so many passes may be between Forward and Backward at one time;
  // a part with the head has one slot. gate_stats: Input::gate_stats may be given.
  void Bind(Arena& arena, const Ops& ops, int64_t B, int64_t T, bool train, int64_t evaluation_T = 0,
            int64_t num_slots = 1, bool gate_stats = false);
  int64_t bound_B() const { return bound_.B; }
  int64_t bound_T() const { return bound_.T; }

  // The tokens of this rank of the sequence axis: T consecutive ones of each of B sequences.
  struct Input {
    Tensor ids;              // (B*T) i32, 0 <= id < vocab_size
    Tensor targets = {};     // (B*T) i32; negative = none. Needed where a loss is computed
    Tensor resets = {};      // (B*T) u8, optional
    Tensor all_resets = {};  // (B*T*S) u8: of the whole sequences; with `resets` where S > 1 ranks share them
    int64_t B = 0, T = 0;    // 0: as bound. B*T must not exceed what was bound, T not the longest bound T
    // Where few tokens have a target, logits of the others need not be computed. REQUIRES: bound with train,
    // tensor and sequence axes of one rank.
    struct Rows {
      Tensor of_targets;  // (n) i32, ascending: the tokens that have a target, 0 <= n < B*T
      Tensor to_targets;  // (B*T) i32: which of these the token is, or n
      bool defined() const { return to_targets.defined(); }
    };
    Rows rows = {};  // if defined, `targets` is (n), and so is `correct` of ForwardLoss
    // The key of this pass's dropout masks: a function of seed, step and micro-batch, so that masks depend on
    // neither rank nor world size. None: dropout is off.
    std::optional<uint64_t> dropout_key = {};
    // (gate_stat_rows().num_rows(), kValueSumElems) i64, optional: += statistics of the part's gates, by
    // Forward, and of its logits, by Backward.
    Tensor gate_stats = {};
  };
  GateStatRows gate_stat_rows() const { return {.num_blocks = part_.num_blocks, .has_head = part_.has_head}; }
  // Forward and backward of one micro-batch. loss_sum: (kExactSumElems) i64 +=, the losses of this rank's
  // tokens (by the first rank of a tensor axis, the others add nothing). Gradients of the sum of the losses
  // are accumulated in the store; `sync` is told as groups become ready (null: one rank, weights in place,
  // gradient buffers set by the caller). REQUIRES: bound with train.
  void ForwardBackward(Ops& ops, ParamSync* sync, const Input& input, Tensor loss_sum, int64_t slot = 0);
  // Its two halves. Other passes may come between them, in other slots; both get the same input. The loss is
  // computed in Backward. loss_sum is not touched by a part without the head.
  void Forward(Ops& ops, ParamSync* sync, const Input& input, int64_t slot);
  void Backward(Ops& ops, ParamSync* sync, const Input& input, int64_t slot, Tensor loss_sum);
  // What the next of these two asks of `sync` first: for asking before something else is waited for.
  void PrefetchForward(ParamSync& sync) const;
  void PrefetchBackward(ParamSync& sync) const;
  // What crosses the borders of a part, (stream rows of the input, D) wide each:
  // - Without the embedding: where the stream comes in. Filled before Forward or ForwardLoss.
  Tensor StreamIn(const Input& input, int64_t slot) const;
  // - Without the head: where the stream is after Forward or ForwardLoss, until the next pass.
  Tensor StreamOut(const Input& input) const;
  // - The stream's gradient: without the head filled before Backward, without the embedding what goes on
  // after
  //   it, until the next pass. Needs `train`.
  Tensor StreamGradient(const Input& input) const;

  // The loss alone; bound either way. correct: (B*T) u8 out, optional: 1 where the target has the largest
  // logit.
  void ForwardLoss(Ops& ops, ParamSync* sync, const Input& input, Tensor loss_sum, Tensor correct = {});
  // What ForwardLoss asks of `sync`, without a pass: for a rank that shares weights with others and has no
  // tokens while they have.
  void ForwardNothing(ParamSync& sync) const;
  // The rest needs all axes of one rank.
  // Logits after the soft cap of every token: (B*T, V) wide. For small checks and golden tests only.
  void ForwardLogits(Ops& ops, const Input& input, Tensor logits);
  // Generation: continues from `states` (one per block, updated in place) and gives the soft-capped logits of
  // the last token of each sequence, (B, V) wide.
  void ForwardStep(Ops& ops, const Input& input, const std::vector<LayerState>& states, Tensor last_logits);
  // States for B sequences, zero is the start state. Category "states".
  std::vector<LayerState> BindStates(Arena& arena, int64_t B) const;

  const ModelSpec& spec() const { return spec_; }
  const ModelPart& part() const { return part_; }

 private:
  struct Head {
    Tensor x;               // (stream rows, D) wide saved: the stream after the last block
    NormLayer::Saved norm;  // (stream rows) wide saved
    Tensor u;        // (N, D) compute saved: out_norm(x), input of the head; this rank's rows are in place
    Tensor du;       // (N, D) compute scratch: dy_ where that is no more than a rounded dx_ of all tokens
    Tensor logits;   // (loss chunk, V / t) wide scratch
    Tensor dlogits;  // (loss chunk, V / t) compute scratch
    Tensor stats;    // (t * loss chunk, 4) wide scratch; t > 1 or gate_stats
    Tensor loss;     // (N) wide scratch
  };
  LayerContext MakeContext(Ops& ops, const Input& input) const;
  Block::Mode mode() const;
  int first_group() const { return static_cast<int>(part_.first_block) + 1; }  // of the blocks
  int last_group() const { return first_group() + static_cast<int>(blocks_.size()) - 1; }
  int head_group() const { return static_cast<int>(spec_.num_blocks) + 1; }
  bool tensor_split() const { return axes_.tensor.size > 1; }
  bool rounds() const { return params_.compute() != params_.wide(); }
  int64_t first_id() const;  // of this rank's part of the vocabulary; -1: it is whole
  void CheckWhole() const;

  // The order in which a forward pass asks for groups, ending with those of the head.
  template <class Embed, class RunBlock>
  void WalkForward(ParamSync*, const Embed& embed, const RunBlock& run_block) const;
  void ForwardEmbedding(const LayerContext&, const Input&, Tensor x) const;
  void BackwardEmbedding(const LayerContext&, const Input&) const;
  // Embedding, blocks, out norm: fills head_.u, or stream_out_. states: null, or one per block, continued in
  // place.
  void ForwardTrunk(const LayerContext&, ParamSync*, const Input&, int64_t slot,
                    const std::vector<LayerState>* states);
  void ForwardOutNorm(const LayerContext&, Tensor x, Tensor delta);
  // Logits and loss; backward: also head_.du and the head's weight gradient.
  void HeadLoss(const LayerContext&, const Input&, Tensor loss_sum, bool backward, Tensor correct);
  // The same for u (n, D) compute and its targets (n), in chunks of loss_chunk_tokens. du (n, D) compute out,
  // may be u; undefined: no backward. With a tensor axis du is this rank's part of a sum.
  void HeadLossOf(const LayerContext&, Tensor u, Tensor targets, Tensor loss_sum, Tensor du, Tensor correct,
                  Tensor gate_stats);
  // Statistics of a chunk's logits, once head_.loss has the chunk's losses.
  void MeasureLogits(const LayerContext&, Tensor gate_stats, const CrossEntropyArgs&) const;
  // CrossEntropy of one chunk, of which this rank has the logits of its part of the vocabulary.
  void ChunkLoss(const LayerContext&, const CrossEntropyArgs&) const;
  void BackwardOutNorm(const LayerContext&);
  void ReleaseHead(ParamSync*) const;
  // logits (n, V) wide = soft-capped head of u (n, D), which may have a row stride.
  void Logits(const LayerContext&, Tensor logits, Tensor u) const;

  ModelSpec spec_;
  ParamStore& params_;
  ModelAxes axes_;
  TensorBoundary boundary_;
  ModelPart part_;
  std::vector<std::unique_ptr<Block>> blocks_;  // of the part
  std::vector<std::string> block_names_;        // "block 3 mLSTM", for profilers
  std::optional<NormLayer> out_norm_;
  int embedding_ = -1, head_weight_ = -1;

  // Set by Bind.
  PassShape bound_;
  bool train_ = false;
  std::vector<std::vector<Block::Memory>> slots_;  // [slot][block]
  Head head_;
  Tensor delta_;       // (stream rows, D) compute scratch: what is still to be added to the stream
  Tensor dx_;          // (stream rows, D) wide scratch: gradient of the stream
  Tensor dy_;          // (stream rows, D) compute scratch: dx_ rounded; dx_ itself where compute == wide
  Tensor stream_out_;  // (stream rows, D) wide scratch; without the head
  Tensor embedded_;    // (N, D) wide scratch: this rank's part of the embedding or its gradient; t > 1
};
}  // namespace carousel
