// Ranks as processes that share one real GPU, and NCCL between them: the contract of communicators and a
// time.
//   nccl_gpu_check RANKS [DEVICE]
// Each rank calls itself another host (NCCL_HOSTID), without which NCCL refuses ranks on one GPU. Exits 0 if
// all passed. kernels/bench/nccl_one_gpu.sh runs it.
#include <signal.h>
#include <sys/prctl.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "kernels/cuda/make_cuda_device.h"
#include "parallel/nccl_communicator.h"
#include "tests/communicator_contract.h"
#include "tests/on_device_communicator.h"
#include "tests/process_ranks.h"

namespace carousel::testing {
namespace {
constexpr double kTimeoutSeconds = 60;
constexpr int64_t kElems = int64_t{1} << 20;
constexpr int kTimes = 5;

void RunRank(Communicator& host, int device_index) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);  // no rank outlives a program that is ended
  setenv("NCCL_HOSTID", ("carousel-rank-" + std::to_string(host.rank())).c_str(), /*overwrite=*/1);
  std::string error;
  const std::unique_ptr<Device> device = cuda::MakeCudaDevice(device_index, &error);
  ASSERT_NE(device, nullptr) << error;
  auto made = MakeNcclCommunicator(host, *device,
                                   {.timeout_seconds = kTimeoutSeconds,
                                    .init_timeout_seconds = kTimeoutSeconds,
                                    .ranks_may_share_gpu = true});
  ASSERT_TRUE(made.ok()) << made.status().message();
  const std::unique_ptr<Communicator> communicator = *std::move(made);
  OnDevice on_device(*communicator, *device);
  for (const int64_t n : {0, 1, 5, 1025, 20000}) CheckCommunicatorContract(on_device, n);
  CheckSplits(on_device);

  const Tensor x(device->Allocate(kElems * SizeOf(DType::kF32)), DType::kF32, {kElems});
  communicator->AllReduceSum(x);
  communicator->Barrier();
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < kTimes; ++i) communicator->AllReduceSum(x);
  device->Synchronize();
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (host.rank() == 0) {
    std::fprintf(stderr, "AllReduceSum of %lld MiB on %d ranks: %.2f ms\n",
                 static_cast<long long>(x.num_bytes() >> 20), host.size(), 1e3 * seconds / kTimes);
  }
  device->Free(x.data);
}

int Main(int argc, char** argv) {
  const int ranks = argc > 1 ? std::atoi(argv[1]) : 0, device_index = argc > 2 ? std::atoi(argv[2]) : 0;
  if (ranks < 1 || ranks > SharedMemoryCommunicator::kMaxRanks) {
    std::fprintf(stderr, "usage: nccl_gpu_check RANKS [DEVICE], 1 to %d ranks\n",
                 SharedMemoryCommunicator::kMaxRanks);
    return 2;
  }
  // This process must not touch CUDA: a forked child could not use it.
  bool all_passed = true;
  const auto results = RunProcesses(ranks, [&](Communicator& host) { RunRank(host, device_index); });
  for (size_t r = 0; r < results.size(); ++r) {
    const bool passed = results[r].exit_code == 0;
    all_passed &= passed;
    std::printf("rank %zu: %s\n%s", r, passed ? "passed" : "FAILED", results[r].errors.c_str());
  }
  return all_passed ? 0 : 1;
}
}  // namespace
}  // namespace carousel::testing

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  return carousel::testing::Main(argc, argv);
}
