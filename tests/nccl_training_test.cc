// Whole training steps on several emulated GPUs, gradients and weights crossing by NCCL: the same bits as on
// one.
#include <memory>
#include <string>
#include <vector>

#include "core/train/trainer.h"
#include "kernels/cuda/make_cuda_device.h"
#include "kernels/simt/fake_cudart.h"
#include "parallel/local_communicator.h"
#include "parallel/nccl_communicator.h"
#include "parallel/sharded_sync.h"
#include "tests/layer_testing.h"

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
std::vector<double> Train(const TrainSpec& spec, Device& device, const Mesh& mesh) {
  ShardedSyncFactory sync;
  Trainer trainer(spec, device, mesh, sync);
  trainer.Initialize(5);
  RandomSource source;
  std::vector<double> numbers;
  for (int64_t step = 0; step < kSteps; ++step) {
    const StepResult result = trainer.Step(step, source);
    numbers.insert(numbers.end(), {result.loss, result.grad_norm});
  }
  return numbers;
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
}  // namespace
}  // namespace carousel::testing
