// What goes wrong between the GPUs of a training run: every rank ends by itself within seconds and says which
// call, made where, and why. Ranks are processes on emulated GPUs, connected as the program connects them.
#include <signal.h>

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "core/base/exit_code.h"
#include "tests/gpu_ranks.h"

namespace carousel::testing {
namespace {
constexpr double kEndsWithinSeconds = 10;
constexpr int64_t kBadStep = 1;  // the second one: "[step 2]"

TrainSpec Spec() {
  TrainSpec spec = MeshTrainSpec(MeshLargeSpec(), DType::kF32);
  spec.T = spec.longest_eval_T = 8;
  spec.micro_batch = 1;
  return spec;
}

// The batches of a run; in the midst of the bad step something happens.
class Interrupted final : public BatchSource {
 public:
  Interrupted(const TrainSpec& spec, std::function<void()> happens)
      : source_(spec), happens_(std::move(happens)) {}
  void Get(int64_t step, int64_t micro, Batch* batch) override {
    if (step == kBadStep && ++num_asked_ == 2) happens_();
    source_.Get(step, micro, batch);
  }

 private:
  MeshSource source_;
  std::function<void()> happens_;
  int num_asked_ = 0;
};

// Trains; `happens` on every rank within the bad step.
std::vector<RankResult> TrainInterrupted(const MeshSizes& sizes, const GpuRanksOptions& options,
                                         const std::function<void(Device&, const Mesh&)>& happens) {
  return RunGpuRanks(sizes, options, [&](Device& device, const Mesh& mesh) {
    const TrainSpec spec = Spec();
    ShardedSyncFactory sync;
    Trainer trainer(spec, device, mesh, sync);
    trainer.Initialize(9);
    Interrupted source(spec, [&] { happens(device, mesh); });
    for (int64_t step = 0; step < 4; ++step) {
      trainer.Step(step, source);
    }
  });
}

std::string All(const std::vector<RankResult>& results) {
  std::string all;
  for (const RankResult& result : results) all += result.errors;
  return all;
}

// Seconds from the end of the first rank to that of the last one.
double SecondsToEnd(const std::vector<RankResult>& results) {
  const auto [first, last] =
      std::minmax_element(results.begin(), results.end(),
                          [](const RankResult& a, const RankResult& b) { return a.seconds < b.seconds; });
  return last->seconds - first->seconds;
}

// Every rank but `killed` ended with this code and named itself and what it was in, at least one of them a
// call with its place.
void ExpectEnds(const std::vector<RankResult>& results, int killed, int exit_code = kExitTransport) {
  EXPECT_LT(SecondsToEnd(results), kEndsWithinSeconds);
  for (int r = 0; r < static_cast<int>(results.size()); ++r) {
    if (r == killed) continue;
    const RankResult& result = results[static_cast<size_t>(r)];
    EXPECT_EQ(result.exit_code, exit_code)
        << "rank " << r << ", signal " << result.signal << ": " << result.errors;
    const std::string begin = "[rank " + std::to_string(r) + "] ";
    EXPECT_NE(result.errors.find(begin), std::string::npos) << "rank " << r << ": " << result.errors;
    // Who computes for longer than a second is ended by the world's connections.
    EXPECT_TRUE(result.errors.find(" at ") != std::string::npos ||
                result.errors.find("; this rank was not in a collective") != std::string::npos)
        << "rank " << r << ": " << result.errors;
  }
  EXPECT_NE(All(results).find(" at "), std::string::npos) << All(results);
}

TEST(NcclTrainingFailure, AKilledRankEndsTheOthersOnEveryMesh) {
  for (const MeshSizes& sizes : {MeshSizes{.shard = 2, .tensor = 2}, MeshSizes{.pipe = 2, .sequence = 2}}) {
    const auto results = TrainInterrupted(sizes, {}, [](Device&, const Mesh& mesh) {
      if (mesh.world.index == 2) raise(SIGKILL);
    });
    EXPECT_EQ(results[2].signal, SIGKILL);
    ExpectEnds(results, 2);
    EXPECT_NE(All(results).find("[step 2] "), std::string::npos) << All(results);
  }
}

// A call of one rank that the others do not make, in the midst of a step.
struct Stray {
  MeshSizes sizes;
  Axis Mesh::*axis;
  std::string name;
};
const std::vector<Stray> kStrays = {
    {{.shard = 2}, &Mesh::shard, "shard"},
    {{.tensor = 2}, &Mesh::tensor, "tensor"},
    {{.replicate = 2, .sequence = 2}, &Mesh::sequence, "sequence"},
};
std::vector<RankResult> TrainWithStray(const Stray& stray, CollectiveOp op, const GpuRanksOptions& options) {
  return TrainInterrupted(stray.sizes, options, [&](Device& device, const Mesh& mesh) {
    if (mesh.world.index != 1) return;
    Communicator& communicator = *(mesh.*stray.axis).communicator;
    const Tensor x = MakeTensor(device, 8);
    device.ops().Fill({.y = x, .value = 1});
    if (op == CollectiveOp::kAllReduceSum) communicator.AllReduceSum(x);
    if (op == CollectiveOp::kAllGather) communicator.AllGather(x, x.Rows(4 * communicator.rank(), 4));
    device.Synchronize();
  });
}

TEST(NcclTrainingFailure, AStrayCallIsNamedWithBothPlacesWhereCallsAreVerified) {
  for (const Stray& stray : kStrays) {
    const auto results =
        TrainWithStray(stray, CollectiveOp::kAllReduceSum, {.verify_calls = true, .call_seconds = 20});
    ExpectEnds(results, -1, kExitFailure);  // a bug, no lost rank
    const std::string all = All(results);
    // Who sees it first ends the others. One line has the stray call and, of the engine's, what was to be
    // called.
    const size_t begin = all.find("the ranks' calls do not match: ");
    ASSERT_NE(begin, std::string::npos) << all;
    const std::string line = all.substr(begin, all.find('\n', begin) - begin);
    EXPECT_NE(line.find("AllReduceSum(8 x f32) "), std::string::npos) << line;
    EXPECT_NE(line.find(" at tests/nccl_training_failure_test.cc:"), std::string::npos) << line;
    EXPECT_TRUE(line.find(" at parallel/") != std::string::npos ||
                line.find(" at core/") != std::string::npos)
        << line;
  }
}

TEST(NcclTrainingFailure, AStrayCallEndsAllWhereCallsAreNotVerified) {
  for (const CollectiveOp op : {CollectiveOp::kAllReduceSum, CollectiveOp::kAllGather}) {
    for (const Stray& stray : {kStrays[0], kStrays[2]}) {
      ExpectEnds(TrainWithStray(stray, op, {.call_seconds = 2}), -1);
    }
  }
}

// ---- faults of NCCL

std::function<void(int)> OnRank(int unlucky, const fake_nccl::Options& options) {
  return [=](int rank) {
    if (rank == unlucky) fake_nccl::SetOptions(options);
  };
}

TEST(NcclTrainingFailure, AnErrorInTheBackgroundEndsAll) {
  for (const int64_t operation : {60, 401}) {
    const auto results =
        TrainInterrupted({.shard = 2, .tensor = 2}, {.before = OnRank(1, {.fail_operation = operation})},
                         [](Device&, const Mesh&) {});
    ExpectEnds(results, -1);
    EXPECT_NE(results[1].errors.find("this operation was made to fail"), std::string::npos)
        << results[1].errors;
    EXPECT_NE(results[1].errors.find("NCCL: unhandled system error"), std::string::npos) << results[1].errors;
  }
}

// The communicators of all ranks, of the compute stream and of the one beside it, are made one after the
// other.
TEST(NcclTrainingFailure, ACommunicatorThatCannotBeMadeIsAnErrorOnEveryRank) {
  for (const int64_t setup : {0, 1}) {
    const auto results = RunGpuRanks(
        {.shard = 2, .tensor = 2},
        {.before = OnRank(2, {.fail_setup = setup}),
         .refused =
             [](const absl::Status& status) { std::fprintf(stderr, "%s\n", status.ToString().c_str()); }},
        [](Device&, const Mesh&) {});
    ExpectAllPass(results);
    for (const RankResult& result : results) {
      EXPECT_NE(result.errors.find("ncclCommInitRankConfig: rank 2: NCCL: unhandled system error: this "
                                   "communicator was made to fail"),
                std::string::npos)
          << result.errors;
    }
    EXPECT_LT(SecondsToEnd(results), kEndsWithinSeconds);
  }
}

TEST(NcclTrainingFailure, ASplitThatFailsEndsAll) {
  for (const int64_t setup : {2, 5}) {
    const auto results = RunGpuRanks({.shard = 2, .tensor = 2}, {.before = OnRank(3, {.fail_setup = setup})},
                                     [](Device&, const Mesh&) { ADD_FAILURE() << "the mesh was made"; });
    ExpectEnds(results, -1);
    // Who is told first ends the others.
    EXPECT_NE(
        All(results).find("ncclCommSplit: rank 3: NCCL: unhandled system error: this communicator was made "
                          "to fail"),
        std::string::npos)
        << All(results);
  }
}
}  // namespace
}  // namespace carousel::testing
