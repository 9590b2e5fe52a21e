// `carousel checkpoint ...` on real directories.
#include <gtest/gtest.h>

#include <sys/stat.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <fstream>
#include <set>

#include "absl/strings/str_format.h"
#include "launcher/commands.h"
#include "tests/checkpoint_testing.h"
#include "tests/temp_dir.h"

namespace carousel {
namespace {

struct Outcome {
  int code = -1;
  std::string out, err;
};
Outcome RunCheckpoint(const std::vector<std::string>& arguments) {
  CLI::App app("test");
  std::function<int()> run;
  AddCheckpointCommand(app, &run);
  std::vector<std::string> reversed(arguments.rbegin(), arguments.rend());
  reversed.push_back("checkpoint");
  Outcome outcome;
  try {
    app.parse(reversed);
  } catch (const CLI::ParseError& e) {
    outcome.err = e.what();
    return outcome;
  }
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  outcome.code = run();
  outcome.out = testing::internal::GetCapturedStdout();
  outcome.err = testing::internal::GetCapturedStderr();
  return outcome;
}
bool Has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

class CheckpointCommand : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(SaveStep(a_, 3, 1, 0, nullptr, nullptr).ok());
    ASSERT_TRUE(SaveStep(a_, 5, 2, 0, nullptr, nullptr).ok());
    ASSERT_TRUE(SaveStep(b_, 5, 2, 0, nullptr, nullptr, 100).ok());
  }
  void FlipLastByte(const std::string& path) {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(-1, std::ios::end);
    const char last = static_cast<char>(file.get());
    file.seekp(-1, std::ios::end);
    file.put(static_cast<char>(last ^ 1));
  }

  TempDir dir_;
  std::string a_ = dir_.path() + "/a", b_ = dir_.path() + "/b";
  std::string newest_ = a_ + "/checkpoints/step-000000005";
};

TEST_F(CheckpointCommand, LsListsWhatThereIsAndItsState) {
  const Outcome all = RunCheckpoint({"ls", a_});
  EXPECT_EQ(all.code, 0);
  EXPECT_TRUE(Has(all.out, "step-000000003") && Has(all.out, "step-000000005")) << all.out;
  EXPECT_LT(all.out.find("step-000000003"), all.out.find("step-000000005"));
  EXPECT_TRUE(Has(all.out, "5120")) << all.out;  // tokens of step 5
  EXPECT_TRUE(Has(all.out, "complete")) << all.out;

  std::filesystem::remove(newest_ + "/MANIFEST.pb");
  std::filesystem::remove(a_ + "/checkpoints/step-000000003/state.pb");
  const Outcome damaged = RunCheckpoint({"ls", a_});
  EXPECT_EQ(damaged.code, 0);
  EXPECT_TRUE(Has(damaged.out, "not complete")) << damaged.out;
  EXPECT_TRUE(Has(damaged.out, "state.pb is missing")) << damaged.out;

  EXPECT_TRUE(Has(RunCheckpoint({"ls", b_ + "/checkpoints/step-000000005"}).out, "complete"));
  EXPECT_TRUE(Has(RunCheckpoint({"ls", dir_.path()}).out, "no checkpoint in"));
  EXPECT_EQ(RunCheckpoint({"ls", dir_.path() + "/none"}).code, kExitFailure);
}

TEST_F(CheckpointCommand, VerifyExitsNonzeroAndNamesTheTensor) {
  const Outcome good = RunCheckpoint({"verify", a_});
  EXPECT_EQ(good.code, 0);
  EXPECT_TRUE(Has(good.out, "step-000000003: ok") && Has(good.out, "step-000000005: ok")) << good.out;

  FlipLastByte(newest_ + "/model-00000-of-00001.safetensors");
  const Outcome bad = RunCheckpoint({"verify", a_});
  EXPECT_EQ(bad.code, kExitFailure);
  EXPECT_TRUE(Has(bad.out, "step-000000003: ok") && Has(bad.out, "step-000000005: DAMAGED")) << bad.out;
  EXPECT_TRUE(Has(bad.out, "model-00000-of-00001.safetensors: block 0")) << bad.out;
  EXPECT_TRUE(Has(bad.out, "changed: tensor scale")) << bad.out;
  EXPECT_TRUE(Has(bad.err, "1 of 2")) << bad.err;
  EXPECT_EQ(RunCheckpoint({"verify", a_ + "/checkpoints/step-000000003"}).code, 0);
  EXPECT_EQ(RunCheckpoint({"verify", newest_}).code, kExitFailure);

  FlipLastByte(newest_ + "/MANIFEST.pb");
  EXPECT_TRUE(Has(RunCheckpoint({"verify", newest_}).out, "MANIFEST.pb is damaged"));
  EXPECT_EQ(RunCheckpoint({"verify", dir_.path()}).code, kExitFailure);
}

