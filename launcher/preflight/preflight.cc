#include "launcher/preflight/preflight.h"

#include <chrono>
#include <memory>
#include <optional>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "core/base/check.h"
#include "core/base/status_exit_code.h"
#include "launcher/launch/suspect_hosts.h"
#include "launcher/preflight/preflight_probes.h"
#include "launcher/preflight/preflight_storage.h"
#include "parallel/local_communicator.h"
#include "parallel/nccl_communicator.h"

namespace carousel {
namespace {

double SteadySeconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}
double UnixSeconds() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

bool IsGpu(const Device& device) { return device.name().rfind("cuda", 0) == 0; }

// Sizes of trials: as large as they must be to mean something, as small as the mode asks for.
MatmulTrial MatmulTrialFor(const Device& device, PreflightMode mode, DType compute) {
  const bool full = mode == PreflightMode::kFull;
  MatmulTrial trial{.dtype = compute, .size = full ? 1024 : 384, .repeats = full ? 8 : 4};
  if (IsGpu(device)) trial.size = full ? 8192 : 4096;
  if (!IsGpu(device) && !device.host_accessible()) trial.size = full ? 128 : 64;  // emulated
  return trial;
}
SumTrial SumTrialFor(const Device& device, PreflightMode mode) {
  const bool full = mode == PreflightMode::kFull;
  SumTrial trial{.num_elems = full ? int64_t{1} << 20 : int64_t{1} << 16, .repeats = full ? 8 : 3};
  if (IsGpu(device) && HasNccl()) trial.num_elems = full ? int64_t{1} << 25 : int64_t{1} << 22;
  return trial;
}

// Which GPU the device is, and the name of its kind.
void NameDevice(const Device& device, const RankFacts& self, DeviceFacts* facts) {
  facts->name = device.name();
  if (device.host_accessible()) {
    facts->threads = self.default_threads;
    facts->kind = absl::StrCat(self.machine.cpu.empty() ? "CPU" : self.machine.cpu, ", ", facts->threads,
                               facts->threads == 1 ? " thread" : " threads");
    return;
  }
  const size_t colon = facts->name.find(':');
  facts->kind = facts->name.substr(0, colon);
  if (!IsGpu(device)) {
    facts->kind = "an emulated GPU";
    return;
  }
  int64_t ordinal = 0;
  if (colon != std::string::npos) (void)absl::SimpleAtoi(facts->name.substr(colon + 1), &ordinal);
  const auto variable = [&](const char* name) {
    const auto it = self.variables.find(name);
    return it == self.variables.end() ? std::string() : it->second;
  };
  const GpuFacts* const gpu =
      VisibleGpu(self.gpus.gpus, ordinal, variable("CUDA_VISIBLE_DEVICES"), variable("CUDA_DEVICE_ORDER"));
  if (gpu == nullptr) return;
  facts->kind = gpu->name;
  facts->uuid = gpu->uuid;
}
}  // namespace

std::vector<std::string> PreflightVariables() {
  return {"CUDA_DEVICE_ORDER",
          "CUDA_VISIBLE_DEVICES",
          "NCCL_SOCKET_IFNAME",
          "OMPI_ALLOW_RUN_AS_ROOT",
          "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM",
          "OMPI_MCA_btl_tcp_if_include",
          "OMPI_MCA_oob_tcp_if_include",
          "OMPI_MCA_rmaps_base_oversubscribe",
          "PATH",
          "SLURM_NTASKS"};
}

