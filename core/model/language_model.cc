#include "core/model/language_model.h"

#include <algorithm>
#include <string>

#include "core/base/int_math.h"
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

ModelPart WholeModel(const ModelSpec& spec) { return {.num_blocks = spec.num_blocks}; }

ModelPart PartOf(const ModelSpec& spec, const Axis& pipe) {
  CAROUSEL_CHECK_MSG(pipe.size <= spec.num_blocks, "every stage of the pipe axis needs a block");
  const int64_t each = spec.num_blocks / pipe.size, rest = spec.num_blocks % pipe.size;
  return {.first_block = pipe.index * each + std::min(pipe.index, rest),
          .num_blocks = each + (pipe.index < rest ? 1 : 0),
          .embeds = pipe.index == 0,
          .has_head = pipe.index + 1 == pipe.size};
}

LanguageModel::LanguageModel(const ModelSpec& spec, ParamStore& params, bool decay_embedding,
                             const ModelAxes& axes)
    : spec_(spec), params_(params), axes_(axes), boundary_(axes.tensor), part_(PartOf(spec, axes.pipe)) {
  CheckSpec(spec);
  CAROUSEL_CHECK_EQ(params.tensor_size(), axes.tensor.size);
  CAROUSEL_CHECK_EQ(params.tensor_index(), axes.tensor.index);
  CAROUSEL_CHECK_MSG(part_.whole() || !spec.tie_embeddings,
                     "tied embeddings need the first and the last block on one stage of the pipe axis");
  const int64_t V = spec.vocab_size, D = spec.embedding_dim;
  // Each rank of the tensor axis has the rows of some ids.
  const auto vocabulary = [&](const char* name, bool decay, int group, bool written) {
    return params.Register({.name = name,
                            .shape = {V, D},
                            .decay = decay,
                            .init = SmallInit(D),
                            .group = group,
                            .tensor = Sharded(0),
                            .tensor_activation = kByFeatures,
                            .written = written});
  };
  if (part_.embeds) embedding_ = vocabulary("embedding.weight", decay_embedding, 0, /*written=*/false);
  for (int64_t l = part_.first_block; l < part_.first_block + part_.num_blocks; ++l) {
    blocks_.push_back(std::make_unique<Block>(spec, params, "backbone.blocks." + std::to_string(l) + ".",
                                              static_cast<int>(l) + 1, l));
    block_names_.push_back("block " + std::to_string(l) + (spec.is_slstm(l) ? " sLSTM" : " mLSTM"));
  }
  if (!part_.has_head) return;
  if (spec.add_out_norm) out_norm_.emplace(spec, params, "backbone.out_norm", head_group());
  head_weight_ =
      spec.tie_embeddings ? embedding_ : vocabulary("lm_head.weight", true, head_group(), /*written=*/true);
}

Block::Mode LanguageModel::mode() const {
  if (!train_) return Block::Mode::kInference;
  return spec_.recompute == Recompute::kRecompute ? Block::Mode::kRecompute : Block::Mode::kSave;
}

void LanguageModel::Bind(Arena& arena, const Ops& ops, int64_t B, int64_t T, bool train, int64_t evaluation_T,
                         int64_t num_slots, bool gate_stats) {
  CAROUSEL_CHECK(B > 0 && T > 0 && num_slots > 0);
  CAROUSEL_CHECK_MSG(num_slots == 1 || !part_.has_head, "a part with the head has one slot");
  bound_ = {.B = B, .T = T, .evaluation_T = evaluation_T, .axes = axes_, .gate_stats = gate_stats};
  const DType compute = params_.compute(), wide = params_.wide();
  const int64_t N = bound_.N(), rows = bound_.stream_rows(), D = spec_.embedding_dim;
  train_ = train;
  head_ = {};
  if (part_.has_head) {
    if (out_norm_) {
      head_.x = arena.Saved(wide, {rows, D});
      head_.norm = out_norm_->Bind(arena, rows);
    }
    head_.u = arena.Saved(compute, {N, D});
  }

  // Scratch of the whole pass lies below the scratch of the embedding, the blocks and the head, which run in
  // turn.
  const ScratchScope pass(arena);
  delta_ = arena.Scratch(compute, {rows, D});
  dx_ = train ? arena.Scratch(wide, {rows, D}) : Tensor();
  dy_ = train && compute != wide ? arena.Scratch(compute, {rows, D}) : dx_;
  stream_out_ = part_.has_head ? Tensor() : arena.Scratch(wide, {rows, D});
  if (part_.embeds && tensor_split()) {
    const ScratchScope embedding(arena);
    embedded_ = arena.Scratch(wide, {N, D});
  }
  slots_.assign(static_cast<size_t>(num_slots), {});
  for (std::vector<Block::Memory>& slot : slots_) {
    for (const auto& block : blocks_) slot.push_back(block->Bind(arena, ops, bound_, mode()));
  }
  if (!part_.has_head) return;
  const ScratchScope head(arena);
  const int64_t chunk = std::min(spec_.loss_chunk_tokens, N), t = axes_.tensor.size;
  const int64_t V = DivExact(spec_.vocab_size, t);
  head_.logits = arena.Scratch(wide, {chunk, V});
  if (tensor_split() || gate_stats) head_.stats = arena.Scratch(wide, {t * chunk, 4});
  head_.loss = arena.Scratch(wide, {N});
  if (train) {
    head_.du = rounds() && !tensor_split() ? dy_ : arena.Scratch(compute, {N, D});
    head_.dlogits = arena.Scratch(compute, {chunk, V});
  }
}

