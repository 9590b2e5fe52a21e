// GPUs, as the driver's management library describes them.
#include <algorithm>
#include <functional>
#include <map>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "launcher/preflight/nvml_library.h"
#include "launcher/preflight/preflight_checks.h"

namespace carousel {
namespace {

bool OnGpus(const PreflightNeeds& needs) { return needs.device.rfind("cuda", 0) == 0; }

// Those that a rank of the machine computes on, if that is known; else all of the machine, told by its first
// rank that asked.
struct UsedGpu {
  const RankFacts* rank = nullptr;
  const GpuFacts* gpu = nullptr;
};
std::vector<UsedGpu> UsedGpus(const Ranks& ranks) {
  std::vector<UsedGpu> used;
  std::set<std::string> told;
  for (const RankFacts& rank : ranks) {
    for (const GpuFacts& gpu : rank.gpus.gpus) {
      if (gpu.error.empty() && !rank.device.uuid.empty() && gpu.uuid == rank.device.uuid)
        used.push_back({.rank = &rank, .gpu = &gpu});
    }
    if (!rank.device.uuid.empty() || !told.insert(rank.host).second) continue;
    const bool host_knows = std::any_of(ranks.begin(), ranks.end(), [&](const RankFacts& other) {
      return other.host == rank.host && !other.device.uuid.empty();
    });
    if (host_knows) continue;
    for (const GpuFacts& gpu : rank.gpus.gpus) {
      if (gpu.error.empty()) used.push_back({.rank = &rank, .gpu = &gpu});
    }
  }
  return used;
}

std::string Name(const GpuFacts& gpu) {
  return absl::StrCat("GPU ", gpu.index, gpu.uuid.empty() ? "" : absl::StrCat(" (", gpu.uuid, ")"));
}

// A row for each GPU with something to say, else one that says what is fine. No GPUs: no rows.
Rows JudgeGpus(const std::string& check, const Ranks& ranks, const std::string& fine,
               const std::function<RankFinding(const GpuFacts&)>& judge) {
  const std::vector<UsedGpu> used = UsedGpus(ranks);
  if (used.empty()) return {};
  Rows rows;
  for (const UsedGpu& it : used) {
    RankFinding finding = judge(*it.gpu);
    if (finding.status == PreflightStatus::kOk) continue;
    rows.push_back({.check = check,
                    .status = finding.status,
                    .finding = absl::StrCat(Name(*it.gpu), ": ", finding.finding),
                    .fix = finding.fix,
                    .ranks = {static_cast<int>(it.rank->rank)},
                    .hosts = {it.rank->host}});
  }
  if (rows.empty()) rows.push_back({.check = check, .finding = fine});
  return rows;
}
}  // namespace

Rows CheckGpus(const Ranks& ranks, const PreflightNeeds& needs) {
  const std::string check = "GPUs";
  std::vector<RankFinding> findings;
  bool asked = false;
  for (const RankFacts& rank : ranks) {
    const GpusOfMachine& machine = rank.gpus;
    asked |= machine.asked;
    if (!machine.asked) {
      findings.push_back(
          {.status = PreflightStatus::kSkipped, .finding = "not asked for: the ranks compute on CPUs"});
      continue;
    }
    if (!machine.missing.empty()) {
      RankFinding finding = {.status = PreflightStatus::kSkipped,
                             .finding = absl::StrCat("no NVIDIA driver answers: ", machine.missing)};
      if (OnGpus(needs)) {
        finding.status = PreflightStatus::kWarning;
        finding.finding = absl::StrCat("their health cannot be asked: ", machine.missing);
        finding.fix =
            "Install the NVIDIA driver's libnvidia-ml.so.1; in a container, start it with the NVIDIA runtime "
            "and the "
            "capability \"utility\" (NVIDIA_DRIVER_CAPABILITIES=compute,utility).";
      }
      findings.push_back(finding);
      continue;
    }
    std::map<std::string, int> names;
    for (const GpuFacts& gpu : machine.gpus) {
      if (gpu.error.empty()) ++names[gpu.name];
    }
    std::vector<std::string> parts;
    for (const auto& [name, count] : names) parts.push_back(absl::StrCat(count, " x ", name));
    const std::string what =
        absl::StrCat(parts.empty() ? "none" : absl::StrJoin(parts, ", "),
                     machine.driver.empty() ? "" : absl::StrCat(", driver ", machine.driver),
                     machine.cuda_driver.empty() ? "" : absl::StrCat(" for CUDA ", machine.cuda_driver));
    std::vector<std::string> dead;
    for (const GpuFacts& gpu : machine.gpus) {
      if (!gpu.error.empty())
        dead.push_back(absl::StrCat("GPU ", gpu.index, " does not answer: ", gpu.error));
    }
    int64_t alive = static_cast<int64_t>(machine.gpus.size() - dead.size());
    if (!dead.empty()) {
      findings.push_back(
          {.status = PreflightStatus::kFailed,
           .finding = absl::StrCat(absl::StrJoin(dead, "; "), " (the others: ", what, ")"),
           .fix = "Take this machine out and restart it; `dmesg | grep -i xid` says what happened."});
    } else if (needs.device == "cuda" && rank.local_size > alive && !needs.ranks_may_share_gpu) {
      findings.push_back(
          {.status = PreflightStatus::kFailed,
           .finding = absl::StrCat(rank.local_size, " ranks on this machine, which has ", what),
           .fix = absl::StrCat("Start one rank for each GPU: at most ", alive, " here.")});
    } else if (needs.device == "cuda" && rank.local_size < alive) {
      findings.push_back({.status = PreflightStatus::kNote,
                          .finding = absl::StrCat(what, "; ", alive - rank.local_size, " of them stay idle"),
                          .fix = absl::StrCat("Start ", alive, " ranks on each machine to use them all.")});
    } else {
      findings.push_back({.finding = what});
    }
  }
  return asked ? FoldRanks(check, findings, HostsOf(ranks)) : Rows{};
}

Rows CheckGpuSharing(const Ranks& ranks, const PreflightNeeds& needs) {
  const std::string check = "a GPU each";
  std::map<std::string, std::vector<const RankFacts*>> users;
  for (const RankFacts& rank : ranks) {
    if (!rank.device.uuid.empty()) users[rank.device.uuid].push_back(&rank);
  }
  if (users.empty()) return {};
  Rows rows;
  for (const auto& [uuid, sharing] : users) {
    if (sharing.size() > 1) {
      PreflightRow row = {
          .check = check,
          .status = needs.ranks_may_share_gpu ? PreflightStatus::kNote : PreflightStatus::kFailed,
          .finding = absl::StrCat("compute on one GPU, ", uuid),
          .fix =
              "Start one rank for each GPU, and show every rank all GPUs of its machine or only "
              "its own (CUDA_VISIBLE_DEVICES)."};
      for (const RankFacts* rank : sharing) {
        row.ranks.push_back(static_cast<int>(rank->rank));
        row.hosts.push_back(rank->host);
      }
      row.hosts = Distinct(row.hosts);
      rows.push_back(std::move(row));
      continue;
    }
    for (const GpuFacts& gpu : sharing[0]->gpus.gpus) {
      if (gpu.uuid != uuid || gpu.num_processes <= 1) continue;
      rows.push_back(
          {.check = check,
           .status = PreflightStatus::kWarning,
           .finding = absl::StrCat(
               Name(gpu), ": ", gpu.num_processes - 1,
               gpu.num_processes == 2 ? " other process computes" : " other processes compute", " on it, ",
               BytesText(gpu.memory_used_bytes), " of ", BytesText(gpu.memory_total_bytes), " are taken"),
           .fix = "`nvidia-smi` names the processes; end those that a former job left behind.",
           .ranks = {static_cast<int>(sharing[0]->rank)},
           .hosts = {sharing[0]->host}});
    }
  }
  if (rows.empty()) rows.push_back({.check = check, .finding = "every rank has a GPU of its own"});
  return rows;
}

Rows CheckGpuMemoryErrors(const Ranks& ranks) {
  constexpr int64_t kManyCorrected = 1000;
  return JudgeGpus(
      "GPU memory (ECC)", ranks, "no uncorrected errors since the driver was loaded",
      [](const GpuFacts& gpu) {
        if (gpu.ecc_uncorrected > 0) {
          return RankFinding{
              .status = PreflightStatus::kFailed,
              .finding =
                  absl::StrCat(gpu.ecc_uncorrected, " uncorrected memory errors since the driver was loaded"),
              .fix =
                  "Reset the GPU (`nvidia-smi --gpu-reset`) or restart the machine; if errors come back, "
                  "have the GPU replaced."};
        }
        if (gpu.ecc_enabled == 0) {
          return RankFinding{
              .status = PreflightStatus::kWarning,
              .finding = "error correction is switched off: a flipped bit changes results unseen",
              .fix = "Switch it on: `nvidia-smi --ecc-config=1`, then restart the machine."};
        }
        if (gpu.ecc_corrected >= kManyCorrected) {
          return RankFinding{.status = PreflightStatus::kWarning,
                             .finding = absl::StrCat(gpu.ecc_corrected,
                                                     " corrected memory errors since the driver was loaded"),
                             .fix = "Watch it; many corrected errors come before uncorrected ones."};
        }
        if (gpu.ecc_uncorrected_ever > 0) {
          return RankFinding{.status = PreflightStatus::kNote,
                             .finding = absl::StrCat(gpu.ecc_uncorrected_ever,
                                                     " uncorrected memory errors in its life, none "
                                                     "since the driver was loaded")};
        }
        return RankFinding{};
      });
}

Rows CheckGpuRowRemapping(const Ranks& ranks) {
  return JudgeGpus("GPU row remapping", ranks, "nothing pending, no failure", [](const GpuFacts& gpu) {
    if (gpu.remap_failed == 1) {
      return RankFinding{.status = PreflightStatus::kFailed,
                         .finding = "a broken row of its memory could not be replaced by a spare one",
                         .fix = "Have the GPU replaced; until then start without this machine."};
    }
    if (gpu.remap_pending == 1) {
      return RankFinding{
          .status = PreflightStatus::kWarning,
          .finding = "a broken row of its memory waits to be replaced by a spare one",
          .fix = "Reset the GPU (`nvidia-smi --gpu-reset`) or restart the machine before a long run."};
    }
    if (gpu.rows_remapped > 0) {
      return RankFinding{
          .status = PreflightStatus::kNote,
          .finding = absl::StrCat(gpu.rows_remapped, " rows of its memory were replaced by spare ones")};
    }
    return RankFinding{};
  });
}

Rows CheckGpuThrottling(const Ranks& ranks) {
  constexpr uint64_t kBad = nvml::kThrottleHardware | nvml::kThrottleHardwareThermal |
                            nvml::kThrottlePowerBrake | nvml::kThrottleSoftwareThermal;
  return JudgeGpus("GPU throttling", ranks, "none", [](const GpuFacts& gpu) {
    const std::string why = ThrottleText(gpu.throttle_reasons);
    if (why.empty()) return RankFinding{};
    const std::string now = gpu.sm_mhz >= 0 && gpu.max_sm_mhz > 0
                                ? absl::StrCat(", ", gpu.sm_mhz, " of ", gpu.max_sm_mhz, " MHz")
                                : "";
    const std::string warm = gpu.temperature_c >= 0 ? absl::StrCat(", ", gpu.temperature_c, " C") : "";
    if ((static_cast<uint64_t>(gpu.throttle_reasons) & kBad) != 0) {
      return RankFinding{
          .status = PreflightStatus::kWarning,
          .finding = absl::StrCat("slowed down: ", why, now, warm),
          .fix =
              "Look after cooling and power of this machine (`nvidia-smi -q -d PERFORMANCE`): all ranks "
              "wait for the slowest."};
    }
    return RankFinding{.status = PreflightStatus::kNote,
                       .finding = absl::StrCat("slowed down: ", why, now, warm)};
  });
}

Rows CheckGpuPower(const Ranks& ranks) {
  constexpr int64_t kHot = 85;
  // The clock that most GPUs of a model may reach.
  std::map<std::string, std::vector<double>> clocks;
  for (const UsedGpu& it : UsedGpus(ranks)) {
    if (it.gpu->max_sm_mhz > 0) clocks[it.gpu->name].push_back(static_cast<double>(it.gpu->max_sm_mhz));
  }
  return JudgeGpus(
      "GPU clocks and power", ranks, "limits as delivered, none is hot", [&](const GpuFacts& gpu) {
        if (gpu.power_limit_mw > 0 && gpu.default_power_limit_mw > 0 &&
            gpu.power_limit_mw < gpu.default_power_limit_mw) {
          return RankFinding{
              .status = PreflightStatus::kWarning,
              .finding = absl::StrFormat("limited to %.0f W, as delivered %.0f W",
                                         static_cast<double>(gpu.power_limit_mw) * 1e-3,
                                         static_cast<double>(gpu.default_power_limit_mw) * 1e-3),
              .fix = absl::StrFormat("If that was not meant: `nvidia-smi --power-limit=%.0f`.",
                                     static_cast<double>(gpu.default_power_limit_mw) * 1e-3)};
        }
        if (gpu.max_sm_mhz > 0 &&
            static_cast<double>(gpu.max_sm_mhz) < kSlowShare * MedianOf(clocks[gpu.name])) {
          return RankFinding{
              .status = PreflightStatus::kWarning,
              .finding = absl::StrFormat("its clock ends at %d MHz, that of the others at %.0f MHz",
                                         gpu.max_sm_mhz, MedianOf(clocks[gpu.name])),
              .fix = "If that was not meant: `nvidia-smi --reset-gpu-clocks`."};
        }
        if (gpu.temperature_c >= kHot) {
          return RankFinding{.status = PreflightStatus::kWarning,
                             .finding = absl::StrCat(gpu.temperature_c, " C before the run has begun"),
                             .fix = "Look after the cooling of this machine."};
        }
        return RankFinding{};
      });
}

Rows CheckGpuLink(const Ranks& ranks) {
  return JudgeGpus("GPU link (PCIe)", ranks, "as wide as it can be", [](const GpuFacts& gpu) {
    if (gpu.pcie_width <= 0 || gpu.max_pcie_width <= 0 || gpu.pcie_width >= gpu.max_pcie_width)
      return RankFinding{};
    return RankFinding{
        .status = PreflightStatus::kWarning,
        .finding = absl::StrCat(gpu.pcie_width, " of ", gpu.max_pcie_width, " lanes work"),
        .fix = "Restart the machine; if it stays, have the GPU put into its slot anew or replaced."};
  });
}

Rows CheckGpuXids(const Ranks& ranks) {
  return JudgeGpus("GPU errors (XID)", ranks, "none while the checks ran", [](const GpuFacts& gpu) {
    if (gpu.xids.empty()) return RankFinding{};
    return RankFinding{
        .status = PreflightStatus::kFailed,
        .finding =
            absl::StrCat("the driver reported XID ", absl::StrJoin(gpu.xids, ", "), " while the checks ran"),
        .fix =
            "Look the number up under \"XID errors\" in NVIDIA's documentation (`dmesg | grep -i xid` has "
            "the driver's words), and start without this machine."};
  });
}
}  // namespace carousel
