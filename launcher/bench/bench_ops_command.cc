// `carousel bench ops` and `carousel bench cells`: the time of single ops on a device, as Markdown tables.
#include "launcher/bench/bench_ops_command.h"

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "configs/load.h"
#include "core/base/status_macros.h"
#include "kernels/bench/op_bench.h"
#include "launcher/command_device.h"

namespace carousel {
namespace {

struct BenchOpsOptions {
  ConfigOptions config;
  std::string device = "cpu", dtype = "bf16";
  int64_t threads = 0, repeats = 10;
  OpBenchShape shape;  // of bench cells
  int64_t slstm_head_width = 128;
};

void PrintTable(const std::string& title, const std::vector<OpTiming>& timings, const DeviceRates& rates) {
  std::printf("## %s\n\n%s\n", title.c_str(), OpTable(timings, rates).c_str());
  std::fflush(stdout);
}
void PrintRates(const Device& device, DType compute, const DeviceRates& rates) {
  std::printf("Device %s, %s: a large copy reaches %.0f GB/s, a large product %.2f TFLOP/s.\n\n",
              device.name().c_str(), NameOf(compute), rates.copy_gb_per_s, rates.matmul_tflop_s);
  std::fflush(stdout);
}

absl::Status BenchOps(const BenchOpsOptions& options) {
  CAROUSEL_ASSIGN_OR_RETURN(const CommandDevice place, MakeCommandDevice(options.device, options.threads));
  CAROUSEL_ASSIGN_OR_RETURN(
      const RunSpec run, LoadRun(options.config.config, {.sets = options.config.sets, .run_dir = "unused"}));
  const ModelSpec& model = run.model;
  OpBenchShape shape = {.compute = run.compute,
                        .B = run.micro_batch,
                        .T = run.sequence_length,
                        .D = model.embedding_dim,
                        .NH = model.num_heads,
                        .DHQK = model.head_dim_qk(),
                        .DHV = model.head_dim_v(),
                        .F = model.ffn_dim > 0 ? model.ffn_dim : 2 * model.embedding_dim,
                        .V = model.vocab_size,
                        .num_blocks = model.num_blocks,
                        .num_slstm_blocks = static_cast<int64_t>(model.slstm_at.size()),
                        .paper = model.family == Family::kPaper,
                        .L = model.chunk_length,
                        .logit_rows = model.loss_chunk_tokens,
                        .num_parameters = NumParameters(model)};
  if (model.slstm_num_heads > 0) shape.slstm_NH = model.slstm_num_heads;
  const DeviceRates rates = MeasureRates(*place.device, shape.compute, options.repeats);
  PrintRates(*place.device, shape.compute, rates);
  PrintTable(absl::StrCat("Ops of a step: ", shape.B, " x ", shape.T, " tokens, width ", shape.D, ", ",
                          shape.NH, " heads, feed-forward ", shape.F, ", vocabulary ", shape.V),
             TimeStepOps(*place.device, shape, options.repeats), rates);
  PrintTable(absl::StrCat("Cells: mLSTM ", shape.NH, " heads of ", shape.DHQK, "/", shape.DHV),
             TimeCells(*place.device, shape, options.repeats), rates);
  return absl::OkStatus();
}

absl::Status BenchCells(const BenchOpsOptions& options) {
  CAROUSEL_ASSIGN_OR_RETURN(const CommandDevice place, MakeCommandDevice(options.device, options.threads));
  OpBenchShape shape = options.shape;
  shape.num_blocks = 0;  // no step to count calls in
  shape.compute = options.dtype == "bf16" ? DType::kBF16 : options.dtype == "f32" ? DType::kF32 : DType::kF64;
  shape.slstm_NH = shape.NH;
  shape.D = shape.NH * options.slstm_head_width;
  const DeviceRates rates = MeasureRates(*place.device, shape.compute, options.repeats);
  PrintRates(*place.device, shape.compute, rates);
  PrintTable(absl::StrCat("Cells: ", shape.B, " x ", shape.T, " tokens, mLSTM ", shape.NH, " heads of ",
                          shape.DHQK, "/", shape.DHV, ", sLSTM ", shape.NH, " heads of ",
                          options.slstm_head_width, ", ", options.dtype),
             TimeCells(*place.device, shape, options.repeats), rates);
  return absl::OkStatus();
}

void AddCommonOptions(CLI::App& command, BenchOpsOptions* options) {
  command.add_option("--device", options->device, "Where to compute: cpu, cuda:N or simt")
      ->capture_default_str();
  command.add_option("--threads", options->threads, "CPU threads; 0: all cores")->check(CLI::Range(0, 1024));
  command.add_option("--repeats", options->repeats, "The median of this many timings is printed")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
}

template <class Function>
void Finish(CLI::App& command, std::shared_ptr<BenchOpsOptions> options, std::function<int()>* run,
            Function bench) {
  command.callback([options, run, bench] {
    *run = [options, bench] {
      const absl::Status status = bench(*options);
      return status.ok() ? kExitOk : ReportError(status);
    };
  });
}
}  // namespace

void AddBenchOpsCommands(CLI::App& bench, std::function<int()>* run) {
  {
    CLI::App* ops = bench.add_subcommand("ops", "Time every op of a training step of a config's shape");
    const auto options = std::make_shared<BenchOpsOptions>();
    options->config.config = "configs/bench_step.textproto";
    AddConfigOptions(*ops, &options->config);
    AddCommonOptions(*ops, options.get());
    ops->footer(
        "Prints milliseconds, GB/s and TFLOP/s of each op beside its floor: the time that the op's bytes "
        "take at the\n"
        "rate of a large copy, or its arithmetic at the rate of a large product, both measured in the same "
        "run.\n\n"
        "Examples:\n"
        "  carousel bench ops\n"
        "  carousel bench ops --device cuda:0 --config configs/xlstm_400m.textproto\n"
        "  carousel bench ops --set train.compute=F32 --threads 1");
    Finish(*ops, options, run, BenchOps);
  }
  CLI::App* cells = bench.add_subcommand("cells", "Time the mLSTM and sLSTM cells of any shape");
  const auto options = std::make_shared<BenchOpsOptions>();
  AddCommonOptions(*cells, options.get());
  OpBenchShape& shape = options->shape;
  const auto dim = [cells](const char* name, int64_t* value, const char* help) {
    cells->add_option(name, *value, help)->check(CLI::Range(1, 1 << 20))->capture_default_str();
  };
  dim("--batch", &shape.B, "Sequences");
  dim("--tokens", &shape.T, "Tokens of a sequence");
  dim("--heads", &shape.NH, "Heads of both cells");
  dim("--qk", &shape.DHQK, "Width of a query and key head of the mLSTM");
  dim("--v", &shape.DHV, "Width of a value head of the mLSTM");
  dim("--chunk", &shape.L, "Chunk length of the mLSTM");
  dim("--slstm_head", &options->slstm_head_width, "Width of a head of the sLSTM");
  dim("--slstm_batch", &shape.slstm_B, "Sequences of the sLSTM");
  dim("--slstm_tokens", &shape.slstm_T, "Tokens of a sequence of the sLSTM");
  cells->add_option("--dtype", options->dtype, "bf16, f32 or f64")
      ->check(CLI::IsMember({"bf16", "f32", "f64"}))
      ->capture_default_str();
  cells->footer(
      "Without --slstm_batch and --slstm_tokens the sLSTM has the mLSTM's.\n\n"
      "Examples:\n"
      "  carousel bench cells --heads 2 --qk 64 --v 128 --batch 2 --tokens 512 --slstm_head 64\n"
      "  carousel bench cells --device cuda:0 --heads 8 --qk 256 --v 512 --batch 8 --tokens 8192\n"
      "  carousel bench cells --device cuda:0 --heads 8 --batch 16 --tokens 1024 --slstm_head 128");
  Finish(*cells, options, run, BenchCells);
}
}  // namespace carousel
