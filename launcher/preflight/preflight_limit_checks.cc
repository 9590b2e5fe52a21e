// Limits of the processes, shared memory and network interfaces.
#include <arpa/inet.h>

#include <algorithm>
#include <functional>
#include <map>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "launcher/preflight/preflight_checks.h"

namespace carousel {
namespace {

bool OnGpus(const PreflightNeeds& needs) { return needs.device.rfind("cuda", 0) == 0; }

std::string CountText(int64_t count) { return count == kUnlimited ? "unlimited" : absl::StrCat(count); }

// A limit that is enough but lower than on most ranks was probably not meant.
void MarkOutliers(const std::vector<int64_t>& values, const std::function<std::string(int64_t)>& text,
                  const std::string& fix, std::vector<RankFinding>* findings) {
  std::map<int64_t, int> counts;
  for (const int64_t value : values) ++counts[value];
  int64_t usual = values[0];
  for (const auto& [value, count] : counts) {
    if (count > counts[usual]) usual = value;
  }
  for (size_t i = 0; i < values.size(); ++i) {
    RankFinding& mine = (*findings)[i];
    if (values[i] >= usual || values[i] < 0 || mine.status != PreflightStatus::kOk) continue;
    mine = {.status = PreflightStatus::kWarning,
            .finding = absl::StrCat(text(values[i]), "; most ranks: ", text(usual)),
            .fix = fix};
  }
}

// Whether "10.1.0.0/16" holds one of the addresses.
bool HoldsAddress(const std::string& subnet, const std::vector<std::string>& addresses) {
  const std::vector<std::string> parts = absl::StrSplit(subnet, '/');
  int bits = 0;
  in_addr net{};
  if (parts.size() != 2 || !absl::SimpleAtoi(parts[1], &bits) || bits < 0 || bits > 32 ||
      inet_pton(AF_INET, parts[0].c_str(), &net) != 1) {
    return false;
  }
  const uint32_t mask = bits == 0 ? 0 : ~uint32_t{0} << (32 - bits);
  return std::any_of(addresses.begin(), addresses.end(), [&](const std::string& text) {
    in_addr address{};
    return inet_pton(AF_INET, text.c_str(), &address) == 1 &&
           (ntohl(address.s_addr) & mask) == (ntohl(net.s_addr) & mask);
  });
}

std::string UpNames(const std::vector<NetworkInterface>& interfaces) {
  std::vector<std::string> names;
  for (const NetworkInterface& i : interfaces) {
    if (i.up && i.name != "lo") names.push_back(i.name);
  }
  return names.empty() ? "none but lo" : absl::StrJoin(names, ", ");
}

// What is wrong with NAME=value of NCCL_SOCKET_IFNAME (nccl) or of Open MPI's ..._if_include; empty: nothing.
std::string InterfaceProblem(const std::string& value, bool nccl,
                             const std::vector<NetworkInterface>& interfaces) {
  std::string list = value;
  // "^eth" leaves out, which may name what is not there. "=eth0" takes whole names, else begins of names
  // count.
  if (nccl && absl::StartsWith(list, "^")) return "";
  const bool whole = !nccl || absl::StartsWith(list, "=");
  if (nccl && whole) list = list.substr(1);
  std::vector<std::string> absent, down;
  bool one_works = false;
  for (absl::string_view entry : absl::StrSplit(list, ',', absl::SkipEmpty())) {
    // NCCL: "eth0:port".
    const std::string name(nccl ? entry.substr(0, entry.find(':')) : entry);
    bool found = false, up = false;
    for (const NetworkInterface& i : interfaces) {
      const bool matches = absl::StrContains(name, '/') ? HoldsAddress(name, i.addresses)
                           : whole                      ? i.name == name
                                                        : absl::StartsWith(i.name, name);
      found |= matches;
      up |= matches && i.up;
    }
    one_works |= up;
    if (!found) absent.push_back(name);
    if (found && !up) down.push_back(name);
  }
  if (one_works && (nccl || (absent.empty() && down.empty()))) return "";
  std::vector<std::string> problems;
  if (!absent.empty())
    problems.push_back(absl::StrCat(absl::StrJoin(absent, ", "), " is no interface of this machine"));
  if (!down.empty()) problems.push_back(absl::StrCat(absl::StrJoin(down, ", "), " is down"));
  return problems.empty() ? "names no interface" : absl::StrJoin(problems, "; ");
}
}  // namespace

Rows CheckOpenFiles(const Ranks& ranks) {
  const int64_t world = static_cast<int64_t>(ranks.size());
  const int64_t needed = 128 + 2 * world, wanted = std::max<int64_t>(1024, needed + 512);
  const std::string fix =
      "Raise it before the start: `ulimit -n 65536` in the job script, LimitNOFILE= of the service (sshd, "
      "slurmd) "
      "or nofile in /etc/security/limits.conf.";
  std::vector<RankFinding> findings;
  std::vector<int64_t> values;
  const auto text = [](int64_t value) { return absl::StrCat(CountText(value), " allowed"); };
  for (const RankFacts& rank : ranks) {
    const int64_t value = rank.machine.open_files;
    values.push_back(value);
    if (value >= 0 && value < needed) {
      findings.push_back({.status = PreflightStatus::kFailed,
                          .finding = absl::StrCat("only ", text(value), "; ", world,
                                                  world == 1 ? " rank needs " : " ranks need ", needed,
                                                  " for connections and checkpoint files"),
                          .fix = fix});
    } else if (value >= 0 && value < wanted) {
      findings.push_back({.status = PreflightStatus::kWarning,
                          .finding = absl::StrCat("only ", text(value), "; ", wanted, " or more are safe"),
                          .fix = fix});
    } else {
      findings.push_back({.finding = value < 0 ? "unknown" : text(value)});
    }
  }
  MarkOutliers(values, text, fix, &findings);
  return FoldRanks("open files", findings, HostsOf(ranks));
}

Rows CheckLockedMemory(const Ranks& ranks, const PreflightNeeds& needs) {
  constexpr int64_t kEnough = int64_t{1} << 30;
  const std::string fix =
      "Raise it: `ulimit -l unlimited` in the job script, LimitMEMLOCK=infinity of the service (sshd, "
      "slurmd), "
      "memlock in /etc/security/limits.conf, or `--ulimit memlock=-1` of docker.";
  std::vector<RankFinding> findings;
  std::vector<int64_t> values;
  const auto text = [](int64_t value) { return absl::StrCat(BytesText(value), " may be locked"); };
  for (const RankFacts& rank : ranks) {
    const int64_t value = rank.machine.locked_bytes;
    values.push_back(value);
    const bool matters = rank.machine.infiniband || (OnGpus(needs) && ranks.size() > 1);
    if (matters && value >= 0 && value < kEnough) {
      findings.push_back(
          {.status = PreflightStatus::kWarning,
           .finding = absl::StrCat("only ", text(value),
                                   "; InfiniBand and NCCL register their buffers as locked memory and "
                                   "fall back to slow paths, or fail, without it"),
           .fix = fix});
    } else {
      findings.push_back({.finding = value < 0 ? "unknown" : text(value)});
    }
  }
  MarkOutliers(values, text, fix, &findings);
  return FoldRanks("locked memory", findings, HostsOf(ranks));
}

Rows CheckFileSizeLimit(const Ranks& ranks, const PreflightNeeds& needs) {
  // What one rank may have to write into one file: at worst its share of a checkpoint.
  const int64_t share = needs.checkpoint_bytes / static_cast<int64_t>(ranks.size());
  const std::string fix = "Run `ulimit -f unlimited` before the start.";
  std::vector<RankFinding> findings;
  std::vector<int64_t> values;
  const auto text = [](int64_t value) {
    return value == kUnlimited ? "unlimited" : absl::StrCat("files may grow to ", BytesText(value));
  };
  for (const RankFacts& rank : ranks) {
    const int64_t value = rank.machine.file_bytes;
    values.push_back(value);
    if (value >= 0 && share > 0 && value < share) {
      findings.push_back({.status = PreflightStatus::kFailed,
                          .finding = absl::StrCat(
                              text(value), ", but this rank's part of a checkpoint takes ", BytesText(share)),
                          .fix = fix});
    } else if (value >= 0 && value != kUnlimited) {
      findings.push_back(
          {.status = PreflightStatus::kWarning,
           .finding = absl::StrCat(text(value), " only: a save may fail with \"File too large\""),
           .fix = fix});
    } else {
      findings.push_back({.finding = text(value)});
    }
  }
  MarkOutliers(values, text, fix, &findings);
  return FoldRanks("file size", findings, HostsOf(ranks));
}

Rows CheckSharedMemory(const Ranks& ranks, const PreflightNeeds& needs) {
  std::vector<RankFinding> findings;
  for (const RankFacts& rank : ranks) {
    const int64_t per_rank = OnGpus(needs) ? int64_t{256} << 20 : int64_t{16} << 20;
    const int64_t wanted = per_rank * rank.local_size;
    const int64_t free = rank.machine.shm_free_bytes, total = rank.machine.shm_total_bytes;
    if (rank.local_size == 1) {
      findings.push_back({.finding = total < 0 ? "no /dev/shm, and one rank on this machine needs none"
                                               : absl::StrCat("/dev/shm has ", BytesText(total))});
    } else if (total < 0) {
      findings.push_back(
          {.status = PreflightStatus::kWarning,
           .finding = "there is no /dev/shm, through which the ranks of a machine talk fastest",
           .fix = "Mount a tmpfs on /dev/shm (docker: --shm-size=1g or --ipc=host)."});
    } else if (free < wanted) {
      findings.push_back(
          {.status = PreflightStatus::kWarning,
           .finding = absl::StrCat("/dev/shm has less than ", BytesText(wanted), " free of ",
                                   BytesText(total), ", and ", rank.local_size,
                                   " ranks on this machine talk through it: MPI or NCCL may die of a bus "
                                   "error"),
           .fix = "Make it larger (docker: --shm-size=1g or --ipc=host; else mount -o remount,size=1g "
                  "/dev/shm), or remove what fills it."});
    } else {
      findings.push_back({.finding = absl::StrCat("/dev/shm has ", BytesText(total))});
    }
  }
  return FoldRanks("shared memory", findings, HostsOf(ranks));
}

Rows CheckCoreDumps(const Ranks& ranks) {
  std::vector<RankFinding> findings;
  for (const RankFacts& rank : ranks) {
    const MachineFacts& machine = rank.machine;
    if (machine.core_bytes == 0) {
      findings.push_back({.finding = "off; a crash prints its stack trace"});
    } else if (absl::StartsWith(machine.core_pattern, "|")) {
      findings.push_back({.finding = absl::StrCat("given to ", machine.core_pattern.substr(
                                                                   1, machine.core_pattern.find(' ') - 1))});
    } else {
      findings.push_back({.status = PreflightStatus::kNote,
                          .finding = absl::StrCat(
                              "a crash writes the memory of the process, up to ",
                              BytesText(machine.core_bytes), ", to '", machine.core_pattern, "'",
                              absl::StartsWith(machine.core_pattern, "/") ? "" : " in its working directory"),
                          .fix = "If that could fill a disk: `ulimit -c 0` before the start."});
    }
  }
  return FoldRanks("core dumps", findings, HostsOf(ranks));
}

Rows CheckNetwork(const Ranks& ranks) {
  const std::string check = "network";
  const bool several = Distinct(HostsOf(ranks)).size() > 1;
  // An address that two machines have, as those of docker's bridges.
  std::map<std::string, std::set<std::string>> hosts_of;
  for (const RankFacts& rank : ranks) {
    for (const NetworkInterface& i : rank.machine.interfaces) {
      if (!i.up || i.name == "lo") continue;
      for (const std::string& address : i.addresses) {
        if (!absl::StartsWith(address, "fe80:") && !absl::StartsWith(address, "127.") && address != "::1")
          hosts_of[address].insert(rank.host);
      }
    }
  }
  std::vector<RankFinding> findings;
  for (const RankFacts& rank : ranks) {
    const auto& interfaces = rank.machine.interfaces;
    const std::string has = absl::StrCat("interfaces that are up: ", UpNames(interfaces));
    RankFinding mine = {.finding = has};
    bool chosen = false;
    for (const char* const name :
         {"NCCL_SOCKET_IFNAME", "OMPI_MCA_btl_tcp_if_include", "OMPI_MCA_oob_tcp_if_include"}) {
      const auto variable = rank.variables.find(name);
      if (variable == rank.variables.end() || variable->second.empty()) continue;
      chosen = true;
      const std::string problem =
          InterfaceProblem(variable->second, absl::StartsWith(name, "NCCL"), interfaces);
      if (problem.empty()) continue;
      mine = {.status = PreflightStatus::kFailed,
              .finding = absl::StrCat(name, "=", variable->second, ": ", problem, "; ", has),
              .fix = absl::StrCat("Set ", name,
                                  " to an interface that the other machines can reach, or unset it.")};
      break;
    }
    if (mine.status == PreflightStatus::kOk && several && !chosen) {
      for (const NetworkInterface& i : interfaces) {
        for (const std::string& address : i.addresses) {
          const auto hosts = hosts_of.find(address);
          if (!i.up || hosts == hosts_of.end() || hosts->second.size() < 2) continue;
          mine = {
              .status = PreflightStatus::kWarning,
              .finding = absl::StrCat(
                  i.name, " has the address ", address, " on ", hosts->second.size(),
                  " machines: MPI and NCCL may take it for a way from one to the other, and hang"),
              .fix =
                  "Name the interface that joins the machines: `export NCCL_SOCKET_IFNAME=eth0`, and `mpirun "
                  "--mca btl_tcp_if_include eth0 --mca oob_tcp_if_include eth0`."};
        }
      }
    }
    findings.push_back(mine);
  }
  return FoldRanks(check, findings, HostsOf(ranks));
}
}  // namespace carousel
