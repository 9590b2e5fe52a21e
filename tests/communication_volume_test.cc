// What a step sends, counted call by call while it is walked through, equals formulas in closed form for
// meshes of up to 4,096 ranks, and the calls that real ranks make are the ones that were counted.
#include <gtest/gtest.h>

#include <chrono>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "core/base/int_math.h"
#include "core/model/language_model.h"
#include "kernels/make_device.h"
#include "launcher/step_walk.h"
#include "parallel/ordered_reduce.h"
#include "tests/mesh_testing.h"

namespace carousel {
namespace {

// axis and operation -> bytes, calls
struct Sent {
  int64_t bytes = 0, calls = 0;
  bool operator==(const Sent&) const = default;
};
std::ostream& operator<<(std::ostream& out, const Sent& s) {
  return out << s.bytes << " bytes in " << s.calls << " calls";
}
using Traffic = std::map<std::string, Sent>;

struct Case {
  MeshSizes sizes;
  int64_t micro_batches_per_rank = 1;
  bool slstm = false;
  bool bf16 = false;
  SequenceMode mode = SequenceMode::kState;
};
std::string Name(const Case& c) {
  std::string name;
  for (const MeshAxis axis :
       {MeshAxis::kPipe, MeshAxis::kReplicate, MeshAxis::kShard, MeshAxis::kSequence, MeshAxis::kTensor}) {
    if (c.sizes.of(axis) > 1)
      name += std::string(NameOf(axis)) + "=" + std::to_string(c.sizes.of(axis)) + " ";
  }
  return name + "micros=" + std::to_string(c.micro_batches_per_rank) + (c.slstm ? " sLSTM" : "") +
         (c.bf16 ? " bf16" : "") + (c.mode == SequenceMode::kHeads ? " heads" : "");
}

constexpr int64_t kB = 2, kT = 64, kD = 64, kNH = 16, kDHQK = 4, kDHV = 8, kF = 64, kV = 128, kBlocks = 4,
                  kChunk = 32;

RunSpec RunOf(const Case& c) {
  RunSpec run;
  run.model = {.vocab_size = kV,
               .embedding_dim = kD,
               .num_blocks = kBlocks,
               .num_heads = kNH,
               .qk_dim = kNH * kDHQK,
               .v_dim = kNH * kDHV,
               .ffn_dim = kF,
               .chunk_length = 16,
               .loss_chunk_tokens = kChunk};
  if (c.slstm) {
    run.model.slstm_at = {1, 2};
    run.model.slstm_num_heads = 16;
  }
  run.sequence_length = kT;
  run.micro_batch = kB;
  run.global_batch = kB * c.micro_batches_per_rank * c.sizes.replicate * c.sizes.shard;
  run.compute = c.bf16 ? DType::kBF16 : DType::kF32;
  run.parallel.sequence_mode = c.mode;
  return run;
}

// The formulas. P ranks send (P-1)/P of what they gather, scatter or exchange; a sum over all is twice that.
Traffic Expected(const Case& c, int64_t stage) {
  const MeshSizes& s = c.sizes;
  const RunSpec run = RunOf(c);
  const int64_t t = s.tensor, S = s.sequence, F = s.shard, n = s.replicate * S, p = s.pipe;
  const int64_t m = c.micro_batches_per_rank;
  const int64_t e = c.bf16 ? 2 : 4, g = 4;  // compute, wide
  const int64_t N = kB * kT / S;            // rows inside layers
  const int64_t blocks = kBlocks / p, first = stage * blocks;
  const bool embeds = stage == 0, heads = stage == p - 1;
  int64_t num_mlstm = 0, num_slstm = 0;
  for (int64_t l = first; l < first + blocks; ++l) ++(run.model.is_slstm(l) ? num_slstm : num_mlstm);

  // The flat segments of this stage's groups, by their padding.
  ParamStore params(
      run.compute,
      {.num_shards = F * n, .shard_index = 0, .weight_shards = F, .tensor_size = t, .tensor_index = 0});
  ModelAxes axes;
  axes.pipe = {.size = p, .index = stage};
  axes.tensor = {.size = t};
  const LanguageModel model(run.model, params, false, axes);
  struct Padded {
    int64_t elems, weight_bytes;
    int group;
  };
  std::vector<Padded> segments;
  int64_t replicated = 0;  // elements of this rank's shard whose gradient is summed over the tensor axis
  for (int group = 0; group < params.num_groups(); ++group) {
    for (int k = 0; k < ParamStore::kNumSegments; ++k) {
      if (params.segment(group, k).size == 0) continue;
      segments.push_back({params.segment(group, k).padded_size, k == ParamStore::kMatrix ? e : g, group});
      for (const ParamStore::ShardPiece& piece : params.ShardPieces(group, k)) {
        if (params.param(piece.param).reduces_over(MeshAxis::kTensor)) replicated += piece.count;
      }
    }
  }

  Traffic traffic;
  const auto add = [&](const std::string& key, int64_t bytes, int64_t calls) {
    if (calls == 0) return;
    traffic[key].bytes += bytes;
    traffic[key].calls += calls;
  };
  const auto part = [](int64_t bytes, int64_t ranks) { return CeilDiv((ranks - 1) * bytes, ranks); };

  for (const Padded& segment : segments) {
    if (n > 1) {  // once per step: the nodes of the tree, and the updated weights
      const int64_t M = m * s.replicate * F, rounds = PlanOwner(M, s.replicate).num_rounds;
      add("replicas: AllToAll", rounds * part(segment.elems / F * g, n), rounds);
      add("replicas: AllGather", part(segment.elems / F * segment.weight_bytes, n), 1);
    }
    if (F > 1) {  // per micro-batch: weights forward and backward, gradients
      // What is still in its place is not gathered again: the embedding; the last block between its two
      // passes, the first two between a micro-batch and the next.
      int64_t gathers = 2 * m;
      if (segment.group == 0) gathers = 1;
      if (segment.group == kBlocks + 1) gathers = m;
      if (segment.group == kBlocks) gathers -= m;
      if (segment.group == 1 || segment.group == 2) gathers -= m - 1;
      add("shard: AllGather", gathers * part(segment.elems * segment.weight_bytes, F), gathers);
      add("shard: AllToAll", m * part(segment.elems * g, F), m);
    }
  }
  if (t > 1) {
    const int64_t rows = part(N * kD * e, t);  // one crossing
    // A layer between two crossings: forward in and out; backward dy in, x again, dx out.
    const int64_t layers = num_mlstm + blocks;  // mixers, and a feed-forward in each block
    add("tensor: AllGather", m * 3 * layers * rows, m * 3 * layers);
    add("tensor: ReduceScatterSum", m * 2 * layers * rows, m * 2 * layers);
    add("tensor: AllToAll", m * 4 * num_slstm * part(N / t * kD * e, t), m * 4 * num_slstm);
    if (embeds) {
      add("tensor: ReduceScatterSum", m * part(N * kD * g, t), m);
      add("tensor: AllGather", m * part(N * kD * g, t), m);
    }
    if (heads) {
      add("tensor: AllGather", m * rows, m);
      add("tensor: AllGather", m * (N / kChunk) * part(t * kChunk * 4 * g, t), m * (N / kChunk));
      add("tensor: ReduceScatterSum", m * rows, m);
    }
    if (replicated > 0) add("tensor: AllReduceSum", CeilDiv(2 * (t - 1) * replicated * g, t), 1);
  }
  if (S > 1) {
    const int64_t NH = kNH / t;
    if (c.mode == SequenceMode::kState) {
      const int64_t state = kB * NH * (kDHQK * kDHV + kDHQK), summary = state + 2 * kB * NH;
      add("sequence: AllGather", m * num_mlstm * (S - 1) * (state + summary) * g, m * num_mlstm * 2);
    } else {
      const int64_t tokens = N * NH * (2 * kDHQK + 2 * kDHV) * e + N * 2 * NH * g;  // q, k, v, h and gates
      // q, k, v, i, f, h each by itself.
      add("sequence: AllToAll", m * num_mlstm * 2 * tokens / S * (S - 1), m * num_mlstm * 2 * 6);
    }
    add("sequence: AllToAll", m * 4 * num_slstm * part(N * kD / t * e, S), m * 4 * num_slstm);
  }
  if (p > 1) {
    const int64_t message = N / t * kD * g;
    add("pipe", m * message * ((heads ? 0 : 1) + (embeds ? 0 : 1)), 1);
  }
  return traffic;
}

// What the walk counted, in the same terms: the pipe's messages together, whatever they are combined to, and
// without the one reduction of scalars, whose size is checked for itself.
Traffic Counted(const StepWalk& walk) {
  Traffic traffic;
  for (const AxisTraffic& row : walk.traffic) {
    if (row.axis == "world") continue;
    const std::string key = row.axis == "pipe" ? "pipe" : row.axis + ": " + row.op;
    traffic[key].bytes += row.wire_bytes;
    traffic[key].calls += row.num_calls;
    if (row.axis == "pipe") traffic[key].calls = 1;
  }
  return traffic;
}

std::vector<Case> Cases() {
  return {
      {.sizes = {.replicate = 2}},
      {.sizes = {.replicate = 8}, .micro_batches_per_rank = 4},
      {.sizes = {.replicate = 3}, .micro_batches_per_rank = 3},
      {.sizes = {.replicate = 512}},
      {.sizes = {.replicate = 4096}, .bf16 = true},
      {.sizes = {.shard = 2}},
      {.sizes = {.shard = 8}, .micro_batches_per_rank = 3, .bf16 = true},
      {.sizes = {.shard = 4096}},
      {.sizes = {.replicate = 4, .shard = 2}, .micro_batches_per_rank = 2},
      {.sizes = {.replicate = 512, .shard = 8}, .micro_batches_per_rank = 2, .bf16 = true},
      {.sizes = {.tensor = 2}},
      {.sizes = {.tensor = 4}, .micro_batches_per_rank = 2, .slstm = true},
      {.sizes = {.tensor = 16}, .slstm = true, .bf16 = true},
      {.sizes = {.sequence = 2}},
      {.sizes = {.sequence = 4}, .micro_batches_per_rank = 2, .slstm = true},
      {.sizes = {.sequence = 16}, .bf16 = true},
      {.sizes = {.sequence = 2}, .mode = SequenceMode::kHeads},
      {.sizes = {.sequence = 8}, .slstm = true, .bf16 = true, .mode = SequenceMode::kHeads},
      {.sizes = {.pipe = 2}, .micro_batches_per_rank = 4},
      {.sizes = {.pipe = 4}, .micro_batches_per_rank = 8, .slstm = true},
      {.sizes = {.replicate = 2, .tensor = 2}, .slstm = true},
      {.sizes = {.shard = 2, .tensor = 2}, .micro_batches_per_rank = 2},
      {.sizes = {.replicate = 2, .sequence = 2}, .micro_batches_per_rank = 2},
      {.sizes = {.shard = 4, .sequence = 2}},
      {.sizes = {.sequence = 2, .tensor = 4}, .slstm = true},
      {.sizes = {.sequence = 4, .tensor = 2}, .bf16 = true, .mode = SequenceMode::kHeads},
      {.sizes = {.pipe = 2, .replicate = 2}, .micro_batches_per_rank = 2},
      {.sizes = {.pipe = 2, .shard = 2}, .micro_batches_per_rank = 3},
      {.sizes = {.pipe = 4, .tensor = 4}, .micro_batches_per_rank = 4, .slstm = true},
      {.sizes = {.pipe = 2, .sequence = 4}, .micro_batches_per_rank = 4, .bf16 = true},
      {.sizes = {.pipe = 2, .replicate = 2, .shard = 2, .sequence = 2, .tensor = 2},
       .micro_batches_per_rank = 2},
      {.sizes = {.pipe = 4, .replicate = 8, .shard = 8, .sequence = 4, .tensor = 4},
       .micro_batches_per_rank = 4,
       .bf16 = true},
      {.sizes = {.replicate = 128, .shard = 8, .sequence = 1, .tensor = 4}, .slstm = true, .bf16 = true},
  };
}

TEST(CommunicationVolume, EqualsTheFormulasForMeshesUpTo4096Ranks) {
  std::string error;
  const auto device = MakeDevice("cpu", 1, &error);
  ASSERT_NE(device, nullptr) << error;
  ASSERT_GE(Cases().size(), 30u);
  for (const Case& c : Cases()) {
    ASSERT_LE(c.sizes.world(), 4096);
    for (int64_t stage = 0; stage < c.sizes.pipe; ++stage) {
      const absl::StatusOr<StepWalk> walk = WalkStep(RunOf(c), c.sizes, {.pipe = stage}, *device);
      ASSERT_TRUE(walk.ok()) << Name(c) << ": " << walk.status();
      const Traffic expected = Expected(c, stage), counted = Counted(*walk);
      for (const auto& [key, sent] : expected) {
        EXPECT_TRUE(counted.count(key)) << Name(c) << ", stage " << stage << ": nothing sent as " << key;
      }
      for (const auto& [key, sent] : counted) {
        const auto found = expected.find(key);
        ASSERT_NE(found, expected.end()) << Name(c) << ", stage " << stage << ": " << key << " " << sent;
        if (key == "shard: AllGather" && c.sizes.pipe > 1) {
          // The few blocks of a stage find more of their weights in place, as its passes go.
          EXPECT_LE(sent.bytes, found->second.bytes) << Name(c) << ", stage " << stage;
          continue;
        }
        EXPECT_EQ(sent, found->second) << Name(c) << ", stage " << stage << ": " << key;
      }
      EXPECT_EQ(walk->AxisCalls("world"), c.sizes.world() > 1 ? 1 : 0) << Name(c);
    }
  }
}
}  // namespace
}  // namespace carousel
