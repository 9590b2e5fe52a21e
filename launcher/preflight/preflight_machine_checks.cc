// Programs, processors, memory and clocks of the machines.
#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "launcher/preflight/preflight_checks.h"

namespace carousel {
namespace {

bool OnGpus(const PreflightNeeds& needs) { return needs.device.rfind("cuda", 0) == 0; }

std::string Variable(const RankFacts& rank, const std::string& name) {
  const auto it = rank.variables.find(name);
  return it == rank.variables.end() ? "" : it->second;
}

std::string RankCount(int64_t count) { return absl::StrCat(count, count == 1 ? " rank" : " ranks"); }
std::string Cores(int64_t count) { return absl::StrCat(count, count == 1 ? " core" : " cores"); }

// The machine on which each rank runs.
std::map<std::string, std::vector<const RankFacts*>> ByHost(const Ranks& ranks) {
  std::map<std::string, std::vector<const RankFacts*>> hosts;
  for (const RankFacts& rank : ranks) hosts[rank.host].push_back(&rank);
  return hosts;
}
}  // namespace

Rows CheckBuild(const Ranks& ranks) {
  std::vector<std::string> builds;
  for (const RankFacts& rank : ranks) builds.push_back(rank.build);
  return CompareRanks("program", builds, ranks, PreflightStatus::kFailed,
                      "Install one build on all machines and start it by the same path everywhere.");
}

Rows CheckLaunch(const Ranks& ranks, const PreflightNeeds& needs) {
  const std::string check = "launch";
  const RankFacts& first = ranks[0];
  if (ranks.size() == 1 && first.launcher.empty()) {
    int64_t tasks = 0;
    if (absl::SimpleAtoi(Variable(first, "SLURM_NTASKS"), &tasks) && tasks > 1) {
      return {
          {.check = check,
           .status = needs.for_run ? PreflightStatus::kFailed : PreflightStatus::kWarning,
           .finding = absl::StrCat("Slurm gave this job ", tasks,
                                   " tasks, but this process was started alone: it would train by itself"),
           .fix = "Start the ranks with `srun --mpi=pmix carousel ...` or `mpirun carousel ...` inside the "
                  "job; for one rank on purpose, ask Slurm for one task or run `env -u SLURM_NTASKS ...`."}};
    }
    return {{.check = check, .finding = "started alone, one rank"}};
  }
  const auto hosts = ByHost(ranks);
  int64_t fewest = INT64_MAX, most = 0;
  std::string few_host;
  for (const auto& [host, on_host] : hosts) {
    const int64_t count = static_cast<int64_t>(on_host.size());
    if (count < fewest) fewest = count, few_host = host;
    most = std::max(most, count);
  }
  const std::string started =
      absl::StrCat(RankCount(static_cast<int64_t>(ranks.size())), " started by ",
                   first.launcher.empty() ? "hand" : first.launcher, ", all connected, on ", hosts.size(),
                   hosts.size() == 1 ? " machine" : " machines");
  if (fewest == most) {
    return {{.check = check,
             .finding = hosts.size() == 1 ? started : absl::StrCat(started, " with ", most, " each")}};
  }
  return {{.check = check,
           .status = PreflightStatus::kNote,
           .finding = absl::StrCat(started, ", ", fewest, " to ", most, " on each (fewest: ", few_host,
                                   "): machines with more ranks may be slower"),
           .fix = "Give every machine the same number of slots in the hostfile, or use --ntasks-per-node."}};
}

Rows CheckLibraries(const Ranks& ranks) {
  const std::string check = "libraries";
  std::set<std::string> names;
  for (const RankFacts& rank : ranks) {
    for (const auto& [name, version] : rank.libraries) names.insert(name);
  }
  Rows rows;
  std::vector<std::string> equal;
  for (const std::string& name : names) {
    std::vector<std::string> versions;
    for (const RankFacts& rank : ranks) {
      const auto it = rank.libraries.find(name);
      versions.push_back(absl::StrCat(name, " ", it == rank.libraries.end() ? "is missing" : it->second));
    }
    // Parts of one MPI or NCCL speak with each other; drivers and the C library do not.
    const bool must = name == "MPI" || name == "NCCL";
    Rows here =
        CompareRanks(check, versions, ranks, must ? PreflightStatus::kFailed : PreflightStatus::kWarning,
                     must ? absl::StrCat("Install the same ", name, " on all machines.")
                          : "Install the same version on all machines: results may differ in their last "
                            "bits, and errors be harder to understand.");
    if (here.size() == 1 && here[0].status == PreflightStatus::kOk) {
      equal.push_back(here[0].finding);
    } else {
      for (PreflightRow& row : here) {
        if (row.status != PreflightStatus::kOk) rows.push_back(std::move(row));
      }
    }
  }
  if (!equal.empty()) rows.insert(rows.begin(), {.check = check, .finding = absl::StrJoin(equal, ", ")});
  return rows;
}

Rows CheckProcessor(const Ranks& ranks, const PreflightNeeds& needs) {
  std::vector<std::string> texts;
  for (const RankFacts& rank : ranks) {
    texts.push_back(absl::StrCat(rank.machine.cpu.empty() ? "unknown model" : rank.machine.cpu, ", ",
                                 rank.machine.simd, ", ", rank.machine.kernel));
  }
  return CompareRanks(
      "processor", texts, ranks, OnGpus(needs) ? PreflightStatus::kNote : PreflightStatus::kWarning,
      "Use machines of one kind: others are waited for, and results have the same bits only where "
      "the processors do.");
}

Rows CheckCores(const Ranks& ranks, const PreflightNeeds& needs) {
  // Cores that the ranks of a machine may use together.
  std::map<std::string, std::set<int64_t>> cores_of;
  for (const RankFacts& rank : ranks) {
    cores_of[rank.host].insert(rank.machine.cores.begin(), rank.machine.cores.end());
  }
  std::vector<RankFinding> findings;
  for (const RankFacts& rank : ranks) {
    const int64_t usable = static_cast<int64_t>(cores_of[rank.host].size());
    const int64_t threads = needs.threads > 0 ? needs.threads : rank.default_threads;
    std::string what = rank.local_size == 1 ? absl::StrCat(Cores(rank.default_threads), " for this rank")
                                            : absl::StrCat(Cores(rank.default_threads), " for each of ",
                                                           rank.local_size, " ranks on this machine");
    if (rank.machine.machine_cores > usable) {
      absl::StrAppend(&what, " (", usable, " of ", rank.machine.machine_cores, " may be used)");
    }
    if (rank.local_size > usable && usable > 0) {
      findings.push_back({.status = PreflightStatus::kWarning,
                          .finding = absl::StrCat(rank.local_size, " ranks share ", Cores(usable),
                                                  " on this machine: they take turns"),
                          .fix = absl::StrCat("Start at most ", RankCount(usable),
                                              " on it; for a small test it is slow, not wrong.")});
    } else if (threads > rank.default_threads) {
      findings.push_back({.status = PreflightStatus::kWarning,
                          .finding = absl::StrCat(what, ", but parallel.threads is ", threads),
                          .fix =
                              "Leave parallel.threads at 0, which takes the cores that there are, or start "
                              "fewer ranks on a machine."});
    } else if (rank.default_threads < 2) {
      findings.push_back(
          {.status = OnGpus(needs) ? PreflightStatus::kWarning : PreflightStatus::kNote,
           .finding = what + "; saving and loading take turns with computing",
           .fix =
               "Give each rank two cores or more: `srun --cpus-per-task=2`, or `mpirun --map-by slot:PE=2`. "
               "A rank that was bound to one core by its launcher is freed with `mpirun --bind-to none`."});
    } else {
      findings.push_back({.finding = what});
    }
  }
  return FoldRanks("cores", findings, HostsOf(ranks));
}

Rows CheckMemory(const Ranks& ranks, const PreflightNeeds& needs) {
  std::vector<RankFinding> findings;
  for (const RankFacts& rank : ranks) {
    const MachineFacts& machine = rank.machine;
    const bool in_group = machine.cgroup_limit_bytes >= 0 &&
                          (machine.memory_bytes < 0 || machine.cgroup_limit_bytes < machine.memory_bytes);
    const int64_t limit = in_group ? machine.cgroup_limit_bytes : machine.memory_bytes;
    const std::string has = in_group ? absl::StrCat("this container or job may use ", BytesText(limit),
                                                    " (memory limit of its control group)")
                                     : absl::StrCat("this machine has ", BytesText(limit));
    const int64_t needed = needs.host_bytes * rank.local_size;
    const std::string needs_text =
        rank.local_size == 1 ? absl::StrCat("the run takes ", BytesText(needed))
                             : absl::StrCat("the run takes ", BytesText(needed), " here (", rank.local_size,
                                            " ranks, ", BytesText(needs.host_bytes), " each)");
    const std::string fix =
        "Take a smaller train.micro_batch, share the weights (parallel.shard or parallel.tensor), or start "
        "fewer "
        "ranks on a machine; `carousel plan` shows what takes how much.";
    if (needed > 0 && limit >= 0 && needed > limit) {
      findings.push_back(
          {.status = PreflightStatus::kFailed,
           .finding = absl::StrCat(needs_text, ", but ", has),
           .fix = in_group ? fix + " Or raise the limit (`--mem` of sbatch, `--memory` of docker)." : fix});
    } else if (needs.host_bytes > 0 && machine.address_bytes >= 0 &&
               machine.address_bytes < needs.host_bytes) {
      findings.push_back(
          {.status = PreflightStatus::kFailed,
           .finding = absl::StrCat("a rank takes ", BytesText(needs.host_bytes), ", but `ulimit -v` allows ",
                                   BytesText(machine.address_bytes)),
           .fix = "Run `ulimit -v unlimited` before the start."});
    } else if (needed > 0 && machine.memory_available_bytes >= 0 && needed > machine.memory_available_bytes) {
      // The figures change while one looks, so they are rounded for ranks of one machine to say the same.
      findings.push_back(
          {.status = PreflightStatus::kWarning,
           .finding = absl::StrFormat("%s, but only %.0f GiB of %s are free now", needs_text,
                                      static_cast<double>(machine.memory_available_bytes) / (1 << 30),
                                      BytesText(machine.memory_bytes)),
           .fix = "End what else runs on this machine. " + fix});
    } else {
      findings.push_back({.finding = needed > 0 ? absl::StrCat(needs_text, "; ", has) : has});
    }
  }
  return FoldRanks("memory", findings, HostsOf(ranks));
}

Rows CheckClocks(const Ranks& ranks) {
  const std::string check = "clocks";
  Rows rows;
  double largest = 0;
  bool any = false;
  for (const RankFacts& rank : ranks) {
    if (!rank.clock_asked || rank.rank == 0) continue;
    any = true;
    // What is certain: the offset is at least this.
    const double offset = std::abs(rank.clock_offset_seconds);
    const double certain = std::max(0.0, offset - rank.clock_uncertainty_seconds);
    largest = std::max(largest, offset);
    if (certain <= kMaxClockOffsetSeconds) continue;
    rows.push_back({.check = check,
                    .status = PreflightStatus::kWarning,
                    .finding = absl::StrFormat(
                        "the clock is %.3f s %s that of rank 0 (%s): times in logs and "
                        "checkpoints of the machines do not agree",
                        offset, rank.clock_offset_seconds > 0 ? "ahead of" : "behind", ranks[0].host),
                    .fix = "Let the machines keep time together (chrony or systemd-timesyncd).",
                    .ranks = {static_cast<int>(rank.rank)},
                    .hosts = {rank.host}});
  }
  if (!any) return {};
  if (rows.empty()) {
    rows.push_back({.check = check, .finding = absl::StrFormat("within %.1f ms of rank 0's", largest * 1e3)});
  }
  return rows;
}
}  // namespace carousel
