// `carousel doctor`: what a machine, or the machines of a job, can do for training, and what is in the way.
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "configs/load.h"
#include "core/base/log.h"
#include "core/base/status_macros.h"
#include "core/train/agreement.h"
#include "launcher/command_device.h"
#include "launcher/commands.h"
#include "launcher/environment.h"
#include "launcher/preflight/doctor_tools.h"
#include "launcher/preflight/preflight_run.h"
#include "launcher/train/rank_agreement.h"
#include "launcher/train/run_directory.h"
#include "launcher/train/train_setup.h"
#include "launcher/version.h"
#include "launcher/watch/flight_report.h"
#include "parallel/mpi_communicator.h"

namespace carousel {
namespace {

struct DoctorOptions {
  ConfigOptions config;
  std::string device = "cpu";
  RunMesh::Transport transport = RunMesh::Transport::kAuto;
  std::string preflight = "fast";
  bool json = false;
  std::string flight_recorder;  // a directory: explain a hang instead
};

// Shows people who wait what is being tried, on standard error.
class Progress {
 public:
  explicit Progress(bool shown) : shown_(shown), live_(isatty(STDERR_FILENO) == 1), told_(Clock::now()) {}
  ~Progress() {
    if (drawn_) std::fputs("\r\x1b[K", stderr);
  }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void Show(const std::string& what) {
    if (!shown_) return;
    if (live_) {
      std::fprintf(stderr, "\r\x1b[K%s ...", what.c_str());
      std::fflush(stderr);
      drawn_ = true;
    } else if (Clock::now() - told_ > std::chrono::seconds(5)) {
      told_ = Clock::now();
      CAROUSEL_LOG(INFO) << what;
    }
  }

