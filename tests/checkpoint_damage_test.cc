// Damaged checkpoints: found, named, refused, and fallen back from when asked. The manifest's parser against
// random bytes.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "checkpoints/checkpoint.h"
#include "checkpoints/checkpoint_tensors.h"
#include "checkpoints/crc32c.h"
#include "checkpoints/manifest.h"
#include "checkpoints/safetensors.h"
#include "core/base/log.h"
#include "parallel/local_communicator.h"
#include "tests/checkpoint_testing.h"
#include "tests/memory_file_system.h"

namespace carousel {
namespace {

constexpr char kDir1[] = "run/checkpoints/step-000000001", kDir2[] = "run/checkpoints/step-000000002";

class CheckpointDamage : public testing::Test {
 protected:
  void SetUp() override {
    SetMinLogLevel(LogLevel::ERROR);
    for (const int64_t step : {1, 2}) {
      RunLocalRanks(2, [&](Communicator& c) {
        ASSERT_TRUE(SaveStep("run", step, static_cast<uint64_t>(step), 0, &c, &files_).ok());
      });
    }
  }
  absl::Status Load(const std::string& dir, uint64_t seed) {
    RankState state(SmallModel(), 1, 0, 0);
    const absl::Status loaded = LoadCheckpoint(dir, state.slices(), nullptr, nullptr, &files_);
    EXPECT_TRUE(!loaded.ok() || state.Holds(seed));
    return loaded;
  }
  std::vector<std::string> FilesOf(const std::string& dir) {
    std::vector<std::string> paths;
    for (const std::string& path : files_.AllFiles()) {
      if (path.find(dir) != std::string::npos) paths.push_back(path);
    }
    return paths;
  }
  // What verify says; "refused: ..." if the manifest cannot be used.
  std::string Verify(const std::string& dir) {
    const auto report = VerifyCheckpoint(dir, nullptr, &files_);
    if (!report.ok()) return absl::StrCat("refused: ", std::string(report.status().message()));
    std::string all;
    for (const std::string& problem : report->problems) all += problem + "\n";
    return all;
  }

