// What a load reads: every block once on a machine, whatever its ranks want of it; what it tells on the way;
// and that all ranks fail alike where one of them reads damage.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <set>
#include <string>
#include <vector>

#include "checkpoints/load_plan.h"
#include "checkpoints/manifest.h"
#include "checkpoints/shard_plan.h"
#include "core/base/log.h"
#include "parallel/local_communicator.h"
#include "tests/checkpoint_testing.h"
#include "tests/memory_file_system.h"

namespace carousel {
namespace {

constexpr char kDir[] = "run/checkpoints/step-000000001";

// Weights of several blocks of 16 MiB.
std::vector<TestTensor> LargeModel() {
  return {{"a", {1024, 4096}}, {"b", {3, 1024, 512}}, {"c", {4096, 1024}}, {"d", {1021}}};
}

// How the ranks cut every tensor.
enum class Cut : uint8_t { kRows, kColumns, kCopies };

// One rank's slices, with memory.
class CutState {
 public:
  CutState(const std::vector<TestTensor>& model, Cut cut, int world, int rank, uint64_t seed) {
    storage_.reserve(model.size());
    for (const TestTensor& t : model) {
      StateSlice slice = WholeSlice(t.name, StateKind::kWeight, t.dtype, t.shape, nullptr);
      if (cut == Cut::kCopies) {
        slice.replica = rank > 0;
      } else {
        const size_t d = cut == Cut::kRows ? 0 : t.shape.size() - 1;
        const int64_t n = t.shape[d];
        slice.offset[d] = n * rank / world;
        slice.size[d] = n * (rank + 1) / world - slice.offset[d];
      }
      storage_.emplace_back(static_cast<size_t>(slice.num_elems() * SizeOf(t.dtype)), '\x55');
      slice.data = storage_.back().data();
      if (seed != 0) Fill(slice, seed);
      slices_.push_back(std::move(slice));
    }
  }
  // Bits that are a function of seed, tensor and element, quickly.
  static void Fill(const StateSlice& slice, uint64_t seed) {
    const uint32_t salt = static_cast<uint32_t>(RandomUint64(seed, StreamOf(slice.name), 0));
    ForEachRun(slice, [&](int64_t elem, char* data, int64_t count) {
      for (int64_t j = 0; j < count; ++j) {
        const uint32_t bits = (static_cast<uint32_t>(elem + j) ^ salt) * 2654435761u;
        std::memcpy(data + 4 * j, &bits, 4);
      }
    });
  }
  const std::vector<StateSlice>& slices() const { return slices_; }
  bool operator==(const CutState& other) const { return storage_ == other.storage_; }

 private:
  std::vector<std::vector<char>> storage_;
  std::vector<StateSlice> slices_;
};

class CheckpointLoad : public testing::Test {
 protected:
  void SetUp() override { SetMinLogLevel(LogLevel::ERROR); }
  void Save(const std::vector<TestTensor>& model, Cut cut, int world) {
    RunLocalRanks(world, [&](Communicator& c) {
      CutState state(model, cut, world, c.rank(), 5);
      SaveRequest request;
      request.run_dir = "run";
      request.state = StateAt(1);
      request.slices = state.slices();
      request.communicator = &c;
      request.files = &files_;
      const absl::Status saved = SaveCheckpoint(request);
      ASSERT_TRUE(saved.ok()) << saved;
    });
    const auto payload = ReadManifestPayload(files_, kDir);
    ASSERT_TRUE(payload.ok());
    manifest_ = *ParseManifest(*payload, "m");
    num_blocks_ = num_bytes_ = 0;
    for (const checkpoint::FileEntry& file : manifest_.files()) {
      if (file.name().find(".safetensors") == std::string::npos) continue;
      num_blocks_ += file.block_crc32c_size();
      num_bytes_ += file.size();
    }
  }
  // Loads on `world` ranks, of which each `per_machine` are on one machine. Returns the blocks that were
  // read.
  int64_t Load(const std::vector<TestTensor>& model, Cut cut, int world, int per_machine) {
    std::atomic<int64_t> reads = 0;
    files_.SetFault([&](int64_t, const std::string& call, const std::string& path) {
      reads += call == "read" && path.find(".safetensors") != std::string::npos;
      return absl::OkStatus();
    });
    progress_.clear();
    RunLocalRanks(world, [&](Communicator& c) {
      CutState state(model, cut, world, c.rank(), 0);
      LoadOptions options{
          .communicator = &c, .machine = absl::StrCat("machine ", c.rank() / per_machine), .files = &files_};
      options.progress = [&](int64_t done, int64_t total) {
        EXPECT_EQ(c.rank(), 0);
        progress_.emplace_back(done, total);
      };
      const absl::Status loaded = LoadCheckpoint(kDir, state.slices(), nullptr, options);
      EXPECT_TRUE(loaded.ok()) << loaded;
      EXPECT_TRUE(state == CutState(model, cut, world, c.rank(), 5)) << "rank " << c.rank();
    });
    files_.SetFault(nullptr);
    return reads;
  }

