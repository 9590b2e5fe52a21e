// `carousel bench step`: tokens per second of whole training steps on random tokens, beside the rate of the
// same step's matrix multiplications measured alone in the same run, and the peak memory beside the plan.
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <memory>

#include "absl/strings/str_cat.h"
#include "configs/load.h"
#include "core/base/status_macros.h"
#include "core/train/trainer.h"
#include "launcher/bench/bench_checkpoint_command.h"
#include "launcher/bench/bench_ops_command.h"
#include "launcher/bench/random_tokens.h"
#include "launcher/command_device.h"
#include "launcher/command_line.h"
#include "launcher/commands.h"
#include "launcher/environment.h"
#include "launcher/plan/matmul_recorder.h"
#include "launcher/train/train_setup.h"
#include "parallel/sharded_sync.h"

namespace carousel {
namespace {

struct BenchOptions {
  ConfigOptions config;
  int64_t steps = 12;
  int64_t threads = 0;
  std::string device = "cpu";
  bool graphs = true;
  double peak_tflops = 0;
};

double Seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}
double PeakResidentMiB() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) / 1024;
}
struct Times {
  std::vector<double> seconds;
  double Median() const {
    std::vector<double> sorted = seconds;
    std::sort(sorted.begin(), sorted.end());
    return sorted[sorted.size() / 2];
  }
  double Min() const { return *std::min_element(seconds.begin(), seconds.end()); }
};

// GFLOP/s of a square product: what the matmul library reaches at its best here.
double SquareMatmulRate(Device& device, DType dtype, int64_t n) {
  void* memory = device.Allocate(n * n * (2 * SizeOf(dtype) + 4));
  if (memory == nullptr) return 0;
  std::byte* base = static_cast<std::byte*>(memory);
  const Tensor a(base, dtype, {n, n}), b(base + a.num_bytes(), dtype, {n, n});
  const Tensor c(base + 2 * a.num_bytes(), WideOf(dtype), {n, n});
  device.ops().Fill({.y = a, .value = 0.5});
  device.ops().Fill({.y = b, .value = 0.25});
  double best = 1e30;
  for (int i = 0; i < 6; ++i) {
    const double start = Seconds();
    device.ops().Matmul({.c = c, .a = a, .b = b, .transpose_b = true});
    device.Synchronize();
    best = std::min(best, Seconds() - start);
  }
  device.Free(memory);
  const double flops = 2.0 * static_cast<double>(n) * static_cast<double>(n) * static_cast<double>(n);
  return flops / best * 1e-9;
}

