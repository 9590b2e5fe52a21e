// Checkpoints of ranks that have parts of parameters: split by rows, by columns and by columns of several
// parts, sharded once more by the optimizer, spread over stages, and copies that several ranks hold. What one
// mesh wrote, every other mesh reads.
#include <gtest/gtest.h>

#include <cstring>
#include <set>

#include "checkpoints/checkpoint_tensors.h"
#include "checkpoints/weight_source.h"
#include "core/device_memory.h"
#include "core/model/param_store.h"
#include "parallel/local_communicator.h"
#include "tests/checkpoint_testing.h"
#include "tests/memory_file_system.h"
#include "tests/model_testing.h"

namespace carousel {
namespace {

constexpr char kStep[] = "run/checkpoints/step-000000005";

struct Layout {
  int64_t pipe = 1, shards = 1, tensor = 1;
  int world() const { return static_cast<int>(pipe * shards * tensor); }
  std::string name() const { return absl::StrCat("pipe ", pipe, " shards ", shards, " tensor ", tensor); }
};
const std::vector<Layout>& Layouts() {
  static const auto& layouts = *new std::vector<Layout>{{},
                                                        {.shards = 3},
                                                        {.tensor = 2},
                                                        {.shards = 2, .tensor = 2},
                                                        {.tensor = 4},
                                                        {.pipe = 2, .shards = 2, .tensor = 2},
                                                        {.pipe = 3, .tensor = 4},
                                                        {.shards = 5, .tensor = 4}};
  return layouts;
}

// One rank's state, as a trainer would have it. What is no parameter's (padding) has bytes of 0xab.
class MeshState {
 public:
  // Random bits of `seed`; 0: 0xab everywhere.
  MeshState(const Layout& layout, int rank, uint64_t seed)
      : stage_(rank / (layout.shards * layout.tensor)),
        num_stages_(layout.pipe),
        store_(DType::kF32, {.num_shards = layout.shards,
                             .shard_index = rank / layout.tensor % layout.shards,
                             .tensor_size = layout.tensor,
                             .tensor_index = rank % layout.tensor}) {
    Register("embedding.weight", {96, 40}, 0, Sharded(0));
    for (int block = 1; block <= 2; ++block) {
      const auto add = [&](const char* name, std::vector<int64_t> shape, Placement placement) {
        Register(absl::StrCat("blocks.", block, ".", name), std::move(shape), block, placement);
      };
      add("qkv.weight", {72, 40}, Sharded(0, 3));
      add("up.weight", {41, 96}, Sharded(1, 3));
      add("mix.weight", {7, 40}, Replicated());
      add("down.weight", {43, 64}, Sharded(1));
      add("conv.weight", {36, 5}, Sharded(0, 3));
      add("column.weight", {24, 1}, Sharded(0));
      add("norm.weight", {40}, Replicated());
      add("qkv.bias", {72}, Sharded(0, 3));
      add("gate.bias", {1100}, Sharded(0));
    }
    Register("out_norm.weight", {40}, 3, Replicated());
    Register("head.weight", {96, 40}, 3, Sharded(0));
    memory_ = std::make_unique<DeviceMemory>(*device_, [&](Arena& arena) { store_.Bind(arena, true); });
    for (int g = 0; g < store_.num_groups(); ++g) {
      for (int s = 0; s < ParamStore::kNumSegments; ++s) {
        const ParamStore::Segment& segment = store_.segment(g, s);
        if (segment.size == 0) continue;
        const std::pair<StateKind, Tensor> kinds[] = {{StateKind::kWeight, segment.master},
                                                      {StateKind::kAdamM, segment.m},
                                                      {StateKind::kAdamV, segment.v}};
        for (const auto& [kind, shard] : kinds) {
          std::memset(shard.data, 0xab, static_cast<size_t>(shard.num_bytes()));
          AppendSlices(store_, g, s, kind, shard, &slices_);
          shards_.push_back(shard);
        }
      }
    }
    for (const StateSlice& slice : slices_) {
      if (seed != 0) FillRandomBits(slice, seed);
    }
  }

  std::vector<StateSlice>& slices() { return slices_; }
  // All bits, those of the padding too.
  bool operator==(const MeshState& other) const {
    for (size_t i = 0; i < shards_.size(); ++i) {
      if (std::memcmp(shards_[i].data, other.shards_[i].data, static_cast<size_t>(shards_[i].num_bytes())) !=
          0) {
        return false;
      }
    }
    return true;
  }

 private:
  // Groups go to the stages in turn.
  void Register(std::string name, std::vector<int64_t> shape, int group, Placement placement) {
    if (group * num_stages_ / 4 != stage_) return;
    store_.Register(
        {.name = std::move(name), .shape = std::move(shape), .group = group, .tensor = placement});
  }

