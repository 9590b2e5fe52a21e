// One flipped bit of one weight on one rank is found and named.
#include "core/train/replica_audit.h"

#include <gtest/gtest.h>

#include "tests/mesh_training.h"

namespace carousel {
namespace {
using testing::MeshTrainSpec;

// A bit of one weight of one rank.
struct Flip {
  int64_t rank = -1;  // of the world; negative: none
  std::string name = {};
  int64_t element = 0;
};

// Trains a step on a mesh, flips bits, and gives what every rank was told.
std::vector<absl::Status> Audit(const MeshSizes& sizes, const std::vector<Flip>& flips) {
  const TrainSpec spec = MeshTrainSpec(testing::MeshLargeSpec(), DType::kBF16);
  std::vector<absl::Status> found(static_cast<size_t>(sizes.world()));
  RunLocalMesh(sizes, [&](const Mesh& mesh) {
    const auto device = testing::CpuDevice(1);
    ShardedSyncFactory sync;
    Trainer trainer(spec, *device, mesh, sync);
    trainer.Initialize(3);
    testing::MeshSource source(spec);
    trainer.Step(0, source);
    trainer.WaitForWeights();
    for (const Flip& flip : flips) {
      if (mesh.world.index != flip.rank) continue;
      const Tensor weight = trainer.params().Weight(trainer.params().Find(flip.name)).Flatten();
      static_cast<uint8_t*>(weight.Rows(flip.element, 1).data)[0] ^= 1;
    }
    found[static_cast<size_t>(mesh.world.index)] = trainer.AuditReplicas();
  });
  return found;
}

TEST(ReplicaAudit, FindsNothingWhereNothingDiffers) {
  for (const MeshSizes& sizes :
       {MeshSizes{}, MeshSizes{.replicate = 4}, MeshSizes{.pipe = 2, .replicate = 2}}) {
    for (const absl::Status& status : Audit(sizes, {})) EXPECT_TRUE(status.ok()) << status;
  }
}

TEST(ReplicaAudit, NamesTheParameterTheAxisAndTheRankOfOneFlippedBit) {
  for (const char* name : {"embedding.weight", "backbone.blocks.1.norm_slstm.weight", "lm_head.weight"}) {
    for (const absl::Status& status : Audit({.replicate = 4}, {{.rank = 2, .name = name, .element = 7}})) {
      EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
      EXPECT_EQ(std::string(status.message()),
                std::string(name) +
                    " is not the same on the ranks 0, 1, 2, 3 of the replicas axis: rank 2 differs");
    }
  }
}

// The other stage finds nothing in its own weights, and still knows.
TEST(ReplicaAudit, EveryRankIsToldTheSame) {
  const std::vector<absl::Status> told =
      Audit({.pipe = 2, .replicate = 2}, {{.rank = 3, .name = "lm_head.weight", .element = 0}});
  ASSERT_EQ(told.size(), 4u);
  for (const absl::Status& status : told) {
    EXPECT_EQ(status, told[0]);
    EXPECT_NE(
        std::string(status.message())
            .find("lm_head.weight is not the same on the ranks 2, 3 of the replicas axis: rank 3 differs"),
        std::string::npos)
        << status;
  }
}

TEST(ReplicaAudit, NamesAllParametersThatDiffer) {
  const std::vector<absl::Status> told =
      Audit({.replicate = 4}, {{.rank = 0, .name = "lm_head.weight", .element = 1},
                               {.rank = 1, .name = "embedding.weight", .element = 2},
                               {.rank = 3, .name = "embedding.weight", .element = 2}});
  for (const absl::Status& status : told) {
    const std::string text(status.message());
    EXPECT_NE(text.find("lm_head.weight is not the same on the ranks 0, 1, 2, 3 of the replicas axis: rank 0 "
                        "differs"),
              std::string::npos)
        << text;
    EXPECT_NE(text.find("embedding.weight is not the same on the ranks 0, 1, 2, 3 of the replicas axis: "
                        "rank 1, 3 differ"),
              std::string::npos)
        << text;
  }
}

// Weights that two ranks of the tensor axis both have are compared, and their own parts are not.
TEST(ReplicaAudit, ComparesWhatTheTensorAxisReplicates) {
  constexpr char kNorm[] = "backbone.blocks.2.norm_mlstm.weight";
  const auto told = Audit({.tensor = 2}, {{.rank = 1, .name = kNorm, .element = 3}});
  for (const absl::Status& status : told) {
    EXPECT_EQ(std::string(status.message()),
              std::string(kNorm) + " is not the same on the ranks 0, 1 of the tensor axis: rank 1 differs");
  }
  for (const absl::Status& status : Audit({.tensor = 2}, {{.rank = 1, .name = "lm_head.weight"}})) {
    EXPECT_TRUE(status.ok()) << status;
  }
}
}  // namespace
}  // namespace carousel
