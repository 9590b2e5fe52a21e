// What one rank of any mesh sends in one training step, in closed form: bytes and calls by axis and
// operation. Nothing here is counted or walked through.
//
// P ranks send (P-1)/P of what they gather, scatter or exchange; a sum over all is twice that.
#pragma once
#include <algorithm>
#include <cstdint>
#include <map>
#include <ostream>
#include <string>
#include <vector>

#include "configs/run_spec.h"
#include "core/base/exact_sum.h"
#include "core/base/int_math.h"
#include "core/model/language_model.h"
#include "core/train/trainer.h"
#include "parallel/mesh_builder.h"
#include "parallel/ordered_reduce.h"
#include "tests/weight_gather_counts.h"

namespace carousel::testing {

struct Sent {
  int64_t bytes = 0, calls = 0;
  bool operator==(const Sent&) const = default;
};
inline std::ostream& operator<<(std::ostream& out, const Sent& s) {
  return out << s.bytes << " bytes in " << s.calls << " calls";
}
using Traffic = std::map<std::string, Sent>;  // "tensor: AllGather" -> ...

class StepFormulas {
 public:
  // REQUIRES: the mesh has no violations; whole segments fit the staging memory; nothing is contributed to
  // the sum of scalars.
  StepFormulas(const RunSpec& run, const MeshSizes& sizes, const MeshPlace& place)
      : run_(run),
        model_(run.model),
        s_(sizes),
        at_(place),
        m_(run.micro_batches_per_step() / (sizes.replicate * sizes.shard)),
        e_(SizeOf(run.compute)),
        g_(SizeOf(WideOf(run.compute))),
        N_(run.micro_batch * run.sequence_length / sizes.sequence) {
    const int64_t each = model_.num_blocks / s_.pipe, rest = model_.num_blocks % s_.pipe;
    first_block_ = at_.pipe * each + std::min(at_.pipe, rest);
    num_blocks_ = each + (at_.pipe < rest ? 1 : 0);
    for (int64_t l = first_block_; l < first_block_ + num_blocks_; ++l) {
      ++(model_.is_slstm(l) ? num_slstm_ : num_mlstm_);
      num_ffn_ += model_.has_ffn(l);
    }
  }

  Traffic All() {
    traffic_.clear();
    Parameters();
    if (s_.tensor > 1) TensorAxis();
    if (s_.sequence > 1) SequenceAxis();
    if (s_.pipe > 1) PipeAxis();
    // Loss and norm, exactly, and the number of targets.
    if (s_.world() > 1) Sum("world", (2 * kExactSumElems + 1) * 8, s_.world(), 1);
    return traffic_;
  }

 private:
  void Add(const std::string& key, int64_t bytes, int64_t calls) {
    if (calls == 0) return;
    traffic_[key].bytes += bytes;
    traffic_[key].calls += calls;
  }
  // `calls` calls over tensors of `bytes` on P ranks.
  void Part(const std::string& key, int64_t bytes, int64_t P, int64_t calls) {
    Add(key, calls * CeilDiv((P - 1) * bytes, P), calls);
  }
  void Sum(const std::string& axis, int64_t bytes, int64_t P, int64_t calls) {
    Add(axis + ": AllReduceSum", calls * CeilDiv(2 * (P - 1) * bytes, P), calls);
  }
  bool embeds() const { return at_.pipe == 0; }
  bool has_head() const { return at_.pipe == s_.pipe - 1; }
  bool recomputes() const { return model_.recompute == Recompute::kRecompute; }

  // Weights and gradients. The flat segments of this stage's groups are taken from a store, by their padding.
  void Parameters() {
    const int64_t n = s_.replicate * s_.sequence, F = s_.shard, t = s_.tensor;
    ParamStore params(run_.compute,
                      {.num_shards = F * n,
                       .shard_index = at_.shard * n + at_.replicate * s_.sequence + at_.sequence,
                       .weight_shards = F,
                       .tensor_size = t,
                       .tensor_index = at_.tensor});
    ModelAxes axes;
    axes.pipe = {.size = s_.pipe, .index = at_.pipe};
    axes.tensor = {.size = t, .index = at_.tensor};
    const LanguageModel model(model_, params, false, axes);
    // A sum in the order of a tree, or of other numbers than are sent, is an exchange that the owner adds up.
    const bool ordered = run_.parallel.ordered, bf16_wire = run_.parallel.bf16_wire;
    const std::string sum = ordered || bf16_wire ? "AllToAll" : "ReduceScatterSum";
    int64_t replicated = 0;  // elements of this rank's shard whose gradient is summed over the tensor axis
    for (int group = 0; group < params.num_groups(); ++group) {
      for (int k = 0; k < ParamStore::kNumSegments; ++k) {
        const ParamStore::Segment& segment = params.segment(group, k);
        if (segment.size == 0) continue;
        const int64_t gradients = segment.padded_size * (bf16_wire ? 2 : g_);
        const int64_t weights = segment.padded_size * (k == ParamStore::kMatrix ? e_ : g_);
        if (n > 1) {  // once per step: the nodes of the tree, and the updated weights
          const int64_t M = run_.micro_batches_per_step();
          Part("replicas: " + sum, gradients / F, n, ordered ? PlanOwner(M, s_.replicate).num_rounds : 1);
          Part("replicas: AllGather", weights / F, n, 1);
        }
        if (F > 1) {  // per micro-batch
          Part("shard: AllGather", weights, F, NumGathers(group));
          Part("shard: " + sum, gradients, F, m_);
        }
        for (const ParamStore::ShardPiece& piece : params.ShardPieces(group, k)) {
          if (params.param(piece.param).reduces_over(MeshAxis::kTensor)) replicated += piece.count;
        }
      }
    }
    if (t > 1) Sum("tensor", replicated * g_, t, replicated > 0 ? 1 : 0);
  }
  int64_t NumGathers(int group) const {
    if (group == 0) return 1;
    return GathersOfGroup(group - first_block_, num_blocks_ + (has_head() ? 1 : 0), /*distance=*/1, s_.pipe,
                          at_.pipe, m_);
  }

