// What a step sends, counted call by call while it is walked through, equals formulas in closed form for
// meshes of up to 4,096 ranks, and the calls that real ranks make are the ones that were counted.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "core/train/trainer.h"
#include "kernels/make_device.h"
#include "launcher/plan/plan.h"
#include "launcher/plan/step_walk.h"
#include "launcher/train/train_setup.h"
#include "parallel/counting_communicator.h"
#include "parallel/sharded_sync.h"
#include "tests/communication_formulas.h"
#include "tests/mesh_testing.h"

namespace carousel {
namespace {
using testing::Sent;
using testing::StepFormulas;
using testing::Traffic;

struct Case {
  MeshSizes sizes;
  int64_t micro_batches_per_rank = 1;
  bool slstm = false;
  bool bf16 = false;
  SequenceMode mode = SequenceMode::kState;
  int64_t num_blocks = 4;
  bool paper = false;
  bool recompute = false;
  bool unordered = false, bf16_wire = false;  // sums of gradients
};
std::string Name(const Case& c) {
  std::string name;
  for (const MeshAxis axis :
       {MeshAxis::kPipe, MeshAxis::kReplicate, MeshAxis::kShard, MeshAxis::kSequence, MeshAxis::kTensor}) {
    if (c.sizes.of(axis) > 1)
      name += std::string(NameOf(axis)) + "=" + std::to_string(c.sizes.of(axis)) + " ";
  }
  return name + "micros=" + std::to_string(c.micro_batches_per_rank) +
         " blocks=" + std::to_string(c.num_blocks) + (c.paper ? " paper" : "") + (c.slstm ? " sLSTM" : "") +
         (c.bf16 ? " bf16" : "") + (c.mode == SequenceMode::kHeads ? " heads" : "") +
         (c.recompute ? " recompute" : "") + (c.unordered ? " unordered" : "") +
         (c.bf16_wire ? " bf16 on the wire" : "");
}

RunSpec RunOf(const Case& c) {
  RunSpec run;
  run.model = {.family = c.paper ? Family::kPaper : Family::kLarge,
               .vocab_size = 128,
               .embedding_dim = 64,
               .num_blocks = c.num_blocks,
               .num_heads = 16,
               .qk_dim = c.paper ? 128 : 64,
               .v_dim = 128,
               .ffn_dim = 64,
               .chunk_length = 16,
               .recompute = c.recompute ? Recompute::kRecompute : Recompute::kSave,
               .loss_chunk_tokens = 24};
  if (c.slstm) {
    run.model.slstm_at = {1, 2};
    run.model.slstm_num_heads = 16;
  }
  run.sequence_length = 64;
  run.micro_batch = 2;
  run.global_batch = run.micro_batch * c.micro_batches_per_rank * c.sizes.replicate * c.sizes.shard;
  run.schedule = {.kind = ScheduleKind::kConstant, .peak_lr = 1e-3, .total_steps = 10};
  run.compute = c.bf16 ? DType::kBF16 : DType::kF32;
  run.parallel.sequence_mode = c.mode;
  run.parallel.ordered = !c.unordered;
  run.parallel.bf16_wire = c.bf16_wire;
  return run;
}

Traffic Counted(const StepWalk& walk) {
  Traffic traffic;
  for (const AxisTraffic& row : walk.traffic) {
    traffic[row.axis + ": " + row.op] = {.bytes = row.wire_bytes, .calls = row.num_calls};
  }
  return traffic;
}

void ExpectEqual(const Traffic& found, const Traffic& expected, const std::string& what) {
  for (const auto& [key, sent] : expected) {
    if (found.count(key) == 0) ADD_FAILURE() << what << ": nothing sent as " << key << ", not " << sent;
  }
  for (const auto& [key, sent] : found) {
    const auto at = expected.find(key);
    EXPECT_EQ(sent, at == expected.end() ? Sent{} : at->second) << what << ": " << key;
  }
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
      // Blocks of a stage that find their weights in place, or not, from one pass to the next.
      {.sizes = {.pipe = 2, .shard = 4}, .micro_batches_per_rank = 4, .num_blocks = 5},
      {.sizes = {.pipe = 3, .shard = 2}, .micro_batches_per_rank = 2, .slstm = true, .num_blocks = 9},
      {.sizes = {.pipe = 4, .replicate = 2, .shard = 16, .tensor = 2},
       .micro_batches_per_rank = 7,
       .bf16 = true,
       .num_blocks = 17},
      {.sizes = {.tensor = 4}, .micro_batches_per_rank = 2, .slstm = true, .paper = true},
      {.sizes = {.sequence = 4}, .bf16 = true, .paper = true},
      {.sizes = {.sequence = 4, .tensor = 4}, .slstm = true, .mode = SequenceMode::kHeads, .paper = true},
      {.sizes = {.pipe = 2, .replicate = 4, .sequence = 2, .tensor = 8},
       .micro_batches_per_rank = 3,
       .slstm = true,
       .bf16 = true,
       .paper = true},
      {.sizes = {.replicate = 3, .shard = 4, .tensor = 2}, .micro_batches_per_rank = 3, .unordered = true},
      {.sizes = {.replicate = 16, .shard = 8, .sequence = 2},
       .micro_batches_per_rank = 3,
       .bf16 = true,
       .unordered = true,
       .bf16_wire = true},
      {.sizes = {.tensor = 4}, .slstm = true, .recompute = true},
      {.sizes = {.sequence = 4, .tensor = 2}, .slstm = true, .recompute = true},
      {.sizes = {.shard = 2, .sequence = 4, .tensor = 4},
       .micro_batches_per_rank = 2,
       .slstm = true,
       .bf16 = true,
       .mode = SequenceMode::kHeads,
       .paper = true,
       .recompute = true},
  };
}

// The first, the last and a middle rank of every axis, on every stage.
std::vector<MeshPlace> PlacesOf(const MeshSizes& sizes) {
  std::vector<MeshPlace> places;
  for (int64_t stage = 0; stage < sizes.pipe; ++stage) {
    for (const int64_t half : {0, 1, 2}) {
      const auto at = [half](int64_t size) { return half * (size - 1) / 2; };
      places.push_back({.pipe = stage,
                        .replicate = at(sizes.replicate),
                        .shard = at(sizes.shard),
                        .sequence = at(sizes.sequence),
                        .tensor = at(sizes.tensor)});
    }
  }
  return places;
}
std::string Name(const MeshPlace& place) {
  return ", stage " + std::to_string(place.pipe) + " replicate " + std::to_string(place.replicate) +
         " shard " + std::to_string(place.shard) + " sequence " + std::to_string(place.sequence) +
         " tensor " + std::to_string(place.tensor);
}

TEST(CommunicationVolume, EqualsTheFormulasForMeshesUpTo4096Ranks) {
  std::string error;
  const auto device = MakeDevice("cpu", 1, &error);
  ASSERT_NE(device, nullptr) << error;
  ASSERT_GE(Cases().size(), 40u);
  for (const Case& c : Cases()) {
    ASSERT_LE(c.sizes.world(), 4096);
    const RunSpec run = RunOf(c);
    for (const MeshPlace& place : PlacesOf(c.sizes)) {
      const absl::StatusOr<StepWalk> walk = WalkStep(run, c.sizes, place, *device);
      ASSERT_TRUE(walk.ok()) << Name(c) << ": " << walk.status();
      const Traffic expected = StepFormulas(run, c.sizes, place).All();
      EXPECT_EQ(expected.at("world: AllReduceSum").calls, 1) << Name(c);
      ExpectEqual(Counted(*walk), expected, Name(c) + Name(place));
    }
  }
}

std::string WithCommas(int64_t value) {
  std::string digits = std::to_string(value);
  for (int64_t i = static_cast<int64_t>(digits.size()) - 3; i > 0; i -= 3)
    digits.insert(static_cast<size_t>(i), ",");
  return digits;
}

TEST(CommunicationVolume, ThePlanPrintsThem) {
  std::string error;
  const auto device = MakeDevice("cpu", 1, &error);
  ASSERT_NE(device, nullptr) << error;
  for (const Case& c : Cases()) {
    RunSpec run = RunOf(c);
    run.steps = 10;
    run.log_every_steps = 7;
    run.parallel.pipe = c.sizes.pipe;
    run.parallel.shard = c.sizes.shard;
    run.parallel.sequence = c.sizes.sequence;
    run.parallel.tensor = c.sizes.tensor;
    const absl::StatusOr<RunPlan> plan = MakePlan(run, c.sizes.world(), *device);
    ASSERT_TRUE(plan.ok()) << Name(c) << ": " << plan.status();
    const std::string text = FormatPlan(run, *plan);
    const MeshPlace place = {.pipe = static_cast<int64_t>(plan->slowest_stage)};
    int64_t total = 0, within_node = 0;
    for (const auto& [key, sent] : StepFormulas(run, c.sizes, place).All()) {
      const size_t at = text.find("  " + key + " ");
      ASSERT_NE(at, std::string::npos) << Name(c) << ": " << key << "\n" << text;
      const std::string line = text.substr(at, text.find('\n', at) - at);
      EXPECT_NE(line.find(" " + WithCommas(sent.bytes) + " "), std::string::npos) << line;
      EXPECT_NE(line.find(" in " + WithCommas(sent.calls) + " calls"), std::string::npos) << line;
      total += sent.bytes;
      if (SpanOf(c.sizes, key.substr(0, key.find(':'))) <= 8) within_node += sent.bytes;
    }
    const auto has_row = [&](const std::string& label, int64_t bytes) {
      const size_t at = text.find("  " + label + " ", text.find("sent per rank"));
      ASSERT_NE(at, std::string::npos) << label;
      const std::string line = text.substr(at, text.find('\n', at) - at);
      EXPECT_NE(line.find(" " + WithCommas(bytes) + " "), std::string::npos) << Name(c) << ": " << line;
    };
    has_row("total", total);
    has_row("axes within a node", within_node);
    has_row("axes across nodes", total - within_node);
    has_row("who is slow", (c.sizes.world() - 1) * 8);
    EXPECT_NE(text.find("in 1 call every 7 steps"), std::string::npos);
  }
}

// Any tokens, the same for all steps.
class Tokens final : public BatchSource {
 public:
  explicit Tokens(const RunSpec& run) : B_(run.micro_batch), T_(run.sequence_length) {}
  void Get(int64_t, int64_t micro, Batch* batch) override {
    *batch = {.B = B_, .T = T_, .inputs = {}, .targets = {}, .resets = {}, .lengths = {}};
    for (int64_t n = 0; n < B_ * T_; ++n) {
      batch->inputs.push_back(static_cast<int32_t>((n * 7 + micro) % 128));
      batch->targets.push_back(static_cast<int32_t>((n * 5 + micro) % 128));
    }
  }

