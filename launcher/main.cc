// carousel: pretrain xLSTM language models. One program, one subcommand per task (commands.h).
#include <CLI/CLI.hpp>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <exception>
#include <functional>
#include <string>
#include <vector>

#include "absl/debugging/failure_signal_handler.h"
#include "absl/debugging/symbolize.h"
#include "core/base/terminal_text.h"
#include "launcher/command_line.h"
#include "launcher/commands.h"
#include "launcher/exit_codes.h"
#include "launcher/launch/launch_rank.h"
#include "launcher/version.h"

namespace {

constexpr char kFooterBegin[] =
    R"(Examples:
  carousel data build --input book.txt --output data/book --validation_fraction 0.1
  carousel plan --config configs/xlstm_7b.textproto --world 64
  carousel train --config configs/demo_bytes.textproto --run_dir runs/demo
  mpirun -np 2 carousel train --config configs/demo_bytes.textproto --run_dir runs/demo
  carousel generate --model runs/demo --prompt "It is a truth"
  carousel export --format hf --model runs/demo --out runs/demo/export

Files of a run, in its --run_dir:
  config.textproto            the config with every field, as it was used
  build.txt                   version, revision and command of every start, one line each
  run_id                      which run this is; every checkpoint says the same
  metrics.jsonl               one line per step, evaluation, sample and checkpoint
  report.html, tensorboard/   the same as pictures; metrics.prom: the newest numbers for Prometheus
  checkpoints/                weights and optimizer state; training goes on from the newest
  attempts/                   of `carousel launch`: how every start went, and what the ranks printed
  flight_records/             what ranks were doing when one of them hung (without a launch)

)";
constexpr char kFooterEnd[] = "\n`carousel COMMAND --help` explains a command.\n";

// Prints a stack trace when the process crashes. Sanitizers bring their own.
void InstallCrashHandler(const char* program) {
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  absl::InitializeSymbolizer(program);
  absl::FailureSignalHandlerOptions options;
  options.call_previous_handler = true;
  absl::InstallFailureSignalHandler(options);
  // Being told to end is not a crash.
  std::signal(SIGTERM, SIG_DFL);
#else
  (void)program;
#endif
}

int Run(int argc, char** argv) {
  CLI::App app{"carousel: pretrain xLSTM language models on many machines, and use what they learned.",
               "carousel"};
  std::function<int()> run;
  app.formatter(std::make_shared<carousel::HelpFormatter>());
  app.get_formatter()->label("SUBCOMMAND", "COMMAND");
  app.footer(std::string(kFooterBegin) + carousel::ExitCodeTable() + kFooterEnd);
  app.require_subcommand(1);
  app.set_version_flag("--version", carousel::VersionLine(), "Print version, git revision and compiler");
  carousel::AddTrainCommand(app, &run);
  carousel::AddLaunchCommand(app, &run);
  carousel::AddDoctorCommand(app, &run);
  carousel::AddPlanCommand(app, &run);
  carousel::AddGenerateCommand(app, &run);
  carousel::AddDataCommand(app, &run);
  carousel::AddCheckpointCommand(app, &run);
  carousel::AddExportCommand(app, &run);
  carousel::AddImportCommand(app, &run);
  carousel::AddVerifyCommand(app, &run);
  carousel::AddReportCommand(app, &run);
  carousel::AddBenchCommand(app, &run);
  carousel::AddManualCommands(app, &run);
  if (argc <= 1) {
    std::fputs(app.help().c_str(), stderr);
    return carousel::kExitUsage;
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == static_cast<int>(CLI::ExitCodes::Success)) return app.exit(error);
    std::fputs(carousel::ExplainParseError(app, error).c_str(), stderr);
    return carousel::kExitUsage;
  }
  return run();
}
}  // namespace

int main(int argc, char** argv) {
  carousel::BeginLaunch(argc, argv);
  InstallCrashHandler(argv[0]);
  // Nothing of ours throws; the standard library may, above all when memory ends.
  try {
    // What watches over a rank, and no command for people: its arguments are another command's.
    if (argc > 1 && std::strcmp(argv[1], "launch_rank") == 0) {
      return carousel::RunLaunchedRank(std::vector<std::string>(argv + 2, argv + argc));
    }
    return Run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "carousel: %s\n", carousel::EscapeControls(error.what()).c_str());
  }
  return carousel::kExitFailure;
}
