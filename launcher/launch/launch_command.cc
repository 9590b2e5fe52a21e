// `carousel launch`: the command line of the supervisor.
#include <hwloc.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "configs/suggest.h"
#include "core/base/status_macros.h"
#include "core/base/terminal_text.h"
#include "launcher/command_line.h"
#include "launcher/commands.h"
#include "launcher/environment.h"
#include "launcher/launch/launch_plan.h"
#include "launcher/launch/launch_probe.h"
#include "launcher/launch/launch_supervisor.h"
#include "launcher/train/train_setup.h"

namespace carousel {
namespace {

constexpr int64_t kMaxHostfileBytes = 16 << 20;

// Complains about the arguments of train as train itself would, before anything is started. True if they are
// good; else the exit code is in `exit_code`.
bool CheckTrainArgs(const std::vector<std::string>& args, int* exit_code) {
  CLI::App app{"", "carousel"};
  app.formatter(std::make_shared<HelpFormatter>());
  app.require_subcommand(1);
  std::function<int()> ignored;
  AddTrainCommand(app, &ignored);
  try {
    app.parse(std::vector<std::string>(args.rbegin(), args.rend()));
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == static_cast<int>(CLI::ExitCodes::Success)) {
      *exit_code = app.exit(error);
    } else {
      std::fputs(ExplainParseError(app, error).c_str(), stderr);
      *exit_code = kExitUsage;
    }
    return false;
  }
  return true;
}

// Those of train's arguments that say which run it is.
ConfigOptions ConfigOf(const std::vector<std::string>& args) {
  CLI::App app;
  app.allow_extras();
  ConfigOptions options;
  AddConfigOptions(app, &options);
  app.parse(std::vector<std::string>(args.rbegin(), args.rend() - 1));
  return options;
}

// Physical cores that this process may use: as mpirun counts slots where nobody names hosts.
int64_t UsableCores() {
  hwloc_topology_t topology = nullptr;
  if (hwloc_topology_init(&topology) != 0) return 1;
  int64_t cores = 0;
  if (hwloc_topology_load(topology) == 0) cores = hwloc_get_nbobjs_by_type(topology, HWLOC_OBJ_CORE);
  hwloc_topology_destroy(topology);
  return std::max<int64_t>(cores, 1);
}

absl::StatusOr<LaunchSurroundings> LookAround() {
  LaunchSurroundings here;
  here.root = geteuid() == 0;
  here.cores = UsableCores();
  here.environment = Environment::AllVariables();
  here.mpirun = FindProgram("mpirun", here.environment);
  here.srun = FindProgram("srun", here.environment);
  std::error_code error;
  here.program = std::filesystem::read_symlink("/proc/self/exe", error).string();
  if (error) return absl::UnavailableError("cannot find out where this program is: is /proc mounted?");
  char name[256] = {};
  here.host = gethostname(name, sizeof(name) - 1) == 0 ? name : "localhost";
  return here;
}

absl::StatusOr<std::string> ReadHostfile(const std::string& path) {
  if (path.empty()) return std::string();
  std::ifstream in(path, std::ios::binary);
  std::error_code error;
  if (!in || std::filesystem::is_directory(path, error)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--hostfile ", path, " cannot be read: ", in ? "it is a directory" : std::strerror(errno),
        "; it holds one line HOST slots=N for each host"));
  }
  std::string text(static_cast<size_t>(kMaxHostfileBytes), '\0');
  in.read(text.data(), kMaxHostfileBytes);
  text.resize(static_cast<size_t>(in.gcount()));
  return text;
}

// The launch starts the ranks: it must not be started as one.
absl::Status CheckNotLaunched(const LaunchInfo& launch) {
  if (launch.kind == LaunchInfo::Kind::kOpenMpi) {
    return absl::InvalidArgumentError(
        absl::StrCat("carousel launch was started by mpirun, as one of ", launch.announced_size,
                     " processes; start it once, without mpirun: it starts mpirun itself"));
  }
  for (const char* name : {"CAROUSEL_RENDEZVOUS", "CAROUSEL_RANK", "CAROUSEL_WORLD_SIZE"}) {
    if (Environment::Variable(name).empty()) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(name,
                     " is set: it is for ranks that are started by hand and meet over TCP; unset it, "
                     "carousel launch tells the ranks where to meet"));
  }
  return absl::OkStatus();
}