 private:
  int64_t B_, T_;
};

// The calls of one step of a rank, taken from its communicators' flight recorders. An axis of all ranks may
// share the world's communicator: its calls are the world's then.
class RecordedStep {
 public:
  explicit RecordedStep(const Mesh& mesh) {
    const std::pair<const char*, const Axis*> axes[] = {
        {"world", &mesh.world},       {"replicas", &mesh.replicas}, {"shard", &mesh.shard},
        {"sequence", &mesh.sequence}, {"tensor", &mesh.tensor},     {"pipe", &mesh.pipe}};
    for (const auto& [name, axis] : axes) {
      if (axis->size == 1) continue;
      Communicator* const communicator = axis->communicator;
      const auto known = std::find_if(communicators_.begin(), communicators_.end(),
                                      [&](const auto& other) { return other.communicator == communicator; });
      name_of_[name] = known == communicators_.end() ? name : known->name;
      if (known == communicators_.end()) {
        communicators_.push_back(
            {.name = name, .communicator = communicator, .begin = communicator->recorder().num_calls()});
      }
    }
  }
  Traffic Calls() const {
    Traffic traffic;
    for (const Recorded& recorded : communicators_) {
      Communicator& c = *recorded.communicator;
      EXPECT_LE(c.recorder().num_calls() - recorded.begin, FlightRecorder::kNumKept);
      for (const FlightRecorder::Entry& entry : c.recorder().Entries()) {
        if (entry.sequence < recorded.begin) continue;
        Sent& sent = traffic[recorded.name + ": " + NameOf(entry.call.op)];
        sent.bytes += WireBytes(entry.call, c.rank(), c.size());
        ++sent.calls;
      }
    }
    return traffic;
  }
  // What the formulas say of axes, by the communicators that carry it.
  Traffic ByCommunicator(const Traffic& of_axes) const {
    Traffic traffic;
    for (const auto& [key, sent] : of_axes) {
      const size_t colon = key.find(':');
      Sent& sum = traffic[name_of_.at(key.substr(0, colon)) + key.substr(colon)];
      sum.bytes += sent.bytes;
      sum.calls += sent.calls;
    }
    return traffic;
  }

