// A training run in which one rank computes one wrong bit: `carousel train` with a device that fails.
//   faulty_train CONFIG RUN_DIR RANK CALL nan|bit|every [FIELD=VALUE ...]
// CALL: which matmul that adds to a gradient of weights, counted from the start of the process.
//
// In place of the program of a launch (`carousel launch --program faulty_train train ...`) it takes train's
// words and its fault from the environment: FAULTY_TRAIN="RANK CALL nan|bit|every"; RANK of those that are on
// the host FAULTY_TRAIN_HOST, where that is set, and of all in the first attempt only, where it is not.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "configs/load.h"
#include "core/base/status_exit_code.h"
#include "launcher/command_line.h"
#include "launcher/environment.h"
#include "launcher/launch/attempt_recorder.h"
#include "launcher/launch/launch_rank.h"
#include "launcher/launch/suspect_hosts.h"
#include "launcher/signals.h"
#include "launcher/train/train_setup.h"
#include "launcher/train/training_run.h"
#include "tests/faulty_device.h"

namespace carousel {
namespace {

struct Plan {
  int rank = -1;  // -1: none
  testing::FaultyDevice::Fault fault;
};

Plan MakePlan(int rank, int64_t call, const std::string& how) {
  return {.rank = rank,
          .fault = {.call = call, .mask = 1u << 22, .nan = how == "nan", .every_time = how == "every"}};
}

absl::Status Train(const RunSpec& run, const Plan& plan, TrainOptions options, Environment& environment) {
  const bool mine = environment.rank() == plan.rank;
  options.wrap_device = [&](std::unique_ptr<Device> device) -> std::unique_ptr<Device> {
    if (!mine) return device;
    auto faulty = std::make_unique<testing::FaultyDevice>(std::move(device));
    faulty->Arm(plan.fault);
    return faulty;
  };
  auto training = TrainingRun::Create(run, options, environment);
  const absl::Status status = training.ok() ? (*training)->Train() : training.status();
  if (!status.ok() && environment.rank() == 0) {
    std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
  }
  return status;
}

int TrainByHand(int argc, char** argv) {
  const absl::StatusOr<std::unique_ptr<Environment>> environment = Environment::Start();
  if (!environment.ok()) return ExitCodeOf(environment.status());
  RunOverrides overrides = {.run_dir = argv[2], .for_training = true};
  for (int i = 6; i < argc; ++i) overrides.sets.emplace_back(argv[i]);
  const absl::StatusOr<RunSpec> run = LoadRun(argv[1], overrides);
  absl::Status status = run.status();
  if (run.ok()) {
    status = Train(*run, MakePlan(std::atoi(argv[3]), std::atoll(argv[4]), argv[5]), {}, **environment);
  }
  return (*environment)->Finish(ExitCodeOf(status));
}

Plan PlanOfEnvironment(const std::string& host, const std::string& attempt_dir) {
  std::istringstream words(Environment::Variable("FAULTY_TRAIN"));
  int rank = -1;
  int64_t call = 0;
  std::string how;
  if (!(words >> rank >> call >> how)) return {};
  const std::string faulty_host = Environment::Variable("FAULTY_TRAIN_HOST");
  const bool now = faulty_host.empty() ? absl::EndsWith(attempt_dir, "/1") : host == faulty_host;
  return now ? MakePlan(rank, call, how) : Plan();
}

int TrainLaunched(int argc, char** argv) {
  CLI::App app;
  ConfigOptions config;
  TrainOptions options;
  CLI::App* const train = app.add_subcommand("train");
  AddConfigOptions(*train, &config);
  train->add_flag("--from_good", options.from_good);
  CLI11_PARSE(app, argc, argv);
  AttemptRecorder recorder(Environment::Variable(kAttemptDirVariable),
                           LaunchedRank(Environment::AllVariables()));
  options.recorder = &recorder;
  InstallStopSignals();
  const absl::StatusOr<std::unique_ptr<Environment>> environment = Environment::Start();
  if (!environment.ok()) return ExitCodeOf(environment.status());
  recorder.SetRank((*environment)->rank(), (*environment)->host());
  const absl::StatusOr<RunSpec> run = LoadRunToTrain(config);
  const absl::Status status =
      run.ok() ? Train(*run, PlanOfEnvironment((*environment)->host(), recorder.attempt_dir()), options,
                       **environment)
               : run.status();
  recorder.Ending(ExitCodeOf(status), std::string(status.message()), SuspectHosts(status));
  return (*environment)->Finish(ExitCodeOf(status));
}
}  // namespace
}  // namespace carousel

int main(int argc, char** argv) {
  if (argc > 1 && std::strcmp(argv[1], "launch_rank") == 0) {
    return carousel::RunLaunchedRank(std::vector<std::string>(argv + 2, argv + argc));
  }
  if (argc > 1 && std::strcmp(argv[1], "train") == 0) return carousel::TrainLaunched(argc, argv);
  if (argc < 6) {
    std::fprintf(stderr, "faulty_train CONFIG RUN_DIR RANK CALL nan|bit|every [FIELD=VALUE ...]\n");
    return 64;
  }
  return carousel::TrainByHand(argc, argv);
}
