#include "launcher/environment.h"

#include <hwloc.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <map>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "core/base/status_exit_code.h"
#include "core/base/status_macros.h"
#include "launcher/signals.h"
#include "parallel/local_communicator.h"
#include "parallel/mpi_communicator.h"
#include "parallel/tcp_communicator.h"

namespace carousel {
namespace {
// Value of an environment variable as a number; `otherwise` if it is unset or not a number.
int64_t Number(const GetEnv& get_env, const char* name, int64_t otherwise) {
  const char* text = get_env(name);
  int64_t value = 0;
  return text != nullptr && absl::SimpleAtoi(text, &value) ? value : otherwise;
}
bool IsSet(const GetEnv& get_env, const char* name) { return get_env(name) != nullptr; }

// This machine's cores as hwloc sees them, and which of them a process may use.
class Topology {
 public:
  Topology() {
    usable_ = hwloc_topology_init(&topology_) == 0;
    usable_ = usable_ && hwloc_topology_load(topology_) == 0;
    set_ = hwloc_bitmap_alloc();
  }
  ~Topology() {
    hwloc_bitmap_free(set_);
    if (topology_ != nullptr) hwloc_topology_destroy(topology_);
  }
  Topology(const Topology&) = delete;
  Topology& operator=(const Topology&) = delete;

  // One logical CPU for each core on which process `pid` (0: this one) may run. Empty if that cannot be
  // known.
  std::vector<int> CoresOf(pid_t pid) {
    std::vector<int> cores;
    if (!usable_ || hwloc_get_proc_cpubind(topology_, pid == 0 ? getpid() : pid, set_, 0) != 0) return cores;
    hwloc_bitmap_t allowed = hwloc_bitmap_alloc();
    for (hwloc_obj_t core = nullptr;
         (core = hwloc_get_next_obj_by_type(topology_, HWLOC_OBJ_CORE, core)) != nullptr;) {
      hwloc_bitmap_and(allowed, core->cpuset, set_);
      if (!hwloc_bitmap_iszero(allowed)) cores.push_back(hwloc_bitmap_first(allowed));
    }
    hwloc_bitmap_free(allowed);
    return cores;
  }

  // Lets all threads of this process, present and future, run on these cores (all logical CPUs of each).
  void RunOn(const std::vector<int>& cores) {
    hwloc_bitmap_zero(set_);
    for (const int cpu : cores) {
      const hwloc_obj_t unit = hwloc_get_pu_obj_by_os_index(topology_, static_cast<unsigned>(cpu));
      const hwloc_obj_t core =
          unit == nullptr ? nullptr : hwloc_get_ancestor_obj_by_type(topology_, HWLOC_OBJ_CORE, unit);
      if (core != nullptr) hwloc_bitmap_or(set_, set_, core->cpuset);
    }
    if (!hwloc_bitmap_iszero(set_)) hwloc_set_cpubind(topology_, set_, HWLOC_CPUBIND_PROCESS);
  }