std::vector<LayerState> LanguageModel::BindStates(Arena& arena, int64_t B) const {
  std::vector<LayerState> states;
  for (const auto& block : blocks_) states.push_back(block->BindState(arena, B));
  return states;
}

LayerContext LanguageModel::MakeContext(Ops& ops, const Input& input) const {
  CAROUSEL_CHECK_MSG(bound_.B > 0, "use before Bind");
  const int64_t B = input.B > 0 ? input.B : bound_.B, T = input.T > 0 ? input.T : bound_.T;
  CAROUSEL_CHECK_LE(T, bound_.longest_T());
  CAROUSEL_CHECK_LE(B * T, bound_.N());
  CAROUSEL_CHECK_MSG(B * T % axes_.tensor.size == 0, "the tensor axis must divide the tokens of a pass");
  CAROUSEL_CHECK_SHAPE(input.ids, {B * T});
  CAROUSEL_CHECK(!input.targets.defined() || input.rows.defined() || input.targets.HasShape({B * T}));
  CAROUSEL_CHECK(!input.rows.defined() || (axes_.tensor.size == 1 && axes_.sequence.size == 1));
  CAROUSEL_CHECK(!input.resets.defined() || input.resets.HasShape({B * T}));
  if (axes_.sequence.size > 1) {
    CAROUSEL_CHECK_EQ(input.all_resets.defined(), input.resets.defined());
    CAROUSEL_CHECK(!input.resets.defined() || input.all_resets.HasShape({B * T * axes_.sequence.size}));
  }
  return {.ops = ops,
          .params = params_,
          .axes = axes_,
          .B = B,
          .T = T,
          .resets = input.resets,
          .all_resets = input.all_resets,
          .dropout_key = input.dropout_key};
}

int64_t LanguageModel::first_id() const {
  return tensor_split() ? axes_.tensor.index * (spec_.vocab_size / axes_.tensor.size) : -1;
}

void LanguageModel::CheckWhole() const {
  CAROUSEL_CHECK_MSG(part_.whole() && !tensor_split() && axes_.sequence.size == 1,
                     "logits need the whole model and all tokens on one rank");
}

Tensor LanguageModel::StreamIn(const Input& input, int64_t slot) const {
  CAROUSEL_CHECK(!part_.embeds);
  const int64_t rows = input.B * input.T / axes_.tensor.size;
  return slots_.at(static_cast<size_t>(slot))[0].saved.x1.Rows(0, rows);
}
Tensor LanguageModel::StreamOut(const Input& input) const {
  CAROUSEL_CHECK(!part_.has_head);
  return stream_out_.Rows(0, input.B * input.T / axes_.tensor.size);
}
Tensor LanguageModel::StreamGradient(const Input& input) const {
  CAROUSEL_CHECK_MSG(train_, "bound for inference");
  return dx_.Rows(0, input.B * input.T / axes_.tensor.size);
}

template <class Embed, class RunBlock>
void LanguageModel::WalkForward(ParamSync* param_sync, const Embed& embed, const RunBlock& run_block) const {
  const OptionalSync sync{param_sync, params_.num_groups()};
  if (param_sync != nullptr) PrefetchForward(*param_sync);
  if (part_.embeds) {
    sync.Acquire(0);
    embed();
    sync.Release(0);
  }
  for (size_t l = 0; l < blocks_.size(); ++l) {
    const int group = first_group() + static_cast<int>(l);
    if (part_.has_head || l + 1 < blocks_.size()) sync.Prefetch(group + 1);
    sync.Acquire(group);
    run_block(l);
    sync.Release(group);
  }
  if (!part_.has_head) return;
  sync.Acquire(head_group());
  if (spec_.tie_embeddings) sync.Acquire(0);
}

