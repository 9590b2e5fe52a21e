// xLSTM language model, large family: embedding -> blocks -> out norm -> head and loss. Explicit backward.
//   x = Emb[ids];  for each block: x += mLSTM(norm(x)); x += FFN(norm(x));  logits = cap(W_head norm(x))
#pragma once
#include <memory>
#include <vector>

#include "core/comm/mesh.h"
#include "core/comm/param_sync.h"
#include "core/model/block.h"
#include "core/model/param_store.h"
#include "core/model/spec.h"

namespace carousel {

class LanguageModel {
 public:
  // Registers all parameters in `params`. Both references must outlive the model.
  // Decay: matrices decay; the embedding only if decay_embedding; norms and biases never.
  LanguageModel(const ModelSpec& spec, ParamStore& params, bool decay_embedding);

  // Places activations for B sequences of T tokens. train: also what backward needs. `ops` gives workspace
  // sizes.
  void Bind(Arena& arena, const Ops& ops, int64_t B, int64_t T, bool train);

  struct Input {
    Tensor ids;          // (B*T) i32
    Tensor targets;      // (B*T) i32; negative = none. Undefined: no loss is computed
    Tensor resets = {};  // (B*T) u8, optional
  };
  // Forward and, if train, backward of one micro-batch. loss_sum: (kExactSumElems) i64 +=. Gradients of the
  // sum of the losses are accumulated in the store; `sync` is told as groups become ready (null: one rank,
  // weights in place, grads set by the caller).
  void ForwardBackward(Ops& ops, ParamSync* sync, const Input& input, Tensor loss_sum);
  void ForwardLoss(Ops& ops, ParamSync* sync, const Input& input, Tensor loss_sum);
  // Logits after the soft cap of every token: (B*T, V) wide. For small checks and golden tests only.
  void ForwardLogits(Ops& ops, const Input& input, Tensor logits);
  // Generation: continues from `states` (one per block, updated in place) and gives the soft-capped logits of
  // the last token of each sequence, (B, V) wide.
  void ForwardStep(Ops& ops, const Input& input, std::vector<MlstmState>& states, Tensor last_logits);
  // States for B sequences, zero is the start state. Category "states".
  std::vector<MlstmState> BindStates(Arena& arena, int64_t B) const;

  const ModelSpec& spec() const { return spec_; }

 private:
  ModelSpec spec_;
  ParamStore& params_;
};
}  // namespace carousel