 private:
  hwloc_topology_t topology_ = nullptr;
  hwloc_bitmap_t set_ = nullptr;
  bool usable_ = false;
};

// Cores that this container may keep busy; 0: no limit.
int64_t CpuQuota() {
  std::string line;
  std::ifstream version2("/sys/fs/cgroup/cpu.max");
  if (std::getline(version2, line)) return ParseCpuMax(line);
  std::string quota, period;
  std::ifstream quota_file("/sys/fs/cgroup/cpu/cpu.cfs_quota_us");
  std::ifstream period_file("/sys/fs/cgroup/cpu/cpu.cfs_period_us");
  if (!std::getline(quota_file, quota) || !std::getline(period_file, period)) return 0;
  return ParseCpuMax(absl::StrCat(quota, " ", period));
}

// Open MPI moves large messages between processes of a machine with process_vm_readv. Containers that forbid
// the call make every large message fail, so it is tried once on ourselves.
bool MayReadProcessMemory() {
  char from = 1, to = 0;
  iovec local = {&to, 1}, remote = {&from, 1};
  return process_vm_readv(getpid(), &local, 1, &remote, 1, 0) == 1;
}

std::string CoresText(const std::vector<int>& cores) { return absl::StrJoin(cores, ","); }
std::vector<int> ParseCores(const std::string& text) {
  std::vector<int> cores;
  for (const absl::string_view part : absl::StrSplit(text, ',', absl::SkipEmpty())) {
    int cpu = 0;
    if (absl::SimpleAtoi(part, &cpu)) cores.push_back(cpu);
  }
  return cores;
}

std::string HostName() {
  char name[256] = {};
  if (gethostname(name, sizeof(name) - 1) != 0) return "unknown";
  return name;
}
}  // namespace

LaunchInfo DetectLaunch(const GetEnv& get_env) {
  LaunchInfo info;
  if (IsSet(get_env, "OMPI_COMM_WORLD_SIZE")) {
    info.kind = LaunchInfo::Kind::kOpenMpi;
    info.launcher = "mpirun (Open MPI)";
    info.announced_rank = Number(get_env, "OMPI_COMM_WORLD_RANK", 0);
    info.announced_size = Number(get_env, "OMPI_COMM_WORLD_SIZE", 0);
    // mpirun passes on a policy that the user chose; where it bound without one, that is its default.
    info.bound_by_default = Number(get_env, "OMPI_MCA_orte_bound_at_launch", 0) == 1 &&
                            !IsSet(get_env, "OMPI_MCA_hwloc_base_binding_policy");
    return info;
  }
  const bool in_slurm_step = IsSet(get_env, "SLURM_STEP_ID") && IsSet(get_env, "SLURM_PROCID");
  const int64_t slurm_size = Number(get_env, "SLURM_STEP_NUM_TASKS", Number(get_env, "SLURM_NTASKS", 0));
  if (IsSet(get_env, "PMI_RANK") || IsSet(get_env, "PMIX_RANK")) {
    info.kind = LaunchInfo::Kind::kPmi;
    info.launcher = in_slurm_step ? "srun" : "mpiexec";
    info.announced_rank = Number(get_env, "PMI_RANK", Number(get_env, "PMIX_RANK", 0));
    info.announced_size = Number(get_env, "PMI_SIZE", in_slurm_step ? slurm_size : 0);
    return info;
  }
  if (in_slurm_step && slurm_size > 1) {
    info.kind = LaunchInfo::Kind::kSlurmWithoutMpi;
    info.launcher = "srun";
    info.announced_rank = Number(get_env, "SLURM_PROCID", 0);
    info.announced_size = slurm_size;
  }
  return info;
}

absl::StatusOr<std::optional<TcpNodeOptions>> DetectTcpLaunch(const GetEnv& get_env) {
  const std::vector<std::string> names = {"CAROUSEL_RENDEZVOUS", "CAROUSEL_RANK", "CAROUSEL_WORLD_SIZE",
                                          "CAROUSEL_RUN_SECRET"};
  std::vector<std::string> given, missing, values;
  for (const std::string& name : names) {
    const char* value = get_env(name.c_str());
    values.push_back(value == nullptr ? "" : value);
    (value == nullptr ? missing : given).push_back(name);
  }
  if (given.empty() || (given.size() == 1 && given[0] == "CAROUSEL_RUN_SECRET")) {
    return std::optional<TcpNodeOptions>();
  }
  if (!missing.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(absl::StrJoin(given, ", "), given.size() == 1 ? " is" : " are", " set, but not ",
                     absl::StrJoin(missing, ", "),
                     ": ranks that meet over TCP need all four; unset them to run alone or with mpirun"));
  }
  TcpNodeOptions options{.rendezvous = values[0], .secret = values[3]};
  if (const char* interface = get_env("CAROUSEL_INTERFACE"); interface != nullptr) {
    options.interface = interface;
  }
  if (const absl::Status status = ParseRendezvous(values[0]).status(); !status.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("CAROUSEL_RENDEZVOUS=", std::string(status.message())));
  }
  if (!absl::SimpleAtoi(values[2], &options.size) || options.size < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("CAROUSEL_WORLD_SIZE='", values[2],
                     "' is no number of ranks; give how many there are, 1 or more, "
                     "the same on all of them"));
  }
  if (!absl::SimpleAtoi(values[1], &options.rank) || options.rank < 0 || options.rank >= options.size) {
    return absl::InvalidArgumentError(absl::StrCat("CAROUSEL_RANK='", values[1],
                                                   "' is no rank of CAROUSEL_WORLD_SIZE=", options.size,
                                                   "; give 0 to ", options.size - 1));
  }
  if (options.secret.size() < kMinSecretBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("CAROUSEL_RUN_SECRET has ", options.secret.size(), " characters; give at least ",
                     kMinSecretBytes, " random ones, the same on all ranks (openssl rand -hex 32)"));
  }
  return std::optional<TcpNodeOptions>(options);
}