TEST_F(CheckpointCommand, DiffIsZeroForEqualTensorsInAnyLayout) {
  const Outcome equal = RunCheckpoint({"diff", a_, b_});  // the newest of each; one is in many small files
  EXPECT_EQ(equal.code, 0);
  EXPECT_TRUE(Has(equal.out, "have the same weights and moments")) << equal.out;
  const Outcome different = RunCheckpoint({"diff", a_ + "/checkpoints/step-000000003", b_});
  EXPECT_EQ(different.code, kExitFailure);
  EXPECT_TRUE(Has(different.out, "head.weight (exp_avg_sq): other values")) << different.out;
  EXPECT_TRUE(Has(different.out, "21 tensors differ")) << different.out;
  const Outcome weights = RunCheckpoint({"diff", a_ + "/checkpoints/step-000000003", b_, "--weights_only"});
  EXPECT_TRUE(Has(weights.out, "7 tensors differ")) << weights.out;
  EXPECT_EQ(RunCheckpoint({"diff", a_, dir_.path()}).code, kExitFailure);
}

TEST_F(CheckpointCommand, LsShowsLossesMarksAndWhatWasSetAside) {
  ASSERT_TRUE(RecordValidationLoss(a_, 3, 2.5).ok());
  ASSERT_TRUE(RecordValidationLoss(a_, 5, 2.75).ok());
  ASSERT_TRUE(MarkGood(a_, 5).ok());
  std::filesystem::copy(newest_, a_ + "/checkpoints/.bad-step-000000005",
                        std::filesystem::copy_options::recursive);
  const Outcome all = RunCheckpoint({"ls", a_});
  EXPECT_EQ(all.code, 0);
  const auto line_of = [&](const std::string& name) {
    const size_t begin = all.out.find("\n" + name + " ");
    return begin == std::string::npos ? ""
                                      : all.out.substr(begin + 1, all.out.find('\n', begin + 1) - begin - 1);
  };
  EXPECT_TRUE(Has(line_of("step-000000003"), "2.5000  best")) << all.out;
  EXPECT_TRUE(Has(line_of("step-000000005"), "2.7500  good")) << all.out;
  EXPECT_TRUE(Has(line_of(".bad-step-000000005"), "set aside")) << all.out;
  EXPECT_FALSE(Has(line_of(".bad-step-000000005"), "good")) << all.out;
  FlipLastByte(a_ + "/checkpoints/marks/step-000000003.loss");
  const Outcome damaged = RunCheckpoint({"ls", a_});
  EXPECT_TRUE(Has(damaged.out, "damaged mark") && Has(damaged.out, "step-000000003.loss is damaged"))
      << damaged.out;
}

TEST_F(CheckpointCommand, LsMarksAllThatAreKeptAsTheBest) {
  const std::string run = dir_.path() + "/best";
  const std::string config =
      "model { embedding_dim: 64 num_blocks: 1 num_heads: 2 }\ncheckpoint { keep_best: 2 }\n";
  for (const int64_t step : {1, 2, 3}) {
    ASSERT_TRUE(SaveStep(run, step, 1, 0, nullptr, nullptr, 1 << 30, "test-run", config).ok());
    ASSERT_TRUE(RecordValidationLoss(run, step, 3.0 - 0.25 * static_cast<double>(step)).ok());
  }
  const Outcome all = RunCheckpoint({"ls", run});
  EXPECT_FALSE(Has(all.out, "2.7500  best")) << all.out;
  EXPECT_TRUE(Has(all.out, "2.5000  best") && Has(all.out, "2.2500  best")) << all.out;
}

TEST_F(CheckpointCommand, FilesAreCountedInOneWay) {
  // Two shards, state, config and the manifest; MANIFEST.json is for people.
  const Outcome stat = RunCheckpoint({"stat", newest_});
  EXPECT_TRUE(Has(stat.out, "\nfiles              5\n")) << stat.out;
  EXPECT_TRUE(Has(stat.out, "for people, not counted")) << stat.out;
  const std::string bytes = stat.out.substr(stat.out.find("\nbytes") + 20, 40);
  const std::string readable = bytes.substr(bytes.find('(') + 1, bytes.find(')') - bytes.find('(') - 1);
  const Outcome verify = RunCheckpoint({"verify", newest_});
  EXPECT_TRUE(Has(verify.out, "ok, 5 files, " + readable + ",")) << verify.out << stat.out;
  EXPECT_TRUE(Has(RunCheckpoint({"ls", newest_}).out, absl::StrFormat(" %6d %11s ", 5, readable)))
      << RunCheckpoint({"ls", newest_}).out;
}

