// NCCL communicators on streams beside the compute stream: what events order, what runs side by side, and
// that a missing event is seen. Ranks are processes on emulated GPUs, each with another interleaving of its
// streams.
#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "tests/nccl_testing.h"

namespace carousel::testing {
namespace {
constexpr int64_t kN = 600;
constexpr int kNumSeeds = 12;

// One rank's device, a stream beside the compute stream and a communicator on it.
struct Rig {
  Rig(Communicator& host, uint64_t seed)
      : device(MakeGpu(host.rank(), seed)),
        compute(device->ComputeStream()),
        beside(device->MakeStream()),
        ready(device->MakeEvent()),
        arrived(device->MakeEvent()),
        communicator(MakeCommunicator(host, *device, {.stream = beside.get(), .staging_bytes = 1000})) {
    // The first sum allocates memory, which waits for the compute stream.
    communicator->AllReduceSum(MakeTensor(*device, 1));
    device->Synchronize();
  }
  void Fill(Tensor x, double value) { device->ops().Fill({.y = x, .value = value}); }

  std::unique_ptr<Device> device;
  std::unique_ptr<Stream> compute, beside;
  std::unique_ptr<Event> ready, arrived;
  std::unique_ptr<Communicator> communicator;
};

// For how many seeds a sum over two ranks is right on this rank.
int CountRightSums(Communicator& host, bool waits_before, bool waits_after) {
  int right = 0;
  for (uint64_t seed = 1; seed <= kNumSeeds; ++seed) {
    Rig rig(host, seed);
    const Tensor x = MakeTensor(*rig.device, kN), y = MakeTensor(*rig.device, kN);
    rig.Fill(x, 1.0 + host.rank());
    rig.compute->Record(*rig.ready);
    if (waits_before) rig.beside->Wait(*rig.ready);
    rig.communicator->AllReduceSum(x);
    rig.beside->Record(*rig.arrived);
    if (waits_after) rig.compute->Wait(*rig.arrived);
    rig.device->ops().Cast({.y = y, .x = x});
    rig.device->Synchronize();
    right += Read(*rig.device, y) == std::vector<float>(kN, 3.0f);
  }
  return right;
}

TEST(NcclStreams, EventsOrderACallWithTheComputeStreamInEverySeed) {
  ExpectAllPass(
      RunProcesses(2, [](Communicator& host) { EXPECT_EQ(CountRightSums(host, true, true), kNumSeeds); }));
}

TEST(NcclStreams, AMissingEventGivesWrongSumsInSomeSeeds) {
  ExpectAllPass(RunProcesses(2, [](Communicator& host) {
    EXPECT_LT(CountRightSums(host, false, true), kNumSeeds);  // the sum before its terms
    EXPECT_LT(CountRightSums(host, true, false), kNumSeeds);  // its reader before the sum
  }));
}

// A step as the engine makes it: gradients of one block are summed while the next one is computed.
TEST(NcclStreams, AStepOfBucketsIsRightInEverySeed) {
  constexpr int kBuckets = 4, kSteps = 3;
  ExpectAllPass(RunProcesses(4, [](Communicator& host) {
    for (uint64_t seed = 1; seed <= 3; ++seed) {
      Rig rig(host, seed);
      const int64_t part = kN / host.size();
      std::vector<Tensor> grads, shards, weights;
      std::vector<std::unique_ptr<Event>> computed, gathered;
      for (int b = 0; b < kBuckets; ++b) {
        grads.push_back(MakeTensor(*rig.device, kN));
        shards.push_back(MakeTensor(*rig.device, part));
        weights.push_back(MakeTensor(*rig.device, kN));
        computed.push_back(rig.device->MakeEvent());
        gathered.push_back(rig.device->MakeEvent());
      }
      for (int step = 0; step < kSteps; ++step) {
        for (int b = kBuckets - 1; b >= 0; --b) {  // backward
          const size_t i = static_cast<size_t>(b);
          rig.compute->Wait(*gathered[i]);  // the last step's call has read the gradient
          rig.Fill(grads[i], step + 10.0 * b + 100.0 * host.rank());
          rig.compute->Record(*computed[i]);
          rig.beside->Wait(*computed[i]);
          rig.communicator->ReduceScatterSum(shards[i], grads[i]);
          rig.beside->ops().Add({.y = shards[i], .a = shards[i], .b = shards[i]});
          rig.communicator->AllGather(weights[i], shards[i]);
          rig.beside->Record(*gathered[i]);
        }
        for (int b = 0; b < kBuckets; ++b) {  // the next forward
          const size_t i = static_cast<size_t>(b);
          rig.compute->Wait(*gathered[i]);
          const float sum = static_cast<float>(4 * step + 40 * b + 600);
          EXPECT_EQ(Read(*rig.device, weights[i]), std::vector<float>(kN, 2 * sum))
              << "seed " << seed << " step " << step << " bucket " << b;
        }
      }
    }
  }));
}

// While the compute stream has more to do the call goes on and ends.
TEST(NcclStreams, ACallEndsBesideComputationThatHasNotEnded) {
  ExpectAllPass(RunProcesses(2, [](Communicator& host) {
    Rig rig(host, 1);
    const Tensor x = MakeTensor(*rig.device, 64);
    rig.Fill(x, 1);
    rig.compute->Record(*rig.ready);
    rig.beside->Wait(*rig.ready);
    const auto native = [](Stream& stream) { return static_cast<cudaStream_t>(stream.native()); };
    std::atomic<bool> ends = false;
    fake_cuda::Enqueue(native(*rig.compute),
                       [&ends] { return ends ? fake_cuda::Progress::kDone : fake_cuda::Progress::kWaiting; });
    rig.communicator->AllReduceSum(x);
    EXPECT_EQ(cudaStreamSynchronize(native(*rig.beside)), cudaSuccess);
    EXPECT_EQ(cudaStreamQuery(native(*rig.compute)), cudaErrorNotReady);
    ends = true;
    EXPECT_EQ(Read(*rig.device, x), std::vector<float>(64, 2.0f));
  }));
}

// Two axes at once, a stream each: rows on one, columns on the other, in every interleaving.
TEST(NcclStreams, PartsOnStreamsOfTheirOwnGoSideBySide) {
  ExpectAllPass(RunProcesses(4, [](Communicator& host) {
    for (uint64_t seed = 1; seed <= 4; ++seed) {
      const auto device = MakeGpu(host.rank(), seed);
      const auto beside = device->MakeStream();
      const auto event = device->MakeEvent();
      const auto world = MakeCommunicator(host, *device);
      const auto rows = world->Split(host.rank() / 2);  // on the compute stream
      const auto columns = SplitNcclCommunicator(*world, host.rank() % 2, beside.get());
      EXPECT_EQ(columns->size(), 2);
      const Tensor x = MakeTensor(*device, kN), y = MakeTensor(*device, kN);
      device->ops().Fill({.y = x, .value = 1.0 + host.rank()});
      beside->ops().Fill({.y = y, .value = 10.0 * (1 + host.rank())});
      for (int i = 0; i < 3; ++i) {
        if (host.rank() % 2 == 0) rows->AllReduceSum(x);  // the order of calls of different communicators
        columns->AllReduceSum(y);
        if (host.rank() % 2 == 1) rows->AllReduceSum(x);
      }
      beside->Record(*event);
      device->ComputeStream()->Wait(*event);
      const bool upper = host.rank() >= 2;
      EXPECT_EQ(Read(*device, x), std::vector<float>(kN, 4 * (upper ? 7.0f : 3.0f)));
      EXPECT_EQ(Read(*device, y), std::vector<float>(kN, 4 * (host.rank() % 2 == 1 ? 60.0f : 40.0f)));
    }
  }));
}

// A recorded sequence may hold calls of a communicator of the compute stream.
TEST(NcclStreams, CallsAreRecordedAndPlayedWithTheOps) {
  ExpectAllPass(RunProcesses(2, [](Communicator& host) {
    for (uint64_t seed = 1; seed <= 4; ++seed) {
      Rig rig(host, seed);
      const auto communicator = MakeCommunicator(host, *rig.device, {.staging_bytes = 1000});
      const Tensor x = MakeTensor(*rig.device, kN), y = MakeTensor(*rig.device, kN);
      const auto recording = rig.device->MakeRecording();
      int num_calls = 0;
      for (int run = 0; run < 4; ++run) {
        rig.Fill(x, run + host.rank());
        recording->Run([&] {
          ++num_calls;
          communicator->AllReduceSum(x);
          rig.device->ops().Add({.y = y, .a = y, .b = x});
        });
        // Meanwhile, beside it.
        rig.beside->ops().Fill({.y = x.Rows(0, 0), .value = 0});
        const float sums[] = {1, 4, 9, 16};
        EXPECT_EQ(Read(*rig.device, y), std::vector<float>(kN, sums[run])) << run;
      }
      EXPECT_EQ(num_calls, 2);
    }
  }));
}
}  // namespace
}  // namespace carousel::testing
