// `carousel plan`: what a run will take, before it is started.
#include <cstdio>
#include <memory>

#include "configs/load.h"
#include "core/base/status_macros.h"
#include "launcher/command_device.h"
#include "launcher/command_line.h"
#include "launcher/commands.h"
#include "launcher/plan/cost_model.h"
#include "launcher/plan/plan.h"
#include "launcher/train/train_setup.h"

namespace carousel {
namespace {

struct PlanOptions {
  ConfigOptions config;
  int64_t world = 0;
  std::string device = "cpu";
  bool resolved = false;
  CostAssumptions assumptions;
  double peak_tflops = 0;
};

absl::Status Plan(const PlanOptions& options) {
  CAROUSEL_ASSIGN_OR_RETURN(
      const RunSpec run,
      LoadRun(options.config.config, {.sets = options.config.sets, .run_dir = options.config.run_dir}));
  if (options.resolved) {
    std::fputs(run.resolved_text.c_str(), stdout);
    return absl::OkStatus();
  }
  const int64_t world = options.world > 0 ? options.world : WantedWorld(run);
  CAROUSEL_ASSIGN_OR_RETURN(const CommandDevice on, MakeCommandDevice(options.device, /*threads=*/1));
  CostAssumptions assumptions = options.assumptions;
  if (options.peak_tflops > 0) assumptions.peak_flops = 1e12 * options.peak_tflops;
  CAROUSEL_ASSIGN_OR_RETURN(const RunPlan plan, MakePlan(run, world, *on.device, assumptions));
  std::fputs(FormatPlan(run, plan).c_str(), stdout);
  return absl::OkStatus();
}
}  // namespace

CLI::App* AddPlanCommand(CLI::App& app, std::function<int()>* run) {
  CLI::App* command = app.add_subcommand(
      "plan", "Show what a run will take: parameters, memory, arithmetic, disk, communication");
  const auto options = std::make_shared<PlanOptions>();
  AddConfigOptions(*command, &options->config);
  command->get_option("--config")->required();
  command
      ->add_option("--world", options->world,
                   "Number of ranks to plan for; default: what parallel.* of the config asks for")
      ->type_name("N")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 24));
  AddDeviceOption(*command, &options->device);
  command->add_flag("--resolved", options->resolved,
                    "Print the config with every field and its value instead, as training would use it");
  command
      ->add_option("--peak_tflops", options->peak_tflops,
                   "Predicted time: peak of a GPU; default: 989, H100 bf16")
      ->check(NumberFrom(1e-3, 1e9));
  command
      ->add_option("--mfu", options->assumptions.mfu,
                   "Predicted time: share of the peak that computing reaches")
      ->check(NumberFrom(0.001, 1.0))
      ->capture_default_str();
  command
      ->add_option("--ranks_per_node", options->assumptions.ranks_per_node,
                   "Predicted time: GPUs of a machine")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  command
      ->add_option("--nics_per_node", options->assumptions.nics_per_node,
                   "Predicted time: 400 Gb/s network cards of a machine")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  command->footer(
      R"(The numbers come from the code that training runs, counting instead of allocating: a plan for 7 billion
parameters on 64 ranks takes a moment on a laptop. Data files need not exist.

  parameters   exact, by part of the model
  memory       bytes of rank 0 by purpose; "scratch" is reused by one layer after another. With --device cuda
               the GPU's kernels are asked what they need, and the plan says whether it fits the GPU of this machine
  training     steps, tokens and floating-point operations (matrix products, convolutions and the cells)
  checkpoint   master weights and both Adam moments; a new one is written before the oldest is removed
  sent         what each rank sends in one step, by axis of the mesh and kind of call: a step is walked through
               with communicators that count. Then the sums of the axes whose ranks fit in a node and of the others,
               and what comparing the ranks' speed sends now and then (log.every_steps)
  time         a prediction with the assumptions printed under it (launcher/plan/cost_model.h), to compare meshes

Examples:
  carousel plan --config configs/xlstm_7b.textproto --world 64
  carousel plan --config configs/xlstm_7b.textproto --world 256 --set parallel.shard=8
  carousel plan --config configs/demo_bytes.textproto --set model.num_blocks=8 --set train.micro_batch=4
  carousel plan --config configs/demo_bytes.textproto --resolved > my_run.textproto
)");
  command->callback([options, run] {
    *run = [options] {
      const absl::Status status = Plan(*options);
      return status.ok() ? kExitOk : ReportError(status);
    };
  });
  return command;
}
}  // namespace carousel
