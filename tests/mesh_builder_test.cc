#include "parallel/mesh_builder.h"

#include <gtest/gtest.h>

#include "parallel/local_communicator.h"

namespace carousel {
namespace {
bool Contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST(MeshBuilder, PutsAllRanksOnTheDataAxis) {
  RunLocalRanks(4, [](Communicator& world) {
    const auto built = BuildMesh(MeshSpec{.world = 4, .global_batch = 32, .micro_batch = 4}, world);
    ASSERT_TRUE(built.ok()) << built.status();
    const Mesh& mesh = (*built)->mesh();
    EXPECT_EQ(mesh.replicate.size, 4);
    EXPECT_EQ(mesh.replicate.index, world.rank());
    EXPECT_EQ(mesh.replicas.communicator, &world);
    for (const Axis& axis : {mesh.shard, mesh.sequence, mesh.tensor, mesh.pipe}) EXPECT_EQ(axis.size, 1);
  });
}

TEST(MeshBuilder, OneRankHasNoCommunicator) {
  const std::unique_ptr<Communicator> self = MakeSelfCommunicator();
  const auto built = BuildMesh(MeshSpec{.world = 1, .global_batch = 8, .micro_batch = 8}, *self);
  ASSERT_TRUE(built.ok()) << built.status();
  EXPECT_EQ((*built)->mesh().replicate.size, 1);
  EXPECT_EQ((*built)->mesh().world.communicator, nullptr);
}

TEST(MeshBuilder, AcceptsExactlyTheWorldSizesThatDivideTheMicroBatches) {
  EXPECT_EQ(WorldSizesThatFit(12), (std::vector<int64_t>{1, 2, 3, 4, 6, 12}));
  EXPECT_EQ(WorldSizesThatFit(16), (std::vector<int64_t>{1, 2, 4, 8, 16}));
  EXPECT_EQ(WorldSizesThatFit(1), (std::vector<int64_t>{1}));
  for (int64_t micro_batches = 1; micro_batches <= 24; ++micro_batches) {
    for (int64_t world = 1; world <= 26; ++world) {
      const MeshSpec spec = {.world = world, .global_batch = 3 * micro_batches, .micro_batch = 3};
      EXPECT_EQ(ValidateMesh(spec).ok(), micro_batches % world == 0) << micro_batches << " on " << world;
    }
  }
}

TEST(MeshBuilder, AWorldSizeThatDoesNotFitIsToldWhichDo) {
  const absl::Status status = ValidateMesh({.world = 4, .global_batch = 48, .micro_batch = 8});
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(
      status.message(),
      "4 ranks cannot share the 6 micro-batches of a step (train.global_batch=48 / train.micro_batch=8) "
      "evenly; the numbers of ranks that fit are 1, 2, 3, 6; or set train.global_batch to 32; or set "
      "train.micro_batch to 6 (which changes how sums are rounded)");
}

// Every value that a message proposes is valid.
TEST(MeshBuilder, FollowingTheAdviceHelps) {
  int64_t num_followed = 0;
  for (int64_t world = 1; world <= 9; ++world) {
    for (int64_t global_batch = 1; global_batch <= 20; ++global_batch) {
      for (int64_t micro_batch = 1; micro_batch <= 9; ++micro_batch) {
        const MeshSpec spec = {.world = world, .global_batch = global_batch, .micro_batch = micro_batch};
        const std::vector<std::string> violations = MeshViolations(spec);
        if (violations.empty()) continue;
        const std::string& text = violations.back();
        const auto number_after = [&](const std::string& words) {
          const size_t place = text.find(words);
          return place == std::string::npos ? int64_t{0} : std::stoll(text.substr(place + words.size()));
        };
        for (const char* words : {"set train.micro_batch to ", "train.global_batch to "}) {
          const int64_t value = number_after(words);
          if (value == 0) continue;
          MeshSpec fixed = spec;
          (words[4] == 't' && words[10] == 'm' ? fixed.micro_batch : fixed.global_batch) = value;
          ++num_followed;
          for (const std::string& problem : MeshViolations(fixed)) {
            // Dividing the batch comes first; then the world has to fit.
            EXPECT_FALSE(Contains(problem, "does not divide")) << text << "\n-> " << problem;
            EXPECT_TRUE(Contains(text, "does not divide")) << text << "\n-> " << problem;
          }
        }
      }
    }
  }
  EXPECT_GT(num_followed, 500);
}

TEST(MeshBuilder, NamesAllProblemsAtOnce) {
  const std::vector<std::string> problems =
      MeshViolations({.world = 4, .sizes = {.replicate = 2}, .global_batch = 10, .micro_batch = 4});
  ASSERT_EQ(problems.size(), 2u);
  EXPECT_TRUE(Contains(problems[0], "parallel.data=2 but 4 ranks were started")) << problems[0];
  EXPECT_TRUE(Contains(problems[1], "train.micro_batch=4 does not divide train.global_batch=10"))
      << problems[1];
  EXPECT_EQ(
      MeshViolations({.world = 0, .sizes = {.replicate = -1}, .global_batch = 0, .micro_batch = 0}).size(),
      4u);
}
}  // namespace
}  // namespace carousel