TEST_F(CheckpointCommand, TheDirectoryOfTheCheckpointsIsTakenForItsRun) {
  const std::string store = a_ + "/checkpoints";
  for (const std::string& path : {store, store + "/"}) {
    EXPECT_TRUE(Has(RunCheckpoint({"ls", path}).out, "step-000000005")) << path;
    EXPECT_TRUE(Has(RunCheckpoint({"verify", path}).out, "step-000000003: ok")) << path;
    EXPECT_EQ(RunCheckpoint({"diff", path, b_ + "/checkpoints"}).code, kExitOk) << path;
    EXPECT_TRUE(Has(RunCheckpoint({"prune", path, "--keep_last", "1"}).out, "remove step-000000003")) << path;
  }
  EXPECT_EQ(RunDirOf(a_), a_);
  EXPECT_EQ(RunDirOf(dir_.path()), dir_.path());
  const std::filesystem::path before = std::filesystem::current_path();
  std::filesystem::current_path(store);
  EXPECT_TRUE(Has(RunCheckpoint({"ls", "."}).out, "step-000000005"));
  EXPECT_EQ(RunCheckpoint({"stat", "step-000000005"}).code, kExitOk);
  std::filesystem::current_path(before);
}

TEST_F(CheckpointCommand, AMissingShardIsNamedWithAFewOfItsTensorsAndTheirNumber) {
  std::filesystem::remove(newest_ + "/optim-00000-of-00001.safetensors");
  const Outcome stat = RunCheckpoint({"stat", newest_});
  EXPECT_EQ(stat.code, kExitFailure);
  EXPECT_TRUE(Has(stat.err, "optim-00000-of-00001.safetensors is missing; it holds tensors ")) << stat.err;
  EXPECT_TRUE(Has(stat.err, " and 10 more, 14 in all")) << stat.err;
}

// What lies in the place of a file or a directory need not be one.
TEST_F(CheckpointCommand, NothingStrangeInThePlaceOfAFileIsWaitedForOrFollowed) {
  for (const std::string name : {"/MANIFEST.pb", "/state.pb", "/model-00000-of-00001.safetensors"}) {
    const std::string path = newest_ + name, kept = dir_.path() + "/kept";
    std::filesystem::rename(path, kept);
    const auto expect_refused = [&](const char* what) {
      const Outcome stat = RunCheckpoint({"stat", newest_, "--values"});
      EXPECT_EQ(stat.code, kExitFailure) << what << " as " << path << stat.out;
      EXPECT_TRUE(Has(stat.err, name.substr(1))) << what << ": " << stat.err;
      EXPECT_EQ(RunCheckpoint({"verify", newest_}).code, kExitFailure) << what << " as " << path;
      EXPECT_EQ(RunCheckpoint({"ls", a_}).code, kExitOk) << what << " as " << path;
    };
    ASSERT_EQ(mkfifo(path.c_str(), 0600), 0);  // opening it to read would wait for a writer
    expect_refused("a pipe");
    std::filesystem::remove(path);
    std::filesystem::create_symlink("/dev/zero", path);
    expect_refused("a device");
    std::filesystem::remove(path);
    std::filesystem::create_symlink(path, path);
    expect_refused("a link to itself");
    std::filesystem::remove(path);
    std::filesystem::create_directory(path);
    expect_refused("a directory");
    std::filesystem::remove(path);
    std::ofstream(path).close();
    std::filesystem::resize_file(path, uintmax_t{1} << 40);  // sparse
    expect_refused("a terabyte");
    std::filesystem::remove(path);
    std::filesystem::rename(kept, path);
  }
  EXPECT_EQ(RunCheckpoint({"verify", newest_}).code, kExitOk);
  // A link to a checkpoint is as good as one.
  std::filesystem::rename(newest_, dir_.path() + "/elsewhere");
  std::filesystem::create_symlink(dir_.path() + "/elsewhere", newest_);
  EXPECT_EQ(RunCheckpoint({"verify", a_}).code, kExitOk);
  ASSERT_TRUE(SaveStep(a_, 7, 3, 0, nullptr, nullptr).ok());
  EXPECT_EQ(RunCheckpoint({"prune", a_, "--keep_last", "1", "--yes"}).code, kExitOk);
  EXPECT_FALSE(std::filesystem::exists(std::filesystem::symlink_status(newest_))) << "the link goes";
  EXPECT_TRUE(std::filesystem::exists(dir_.path() + "/elsewhere/MANIFEST.pb")) << "what it led to stays";
}

