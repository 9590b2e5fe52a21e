#include "parallel/mesh_builder.h"

#include <gtest/gtest.h>

#include <functional>
#include <limits>

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
  EXPECT_EQ(problems[0],
            "parallel.replicate=2 asks for 2 ranks but 4 were started; start 2 (mpirun -np 2) or set "
            "parallel.replicate to 4 or 0 (what is left)");
  EXPECT_TRUE(Contains(problems[1], "train.micro_batch=4 does not divide train.global_batch=10"))
      << problems[1];
  EXPECT_EQ(
      MeshViolations({.world = 0, .sizes = {.replicate = -1}, .global_batch = 0, .micro_batch = 0}).size(),
      4u);
}

TEST(MeshBuilder, EveryRankHasItsPlace) {
  const MeshSizes sizes = {.pipe = 2, .replicate = 3, .shard = 2, .sequence = 5, .tensor = 4};
  ASSERT_EQ(sizes.world(), 240);
  for (int64_t rank = 0; rank < sizes.world(); ++rank) EXPECT_EQ(RankOf(sizes, PlaceOf(sizes, rank)), rank);
  // Neighbours share the innermost axis.
  EXPECT_EQ(PlaceOf(sizes, 3).tensor, 3);
  EXPECT_EQ(PlaceOf(sizes, 4).sequence, 1);
  EXPECT_EQ(PlaceOf(sizes, 239).pipe, 1);
}

TEST(MeshBuilder, TheRanksOfAnAxisDifferInNothingElse) {
  const MeshSizes sizes = {.pipe = 2, .replicate = 2, .shard = 3, .sequence = 2, .tensor = 2};
  RunLocalRanks(static_cast<int>(sizes.world()), [&](Communicator& world) {
    const std::unique_ptr<BuiltMesh> built = BuildMesh(sizes, world);
    const Mesh& mesh = built->mesh();
    const MeshPlace place = PlaceOf(sizes, world.rank());
    const auto check = [&](const Axis& axis, int64_t size, const std::function<MeshPlace(int64_t)>& at) {
      ASSERT_EQ(axis.size, size);
      std::vector<int64_t> ranks(static_cast<size_t>(size));
      int64_t mine = world.rank();
      axis.communicator->AllGather(Tensor(ranks.data(), DType::kI64, {size}),
                                   Tensor(&mine, DType::kI64, {1}));
      for (int64_t i = 0; i < size; ++i) EXPECT_EQ(ranks[static_cast<size_t>(i)], RankOf(sizes, at(i)));
    };
    const auto with = [&](int64_t MeshPlace::*member) {
      return [&place, member](int64_t i) {
        MeshPlace p = place;
        p.*member = i;
        return p;
      };
    };
    check(mesh.pipe, 2, with(&MeshPlace::pipe));
    check(mesh.replicate, 2, with(&MeshPlace::replicate));
    check(mesh.shard, 3, with(&MeshPlace::shard));
    check(mesh.sequence, 2, with(&MeshPlace::sequence));
    check(mesh.tensor, 2, with(&MeshPlace::tensor));
    check(mesh.replicas, 4, [&](int64_t i) {
      MeshPlace p = place;
      p.replicate = i / 2, p.sequence = i % 2;
      return p;
    });
  });
}

TEST(MeshBuilder, TheRestOfTheRanksReplicate) {
  MeshSpec spec = {.world = 12, .global_batch = 64, .micro_batch = 1};
  spec.sizes = {.replicate = 0, .shard = 2, .tensor = 2};
  spec.global_batch = 6;
  ASSERT_TRUE(ValidateMesh(spec).ok()) << ValidateMesh(spec);
  EXPECT_EQ(ResolveSizes(spec).replicate, 3);
}

TEST(MeshBuilder, AProductThatDoesNotFitNamesTheNearestOfEachAxisAndOfTheRanks) {
  MeshSpec spec = {.world = 10, .sizes = {.shard = 2, .tensor = 2}, .global_batch = 8, .micro_batch = 1};
  spec.sizes.replicate = 0;
  const auto problems = [&] { return MeshViolations(spec); };
  ASSERT_EQ(problems().size(), 1u);
  EXPECT_EQ(problems()[0],
            "parallel.shard=2 x parallel.tensor=2 takes 4 ranks and does not fit the 10 ranks that were "
            "started; start 8 (mpirun -np 8), or set parallel.shard to 1 or parallel.tensor to 1");
  // No single axis is wrong by itself.
  spec.world = 1;
  EXPECT_TRUE(Contains(problems()[0],
                       "does not fit the 1 rank that was started; start 4 (mpirun -np 4), or change these "
                       "to a product that divides 1"))
      << problems()[0];
  // The batch is held against the ranks that are proposed: 4088 / 7 = 584.
  spec = {.world = 4096, .sizes = {.pipe = 7, .shard = 8}, .global_batch = 512, .micro_batch = 1};
  spec.sizes.replicate = 0;
  ASSERT_EQ(problems().size(), 2u);
  EXPECT_TRUE(Contains(problems()[0], "start 4088 (mpirun -np 4088), or set parallel.pipe to 8"))
      << problems()[0];
  EXPECT_TRUE(Contains(problems()[1], "replicate x shard = 584 ranks cannot share the 512 micro-batches"))
      << problems()[1];
}