  // Activations at the borders of layers, all per micro-batch.
  void TensorAxis() {
    const int64_t t = s_.tensor, D = model_.embedding_dim, rows = N_ * D * e_, again = recomputes() ? 1 : 0;
    const auto gather = [&](int64_t bytes, int64_t calls) { Part("tensor: AllGather", bytes, t, calls); };
    const auto scatter = [&](int64_t bytes, int64_t calls) {
      Part("tensor: ReduceScatterSum", bytes, t, calls);
    };
    // A layer forward: x in, y out; backward: dy in, x again, dx out. A recomputed block needs no result, but
    // its feed-forward reads the mixer's.
    const int64_t outputs_again = model_.family == Family::kLarge ? again * num_mlstm_ : 0;
    gather(rows, m_ * (3 + again) * (num_mlstm_ + num_ffn_));
    scatter(rows, m_ * (2 * (num_mlstm_ + num_ffn_) + outputs_again));
    // An sLSTM cell: to heads and back, twice; recomputed there, and back for a feed-forward.
    const int64_t back_again = num_ffn_ > 0 ? 1 : 0;
    Part("tensor: AllToAll", rows / t, t, m_ * num_slstm_ * (4 + again * (1 + back_again)));
    if (model_.family == Family::kPaper) {  // gates that read all heads
      const int64_t gates = N_ * 2 * model_.num_heads * g_;
      Sum("tensor", gates, t, m_ * num_mlstm_ * (1 + again));
      gather(gates, m_ * num_mlstm_);
    }
    if (embeds()) {
      scatter(N_ * D * g_, m_);
      gather(N_ * D * g_, m_);
    }
    if (has_head()) {
      gather(rows, m_);
      scatter(rows, m_);
      const int64_t chunk = std::min(model_.loss_chunk_tokens, N_);
      gather(t * chunk * 4 * g_, m_ * (N_ / chunk));
      if (N_ % chunk > 0) gather(t * (N_ % chunk) * 4 * g_, m_);
    }
  }

  void SequenceAxis() {
    const int64_t S = s_.sequence, NH = model_.num_heads / s_.tensor, again = recomputes() ? 1 : 0;
    const int64_t qk = model_.head_dim_qk(), v = model_.head_dim_v(), B = run_.micro_batch;
    const int64_t layers = m_ * num_mlstm_;
    if (run_.parallel.sequence_mode == SequenceMode::kState) {
      const int64_t state = B * NH * (qk * v + qk), summary = state + 2 * B * NH;
      Part("sequence: AllGather", S * summary * g_, S, layers * (1 + again));
      Part("sequence: AllGather", S * state * g_, S, layers);
    } else {
      // Gates, q, k and v in; h out; the same back for the gradients.
      const int64_t in = RoundUp(N_ * NH / S * (2 * g_ + (2 * qk + v) * e_), g_), out = N_ * NH / S * v * e_;
      for (const int64_t block : {in, out}) Part("sequence: AllToAll", S * block, S, layers * (2 + again));
    }
    const int64_t back_again = num_ffn_ > 0 ? 1 : 0;
    Part("sequence: AllToAll", N_ * model_.embedding_dim / s_.tensor * e_, S,
         m_ * num_slstm_ * (4 + again * (1 + back_again)));
    if (model_.family == Family::kPaper && model_.conv_kernel > 1) {
      const int64_t halo = B * (model_.conv_kernel - 1) * model_.v_dim / s_.tensor * g_;
      const bool first = at_.sequence == 0, last = at_.sequence == S - 1;
      const auto pass = [&](bool sends, bool receives, int64_t calls) {
        const char* op = sends && receives ? "SendRecv" : sends ? "Send" : "Recv";
        Add(std::string("sequence: ") + op, sends ? calls * halo : 0, calls);
      };
      pass(!last, !first, layers * (1 + again));
      pass(!first, !last, layers);
    }
  }

  // The stream forward, its gradient back; what follows each other with one neighbour is one call.
  void PipeAxis() {
    const int64_t message = N_ / s_.tensor * model_.embedding_dim * g_;
    const int64_t ahead = std::min(s_.pipe - at_.pipe - 1, m_), both = m_ - ahead;
    const auto add = [&](int64_t sends, int64_t exchanges, int64_t receives) {
      Add("pipe: Send", sends * message, sends);
      Add("pipe: SendRecv", exchanges * message, exchanges);
      Add("pipe: Recv", 0, receives);
    };
    if (!has_head()) add(ahead, both, ahead);  // with the next stage
    if (embeds()) return;
    if (both > 0) {
      add(ahead + 1, both - 1, ahead + 1);
    } else {
      add(ahead, 0, ahead);
    }
  }

  const RunSpec& run_;
  const ModelSpec& model_;
  const MeshSizes s_;
  const MeshPlace at_;
  const int64_t m_;      // micro-batches of a rank
  const int64_t e_, g_;  // bytes of a compute and of a wide element
  const int64_t N_;      // rows inside layers
  int64_t first_block_ = 0, num_blocks_ = 0, num_mlstm_ = 0, num_slstm_ = 0, num_ffn_ = 0;
  Traffic traffic_;
};
}  // namespace carousel::testing
