#include "core/model/block.h"

namespace carousel {

Block::Mixer Block::MakeMixer(const ModelSpec& spec, ParamStore& params, const std::string& prefix, int group,
                              int64_t block) {
  if (spec.is_slstm(block)) return SlstmLayer(spec, params, prefix + "slstm_layer.", group, block);
  if (spec.family == Family::kPaper) {
    return MlstmPaperLayer(spec, params, prefix + "mlstm_layer.", group, block);
  }
  return MlstmLayer(spec, params, prefix + "mlstm_layer.", group);
}

Block::Block(const ModelSpec& spec, ParamStore& params, const std::string& prefix, int group, int64_t block)
    : D_(spec.embedding_dim),
      compute_(params.compute()),
      norm_(spec, params, prefix + (spec.is_slstm(block) ? "norm_slstm" : "norm_mlstm"), group),
      mixer_(MakeMixer(spec, params, prefix, group, block)) {
  if (!spec.has_ffn(block)) return;
  norm_ffn_.emplace(spec, params, prefix + "norm_ffn", group);
  ffn_.emplace(spec, params, prefix + "ffn.", group, block);
}

Block::Memory Block::Bind(Arena& arena, const Ops& ops, const PassShape& shape, Mode mode) const {
  const DType wide = WideOf(compute_);
  const int64_t N = shape.stream_rows();
  const bool train = mode != Mode::kInference;
  Memory memory;
  Saved& s = memory.saved;
  if (mode == Mode::kInference) arena.BeginSharedSaved("blocks");
  s.x1 = arena.Saved(wide, {N, D_});
  if (mode == Mode::kRecompute) arena.BeginSharedSaved("recomputed blocks");
  // Blocks that share memory have x2 at the same place: the next one reads it while its norm writes x1, norm1
  // and u1.
  s.norm1 = norm_.Bind(arena, N);
  if (ffn_) {
    s.x2 = arena.Saved(wide, {N, D_});
    s.norm2 = norm_ffn_->Bind(arena, N);
  }
  if (saves_input()) s.u1 = arena.Saved(compute_, {N, D_});

  // The block's own scratch is in use while a layer runs: the layers' scratch lies above it.
  const ScratchScope scope(arena);
  if (ffn_ || !saves_input()) memory.scratch.u = arena.Scratch(compute_, {N, D_});
  memory.scratch.delta = arena.Scratch(compute_, {N, D_});
  std::visit([&](const auto& mixer) { memory.mixer = mixer.Bind(arena, ops, compute_, shape, train); },
             mixer_);
  if (ffn_) memory.ffn = ffn_->Bind(arena, shape.N(), train);
  if (mode != Mode::kSave) arena.EndSharedSaved();
  return memory;
}

LayerState Block::BindState(Arena& arena, int64_t B) const {
  return std::visit([&](const auto& mixer) { return mixer.BindState(arena, WideOf(compute_), B); }, mixer_);
}

void Block::MixerForward(const LayerContext& ctx, const Memory& memory, Tensor y, Tensor x,
                         const LayerState& initial, const LayerState& last) const {
  std::visit(
      [&]<class Layer>(const Layer& mixer) {
        mixer.Forward(ctx, std::get<typename Layer::Memory>(memory.mixer),
                      {.y = y, .x = x, .initial = initial, .last = last});
      },
      mixer_);
}

void Block::MixerBackward(const LayerContext& ctx, const Memory& memory, Tensor dx, Tensor dy) const {
  std::visit(
      [&]<class Layer>(const Layer& mixer) {
        typename Layer::BackwardArgs args = {.dx = dx, .dy = dy};
        if constexpr (requires { args.x; }) args.x = memory.saved.u1.Rows(0, ctx.stream_rows());
        mixer.Backward(ctx, std::get<typename Layer::Memory>(memory.mixer), args);
      },
      mixer_);
}

void Block::MixerWeightGradients(const LayerContext& ctx, const Memory& memory, Tensor x) const {
  std::visit(
      [&]<class Layer>(const Layer& mixer) {
        if constexpr (requires { &Layer::WeightGradients; }) {
          mixer.WeightGradients(ctx, std::get<typename Layer::Memory>(memory.mixer), x);
        }
      },
      mixer_);
}

void Block::Forward(const LayerContext& ctx, const Memory& memory, const ForwardArgs& a) const {
  const int64_t N = ctx.stream_rows();
  const Saved& s = memory.saved;
  const Tensor x1 = s.x1.Rows(0, N), delta = memory.scratch.delta.Rows(0, N);
  const Tensor u1 = (saves_input() ? s.u1 : memory.scratch.u).Rows(0, N);
  CAROUSEL_CHECK_MSG(a.delta_in.defined() || a.x.data == x1.data, "the stream must be in x1 already");

  // x1 = x + delta_in;  u1 = norm(x1)
  norm_.Forward(ctx, s.norm1,
                {.y = u1, .sum = a.delta_in.defined() ? x1 : Tensor(), .x = a.x, .delta = a.delta_in});
  if (!ffn_) {
    MixerForward(ctx, memory, a.delta_out, u1, a.initial, a.last);
    return;
  }
  MixerForward(ctx, memory, delta, u1, a.initial, a.last);

  // x2 = x1 + mixer;  u2 = norm(x2)
  const Tensor u2 = memory.scratch.u.Rows(0, N);
  norm_ffn_->Forward(ctx, s.norm2, {.y = u2, .sum = s.x2.Rows(0, N), .x = x1, .delta = delta});
  ffn_->Forward(ctx, memory.ffn, a.delta_out, u2);
}

void Block::Backward(const LayerContext& ctx, const Memory& memory, Mode mode, const BackwardArgs& a) const {
  CAROUSEL_CHECK_MSG(mode != Mode::kInference, "bound for inference");
  const int64_t N = ctx.stream_rows();
  const Saved& s = memory.saved;
  const Tensor x1 = s.x1.Rows(0, N);
  if (mode == Mode::kRecompute) Forward(ctx, memory, {.delta_out = {}, .x = x1});

  // The norms round the stream's gradient for the matmuls that come next.
  const Tensor dx = a.dx, rounded = a.dy.data == dx.data ? Tensor() : a.dy;
  const Tensor du = memory.scratch.delta.Rows(0, N), u = du;

  // output = x2 + ffn(u), u = norm(x2), which takes the place of its gradient
  if (ffn_) {
    ffn_->Backward(ctx, memory.ffn, {.dx = du, .dy = a.dy});
    norm_ffn_->Backward(
        ctx, s.norm2,
        {.dx = dx, .dx_rounded = rounded, .y = u, .dy = du, .dresidual = dx, .x = s.x2.Rows(0, N)});
    ffn_->WeightGradients(ctx, memory.ffn, u);
  }

  // x2 = x1 + mixer(u), u = norm(x1)
  MixerBackward(ctx, memory, du, a.dy);
  norm_.Backward(ctx, s.norm1,
                 {.dx = dx,
                  .dx_rounded = a.round_out ? rounded : Tensor(),
                  .y = saves_input() ? Tensor() : u,
                  .dy = du,
                  .dresidual = dx,
                  .x = x1});
  if (!saves_input()) MixerWeightGradients(ctx, memory, u);
}
}  // namespace carousel