namespace {
absl::Status Refused(const std::string& why) {
  return WithExitCode(absl::FailedPreconditionError(why), kExitPreflight);
}
}  // namespace

absl::Status CheckLaunch(const LaunchInfo& launch, int64_t actual_size, bool has_mpi,
                         const std::string& library) {
  // A launcher that does not say how many it started can only be believed.
  if (launch.announced_size == actual_size || (launch.announced_size == 0 && has_mpi))
    return absl::OkStatus();
  const std::string started =
      absl::StrCat(launch.launcher, " started ",
                   launch.announced_size == 0 ? std::string("several") : absl::StrCat(launch.announced_size),
                   " processes");
  if (!has_mpi) {
    return Refused(
        absl::StrCat(started,
                     ", but this program was built without MPI, so each would train on its own; build it "
                     "with MPI (Debian: libopenmpi-dev, cmake -DCAROUSEL_MPI=ON) or start one process"));
  }
  if (launch.kind == LaunchInfo::Kind::kSlurmWithoutMpi) {
    return Refused(
        absl::StrCat(started,
                     " without connecting them through MPI; use srun --mpi=pmix (srun --mpi=list shows "
                     "what this site offers), mpirun inside sbatch, or TCP (CAROUSEL_RENDEZVOUS)"));
  }
  return Refused(
      absl::StrCat(started, ", but MPI sees ", actual_size, actual_size == 1 ? " process" : " processes",
                   ": the launcher and the program belong to different MPI installations; this program uses ",
                   library, ", start it with the mpirun of that installation"));
}

CoreShare ShareCores(const std::vector<std::vector<int>>& cores_of_rank, int64_t local_rank, int64_t quota) {
  const std::vector<int>& own = cores_of_rank[static_cast<size_t>(local_rank)];
  const int64_t local_size = static_cast<int64_t>(cores_of_rank.size());
  const int64_t num_cores = static_cast<int64_t>(own.size());
  std::map<int, int64_t> num_users;
  for (const std::vector<int>& cores : cores_of_rank) {
    for (const int cpu : cores) ++num_users[cpu];
  }
  double share = 0;
  for (const int cpu : own) share += 1.0 / static_cast<double>(num_users[cpu]);
  if (quota > 0) share = std::min(share, static_cast<double>(quota) / static_cast<double>(local_size));
  CoreShare result = {.cores = own, .threads = static_cast<int64_t>(share + 1e-6), .own_cores = share};
  result.threads = std::max<int64_t>(result.threads, 1);

  const bool all_alike = std::all_of(cores_of_rank.begin(), cores_of_rank.end(),
                                     [&](const std::vector<int>& cores) { return cores == own; });
  if (all_alike && num_cores >= local_size && (quota == 0 || quota >= num_cores)) {
    const int64_t begin = num_cores * local_rank / local_size,
                  end = num_cores * (local_rank + 1) / local_size;
    result.cores.assign(own.begin() + begin, own.begin() + end);
  }
  return result;
}

int64_t ParseCpuMax(const std::string& cpu_max) {
  const std::vector<std::string> words = absl::StrSplit(cpu_max, ' ', absl::SkipWhitespace());
  int64_t quota = 0, period = 0;
  if (words.size() != 2 || !absl::SimpleAtoi(words[0], &quota) || !absl::SimpleAtoi(words[1], &period))
    return 0;
  if (quota <= 0 || period <= 0) return 0;
  return (quota + period - 1) / period;
}

LaunchInfo Environment::Announced() {
  return DetectLaunch([](const char* name) { return std::getenv(name); });
}

std::string Environment::Variable(const std::string& name) {
  const char* value = std::getenv(name.c_str());
  return value == nullptr ? "" : value;
}

std::vector<std::string> Environment::AllVariables() {
  std::vector<std::string> variables;
  for (char** variable = environ; *variable != nullptr; ++variable) variables.emplace_back(*variable);
  return variables;
}