// x = dropout(Emb[ids]), the stream's rows. On a tensor axis each rank has the ids of its rows of the matrix,
// and zeros for the others.
void LanguageModel::ForwardEmbedding(const LayerContext& ctx, const Input& input, Tensor x) const {
  const Tensor all = boundary_.AllRows(embedded_, x);
  ctx.ops.EmbeddingForward(
      {.y = all, .weight = params_.Weight(embedding_), .ids = input.ids, .first_id = first_id()});
  boundary_.SumTokens(x, all);
  if (spec_.embedding_dropout > 0 && ctx.dropout_key.has_value()) {
    ctx.ops.Dropout({.y = x,
                     .x = x,
                     .rate = spec_.embedding_dropout,
                     .key = ctx.DropoutKey(0),
                     .places = ctx.StreamPlaces()});
  }
}

void LanguageModel::BackwardEmbedding(const LayerContext& ctx, const Input& input) const {
  const Tensor dx = dx_.Rows(0, ctx.stream_rows());
  if (spec_.embedding_dropout > 0 && ctx.dropout_key.has_value()) {
    ctx.ops.Dropout({.y = dx,
                     .x = dx,
                     .rate = spec_.embedding_dropout,
                     .key = ctx.DropoutKey(0),
                     .places = ctx.StreamPlaces()});
  }
  const Tensor all = boundary_.AllRows(embedded_, dx);
  boundary_.GatherTokens(all, dx);
  ctx.ops.EmbeddingBackward(
      {.dweight = params_.Grad(embedding_), .dy = all, .ids = input.ids, .first_id = first_id()});
}

void LanguageModel::ForwardTrunk(const LayerContext& ctx, ParamSync* param_sync, const Input& input,
                                 int64_t slot, const std::vector<LayerState>* states) {
  CAROUSEL_CHECK(states == nullptr || states->size() == blocks_.size());
  const std::vector<Block::Memory>& memory = slots_.at(static_cast<size_t>(slot));
  const int64_t rows = ctx.stream_rows();
  // What comes in is the input of the first block.
  Tensor x = memory[0].saved.x1.Rows(0, rows);
  const Tensor delta = delta_.Rows(0, rows);
  WalkForward(
      param_sync, [&] { ForwardEmbedding(ctx, input, x); },
      [&](size_t l) {
        const OpsRange range(ctx.ops, block_names_[l].c_str());
        LayerContext block_ctx = ctx;
        if (input.gate_stats.defined()) {
          block_ctx.gate_stats = input.gate_stats.Rows(gate_stat_rows().of_block(static_cast<int64_t>(l)), 2);
        }
        const LayerState state = states == nullptr ? LayerState() : (*states)[l];
        blocks_[l]->Forward(block_ctx, memory[l],
                            {.delta_out = delta,
                             .x = x,
                             .delta_in = l == 0 ? Tensor() : delta,
                             .initial = state,
                             .last = state});
        x = blocks_[l]->Stream(memory[l]).Rows(0, rows);
      });
  if (part_.has_head) {
    ForwardOutNorm(ctx, x, delta);
  } else {
    // The sum that the next block's norm would take.
    ctx.ops.Add({.y = stream_out_.Rows(0, rows), .a = x, .b = delta});
  }
}

void LanguageModel::ForwardOutNorm(const LayerContext& ctx, Tensor x, Tensor delta) {
  const Tensor u = boundary_.MyRows(head_.u.Rows(0, ctx.N()));
  if (!out_norm_) {
    ctx.ops.Add({.y = u, .a = x, .b = delta});
    return;
  }
  out_norm_->Forward(ctx, head_.norm,
                     {.y = u, .sum = head_.x.Rows(0, ctx.stream_rows()), .x = x, .delta = delta});
}

void LanguageModel::ForwardBackward(Ops& ops, ParamSync* sync, const Input& input, Tensor loss_sum,
                                    int64_t slot) {
  Forward(ops, sync, input, slot);
  Backward(ops, sync, input, slot, loss_sum);
}