  MemoryFileSystem files_;
};

// How a message must end if byte `at` of a shard is damaged; `shard`: its undamaged contents.
std::string ChangedBy(const std::string& shard, size_t at) {
  const auto header = ParseSafetensorsHeader(shard, static_cast<int64_t>(shard.size()), "shard");
  EXPECT_TRUE(header.ok());
  for (const SafetensorsEntry& t : header->tensors) {
    const int64_t begin = header->data_begin + t.begin, end = header->data_begin + t.end;
    if (static_cast<int64_t>(at) < begin || static_cast<int64_t>(at) >= end) continue;
    // "norm.weight.exp_avg#0" belongs to tensor norm.weight (exp_avg).
    const std::string name = t.name.substr(0, t.name.rfind('#'));
    for (const std::string kind : {".exp_avg", ".exp_avg_sq"}) {
      if (name.size() <= kind.size()) continue;
      const size_t stem = name.size() - kind.size();
      if (name.substr(stem) == kind) {
        return absl::StrCat("changed: tensor ", name.substr(0, stem), " (", kind.substr(1), ")");
      }
    }
    return absl::StrCat("changed: tensor ", name);
  }
  return "changed: the file's header, no tensor";
}

TEST_F(CheckpointDamage, AnyBitFlippedAnywhereIsRefusedAndNamed) {
  std::mt19937_64 random(1);
  int shards = 0, tensors = 0;
  for (const std::string& path : FilesOf("step-000000002")) {
    if (path.find("MANIFEST.json") != std::string::npos) continue;  // never read
    std::string& contents = *files_.Contents(path);
    for (int trial = 0; trial < 100; ++trial) {
      // Every other one in the tensors, at the end of a shard.
      const size_t at = trial % 2 == 0
                            ? random() % contents.size()
                            : contents.size() - 1 - random() % std::min<size_t>(200, contents.size());
      const char bit = static_cast<char>(1 << (random() % 8));
      contents[at] = static_cast<char>(contents[at] ^ bit);
      const std::string problems = Verify(kDir2);
      EXPECT_NE(problems, "") << path << " byte " << at;
      const std::string name = path.substr(path.rfind('/') + 1);
      EXPECT_NE(problems.find(name), std::string::npos) << problems;
      const absl::Status loaded = Load(kDir2, 2);
      EXPECT_EQ(loaded.code(), absl::StatusCode::kDataLoss) << path << " byte " << at;
      EXPECT_NE(std::string(loaded.message()).find(name), std::string::npos) << loaded;
      if (name == "config.textproto") {
        EXPECT_EQ(ReadCheckpointConfig(kDir2, &files_).status().code(), absl::StatusCode::kDataLoss);
      }
      if (name.find(".safetensors") != std::string::npos) {
        // The one tensor that was hit, or the header.
        contents[at] = static_cast<char>(contents[at] ^ bit);
        const std::string what = ChangedBy(contents, at);
        contents[at] = static_cast<char>(contents[at] ^ bit);
        EXPECT_NE(std::string(loaded.message()).find("block 0 "), std::string::npos) << loaded;
        EXPECT_NE(std::string(loaded.message()).find(what), std::string::npos) << what << "\n" << loaded;
        EXPECT_NE(problems.find(what), std::string::npos) << what << "\n" << problems;
        tensors += what.find("changed: tensor ") == 0;
        ++shards;
      }
      contents[at] = static_cast<char>(contents[at] ^ bit);
    }
  }
  EXPECT_EQ(shards, 400);
  EXPECT_GE(tensors, 200);
  EXPECT_EQ(Verify(kDir2), "");
}

TEST_F(CheckpointDamage, EveryTruncationIsRefused) {
  std::mt19937_64 random(2);
  for (const std::string& path : FilesOf("step-000000002")) {
    if (path.find("MANIFEST.json") != std::string::npos) continue;
    std::string& contents = *files_.Contents(path);
    const std::string whole = contents;
    for (const size_t size : {whole.size() - 1, whole.size() / 2, size_t{1}, size_t{0}}) {
      contents = whole.substr(0, size);
      const absl::Status loaded = Load(kDir2, 2);
      EXPECT_EQ(loaded.code(), absl::StatusCode::kDataLoss) << path << " " << size;
      EXPECT_NE(std::string(loaded.message()).find(path.substr(path.rfind('/') + 1)), std::string::npos)
          << loaded;
      EXPECT_NE(Verify(kDir2), "");
    }
    contents = whole + "x";
    EXPECT_EQ(Load(kDir2, 2).code(), absl::StatusCode::kDataLoss) << path;
    contents = whole;
  }
  EXPECT_TRUE(Load(kDir2, 2).ok());
}

TEST_F(CheckpointDamage, MissingSwappedForeignAndExtraFilesAreNoticed) {
  const std::string model0 = std::string(kDir2) + "/model-00000-of-00002.safetensors";
  const std::string model1 = std::string(kDir2) + "/model-00001-of-00002.safetensors";
  std::swap(*files_.Contents(model0), *files_.Contents(model1));
  EXPECT_EQ(Load(kDir2, 2).code(), absl::StatusCode::kDataLoss);
  std::swap(*files_.Contents(model0), *files_.Contents(model1));

  // The same shard of another step: sizes and names fit, the bytes do not.
  std::string& mine = *files_.Contents(model0);
  const std::string saved = mine;
  mine = *files_.Contents(std::string(kDir1) + "/model-00000-of-00002.safetensors");
  ASSERT_EQ(mine.size(), saved.size());
  EXPECT_EQ(Load(kDir2, 2).code(), absl::StatusCode::kDataLoss);
  mine = saved;

  // The manifest of another step.
  std::string& manifest = *files_.Contents(std::string(kDir2) + "/MANIFEST.pb");
  const std::string saved_manifest = manifest;
  manifest = *files_.Contents(std::string(kDir1) + "/MANIFEST.pb");
  EXPECT_EQ(Load(kDir2, 2).code(), absl::StatusCode::kDataLoss);
  manifest = saved_manifest;

  ASSERT_TRUE(WriteFile(files_, std::string(kDir2) + "/notes.txt", "x").ok());
  EXPECT_NE(Verify(kDir2).find("notes.txt does not belong there"), std::string::npos);
  ASSERT_TRUE(files_.RemoveFile(std::string(kDir2) + "/notes.txt").ok());
  EXPECT_EQ(Verify(kDir2), "");

  ASSERT_TRUE(files_.RemoveFile(model1).ok());
  const absl::Status missing = Load(kDir2, 2);
  EXPECT_EQ(missing.code(), absl::StatusCode::kDataLoss);
  EXPECT_NE(std::string(missing.message()).find("model-00001-of-00002.safetensors is missing"),
            std::string::npos)
      << missing;
  EXPECT_NE(Verify(kDir2).find("model-00001-of-00002"), std::string::npos);
}

TEST_F(CheckpointDamage, AForgedBlockChecksumStillFailsTheDigest) {
  // Change a weight and repair every checksum: only the digest of the tensor is left to tell.
  const std::string name = "model-00001-of-00002.safetensors";
  std::string& shard = *files_.Contents(absl::StrCat(kDir2, "/", name));
  shard.back() = static_cast<char>(shard.back() ^ 1);
  std::string& manifest_bytes = *files_.Contents(absl::StrCat(kDir2, "/MANIFEST.pb"));
  checkpoint::Manifest manifest;
  ASSERT_TRUE(manifest.ParseFromString(*Unframe(kManifestMagic, manifest_bytes, "m")));
  for (checkpoint::FileEntry& file : *manifest.mutable_files()) {
    if (file.name() != name) continue;
    file.set_crc32c(UpdateCrc32c(0, shard.data(), static_cast<int64_t>(shard.size())));
    file.set_block_crc32c(0, file.crc32c());
  }
  manifest_bytes = Frame(kManifestMagic, manifest.SerializeAsString());
  const absl::Status loaded = Load(kDir2, 2);
  EXPECT_EQ(loaded.code(), absl::StatusCode::kDataLoss);
  EXPECT_NE(std::string(loaded.message()).find("digests of"), std::string::npos) << loaded;
  EXPECT_NE(Verify(kDir2).find("has digest"), std::string::npos) << Verify(kDir2);
}

TEST_F(CheckpointDamage, TheOneBeforeIsTakenOnlyWhenAsked) {
  std::string& shard = *files_.Contents(absl::StrCat(kDir2, "/model-00001-of-00002.safetensors"));
  shard.back() = static_cast<char>(shard.back() ^ 1);
  RunLocalRanks(3, [&](Communicator& c) {
    RankState state(SmallModel(), 3, c.rank(), 0);
    TrainState train;
    LoadOptions options{.communicator = &c, .files = &files_};
    const auto refused = LoadNewestGood("run", state.slices(), &train, options);
    EXPECT_EQ(refused.status().code(), absl::StatusCode::kDataLoss);
    EXPECT_NE(std::string(refused.status().message()).find("--checkpoint_fallback"), std::string::npos)
        << refused.status();
    options.fallback = true;
    const auto found = LoadNewestGood("run", state.slices(), &train, options);
    ASSERT_TRUE(found.ok()) << found.status();
    EXPECT_EQ(*found, kDir1);
    EXPECT_EQ(train.step, 1);
    EXPECT_TRUE(state.Holds(1));
  });
  EXPECT_EQ(ListCheckpoints("run", &files_)->size(), 1u);
  EXPECT_TRUE(files_.Stat("run/checkpoints/.bad-step-000000002")->exists);

  // The last one is never set aside: there would be nothing left.
  std::string& last = *files_.Contents(absl::StrCat(kDir1, "/state.pb"));
  last[20] = static_cast<char>(last[20] ^ 1);
  RankState state(SmallModel(), 1, 0, 0);
  TrainState train;
  EXPECT_EQ(
      LoadNewestGood("run", state.slices(), &train, {.fallback = true, .files = &files_}).status().code(),
      absl::StatusCode::kDataLoss);
  EXPECT_EQ(ListCheckpoints("run", &files_)->size(), 1u);
}

TEST_F(CheckpointDamage, ALostManifestIsDamageAndNotAnAbsence) {
  ASSERT_TRUE(files_.RemoveFile(absl::StrCat(kDir2, "/MANIFEST.pb")).ok());
  RankState state(SmallModel(), 1, 0, 0);
  LoadOptions options{.files = &files_};
  const auto refused = LoadNewestGood("run", state.slices(), nullptr, options);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_NE(std::string(refused.status().message()).find("MANIFEST.pb"), std::string::npos);
  options.fallback = true;
  EXPECT_EQ(*LoadNewestGood("run", state.slices(), nullptr, options), kDir1);
  EXPECT_TRUE(state.Holds(1));
}

TEST_F(CheckpointDamage, AnotherModelIsNoReasonToFallBack) {
  std::vector<TestTensor> model = SmallModel();
  model.pop_back();
  RankState state(model, 1, 0, 0);
  const auto found = LoadNewestGood("run", state.slices(), nullptr, {.fallback = true, .files = &files_});
  EXPECT_EQ(found.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ListCheckpoints("run", &files_)->size(), 2u);
}

TEST_F(CheckpointDamage, ANewerFormatIsToldApartFromDamage) {
  std::string& bytes = *files_.Contents(absl::StrCat(kDir2, "/MANIFEST.pb"));
  checkpoint::Manifest manifest;
  ASSERT_TRUE(manifest.ParseFromString(*Unframe(kManifestMagic, bytes, "m")));
  manifest.set_format(2);
  bytes = Frame(kManifestMagic, manifest.SerializeAsString());
  const absl::Status loaded = Load(kDir2, 2);
  EXPECT_EQ(loaded.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(std::string(loaded.message()).find("format 2"), std::string::npos) << loaded;
}

TEST_F(CheckpointDamage, InconsistentManifestsAreRefused) {
  checkpoint::Manifest good;
  ASSERT_TRUE(good.ParseFromString(
      *Unframe(kManifestMagic, *files_.Contents(absl::StrCat(kDir2, "/MANIFEST.pb")), "m")));
  ASSERT_TRUE(ParseManifest(good.SerializeAsString(), "m").ok());
  const auto refused = [&](const std::function<void(checkpoint::Manifest*)>& change) {
    checkpoint::Manifest manifest = good;
    change(&manifest);
    return ParseManifest(manifest.SerializeAsString(), "m").status().code() == absl::StatusCode::kDataLoss;
  };
  EXPECT_TRUE(refused([](auto* m) { m->set_format(0); }));
  EXPECT_TRUE(refused([](auto* m) { m->set_step(-1); }));
  EXPECT_TRUE(refused([](auto* m) { m->mutable_files(0)->set_name("../x"); }));
  EXPECT_TRUE(refused([](auto* m) { m->mutable_files(0)->set_name(".."); }));
  EXPECT_TRUE(refused([](auto* m) { m->mutable_files(0)->set_name(m->files(1).name()); }));
  EXPECT_TRUE(refused([](auto* m) { m->mutable_files(0)->set_size(INT64_MAX); }));
  EXPECT_TRUE(refused([](auto* m) { m->mutable_files(0)->set_size(-5); }));
  EXPECT_TRUE(refused([](auto* m) { m->mutable_files(0)->add_block_crc32c(1); }));
  EXPECT_TRUE(refused([](auto* m) { m->mutable_tensors(0)->set_name(""); }));
  EXPECT_TRUE(refused([](auto* m) { m->mutable_tensors(0)->set_kind(checkpoint::KIND_UNKNOWN); }));
  EXPECT_TRUE(refused([](auto* m) { m->mutable_tensors(0)->set_kind(static_cast<checkpoint::Kind>(77)); }));
  EXPECT_TRUE(refused([](auto* m) { m->mutable_tensors(0)->set_dtype(static_cast<checkpoint::DType>(-3)); }));
  EXPECT_TRUE(refused([](auto* m) { m->mutable_tensors(0)->add_shape(2); }));
  EXPECT_TRUE(refused([](auto* m) { m->mutable_tensors(0)->add_shape(INT64_MAX); }));
  EXPECT_TRUE(refused([](auto* m) { m->mutable_tensors(0)->clear_boxes(); }));
  EXPECT_TRUE(refused([](auto* m) { *m->mutable_tensors(0)->add_boxes() = m->tensors(0).boxes(0); }));
  EXPECT_TRUE(refused([](auto* m) { *m->add_tensors() = m->tensors(0); }));
  const auto with_box = [&](const std::function<void(checkpoint::Box*)>& change) {
    return refused([&](auto* m) {
      for (auto& tensor : *m->mutable_tensors()) {
        if (tensor.shape_size() == 2) return change(tensor.mutable_boxes(0));
      }
    });
  };
  EXPECT_TRUE(with_box([](auto* b) { b->set_file(99); }));
  EXPECT_TRUE(with_box([](auto* b) { b->set_file(-1); }));
  EXPECT_TRUE(with_box([](auto* b) { b->set_byte_offset(b->byte_offset() + 1); }));
  EXPECT_TRUE(with_box([](auto* b) { b->set_byte_offset(int64_t{1} << 40); }));
  EXPECT_TRUE(with_box([](auto* b) { b->set_byte_offset(-4); }));
  EXPECT_TRUE(with_box([](auto* b) { b->set_size(0, b->size(0) + 1); }));
  EXPECT_TRUE(with_box([](auto* b) { b->set_offset(1, INT64_MAX); }));
  EXPECT_TRUE(with_box([](auto* b) { b->mutable_size()->RemoveLast(); }));
  // Two boxes that claim the same bytes.
  EXPECT_TRUE(refused([](auto* m) {
    auto& a = *m->mutable_tensors(1)->mutable_boxes(0);
    auto& b = *m->mutable_tensors(2)->mutable_boxes(0);
    b.set_file(a.file());
    b.set_byte_offset(a.byte_offset());
  }));
}

TEST_F(CheckpointDamage, RandomManifestsAreRefusedOrConsistent) {
  std::mt19937_64 random(3);
  const std::string payload =
      *Unframe(kManifestMagic, *files_.Contents(absl::StrCat(kDir2, "/MANIFEST.pb")), "m");
  int accepted = 0;
  for (int i = 0; i < 20000; ++i) {
    std::string bytes = payload;
    const int changes = 1 + static_cast<int>(random() % 3);
    for (int c = 0; c < changes; ++c) {
      const size_t at = random() % bytes.size();
      switch (random() % 4) {
        case 0:
          bytes[at] = static_cast<char>(random());
          break;
        case 1:
          bytes[at] = static_cast<char>(bytes[at] ^ (1 << (random() % 8)));
          break;
        case 2:
          bytes.erase(at, 1 + random() % 9);
          break;
        default:
          bytes.insert(at, bytes.substr(random() % bytes.size(), 1 + random() % 9));
      }
    }
    const auto manifest = ParseManifest(bytes, "m");
    if (!manifest.ok()) continue;
    ++accepted;
    // What was accepted can be worked with: this reads wherever it points.
    files_.Contents(absl::StrCat(kDir2, "/MANIFEST.pb"))->assign(Frame(kManifestMagic, bytes));
    if (accepted % 20 == 0) Verify(kDir2);
  }
  EXPECT_GT(accepted, 100);
  EXPECT_LT(accepted, 18000);
}

TEST_F(CheckpointDamage, RandomFramesAreRefused) {
  std::mt19937_64 random(4);
  std::string& bytes = *files_.Contents(absl::StrCat(kDir2, "/MANIFEST.pb"));
  const std::string good = bytes;
  for (int i = 0; i < 500; ++i) {
    bytes = good;
    const size_t at = random() % 16;
    bytes[at] = static_cast<char>(bytes[at] ^ (1 + random() % 255));
    EXPECT_EQ(Load(kDir2, 2).code(), absl::StatusCode::kDataLoss);
  }
}
}  // namespace
}  // namespace carousel
