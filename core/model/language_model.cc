#include "core/model/language_model.h"

#include <algorithm>
#include <string>

#include "core/model/layer_init.h"

namespace carousel {
namespace {

// A ParamSync that may be absent. Groups without parameters are left out.
struct OptionalSync {
  ParamSync* sync;
  int num_groups;
  bool Knows(int group) const { return sync != nullptr && group < num_groups; }
  void Prefetch(int group) const {
    if (Knows(group)) sync->Prefetch(group);
  }
  void Acquire(int group) const {
    if (Knows(group)) sync->Acquire(group);
  }
  void Release(int group) const {
    if (Knows(group)) sync->Release(group);
  }
  void BeginGradients(int group) const {
    if (Knows(group)) sync->BeginGradients(group);
  }
  void GradReady(int group) const {
    if (Knows(group)) sync->GradReady(group);
  }
};

void CheckSpec(const ModelSpec& s) {
  CAROUSEL_CHECK(s.vocab_size > 0 && s.embedding_dim > 0 && s.num_blocks > 0 && s.num_heads > 0);
  CAROUSEL_CHECK(s.qk_dim > 0 && s.v_dim > 0 && s.ffn_dim >= (s.family == Family::kLarge ? 1 : 0));
  CAROUSEL_CHECK_MSG(s.qk_dim % s.num_heads == 0 && s.v_dim % s.num_heads == 0,
                     "num_heads must divide qk_dim and v_dim");
  CAROUSEL_CHECK(s.chunk_length > 0 && s.loss_chunk_tokens > 0);
  for (size_t j = 0; j < s.slstm_at.size(); ++j) {
    CAROUSEL_CHECK(s.slstm_at[j] >= (j == 0 ? 0 : s.slstm_at[j - 1] + 1) && s.slstm_at[j] < s.num_blocks);
  }
  if (!s.slstm_at.empty()) {
    CAROUSEL_CHECK_MSG(s.slstm_num_heads > 0 && s.embedding_dim % s.slstm_num_heads == 0,
                       "slstm_num_heads must divide embedding_dim");
  }
}
}  // namespace

LanguageModel::LanguageModel(const ModelSpec& spec, ParamStore& params, bool decay_embedding)
    : spec_(spec), params_(params) {
  CheckSpec(spec);
  const int64_t V = spec.vocab_size, D = spec.embedding_dim;
  embedding_ = params.Register({.name = "embedding.weight",
                                .shape = {V, D},
                                .decay = decay_embedding,
                                .init = SmallInit(D),
                                .group = 0});
  for (int64_t l = 0; l < spec.num_blocks; ++l) {
    blocks_.push_back(std::make_unique<Block>(spec, params, "backbone.blocks." + std::to_string(l) + ".",
                                              static_cast<int>(l) + 1, l));
    block_names_.push_back("block " + std::to_string(l) + (spec.is_slstm(l) ? " sLSTM" : " mLSTM"));
  }
  const int head_group = static_cast<int>(spec.num_blocks) + 1;
  if (spec.add_out_norm) out_norm_.emplace(spec, params, "backbone.out_norm", head_group);
  head_weight_ = spec.tie_embeddings ? embedding_
                                     : params.Register({.name = "lm_head.weight",
                                                        .shape = {V, D},
                                                        .decay = true,
                                                        .init = SmallInit(D),
                                                        .group = head_group});
}

Block::Mode LanguageModel::mode() const {
  if (!train_) return Block::Mode::kInference;
  return spec_.recompute == Recompute::kRecompute ? Block::Mode::kRecompute : Block::Mode::kSave;
}

void LanguageModel::Bind(Arena& arena, const Ops& ops, int64_t B, int64_t T, bool train,
                         int64_t evaluation_T) {
  CAROUSEL_CHECK(B > 0 && T > 0);
  bound_ = {.B = B, .T = T, .evaluation_T = evaluation_T};
  const DType compute = params_.compute(), wide = params_.wide();
  const int64_t N = bound_.N(), D = spec_.embedding_dim, V = spec_.vocab_size;
  const int64_t chunk = std::min(spec_.loss_chunk_tokens, N);
  B_ = B;
  T_ = T;
  train_ = train;
  head_ = {};
  if (out_norm_) {
    head_.x = arena.Saved(wide, {N, D});
    head_.norm = out_norm_->Bind(arena, N);
  }
  head_.u = arena.Saved(compute, {N, D});

  // Scratch of the whole pass lies below the scratch of the blocks and of the head, which run in turn.
  const ScratchScope pass(arena);
  delta_ = arena.Scratch(compute, {N, D});
  dx_ = train ? arena.Scratch(wide, {N, D}) : Tensor();
  block_memory_.clear();
  for (const auto& block : blocks_) block_memory_.push_back(block->Bind(arena, ops, bound_, mode()));
  const ScratchScope head(arena);
  head_.logits = arena.Scratch(wide, {chunk, V});
  head_.loss = arena.Scratch(wide, {N});
  if (train) {
    head_.du = arena.Scratch(compute, {N, D});
    head_.dlogits = arena.Scratch(compute, {chunk, V});
  }
}

std::vector<LayerState> LanguageModel::BindStates(Arena& arena, int64_t B) const {
  std::vector<LayerState> states;
  for (const auto& block : blocks_) states.push_back(block->BindState(arena, B));
  return states;
}

LayerContext LanguageModel::MakeContext(Ops& ops, const Input& input) const {
  CAROUSEL_CHECK_MSG(B_ > 0, "use before Bind");
  const int64_t B = input.B > 0 ? input.B : B_, T = input.T > 0 ? input.T : T_;
  CAROUSEL_CHECK_LE(T, bound_.longest_T());
  CAROUSEL_CHECK_LE(B * T, bound_.N());
  CAROUSEL_CHECK_SHAPE(input.ids, {B * T});
  CAROUSEL_CHECK(!input.targets.defined() || input.rows.defined() || input.targets.HasShape({B * T}));
  CAROUSEL_CHECK(!input.resets.defined() || input.resets.HasShape({B * T}));
  return {.ops = ops,
          .params = params_,
          .B = B,
          .T = T,
          .resets = input.resets,
          .dropout_key = input.dropout_key};
}

void LanguageModel::ForwardTrunk(const LayerContext& ctx, ParamSync* param_sync, const Input& input,
                                 const std::vector<LayerState>* states) {
  const OptionalSync sync{param_sync, params_.num_groups()};
  const int64_t N = ctx.N();
  CAROUSEL_CHECK(states == nullptr || states->size() == blocks_.size());

  // The embedding is the input of the first block.
  sync.Prefetch(0);
  sync.Prefetch(1);
  sync.Acquire(0);
  Tensor x = block_memory_[0].saved.x1.Rows(0, N);
  ctx.ops.EmbeddingForward({.y = x, .weight = params_.Weight(embedding_), .ids = input.ids});
  if (spec_.embedding_dropout > 0 && ctx.dropout_key.has_value()) {
    ctx.ops.Dropout({.y = x, .x = x, .rate = spec_.embedding_dropout, .key = ctx.DropoutKey(0)});
  }
  sync.Release(0);

  const Tensor delta = delta_.Rows(0, N);
  for (size_t l = 0; l < blocks_.size(); ++l) {
    const int group = static_cast<int>(l) + 1;
    const OpsRange range(ctx.ops, block_names_[l].c_str());
    sync.Prefetch(group + 1);
    sync.Acquire(group);
    const LayerState state = states == nullptr ? LayerState() : (*states)[l];
    blocks_[l]->Forward(
        ctx, block_memory_[l],
        {.delta_out = delta, .x = x, .delta_in = l == 0 ? Tensor() : delta, .initial = state, .last = state});
    x = blocks_[l]->Stream(block_memory_[l]).Rows(0, N);
    sync.Release(group);
  }

  sync.Acquire(static_cast<int>(blocks_.size()) + 1);
  if (spec_.tie_embeddings) sync.Acquire(0);
  ForwardOutNorm(ctx);
}

void LanguageModel::ForwardOutNorm(const LayerContext& ctx) {
  const int64_t N = ctx.N();
  const Tensor x = blocks_.back()->Stream(block_memory_.back()).Rows(0, N), delta = delta_.Rows(0, N);
  const Tensor u = head_.u.Rows(0, N);
  if (!out_norm_) {
    ctx.ops.Add({.y = u, .a = x, .b = delta});
    return;
  }
  out_norm_->Forward(ctx, head_.norm, {.y = u, .sum = head_.x.Rows(0, N), .x = x, .delta = delta});
}

// dx_ = gradient of the stream after the last block, from head_.du.
void LanguageModel::BackwardOutNorm(const LayerContext& ctx) {
  const int64_t N = ctx.N();
  const Tensor dx = dx_.Rows(0, N), du = head_.du.Rows(0, N);
  if (!out_norm_) {
    ctx.ops.Cast({.y = dx, .x = du});
    return;
  }
  out_norm_->Backward(ctx, head_.norm, {.dx = dx, .dy = du, .x = head_.x.Rows(0, N)});
}

void LanguageModel::HeadLoss(const LayerContext& ctx, const Input& input, Tensor loss_sum, bool backward,
                             Tensor correct) {
  const OpsRange range(ctx.ops, "head and loss");
  const int64_t N = ctx.N();
  const Tensor all_u = head_.u.Rows(0, N);
  if (!input.rows.defined()) {
    HeadLossOf(ctx, all_u, input.targets, loss_sum, backward ? head_.du.Rows(0, N) : Tensor(), correct);
    return;
  }
  // The tokens with a target, taken together. delta_ and dx_ are free between the out norm's two passes.
  CAROUSEL_CHECK_MSG(train_, "bound for inference");
  const int64_t n = input.rows.of_targets.dim[0];
  CAROUSEL_CHECK(n < N && input.rows.to_targets.HasShape({N}));
  if (n > 0) {
    const Tensor wide = dx_.Rows(0, n), u = delta_.Rows(0, n);
    ctx.ops.EmbeddingForward({.y = wide, .weight = all_u, .ids = input.rows.of_targets});
    ctx.ops.Cast({.y = u, .x = wide});
    HeadLossOf(ctx, u, input.targets, loss_sum, backward ? u : Tensor(), correct);
  }
  if (!backward) return;
  // Each token takes its gradient from there, or that of token n, zero.
  ctx.ops.Fill({.y = delta_.Rows(n, 1), .value = 0});
  const Tensor dx = dx_.Rows(0, N);
  ctx.ops.EmbeddingForward({.y = dx, .weight = delta_.Rows(0, n + 1), .ids = input.rows.to_targets});
  ctx.ops.Cast({.y = head_.du.Rows(0, N), .x = dx});
}

void LanguageModel::HeadLossOf(const LayerContext& ctx, Tensor u, Tensor targets, Tensor loss_sum, Tensor du,
                               Tensor correct) {
  const int64_t N = u.dim[0], chunk = head_.logits.dim[0];
  const Tensor weight = params_.Weight(head_weight_);
  for (int64_t begin = 0; begin < N; begin += chunk) {
    const int64_t n = std::min(chunk, N - begin);
    const Tensor rows = u.Rows(begin, n), logits = head_.logits.Rows(0, n);
    const Tensor dlogits = du.defined() ? head_.dlogits.Rows(0, n) : Tensor();
    ctx.ops.Matmul({.c = logits, .a = rows, .b = weight, .transpose_b = true});
    ctx.ops.CrossEntropy({.loss = head_.loss.Rows(begin, n),
                          .dlogits = dlogits,
                          .logits = logits,
                          .targets = targets.Rows(begin, n),
                          .correct = correct.defined() ? correct.Rows(begin, n) : Tensor(),
                          .soft_cap = spec_.logit_soft_cap});
    if (!du.defined()) continue;
    // The weight's gradient first: du may take the place of u.
    ctx.ops.Matmul(
        {.c = params_.Grad(head_weight_), .a = dlogits, .b = rows, .transpose_a = true, .accumulate = true});
    ctx.ops.Matmul({.c = du.Rows(begin, n), .a = dlogits, .b = weight});
  }
  ctx.ops.SumExactly({.sum = loss_sum, .x = head_.loss.Rows(0, N)});
}

void LanguageModel::ForwardBackward(Ops& ops, ParamSync* param_sync, const Input& input, Tensor loss_sum) {
  CAROUSEL_CHECK_MSG(train_, "bound for inference");
  CAROUSEL_CHECK_MSG(input.targets.defined(), "a loss needs targets");
  const OptionalSync sync{param_sync, params_.num_groups()};
  const LayerContext ctx = MakeContext(ops, input);
  CAROUSEL_CHECK_LE(ctx.T, bound_.T);
  const int head_group = static_cast<int>(blocks_.size()) + 1;

  ForwardTrunk(ctx, param_sync, input, nullptr);
  sync.Prefetch(head_group - 1);
  sync.BeginGradients(head_group);
  if (spec_.tie_embeddings) sync.BeginGradients(0);
  HeadLoss(ctx, input, loss_sum, /*backward=*/true, /*correct=*/{});
  BackwardOutNorm(ctx);
  if (spec_.tie_embeddings) sync.Release(0);
  sync.Release(head_group);
  sync.GradReady(head_group);

  const Tensor dx = dx_.Rows(0, ctx.N());
  for (size_t l = blocks_.size(); l-- > 0;) {
    const int group = static_cast<int>(l) + 1;
    const OpsRange range(ops, (block_names_[l] + " backward").c_str());
    if (l > 0) sync.Prefetch(group - 1);
    sync.Acquire(group);
    sync.BeginGradients(group);
    blocks_[l]->Backward(ctx, block_memory_[l], mode(), dx);
    sync.Release(group);
    sync.GradReady(group);
  }
  if (spec_.embedding_dropout > 0 && ctx.dropout_key.has_value()) {
    ops.Dropout({.y = dx, .x = dx, .rate = spec_.embedding_dropout, .key = ctx.DropoutKey(0)});
  }
  if (!spec_.tie_embeddings) sync.BeginGradients(0);
  ops.EmbeddingBackward({.dweight = params_.Grad(embedding_), .dy = dx, .ids = input.ids});
  sync.GradReady(0);
}

void LanguageModel::ForwardLoss(Ops& ops, ParamSync* param_sync, const Input& input, Tensor loss_sum,
                                Tensor correct) {
  CAROUSEL_CHECK_MSG(input.targets.defined(), "a loss needs targets");
  const OptionalSync sync{param_sync, params_.num_groups()};
  const LayerContext ctx = MakeContext(ops, input);
  ForwardTrunk(ctx, param_sync, input, nullptr);
  HeadLoss(ctx, input, loss_sum, /*backward=*/false, correct);
  if (spec_.tie_embeddings) sync.Release(0);
  sync.Release(static_cast<int>(blocks_.size()) + 1);
}

void LanguageModel::Logits(const LayerContext& ctx, Tensor logits, Tensor u) const {
  ctx.ops.Matmul({.c = logits, .a = u, .b = params_.Weight(head_weight_), .transpose_b = true});
  if (spec_.logit_soft_cap > 0) {
    ctx.ops.SoftCapForward({.y = logits, .x = logits, .cap = spec_.logit_soft_cap});
  }
}

void LanguageModel::ForwardLogits(Ops& ops, const Input& input, Tensor logits) {
  const LayerContext ctx = MakeContext(ops, input);
  CAROUSEL_CHECK_SHAPE(logits, {ctx.N(), spec_.vocab_size});
  ForwardTrunk(ctx, nullptr, input, nullptr);
  Logits(ctx, logits, head_.u.Rows(0, ctx.N()));
}

void LanguageModel::ForwardStep(Ops& ops, const Input& input, const std::vector<LayerState>& states,
                                Tensor last_logits) {
  const LayerContext ctx = MakeContext(ops, input);
  CAROUSEL_CHECK_SHAPE(last_logits, {ctx.B, spec_.vocab_size});
  ForwardTrunk(ctx, nullptr, input, &states);
  // Row b*T + T-1 of every sequence b: a view with a stride of T rows.
  Tensor u = head_.u.Rows(ctx.T - 1, 1);
  u.dim[0] = ctx.B;
  u.row_stride = ctx.T * head_.u.row_stride;
  Logits(ctx, last_logits, u);
}
}  // namespace carousel
