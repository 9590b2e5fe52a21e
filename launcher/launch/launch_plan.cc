#include "launcher/launch/launch_plan.h"

#include <algorithm>
#include <iterator>
#include <set>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "core/base/status_exit_code.h"
#include "core/base/status_macros.h"
#include "core/base/terminal_text.h"
#include "launcher/launch/attempt_record.h"
#include "launcher/train/train_setup.h"
#include "parallel/mesh_builder.h"

namespace carousel {
namespace {
constexpr char kRankCommand[] = "launch_rank";

absl::Status Missing(const std::string& what) {
  return WithExitCode(absl::FailedPreconditionError(what), kExitPreflight);
}

int64_t NumberOf(const std::vector<std::string>& environment, const std::string& name) {
  int64_t value = 0;
  return absl::SimpleAtoi(ValueOf(environment, name), &value) && value > 0 ? value : 0;
}

// The hosts of a Slurm allocation, with the tasks that each was asked for.
absl::StatusOr<std::vector<LaunchHost>> SlurmHosts(const LaunchOptions& options,
                                                   const LaunchSurroundings& here) {
  const std::string list = ValueOf(here.environment, "SLURM_JOB_NODELIST");
  if (list.empty()) return std::vector<LaunchHost>{{.name = here.host, .slots = 1}};
  CAROUSEL_ASSIGN_OR_RETURN(const std::vector<std::string> names, ExpandNodeList(list));
  std::vector<int64_t> counts(names.size(), options.per_node);
  const std::string tasks = ValueOf(here.environment, "SLURM_TASKS_PER_NODE");
  if (options.per_node == 0) {
    counts.assign(names.size(), 1);
    if (!tasks.empty()) {
      CAROUSEL_ASSIGN_OR_RETURN(counts, ExpandTaskCounts(tasks));
    }
    if (counts.size() != names.size()) {
      return absl::InvalidArgumentError(absl::StrCat("SLURM_TASKS_PER_NODE='", tasks, "' speaks of ",
                                                     counts.size(), " nodes, SLURM_JOB_NODELIST='", list,
                                                     "' of ", names.size(), "; give --per_node"));
    }
  }
  std::vector<LaunchHost> hosts;
  for (size_t i = 0; i < names.size(); ++i) hosts.push_back({.name = names[i], .slots = counts[i]});
  return hosts;
}

// Variables that change how ranks talk and compute: the same everywhere.
std::vector<std::string> ExportNames(const LaunchOptions& options, const LaunchSurroundings& here) {
  constexpr const char* kPrefixes[] = {"NCCL_", "UCX_", "FI_", "CUDA_", "OMP_", "DNNL_", "CAROUSEL_"};
  std::set<std::string> names = {kAttemptDirVariable, kRunSecretVariable};
  for (const std::string& variable : here.environment) {
    const std::string name = variable.substr(0, variable.find('='));
    bool wanted = name == "LD_LIBRARY_PATH" || name == "PATH";
    for (const char* prefix : kPrefixes) wanted |= absl::StartsWith(name, prefix);
    if (wanted) names.insert(name);
  }
  names.insert(options.exports.begin(), options.exports.end());
  return {names.begin(), names.end()};
}
}  // namespace

std::string ValueOf(const std::vector<std::string>& environment, const std::string& name) {
  for (const std::string& variable : environment) {
    if (variable.size() > name.size() && variable[name.size()] == '=' && absl::StartsWith(variable, name)) {
      return variable.substr(name.size() + 1);
    }
  }
  return "";
}

std::vector<std::string> SplitWords(const std::string& text) {
  return absl::StrSplit(text, absl::ByAnyChar(" \t"), absl::SkipEmpty());
}

absl::StatusOr<LaunchTarget> FindTarget(const LaunchOptions& options, const LaunchSurroundings& here,
                                        const std::string& hostfile_text) {
  LaunchTarget target;
  target.in_slurm = !ValueOf(here.environment, "SLURM_JOB_ID").empty();
  if (!options.hostfile.empty() && !options.hosts.empty()) {
    return absl::InvalidArgumentError("--hostfile and --host both say where to run; give one of them");
  }
  for (const std::string& name : options.exports) {
    if (name.empty() || absl::StrContains(name, '=') || absl::StartsWith(name, "-")) {
      return absl::InvalidArgumentError(
          absl::StrCat("--export ", name,
                       ": give the name of an environment variable alone; its value is taken from here"));
    }
    const bool set = std::any_of(here.environment.begin(), here.environment.end(),
                                 [&](const std::string& v) { return absl::StartsWith(v, name + "="); });
    if (!set) {
      return absl::InvalidArgumentError(absl::StrCat("--export ", name,
                                                     ": no such variable is set here; set it (export ", name,
                                                     "=VALUE) or leave it out"));
    }
  }

  target.launcher = options.launcher;
  if (target.launcher == JobLauncher::kAuto) {
    target.launcher = here.mpirun.empty() && target.in_slurm && !here.srun.empty() ? JobLauncher::kSrun
                                                                                   : JobLauncher::kMpirun;
  }
  if (target.launcher == JobLauncher::kSrun) {
    if (here.srun.empty()) {
      return Missing(
          "srun was not found in PATH; install Slurm's client (Debian: slurm-client) or use --launcher "
          "mpirun");
    }
    if (!target.in_slurm) {
      return Missing(
          "--launcher srun works inside an allocation, and SLURM_JOB_ID is not set; start it from sbatch or "
          "salloc, or "
          "use --launcher mpirun");
    }
    if (!options.rsh_agent.empty()) {
      return absl::InvalidArgumentError("--rsh_agent is for mpirun; srun starts processes through Slurm");
    }
  } else if (here.mpirun.empty()) {
    return Missing(
        "mpirun was not found in PATH; install Open MPI (Debian: openmpi-bin) or add its bin directory to "
        "PATH; in a "
        "Slurm job --launcher srun works without it");
  }

  if (!options.hostfile.empty()) {
    CAROUSEL_ASSIGN_OR_RETURN(target.hosts, ParseHostfile(hostfile_text, options.hostfile, options.per_node));
  } else if (!options.hosts.empty()) {
    CAROUSEL_ASSIGN_OR_RETURN(target.hosts, ParseHostList(options.hosts, options.per_node));
  } else if (target.in_slurm) {
    CAROUSEL_ASSIGN_OR_RETURN(target.hosts, SlurmHosts(options, here));
  } else {
    target.local = true;
    target.hosts = {{.name = here.host, .slots = options.ranks > 0 ? options.ranks : options.per_node}};
  }
  if (options.per_node > 0) {
    for (LaunchHost& host : target.hosts) host.slots = options.per_node;
  }
  target.ranks = options.ranks;
  if (target.ranks == 0 && target.in_slurm && options.per_node == 0) {
    target.ranks = NumberOf(here.environment, "SLURM_NTASKS");
  }
  if (target.ranks == 0) target.ranks = TotalSlots(target.hosts);
  if (options.min_nodes > static_cast<int64_t>(target.hosts.size())) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--min_nodes ", options.min_nodes, ", but there ", target.hosts.size() == 1 ? "is" : "are", " only ",
        target.hosts.size(), target.hosts.size() == 1 ? " host" : " hosts",
        "; name more (--hostfile, --host, a larger allocation) or lower --min_nodes"));
  }
  return target;
}

