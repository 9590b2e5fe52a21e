#include "launcher/train/run_directory.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "checkpoints/run_identity.h"
#include "tests/checkpoint_testing.h"
#include "tests/memory_file_system.h"
#include "tests/temp_dir.h"

namespace carousel {
namespace {

RunSpec SomeRun() {
  RunSpec run;
  run.model.embedding_dim = 64;
  run.model.num_blocks = 2;
  run.train_data = {{.path = "a", .weight = 1}};
  run.steps = 10;
  run.eval_every_steps = 5;
  return run;
}

TEST(ConfigDifferences, AreNoneForTheSameRun) {
  EXPECT_TRUE(ConfigDifferences(SomeRun(), SomeRun()).empty());
}

TEST(ConfigDifferences, IgnoreSpeedEvaluationAndLogging) {
  RunSpec now = SomeRun();
  now.threads = 4;
  now.eval_every_steps = 1;
  now.log_every_steps = 7;
  now.model.recompute = Recompute::kRecompute;
  now.checkpoint = {.every_steps = 7,
                    .asynchronous = false,
                    .staging_bytes = 1 << 20,
                    .max_failed_saves = 9,
                    .timeout_seconds = 5,
                    .keep_last = 9,
                    .keep_every_steps = 100,
                    .keep_best = 2,
                    .good_after_steps = 50};
  EXPECT_TRUE(ConfigDifferences(SomeRun(), now).empty());
}

TEST(ConfigDifferences, NameBothValuesAndNeverAcceptAnotherModel) {
  RunSpec now = SomeRun();
  now.model.num_blocks = 3;
  now.steps = 20;
  const std::vector<ConfigDifference> differences = ConfigDifferences(SomeRun(), now);
  ASSERT_EQ(differences.size(), 2u);
  EXPECT_EQ(differences[0].text, "model.num_blocks: 2 in the run, 3 now");
  EXPECT_FALSE(differences[0].acceptable);
  EXPECT_EQ(differences[1].text, "train.steps: 10 in the run, 20 now");
  EXPECT_TRUE(differences[1].acceptable);
}

TEST(ConfigDifferences, SeeEveryFieldOfMixedModels) {
  const std::function<void(ModelSpec&)> kChanges[] = {[](ModelSpec& m) { m.family = Family::kPaper; },
                                                      [](ModelSpec& m) { m.slstm_at = {1}; },
                                                      [](ModelSpec& m) { m.slstm_num_heads = 2; },
                                                      [](ModelSpec& m) { m.slstm_conv_kernel = 4; },
                                                      [](ModelSpec& m) { m.slstm_norm_weight = false; },
                                                      [](ModelSpec& m) { m.slstm_gradient_clip = 1; },
                                                      [](ModelSpec& m) { m.slstm_gradient_cut = true; },
                                                      [](ModelSpec& m) { m.conv_kernel = 3; },
                                                      [](ModelSpec& m) { m.qkv_block_size = 2; },
                                                      [](ModelSpec& m) { m.tie_embeddings = true; },
                                                      [](ModelSpec& m) { m.ffn_bias = true; }};
  for (size_t i = 0; i < std::size(kChanges); ++i) {
    RunSpec now = SomeRun();
    kChanges[i](now.model);
    const std::vector<ConfigDifference> differences = ConfigDifferences(SomeRun(), now);
    ASSERT_EQ(differences.size(), 1u) << i;
    EXPECT_FALSE(differences[0].acceptable) << differences[0].text;
  }
  double ModelSpec::*const kRates[] = {&ModelSpec::dropout, &ModelSpec::ffn_dropout,
                                       &ModelSpec::embedding_dropout};
  for (const auto rate : kRates) {
    RunSpec now = SomeRun();
    now.model.*rate = 0.1;
    const std::vector<ConfigDifference> differences = ConfigDifferences(SomeRun(), now);
    ASSERT_EQ(differences.size(), 1u);
    EXPECT_TRUE(differences[0].acceptable) << differences[0].text;
  }
}

TEST(ConfigDifferences, SeeAnotherDataSource) {
  RunSpec now = SomeRun();
  now.train_data.push_back({.path = "b", .weight = 2});
  EXPECT_EQ(ConfigDifferences(SomeRun(), now).size(), 1u);
  now = SomeRun();
  now.train_data[0].path = "c";
  EXPECT_EQ(ConfigDifferences(SomeRun(), now).size(), 1u);
  now = SomeRun();
  now.tokenizer = TokenizerKind::kNone;
  EXPECT_EQ(ConfigDifferences(SomeRun(), now).size(), 1u);
}

TEST(RunDirectory, IsMadeWithItsParentsAndHoldsTheConfig) {
  const TempDir temp;
  RunSpec run = SomeRun();
  run.run_dir = temp.path() + "/a/b";
  run.resolved_text = "model {}\n";
  ASSERT_TRUE(PrepareRunDirectory(run.run_dir).ok());
  EXPECT_TRUE(std::filesystem::is_empty(run.run_dir)) << "the write probe must not stay";
  ASSERT_TRUE(RecordStart(run, "first").ok());
  ASSERT_TRUE(RecordStart(run, "second").ok());
  std::ifstream config(ConfigPath(run.run_dir)), build(run.run_dir + "/build.txt");
  EXPECT_EQ(std::string(std::istreambuf_iterator<char>(config), {}), "model {}\n");
  EXPECT_EQ(std::string(std::istreambuf_iterator<char>(build), {}), "first\nsecond\n");
}

TEST(RunDirectory, TakesItsConfigFromTheNewestCheckpointThatCanBeReadWhereTheFileIsLost) {
  const TempDir dir;
  const auto config = [](int blocks) {
    return absl::StrCat("model { embedding_dim: 64 num_blocks: ", blocks, " num_heads: 2 }\n");
  };
  const std::string run = dir.path();
  EXPECT_EQ(LoadRunOf(run, {}).status().code(), absl::StatusCode::kInvalidArgument);
  for (const int step : {1, 2, 3}) {
    ASSERT_TRUE(SaveStep(run, step, 1, 0, nullptr, nullptr, 1 << 30, "test-run", config(step)).ok());
  }
  std::string from;
  EXPECT_EQ(LoadRunOf(run, {}, &from)->model.num_blocks, 3);
  EXPECT_EQ(from, run + "/checkpoints/step-000000003/config.textproto");
  std::filesystem::remove(run + "/checkpoints/step-000000003/MANIFEST.pb");
  std::ofstream(run + "/checkpoints/step-000000002/config.textproto") << "damaged";
  EXPECT_EQ(LoadRunOf(run, {}, &from)->model.num_blocks, 1);
  std::filesystem::remove(run + "/checkpoints/step-000000001/state.pb");
  const absl::Status none = LoadRunOf(run, {}).status();
  EXPECT_EQ(none.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(std::string(none.message()).find("none of its 2 checkpoints"), std::string::npos) << none;
  std::ofstream(ConfigPath(run)) << config(7);
  from.clear();
  EXPECT_EQ(LoadRunOf(run, {}, &from)->model.num_blocks, 7);
  EXPECT_EQ(from, "");
}

TEST(RunDirectory, IsNotMadeAmongTheCheckpointsOfAnother) {
  const TempDir dir;
  const std::string run = dir.path() + "/run";
  ASSERT_TRUE(SaveStep(run, 1, 1, 0, nullptr, nullptr).ok());
  ASSERT_TRUE(WriteRunId(run, NewRunId()).ok());
  EXPECT_TRUE(PrepareRunDirectory(run).ok());
  for (const char* const name : {"/checkpoints", "/checkpoints/new", "/checkpoints/step-000000001"}) {
    EXPECT_EQ(PrepareRunDirectory(run + name).code(), absl::StatusCode::kFailedPrecondition) << name;
  }
}

TEST(RunDirectory, IsThereAfterAPowerFailure) {
  MemoryFileSystem files;
  ASSERT_TRUE(PrepareRunDirectory("runs/new", &files).ok());
  files.CrashNow(MemoryFileSystem::Crash::kLoseAll, 0);
  EXPECT_TRUE(files.Stat("runs/new")->is_directory);
}

TEST(RunDirectory, ThatCannotBeMadeIsNamedWithTheFix) {
  const absl::Status status = PrepareRunDirectory("/proc/nowhere/run");
  ASSERT_FALSE(status.ok());
  EXPECT_NE(std::string(status.message()).find("/proc/nowhere/run"), std::string::npos);
  EXPECT_NE(std::string(status.message()).find("--run_dir"), std::string::npos);
}
}  // namespace
}  // namespace carousel