 private:
  struct Recorded {
    std::string name;
    Communicator* communicator;
    int64_t begin;  // number of its first call of the step
  };
  std::vector<Recorded> communicators_;
  std::map<std::string, std::string> name_of_;  // of the communicator of an axis
};

TEST(CommunicationVolume, RealRanksMakeTheCallsThatAreCounted) {
  const Case cases[] = {
      {.sizes = {.replicate = 2}, .micro_batches_per_rank = 3, .bf16 = true},
      {.sizes = {.shard = 3}, .micro_batches_per_rank = 2},
      {.sizes = {.replicate = 2, .shard = 2}, .micro_batches_per_rank = 3, .unordered = true},
      {.sizes = {.tensor = 2}, .slstm = true, .recompute = true},
      {.sizes = {.sequence = 2, .tensor = 2}, .slstm = true, .bf16 = true, .mode = SequenceMode::kHeads},
      {.sizes = {.sequence = 3, .tensor = 2}, .paper = true},
      {.sizes = {.pipe = 3, .shard = 2}, .micro_batches_per_rank = 4, .num_blocks = 7},
      {.sizes = {.pipe = 2, .replicate = 2, .sequence = 2}, .micro_batches_per_rank = 2, .slstm = true},
  };
  for (const Case& c : cases) {
    RunSpec run = RunOf(c);
    if (c.sizes.sequence == 3) run.sequence_length = 48;
    RunLocalMesh(c.sizes, [&](const Mesh& mesh) {
      std::string error;
      const auto device = MakeDevice("cpu", 1, &error);
      ASSERT_NE(device, nullptr) << error;
      ShardedSyncFactory sync(MakeSyncOptions(run));
      Trainer trainer(MakeTrainSpec(run), *device, mesh, sync);
      trainer.Initialize(1);
      Tokens tokens(run);
      trainer.Step(0, tokens);
      const RecordedStep recorded(mesh);
      EXPECT_FALSE(trainer.Step(1, tokens).skipped);
      const MeshPlace place = PlaceOf(c.sizes, mesh.world.index);
      ExpectEqual(recorded.Calls(), recorded.ByCommunicator(StepFormulas(run, c.sizes, place).All()),
                  Name(c) + Name(place) + ", real ranks");
    });
  }
}
}  // namespace
}  // namespace carousel
