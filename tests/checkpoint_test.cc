// Checkpoints: what is saved comes back, whatever the number of ranks, or is refused.
#include "checkpoints/checkpoint.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <numeric>
#include <set>

#include "checkpoints/boxes.h"
#include "checkpoints/checkpoint_tensors.h"
#include "checkpoints/manifest.h"
#include "checkpoints/safetensors.h"
#include "checkpoints/shard_plan.h"
#include "core/base/log.h"
#include "parallel/local_communicator.h"
#include "tests/checkpoint_testing.h"
#include "tests/memory_file_system.h"
#include "tests/temp_dir.h"

namespace carousel {
namespace {

bool Contains(const absl::Status& status, const std::string& text) {
  return std::string(status.message()).find(text) != std::string::npos;
}
// Saves on `world` ranks; the status of every rank is the same.
absl::Status SaveOn(int world, FileSystem& files, int64_t step, uint64_t seed, int64_t keep_last = 0,
                    int64_t max_file_bytes = 1 << 30, const std::string& run_dir = "run") {
  std::vector<absl::Status> statuses(static_cast<size_t>(world));
  RunLocalRanks(world, [&](Communicator& c) {
    statuses[static_cast<size_t>(c.rank())] =
        SaveStep(run_dir, step, seed, keep_last, &c, &files, max_file_bytes);
  });
  for (const absl::Status& status : statuses) EXPECT_EQ(status, statuses[0]);
  return statuses[0];
}
absl::Status LoadOn(int world, FileSystem& files, const std::string& dir, uint64_t seed) {
  std::vector<absl::Status> statuses(static_cast<size_t>(world));
  RunLocalRanks(world, [&](Communicator& c) {
    RankState state(SmallModel(), world, c.rank(), 0);
    TrainState train;
    absl::Status& status = statuses[static_cast<size_t>(c.rank())];
    status = LoadCheckpoint(dir, state.slices(), &c, &train, &files);
    if (status.ok()) {
      EXPECT_TRUE(state.Holds(seed));
      EXPECT_EQ(ToProto(train).SerializeAsString(), ToProto(StateAt(train.step)).SerializeAsString());
    }
  });
  for (const absl::Status& status : statuses) EXPECT_EQ(status, statuses[0]);
  return statuses[0];
}
std::string StepDir(int64_t step) { return absl::StrCat("run/checkpoints/step-00000000", step); }

TEST(Checkpoint, ComesBackBitForBitFromTheRealFileSystem) {
  const TempDir dir;
  const std::string run_dir = dir.path() + "/new/run";
  ASSERT_TRUE(SaveStep(run_dir, 7, 42, 3, nullptr, nullptr).ok());
  RankState state(SmallModel(), 1, 0, 0);
  TrainState train;
  const auto found = LoadNewestGood(run_dir, state.slices(), &train, {});
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_EQ(*found, run_dir + "/checkpoints/step-000000007");
  EXPECT_TRUE(state.Holds(42));
  EXPECT_FALSE(state.Holds(43));
  EXPECT_EQ(ToProto(train).SerializeAsString(), ToProto(StateAt(7)).SerializeAsString());

  const auto info = OpenCheckpoint(*found);
  ASSERT_TRUE(info.ok());
  EXPECT_EQ(info->run_id, "test-run");
  EXPECT_EQ(info->state.consumed_tokens, 7 * 1024);
  EXPECT_EQ(info->num_files, 5);  // model, optim, state, config, manifest
  EXPECT_EQ(info->num_parameters, 11 * 5 + 6 * 8 + 4 * 3 * 5 + 13 + 1 + 1 + 3 * 7);
  EXPECT_EQ(info->num_tensors, 21);
  int64_t bytes = 0;
  for (const auto& entry : std::filesystem::directory_iterator(*found)) {
    if (entry.path().filename() != "MANIFEST.json") bytes += static_cast<int64_t>(entry.file_size());
  }
  EXPECT_EQ(info->num_bytes, bytes);
  EXPECT_EQ(*ReadCheckpointConfig(*found), "model {}\n");
}

TEST(Checkpoint, AnyNumberOfRanksReadsWhatAnyNumberWrote) {
  std::set<std::string> digests;
  for (const int writers : {1, 2, 3, 4, 7}) {
    for (const int64_t max_file_bytes : {int64_t{1} << 30, int64_t{100}}) {
      MemoryFileSystem files;
      ASSERT_TRUE(SaveOn(writers, files, 5, 42, 0, max_file_bytes).ok());
      for (const int readers : {1, 2, 3, 5}) {
        const absl::Status loaded = LoadOn(readers, files, StepDir(5), 42);
        EXPECT_TRUE(loaded.ok()) << writers << " to " << readers << ": " << loaded;
      }
      const auto report = VerifyCheckpoint(StepDir(5), nullptr, &files);
      ASSERT_TRUE(report.ok());
      EXPECT_TRUE(report->problems.empty()) << report->problems[0];
      const auto tensors = CheckpointTensors::Open(StepDir(5), &files);
      ASSERT_TRUE(tensors.ok());
      std::string all;
      for (const CheckpointTensor& t : tensors->tensors()) absl::StrAppend(&all, t.name, t.digest, "\n");
      digests.insert(all);
    }
  }
  EXPECT_EQ(digests.size(), 1u) << "digests depend on the layout";
}

TEST(Checkpoint, ShardsOpenAsOrdinarySafetensorsFiles) {
  const TempDir dir;
  PosixFileSystem files;
  ASSERT_TRUE(SaveOn(3, files, 5, 42, 0, 1 << 30, dir.path()).ok());
  int64_t weights = 0;
  int num_shards = 0;
  for (const auto& entry : std::filesystem::directory_iterator(dir.path() + "/checkpoints/step-000000005")) {
    if (entry.path().extension() != ".safetensors") continue;
    ++num_shards;
    const auto reader = SafetensorsReader::Open(entry.path().string());
    ASSERT_TRUE(reader.ok()) << reader.status();
    EXPECT_EQ(reader->metadata().at("step"), "5");
    for (const SafetensorsEntry& t : reader->tensors()) {
      EXPECT_EQ(reader->metadata().at(t.name).find("{\"global_shape\":["), 0u);
      if (entry.path().filename().string().find("model-") == 0) weights += t.num_elems();
    }
  }
  EXPECT_EQ(num_shards, 6);
  EXPECT_EQ(weights, OpenCheckpoint(dir.path() + "/checkpoints/step-000000005")->num_parameters);
}

TEST(Checkpoint, TensorsOfSeveralBlocksComeBack) {
  // 19 MB in the second shard: two blocks of 16 MiB, with elements of one tensor in both.
  const std::vector<TestTensor> model = {{"a", {1000, 1250}}, {"b", {5000, 1000}}};
  MemoryFileSystem files;
  RunLocalRanks(2, [&](Communicator& c) {
    RankState state(model, 2, c.rank(), 9);
    SaveRequest request;
    request.run_dir = "run";
    request.state = StateAt(1);
    request.slices = state.Of(StateKind::kWeight);
    request.communicator = &c;
    request.files = &files;
    ASSERT_TRUE(SaveCheckpoint(request).ok());
  });
  RunLocalRanks(3, [&](Communicator& c) {
    RankState state(model, 3, c.rank(), 0);
    const absl::Status loaded = LoadCheckpoint(StepDir(1), state.Of(StateKind::kWeight), &c, nullptr, &files);
    EXPECT_TRUE(loaded.ok()) << loaded;
    RankState expected(model, 3, c.rank(), 9);
    const auto read = state.Of(StateKind::kWeight), right = expected.Of(StateKind::kWeight);
    for (size_t i = 0; i < read.size(); ++i) {
      EXPECT_EQ(std::memcmp(read[i].data, right[i].data, static_cast<size_t>(4 * read[i].num_elems())), 0);
    }
  });
  int64_t calls = 0, last = 0, total = 0;
  const auto report = VerifyCheckpoint(
      StepDir(1),
      [&](int64_t done, int64_t all) {
        EXPECT_GT(done, last);
        last = done;
        total = all;
        ++calls;
      },
      &files);
  EXPECT_TRUE(report->problems.empty());
  EXPECT_EQ(last, total);
  EXPECT_GE(calls, 4);

  std::string& shard = *files.Contents(StepDir(1) + "/model-00001-of-00002.safetensors");
  shard[17 << 20] = static_cast<char>(shard[17 << 20] ^ 1);
  const auto damaged = VerifyCheckpoint(StepDir(1), nullptr, &files);
  ASSERT_EQ(damaged->problems.size(), 1u);
  EXPECT_NE(damaged->problems[0].find("block 1 (bytes 16777216 to "), std::string::npos)
      << damaged->problems[0];
  EXPECT_NE(damaged->problems[0].find("changed: tensor b"), std::string::npos) << damaged->problems[0];
}

TEST(Checkpoint, WeightsAloneAreLoadedWithoutTheMoments) {
  MemoryFileSystem files;
  ASSERT_TRUE(SaveOn(2, files, 5, 42).ok());
  RankState state(SmallModel(), 1, 0, 0);
  const absl::Status loaded =
      LoadCheckpoint(StepDir(5), state.Of(StateKind::kWeight), nullptr, nullptr, &files);
  EXPECT_TRUE(loaded.ok()) << loaded;
  RankState expected(SmallModel(), 1, 0, 42);
  for (size_t i = 0; i < state.Of(StateKind::kWeight).size(); ++i) {
    const StateSlice a = state.Of(StateKind::kWeight)[i], b = expected.Of(StateKind::kWeight)[i];
    EXPECT_EQ(std::memcmp(a.data, b.data, static_cast<size_t>(a.num_elems() * SizeOf(a.dtype))), 0);
  }
}

TEST(Checkpoint, AllDifferencesOfAnotherModelAreToldAtOnce) {
  MemoryFileSystem files;
  ASSERT_TRUE(SaveOn(1, files, 5, 42).ok());
  std::vector<TestTensor> model = SmallModel();
  model[0].name = "embeding.weight";
  model[1].shape = {8, 6};
  model[6].dtype = DType::kF32;
  std::vector<absl::Status> statuses(2);
  RunLocalRanks(2, [&](Communicator& c) {
    RankState state(model, 2, c.rank(), 0);
    statuses[static_cast<size_t>(c.rank())] = LoadCheckpoint(StepDir(5), state.slices(), &c, nullptr, &files);
  });
  EXPECT_EQ(statuses[0], statuses[1]);
  EXPECT_EQ(statuses[0].code(), absl::StatusCode::kFailedPrecondition);
  for (const char* const text :
       {"embeding.weight is wanted and is not in the checkpoint; the closest are embedding.weight",
        "embedding.weight of shape [11, 5] is in the checkpoint",
        "blocks.0.q.weight has shape [6, 8] in the checkpoint; [8, 6] is wanted",
        "head.weight has dtype f64 in the checkpoint; f32 is wanted", "head.weight (exp_avg_sq)"}) {
    EXPECT_TRUE(Contains(statuses[0], text)) << text << "\n" << statuses[0];
  }
}

TEST(Checkpoint, SlicesThatDoNotTileAreRefusedOnEveryRankBeforeAnythingIsWritten) {
  const auto save = [](const std::function<void(int rank, std::vector<StateSlice>*)>& change) {
    MemoryFileSystem files;
    std::vector<absl::Status> statuses(2);
    RunLocalRanks(2, [&](Communicator& c) {
      RankState state(SmallModel(), 2, c.rank(), 1);
      change(c.rank(), &state.slices());
      SaveRequest request;
      request.run_dir = "run";
      request.state = StateAt(1);
      request.slices = state.slices();
      request.communicator = &c;
      request.files = &files;
      statuses[static_cast<size_t>(c.rank())] = SaveCheckpoint(request);
    });
    EXPECT_EQ(statuses[0], statuses[1]);
    EXPECT_TRUE(files.AllFiles().empty());
    EXPECT_EQ(statuses[0].code(), absl::StatusCode::kInvalidArgument);
    return statuses[0];
  };
  EXPECT_TRUE(Contains(save([](int rank, auto* s) {
                         if (rank == 0) s->erase(s->begin());
                       }),
                       "embedding.weight"));
  EXPECT_TRUE(Contains(save([](int rank, auto* s) {
                         if (rank == 1) s->push_back(s->front());
                       }),
                       "repeat"));
  EXPECT_TRUE(Contains(save([](int rank, auto* s) {
                         if (rank == 1) s->back().size.back() += 1;
                       }),
                       "which it has not"));
  EXPECT_TRUE(Contains(save([](int rank, auto* s) {
                         if (rank == 1) s->front().offset[0] = -1;
                       }),
                       "which it has not"));
  EXPECT_TRUE(Contains(save([](int rank, auto* s) {
                         if (rank == 1) s->front().shape = {5, 11};
                       }),
                       "[5, 11]"));
}

TEST(Checkpoint, RanksInDifferentStatesAreRefused) {
  MemoryFileSystem files;
  RunLocalRanks(2, [&](Communicator& c) {
    const absl::Status saved = SaveStep("run", 1 + c.rank(), 1, 0, &c, &files);
    EXPECT_EQ(saved.code(), absl::StatusCode::kInvalidArgument) << saved;
    EXPECT_TRUE(Contains(saved, "different states")) << saved;
  });
}

TEST(Checkpoint, ClocksOfRanksMayDiffer) {
  MemoryFileSystem files;
  RunLocalRanks(2, [&](Communicator& c) {
    RankState state(SmallModel(), 2, c.rank(), 1);
    SaveRequest request;
    request.run_dir = "run";
    request.state = StateAt(1);
    request.state.wall_seconds = 10 + c.rank();
    request.slices = state.slices();
    request.communicator = &c;
    request.files = &files;
    EXPECT_TRUE(SaveCheckpoint(request).ok());
  });
  EXPECT_EQ(OpenCheckpoint(StepDir(1), &files)->state.wall_seconds, 10);
}

TEST(Checkpoint, KeepsTheLastOnesAndListsThemByStep) {
  MemoryFileSystem files;
  EXPECT_TRUE(ListCheckpoints("run", &files)->empty());
  for (const int64_t step : {9, 10, 100}) ASSERT_TRUE(SaveOn(1, files, step, 1, 0).ok());
  const auto all = ListCheckpoints("run", &files);
  ASSERT_EQ(all->size(), 3u);
  EXPECT_EQ((*all)[2], "run/checkpoints/step-000000100");
  ASSERT_TRUE(SaveOn(1, files, 1000000000, 1, 2).ok());  // a step of ten digits
  const auto two = ListCheckpoints("run", &files);
  ASSERT_EQ(two->size(), 2u);
  EXPECT_EQ((*two)[0], "run/checkpoints/step-000000100");
  EXPECT_EQ((*two)[1], "run/checkpoints/step-1000000000");
  EXPECT_EQ(*FindCheckpoint("run", &files), (*two)[1]);
  EXPECT_EQ(*FindCheckpoint((*two)[0], &files), (*two)[0]);
  EXPECT_EQ(FindCheckpoint("nowhere", &files).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(*FindCheckpoint("run/checkpoints", &files), (*two)[1]);
}

TEST(Checkpoint, IgnoresDirectoriesThatWereNeverCommittedAndAWrongLatest) {
  MemoryFileSystem files;
  ASSERT_TRUE(SaveOn(1, files, 5, 42).ok());
  ASSERT_TRUE(files.CreateDirectory("run/checkpoints/step-000000009").ok());
  ASSERT_TRUE(files.CreateDirectory("run/checkpoints/.tmp-step-000000010-1-1").ok());
  ASSERT_TRUE(files.CreateDirectory("run/checkpoints/step-11").ok());
  *files.Contents("run/checkpoints/LATEST") = "step-000000010 00000000\n";
  EXPECT_EQ(*FindCheckpoint("run", &files), StepDir(5));
  // A save of that step sets the directory aside.
  ASSERT_TRUE(SaveOn(1, files, 9, 43).ok());
  EXPECT_TRUE(files.Stat("run/checkpoints/.bad-step-000000009")->exists);
  EXPECT_TRUE(LoadOn(1, files, StepDir(9), 43).ok());
}

TEST(Checkpoint, TheSameStateTwiceIsSuccessAndAnotherOneIsRefused) {
  MemoryFileSystem files;
  ASSERT_TRUE(SaveOn(2, files, 5, 42).ok());
  EXPECT_TRUE(SaveOn(3, files, 5, 42).ok());  // digests do not depend on the layout
  const absl::Status other = SaveOn(3, files, 5, 43);
  EXPECT_EQ(other.code(), absl::StatusCode::kAlreadyExists) << other;
  EXPECT_TRUE(LoadOn(1, files, StepDir(5), 42).ok());
}

TEST(Checkpoint, OneRunDirectoryHasOneWriter) {
  const TempDir dir;
  {
    const auto lease = RunLease::Acquire(dir.path());
    ASSERT_TRUE(lease.ok());
    const auto second = RunLease::Acquire(dir.path());
    EXPECT_EQ(second.status().code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_TRUE(Contains(second.status(), absl::StrCat("process ", getpid()))) << second.status();
    EXPECT_EQ(SaveStep(dir.path(), 1, 1, 0, nullptr, nullptr).code(), absl::StatusCode::kFailedPrecondition);
    RankState state(SmallModel(), 1, 0, 1);
    SaveRequest request;
    request.run_dir = dir.path();
    request.slices = state.slices();
    request.lease = lease->get();
    EXPECT_TRUE(SaveCheckpoint(request).ok());
  }
  EXPECT_TRUE(SaveStep(dir.path(), 1, 1, 0, nullptr, nullptr).ok());
}

TEST(Checkpoint, AnUnwritableRunDirectoryIsNamed) {
  const absl::Status saved = SaveStep("/proc/no/run", 1, 1, 0, nullptr, nullptr);
  EXPECT_FALSE(saved.ok());
  EXPECT_TRUE(Contains(saved, "/proc/no")) << saved;
  const TempDir dir;
  PosixFileSystem files;
  ASSERT_TRUE(WriteFile(files, dir.path() + "/run", "x").ok());
  EXPECT_FALSE(SaveStep(dir.path() + "/run", 1, 1, 0, nullptr, nullptr).ok());
}

TEST(Checkpoint, RetentionMakesRoomWhenTheDiskIsFull) {
  MemoryFileSystem files;
  for (const int64_t step : {1, 2, 3}) ASSERT_TRUE(SaveOn(1, files, step, 1, 0).ok());
  // Room only after something was removed.
  files.SetFreeBytes(0);
  files.SetFault([&](int64_t, const std::string& call, const std::string&) {
    if (call == "rmdir") files.SetFreeBytes(1 << 30);
    return absl::OkStatus();
  });
  EXPECT_TRUE(SaveOn(1, files, 4, 1, 2).ok());
  EXPECT_EQ(ListCheckpoints("run", &files)->size(), 2u);
}

TEST(Checkpoint, RunsOfAnyRangeFindEachElementInAnyGridOfBoxes) {
  // Column and row cuts, as a tensor-parallel writer would make.
  checkpoint::TensorEntry entry;
  entry.set_dtype(checkpoint::F32);
  for (const int64_t d : {5, 7}) entry.add_shape(d);
  std::vector<int64_t> offset_of(35);  // where each element lies
  int64_t bytes = 4096;
  for (const auto& [r0, r1] : {std::pair{0, 2}, {2, 5}}) {
    for (const auto& [c0, c1] : {std::pair{0, 3}, {3, 4}, {4, 7}}) {
      checkpoint::Box* const box = entry.add_boxes();
      for (const int o : {r0, c0}) box->add_offset(o);
      for (const int s : {r1 - r0, c1 - c0}) box->add_size(s);
      box->set_byte_offset(bytes);
      for (int r = r0; r < r1; ++r) {
        for (int c = c0; c < c1; ++c, bytes += 4) offset_of[static_cast<size_t>(7 * r + c)] = bytes;
      }
    }
  }
  for (int64_t begin = 0; begin < 35; ++begin) {
    for (int64_t count = 1; begin + count <= 35; ++count) {
      std::vector<FileRun> runs;
      for (const Box& box : BoxesOfRange({5, 7}, begin, count)) AppendRuns(entry, box, 17, &runs);
      std::vector<int> seen(35, 0);
      for (const FileRun& run : runs) {
        EXPECT_EQ(run.tag, 17);
        for (int64_t j = 0; j < run.count; ++j) {
          const size_t e = static_cast<size_t>(run.elem + j);
          ASSERT_EQ(run.byte_offset + 4 * j, offset_of[e]);
          ++seen[e];
        }
      }
      for (int64_t e = 0; e < 35; ++e) {
        ASSERT_EQ(seen[static_cast<size_t>(e)], e >= begin && e < begin + count ? 1 : 0);
      }
    }
  }
}

TEST(CheckpointTensors, ReadsWholeTensorsAndRanges) {
  MemoryFileSystem files;
  ASSERT_TRUE(SaveOn(3, files, 5, 42).ok());
  auto tensors = CheckpointTensors::Open(StepDir(5), &files);
  ASSERT_TRUE(tensors.ok());
  RankState expected(SmallModel(), 1, 0, 42);
  for (const StateSlice& slice : expected.slices()) {
    const CheckpointTensor* const tensor = tensors->Find(slice.name, slice.kind);
    ASSERT_NE(tensor, nullptr);
    EXPECT_EQ(tensor->shape, slice.shape);
    const int64_t elem = SizeOf(tensor->dtype);
    for (const auto& [begin, count] : {std::pair{int64_t{0}, slice.num_elems()},
                                       {slice.num_elems() / 3, slice.num_elems() / 2},
                                       {slice.num_elems() - 1, int64_t{1}}}) {
      std::vector<char> bytes(static_cast<size_t>(count * elem));
      ASSERT_TRUE(tensors->Read(*tensor, begin, count, bytes.data()).ok());
      EXPECT_TRUE(
          std::equal(bytes.begin(), bytes.end(), static_cast<const char*>(slice.data) + begin * elem));
    }
  }
  EXPECT_EQ(tensors->Find("embedding.weight2", StateKind::kWeight), nullptr);
}

TEST(CheckpointTensors, AreAWeightSourceThatConverts) {
  MemoryFileSystem files;
  ASSERT_TRUE(SaveOn(2, files, 5, 42).ok());
  const auto source = OpenCheckpointWeights(StepDir(5), &files);
  ASSERT_TRUE(source.ok());
  EXPECT_EQ((*source)->params().size(), SmallModel().size());
  RankState expected(SmallModel(), 1, 0, 42);
  const StateSlice slice = expected.Of(StateKind::kWeight)[0];
  const float* const right = static_cast<const float*>(slice.data);
  std::vector<double> wide(10);
  ASSERT_TRUE((*source)->Read(slice.name, 3, 10, DType::kF64, wide.data()).ok());
  for (size_t i = 0; i < 10; ++i) {
    if (!std::isnan(right[i + 3])) {
      EXPECT_EQ(wide[i], right[i + 3]);
    }
  }
  EXPECT_EQ((*source)->Read("no.such", 0, 1, DType::kF32, wide.data()).code(), absl::StatusCode::kNotFound);
}

TEST(CheckpointDiff, ComparesByDigestsAlone) {
  MemoryFileSystem files;
  ASSERT_TRUE(SaveOn(1, files, 1, 42).ok());
  ASSERT_TRUE(SaveOn(4, files, 2, 42).ok());
  ASSERT_TRUE(SaveOn(4, files, 3, 43).ok());
  EXPECT_TRUE(DiffCheckpoints(StepDir(1), StepDir(2), false, &files)->empty());
  EXPECT_EQ(DiffCheckpoints(StepDir(1), StepDir(3), false, &files)->size(), 21u);
  EXPECT_EQ(DiffCheckpoints(StepDir(1), StepDir(3), true, &files)->size(), 7u);
  EXPECT_EQ(DiffCheckpoints(StepDir(1), "nowhere", true, &files).status().code(),
            absl::StatusCode::kNotFound);
}
}  // namespace
}  // namespace carousel