absl::Status BenchStep(const BenchOptions& options) {
  CAROUSEL_ASSIGN_OR_RETURN(const std::unique_ptr<Environment> environment, Environment::Start());
  if (environment->size() != 1) {
    return absl::InvalidArgumentError("bench step measures one process; start it without mpirun");
  }
  RunOverrides overrides{.sets = options.config.sets, .run_dir = "unused"};
  CAROUSEL_ASSIGN_OR_RETURN(const RunSpec run, LoadRun(options.config.config, overrides));
  const int64_t threads = options.threads > 0 ? options.threads
                          : run.threads > 0   ? run.threads
                                              : environment->default_threads();
  CAROUSEL_ASSIGN_OR_RETURN(const std::unique_ptr<Device> device,
                            MakeRankDevice(options.device, threads, *environment));
  MatmulRecorder recorder(*device);

  TrainSpec spec = MakeTrainSpec(run);
  spec.graphs = options.graphs;
  ShardedSyncFactory sync_factory;
  const Mesh mesh;
  const double baseline_mib = PeakResidentMiB();
  CAROUSEL_ASSIGN_OR_RETURN(const std::unique_ptr<Trainer> trainer,
                            Trainer::Create(spec, recorder, mesh, sync_factory));
  trainer->Initialize(run.seed);
  RandomTokens source(spec.micro_batch, spec.T, spec.model.vocab_size);

  const double tokens = static_cast<double>(run.global_batch * run.sequence_length);
  std::printf(
      "step    %s, %lld blocks (%zu sLSTM), %lld wide, %lld heads, vocabulary %lld, %lld x %lld tokens, %s, "
      "%s\n",
      run.model.family == Family::kPaper ? "paper family" : "large family",
      static_cast<long long>(run.model.num_blocks), run.model.slstm_at.size(),
      static_cast<long long>(run.model.embedding_dim), static_cast<long long>(run.model.num_heads),
      static_cast<long long>(run.model.vocab_size), static_cast<long long>(run.global_batch),
      static_cast<long long>(run.sequence_length), NameOf(run.compute),
      device->host_accessible() ? absl::StrCat(threads, " threads").c_str() : device->name().c_str());
  // Warm up: library primitives are made at first use, and a device records what it sees for the second time.
  // Then remember one step's matmuls.
  constexpr int64_t kWarmUp = 2;
  for (int64_t step = 0; step < kWarmUp; ++step) trainer->Step(step, source);
  recorder.Record(true);
  trainer->Step(kWarmUp, source);
  recorder.Record(false);
  recorder.Synchronize();
  const double peak_mib = PeakResidentMiB();

  // Steps and bare matmuls alternate, so that a neighbour on the machine slows both alike.
  Times step_times, matmul_times;
  for (int64_t i = 0; i < options.steps; ++i) {
    const double start = Seconds();
    trainer->Step(kWarmUp + 1 + i, source);
    recorder.Synchronize();
    const double middle = Seconds();
    recorder.Replay();
    recorder.Synchronize();
    step_times.seconds.push_back(middle - start);
    matmul_times.seconds.push_back(Seconds() - middle);
  }
  const double model_flops = TrainFlopsPerToken(run.model, run.sequence_length) * tokens;
  const double step_rate = model_flops / step_times.Median() * 1e-9;
  const double matmul_rate = recorder.flops() / matmul_times.Median() * 1e-9;
  std::printf("time    median %.2f ms, best %.2f ms per step\n", step_times.Median() * 1e3,
              step_times.Min() * 1e3);
  std::printf("speed   %.0f tokens/s, %.1f GFLOP/s of model arithmetic (%.2f MFLOP per token)\n",
              tokens / step_times.Median(), step_rate, model_flops / tokens * 1e-6);
  std::printf("matmul  the step's own %zu products alone: median %.2f ms, %.1f GFLOP/s\n",
              recorder.calls().size(), matmul_times.Median() * 1e3, matmul_rate);
  std::printf("share   %.1f %% of that matmul rate\n", 100 * step_rate / matmul_rate);
  // One that fits the caches of a processor; for a device that is quick with it, one that keeps it busy.
  int64_t square = 1024;
  double square_rate = SquareMatmulRate(*device, run.compute, square);
  if (square_rate > 1e4) square = 8192, square_rate = SquareMatmulRate(*device, run.compute, square);
  std::printf("square  %lld x %lld x %lld product: %.1f GFLOP/s\n", static_cast<long long>(square),
              static_cast<long long>(square), static_cast<long long>(square), square_rate);
  if (options.peak_tflops > 0) {
    std::printf("MFU     %.1f %% of the %.0f TFLOP/s that --peak_tflops says\n",
                step_rate / options.peak_tflops * 0.1, options.peak_tflops);
  }
  const double planned_mib = static_cast<double>(trainer->arena().total_bytes()) / (1 << 20);
  std::printf("memory  planned %.1f MiB; process peak %.1f MiB, of which %.1f before the model was placed\n",
              planned_mib, peak_mib, baseline_mib);
  if (const MemoryInfo memory = device->memory(); memory.total_bytes > 0) {
    std::printf("device  %.1f of %.1f MiB in use\n",
                static_cast<double>(memory.total_bytes - memory.free_bytes) / (1 << 20),
                static_cast<double>(memory.total_bytes) / (1 << 20));
  }
  return absl::OkStatus();
}
}  // namespace

CLI::App* AddBenchCommand(CLI::App& app, std::function<int()>* run) {
  CLI::App* bench = app.add_subcommand("bench", "Measure speed on this machine");
  bench->require_subcommand(1);
  bench->footer(
      "Examples:\n"
      "  carousel bench step --steps 20\n"
      "  carousel bench ops --config configs/demo_bytes.textproto\n"
      "  carousel bench checkpoint --dir runs");
  CLI::App* step = bench->add_subcommand("step", "Time whole training steps on random tokens");
  const auto options = std::make_shared<BenchOptions>();
  options->config.config = "configs/bench_step.textproto";
  AddConfigOptions(*step, &options->config);
  step->add_option("--steps", options->steps, "Timed steps")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  step->add_option("--threads", options->threads, "CPU threads; 0: all cores")->check(CLI::Range(0, 1024));
  AddDeviceOption(*step, &options->device);
  step->add_flag_callback(
      "--no_graphs", [options] { options->graphs = false; },
      "On a GPU: issue every op anew instead of playing recorded micro-batches");
  step->add_option("--peak_tflops", options->peak_tflops,
                   "Also print the model's arithmetic as a share of this rate (one H100 in bf16: 989)")
      ->type_name("X")
      ->check(NumberFrom(1e-3, 1e6));
  step->footer(
      "Prints tokens per second and the share of the rate at which the step's own matrix multiplications run "
      "alone,\n"
      "measured in turn with the steps.\n\n"
      "Examples:\n"
      "  carousel bench step\n"
      "  carousel bench step --set train.compute=F32 --steps 20\n"
      "  carousel bench step --config configs/bench_paper_1to1.textproto\n"
      "  carousel bench step --config configs/demo_bytes.textproto --threads 1\n"
      "  carousel bench step --device cuda --config configs/xlstm_400m.textproto --peak_tflops 989");
  step->callback([options, run] {
    *run = [options] {
      const absl::Status status = BenchStep(*options);
      return status.ok() ? kExitOk : ReportError(status);
    };
  });
  AddBenchOpsCommands(*bench, run);
  AddBenchCheckpointCommand(*bench, run);
  return bench;
}
}  // namespace carousel