 private:
  using Clock = std::chrono::steady_clock;
  const bool shown_, live_;
  bool drawn_ = false;
  Clock::time_point told_;
};

// A run if the options name one; null if they do not. Errors: what they name is wrong.
absl::StatusOr<std::optional<RunSpec>> LoadHere(const ConfigOptions& options) {
  std::string config = options.config;
  if (config.empty() && !options.run_dir.empty()) {
    std::error_code unreadable;
    if (std::filesystem::exists(ConfigPath(options.run_dir), unreadable))
      config = ConfigPath(options.run_dir);
  }
  if (config.empty()) {
    if (options.sets.empty()) return std::optional<RunSpec>();
    return absl::InvalidArgumentError("--set changes a config: say which with --config FILE.textproto");
  }
  CAROUSEL_ASSIGN_OR_RETURN(
      RunSpec run, LoadRun(config, {.sets = options.sets, .run_dir = options.run_dir, .for_training = true}));
  return std::optional<RunSpec>(std::move(run));
}

RankOptions OptionsOf(const DoctorOptions& options) {
  const char* const kTransports[] = {"auto", "nccl", "staged"};
  RankOptions result = {{"--config", options.config.config},
                        {"--run_dir", options.config.run_dir},
                        {"--device", options.device},
                        {"--gpu_transport", kTransports[static_cast<size_t>(options.transport)]},
                        {"--preflight", options.preflight},
                        {"--json", options.json ? "yes" : "no"}};
  for (const std::string& set : options.config.sets) result.emplace_back("--set", set);
  return result;
}

PreflightRow Failed(const std::string& check, const absl::Status& why) {
  return {.check = check, .status = PreflightStatus::kFailed, .finding = std::string(why.message())};
}

// The same text, one line for a machine or one table for people.
void Print(const DoctorOptions& options, const PreflightResult& result) {
  const bool ok = WorstOf(result.rows) != PreflightStatus::kFailed;
  std::vector<std::string> hosts;
  for (const RankFacts& rank : result.ranks) hosts.push_back(rank.host);
  const std::vector<std::string> machines = Distinct(hosts);
  if (options.json) {
    nlohmann::ordered_json rows = nlohmann::ordered_json::array(), ranks = nlohmann::ordered_json::array();
    for (const PreflightRow& row : result.rows) {
      rows.push_back({{"check", row.check},
                      {"status", NameOf(row.status)},
                      {"finding", row.finding},
                      {"fix", row.fix},
                      {"ranks", row.ranks},
                      {"hosts", row.hosts}});
    }
    for (const RankFacts& rank : result.ranks) {
      ranks.push_back(nlohmann::ordered_json::parse(ToText(rank), nullptr, /*allow_exceptions=*/false));
    }
    const nlohmann::ordered_json all = {{"ok", ok},
                                        {"exit_code", ok ? kExitOk : kExitPreflight},
                                        {"summary", CountsText(result.rows)},
                                        {"world", result.ranks.size()},
                                        {"hosts", machines},
                                        {"seconds", result.seconds},
                                        {"rows", rows},
                                        {"facts", ranks}};
    std::printf("%s\n", all.dump(2, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
    return;
  }
  constexpr size_t kMaxHosts = 8;
  std::string names;
  for (size_t i = 0; i < std::min(machines.size(), kMaxHosts); ++i)
    absl::StrAppend(&names, i == 0 ? "" : ", ", machines[i]);
  if (machines.size() > kMaxHosts) absl::StrAppend(&names, ", and ", machines.size() - kMaxHosts, " more");
  if (result.ranks.size() == 1) {
    std::printf("%s\n", names.c_str());
  } else {
    std::printf("%zu ranks on %s%s\n", result.ranks.size(),
                machines.size() == 1 ? "" : absl::StrCat(machines.size(), " machines: ").c_str(),
                names.c_str());
  }
  std::fputs(FormatPreflightTable(result.rows, {}).c_str(), stdout);
  std::printf("%s (%.1f s)\n", CountsText(result.rows).c_str(), result.seconds);
  if (ok) return;
  std::vector<std::string> failed;
  for (const PreflightRow& row : result.rows) {
    if (row.status == PreflightStatus::kFailed) failed.push_back(row.check);
  }
  std::printf("FAILED: %s\n", absl::StrJoin(Distinct(failed), ", ").c_str());
}

PreflightRow MpirunRow(const MachineFacts& machine, const std::string& library) {
  MpirunFacts facts = ReadMpirun(Environment::Variable("PATH"));
  facts.program_has_mpi = HasMpi();
  facts.library = library;
  facts.root = machine.root;
  facts.root_allowed = Environment::Variable("OMPI_ALLOW_RUN_AS_ROOT") == "1" &&
                       Environment::Variable("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM") == "1";
  facts.cores = static_cast<int64_t>(machine.cores.size());
  facts.oversubscribe = !Environment::Variable("OMPI_MCA_rmaps_base_oversubscribe").empty();
  if (facts.program_has_mpi && !facts.path.empty() && (!facts.root || facts.root_allowed)) {
    facts.tried = true;
    facts.trial = RunTool({facts.path, "-np", "1", "true"}, /*seconds=*/20);
  }
  return CheckMpirun(facts);
}

// A process that could not join the others still knows its machine. Rank 0 speaks.
int DiagnoseFailedStart(const DoctorOptions& options, const absl::Status& why) {
  if (Environment::Announced().announced_rank != 0) return kExitPreflight;
  RankFacts self;
  std::array<char, 256> host{};
  self.host = gethostname(host.data(), host.size() - 1) == 0 ? host.data() : "this machine";
  self.build = VersionLine();
  PreflightOptions preflight;
  preflight.self = self;
  preflight.ask_gpus = true;
  preflight.alter = [](RankFacts* facts) {
    facts->default_threads = std::max<int64_t>(1, static_cast<int64_t>(facts->machine.cores.size()));
  };
  PreflightResult result = RunPreflight(preflight);
  for (PreflightRow& row : result.rows) {
    if (row.check != "launch") continue;
    row.status = PreflightStatus::kFailed;
    row.finding = std::string(why.message());
  }
  Print(options, result);
  return kExitPreflight;
}

absl::StatusOr<int> Diagnose(const DoctorOptions& options, Environment& environment) {
  Communicator& world = environment.world();
  Rows before;
  // Ranks of other programs or commands can be compared, but not asked to act together.
  if (absl::Status same = CheckSameBuild(world, environment.host(), VersionLine()); same.ok()) {
    same = CheckSameOptions(world, environment.host(), OptionsOf(options));
    if (!same.ok()) before.push_back(Failed("command", same));
  } else {
    before.push_back(Failed("builds", same));
  }
  const bool alike = before.empty();

  PreflightOptions preflight;
  preflight.mode = PreflightModeOf(options.preflight);
  preflight.self = SelfOf(environment);
  preflight.needs.device = options.device;
  preflight.world = &world;
  preflight.ask_gpus = true;
  std::optional<RunSpec> run;
  std::unique_ptr<Device> device;
  std::unique_ptr<RunMesh> mesh;
  if (alike) {
    const absl::StatusOr<std::optional<RunSpec>> mine = LoadHere(options.config);
    // A config that rank 0 cannot use is a mistake of the command, not of a machine.
    CAROUSEL_RETURN_IF_ERROR(
        AgreeOnStatus(world, environment.rank() == 0 ? mine.status() : absl::OkStatus()));
    const bool has_run =
        !BroadcastBytes(world, environment.rank() == 0 && mine->has_value() ? "run" : "", 0).empty();
    if (has_run) {
      absl::StatusOr<RunSpec> here = absl::NotFoundError("this rank has no config");
      if (mine.ok() && mine->has_value()) here = **mine;
      absl::StatusOr<RunSpec> agreed = AgreeOnRun(world, environment.host(), here);
      if (agreed.ok()) {
        run = *std::move(agreed);
      } else {
        before.push_back(Failed("config", agreed.status()));
      }
    }
    absl::StatusOr<std::unique_ptr<Device>> made =
        MakeRankDevice(options.device, run.has_value() ? run->threads : 0, environment);
    if (made.ok()) {
      device = *std::move(made);
    } else {
      preflight.device_error = std::string(made.status().message());
    }
    const bool all_have_devices = AgreeOnStatus(world, made.status()).ok();
    if (!all_have_devices) device.reset();

    // How the ranks are arranged: as the run wants it, if it can be with so many.
    MeshSizes sizes{.replicate = environment.size()};
    int64_t planned_world = environment.size();
    if (run.has_value()) {
      preflight.compute = run->compute;
      preflight.token_files = TokenFilesOf(*run);
      const MeshSpec spec = MakeMeshSpec(*run, environment.size());
      const absl::Status fits = ValidateMesh(spec);
      if (fits.ok()) {
        sizes = ResolveSizes(spec);
        before.push_back({.check = "mesh",
                          .finding = absl::StrFormat(
                              "pipe %d x replicate %d x shard %d x sequence %d x tensor %d", sizes.pipe,
                              sizes.replicate, sizes.shard, sizes.sequence, sizes.tensor)});
      } else if (environment.size() == 1 && WantedWorld(*run) > 1) {
        planned_world = WantedWorld(*run);
        before.push_back({.check = "mesh",
                          .status = PreflightStatus::kNote,
                          .finding = absl::StrCat("the config asks for ", planned_world,
                                                  " ranks or a multiple, here is one: memory is counted for ",
                                                  planned_world, ", communication is not tried"),
                          .fix = absl::StrCat("Check all ranks at once: `mpirun -np ", planned_world,
                                              " carousel doctor ...`.")});
      } else {
        before.push_back(Failed("mesh", fits));
      }
    }
    if (device != nullptr && run.has_value()) {
      const absl::StatusOr<PreflightNeeds> needs =
          NeedsOf(*run, planned_world, *device, options.device, options.transport);
      if (needs.ok()) preflight.needs = *needs;
    }
    if (device != nullptr && environment.size() > 1) {
      world.set_name("world");
      absl::StatusOr<std::unique_ptr<RunMesh>> connected =
          RunMesh::Connect(sizes, options.transport, world, *device);
      if (connected.ok()) {
        mesh = *std::move(connected);
        preflight.mesh = &mesh->mesh();
      } else {
        before.push_back(Failed("connection", connected.status()));
      }
    }
    preflight.device = device.get();
    if (run.has_value()) {
      preflight.run_dir = run->run_dir;
    } else {
      // Without a run, the directory at hand: a folder that is gone afterwards.
      preflight.run_dir = options.config.run_dir;
      if (preflight.run_dir.empty()) {
        preflight.run_dir = BroadcastBytes(world, absl::StrCat(".carousel-doctor-", getpid()), 0);
        preflight.alter = [](RankFacts* facts) { facts->storage.directory = "the current directory"; };
      }
    }
    if (environment.size() > 1 && WorstOf(before) != PreflightStatus::kFailed) {
      // One command, one config: worth a word only where they were compared.
      before.push_back({.check = "command", .finding = "the same on all ranks"});
    }
  }
  auto progress = std::make_unique<Progress>(environment.rank() == 0);
  preflight.progress = [&](const std::string& what) { progress->Show(what); };
  PreflightResult result = RunPreflight(preflight);
  const bool alone = environment.size() == 1 && environment.launcher().empty();
  if (alone && !run.has_value()) {
    progress->Show("trying mpirun");
    const auto& libraries = result.ranks[0].libraries;
    const auto library = libraries.find("MPI");
    before.push_back(MpirunRow(result.ranks[0].machine, library == libraries.end() ? "" : library->second));
  }
  progress.reset();  // its line makes room for the table
  result.rows.insert(result.rows.begin(), before.begin(), before.end());
  if (environment.rank() == 0) Print(options, result);
  return WorstOf(result.rows) == PreflightStatus::kFailed ? kExitPreflight : kExitOk;
}

constexpr char kFooter[] =
    R"(One table: a row for each check, with what was found and, where something is wrong, what to do about it. Ranks
that say the same share a row; machines that stand out are named.

  ok        nothing to do
  note      worth knowing
  warning   a run would work, but slower or with less safety than it could
  FAILED    a run would not work, or would compute wrong numbers
  skipped   could not be asked here; the row says why

Without --config: what can this machine do? With --config and --run_dir: can this run be started here? Under mpirun
or srun all ranks are checked, as `carousel train` would have them. `carousel train` does the same checks by itself
before each start (--preflight). --preflight full takes longer: larger trials, and every pair of machines.

Exit status: 0; 77 if a check has failed; 64 if the command line or the config is wrong.

Examples:
  carousel doctor
  carousel doctor --config configs/demo_bytes.textproto --run_dir runs/demo
  mpirun -np 8 carousel doctor --config configs/xlstm_1b4.textproto --run_dir runs/1b4 --device cuda
  mpirun -np 16 --hostfile hosts carousel doctor --preflight full --device cuda
  carousel doctor --json | python3 -m json.tool
  carousel doctor --flight_recorder runs/1b4             # who made that run hang?
)";

int ExplainHang(const std::string& directory) {
  const absl::StatusOr<std::string> text = ExplainFlightRecords(directory);
  if (!text.ok()) return ReportError(text.status());
  std::fputs(text->c_str(), stdout);
  return kExitOk;
}

int RunDoctor(const DoctorOptions& options) {
  if (!options.flight_recorder.empty()) return ExplainHang(options.flight_recorder);
  const absl::StatusOr<std::unique_ptr<Environment>> environment = Environment::Start();
  if (!environment.ok()) return DiagnoseFailedStart(options, environment.status());
  const absl::StatusOr<int> code = Diagnose(options, **environment);
  if (!code.ok() && (*environment)->rank() == 0) ReportError(code.status());
  return (*environment)->Finish(code.ok() ? *code : ExitCodeOf(code.status()));
}
}  // namespace

CLI::App* AddDoctorCommand(CLI::App& app, std::function<int()>* run) {
  CLI::App* doctor = app.add_subcommand(
      "doctor", "Check this machine, or all ranks of a job, and say how to mend what is wrong");
  const auto options = std::make_shared<DoctorOptions>();
  AddConfigOptions(*doctor, &options->config);
  AddDeviceOption(*doctor, &options->device);
  AddGpuTransportOption(*doctor, &options->transport);
  doctor->add_option("--preflight", options->preflight, "How much is tried: fast or full")
      ->check(CLI::IsMember({"fast", "full"}))
      ->capture_default_str()
      ->type_name("MODE");
  doctor->add_flag("--json", options->json,
                   "Print the rows, and all that the ranks found, as one JSON object");
  doctor
      ->add_option(
          "--flight_recorder", options->flight_recorder,
          "Instead: say who waited for whom when a run hung, from what its ranks left in this run directory "
          "or attempt")
      ->type_name("DIR");
  doctor->footer(kFooter);
  doctor->callback([options, run] { *run = [options] { return RunDoctor(*options); }; });
  return doctor;
}
}  // namespace carousel