void LanguageModel::Forward(Ops& ops, ParamSync* sync, const Input& input, int64_t slot) {
  CAROUSEL_CHECK_MSG(train_, "bound for inference");
  const LayerContext ctx = MakeContext(ops, input);
  CAROUSEL_CHECK_LE(ctx.T, bound_.T);
  ForwardTrunk(ctx, sync, input, slot, nullptr);
}

void LanguageModel::Backward(Ops& ops, ParamSync* param_sync, const Input& input, int64_t slot,
                             Tensor loss_sum) {
  const OptionalSync sync{param_sync, params_.num_groups()};
  const LayerContext ctx = MakeContext(ops, input);
  const std::vector<Block::Memory>& memory = slots_.at(static_cast<size_t>(slot));

  sync.Prefetch(last_group());
  if (part_.has_head) {
    sync.BeginGradients(head_group());
    if (spec_.tie_embeddings) sync.BeginGradients(0);
    HeadLoss(ctx, input, loss_sum, /*backward=*/true, /*correct=*/{});
    BackwardOutNorm(ctx);
    if (spec_.tie_embeddings) sync.Release(0);
    sync.Release(head_group());
    sync.GradReady(head_group());
  }

  const Tensor dx = dx_.Rows(0, ctx.stream_rows()), dy = dy_.Rows(0, ctx.stream_rows());
  if (!part_.has_head && rounds()) ops.Cast({.y = dy, .x = dx});
  for (size_t l = blocks_.size(); l-- > 0;) {
    const int group = first_group() + static_cast<int>(l);
    const OpsRange range(ops, (block_names_[l] + " backward").c_str());
    if (l > 0) sync.Prefetch(group - 1);
    sync.Acquire(group);
    sync.BeginGradients(group);
    blocks_[l]->Backward(ctx, memory[l], mode(), {.dx = dx, .dy = dy, .round_out = l > 0});
    sync.Release(group);
    sync.GradReady(group);
  }
  if (!part_.embeds) return;
  if (!spec_.tie_embeddings) sync.BeginGradients(0);
  BackwardEmbedding(ctx, input);
  sync.GradReady(0);
}

void LanguageModel::PrefetchForward(ParamSync& sync) const {
  if (part_.embeds) sync.Prefetch(0);
  sync.Prefetch(first_group());
}

void LanguageModel::PrefetchBackward(ParamSync& sync) const { sync.Prefetch(last_group()); }

void LanguageModel::ForwardLoss(Ops& ops, ParamSync* param_sync, const Input& input, Tensor loss_sum,
                                Tensor correct) {
  const LayerContext ctx = MakeContext(ops, input);
  ForwardTrunk(ctx, param_sync, input, /*slot=*/0, nullptr);
  if (!part_.has_head) return;
  HeadLoss(ctx, input, loss_sum, /*backward=*/false, correct);
  ReleaseHead(param_sync);
}

void LanguageModel::ForwardNothing(ParamSync& sync) const {
  WalkForward(
      &sync, [] {}, [](size_t) {});
  if (part_.has_head) ReleaseHead(&sync);
}

void LanguageModel::ReleaseHead(ParamSync* param_sync) const {
  const OptionalSync sync{param_sync, params_.num_groups()};
  if (spec_.tie_embeddings) sync.Release(0);
  sync.Release(head_group());
}

void LanguageModel::ForwardLogits(Ops& ops, const Input& input, Tensor logits) {
  CheckWhole();
  const LayerContext ctx = MakeContext(ops, input);
  CAROUSEL_CHECK_SHAPE(logits, {ctx.N(), spec_.vocab_size});
  ForwardTrunk(ctx, nullptr, input, /*slot=*/0, nullptr);
  Logits(ctx, logits, head_.u.Rows(0, ctx.N()));
}

void LanguageModel::ForwardStep(Ops& ops, const Input& input, const std::vector<LayerState>& states,
                                Tensor last_logits) {
  CheckWhole();
  const LayerContext ctx = MakeContext(ops, input);
  CAROUSEL_CHECK_SHAPE(last_logits, {ctx.B, spec_.vocab_size});
  ForwardTrunk(ctx, nullptr, input, /*slot=*/0, &states);
  // Row b*T + T-1 of every sequence b: a view with a stride of T rows.
  Tensor u = head_.u.Rows(ctx.T - 1, 1);
  u.dim[0] = ctx.B;
  u.row_stride = ctx.T * head_.u.row_stride;
  Logits(ctx, last_logits, u);
}
}  // namespace carousel