// A model whose every number is of interest.
ModelSpec Model(Family family) {
  return {.family = family,
          .vocab_size = 320,
          .embedding_dim = 96,
          .num_blocks = 6,
          .num_heads = 4,
          .qk_dim = 96,
          .v_dim = 96,
          .ffn_dim = 128,
          .conv_kernel = 4,
          .qkv_block_size = 4,
          .slstm_at = {1},
          .slstm_num_heads = 6};
}
std::vector<std::string> Violations(const ModelSpec& model, const MeshSizes& sizes, int64_t T = 240,
                                    SequenceMode mode = SequenceMode::kAuto) {
  return MeshViolations({.world = sizes.world(),
                         .sizes = sizes,
                         .global_batch = sizes.replicate * sizes.shard,
                         .micro_batch = 1,
                         .model = &model,
                         .sequence_length = T,
                         .sequence_mode = mode});
}

TEST(MeshBuilder, AxesThatDoNotDivideTheModelNameEveryNumberAndTheNearestOnes) {
  const ModelSpec model = Model(Family::kLarge);
  EXPECT_TRUE(Violations(model, {.pipe = 6, .replicate = 2, .shard = 2, .sequence = 3, .tensor = 2}).empty());
  EXPECT_EQ(Violations(model, {.tensor = 4}),
            std::vector<std::string>{"parallel.tensor=4 does not divide model.slstm_num_heads=6; use 2"});
  EXPECT_EQ(
      Violations(model, {.sequence = 4}),
      std::vector<std::string>{
          "parallel.sequence x parallel.tensor=4 does not divide model.slstm_num_heads=6; use 3 or 6: sLSTM "
          "blocks exchange tokens for heads, since their recurrence needs every token"});
  const std::vector<std::string> all = Violations(model, {.pipe = 7, .sequence = 7, .tensor = 3}, 100);
  ASSERT_EQ(all.size(), 4u);
  EXPECT_EQ(
      all[0],
      "parallel.tensor=3 does not divide model.vocab_size=320, model.num_heads=4, model.ffn_dim=128; use 2");
  EXPECT_EQ(
      all[1],
      "data.sequence_length=100 is not a multiple of parallel.sequence x parallel.tensor = 21, whose ranks "
      "share the tokens; use 105");
  // Where the tensor axis divides it, the sequence axis could be another one.
  EXPECT_EQ(
      Violations(model, {.sequence = 3, .tensor = 2}, 100),
      std::vector<std::string>{
          "data.sequence_length=100 is not a multiple of parallel.sequence x parallel.tensor = 6, whose "
          "ranks share the tokens; use 102, or parallel.sequence=2 or 5"});
  EXPECT_TRUE(Contains(all[2], "does not divide model.slstm_num_heads=6; use 6")) << all[2];
  EXPECT_EQ(all[3],
            "parallel.pipe=7 is more than model.num_blocks=6; a stage is at least one block: use at most 6");
}

TEST(MeshBuilder, TheHeadsModeNeedsHeadsThatDivide) {
  ModelSpec model = Model(Family::kLarge);
  model.slstm_at = {};
  EXPECT_TRUE(Violations(model, {.sequence = 3}).empty());
  EXPECT_TRUE(Violations(model, {.sequence = 4}, 240, SequenceMode::kHeads).empty());
  EXPECT_EQ(Violations(model, {.sequence = 3}, 240, SequenceMode::kHeads),
            std::vector<std::string>{
                "parallel.sequence x parallel.tensor=3 does not divide model.num_heads=4; use 2 or "
                "4, or parallel.sequence_mode=STATE"});
}

TEST(MeshBuilder, TheConvolutionMustFindItsTapsOnOneNeighbour) {
  ModelSpec model = Model(Family::kPaper);
  model.slstm_at = {};
  EXPECT_TRUE(Violations(model, {.sequence = 4}, 12).empty());
  EXPECT_EQ(
      Violations(model, {.sequence = 6}, 12),
      std::vector<std::string>{"parallel.sequence=6 leaves each rank 2 of 12 tokens, fewer than the 3 that "
                               "model.conv_kernel=4 looks back; use at most 4"});
}

TEST(MeshBuilder, TiedEmbeddingsCannotBeCutByStages) {
  ModelSpec model = Model(Family::kLarge);
  model.tie_embeddings = true;
  ASSERT_EQ(Violations(model, {.pipe = 2}).size(), 1u);
  EXPECT_TRUE(Contains(Violations(model, {.pipe = 2})[0], "model.tie_embeddings=true"));
}

TEST(MeshBuilder, AbsurdSizesAreRefusedWithoutOverflow) {
  const int64_t huge = int64_t{1} << 24;
  const MeshSizes sizes = {.pipe = huge, .replicate = huge, .shard = huge, .sequence = huge, .tensor = huge};
  EXPECT_EQ(sizes.world(), std::numeric_limits<int64_t>::max());
  EXPECT_FALSE(MeshViolations({.world = 8, .sizes = sizes, .global_batch = 8, .micro_batch = 8}).empty());
}
}  // namespace
}  // namespace carousel
