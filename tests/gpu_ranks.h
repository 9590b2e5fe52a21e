// Runs on emulated GPUs whose ranks are processes and are connected as the program connects them: they meet
// over TCP (launcher/environment.h) and exchange tensors by NCCL (launcher/train/run_mesh.h).
#pragma once
#include <cstdlib>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "launcher/environment.h"
#include "launcher/train/run_mesh.h"
#include "parallel/sharded_sync.h"
#include "tests/mesh_training.h"
#include "tests/nccl_testing.h"
#include "tests/temp_dir.h"

namespace carousel::testing {

struct GpuRanksOptions {
  uint64_t seed = 1;  // of the interleaving of streams, another one on every rank
  bool verify_calls = false;
  double call_seconds = 120;  // a call that takes longer ends the job
  // Called on every rank before GPUs are connected, to plant faults.
  std::function<void(int rank)> before = {};
  // What connecting answered where it failed; such a rank ends well.
  std::function<void(const absl::Status&)> refused = {};
};

// Runs `body` on every rank of the mesh; a rank's exit code is 0, or 9 if an expectation failed in it.
inline std::vector<RankResult> RunGpuRanks(const MeshSizes& sizes, const GpuRanksOptions& options,
                                           const std::function<void(Device&, const Mesh&)>& body) {
  const TempDir meeting;
  const int size = static_cast<int>(sizes.world());
  return RunProcesses(size, [&](Communicator& host) {
    const int rank = host.rank();
    const auto set = [](const char* name, const std::string& value) { setenv(name, value.c_str(), 1); };
    if (size > 1) {
      set("CAROUSEL_RENDEZVOUS", "file:" + meeting.path());
      set("CAROUSEL_RANK", std::to_string(rank));
      set("CAROUSEL_WORLD_SIZE", std::to_string(size));
      set("CAROUSEL_RUN_SECRET", "a secret for tests only, of some length");
    }
    auto environment = Environment::Start();
    ASSERT_TRUE(environment.ok()) << environment.status();
    Communicator& world = (*environment)->world();
    world.set_verify_calls(options.verify_calls);
    const auto device = MakeGpu(rank, 16 * options.seed + static_cast<uint64_t>(rank));
    if (options.before) options.before(rank);
    {
      const auto mesh =
          RunMesh::Connect(sizes, RunMesh::Transport::kNccl, world, *device, options.call_seconds);
      if (options.refused) {
        EXPECT_FALSE(mesh.ok());
        options.refused(mesh.status());
      } else {
        ASSERT_TRUE(mesh.ok()) << mesh.status();
        body(*device, (*mesh)->mesh());
      }
    }
    std::fflush(nullptr);
    _exit((*environment)->Finish(::testing::Test::HasFailure() ? 9 : 0));
  });
}

// ---- what a rank hands to the process that compares: numbers, then its part of the weights

class RunFile {
 public:
  static void Write(const std::string& path, const MeshRun& run, const std::vector<StateSlice>& slices) {
    std::ofstream file(path, std::ios::binary);
    for (const auto& numbers : {run.losses, run.norms, run.evaluations}) {
      Put(file, static_cast<int64_t>(numbers.size()));
      for (const double x : numbers) Put(file, x);
    }
    for (const StateSlice& slice : slices) {
      if (slice.kind != StateKind::kWeight || slice.replica) continue;
      const int64_t row = slice.row_elems();
      for (int64_t begin = 0; begin < slice.num_elems(); begin += row) {
        Put(file, static_cast<int64_t>(slice.name.size()));
        file.write(slice.name.data(), static_cast<std::streamsize>(slice.name.size()));
        Put(file, RowBegin(slice, begin / row));
        Put(file, row);
        DispatchFloat(slice.dtype, [&]<class T>() {
          const T* values = static_cast<const T*>(slice.data) + begin / row * slice.stride();
          for (int64_t j = 0; j < row; ++j) Put(file, static_cast<double>(static_cast<Wide<T>>(values[j])));
        });
      }
    }
    CAROUSEL_CHECK(file.good());
  }

