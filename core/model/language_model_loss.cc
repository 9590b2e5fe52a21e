// The head of a language model: logits, loss and their gradients, chunk by chunk of tokens.
#include <algorithm>
#include <cmath>

#include "core/model/language_model.h"

namespace carousel {

void LanguageModel::HeadLoss(const LayerContext& ctx, const Input& input, Tensor loss_sum, bool backward,
                             Tensor correct) {
  CAROUSEL_CHECK_MSG(input.targets.defined(), "a loss needs targets");
  const OpsRange range(ctx.ops, "head and loss");
  const int64_t N = ctx.N();
  const Tensor all_u = head_.u.Rows(0, N);
  boundary_.GatherTokens(all_u, boundary_.MyRows(all_u));
  if (!input.rows.defined()) {
    HeadLossOf(ctx, all_u, input.targets, loss_sum, backward ? head_.du.Rows(0, N) : Tensor(), correct,
               input.gate_stats);
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
    HeadLossOf(ctx, u, input.targets, loss_sum, backward ? u : Tensor(), correct, input.gate_stats);
  } else if (backward && head_weight_ != embedding_ && !params_.AddsToGradient(head_weight_)) {
    ctx.ops.Fill({.y = params_.Grad(head_weight_), .value = 0});
  }
  if (!backward) return;
  // Each token takes its gradient from there, or that of token n, zero.
  ctx.ops.Fill({.y = delta_.Rows(n, 1), .value = 0});
  const Tensor dx = dx_.Rows(0, N);
  ctx.ops.EmbeddingForward({.y = dx, .weight = delta_.Rows(0, n + 1), .ids = input.rows.to_targets});
  ctx.ops.Cast({.y = head_.du.Rows(0, N), .x = dx});
}

void LanguageModel::HeadLossOf(const LayerContext& ctx, Tensor u, Tensor targets, Tensor loss_sum, Tensor du,
                               Tensor correct, Tensor gate_stats) {
  const int64_t N = u.dim[0], chunk = head_.logits.dim[0];
  const Tensor weight = params_.Weight(head_weight_);
  // A tied weight has the embedding's gradient, too.
  const bool writes = du.defined() && head_weight_ != embedding_ && !params_.AddsToGradient(head_weight_);
  for (int64_t begin = 0; begin < N; begin += chunk) {
    const int64_t n = std::min(chunk, N - begin);
    const Tensor rows = u.Rows(begin, n), logits = head_.logits.Rows(0, n);
    const Tensor dlogits = du.defined() ? head_.dlogits.Rows(0, n) : Tensor();
    ctx.ops.Matmul({.c = logits, .a = rows, .b = weight, .transpose_b = true});
    const CrossEntropyArgs loss = {.loss = head_.loss.Rows(begin, n),
                                   .dlogits = dlogits,
                                   .logits = logits,
                                   .targets = targets.Rows(begin, n),
                                   .correct = correct.defined() ? correct.Rows(begin, n) : Tensor(),
                                   .soft_cap = spec_.logit_soft_cap};
    ChunkLoss(ctx, loss);
    if (gate_stats.defined()) MeasureLogits(ctx, gate_stats.Rows(gate_stat_rows().of_head(), 2), loss);
    if (!du.defined()) continue;
    // The weight's gradient first: du may take the place of u.
    ctx.ops.Matmul({.c = params_.Grad(head_weight_),
                    .a = dlogits,
                    .b = rows,
                    .transpose_a = true,
                    .accumulate = !writes || begin > 0});
    ctx.ops.Matmul({.c = du.Rows(begin, n), .a = dlogits, .b = weight});
  }
  // Every rank of the tensor axis knows all losses: the first one counts them.
  if (axes_.tensor.index == 0) ctx.ops.SumExactly({.sum = loss_sum, .x = head_.loss.Rows(0, N)});
}

void LanguageModel::ChunkLoss(const LayerContext& ctx, const CrossEntropyArgs& a) const {
  if (!tensor_split()) {
    ctx.ops.CrossEntropy(a);
    return;
  }
  const int64_t n = a.logits.dim[0];
  const Tensor stats = head_.stats.Rows(0, axes_.tensor.size * n);
  const Tensor mine = boundary_.MyRows(stats);
  ctx.ops.CrossEntropyStats({.stats = mine,
                             .logits = a.logits,
                             .targets = a.targets,
                             .first_id = first_id(),
                             .soft_cap = a.soft_cap});
  boundary_.GatherTokens(stats, mine);
  ctx.ops.CrossEntropyFromStats({.loss = a.loss,
                                 .dlogits = a.dlogits,
                                 .correct = a.correct,
                                 .stats = stats,
                                 .num_parts = axes_.tensor.size,
                                 .logits = a.logits,
                                 .targets = a.targets,
                                 .first_id = first_id(),
                                 .soft_cap = a.soft_cap});
}

void LanguageModel::MeasureLogits(const LayerContext& ctx, Tensor gate_stats,
                                  const CrossEntropyArgs& a) const {
  const int64_t n = a.logits.dim[0], first = std::max<int64_t>(first_id(), 0);
  TensorStatsArgs logits = {.stats = gate_stats.Rows(0, 1).Reshape({kValueSumElems}),
                            .x = a.logits,
                            .ids = a.targets,
                            .first_id = 0,
                            .end_id = spec_.vocab_size};
  // Above x a cap c gives more than kNearCap c if tanh(x / c) > kNearCap.
  if (a.soft_cap > 0) logits.beyond = a.soft_cap * std::atanh(kNearCap);
  ctx.ops.TensorStats(logits);
  // log sum exp = loss + logit of the target, by the rank that has the target's logit.
  const Tensor all_stats = head_.stats.Rows(0, axes_.tensor.size * n);
  if (!tensor_split()) {
    ctx.ops.CrossEntropyStats({.stats = all_stats,
                               .logits = a.logits,
                               .targets = a.targets,
                               .first_id = 0,
                               .soft_cap = a.soft_cap});
  }
  ctx.ops.TensorStats({.stats = gate_stats.Rows(1, 1).Reshape({kValueSumElems}),
                       .x = a.loss.Reshape({n, 1}),
                       .add = boundary_.MyRows(all_stats).Columns(2, 1),
                       .ids = a.targets,
                       .first_id = first,
                       .end_id = first + a.logits.dim[1]});
}

// dx_ and dy_ = gradient of the stream after the last block, from head_.du.
void LanguageModel::BackwardOutNorm(const LayerContext& ctx) {
  const Tensor all_du = head_.du.Rows(0, ctx.N()), du = boundary_.MyRows(all_du);
  boundary_.SumTokens(du, all_du);
  const Tensor dx = dx_.Rows(0, ctx.stream_rows()), dy = dy_.Rows(0, ctx.stream_rows());
  if (!out_norm_) {
    ctx.ops.Cast({.y = dx, .x = du});
    if (rounds() && dy.data != du.data) ctx.ops.Cast({.y = dy, .x = du});
    return;
  }
  out_norm_->Backward(
      ctx, head_.norm,
      {.dx = dx, .dx_rounded = rounds() ? dy : Tensor(), .dy = du, .x = head_.x.Rows(0, ctx.stream_rows())});
}

void LanguageModel::Logits(const LayerContext& ctx, Tensor logits, Tensor u) const {
  ctx.ops.Matmul({.c = logits, .a = u, .b = params_.Weight(head_weight_), .transpose_b = true});
  if (spec_.logit_soft_cap > 0) {
    ctx.ops.SoftCapForward({.y = logits, .x = logits, .cap = spec_.logit_soft_cap});
  }
}
}  // namespace carousel
