// Checkpoints rewritten, looked into and compared by value: the same tensors whatever the files, and nothing
// half done whatever fails.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "checkpoints/checkpoint.h"
#include "checkpoints/checkpoint_tensors.h"
#include "checkpoints/digest.h"
#include "checkpoints/rewrite.h"
#include "checkpoints/safetensors.h"
#include "checkpoints/tensor_values.h"
#include "core/base/log.h"
#include "parallel/local_communicator.h"
#include "tests/checkpoint_testing.h"
#include "tests/memory_file_system.h"
#include "tests/temp_dir.h"

namespace carousel {
namespace {

constexpr char kSource[] = "run/checkpoints/step-000000007";
constexpr char kResharded[] = "new/checkpoints/step-000000007";

class CheckpointTools : public testing::Test {
 protected:
  void SetUp() override { SetMinLogLevel(LogLevel::ERROR); }
};

// Step 7 of "run" as `world` ranks write it; a directory "out" beside it.
std::unique_ptr<MemoryFileSystem> WithCheckpoint(int world = 1) {
  auto files = std::make_unique<MemoryFileSystem>();
  RunLocalRanks(world, [&](Communicator& c) { EXPECT_TRUE(SaveStep("run", 7, 7, 0, &c, files.get()).ok()); });
  EXPECT_TRUE(CreateDirectories(*files, "out").ok());
  return files;
}
bool Loads(FileSystem& files, const std::string& dir) {
  RankState state(SmallModel(), 1, 0, 0);
  TrainState train;
  const absl::Status loaded = LoadCheckpoint(dir, state.slices(), nullptr, &train, &files);
  EXPECT_TRUE(loaded.ok()) << loaded;
  return loaded.ok() && state.Holds(7) && train == StateAt(7);
}
bool Exists(FileSystem& files, const std::string& path) { return files.Stat(path)->exists; }
std::vector<std::string> PathsWith(const MemoryFileSystem& files, const std::string& part) {
  std::vector<std::string> found;
  for (const std::string& path : files.AllFiles()) {
    if (absl::StrContains(path, part)) found.push_back(path);
  }
  return found;
}

// ---- reshard

TEST_F(CheckpointTools, AReshardedCheckpointHasTheSameTensorsStateAndConfigInOtherFiles) {
  for (const int world : {1, 3}) {
    const auto files = WithCheckpoint(world);
    for (const int64_t ranks : {1, 2, 5, 8, 40}) {
      for (const int64_t file_bytes : {int64_t{1}, int64_t{100}, int64_t{600}, int64_t{1} << 30}) {
        const auto written = ReshardCheckpoint(kSource, "new", ranks, file_bytes, {.files = files.get()});
        ASSERT_TRUE(written.ok()) << written.status();
        EXPECT_TRUE(Loads(*files, kResharded));
        EXPECT_TRUE(DiffCheckpoints(kSource, kResharded, false, files.get())->empty());
        EXPECT_TRUE(VerifyCheckpoint(kResharded, nullptr, files.get())->problems.empty());
        EXPECT_EQ(*ReadCheckpointConfig(kResharded, files.get()), "model {}\n");
        const CheckpointInfo info = *OpenCheckpoint(kResharded, files.get()),
                             old = *OpenCheckpoint(kSource, files.get());
        EXPECT_EQ(info.world_size, ranks);
        EXPECT_EQ(info.num_files, written->num_files);
        EXPECT_EQ(info.run_id, old.run_id);
        EXPECT_EQ(info.unix_nanos, old.unix_nanos);
        if (file_bytes > 100000 && ranks <= 8) {
          // One of weights and one of moments per rank, the manifest, the state and the config.
          EXPECT_EQ(info.num_files, 2 * ranks + 3);
        }
        for (const std::string& path : PathsWith(*files, "/new/checkpoints/step-")) {
          if (!absl::StrContains(path, ".safetensors") || file_bytes < 8) continue;
          // A header, then at most file_bytes of tensors.
          const auto header_bytes = SafetensorsHeaderBytes(
              files->Contents(path)->data(), static_cast<int64_t>(files->Contents(path)->size()), path);
          EXPECT_LE(static_cast<int64_t>(files->Contents(path)->size()) - *header_bytes, file_bytes);
        }
        ASSERT_TRUE(RemoveTree(*files, "new").ok());
      }
    }
  }
}

TEST_F(CheckpointTools, ReshardRefusesWhatCannotBeAndSaysWhy) {
  const auto files = WithCheckpoint();
  const RewriteOptions options{.files = files.get()};
  EXPECT_EQ(ReshardCheckpoint(kSource, "new", 0, 100, options).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ReshardCheckpoint(kSource, "new", 1, 0, options).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ReshardCheckpoint(kSource, "run", 2, 100, options).status().code(),
            absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(ReshardCheckpoint("nothing", "new", 2, 100, options).status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_TRUE(Loads(*files, kSource));
  const auto lease = RunLease::Acquire("new", LeaseOptions{.files = files.get(), .thread = false});
  ASSERT_TRUE(lease.ok());
  const absl::Status busy = ReshardCheckpoint(kSource, "new", 2, 100, options).status();
  EXPECT_EQ(busy.code(), absl::StatusCode::kFailedPrecondition) << busy;
}

TEST_F(CheckpointTools, AFlippedBitInTheSourceIsNeverCopied) {
  for (const char* const name : {"/model-00000-of-00001.safetensors", "/optim-00000-of-00001.safetensors",
                                 "/state.pb", "/config.textproto"}) {
    const auto files = WithCheckpoint();
    files->Contents(std::string(kSource) + name)->back() ^= 4;
    const RewriteOptions options{.files = files.get()};
    const absl::Status resharded = ReshardCheckpoint(kSource, "new", 2, 1 << 20, options).status();
    EXPECT_EQ(resharded.code(), absl::StatusCode::kDataLoss) << name << resharded;
    EXPECT_TRUE(absl::StrContains(resharded.message(), std::string(name).substr(1))) << resharded;
    EXPECT_TRUE(PathsWith(*files, "step-000000007/").size() > 0 && !Exists(*files, kResharded));
    EXPECT_TRUE(PathsWith(*files, ".tmp-").empty());
    if (!absl::StrContains(name, ".safetensors")) continue;
    const absl::Status merged = MergeCheckpoint(kSource, "out/all.safetensors", true, options).status();
    EXPECT_EQ(merged.code(), absl::StatusCode::kDataLoss) << merged;
    EXPECT_TRUE(PathsWith(*files, "/out/").empty());
  }
}

// ---- merge

TEST_F(CheckpointTools, AMergedFileHoldsWholeTensorsThatTheReaderOfTheFormatFinds) {
  const TempDir dir;
  const std::string run = dir.path() + "/run", out = dir.path() + "/all.safetensors";
  RunLocalRanks(3, [&](Communicator& c) { ASSERT_TRUE(SaveStep(run, 7, 7, 0, &c, nullptr).ok()); });
  int64_t last = 0, total = 0;
  const auto merged = MergeCheckpoint(run + "/checkpoints/step-000000007", out, true,
                                      {.progress = [&](int64_t done, int64_t all) {
                                        EXPECT_GE(done, last);
                                        EXPECT_LE(done, all);
                                        last = done;
                                        total = all;
                                      }});
  ASSERT_TRUE(merged.ok()) << merged.status();
  EXPECT_EQ(last, total);
  EXPECT_EQ(merged->num_tensors, static_cast<int64_t>(3 * SmallModel().size()));
  const auto reader = SafetensorsReader::Open(out);
  ASSERT_TRUE(reader.ok()) << reader.status();
  EXPECT_EQ(reader->metadata().at("step"), "7");
  RankState state(SmallModel(), 1, 0, 7);
  auto source = *CheckpointTensors::Open(run + "/checkpoints/step-000000007");
  for (const CheckpointTensor& tensor : source.tensors()) {
    const std::string name =
        tensor.kind == StateKind::kWeight ? tensor.name : absl::StrCat(tensor.name, ".", NameOf(tensor.kind));
    const SafetensorsEntry* const entry = reader->Find(name);
    ASSERT_NE(entry, nullptr) << name;
    EXPECT_EQ(entry->shape, tensor.shape);
    EXPECT_EQ(DigestRange(reader->data(*entry), tensor.dtype, 0, tensor.num_elems), tensor.digest) << name;
  }
  EXPECT_EQ(MergeCheckpoint(run + "/checkpoints/step-000000007", out, true).status().code(),
            absl::StatusCode::kAlreadyExists);
  const auto weights = MergeCheckpoint(run + "/checkpoints/step-000000007", out + "2", false);
  EXPECT_EQ(weights->num_tensors, static_cast<int64_t>(SmallModel().size()));
  EXPECT_EQ(
      MergeCheckpoint(run + "/checkpoints/step-000000007", dir.path() + "/no/where", false).status().code(),
      absl::StatusCode::kNotFound);
}

TEST_F(CheckpointTools, MergeNoticesADiskThatReturnsOtherBytesThanItWasGiven) {
  const auto files = WithCheckpoint();
  bool damaged = false;
  files->SetFault([&](int64_t, const std::string& call, const std::string& path) {
    // When it is opened to be read back. (Contents takes no lock.)
    if (call == "open" && absl::StrContains(path, "all.safetensors") && !damaged) {
      damaged = true;
      (*files->Contents("out/all.safetensors.tmp")).back() ^= 1;
    }
    return absl::OkStatus();
  });
  const absl::Status merged =
      MergeCheckpoint(kSource, "out/all.safetensors", false, {.files = files.get()}).status();
  EXPECT_TRUE(damaged);
  EXPECT_EQ(merged.code(), absl::StatusCode::kDataLoss) << merged;
  EXPECT_TRUE(absl::StrContains(merged.message(), "tensor ")) << merged;
  EXPECT_TRUE(PathsWith(*files, "/out/").empty());
}

// ---- faults and crashes

struct Tool {
  const char* name;
  std::function<absl::Status(FileSystem&)> run;
  std::string result;  // exists when it is done
};
std::vector<Tool> Tools() {
  return {{"merge",
           [](FileSystem& f) {
             return MergeCheckpoint(kSource, "out/all.safetensors", true, {.files = &f}).status();
           },
           "out/all.safetensors"},
          {"reshard",
           [](FileSystem& f) { return ReshardCheckpoint(kSource, "new", 2, 900, {.files = &f}).status(); },
           kResharded}};
}
// The result is there and whole, or not there.
bool WholeIfThere(MemoryFileSystem& files, const Tool& tool) {
  if (!Exists(files, tool.result)) return false;
  if (tool.result == kResharded) {
    EXPECT_TRUE(Loads(files, kResharded));
  } else {
    const auto whole = WithCheckpoint();
    EXPECT_TRUE(tool.run(*whole).ok());
    EXPECT_EQ(*files.Contents(tool.result), *whole->Contents(tool.result));
  }
  return true;
}

TEST_F(CheckpointTools, ACrashAtAnyCallLeavesTheSourceAndAWholeResultOrNone) {
  for (const Tool& tool : Tools()) {
    const auto whole = WithCheckpoint();
    whole->SetFault(nullptr);
    ASSERT_TRUE(tool.run(*whole).ok());
    const int64_t num_calls = whole->num_calls();
    ASSERT_GT(num_calls, 30) << tool.name;
    int there = 0, absent = 0;
    for (int64_t k = 0; k <= num_calls; ++k) {
      for (int mode = 0; mode < 3; ++mode) {
        const auto files = WithCheckpoint();
        files->SetFault([&](int64_t index, const std::string&, const std::string&) {
          return index < k ? absl::OkStatus() : absl::UnavailableError("the process is dead");
        });
        const bool done = tool.run(*files).ok();
        files->CrashNow(mode == 0   ? MemoryFileSystem::Crash::kLoseAll
                        : mode == 1 ? MemoryFileSystem::Crash::kKeepAll
                                    : MemoryFileSystem::Crash::kRandom,
                        static_cast<uint64_t>(10 * k + mode));
        SCOPED_TRACE(absl::StrCat(tool.name, " dead from call ", k, " on, mode ", mode));
        EXPECT_TRUE(Loads(*files, kSource));
        const bool result = WholeIfThere(*files, tool);
        EXPECT_TRUE(result || !done);
        ++(result ? there : absent);
        if (result) continue;
        const absl::Status again = tool.run(*files);
        EXPECT_TRUE(again.ok()) << again;
        EXPECT_TRUE(WholeIfThere(*files, tool));
        EXPECT_TRUE(PathsWith(*files, ".tmp").empty());
      }
    }
    EXPECT_GT(there, 1) << tool.name;
    EXPECT_GT(absent, 60) << tool.name;
  }
}

TEST_F(CheckpointTools, AnyFailingCallIsReportedAndLeavesNoHalfResult) {
  for (const Tool& tool : Tools()) {
    const auto whole = WithCheckpoint();
    whole->SetFault(nullptr);
    ASSERT_TRUE(tool.run(*whole).ok());
    const int64_t num_calls = whole->num_calls();
    int failed = 0;
    for (int64_t k = 0; k < num_calls; ++k) {
      const auto files = WithCheckpoint();
      files->SetFault([&](int64_t index, const std::string&, const std::string&) {
        return index == k ? absl::ResourceExhaustedError("injected: No space left on device")
                          : absl::OkStatus();
      });
      const absl::Status status = tool.run(*files);
      files->SetFault(nullptr);
      SCOPED_TRACE(absl::StrCat(tool.name, " call ", k));
      EXPECT_TRUE(Loads(*files, kSource));
      EXPECT_TRUE(WholeIfThere(*files, tool) || !status.ok());
      if (status.ok()) continue;
      ++failed;
      EXPECT_TRUE(absl::StrContains(status.message(), "injected")) << status;
      EXPECT_TRUE(PathsWith(*files, ".tmp-step").empty() &&
                  PathsWith(*files, "/out/all.safetensors.tmp").empty());
    }
    EXPECT_GT(failed, 25) << tool.name;
  }
}

TEST_F(CheckpointTools, AFullDiskIsNoticedBeforeTensorsAreWritten) {
  const auto files = WithCheckpoint();
  files->SetFreeBytes(1000);
  for (const Tool& tool : Tools()) {
    const absl::Status status = tool.run(*files);
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
    EXPECT_TRUE(absl::StrContains(status.message(), "1000 are free")) << status;
    EXPECT_FALSE(Exists(*files, tool.result));
  }
}

// ---- values

// Saves one tensor of doubles.
std::string SaveValues(FileSystem& files, const std::string& run_dir, std::vector<double> values) {
  SaveRequest request;
  request.run_dir = run_dir;
  request.state.step = 1;
  request.slices = {
      WholeSlice("x", StateKind::kWeight, DType::kF64, {static_cast<int64_t>(values.size())}, values.data())};
  request.files = &files;
  EXPECT_TRUE(SaveCheckpoint(request).ok());
  return run_dir + "/checkpoints/step-000000001";
}

TEST_F(CheckpointTools, ValuesAreSummarizedAsTheyAre) {
  MemoryFileSystem files;
  const double inf = std::numeric_limits<double>::infinity(), nan = std::nan("");
  auto tensors = *CheckpointTensors::Open(SaveValues(files, "a", {1, -3, nan, 2, inf, -inf, 4}), &files);
  const ValueSummary s = *SummarizeValues(tensors, tensors.tensors()[0]);
  EXPECT_EQ(s.num_nan, 1);
  EXPECT_EQ(s.num_inf, 2);
  EXPECT_EQ(s.num_finite, 4);
  EXPECT_EQ(s.min, -3);
  EXPECT_EQ(s.max, 4);
  EXPECT_EQ(s.mean, 1);
  EXPECT_DOUBLE_EQ(s.rms, std::sqrt(30.0 / 4));
  auto nothing = *CheckpointTensors::Open(SaveValues(files, "b", {nan}), &files);
  EXPECT_EQ(SummarizeValues(nothing, nothing.tensors()[0])->num_finite, 0);
  // Many pieces: a ramp of 5 million values is more than one piece of 32 MiB.
  std::vector<double> ramp(5'000'000);
  for (size_t i = 0; i < ramp.size(); ++i) ramp[i] = static_cast<double>(i);
  auto long_one = *CheckpointTensors::Open(SaveValues(files, "c", ramp), &files);
  const ValueSummary r = *SummarizeValues(long_one, long_one.tensors()[0]);
  EXPECT_EQ(r.max, 4'999'999);
  EXPECT_NEAR(r.mean, 2'499'999.5, 1e-6);
}

TEST_F(CheckpointTools, DifferencesAreTheLargestAndTheFirst) {
  MemoryFileSystem files;
  const double inf = std::numeric_limits<double>::infinity();
  auto a = *CheckpointTensors::Open(SaveValues(files, "a", {1, 2, 0.0, 100, inf, 5}), &files);
  auto b = *CheckpointTensors::Open(SaveValues(files, "b", {1, 2.5, -0.0, 101, 7, 5}), &files);
  const ValueDifference d = *CompareValues(a, a.tensors()[0], b, b.tensors()[0]);
  EXPECT_EQ(d.num_different, 4);
  EXPECT_EQ(d.first, 1);
  EXPECT_EQ(d.max_absolute, 1);
  EXPECT_EQ(d.max_relative, 0.2);
  EXPECT_EQ(d.num_not_finite, 1);
  // (0.5^2 + 1^2) over the squares of the finite pairs of a, the equal ones included.
  EXPECT_DOUBLE_EQ(d.rms, std::sqrt(1.25 / 5));
  EXPECT_DOUBLE_EQ(d.rms_of_a, std::sqrt((1 + 4 + 0 + 100 * 100 + 5 * 5) / 5.0));
  EXPECT_DOUBLE_EQ(d.RelativeNorm(0), d.rms / d.rms_of_a);
  EXPECT_DOUBLE_EQ(d.RelativeNorm(1000), d.rms / 1000);
  EXPECT_EQ(CompareValues(a, a.tensors()[0], a, a.tensors()[0])->num_different, 0);
  EXPECT_EQ(CompareValues(a, a.tensors()[0], a, a.tensors()[0])->RelativeNorm(0), 0);
  auto zeros = *CheckpointTensors::Open(SaveValues(files, "z", {0, 0}), &files);
  auto ones = *CheckpointTensors::Open(SaveValues(files, "o", {1, 0}), &files);
  EXPECT_EQ(CompareValues(zeros, zeros.tensors()[0], ones, ones.tensors()[0])->RelativeNorm(0), inf);
  // Late in a tensor of several pieces.
  std::vector<double> ramp(5'000'000, 1.0);
  auto flat = *CheckpointTensors::Open(SaveValues(files, "c", ramp), &files);
  ramp[4'900'000] = 1.25;
  auto bump = *CheckpointTensors::Open(SaveValues(files, "d", ramp), &files);
  const ValueDifference late = *CompareValues(flat, flat.tensors()[0], bump, bump.tensors()[0]);
  EXPECT_EQ(late.num_different, 1);
  EXPECT_EQ(late.first, 4'900'000);
  EXPECT_EQ(late.max_absolute, 0.25);
  EXPECT_DOUBLE_EQ(late.RelativeNorm(0), 0.25 / std::sqrt(5e6));
}
}  // namespace
}  // namespace carousel
