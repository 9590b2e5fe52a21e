// Whole training steps on several emulated GPUs, gradients and weights crossing by NCCL: the same bits as on
// one.
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/train/trainer.h"
#include "kernels/cuda/make_cuda_device.h"
#include "kernels/simt/fake_cudart.h"
#include "launcher/run_mesh.h"
#include "parallel/local_communicator.h"
#include "parallel/nccl_communicator.h"
#include "parallel/sharded_sync.h"
#include "tests/layer_testing.h"
#include "tests/mesh_training.h"

namespace carousel::testing {
namespace {
constexpr int64_t kB = 2, kT = 6, kSteps = 3;

struct RandomSource final : public BatchSource {
  void Get(int64_t step, int64_t micro, Batch* batch) override {
    *batch = RandomBatch(kB, kT, 19, static_cast<uint64_t>(100 * step + micro), /*resets=*/micro % 2 == 0);
  }
};

TrainSpec Spec(DType compute) {
  TrainSpec spec;
  spec.model = TinySpec();
  spec.adamw = {.weight_decay = 0.1, .clip_norm = 1};
  spec.schedule = {.kind = ScheduleKind::kConstant, .peak_lr = 1e-2, .total_steps = 100};
  spec.T = kT;
  spec.micro_batch = kB;
  spec.micro_batches_per_step = 4;
  spec.compute = compute;
  return spec;
}

std::unique_ptr<Device> Gpu(int index) {
  std::string error;
  std::unique_ptr<Device> device = simt::MakeCudaDevice(index, &error);
  CAROUSEL_CHECK_MSG(device != nullptr, error);
  return device;
}

// Losses and gradient norms of the first steps.
std::vector<double> Train(const TrainSpec& spec, Device& device, const Mesh& mesh, BatchSource& source) {
  ShardedSyncFactory sync;
  Trainer trainer(spec, device, mesh, sync);
  trainer.Initialize(5);
  std::vector<double> numbers;
  for (int64_t step = 0; step < kSteps; ++step) {
    const StepResult result = trainer.Step(step, source);
    numbers.insert(numbers.end(), {result.loss, result.grad_norm});
  }
  return numbers;
}

std::vector<double> Train(const TrainSpec& spec, Device& device, const Mesh& mesh) {
  RandomSource source;
  return Train(spec, device, mesh, source);
}

TEST(NcclTraining, EveryNumberOfGpusGivesTheBitsOfOne) {
  for (const DType compute : {DType::kF32, DType::kBF16}) {
    const TrainSpec spec = Spec(compute);
    fake_cuda::SetOptions({.num_devices = 4});
    const std::vector<double> expected = Train(spec, *Gpu(0), Mesh{});
    for (const int size : {2, 4}) {
      fake_cuda::SetOptions({.num_devices = 4, .seed = static_cast<uint64_t>(size)});
      std::vector<double> numbers;
      RunLocalRanks(size, [&](Communicator& host) {
        const auto device = Gpu(host.rank());
        auto communicator = MakeNcclCommunicator(host, *device);
        ASSERT_TRUE(communicator.ok()) << communicator.status().message();
        const Mesh mesh = ReplicateMesh(
            {.size = size, .index = host.rank(), .communicator = communicator->get(), .control = &host});
        const std::vector<double> mine = Train(spec, *device, mesh);
        if (host.rank() == 0) numbers = mine;
      });
      EXPECT_EQ(numbers, expected) << NameOf(compute) << " on " << size;
    }
  }
}

// The meshes of a run, as the program connects them: communicators split off NCCL's, reductions and gathers
// on a stream of their own beside the computation.
std::vector<double> TrainOnGpus(const TrainSpec& spec, const MeshSizes& sizes, uint64_t seed,
                                const std::function<std::unique_ptr<BatchSource>()>& make_source) {
  fake_cuda::SetOptions({.num_devices = static_cast<int>(sizes.world()), .seed = seed});
  std::vector<double> numbers;
  RunLocalRanks(static_cast<int>(sizes.world()), [&](Communicator& host) {
    const auto device = Gpu(host.rank());
    const auto mesh = RunMesh::Connect(sizes, RunMesh::Transport::kNccl, host, *device);
    ASSERT_TRUE(mesh.ok()) << mesh.status();
    const std::unique_ptr<BatchSource> source = make_source();
    const std::vector<double> mine = Train(spec, *device, (*mesh)->mesh(), *source);
    if (host.rank() == 0) numbers = mine;
  });
  return numbers;
}

TEST(NcclTraining, MeshesOfDataGiveTheBitsOfOneGpu) {
  const TrainSpec spec = Spec(DType::kBF16);
  fake_cuda::SetOptions({.num_devices = 1});
  const std::vector<double> expected = Train(spec, *Gpu(0), Mesh{});
  uint64_t seed = 0;
  for (const MeshSizes& sizes : {MeshSizes{.replicate = 2}, MeshSizes{.shard = 2}, MeshSizes{.shard = 4},
                                 MeshSizes{.replicate = 2, .shard = 2}}) {
    const std::vector<double> numbers =
        TrainOnGpus(spec, sizes, ++seed, [] { return std::make_unique<RandomSource>(); });
    EXPECT_EQ(numbers, expected) << sizes.replicate << " x " << sizes.shard;
  }
}

// Models with mLSTM and sLSTM blocks, documents over every border.
TEST(NcclTraining, MeshesThatCutTheModelAgreeWithOneGpu) {
  struct Cut {
    SequenceMode mode;
    MeshSizes sizes;
  };
  const std::vector<Cut> of_large = {{SequenceMode::kState, {.sequence = 2, .tensor = 2}},
                                     {SequenceMode::kHeads, {.sequence = 2}},
                                     {SequenceMode::kState, {.pipe = 2, .shard = 2}}};
  const std::vector<Cut> of_paper = {{SequenceMode::kState, {.sequence = 2}},
                                     {SequenceMode::kHeads, {.tensor = 2}}};
  uint64_t seed = 0;
  for (const bool paper : {false, true}) {
    TrainSpec spec = MeshTrainSpec(paper ? MeshPaperSpec() : MeshLargeSpec(), DType::kF64);
    const auto make_source = [&] { return std::make_unique<MeshSource>(spec); };
    fake_cuda::SetOptions({.num_devices = 1});
    const std::vector<double> expected = Train(spec, *Gpu(0), Mesh{}, *make_source());
    for (const Cut& cut : paper ? of_paper : of_large) {
      spec.sequence_mode = cut.mode;
      const std::vector<double> numbers = TrainOnGpus(spec, cut.sizes, ++seed, make_source);
      ASSERT_EQ(numbers.size(), expected.size());
      for (size_t j = 0; j < numbers.size(); ++j) {
        EXPECT_NEAR(numbers[j] / expected[j], 1, 1e-12) << (paper ? "paper " : "large ") << seed;
      }
    }
  }
}
}  // namespace
}  // namespace carousel::testing
