// `carousel train`: starts a run, or goes on with the one that the run directory holds.
#include <algorithm>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "core/base/status_macros.h"
#include "launcher/command_device.h"
#include "launcher/commands.h"
#include "launcher/environment.h"
#include "launcher/launch/attempt_record.h"
#include "launcher/launch/attempt_recorder.h"
#include "launcher/launch/launch_rank.h"
#include "launcher/launch/suspect_hosts.h"
#include "launcher/preflight/nvml_library.h"
#include "launcher/preflight/preflight_run.h"
#include "launcher/signals.h"
#include "launcher/train/rank_agreement.h"
#include "launcher/train/resume_command.h"
#include "launcher/train/run_directory.h"
#include "launcher/train/train_setup.h"
#include "launcher/train/training_run.h"
#include "launcher/version.h"
#include "launcher/watch/run_heartbeat.h"
#include "launcher/watch/run_watchdog.h"
#include "parallel/nccl_communicator.h"

namespace carousel {
namespace {

struct TrainCommandOptions {
  ConfigOptions config;
  TrainOptions train;
};

RankOptions OptionsOf(const TrainCommandOptions& options) {
  const char* const kTransports[] = {"auto", "nccl", "staged"};
  const char* const kPreflights[] = {"off", "fast", "full"};
  RankOptions result = {{"--config", options.config.config},
                        {"--run_dir", options.config.run_dir},
                        {"--device", options.train.device},
                        {"--gpu_transport", kTransports[static_cast<size_t>(options.train.transport)]},
                        {"--preflight", kPreflights[static_cast<size_t>(options.train.preflight)]},
                        {"--fresh", options.train.fresh ? "yes" : "no"},
                        {"--checkpoint_fallback", options.train.checkpoint_fallback ? "yes" : "no"},
                        {"--accept_change", options.train.accept_change ? "yes" : "no"},
                        {"--from_good", options.train.from_good ? "yes" : "no"}};
  for (const std::string& set : options.config.sets) result.emplace_back("--set", set);
  return result;
}

// How this process was started, for the run's records.
std::string CommandLine() {
  std::ifstream file("/proc/self/cmdline", std::ios::binary);
  std::string text((std::istreambuf_iterator<char>(file)), {});
  while (!text.empty() && text.back() == '\0') text.pop_back();
  std::replace(text.begin(), text.end(), '\0', ' ');
  std::replace(text.begin(), text.end(), '\n', ' ');
  return text;
}

absl::Status Train(const TrainCommandOptions& options, Environment& environment, Watchdog* watchdog) {
  Communicator& world = environment.world();
  IntroduceRanks(watchdog, environment);
  CAROUSEL_RETURN_IF_ERROR(CheckSameBuild(world, environment.host(), VersionLine()));
  // The run first: a field that differs says more than an option. The config file need not be on every
  // machine: rank 0's counts.
  CAROUSEL_ASSIGN_OR_RETURN(const RunSpec run,
                            AgreeOnRun(world, environment.host(), LoadRunToTrain(options.config)));
  CAROUSEL_RETURN_IF_ERROR(CheckSameOptions(world, environment.host(), OptionsOf(options)));
  IntroduceRun(watchdog, run, environment);
  const std::unique_ptr<Heartbeat> heartbeat = StartHeartbeat(
      run, environment,
      [watchdog](int exit_code, const std::string& reason, const std::vector<std::string>& suspect_hosts) {
        watchdog->GiveUpWithRecord(exit_code, reason, suspect_hosts);
      });
  TrainOptions train = options.train;
  train.command_line = CommandLine();
  train.has_config = !options.config.config.empty();
  train.resume_command = ResumeCommand(ProcessArguments(), environment.launcher(), environment.size(),
                                       /*launched=*/!Environment::Variable(kAttemptDirVariable).empty());
  train.watchdog = watchdog;
  CAROUSEL_ASSIGN_OR_RETURN(const std::unique_ptr<TrainingRun> training,
                            TrainingRun::Create(run, train, environment));
  return training->Train();
}

// The same code and reason for whoever started us.
int Ended(AttemptRecorder* recorder, const absl::Status& status) {
  recorder->Ending(ExitCodeOf(status), std::string(status.message()), SuspectHosts(status));
  return ExitCodeOf(status);
}

// For the record of a hang; empty where no driver answers.
std::string StateOfGpus() {
  const absl::StatusOr<std::unique_ptr<NvmlLibrary>> nvml = NvmlLibrary::Open(kNvmlFile);
  return nvml.ok() ? DescribeGpus((*nvml)->Gpus()) : "";
}

int RunTrain(const TrainCommandOptions& given) {
  AttemptRecorder recorder(Environment::Variable(kAttemptDirVariable),
                           LaunchedRank(Environment::AllVariables()));
  TrainCommandOptions options = given;
  options.train.recorder = &recorder;
  // Before there are threads, and before anything can hang.
  InstallStopSignals();
  Watchdog watchdog(
      {.ending =
           [&recorder](int exit_code, const std::string& reason, const std::vector<std::string>& suspects) {
             recorder.Ending(exit_code, reason, suspects);
           },
       .end_requested = EndRequested,
       .machine = given.train.device.rfind("cuda", 0) == 0 ? &StateOfGpus : nullptr,
       .abandon = AbandonNcclCalls});
  const absl::StatusOr<std::unique_ptr<Environment>> environment = Environment::Start(
      [&watchdog](const std::string& call, const std::vector<int>& ranks) { watchdog.Waiting(call, ranks); });
  if (!environment.ok()) {
    Ended(&recorder, environment.status());
    return ReportError(environment.status());
  }
  recorder.SetRank((*environment)->rank(), (*environment)->host());
  const absl::Status status = Train(options, **environment, &watchdog);
  // The status is the same on every rank: one of them says it.
  if (!status.ok() && (*environment)->rank() == 0) ReportError(status);
  watchdog.ForgetCommunicators();
  watchdog.Enter(Watchdog::Section::kFinish);
  return (*environment)->Finish(Ended(&recorder, status));
}
}  // namespace

CLI::App* AddTrainCommand(CLI::App& app, std::function<int()>* run) {
  CLI::App* train =
      app.add_subcommand("train", "Train a model, or go on with the run that a directory holds");
  const auto options = std::make_shared<TrainCommandOptions>();
  AddConfigOptions(*train, &options->config);
  train->add_flag("--fresh", options->train.fresh,
                  "Refuse to go on: an error if the run directory holds a checkpoint");
  train->add_flag("--checkpoint_fallback", options->train.checkpoint_fallback,
                  "If the newest checkpoint is damaged, set it aside and take the newest one that is intact");
  train
      ->add_flag(
          "--from_good", options->train.from_good,
          "Go back to the newest checkpoint that is marked as good; later ones are set aside, not removed")
      ->excludes("--fresh");
  train->add_flag(
      "--accept_change", options->train.accept_change,
      "Go on although data, batch, optimizer or schedule differ from what the run was begun with");
  AddDeviceOption(*train, &options->train.device);
  AddGpuTransportOption(*train, &options->train.transport);
  train
      ->add_option_function<std::string>(
          "--preflight",
          [options](const std::string& name) { options->train.preflight = PreflightModeOf(name); },
          "Checks of all ranks before the start, as `carousel doctor` does them: fast (the default), full, "
          "with every pair of machines, or off")
      ->check(CLI::IsMember({"fast", "full", "off"}))
      ->type_name("MODE");
  train->add_flag_callback(
      "--no_graphs", [options] { options->train.graphs = false; },
      "On a GPU: issue every op of a step anew instead of playing recorded micro-batches; the results are "
      "the same");
  train
      ->add_option_function<std::string>(
          "--profile", [options](const std::string& text) { options->train.profile = *ParseProfile(text); },
          "What these steps spend their time on, as steps:20-23 or steps:20-23,ranks:0,8: on a CPU a table "
          "of "
          "ops and a trace in RUN_DIR/profile; on CUDA the range that nsys captures")
      ->check([](const std::string& text) { return std::string(ParseProfile(text).status().message()); })
      ->type_name("STEPS");
  train
      ->add_option_function<std::string>(
          "--log_format",
          [options](const std::string& name) {
            options->config.sets.push_back(name == "json" ? "log.format=JSON" : "log.format=TEXT");
          },
          "What a run prints about its steps: text, in constant columns, or json, one object per line")
      ->check(CLI::IsMember({"text", "json"}))
      ->type_name("NAME");
  train->footer(
      "Starting in a run directory that holds a checkpoint goes on from it, with any number of ranks. Losses "
      "and weights\n"
      "have the same bits for every number of data-parallel ranks (parallel.replicate, shard); along the "
      "other\n"
      "axes (sequence, tensor, pipe) sums are grouped differently and agree to rounding. Without --config "
      "the\n"
      "config.textproto of the run directory counts, with what --set changed at earlier starts; where that "
      "file is "
      "missing,\n"
      "the copy in the newest checkpoint.\n\n"
      "Examples:\n"
      "  carousel train --config configs/demo_bytes.textproto --run_dir runs/demo\n"
      "  mpirun -np 2 carousel train --config configs/demo_bytes.textproto --run_dir runs/demo\n"
      "  carousel train --run_dir runs/demo                      # go on with it\n"
      "  carousel train --run_dir runs/demo --from_good          # it diverged: go back to where all was "
      "well\n"
      "  mpirun -np 8 carousel train --config configs/demo_bytes.textproto --run_dir runs/t --set "
      "parallel.tensor=2 --set parallel.shard=2\n"
      "  mpirun -np 8 carousel train --device cuda --config configs/xlstm_1b4.textproto --run_dir runs/1b4\n"
      "  carousel train --run_dir runs/demo --profile steps:520-523         # where does the time go?\n"
      "  carousel train --config configs/demo_bytes.textproto --run_dir runs/b --set schedule.peak_lr=2e-3 "
      "--set "
      "train.steps=500");
  train->callback([options, run] { *run = [options] { return RunTrain(*options); }; });
  return train;
}
}  // namespace carousel