absl::StatusOr<int> Launch(const LaunchOptions& options, const std::vector<std::string>& train_args) {
  CAROUSEL_RETURN_IF_ERROR(CheckNotLaunched(Environment::Announced()));
  CAROUSEL_ASSIGN_OR_RETURN(RunSpec run, LoadRunToTrain(ConfigOf(train_args)));
  std::error_code error;
  run.run_dir = std::filesystem::absolute(run.run_dir, error).lexically_normal().string();
  CAROUSEL_ASSIGN_OR_RETURN(const LaunchSurroundings here, LookAround());
  CAROUSEL_ASSIGN_OR_RETURN(const std::string hostfile, ReadHostfile(options.hostfile));
  CAROUSEL_ASSIGN_OR_RETURN(const LaunchTarget target, FindTarget(options, here, hostfile));
  LaunchSupervisor supervisor(run, options, here, target, train_args);
  // What cannot be is refused before anything is made or started.
  CAROUSEL_RETURN_IF_ERROR(supervisor.CheckPlan());
  if (options.dry_run) return supervisor.Print();
  return supervisor.Run();
}

int RunLaunch(const CLI::App& launch, const LaunchOptions& options) {
  const std::vector<std::string> train_args = launch.remaining();
  if (train_args.empty() || train_args[0] != "train") {
    std::string text =
        "carousel launch: say what to launch, behind the options: train --config FILE --run_dir DIR";
    if (!train_args.empty() && absl::StartsWith(train_args[0], "-")) {
      const std::string word = train_args[0].substr(0, train_args[0].find('='));
      std::vector<std::string> names;
      for (const CLI::Option* option : launch.get_options()) {
        for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
      }
      text = absl::StrCat("carousel launch: no option ", word, DidYouMean(word, names),
                          " (options of train stand behind the word train)");
    } else if (!train_args.empty()) {
      text = absl::StrCat("carousel launch: \"", train_args[0],
                          "\" cannot be launched, only train can; write train and its options there");
    }
    std::fprintf(stderr, "%s\nHelp: carousel launch --help\n", EscapeControls(text).c_str());
    return kExitUsage;
  }
  // An empty variable of a script must not mean this machine alone.
  for (const char* name : {"--hostfile", "--host"}) {
    if (launch.count(name) == 0 || !launch.get_option(name)->as<std::string>().empty()) continue;
    return ReportError(absl::InvalidArgumentError(
        absl::StrCat(name, " is empty: it names no host; leave it out to run on this machine")));
  }
  int exit_code = 0;
  if (!CheckTrainArgs(train_args, &exit_code)) return exit_code;
  const absl::StatusOr<int> result = Launch(options, train_args);
  return result.ok() ? *result : ReportError(result.status());
}

void AddPlaceOptions(CLI::App& launch, LaunchOptions* options) {
  launch
      .add_option("-n,--np,--ranks", options->ranks,
                  "How many ranks (-np works as well); without it what hosts or Slurm have room for, else "
                  "what the config needs")
      ->check(CLI::Range(1, 1 << 20))
      ->type_name("N");
  launch
      .add_option("--hostfile", options->hostfile,
                  "Hosts, one line HOST slots=N each; hosts beyond what N ranks need are spares")
      ->type_name("FILE");
  launch.add_option("--host", options->hosts, "The same on the command line: node1:8,node2:8")
      ->type_name("LIST");
  launch.add_option("--per_node", options->per_node, "Ranks on each host: one for each GPU")
      ->check(CLI::Range(1, 4096))
      ->type_name("N");
  launch
      .add_option("--min_nodes", options->min_nodes,
                  "Do not go on with fewer hosts than this when hosts are lost or suspected")
      ->check(CLI::Range(1, 1 << 16))
      ->capture_default_str()
      ->type_name("N");
  launch
      .add_option_function<std::string>(
          "--launcher",
          [options](const std::string& name) {
            options->launcher = name == "mpirun" ? JobLauncher::kMpirun
                                : name == "srun" ? JobLauncher::kSrun
                                                 : JobLauncher::kAuto;
          },
          "What starts the ranks: mpirun (in a Slurm job inside its allocation), srun (--mpi=pmix), or auto: "
          "mpirun "
          "where there is one")
      ->check(CLI::IsMember({"auto", "mpirun", "srun"}))
      ->type_name("NAME");
  launch
      .add_option("--rsh_agent", options->rsh_agent,
                  "How mpirun reaches other hosts, for example \"ssh -p 2222\"")
      ->type_name("COMMAND");
  launch
      .add_option("--export", options->exports,
                  "Hand this environment variable on to all hosts; may be given many times")
      ->allow_extra_args(false)
      ->type_name("NAME");
  launch
      .add_option(
          "--launcher_arg", options->launcher_args,
          "Pass this word on to mpirun or srun as it is; may be given many times (--launcher_arg=--mca ...)")
      ->allow_extra_args(false)
      ->type_name("WORD");
  launch
      .add_option("--program", options->program,
                  "Path of carousel on all hosts; without it the path of this one")
      ->type_name("PATH");
}