TEST_F(CheckpointCommand, WhatCannotBeADestinationIsRefusedAndLeavesNothing) {
  const std::string file = dir_.path() + "/file";
  std::ofstream(file) << "mine";
  for (const std::vector<std::string>& arguments : {std::vector<std::string>{"merge", a_, ""},
                                                    {"merge", a_, file},
                                                    {"merge", a_, file + "/below"},
                                                    {"merge", a_, dir_.path() + "/none/below"},
                                                    {"merge", a_, newest_ + "/inside"},
                                                    {"reshard", a_, file},
                                                    {"reshard", a_, file + "/below"},
                                                    {"reshard", a_, newest_},
                                                    {"reshard", a_, newest_ + "/inside"},
                                                    {"reshard", a_, "/proc/none"},
                                                    {"prune", file, "--keep_last", "1"},
                                                    {"prune", newest_, "--keep_last", "1"},
                                                    {"ls", file},
                                                    {"verify", file},
                                                    {"stat", file},
                                                    {"stat", dir_.path() + "/none"},
                                                    {"diff", a_, file}}) {
    const Outcome outcome = RunCheckpoint(arguments);
    EXPECT_TRUE(outcome.code >= 64 || outcome.code == -1) << arguments[0] << " " << arguments.back();
    EXPECT_FALSE(outcome.err.empty()) << arguments[0] << " " << arguments.back();
  }
  std::set<std::string> left;
  for (const auto& entry : std::filesystem::directory_iterator(dir_.path()))
    left.insert(entry.path().filename());
  EXPECT_EQ(left, (std::set<std::string>{"a", "b", "file"}));
  EXPECT_EQ(std::filesystem::file_size(file), 4u);
  EXPECT_EQ(RunCheckpoint({"verify", a_}).code, kExitOk) << "nothing was put into a checkpoint";
}

TEST_F(CheckpointCommand, TextOfAManifestCannotCommandTheTerminal) {
  const std::string run = dir_.path() + "/c";
  ASSERT_TRUE(SaveStep(run, 1, 1, 0, nullptr, nullptr, 1 << 30, "\033[2Jrun").ok());
  const Outcome stat = RunCheckpoint({"stat", run});
  EXPECT_EQ(stat.code, kExitOk);
  EXPECT_FALSE(Has(stat.out, "\033")) << stat.out;
  EXPECT_TRUE(Has(stat.out, "[2Jrun")) << stat.out;
}

TEST_F(CheckpointCommand, StatNamesWhatIsInACheckpointAndItsValues) {
  const Outcome all = RunCheckpoint({"stat", a_});
  EXPECT_EQ(all.code, 0);
  for (const char* const part :
       {"step-000000005", "test-run", "checkpoint_test", "5120", "MANIFEST.pb",
        "model-00000-of-00001.safetensors", "blocks.0.conv.weight", "[4,3,5]", "exp_avg_sq", "f64"}) {
    EXPECT_TRUE(Has(all.out, part)) << part << "\n" << all.out;
  }
  const Outcome one = RunCheckpoint({"stat", a_, "--tensor", "scale", "--values"});
  EXPECT_EQ(one.code, 0);
  EXPECT_TRUE(Has(one.out, "rms") && Has(one.out, "scale") && !Has(one.out, "conv")) << one.out;
  const Outcome none = RunCheckpoint({"stat", a_, "--tensor", "scala"});
  EXPECT_EQ(none.code, kExitFailure);
  EXPECT_TRUE(Has(none.err, "no tensor scala") && Has(none.err, "closest are scale")) << none.err;
  FlipLastByte(newest_ + "/model-00000-of-00001.safetensors");
  EXPECT_EQ(RunCheckpoint({"stat", a_}).code, 0);
  EXPECT_EQ(RunCheckpoint({"stat", a_, "--values"}).code, kExitFailure);
}

