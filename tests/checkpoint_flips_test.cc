// What can happen to the files of a checkpoint after it was written: single bits, ends cut off, files and
// boxes in the place of others, files of another checkpoint or of another run, nothing or a directory in the
// place of a file. All of it is refused with the file and, where bytes of tensors are hit, the tensor named,
// and --checkpoint_fallback goes on from the checkpoint before.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "checkpoints/checkpoint.h"
#include "checkpoints/checkpoint_tensors.h"
#include "checkpoints/crc32c.h"
#include "checkpoints/manifest.h"
#include "core/base/log.h"
#include "parallel/local_communicator.h"
#include "tests/checkpoint_testing.h"
#include "tests/memory_file_system.h"
#include "tests/temp_dir.h"

namespace carousel {
namespace {

constexpr char kOld[] = "run/checkpoints/step-000000001", kNew[] = "run/checkpoints/step-000000002";
constexpr char kAside[] = "run/checkpoints/.bad-step-000000002";

std::string NameOfFile(const std::string& path) { return path.substr(path.rfind('/') + 1); }
bool IsShard(const std::string& path) { return path.find(".safetensors") != std::string::npos; }

// Two checkpoints of a run, written by two ranks, and another run of the same model.
class CheckpointFlips : public testing::Test {
 protected:
  void SetUp() override {
    SetMinLogLevel(LogLevel::ERROR);
    Save("run", 1, 1);
    Save("run", 2, 2);
    Save("other", 2, 3);
    const auto payload = ReadManifestPayload(files_, kNew);
    ASSERT_TRUE(payload.ok());
    manifest_ = *ParseManifest(*payload, "m");
  }
  void Save(const std::string& run, int64_t step, uint64_t seed) {
    RunLocalRanks(2, [&](Communicator& c) {
      const absl::Status saved = SaveStep(run, step, seed, 0, &c, &files_);
      ASSERT_TRUE(saved.ok()) << saved;
    });
  }
  std::vector<std::string> FilesOf(const std::string& dir) const {
    std::vector<std::string> paths;
    for (const std::string& path : files_.AllFiles()) {
      if (path.find(dir) != std::string::npos) paths.push_back(path);
    }
    return paths;
  }
  std::string& Contents(const std::string& dir, const std::string& name) {
    return *files_.Contents(absl::StrCat(dir, "/", name));
  }
  std::string& Contents(const std::string& path) { return *files_.Contents(path); }

  // The tensor that has this byte of a file; empty: none.
  std::string TensorAt(const std::string& name, int64_t at) const {
    for (const checkpoint::TensorEntry& tensor : manifest_.tensors()) {
      for (const checkpoint::Box& box : tensor.boxes()) {
        const int64_t bytes = BoxOf(box).num_elems() * SizeOf(FromProto(tensor.dtype()));
        if (manifest_.files(static_cast<int>(box.file())).name() == name && at >= box.byte_offset() &&
            at < box.byte_offset() + bytes) {
          return Describe(tensor.name(), FromProto(tensor.kind()));
        }
      }
    }
    return "";
  }

  absl::StatusOr<std::string> LoadNewest(bool fallback, RankState* state, TrainState* train) {
    return LoadNewestGood("run", state->slices(), train, {.fallback = fallback, .files = &files_});
  }
  // The newest checkpoint is refused with all of `parts` in the message; the one before it is taken when that
  // is asked for. Nothing is changed.
  void ExpectRefused(const std::vector<std::string>& parts) {
    RankState state(SmallModel(), 1, 0, 0);
    TrainState train;
    const absl::Status refused = LoadNewest(false, &state, &train).status();
    EXPECT_EQ(refused.code(), absl::StatusCode::kDataLoss) << refused;
    const std::string message(refused.message());
    for (const std::string& part : parts) EXPECT_NE(message.find(part), std::string::npos) << message;
    EXPECT_NE(message.find("--checkpoint_fallback"), std::string::npos) << message;

    const auto found = LoadNewest(true, &state, &train);
    ASSERT_TRUE(found.ok()) << found.status();
    EXPECT_EQ(*found, kOld);
    EXPECT_EQ(train, StateAt(1));
    EXPECT_TRUE(state.Holds(1));
    ASSERT_TRUE(files_.Rename(kAside, kNew).ok()) << "it was set aside";
  }
  void ExpectLoads() {
    RankState state(SmallModel(), 1, 0, 0);
    TrainState train;
    const auto found = LoadNewest(false, &state, &train);
    ASSERT_TRUE(found.ok()) << found.status();
    EXPECT_EQ(*found, kNew);
    EXPECT_EQ(train, StateAt(2));
    EXPECT_TRUE(state.Holds(2));
  }