void AddTimeOptions(CLI::App& launch, LaunchOptions* options) {
  const auto seconds = [&](const char* name, double* value, const char* text) {
    launch.add_option(name, *value, text)
        ->check(NumberFrom(0.0, 1e6))
        ->capture_default_str()
        ->type_name("SECONDS");
  };
  seconds("--grace", &options->grace_seconds, "From a signal to the end of everything");
  seconds("--failure_grace", &options->failure_grace_seconds,
          "What the other ranks have to end when one has failed");
  launch
      .add_option("--kill_timeout", options->kill_timeout,
                  "mpirun's own patience between SIGTERM and SIGKILL, should somebody signal it directly")
      ->check(CLI::Range(0, 3600))
      ->capture_default_str()
      ->type_name("SECONDS");
  launch.add_option("--max_restarts", options->max_restarts, "Give up after so many restarts")
      ->check(CLI::Range(0, 1 << 30))
      ->capture_default_str()
      ->type_name("N");
  launch
      .add_option("--max_no_progress", options->max_no_progress,
                  "Give up after so many restarts in a row without a new checkpoint")
      ->check(CLI::Range(0, 1 << 30))
      ->capture_default_str()
      ->type_name("N");
  seconds("--backoff", &options->backoff_seconds,
          "Wait before a restart; twice as long after each that brought no new checkpoint");
  seconds("--max_backoff", &options->max_backoff_seconds, "The longest wait");
}
}  // namespace

void BeginLaunch(int argc, char** argv) {
  static char np[] = "--np";
  if (argc < 2 || std::strcmp(argv[1], "launch") != 0) return;
  // They wait until the supervisor asks for them.
  StopSignals::Hold();
  // A console that is gone (Ctrl-C ends "| tee log" first) must not take the run with it.
  std::signal(SIGPIPE, SIG_IGN);
  for (int i = 2; i < argc && std::strcmp(argv[i], "train") != 0; ++i) {
    if (std::strcmp(argv[i], "-np") == 0) argv[i] = np;
  }
}

CLI::App* AddLaunchCommand(CLI::App& app, std::function<int()>* run) {
  CLI::App* launch = app.add_subcommand(
      "launch", "Start training on many ranks, watch over it, and start it again when something fails");
  const auto options = std::make_shared<LaunchOptions>();
  AddPlaceOptions(*launch, options.get());
  AddTimeOptions(*launch, options.get());
  launch->add_flag("--dry_run", options->dry_run, "Print the command that would be run, and run nothing");
  launch->prefix_command();
  launch->footer(
      R"(What stands behind the word train are options of train.

SIGTERM, SIGINT (Ctrl-C), SIGHUP, SIGUSR1 and SIGUSR2 ask all ranks to save and end; the exit status is
then 75, and the same command goes on: what was trained is in a checkpoint. Before the first step of an attempt
there is nothing to save: the checkpoint that it began with stays the newest, and a run that had none begins anew.
What a rank that died had not saved yet is trained again. A SIGTERM or SIGINT that comes a second or more after the
first signal ends everything at once (128 + the first signal if steps are lost by that).

After a failure the run starts again from its newest checkpoint, by the exit status (carousel --help): 70, 71
and signals as it was, 72 from the newest checkpoint marked as good, 76 without the suspected host, 75 that
nobody asked this launch for as it was; 64, 73, 74 and 77 end the launch. Hosts that do not answer are left out,
and the ranks become as many as the mesh allows: results do not depend on their number.

RUN_DIR/attempts/N/ keeps of every start: command.txt, hosts, environment, config.textproto, exit.json,
rank_logs/HOST.RANK.log, launcher.log. Ranks find it as CAROUSEL_ATTEMPT_DIR, and in CAROUSEL_RUN_SECRET a
secret of this attempt.

Examples:
  carousel launch -n 2 train --config configs/demo_bytes.textproto --run_dir runs/demo
  carousel launch --hostfile hosts --per_node 8 train --device cuda --config configs/xlstm_7b.textproto --run_dir /shared/7b
  carousel launch --host node1:8,node2:8 --min_nodes 2 --rsh_agent "ssh -p 2222" train --run_dir /shared/7b
  carousel launch --launcher srun --grace 280 train --run_dir /shared/7b   # in sbatch, with --signal=B:USR2@300
  carousel launch -n 4 --dry_run train --config configs/demo_bytes.textproto --run_dir runs/demo
)");
  launch->callback(
      [launch, options, run] { *run = [launch, options] { return RunLaunch(*launch, *options); }; });
  return launch;
}
}  // namespace carousel