TEST_F(CheckpointCommand, DiffByValueSaysHowFarTensorsAreApart) {
  const Outcome outcome = RunCheckpoint({"diff", a_ + "/checkpoints/step-000000003", b_, "--values"});
  EXPECT_EQ(outcome.code, kExitFailure);
  EXPECT_TRUE(Has(outcome.out, "max |a-b|") && Has(outcome.out, "embedding.weight")) << outcome.out;
  EXPECT_FALSE(Has(RunCheckpoint({"diff", a_, b_, "--values"}).out, "max |a-b|"));
}

TEST_F(CheckpointCommand, MergeAndReshardWriteWhatDiffFindsEqual) {
  const std::string file = dir_.path() + "/all.safetensors", run = dir_.path() + "/resharded";
  const Outcome merged = RunCheckpoint({"merge", a_, file, "--moments"});
  EXPECT_EQ(merged.code, 0) << merged.err;
  EXPECT_TRUE(Has(merged.out, "21 tensors") && Has(merged.out, "digests equal")) << merged.out;
  EXPECT_TRUE(std::filesystem::exists(file));
  EXPECT_EQ(RunCheckpoint({"merge", a_, file}).code, kExitFailure);

  const Outcome resharded = RunCheckpoint({"reshard", a_, run, "--ranks", "3"});
  EXPECT_EQ(resharded.code, 0) << resharded.err;
  EXPECT_TRUE(Has(resharded.out, "in 9 files")) << resharded.out;
  EXPECT_EQ(RunCheckpoint({"diff", a_, run}).code, 0);
  EXPECT_EQ(RunCheckpoint({"verify", run}).code, 0);
  const Outcome by_dir = RunCheckpoint({"reshard", newest_ + "/", run + "3"});
  EXPECT_TRUE(Has(by_dir.out, run + "3/checkpoints/step-000000005: ")) << by_dir.out << by_dir.err;
  EXPECT_EQ(RunCheckpoint({"reshard", a_, run}).code, kExitFailure);
  EXPECT_EQ(RunCheckpoint({"reshard", a_, run + "2", "--ranks", "0"}).code, kExitUsage);
  EXPECT_EQ(RunCheckpoint({"reshard", dir_.path(), run}).code, kExitFailure);
  // One file per element would take hours and inodes.
  const Outcome tiny = RunCheckpoint({"reshard", a_, run + "4", "--max_file_bytes", "1"});
  EXPECT_TRUE(tiny.code == -1 && Has(tiny.err, "in range 1048576 to ")) << tiny.code << tiny.err;
  EXPECT_FALSE(std::filesystem::exists(run + "4"));
}

TEST_F(CheckpointCommand, PruneRemovesNothingUnlessItIsToldTo) {
  const Outcome asked = RunCheckpoint({"prune", a_, "--keep_last", "1"});
  EXPECT_EQ(asked.code, 0);
  EXPECT_TRUE(Has(asked.out, "remove step-000000003") && Has(asked.out, "keep   step-000000005"))
      << asked.out;
  EXPECT_TRUE(Has(asked.out, "nothing was. Pass --yes")) << asked.out;
  EXPECT_TRUE(std::filesystem::exists(a_ + "/checkpoints/step-000000003"));
  {
    const auto lease = RunLease::Acquire(a_);
    ASSERT_TRUE(lease.ok());
    EXPECT_EQ(RunCheckpoint({"prune", a_, "--keep_last", "1", "--yes"}).code, kExitFailure);
  }
  EXPECT_TRUE(Has(RunCheckpoint({"prune", a_, "--keep_last", "2", "--yes"}).out, "nothing to remove"));
  // Without a number the config of the run decides; this one cannot be read as one, so everything stays.
  EXPECT_TRUE(Has(RunCheckpoint({"prune", a_, "--yes"}).out, "nothing to remove"));
  const Outcome done = RunCheckpoint({"prune", a_, "--keep_last", "1", "--yes"});
  EXPECT_EQ(done.code, 0) << done.err;
  EXPECT_FALSE(std::filesystem::exists(a_ + "/checkpoints/step-000000003"));
  EXPECT_TRUE(std::filesystem::exists(newest_));
  EXPECT_TRUE(Has(RunCheckpoint({"prune", a_, "--keep_last", "-1"}).err, "in range 0 to 1099511627776"));
  EXPECT_EQ(RunCheckpoint({"prune", dir_.path(), "--keep_last", "1"}).code, kExitFailure);
}

TEST_F(CheckpointCommand, WithoutASubcommandItSaysWhichThereAre) {
  const Outcome outcome = RunCheckpoint({});
  EXPECT_EQ(outcome.code, -1);
  EXPECT_NE(outcome.err, "");
}
}  // namespace
}  // namespace carousel
