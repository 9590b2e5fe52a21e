// The subcommands of `carousel`. Each lives in its own <name>_command.cc and offers one function:
//
//   CLI::App* Add<Name>Command(CLI::App& app, std::function<int()>* run);
//
// It adds the subcommand with its description, options and a footer with examples, and sets the subcommand's
// callback so that, when it was chosen, *run holds what main() executes after the whole command line has been
// parsed. What *run returns is the exit code. Options live in a struct that the callback owns (a
// std::shared_ptr captured by value: std::function must be copyable). Nothing is printed or opened before
// *run is called, and nothing in it throws.
#pragma once
#include <CLI/App.hpp>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "launcher/exit_codes.h"

namespace carousel {

CLI::App* AddTrainCommand(CLI::App& app, std::function<int()>* run);
CLI::App* AddLaunchCommand(CLI::App& app, std::function<int()>* run);
CLI::App* AddDoctorCommand(CLI::App& app, std::function<int()>* run);
CLI::App* AddPlanCommand(CLI::App& app, std::function<int()>* run);
CLI::App* AddGenerateCommand(CLI::App& app, std::function<int()>* run);
CLI::App* AddVerifyCommand(CLI::App& app, std::function<int()>* run);
CLI::App* AddExportCommand(CLI::App& app, std::function<int()>* run);
CLI::App* AddImportCommand(CLI::App& app, std::function<int()>* run);
CLI::App* AddDataCommand(CLI::App& app, std::function<int()>* run);
CLI::App* AddCheckpointCommand(CLI::App& app, std::function<int()>* run);
CLI::App* AddReportCommand(CLI::App& app, std::function<int()>* run);
CLI::App* AddBenchCommand(CLI::App& app, std::function<int()>* run);
// `manual` and `completion`; `app` must live until *run has returned.
void AddManualCommands(CLI::App& app, std::function<int()>* run);

// If the command is launch: -np 8, as mpirun spells it, becomes --np 8, and signals wait until they are asked
// for. Call it first in main.
void BeginLaunch(int argc, char** argv);

// Prints "carousel: <message>" to stderr and returns ExitCodeOf(status). REQUIRES: !status.ok().
int ReportError(const absl::Status& status);

// --config F, repeated --set a.b.c=value and --run_dir DIR, with the same help text in every subcommand that
// reads a run. Feed them to LoadRun (configs/load.h). The struct must outlive the parse.
struct ConfigOptions {
  std::string config;             // path of the .textproto
  std::vector<std::string> sets;  // "a.b.c=value", applied in order after the file
  std::string run_dir;            // empty: as the config says
};
void AddConfigOptions(CLI::App& command, ConfigOptions* options);
}  // namespace carousel