  MemoryFileSystem files_;
  checkpoint::Manifest manifest_;
  int64_t num_blocks_ = 0, num_bytes_ = 0;  // of the shards
  std::vector<std::pair<int64_t, int64_t>> progress_;
};

TEST_F(CheckpointLoad, ReadsEveryBlockOncePerMachine) {
  Save(LargeModel(), Cut::kRows, 2);
  ASSERT_GE(num_blocks_, 4);
  for (const Cut cut : {Cut::kRows, Cut::kColumns, Cut::kCopies}) {
    SCOPED_TRACE(static_cast<int>(cut));
    EXPECT_EQ(Load(LargeModel(), cut, 1, 1), num_blocks_);
    EXPECT_EQ(Load(LargeModel(), cut, 4, 4), num_blocks_);
    ASSERT_FALSE(progress_.empty());
    EXPECT_TRUE(std::is_sorted(progress_.begin(), progress_.end()));
    EXPECT_EQ(progress_.back(), std::pair(num_bytes_, num_bytes_));
    EXPECT_LE(Load(LargeModel(), cut, 4, 2), 2 * num_blocks_);
    EXPECT_EQ(Load(LargeModel(), cut, 3, 3), num_blocks_);
  }
  // Machines that want other rows share only the blocks where one's rows end and the other's begin.
  EXPECT_LE(Load(LargeModel(), Cut::kRows, 4, 1), num_blocks_ + 3 * 4);
}

// What the ranks of one machine read beyond what they use, for layouts that have nothing in common with the
// one that saved.
TEST_F(CheckpointLoad, ReadsHardlyMoreThanItUses) {
  for (const Cut saved : {Cut::kRows, Cut::kColumns}) {
    Save(LargeModel(), saved, 3);
    for (const Cut cut : {Cut::kRows, Cut::kColumns, Cut::kCopies}) {
      for (const int world : {1, 4, 7}) {
        std::vector<checkpoint::RankSlices> ranks;
        std::vector<int> members;
        for (int r = 0; r < world; ++r) {
          CutState state(LargeModel(), cut, world, r, 0);
          ranks.push_back(DescribeSlices(state.slices(), StateAt(1)));
          members.push_back(r);
        }
        const LoadPlan plan(manifest_, ranks, members);
        const double over =
            static_cast<double>(plan.num_bytes()) / static_cast<double>(plan.num_bytes_wanted());
        EXPECT_LE(over, 1.25) << "saved " << static_cast<int>(saved) << " cut " << static_cast<int>(cut);
        EXPECT_GE(over, 1.0);
        // Each element of each slice has one place; a reader reads a fair part.
        std::vector<std::vector<int64_t>> found(static_cast<size_t>(world));
        std::set<std::pair<int64_t, int64_t>> blocks;
        size_t longest = 0;
        for (int m = 0; m < world; ++m) {
          longest = std::max(longest, plan.Queue(m).size());
          for (const LoadBlock* block : plan.Queue(m)) {
            EXPECT_TRUE(blocks.emplace(block->file, block->number).second) << "a block is read twice";
            std::vector<int64_t> bytes(static_cast<size_t>(world), 0);
            for (const int p : block->parts) {
              const LoadPart& part = plan.part(p);
              plan.ForEachRunIn(*block, part, [&](int64_t offset, int64_t, int64_t count) {
                EXPECT_GE(offset, 0);
                EXPECT_LE(offset + count * 4, block->num_bytes);
                bytes[static_cast<size_t>(part.member)] += count * 4;
                auto& counts = found[static_cast<size_t>(part.member)];
                counts.resize(LargeModel().size());
                counts[static_cast<size_t>(part.slice)] += count;
              });
            }
            EXPECT_EQ(bytes, block->bytes_wanted);
          }
        }
        for (int r = 0; r < world; ++r) {
          CutState state(LargeModel(), cut, world, r, 0);
          for (size_t i = 0; i < state.slices().size(); ++i) {
            EXPECT_EQ(found[static_cast<size_t>(r)][i], state.slices()[i].num_elems()) << "rank " << r;
          }
        }
        EXPECT_LE(longest, blocks.size() / static_cast<size_t>(world) + 2) << "one rank reads most of it";
      }
    }
    ASSERT_TRUE(RemoveTree(files_, "run").ok());
  }
}

TEST_F(CheckpointLoad, TheLayoutThatSavedPassesNothingOn) {
  Save(LargeModel(), Cut::kColumns, 3);
  std::vector<checkpoint::RankSlices> ranks;
  for (int r = 0; r < 3; ++r) {
    CutState state(LargeModel(), Cut::kColumns, 3, r, 0);
    ranks.push_back(DescribeSlices(state.slices(), StateAt(1)));
  }
  const LoadPlan plan(manifest_, ranks, {0, 1, 2});
  EXPECT_GE(plan.num_rounds(), 1);
  for (int64_t round = 0; round < plan.num_rounds(); ++round) EXPECT_FALSE(plan.Exchanges(round));
}

// Every rank reads through a file system of its own; that of one rank is damaged, or fails.
TEST_F(CheckpointLoad, WhatOneRankCannotReadFailsOnAllRanksAlike) {
  Save(LargeModel(), Cut::kRows, 2);
  MemoryFileSystem bad;
  ASSERT_TRUE(CreateDirectories(bad, kDir).ok());
  for (const std::string& path : files_.AllFiles()) {
    if (path.find(kDir) == std::string::npos) continue;
    std::string contents = *files_.Contents(path);
    if (path.find(".safetensors") != std::string::npos) {
      for (size_t at = contents.size() - 4; at < contents.size(); at -= kBlockBytes) {
        contents[at] = static_cast<char>(contents[at] ^ 4);  // in every block
      }
    }
    ASSERT_TRUE(WriteFile(bad, path, contents).ok());
  }
  for (const bool io_error : {false, true}) {
    if (io_error) {
      bad.SetFault([](int64_t, const std::string& call, const std::string& path) {
        return call == "read" && path.find(".safetensors") != std::string::npos
                   ? absl::UnavailableError(absl::StrCat("reading ", path, ": Input/output error"))
                   : absl::OkStatus();
      });
    }
    for (const Cut cut : {Cut::kRows, Cut::kColumns}) {
      for (const int per_machine : {1, 4}) {
        for (const int unlucky : {0, 2}) {
          SCOPED_TRACE(absl::StrCat("rank ", unlucky, ", ranks per machine ", per_machine));
          std::vector<absl::Status> statuses(4);
          RunLocalRanks(4, [&](Communicator& c) {
            CutState state(LargeModel(), cut, 4, c.rank(), 0);
            statuses[static_cast<size_t>(c.rank())] =
                LoadCheckpoint(kDir, state.slices(), nullptr,
                               {.communicator = &c,
                                .machine = absl::StrCat("machine ", c.rank() / per_machine),
                                .files = c.rank() == unlucky ? &bad : &files_});
          });
          for (const absl::Status& status : statuses) EXPECT_EQ(status, statuses[0]);
          EXPECT_EQ(statuses[0].code(),
                    io_error ? absl::StatusCode::kUnavailable : absl::StatusCode::kDataLoss)
              << statuses[0];
          const std::string message(statuses[0].message());
          EXPECT_NE(message.find(absl::StrCat("[rank ", unlucky, "]")), std::string::npos) << message;
          EXPECT_NE(message.find(".safetensors"), std::string::npos) << message;
          EXPECT_NE(message.find("tensor"), std::string::npos) << message;
        }
      }
    }
  }
}

// A checkpoint has what a slice of a mesh wants, or all that it has not is told at once.
TEST_F(CheckpointLoad, AllDifferencesOfSlicesOfAMeshAreToldAtOnce) {
  Save({{"w.alpha", {8, 4}}, {"w.beta", {6}}, {"w.gamma", {4, 4}}}, Cut::kRows, 2);
  const std::vector<TestTensor> other = {
      {"w.alpha", {8, 6}}, {"w.betta", {6}}, {"w.gamma", {4, 4}, DType::kF64}};
  RunLocalRanks(2, [&](Communicator& c) {
    CutState state(other, Cut::kColumns, 2, c.rank(), 0);
    const absl::Status loaded =
        LoadCheckpoint(kDir, state.slices(), nullptr, {.communicator = &c, .files = &files_});
    EXPECT_EQ(loaded.code(), absl::StatusCode::kFailedPrecondition);
    const std::string message(loaded.message());
    for (const char* part :
         {"w.alpha has shape [8, 4] in the checkpoint; [8, 6] is wanted",
          "w.betta is wanted and is not in the checkpoint", "w.beta",
          "w.gamma has dtype f32 in the checkpoint; f64 is wanted",
          "w.beta of shape [6] is in the checkpoint and the model has no such tensor", "4 differences"}) {
      EXPECT_NE(message.find(part), std::string::npos) << part << "\n" << message;
    }
  });
}
}  // namespace
}  // namespace carousel
