// `carousel checkpoint ls | verify | diff` on real directories.
#include <gtest/gtest.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <fstream>

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
  EXPECT_EQ(RunCheckpoint({"ls", dir_.path() + "/none"}).code, 1);
}

TEST_F(CheckpointCommand, VerifyExitsNonzeroAndNamesTheTensor) {
  const Outcome good = RunCheckpoint({"verify", a_});
  EXPECT_EQ(good.code, 0);
  EXPECT_TRUE(Has(good.out, "step-000000003: ok") && Has(good.out, "step-000000005: ok")) << good.out;

  FlipLastByte(newest_ + "/model-00000-of-00001.safetensors");
  const Outcome bad = RunCheckpoint({"verify", a_});
  EXPECT_EQ(bad.code, 1);
  EXPECT_TRUE(Has(bad.out, "step-000000003: ok") && Has(bad.out, "step-000000005: DAMAGED")) << bad.out;
  EXPECT_TRUE(Has(bad.out, "model-00000-of-00001.safetensors: block 0")) << bad.out;
  EXPECT_TRUE(Has(bad.out, "changed: tensor scale")) << bad.out;
  EXPECT_TRUE(Has(bad.err, "1 of 2")) << bad.err;
  EXPECT_EQ(RunCheckpoint({"verify", a_ + "/checkpoints/step-000000003"}).code, 0);
  EXPECT_EQ(RunCheckpoint({"verify", newest_}).code, 1);

  FlipLastByte(newest_ + "/MANIFEST.pb");
  EXPECT_TRUE(Has(RunCheckpoint({"verify", newest_}).out, "MANIFEST.pb is damaged"));
  EXPECT_EQ(RunCheckpoint({"verify", dir_.path()}).code, 1);
}

TEST_F(CheckpointCommand, DiffIsZeroForEqualTensorsInAnyLayout) {
  const Outcome equal = RunCheckpoint({"diff", a_, b_});  // the newest of each; one is in many small files
  EXPECT_EQ(equal.code, 0);
  EXPECT_TRUE(Has(equal.out, "have the same weights and moments")) << equal.out;
  const Outcome different = RunCheckpoint({"diff", a_ + "/checkpoints/step-000000003", b_});
  EXPECT_EQ(different.code, 1);
  EXPECT_TRUE(Has(different.out, "head.weight (exp_avg_sq): other values")) << different.out;
  EXPECT_TRUE(Has(different.out, "21 tensors differ")) << different.out;
  const Outcome weights = RunCheckpoint({"diff", a_ + "/checkpoints/step-000000003", b_, "--weights_only"});
  EXPECT_TRUE(Has(weights.out, "7 tensors differ")) << weights.out;
  EXPECT_EQ(RunCheckpoint({"diff", a_, dir_.path()}).code, 1);
}

TEST_F(CheckpointCommand, WithoutASubcommandItSaysWhichThereAre) {
  const Outcome outcome = RunCheckpoint({});
  EXPECT_EQ(outcome.code, -1);
  EXPECT_NE(outcome.err, "");
}
}  // namespace
}  // namespace carousel