PreflightResult RunPreflight(const PreflightOptions& options) {
  const double start = SteadySeconds();
  const auto tell = [&](const char* what) {
    if (options.progress) options.progress(what);
  };
  const bool full = options.mode == PreflightMode::kFull;
  std::unique_ptr<Communicator> alone;
  if (options.world == nullptr) alone = MakeSelfCommunicator();
  Communicator& world = options.world != nullptr ? *options.world : *alone;
  const bool first_of_machine = options.self.local_rank == 0;

  RankFacts mine = options.self;
  tell("reading what the machine says");
  mine.machine = ReadMachineFacts(options.paths);
  mine.libraries = ReadLibraries(options.paths);

  // The driver is asked before and after the trials, which may wake what sleeps.
  std::unique_ptr<NvmlLibrary> nvml;
  if (options.ask_gpus || (options.device != nullptr && IsGpu(*options.device))) {
    tell("asking the GPUs' driver");
    absl::StatusOr<std::unique_ptr<NvmlLibrary>> library = NvmlLibrary::Open(options.nvml_file);
    mine.gpus.asked = true;
    if (library.ok()) {
      nvml = std::move(*library);
      nvml->WatchXids();
      mine.gpus = ReadGpus(*nvml);
    } else {
      mine.gpus.missing = std::string(library.status().message());
    }
  }

  mine.device.error = options.device_error;
  if (options.device != nullptr) {
    tell("multiplying matrices");
    Device& device = *options.device;
    NameDevice(device, mine, &mine.device);
    if (!device.host_accessible()) {
      const MemoryInfo memory = device.memory();
      if (memory.total_bytes > 0) {
        mine.device.memory_total_bytes = memory.total_bytes;
        mine.device.memory_free_bytes = memory.free_bytes;
      }
    }
    // Ranks that share cores are not told slow for having begun later than others.
    world.Barrier();
    TryMatmul(device, MatmulTrialFor(device, options.mode, options.compute), &mine.device);
    if (options.mesh != nullptr) {
      tell("summing over the ranks");
      mine.sums = TrySums(*options.mesh, device, SumTrialFor(device, options.mode));
    }
    if (options.mesh != nullptr && full) {
      tell("trying pairs of machines");
      const int64_t bytes = IsGpu(device) ? int64_t{64} << 20 : int64_t{8} << 20;
      mine.pairs =
          TryPairs(options.mesh->world, device, first_of_machine, bytes, [&](int64_t done, int64_t rounds) {
            if (options.progress) {
              options.progress(absl::StrFormat("trying pairs of machines, round %d of %d", done, rounds));
            }
          });
    }
  }
  if (world.size() > 1) {
    tell("comparing clocks");
    const ClockOffset clock =
        TryClock(world, first_of_machine, options.unix_seconds ? options.unix_seconds : UnixSeconds);
    mine.clock_asked = clock.asked;
    mine.clock_offset_seconds = clock.seconds;
    mine.clock_uncertainty_seconds = clock.uncertainty_seconds;
  }
  if (!options.run_dir.empty()) {
    tell("trying the disk");
    // A look by every rank finds most, and is a storm on a shared disk if there are many.
    constexpr int kMaxLookers = 64;
    mine.storage = TryStorage({.run_dir = options.run_dir,
                               .probe = full || first_of_machine || world.size() <= kMaxLookers,
                               .measure = first_of_machine,
                               .write_bytes = full ? int64_t{256} << 20 : int64_t{4} << 20},
                              world, options.files);
  }
  if (!options.token_files.empty()) tell("comparing token files");
  for (const std::string& prefix : options.token_files) {
    for (const char* const suffix : {".bin", ".idx"}) {
      mine.tokens.push_back(DigestFile(prefix + suffix, options.files));
    }
  }
  if (nvml != nullptr) {
    // Slowdown, heat and messages as they are after the device has worked.
    std::vector<GpuFacts> after = nvml->Gpus();
    nvml->CollectXids(&after);
    mine.gpus.gpus = std::move(after);
  }

  if (options.alter) options.alter(&mine);
  tell("gathering what the ranks found");
  PreflightResult result;
  for (const std::string& text : AllGatherBytes(world, ToText(mine))) {
    absl::StatusOr<RankFacts> facts = ParseRankFacts(text);
    // Only another program can say what this one does not understand; its row is the first of the table.
    if (!facts.ok()) facts = RankFacts{.host = "unknown", .build = std::string(facts.status().message())};
    facts->rank = static_cast<int64_t>(result.ranks.size());
    result.ranks.push_back(*std::move(facts));
  }
  result.rows = JudgeFacts(result.ranks, options.needs);
  result.seconds = SteadySeconds() - start;
  return result;
}

absl::Status PreflightStatusOf(const PreflightResult& result) {
  if (WorstOf(result.rows) != PreflightStatus::kFailed) return absl::OkStatus();
  Rows failed;
  int exit_code = kExitOk;
  for (const PreflightRow& row : result.rows) {
    if (row.status != PreflightStatus::kFailed) continue;
    failed.push_back(row);
    exit_code = CombinedExitCode(exit_code, row.exit_code);
  }
  std::vector<std::string> suspects;
  for (const PreflightRow& row : failed) {
    if (exit_code == kExitHardware) suspects.insert(suspects.end(), row.hosts.begin(), row.hosts.end());
  }
  const absl::Status status = absl::FailedPreconditionError(absl::StrCat(
      "the preflight failed (", CountsText(result.rows), "):\n", FormatPreflightTable(failed, {}),
      "Nothing was started. `carousel doctor` shows all checks, "
      "--preflight=off starts without them."));
  return WithSuspectHosts(WithExitCode(status, exit_code), suspects);
}
}  // namespace carousel