absl::StatusOr<int64_t> ChooseWorld(const RunSpec& run, int64_t wanted, int64_t slots, int64_t multiple_of) {
  const int64_t most = std::min(wanted, slots);
  for (int64_t world = most; world > 0; --world) {
    const bool whole_nodes = world == wanted || world % std::max<int64_t>(multiple_of, 1) == 0;
    if (whole_nodes && MeshViolations(MakeMeshSpec(run, world)).empty()) return world;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("no number of ranks up to ", most, " suits the config. With ", most, ": ",
                   absl::StrJoin(MeshViolations(MakeMeshSpec(run, most)), "; ")));
}

LaunchCommand MakeLaunchCommand(const LaunchOptions& options, const LaunchSurroundings& here,
                                const LaunchTarget& target, const std::vector<LaunchHost>& hosts,
                                int64_t ranks, const std::string& hostfile,
                                const std::vector<std::string>& train_args) {
  LaunchCommand command;
  command.exports = ExportNames(options, here);
  std::vector<std::string>& argv = command.argv;
  const auto add = [&argv](std::initializer_list<std::string> words) { argv.insert(argv.end(), words); };
  if (target.launcher == JobLauncher::kSrun) {
    // Slurm hands the whole environment on.
    add({here.srun, "--mpi=pmix", absl::StrCat("--ntasks=", ranks)});
    if (options.per_node > 0) add({absl::StrCat("--ntasks-per-node=", options.per_node)});
    if (hosts.size() < target.hosts.size()) {
      const auto name = [](std::string* out, const LaunchHost& host) { out->append(host.name); };
      add({absl::StrCat("--nodes=", hosts.size()),
           absl::StrCat("--nodelist=", absl::StrJoin(hosts, ",", name))});
    }
    add({"--cpu-bind=none", "--kill-on-bad-exit=1", "--input=none", "--export=ALL"});
  } else {
    add({here.mpirun});
    if (here.root) add({"--allow-run-as-root"});
    add({"-np", absl::StrCat(ranks)});
    if (!target.local) add({"--hostfile", hostfile});
    if (options.per_node > 0 && !target.local) {
      add({"--map-by", absl::StrCat("ppr:", options.per_node, ":node")});
    }
    // Ranks bind themselves, by what hwloc says of cores and GPUs.
    add({"--bind-to", "none"});
    const bool crowded = target.local ? ranks > here.cores : ranks > TotalSlots(hosts);
    // Ranks that wait must give their core to those that compute.
    if (crowded) add({"--oversubscribe", "--mca", "mpi_yield_when_idle", "1"});
    add({"--mca", "odls_base_sigkill_timeout", absl::StrCat(options.kill_timeout)});
    if (!options.rsh_agent.empty()) add({"--mca", "plm_rsh_agent", options.rsh_agent});
    for (const std::string& name : command.exports) add({"-x", name});
  }
  argv.insert(argv.end(), options.launcher_args.begin(), options.launcher_args.end());
  add({options.program.empty() ? here.program : options.program, kRankCommand});
  argv.insert(argv.end(), train_args.begin(), train_args.end());
  return command;
}