absl::StatusOr<std::unique_ptr<Environment>> Environment::Start(const Waiting& waiting) {
  std::unique_ptr<Environment> environment(new Environment());
  const GetEnv get_env = [](const char* name) { return std::getenv(name); };
  CAROUSEL_ASSIGN_OR_RETURN(const std::optional<TcpNodeOptions> tcp, DetectTcpLaunch(get_env));
  environment->launch_ = DetectLaunch(get_env);
  environment->waiting_ = waiting;
  environment->host_ = HostName();
  if (tcp.has_value()) {
    CAROUSEL_RETURN_IF_ERROR(environment->StartTcp(*tcp));
  } else if (environment->launch_.announced_size == 1) {
    // One process needs no MPI, and gains its start-up time.
    environment->self_ = MakeSelfCommunicator();
    environment->world_ = environment->self_.get();
    environment->ShareMachine(*environment->self_);
    return environment;
  } else {
    CAROUSEL_RETURN_IF_ERROR(environment->StartMpi());
  }
  environment->ShareMachine(environment->session_->local());
  if (environment->size() > 1) SetProcessRank(environment->rank());
  return environment;
}

absl::Status Environment::StartTcp(const TcpNodeOptions& options) {
  launch_ = {.kind = LaunchInfo::Kind::kTcp,
             .launcher = "hand (CAROUSEL_RENDEZVOUS)",
             .announced_rank = options.rank,
             .announced_size = options.size};
  CAROUSEL_ASSIGN_OR_RETURN(
      session_,
      StartTcpSession({.node = options, .peer = {.interrupted = EndRequested, .waiting = waiting_}}));
  world_ = &session_->world();
  return absl::OkStatus();
}

absl::Status Environment::StartMpi() {
  if (!HasMpi() || launch_.kind == LaunchInfo::Kind::kSlurmWithoutMpi) {
    return CheckLaunch(launch_, 1, HasMpi(), "");
  }
  if (launch_.kind == LaunchInfo::Kind::kOpenMpi && !MayReadProcessMemory()) {
    setenv("OMPI_MCA_btl_vader_single_copy_mechanism", "none", /*overwrite=*/0);
  }
  CAROUSEL_ASSIGN_OR_RETURN(session_,
                            MpiSession::Start({.peer = {.interrupted = EndRequested, .waiting = waiting_}}));
  world_ = &session_->world();
  const absl::Status agreed = CheckLaunch(launch_, world_->size(), true, session_->library());
  if (!agreed.ok()) Finish(ExitCodeOf(agreed));
  return agreed;
}

void Environment::ShareMachine(Communicator& local) {
  local_rank_ = local.rank();
  local_size_ = local.size();
  Topology topology;
  // What mpirun would have handed on, had it not bound us, is what it may use itself.
  std::vector<int> cores = topology.CoresOf(launch_.bound_by_default ? getppid() : 0);
  if (cores.empty()) cores = topology.CoresOf(0);
  std::vector<std::vector<int>> cores_of_rank;
  for (const std::string& text : AllGatherBytes(local, CoresText(cores))) {
    cores_of_rank.push_back(ParseCores(text));
  }
  const CoreShare share = ShareCores(cores_of_rank, local_rank_, CpuQuota());
  if (launch_.bound_by_default) topology.RunOn(share.cores);
  default_threads_ = share.threads;
  own_cores_ = share.own_cores;
}

std::string Environment::Describe() const {
  return absl::StrCat("rank ", rank(), " of ", size(), " on ", host_, " (", local_size_, " here), ",
                      default_threads_, default_threads_ == 1 ? " core" : " cores", " for each, ",
                      launch_.kind == LaunchInfo::Kind::kSingle
                          ? "started alone"
                          : absl::StrCat("started by ", launch_.launcher),
                      session_ != nullptr ? absl::StrCat(", ", session_->library()) : "");
}

int Environment::Finish(int exit_code) {
  CAROUSEL_CHECK_MSG(!finished_, "Environment::Finish twice");
  finished_ = true;
  return session_ != nullptr ? session_->Finish(exit_code) : exit_code;
}

Environment::~Environment() {
  if (!finished_ && session_ != nullptr) Finish(kExitFailure);
}
}  // namespace carousel