  const int64_t stage_, num_stages_;
  std::unique_ptr<Device> device_ = testing::CpuDevice(1);
  ParamStore store_;
  std::unique_ptr<DeviceMemory> memory_;
  std::vector<Tensor> shards_;
  std::vector<StateSlice> slices_;
};

using Change = std::function<void(int rank, std::vector<StateSlice>&)>;
absl::Status SaveOn(const Layout& layout, FileSystem& files, uint64_t seed, const Change& change = nullptr,
                    int64_t max_file_bytes = 1 << 30) {
  std::vector<absl::Status> statuses(static_cast<size_t>(layout.world()));
  RunLocalRanks(layout.world(), [&](Communicator& c) {
    MeshState state(layout, c.rank(), seed);
    if (change) change(c.rank(), state.slices());
    SaveRequest request;
    request.run_dir = "run";
    request.state = StateAt(5);
    request.slices = state.slices();
    request.communicator = &c;
    request.files = &files;
    request.max_file_bytes = max_file_bytes;
    statuses[static_cast<size_t>(c.rank())] = SaveCheckpoint(request);
  });
  for (const absl::Status& status : statuses) EXPECT_EQ(status, statuses[0]);
  return statuses[0];
}
void ExpectLoads(const Layout& layout, FileSystem& files, uint64_t seed) {
  RunLocalRanks(layout.world(), [&](Communicator& c) {
    MeshState state(layout, c.rank(), 0), expected(layout, c.rank(), seed);
    const absl::Status loaded = LoadCheckpoint(kStep, state.slices(), &c, nullptr, &files);
    ASSERT_TRUE(loaded.ok()) << loaded;
    EXPECT_TRUE(state == expected) << "rank " << c.rank();
  });
}
std::string Digests(FileSystem& files) {
  const auto tensors = CheckpointTensors::Open(kStep, &files);
  EXPECT_TRUE(tensors.ok()) << tensors.status();
  std::string all;
  for (const CheckpointTensor& t : tensors->tensors()) {
    absl::StrAppend(&all, t.name, " ", NameOf(t.kind), " ", t.num_elems, " ", t.digest, "\n");
  }
  return all;
}

TEST(CheckpointMesh, EveryMeshReadsWhatEveryMeshWrote) {
  std::set<std::string> digests;
  for (const Layout& writer : Layouts()) {
    SCOPED_TRACE("written on " + writer.name());
    MemoryFileSystem files;
    const absl::Status saved = SaveOn(writer, files, 42);
    ASSERT_TRUE(saved.ok()) << saved;
    digests.insert(Digests(files));
    const auto report = VerifyCheckpoint(kStep, nullptr, &files);
    ASSERT_TRUE(report.ok());
    EXPECT_TRUE(report->problems.empty()) << report->problems[0];
    for (const Layout& reader : Layouts()) {
      SCOPED_TRACE("read on " + reader.name());
      ExpectLoads(reader, files, 42);
    }
  }
  EXPECT_EQ(digests.size(), 1u) << "digests depend on the mesh";
}

TEST(CheckpointMesh, ManySmallFilesAreReadTheSameWay) {
  const Layout writer = {.shards = 2, .tensor = 2};
  MemoryFileSystem files;
  ASSERT_TRUE(SaveOn(writer, files, 9, nullptr, /*max_file_bytes=*/3000).ok());
  for (const Layout& reader : Layouts()) ExpectLoads(reader, files, 9);
}

TEST(CheckpointMesh, CopiesAreSavedOnce) {
  MemoryFileSystem alone, several;
  ASSERT_TRUE(SaveOn({}, alone, 42).ok());
  ASSERT_TRUE(SaveOn({.shards = 2, .tensor = 4}, several, 42).ok());
  const auto a = OpenCheckpoint(kStep, &alone), b = OpenCheckpoint(kStep, &several);
  EXPECT_EQ(a->num_parameters, b->num_parameters);
  int64_t bytes = 0;
  for (const std::string& path : several.AllFiles()) {
    if (path.find(".safetensors") == std::string::npos) continue;
    const std::string& contents = *several.Contents(path);
    uint64_t header = 0;
    std::memcpy(&header, contents.data(), 8);
    bytes += static_cast<int64_t>(contents.size() - 8 - header);
  }
  EXPECT_EQ(bytes, 3 * 4 * a->num_parameters);
}

// Flips a bit of the first slice of `name` on one rank.
Change FlipBit(int rank, const std::string& name, StateKind kind) {
  return [=](int r, std::vector<StateSlice>& slices) {
    for (StateSlice& slice : slices) {
      if (r == rank && slice.name == name && slice.kind == kind) {
        static_cast<char*>(slice.data)[3] = static_cast<char>(static_cast<char*>(slice.data)[3] ^ 1);
        return;
      }
    }
  };
}

TEST(CheckpointMesh, CopiesThatDifferAreRefusedAndNamed) {
  const Layout layout = {.tensor = 4};
  for (const StateKind kind : {StateKind::kWeight, StateKind::kAdamV}) {
    MemoryFileSystem files;
    const absl::Status saved = SaveOn(layout, files, 42, FlipBit(2, "blocks.1.norm.weight", kind));
    EXPECT_EQ(saved.code(), absl::StatusCode::kFailedPrecondition) << saved;
    EXPECT_NE(std::string(saved.message()).find("blocks.1.norm.weight"), std::string::npos) << saved;
    EXPECT_NE(std::string(saved.message()).find("rank 2 and rank 0"), std::string::npos) << saved;
    EXPECT_TRUE(ListCheckpoints("run", &files)->empty());
  }
  // also where the checkpoint is there already
  MemoryFileSystem files;
  ASSERT_TRUE(SaveOn(layout, files, 42).ok());
  EXPECT_TRUE(SaveOn({.shards = 2, .tensor = 2}, files, 42).ok()) << "the same state again";
  EXPECT_EQ(SaveOn(layout, files, 42, FlipBit(3, "out_norm.weight", StateKind::kWeight)).code(),
            absl::StatusCode::kFailedPrecondition);
  // what one rank alone has is another state
  EXPECT_EQ(SaveOn(layout, files, 42, FlipBit(3, "head.weight", StateKind::kWeight)).code(),
            absl::StatusCode::kAlreadyExists);
}

TEST(CheckpointMesh, WhatIsNobodysOrTwoRanksIsRefused) {
  const auto save = [](const Change& change) {
    MemoryFileSystem files;
    const absl::Status saved = SaveOn({.tensor = 2}, files, 42, change);
    EXPECT_EQ(saved.code(), absl::StatusCode::kInvalidArgument) << saved;
    EXPECT_TRUE(files.AllFiles().empty());
    return std::string(saved.message());
  };
  const auto on = [](const std::string& name, const std::function<void(StateSlice&)>& change) {
    return [=](int rank, std::vector<StateSlice>& slices) {
      for (StateSlice& slice : slices) {
        if (rank == 1 && slice.name == name && slice.kind == StateKind::kWeight) return change(slice);
      }
    };
  };
  // a copy that says it is the original
  std::string message = save(on("out_norm.weight", [](StateSlice& s) { s.replica = false; }));
  EXPECT_NE(
      message.find("out_norm.weight of shape [40]: the slices of all ranks leave out or repeat elements; "
                   "they have 80 of 40; ranks 0 and 1 both have those from [0] on"),
      std::string::npos)
      << message;
  // an original that says it is a copy
  message = save(on("head.weight", [](StateSlice& s) { s.replica = true; }));
  EXPECT_NE(message.find("head.weight of shape [96, 40]: the slices"), std::string::npos) << message;
  EXPECT_NE(message.find("rank 1 has a replica of the box of [48, 40] at [48, 0], which no rank saves"),
            std::string::npos)
      << message;
  // a part that lies where the neighbour's lies
  message = save(on("blocks.2.down.weight", [](StateSlice& s) { s.offset[1] = 0; }));
  EXPECT_NE(message.find("blocks.2.down.weight"), std::string::npos) << message;
  message = save(on("blocks.2.down.weight", [](StateSlice& s) { s.offset[1] = 33; }));
  EXPECT_NE(message.find("rank 1 has a box of [43, 32] at [0, 33], which it has not"), std::string::npos)
      << message;
  message = save(on("blocks.2.down.weight", [](StateSlice& s) { s.offset.pop_back(); }));
  EXPECT_NE(message.find("which it has not"), std::string::npos) << message;
}

TEST(CheckpointMesh, WeightsOfASourceFillEveryMesh) {
  MemoryFileSystem files;
  ASSERT_TRUE(SaveOn({.shards = 2, .tensor = 2}, files, 42).ok());
  const auto source = OpenCheckpointWeights(kStep, &files);
  ASSERT_TRUE(source.ok());
  for (const Layout& layout : Layouts()) {
    SCOPED_TRACE(layout.name());
    for (int rank = 0; rank < layout.world(); ++rank) {
      MeshState state(layout, rank, 7), expected(layout, rank, 42);
      const absl::Status filled = FillWeights(**source, state.slices());
      ASSERT_TRUE(filled.ok()) << filled;
      for (const StateSlice& slice : expected.slices()) {
        if (slice.kind == StateKind::kWeight) continue;
        ForEachRun(slice, [](int64_t, char* data, int64_t count) {
          std::memset(data, 0, static_cast<size_t>(4 * count));
        });
      }
      EXPECT_TRUE(state == expected) << "rank " << rank;
    }
  }
}
}  // namespace
}  // namespace carousel