  // Adds the weights to those of other ranks. No element comes from two of them.
  static void Read(const std::string& path, MeshRun* run) {
    std::ifstream file(path, std::ios::binary);
    ASSERT_TRUE(file.good()) << path;
    for (auto* numbers : {&run->losses, &run->norms, &run->evaluations}) {
      numbers->resize(static_cast<size_t>(Get<int64_t>(file)));
      for (double& x : *numbers) x = Get<double>(file);
    }
    while (file.peek() != std::ifstream::traits_type::eof()) {
      std::string name(static_cast<size_t>(Get<int64_t>(file)), ' ');
      file.read(name.data(), static_cast<std::streamsize>(name.size()));
      std::vector<double>& whole = run->weights[name];
      const int64_t begin = Get<int64_t>(file), count = Get<int64_t>(file);
      if (static_cast<int64_t>(whole.size()) < begin + count) {
        whole.resize(static_cast<size_t>(begin + count), std::nan(""));
      }
      for (int64_t j = begin; j < begin + count; ++j) {
        EXPECT_TRUE(std::isnan(whole[static_cast<size_t>(j)])) << name << " element " << j;
        whole[static_cast<size_t>(j)] = Get<double>(file);
      }
    }
  }

 private:
  // Where a row of the slice begins in the whole tensor.
  static int64_t RowBegin(const StateSlice& slice, int64_t row) {
    int64_t elem = 0, stride = 1;
    for (size_t d = slice.shape.size(); d-- > 0; stride *= slice.shape[d]) {
      const bool last = d + 1 == slice.shape.size();
      elem += stride * (slice.offset[d] + (last ? 0 : row % slice.size[d]));
      if (!last) row /= slice.size[d];
    }
    return elem;
  }
  template <class T>
  static void Put(std::ofstream& file, T value) {
    file.write(reinterpret_cast<const char*>(&value), sizeof value);
  }
  template <class T>
  static T Get(std::ifstream& file) {
    T value = {};
    file.read(reinterpret_cast<char*>(&value), sizeof value);
    return value;
  }
};

// Trains `num_steps` steps and evaluates; what the ranks must agree on is compared.
inline MeshRun TrainOnGpus(const MeshSizes& sizes, const TrainSpec& spec, int64_t num_steps, uint64_t seed) {
  const TempDir directory;
  const auto path = [&](int64_t rank) { return directory.path() + "/" + std::to_string(rank); };
  ExpectAllPass(RunGpuRanks(sizes, {.seed = seed}, [&](Device& device, const Mesh& mesh) {
    ShardedSyncFactory sync;
    Trainer trainer(spec, device, mesh, sync);
    trainer.Initialize(9);
    MeshSource source(spec), evaluation(spec, /*evaluation=*/true);
    MeshRun run;
    for (int64_t step = 0; step < num_steps; ++step) {
      const StepResult result = trainer.Step(step, source);
      EXPECT_FALSE(result.skipped);
      run.losses.push_back(result.loss);
      run.norms.push_back(result.grad_norm);
    }
    run.evaluations.push_back(trainer.Evaluate(evaluation, 1).loss);
    EXPECT_TRUE(trainer.AuditReplicas().ok()) << trainer.AuditReplicas();
    RunFile::Write(path(mesh.world.index), run, trainer.States());
  }));
  MeshRun result;
  for (int64_t rank = 0; rank < sizes.world(); ++rank) {
    MeshRun of_rank;
    RunFile::Read(path(rank), &of_rank);
    if (rank > 0) {
      EXPECT_EQ(of_rank.losses, result.losses) << "rank " << rank;
      EXPECT_EQ(of_rank.norms, result.norms) << "rank " << rank;
      EXPECT_EQ(of_rank.evaluations, result.evaluations) << "rank " << rank;
    }
    RunFile::Read(path(rank), &result);
  }
  return result;
}
}  // namespace carousel::testing