std::vector<std::string> TrainArgsForRestart(const std::vector<std::string>& train_args, bool from_good) {
  std::vector<std::string> args;
  std::copy_if(train_args.begin(), train_args.end(), std::back_inserter(args),
               [](const std::string& arg) { return arg != "--fresh" && arg != "--from_good"; });
  if (from_good) args.push_back("--from_good");
  return args;
}

std::string QuotedCommand(const std::vector<std::string>& argv) {
  return absl::StrJoin(argv, " ", [](std::string* out, const std::string& word) {
    const bool plain = !word.empty() && std::all_of(word.begin(), word.end(), [](unsigned char c) {
      return absl::ascii_isalnum(c) || absl::StrContains("_-./:=,@%+^", static_cast<char>(c));
    });
    if (plain) {
      out->append(word);
    } else if (const std::string shown = EscapeControls(word); shown != word) {
      // $'...' gives back what was escaped; what was an escape's backslash before must be doubled.
      absl::StrAppend(out, "$'", EscapeControls(absl::StrReplaceAll(word, {{"\\", "\\\\"}, {"'", "\\'"}})),
                      "'");
    } else {
      absl::StrAppend(out, "'", absl::StrReplaceAll(word, {{"'", "'\\''"}}), "'");
    }
  });
}
}  // namespace carousel
