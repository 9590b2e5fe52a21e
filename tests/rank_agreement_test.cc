// Ranks that were asked for different things find out before anything starts, and say what.
#include "launcher/train/rank_agreement.h"

#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "configs/compare.h"
#include "configs/load.h"
#include "parallel/local_communicator.h"

namespace carousel {
namespace {

constexpr char kConfig[] =
    "model { embedding_dim: 64 num_blocks: 2 num_heads: 2 } data { sequence_length: 32 }";

RunSpec Parsed(const std::vector<std::string>& sets = {}) {
  const absl::StatusOr<RunSpec> run = LoadRunFromText(kConfig, "test", {.sets = sets});
  CAROUSEL_CHECK_MSG(run.ok(), std::string(run.status().message()));
  return *run;
}

// The status of `check` on three ranks, which must be equal.
absl::Status OnThreeRanks(const std::function<absl::Status(Communicator&)>& check) {
  std::vector<absl::Status> all(3);
  RunLocalRanks(3, [&](Communicator& world) { all[static_cast<size_t>(world.rank())] = check(world); });
  EXPECT_EQ(all[0], all[1]);
  EXPECT_EQ(all[0], all[2]);
  return all[0];
}

TEST(CompareResolved, NamesFieldsAndBothValues) {
  EXPECT_TRUE(CompareResolved(Parsed().resolved_text, Parsed().resolved_text).empty());
  const auto differences =
      CompareResolved(Parsed().resolved_text,
                      Parsed({"train.seed=7", "model.slstm_at=1", "data.train.path=x"}).resolved_text);
  std::vector<std::string> text;
  for (const FieldDifference& d : differences) text.push_back(d.path + ": " + d.first + " | " + d.second);
  ASSERT_GE(text.size(), 3u);
  EXPECT_NE(std::find(text.begin(), text.end(), "train.seed: 0 | 7"), text.end());
  EXPECT_NE(std::find(text.begin(), text.end(), "model.slstm_at[0]: (not set) | 1"), text.end());
}

TEST(AgreeOnRun, TakesTheSameRunOnAllRanks) {
  EXPECT_TRUE(OnThreeRanks([](Communicator& world) {
                const absl::StatusOr<RunSpec> run = AgreeOnRun(world, "host", Parsed());
                if (run.ok()) {
                  EXPECT_EQ(run->resolved_text, Parsed().resolved_text);
                }
                return run.status();
              }).ok());
}

TEST(AgreeOnRun, ARankThatCannotReadTheFileTakesRankZeros) {
  EXPECT_TRUE(OnThreeRanks([](Communicator& world) {
                const absl::StatusOr<RunSpec> mine =
                    world.rank() == 2 ? absl::StatusOr<RunSpec>(absl::NotFoundError("no file")) : Parsed();
                const absl::StatusOr<RunSpec> run = AgreeOnRun(world, "host", mine);
                if (run.ok()) {
                  EXPECT_EQ(run->resolved_text, Parsed().resolved_text);
                }
                return run.status();
              }).ok());
}

TEST(AgreeOnRun, ARankThatReadSomethingElseIsNamedWithItsFields) {
  const absl::Status status = OnThreeRanks([](Communicator& world) {
    return AgreeOnRun(world, "node7",
                      world.rank() == 1 ? Parsed({"train.seed=7", "parallel.tensor=2"}) : Parsed())
        .status();
  });
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(),
            "[rank 1] read another config on node7 than rank 0: train.seed is 7 here and 0 on rank 0; "
            "parallel.tensor "
            "is 2 here and 1 on rank 0; start all ranks with the same config");
}

TEST(AgreeOnRun, AnErrorOfRankZeroIsEverybodys) {
  const absl::Status status = OnThreeRanks([](Communicator& world) {
    return AgreeOnRun(world, "node7",
                      world.rank() == 0 ? absl::StatusOr<RunSpec>(absl::NotFoundError("no file")) : Parsed())
        .status();
  });
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
}

TEST(CheckSameOptions, NamesTheRanksThatDiffer) {
  const auto check = [](int odd) {
    return [odd](Communicator& world) {
      RankOptions options = {{"--device", "cpu"}};
      if (world.rank() == odd) options.emplace_back("--set", "a=b");
      return CheckSameOptions(world, "node3", options);
    };
  };
  EXPECT_TRUE(OnThreeRanks(check(-1)).ok());
  EXPECT_EQ(OnThreeRanks(check(2)).message(),
            "[rank 2] started on node3 with other options than rank 0: --set a=b here only; start all "
            "ranks with the "
            "same command");
  EXPECT_EQ(OnThreeRanks(check(0)).message(),
            "[rank 1, 2] started on node3 with other options than rank 0: --set a=b on rank 0 only; start "
            "all ranks with the same "
            "command");
}

TEST(CheckSameBuild, AcceptsOneBuildAndNamesTheRankWithAnother) {
  EXPECT_TRUE(
      OnThreeRanks([](Communicator& world) { return CheckSameBuild(world, "node1", "carousel 1"); }).ok());
  const absl::Status status = OnThreeRanks([](Communicator& world) {
    return CheckSameBuild(world, "node2", world.rank() == 2 ? "carousel 2" : "carousel 1");
  });
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(status.message(),
            "[rank 2] on node2 is carousel 2, but rank 0 is carousel 1; install one build on all machines");
}
}  // namespace
}  // namespace carousel
