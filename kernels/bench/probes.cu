// probes.cu - measures on one GPU of compute capability 9.0 what the design of the kernels takes for granted:
// rates of the tensor cores by operand form, latencies of barriers and of the cluster's shared memory,
// bandwidths into a multiprocessor, the rate of special functions. Prints a Markdown table: median, least and
// largest of the repeats, beside what the design assumes.
//
//   gpu_probes [--device N] [--repeats N]        exits 77 on another kind of GPU
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "kernels/bench/probe_kernels.h"

namespace carousel::probes {
namespace {

void Check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  std::fprintf(stderr, "gpu_probes: %s: %s\n", what, cudaGetErrorString(status));
  std::exit(1);
}

// Device memory that lives as long as the program.
template <class T>
T* Allocate(size_t count) {
  void* p = nullptr;
  Check(cudaMalloc(&p, count * sizeof(T)), "cudaMalloc");
  Check(cudaMemset(p, 0, count * sizeof(T)), "cudaMemset");
  return static_cast<T*>(p);
}

class Bench {
 public:
  Bench(int device, int repeats) : repeats_(repeats) {
    cudaDeviceProp properties;
    Check(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
    num_sms_ = properties.multiProcessorCount;
    Check(cudaEventCreate(&start_), "cudaEventCreate");
    Check(cudaEventCreate(&stop_), "cudaEventCreate");
    cycles_ = Allocate<long long>(kMaxBlocks);
    sink_ = Allocate<float>(1);
  }
  int num_sms() const { return num_sms_; }
  long long* cycles() const { return cycles_; }
  float* sink() const { return sink_; }

  // One row. value(seconds, cycles): of the launch, and of its slowest block. One launch more comes first.
  void Row(const char* name, const char* unit, const char* assumed, unsigned num_blocks,
           const std::function<cudaError_t()>& launch,
           const std::function<double(double seconds, double cycles)>& value) {
    std::vector<double> values;
    for (int i = 0; i <= repeats_; ++i) {
      Check(cudaEventRecord(start_), "cudaEventRecord");
      Check(launch(), name);
      Check(cudaEventRecord(stop_), "cudaEventRecord");
      Check(cudaEventSynchronize(stop_), name);
      float ms = 0;
      Check(cudaEventElapsedTime(&ms, start_, stop_), "cudaEventElapsedTime");
      std::vector<long long> cycles(num_blocks);
      Check(cudaMemcpy(cycles.data(), cycles_, num_blocks * sizeof(long long), cudaMemcpyDeviceToHost),
            "cudaMemcpy");
      if (i == 0) continue;
      values.push_back(
          value(ms * 1e-3, static_cast<double>(*std::max_element(cycles.begin(), cycles.end()))));
    }
    std::sort(values.begin(), values.end());
    std::printf("| %s | %.4g | %.4g to %.4g | %s | %s |\n", name, values[values.size() / 2], values.front(),
                values.back(), unit, assumed);
    std::fflush(stdout);
  }

  static constexpr unsigned kMaxBlocks = 1024;

 private:
  const int repeats_;
  int num_sms_ = 0;
  cudaEvent_t start_, stop_;
  long long* cycles_;
  float* sink_;
};

// ---- tensor cores
// Two rows: FLOP per cycle and multiprocessor, and TFLOP/s of the GPU at the clock it keeps meanwhile.
void RateRows(Bench& bench, const std::string& name, double flop_per_block, const char* per_cycle,
              const char* tera, const std::function<cudaError_t()>& launch) {
  const auto blocks = static_cast<unsigned>(bench.num_sms());
  bench.Row(name.c_str(), "FLOP per cycle and SM", per_cycle, blocks, launch,
            [=](double, double cycles) { return flop_per_block / cycles; });
  bench.Row(name.c_str(), "TFLOP/s", tera, blocks, launch,
            [=](double seconds, double) { return flop_per_block * blocks / seconds * 1e-12; });
}
template <int N, bool kRegisters, bool kTransposeB>
void WgmmaRow(Bench& bench, const char* name) {
  constexpr int kTurns = 2000;
  RateRows(bench, name, 2.0 * kTurns * kProductsPerTurn * 2 * 64 * N * 16, "4096", "790", [&] {
    return gpu::launch(WgmmaKernel<N, kRegisters, kTransposeB>,
                       {.grid = static_cast<unsigned>(bench.num_sms()),
                        .block = 256,
                        .smem = (2 * 64 + N) * 128,
                        .name = "WgmmaKernel"},
                       kTurns, bench.cycles(), bench.sink());
  });
}
void TensorRows(Bench& bench) {
  WgmmaRow<64, false, false>(bench, "wgmma m64n64, a and b in shared memory");
  WgmmaRow<128, false, false>(bench, "wgmma m64n128, a and b in shared memory");
  WgmmaRow<256, false, false>(bench, "wgmma m64n256, a and b in shared memory");
  WgmmaRow<64, true, false>(bench, "wgmma m64n64, a in registers");
  WgmmaRow<128, true, true>(bench, "wgmma m64n128, a in registers, b MN-major");
  WgmmaRow<256, true, true>(bench, "wgmma m64n256, a in registers, b MN-major");
  constexpr int kTurns = 20000;
  RateRows(
      bench, "mma.sync m16n8k16", 8.0 * kTurns * 8 * 2 * 16 * 8 * 16, "2540 (62 % of wgmma)", "490", [&] {
        return gpu::launch(
            MmaKernel, {.grid = static_cast<unsigned>(bench.num_sms()), .block = 256, .name = "MmaKernel"},
            kTurns, bench.cycles(), bench.sink());
      });
}

// ---- special functions
template <Special kFunction>
void SpecialRow(Bench& bench, const char* name, const char* assumed) {
  constexpr int kTurns = 4000;
  const auto blocks = static_cast<unsigned>(bench.num_sms());
  bench.Row(
      name, "per cycle and SM", assumed, blocks,
      [&] {
        return gpu::launch(SpecialKernel<kFunction>, {.grid = blocks, .block = 1024, .name = "SpecialKernel"},
                           kTurns, bench.cycles(), bench.sink());
      },
      [](double, double cycles) { return 4.0 * 1024 * kTurns / cycles; });
}

// ---- latencies
template <class Kernel>
void LatencyRow(Bench& bench, const char* name, const char* assumed, const gpu::LaunchCfg& config,
                Kernel kernel, double steps_per_turn) {
  constexpr int kTurns = 2000;
  bench.Row(
      name, "cycles", assumed, config.grid.x,
      [&] {
        if constexpr (std::is_same_v<Kernel, void (*)(int, long long*, float*)>) {
          return gpu::launch(kernel, config, kTurns, bench.cycles(), bench.sink());
        } else {
          return gpu::launch(kernel, config, kTurns, bench.cycles());
        }
      },
      [=](double, double cycles) { return cycles / (kTurns * steps_per_turn); });
}
void LatencyRows(Bench& bench) {
  const auto blocks = static_cast<unsigned>(bench.num_sms());
  LatencyRow(bench, "__syncthreads, 384 threads", "20 to 30", {.grid = 1, .block = 384, .name = "barrier"},
             BlockBarrierKernel, 1);
  for (const unsigned cluster : {2u, 4u, 8u}) {
    const std::string name = "cluster barrier, " + std::to_string(cluster) + " blocks of 256";
    LatencyRow(bench, name.c_str(), "200",
               {.grid = cluster, .block = 256, .cluster = cluster, .name = "ClusterBarrierKernel"},
               ClusterBarrierKernel, 1);
  }
  LatencyRow(bench, "load from another block's shared memory", "200 (one way)",
             {.grid = 2, .block = 32, .cluster = 2, .name = "RemoteLoadKernel"}, RemoteLoadKernel, 1);
  LatencyRow(bench, "st.async to another block, with the wait for it", "200",
             {.grid = 2, .block = 32, .cluster = 2, .name = "StoreAsyncKernel"}, StoreAsyncKernel, 2);
  constexpr int kTurns = 200;
  bench.Row(
      "grid barrier through global memory", "us", "1.2 to 2", blocks,
      [&] {
        return gpu::launch(GridBarrierKernel,
                           {.grid = blocks, .block = 256, .cooperative = true, .name = "GridBarrierKernel"},
                           kTurns, bench.cycles());
      },
      [](double seconds, double) { return seconds * 1e6 / kTurns; });
}

// ---- bandwidths
template <bool kMulticast>
void CopyInRow(Bench& bench, const unsigned char* buffer, unsigned num_pieces, const char* name,
               const char* assumed) {
  constexpr int kTurns = 4000;
  const auto blocks = static_cast<unsigned>(bench.num_sms() / kCopyCluster * kCopyCluster);
  bench.Row(
      name, "TB/s into all SMs", assumed, blocks,
      [&] {
        return gpu::launch(CopyInKernel<kMulticast>,
                           {.grid = blocks,
                            .block = 32,
                            .smem = kRing * kPiece,
                            .cluster = kCopyCluster,
                            .name = "CopyInKernel"},
                           kTurns, bench.cycles(), buffer, num_pieces);
      },
      [=](double seconds, double) { return 1e-12 * blocks * double{kTurns} * kPiece / seconds; });
}
void BandwidthRows(Bench& bench) {
  constexpr unsigned kCachedPieces = 512;  // 8 MB
  const auto* const buffer = Allocate<unsigned char>(size_t{kCachedPieces} * kPiece);
  CopyInRow<false>(bench, buffer, kCachedPieces, "second-level cache to shared memory", "at least 3.9");
  CopyInRow<true>(bench, buffer, kCachedPieces, "the same, multicast to clusters of 4", "more than 6");
  constexpr size_t kCount = size_t{1} << 26;  // 1 GiB of 16 bytes
  const auto* const from = Allocate<uint4>(kCount);
  auto* const to = Allocate<uint4>(kCount);
  bench.Row(
      "copy of 1 GiB, read and written", "TB/s", "3.0 (H100), 4.3 (H200)", 1,
      [&] {
        return gpu::launch(
            CopyKernel,
            {.grid = static_cast<unsigned>(bench.num_sms()) * 4, .block = 512, .name = "CopyKernel"}, to,
            from, kCount);
      },
      [](double seconds, double) { return 2e-12 * kCount * sizeof(uint4) / seconds; });
}

// The number after an option, or -1.
int NumberOf(const char* text, int least, int most) {
  char* end = nullptr;
  const long value = std::strtol(text, &end, 10);
  return end != text && *end == 0 && value >= least && value <= most ? static_cast<int>(value) : -1;
}

int Main(int argc, char** argv) {
  int device = 0, repeats = 21;
  for (int i = 1; i < argc; ++i) {
    const std::string option = argv[i];
    if (option == "--help" || option == "-h") {
      std::printf(
          "gpu_probes [--device N] [--repeats N]\n"
          "Measures what a GPU of compute capability 9.0 does per cycle and prints a table, beside what the\n"
          "design of the kernels assumes. --device: the GPU's number (0); --repeats: launches per row, of "
          "which\n"
          "the median counts (21).\n");
      return 0;
    }
    int* const target = option == "--device" ? &device : option == "--repeats" ? &repeats : nullptr;
    const int value = i + 1 < argc ? NumberOf(argv[i + 1], target == &repeats ? 1 : 0, 10000) : -1;
    if (target == nullptr || value < 0) {
      std::fprintf(stderr, "gpu_probes: '%s' is not an option with its number; see --help\n", argv[i]);
      return 2;
    }
    *target = value;
    ++i;
  }
  int num_devices = 0;
  if (cudaGetDeviceCount(&num_devices) != cudaSuccess || device >= num_devices) {
    std::fprintf(stderr, "gpu_probes: there is no GPU %d here: not measured\n", device);
    return 77;
  }
  Check(cudaSetDevice(device), "cudaSetDevice");
  cudaDeviceProp properties;
  Check(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
  if (10 * properties.major + properties.minor != 90) {
    std::fprintf(stderr, "gpu_probes: %s has compute capability %d.%d, these are for 9.0: not measured\n",
                 properties.name, properties.major, properties.minor);
    return 77;
  }
  std::printf("%s, %d multiprocessors, %d repeats\n\n", properties.name, properties.multiProcessorCount,
              repeats);
  std::printf("| probe | median | least to largest | unit | assumed |\n|---|---|---|---|---|\n");
  Bench bench(device, repeats);
  TensorRows(bench);
  SpecialRow<Special::kExp2>(bench, "ex2", "16");
  SpecialRow<Special::kReciprocal>(bench, "rcp", "16");
  SpecialRow<Special::kTanh>(bench, "tanh", "16");
  LatencyRows(bench);
  BandwidthRows(bench);
  return 0;
}
}  // namespace
}  // namespace carousel::probes

int main(int argc, char** argv) { return carousel::probes::Main(argc, argv); }
