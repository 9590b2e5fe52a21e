// Whole training steps on several emulated GPUs, each the process of a rank, connected by NCCL as the program
// connects them: along the axes of data the bits of one GPU, along the axes that cut the model the same
// numbers to rounding.
#include <cmath>
#include <string>
#include <vector>

#include "tests/gpu_ranks.h"

namespace carousel::testing {
namespace {
constexpr int64_t kSteps = 2;

// Models with mLSTM and sLSTM blocks, documents over every border.
TrainSpec Spec(bool paper, DType compute, SequenceMode mode = SequenceMode::kState) {
  TrainSpec spec = MeshTrainSpec(paper ? MeshPaperSpec() : MeshLargeSpec(), compute);
  spec.T = spec.longest_eval_T = 8;
  spec.micro_batch = 1;
  spec.micro_batches_per_step = 2;
  spec.sequence_mode = mode;
  return spec;
}
TEST(NcclTraining, MeshesOfDataGiveTheBitsOfOneGpu) {
  struct Case {
    TrainSpec spec;
    std::vector<MeshSizes> meshes;
  };
  std::vector<Case> cases = {
      {Spec(/*paper=*/false, DType::kBF16), {{.replicate = 2}, {.shard = 4}, {.replicate = 2, .shard = 4}}},
      {Spec(/*paper=*/true, DType::kF64), {{.shard = 2}, {.replicate = 2, .shard = 2}}}};
  cases[0].spec.micro_batches_per_step = 8;
  cases[1].spec.micro_batches_per_step = 4;
  uint64_t seed = 0;
  for (const Case& c : cases) {
    const MeshRun expected = TrainOnGpus({}, c.spec, kSteps, ++seed);
    for (const MeshSizes& sizes : c.meshes) {
      EXPECT_TRUE(TrainOnGpus(sizes, c.spec, kSteps, ++seed) == expected)
          << NameOf(c.spec.compute) << " on " << sizes.replicate << " x " << sizes.shard;
    }
  }
}

struct Cut {
  MeshSizes sizes;
  SequenceMode mode = SequenceMode::kState;
};
std::string NameOf(const Cut& cut) {
  return "pipe " + std::to_string(cut.sizes.pipe) + " shard " + std::to_string(cut.sizes.shard) +
         " sequence " + std::to_string(cut.sizes.sequence) +
         (cut.mode == SequenceMode::kHeads ? " by heads" : " by state") + " tensor " +
         std::to_string(cut.sizes.tensor);
}

void ExpectNearOneGpu(bool paper, DType compute, const std::vector<Cut>& cuts, double bound) {
  const MeshRun expected = TrainOnGpus({}, Spec(paper, compute), kSteps, 1);
  uint64_t seed = 1;
  for (const Cut& cut : cuts) {
    std::string where;
    const MeshRun run = TrainOnGpus(cut.sizes, Spec(paper, compute, cut.mode), kSteps, ++seed);
    const double difference = Difference(run, expected, &where);
    EXPECT_LE(difference, bound) << NameOf(cut) << ", " << where;
  }
}

TEST(NcclTraining, MeshesThatCutTheModelAgreeWithOneGpuInDouble) {
  ExpectNearOneGpu(/*paper=*/false, DType::kF64,
                   {{{.tensor = 2}},
                    {{.sequence = 2}},
                    {{.pipe = 2}},
                    {{.shard = 2, .sequence = 2}, SequenceMode::kHeads},
                    {{.pipe = 2, .sequence = 2, .tensor = 2}}},
                   1e-12);
  ExpectNearOneGpu(/*paper=*/true, DType::kF64,
                   {{{.sequence = 2}}, {{.sequence = 2}, SequenceMode::kHeads}, {{.pipe = 2, .tensor = 2}}},
                   1e-12);
}

const std::vector<Cut> kShort = {{{.tensor = 2}},
                                 {{.sequence = 2}},
                                 {{.sequence = 2}, SequenceMode::kHeads},
                                 {{.pipe = 2}},
                                 {{.sequence = 2, .tensor = 2}}};

TEST(NcclTraining, MeshesThatCutTheModelAgreeWithOneGpuInSingle) {
  ExpectNearOneGpu(/*paper=*/false, DType::kF32, kShort, 2e-6);
}

// How far the weights of two runs are apart.
double Distance(const MeshRun& a, const MeshRun& b) {
  double squared = 0;
  for (const auto& [name, values] : a.weights) {
    if (HasNoGradient(name)) continue;
    const std::vector<double>& others = b.weights.at(name);
    for (size_t j = 0; j < values.size(); ++j) squared += (values[j] - others[j]) * (values[j] - others[j]);
  }
  return std::sqrt(squared);
}

// A cut moves few roundings to bf16 and adds few: partial sums, which one GPU takes in f32, cross as bf16. So
// what a run differs from one in double by is what one GPU differs by, and most of it is the same difference.
TEST(NcclTraining, MeshesThatCutTheModelAreAsCloseToDoubleAsOneGpuInBf16) {
  const MeshRun exact = TrainOnGpus({}, Spec(false, DType::kF64), kSteps, 1);
  const MeshRun one = TrainOnGpus({}, Spec(false, DType::kBF16), kSteps, 1);
  const double distance = Distance(one, exact);
  EXPECT_GT(distance, 1e-4);
  uint64_t seed = 1;
  for (const Cut& cut : kShort) {
    const MeshRun run = TrainOnGpus(cut.sizes, Spec(false, DType::kBF16, cut.mode), kSteps, ++seed);
    EXPECT_LE(Distance(run, exact), 1.25 * distance) << NameOf(cut);
    EXPECT_LE(Distance(run, one), distance) << NameOf(cut);
    for (size_t step = 0; step < exact.losses.size(); ++step) {
      EXPECT_NEAR(run.losses[step] / exact.losses[step], 1, 4e-3) << NameOf(cut);  // bf16 keeps 8 bits
    }
  }
}
}  // namespace
}  // namespace carousel::testing