  MemoryFileSystem files_;
  checkpoint::Manifest manifest_;  // of kNew
};

TEST_F(CheckpointFlips, AThousandBitsAreRefusedOrHarmless) {
  std::mt19937_64 random(20);
  const std::vector<std::string> paths = FilesOf(kNew);
  ASSERT_EQ(paths.size(), 8u);  // four shards, manifest, its text, state, config
  int of_tensors = 0, of_paddings = 0, harmless = 0;
  std::map<std::string, int> of_file;
  for (int trial = 0; trial < 1000; ++trial) {
    const std::string& path = paths[random() % paths.size()];
    const std::string name = NameOfFile(path);
    std::string& contents = Contents(path);
    // Of the shards every other one in the tensors, at their end: most of a small shard is its header.
    const size_t size = contents.size(), tail = std::min<size_t>(size, 300);
    const size_t at = IsShard(path) && random() % 2 == 0 ? size - 1 - random() % tail : random() % size;
    const char bit = static_cast<char>(1 << (random() % 8));
    SCOPED_TRACE(absl::StrCat(name, " byte ", at, " bit ", static_cast<int>(bit)));
    contents[at] = static_cast<char>(contents[at] ^ bit);
    ++of_file[name];
    if (name == kManifestJsonFile) {  // for people: the program does not read it
      ++harmless;
      ExpectLoads();
    } else if (IsShard(path)) {
      const std::string tensor = TensorAt(name, static_cast<int64_t>(at));
      ++(tensor.empty() ? of_paddings : of_tensors);
      ExpectRefused({name, "block 0", tensor.empty() ? "no tensor" : "changed: tensor " + tensor});
    } else {
      ExpectRefused({name});
    }
    contents[at] = static_cast<char>(contents[at] ^ bit);
    if (HasFailure()) return;
  }
  EXPECT_EQ(of_file.size(), paths.size());
  EXPECT_GE(of_tensors, 100);
  EXPECT_GE(of_paddings, 100);
  EXPECT_GE(harmless, 50);
  ExpectLoads();
}

TEST_F(CheckpointFlips, FilesCutOffAnywhereAreRefused) {
  std::mt19937_64 random(21);
  for (const std::string& path : FilesOf(kNew)) {
    const std::string name = NameOfFile(path);
    if (name == kManifestJsonFile) continue;
    const std::string whole = Contents(path);
    for (int trial = 0; trial < 20; ++trial) {
      const size_t size = trial == 0 ? 0 : random() % whole.size();
      SCOPED_TRACE(absl::StrCat(name, " cut off at ", size));
      Contents(path) = whole.substr(0, size);
      ExpectRefused(IsShard(path) ? std::vector<std::string>{name, "it holds tensor"} : std::vector{name});
      if (HasFailure()) return;
    }
    Contents(path) = whole;
  }
  ExpectLoads();
}

TEST_F(CheckpointFlips, ShardsInEachOthersPlaceAreRefused) {
  std::vector<std::string> shards;
  for (const std::string& path : FilesOf(kNew)) {
    if (IsShard(path)) shards.push_back(path);
  }
  for (size_t a = 0; a < shards.size(); ++a) {
    for (size_t b = a + 1; b < shards.size(); ++b) {
      SCOPED_TRACE(shards[a] + " and " + shards[b]);
      std::swap(Contents(shards[a]), Contents(shards[b]));
      ExpectRefused({NameOfFile(shards[a]), "tensor"});
      std::swap(Contents(shards[a]), Contents(shards[b]));
    }
  }
  ExpectLoads();
}

// Two boxes of the same size that changed places, in one file and between files, with all checksums repaired:
// only the digests tell, and they name the tensors.
TEST_F(CheckpointFlips, BoxesInEachOthersPlaceAreRefused) {
  struct Placed {
    std::string tensor, file;
    int64_t begin = 0, bytes = 0;
  };
  std::vector<Placed> boxes;
  for (const checkpoint::TensorEntry& tensor : manifest_.tensors()) {
    for (const checkpoint::Box& box : tensor.boxes()) {
      boxes.push_back({Describe(tensor.name(), FromProto(tensor.kind())),
                       manifest_.files(static_cast<int>(box.file())).name(), box.byte_offset(),
                       BoxOf(box).num_elems() * SizeOf(FromProto(tensor.dtype()))});
    }
  }
  const std::string framed = Contents(kNew, kManifestFile);
  int within = 0, between = 0;
  for (size_t a = 0; a < boxes.size(); ++a) {
    for (size_t b = a + 1; b < boxes.size(); ++b) {
      if (boxes[a].bytes != boxes[b].bytes) continue;
      SCOPED_TRACE(boxes[a].tensor + " and " + boxes[b].tensor);
      ++(boxes[a].file == boxes[b].file ? within : between);
      const auto swap = [&] {
        std::string &x = Contents(kNew, boxes[a].file), &y = Contents(kNew, boxes[b].file);
        std::swap_ranges(x.begin() + boxes[a].begin, x.begin() + boxes[a].begin + boxes[a].bytes,
                         y.begin() + boxes[b].begin);
      };
      swap();
      if (boxes[a].file == boxes[b].file) {
        ExpectRefused({boxes[a].file, "block 0", boxes[a].tensor, boxes[b].tensor});
      } else {  // the file that is read first
        ExpectRefused({".safetensors: block 0", "changed: tensor"});
      }
      checkpoint::Manifest forged = manifest_;
      for (checkpoint::FileEntry& file : *forged.mutable_files()) {
        const std::string& contents = Contents(kNew, file.name());
        file.set_crc32c(UpdateCrc32c(0, contents.data(), static_cast<int64_t>(contents.size())));
        file.set_block_crc32c(0, file.crc32c());
      }
      Contents(kNew, kManifestFile) = Frame(kManifestMagic, forged.SerializeAsString());
      ExpectRefused({"digests of", boxes[a].tensor, boxes[b].tensor});
      Contents(kNew, kManifestFile) = framed;
      swap();
      if (HasFailure()) return;
    }
  }
  EXPECT_GE(within, 5);
  EXPECT_GE(between, 5);
  ExpectLoads();
}

// Files of the same names and sizes from the checkpoint before, and from another run of the same model at the
// same step.
TEST_F(CheckpointFlips, FilesOfOtherCheckpointsAreRefused) {
  const std::string other = "other/checkpoints/step-000000002";
  for (const std::string& from : {std::string(kOld), other}) {
    for (const std::string& path : FilesOf(kNew)) {
      const std::string name = NameOfFile(path);
      // The config of both is the same text; the other run has the same state at the same step.
      if (name == kManifestJsonFile || name == kConfigFile) continue;
      if (from == other && name == kStateFile) continue;
      SCOPED_TRACE(absl::StrCat(name, " of ", from));
      const std::string mine = Contents(path);
      Contents(path) = Contents(from, name);
      if (IsShard(path)) {
        ASSERT_EQ(Contents(path).size(), mine.size());
        ExpectRefused({name, "block 0", "changed: tensor"});
      } else if (name == kManifestFile) {  // then it is the files that do not fit
        ExpectRefused({kNew});
      } else {
        ExpectRefused({name});
      }
      Contents(path) = mine;
      if (HasFailure()) return;
    }
  }
  ExpectLoads();
}

TEST_F(CheckpointFlips, NothingADirectoryOrAnEmptyFileInTheirPlaceIsRefused) {
  for (const std::string& path : FilesOf(kNew)) {
    const std::string name = NameOfFile(path);
    if (name == kManifestJsonFile) continue;
    const std::string whole = Contents(path);
    std::vector<std::string> parts = {name};
    if (IsShard(path)) parts.push_back("it holds tensor");
    SCOPED_TRACE(name);
    Contents(path).clear();
    ExpectRefused(parts);
    ASSERT_TRUE(files_.RemoveFile(path).ok());
    ExpectRefused(parts);
    ASSERT_TRUE(files_.CreateDirectory(path).ok());
    ExpectRefused(parts);
    ASSERT_TRUE(files_.RemoveDirectory(path).ok());
    ASSERT_TRUE(WriteFile(files_, path, whole).ok());
    ExpectLoads();
    if (HasFailure()) return;
  }
}

// The real file system has its own ways to say that something is no file.
TEST_F(CheckpointFlips, SoItIsOnARealDisk) {
  const TempDir temp;
  const std::string run = temp.path() + "/run";
  PosixFileSystem disk;
  for (const int64_t step : {1, 2}) {
    ASSERT_TRUE(SaveStep(run, step, static_cast<uint64_t>(step), 0, nullptr, &disk).ok());
  }
  const std::string dir = run + "/checkpoints/step-000000002",
                    aside = run + "/checkpoints/.bad-step-000000002";
  const auto names = disk.ListDirectory(dir);
  ASSERT_TRUE(names.ok());
  for (const std::string& name : *names) {
    if (name == kManifestJsonFile) continue;
    SCOPED_TRACE(name);
    const std::string path = dir + "/" + name;
    const auto whole = ReadFile(disk, path, 1 << 30);
    ASSERT_TRUE(whole.ok());
    for (const bool directory : {false, true}) {
      ASSERT_TRUE(RemoveTree(disk, path).ok());
      ASSERT_TRUE(directory ? disk.CreateDirectory(path).ok()
                            : WriteFile(disk, path, whole->substr(0, whole->size() / 2)).ok());
      RankState state(SmallModel(), 1, 0, 0);
      TrainState train;
      LoadOptions options{.files = &disk};
      const auto refused = LoadNewestGood(run, state.slices(), &train, options);
      EXPECT_EQ(refused.status().code(), absl::StatusCode::kDataLoss) << refused.status();
      EXPECT_NE(std::string(refused.status().message()).find(name), std::string::npos) << refused.status();
      options.fallback = true;
      const auto found = LoadNewestGood(run, state.slices(), &train, options);
      ASSERT_TRUE(found.ok()) << found.status();
      EXPECT_TRUE(state.Holds(1));
      ASSERT_TRUE(disk.Rename(aside, dir).ok());
    }
    ASSERT_TRUE(RemoveTree(disk, path).ok());
    ASSERT_TRUE(WriteFile(disk, path, *whole).ok());
  }
  RankState state(SmallModel(), 1, 0, 0);
  EXPECT_EQ(*LoadNewestGood(run, state.slices(), nullptr, {.files = &disk}), dir);
}

// A file that is not whole in any sense: random states are refused, or consistent.
TEST_F(CheckpointFlips, RandomStatesAreRefusedOrConsistent) {
  std::mt19937_64 random(22);
  const std::string payload = ToProto(StateAt(9)).SerializeAsString();
  ASSERT_EQ(*ParseState(payload, "state"), StateAt(9));
  int accepted = 0;
  for (int i = 0; i < 20000; ++i) {
    std::string bytes = payload;
    for (uint64_t changes = 1 + random() % 3; changes > 0; --changes) {
      const size_t at = random() % bytes.size();
      if (random() % 3 == 0) {
        bytes.erase(at, 1 + random() % 4);
        if (bytes.empty()) bytes = "x";
      } else {
        bytes[at] = static_cast<char>(random() % 2 == 0 ? random() : bytes[at] ^ (1 << (random() % 8)));
      }
    }
    const auto state = ParseState(bytes, "state");
    if (!state.ok()) {
      EXPECT_EQ(state.status().code(), absl::StatusCode::kDataLoss);
      continue;
    }
    ++accepted;
    EXPECT_GE(state->step, state->skipped_steps);
    EXPECT_GE(state->skipped_steps, state->skipped_in_row);
    EXPECT_GE(state->skipped_in_row, 0);
    EXPECT_TRUE(state->last_skipped_step >= 0 && state->last_skipped_step <= state->step);
    EXPECT_TRUE(state->evaluated_step >= 0 && state->evaluated_step <= state->step);
    int64_t of_sources = 0;
    for (const int64_t count : state->consumed_by_source) of_sources += count;
    EXPECT_TRUE(state->consumed_by_source.empty() || of_sources == state->consumed_sequences);
  }
  EXPECT_GT(accepted, 100);
  EXPECT_LT(accepted, 19000);
  const auto refused = [](const std::function<void(checkpoint::TrainState*)>& change) {
    checkpoint::TrainState state = ToProto(StateAt(9));
    change(&state);
    return ParseState(state.SerializeAsString(), "s").status().code() == absl::StatusCode::kDataLoss;
  };
  EXPECT_TRUE(refused([](auto* s) { s->set_step(-1); }));
  EXPECT_TRUE(refused([](auto* s) { s->set_skipped_steps(10); }));
  EXPECT_TRUE(refused([](auto* s) { s->set_skipped_in_row(2); }));
  EXPECT_TRUE(refused([](auto* s) { s->set_last_skipped_step(10); }));
  EXPECT_TRUE(refused([](auto* s) { s->set_evaluated_step(-1); }));
  EXPECT_TRUE(refused([](auto* s) { s->set_evaluated_step(10); }));
  EXPECT_TRUE(refused([](auto* s) { s->set_consumed_by_source(0, -1); }));
  EXPECT_TRUE(refused([](auto* s) { s->add_consumed_by_source(1); }));
  EXPECT_TRUE(refused([](auto* s) { s->set_consumed_by_source(0, INT64_MAX); }));
  EXPECT_TRUE(refused([](auto* s) {
    for (int i = 0; i < 2000; ++i) s->add_loss_window(1);
  }));
  EXPECT_TRUE(refused([](auto* s) {
    for (int i = 0; i < 2000; ++i) s->add_grad_norm_window(1);
  }));
  EXPECT_TRUE(refused([](auto* s) { s->set_num_rollbacks(-1); }));
  EXPECT_TRUE(refused([](auto* s) { s->set_left_out_sequences(-1); }));
  EXPECT_TRUE(refused([](auto* s) { s->set_left_out_sequences(s->consumed_sequences() + 1); }));
}

// What earlier versions of this format did not write.
TEST_F(CheckpointFlips, CheckpointsWithoutTheLaterFieldsLoad) {
  checkpoint::Manifest old = manifest_;
  old.clear_attempt();
  old.clear_config_digest();
  old.clear_mesh();
  checkpoint::TrainState state = ToProto(StateAt(2));
  state.clear_skipped_in_row();
  state.clear_last_skipped_step();
  state.clear_evaluated_step();
  state.clear_validation_loss();
  state.clear_loss_window();
  state.clear_grad_norm_window();
  state.clear_num_rollbacks();
  state.clear_left_out_sequences();
  state.clear_consumed_by_source();
  const std::string framed = Frame(kStateMagic, state.SerializeAsString());
  Contents(kNew, kStateFile) = framed;
  for (checkpoint::FileEntry& file : *old.mutable_files()) {
    if (file.name() != kStateFile) continue;
    file.set_size(static_cast<int64_t>(framed.size()));
    file.set_crc32c(UpdateCrc32c(0, framed.data(), file.size()));
    file.set_block_crc32c(0, file.crc32c());
  }
  Contents(kNew, kManifestFile) = Frame(kManifestMagic, old.SerializeAsString());
  RankState slices(SmallModel(), 1, 0, 0);
  TrainState loaded;
  const auto found = LoadNewest(false, &slices, &loaded);
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_TRUE(slices.Holds(2));
  EXPECT_EQ(loaded.step, 2);
  EXPECT_EQ(loaded.consumed_sequences, StateAt(2).consumed_sequences);
  EXPECT_TRUE(loaded.consumed_by_source.empty());
  const auto info = OpenCheckpoint(kNew, &files_);
  ASSERT_TRUE(info.ok());
  EXPECT_EQ(info->attempt, 0);
  EXPECT_EQ(info->mesh, MeshSummary{});
  EXPECT_EQ(info->config_digest, 0u);
}

TEST_F(CheckpointFlips, TheManifestSaysWhoWroteItFromWhat) {
  const auto info = OpenCheckpoint(kNew, &files_);
  ASSERT_TRUE(info.ok());
  EXPECT_EQ(info->attempt, 3);
  EXPECT_EQ(info->mesh, (MeshSummary{.replicate = 2, .shard = 1, .sequence = 1, .tensor = 1, .pipe = 1}));
  EXPECT_EQ(info->config_digest, ConfigDigest(*ReadCheckpointConfig(kNew, &files_)));
  EXPECT_NE(info->config_digest, ConfigDigest("model { }\n"));
  const std::string& json = Contents(kNew, kManifestJsonFile);
  for (const char* part :
       {"\"attempt\": 3", "\"replicate\": 2", "\"config_digest\"", "\"consumed_by_source\""}) {
    EXPECT_NE(json.find(part), std::string::npos) << part;
  }
  const auto refused = [&](const std::function<void(checkpoint::Manifest*)>& change) {
    checkpoint::Manifest manifest = manifest_;
    change(&manifest);
    return ParseManifest(manifest.SerializeAsString(), "m").status().code() == absl::StatusCode::kDataLoss;
  };
  EXPECT_TRUE(refused([](auto* m) { m->set_attempt(-1); }));
  EXPECT_TRUE(refused([](auto* m) { m->mutable_mesh()->set_pipe(-2); }));
  EXPECT_TRUE(refused([](auto* m) { m->mutable_mesh()->set_replicate(-2); }));
}
}  // namespace
}  // namespace carousel
