#include "launcher/preflight/nvml_library.h"

#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "launcher/preflight/preflight_checks.h"

namespace carousel {
namespace {
constexpr unsigned kTextBytes = 128;  // longer than any name, UUID or version of NVML
constexpr unsigned kMaxGpus = 1024;
constexpr int kMaxEvents = 1000;

template <class Function>
bool Find(void* library, const char* name, Function* function) {
  *function = reinterpret_cast<Function>(dlsym(library, name));
  return *function != nullptr;
}

// What a getter of one number says; -1 if it is missing or fails.
template <class Number, class Function, class... Args>
int64_t Ask(Function function, Args... args) {
  Number value = 0;
  if (function == nullptr || function(args..., &value) != nvml::kSuccess) return -1;
  return static_cast<int64_t>(value);
}
template <class Function, class... Args>
std::string AskText(Function function, Args... args) {
  std::array<char, kTextBytes> text{};
  if (function == nullptr || function(args..., text.data(), kTextBytes) != nvml::kSuccess) return "";
  text.back() = '\0';
  return text.data();
}
}  // namespace

absl::StatusOr<std::unique_ptr<NvmlLibrary>> NvmlLibrary::Open(const std::string& file) {
  std::unique_ptr<NvmlLibrary> self(new NvmlLibrary());
  self->library_ = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (self->library_ == nullptr) {
    const char* const why = dlerror();
    return absl::NotFoundError(why != nullptr ? why : absl::StrCat(file, " cannot be loaded"));
  }
  nvml::Functions& api = self->api_;
  void* const library = self->library_;
  std::vector<std::string> missing;
  const auto need = [&](const char* name, auto* function) {
    if (!Find(library, name, function)) missing.emplace_back(name);
  };
  need("nvmlInit_v2", &api.Init);
  need("nvmlShutdown", &api.Shutdown);
  need("nvmlErrorString", &api.ErrorString);
  need("nvmlDeviceGetCount_v2", &api.GetCount);
  need("nvmlDeviceGetHandleByIndex_v2", &api.GetHandleByIndex);
  if (!missing.empty()) {
    return absl::FailedPreconditionError(absl::StrCat(file, " has no ", absl::StrJoin(missing, ", ")));
  }
  Find(library, "nvmlSystemGetDriverVersion", &api.SystemGetDriverVersion);
  Find(library, "nvmlSystemGetCudaDriverVersion_v2", &api.SystemGetCudaDriverVersion);
  Find(library, "nvmlDeviceGetName", &api.GetName);
  Find(library, "nvmlDeviceGetUUID", &api.GetUuid);
  Find(library, "nvmlDeviceGetPciInfo_v3", &api.GetPciInfo);
  Find(library, "nvmlDeviceGetMemoryInfo", &api.GetMemoryInfo);
  Find(library, "nvmlDeviceGetEccMode", &api.GetEccMode);
  Find(library, "nvmlDeviceGetTotalEccErrors", &api.GetTotalEccErrors);
  Find(library, "nvmlDeviceGetRemappedRows", &api.GetRemappedRows);
  // Newer drivers have a second name for it, and may drop the first.
  if (!Find(library, "nvmlDeviceGetCurrentClocksThrottleReasons", &api.GetThrottleReasons)) {
    Find(library, "nvmlDeviceGetCurrentClocksEventReasons", &api.GetThrottleReasons);
  }
  Find(library, "nvmlDeviceGetClockInfo", &api.GetClockInfo);
  Find(library, "nvmlDeviceGetMaxClockInfo", &api.GetMaxClockInfo);
  Find(library, "nvmlDeviceGetTemperature", &api.GetTemperature);
  Find(library, "nvmlDeviceGetPowerUsage", &api.GetPowerUsage);
  Find(library, "nvmlDeviceGetEnforcedPowerLimit", &api.GetEnforcedPowerLimit);
  Find(library, "nvmlDeviceGetPowerManagementDefaultLimit", &api.GetDefaultPowerLimit);
  Find(library, "nvmlDeviceGetCurrPcieLinkWidth", &api.GetPcieWidth);
  Find(library, "nvmlDeviceGetMaxPcieLinkWidth", &api.GetMaxPcieWidth);
  Find(library, "nvmlDeviceGetPersistenceMode", &api.GetPersistenceMode);
  Find(library, "nvmlDeviceGetComputeRunningProcesses_v3", &api.GetComputeProcesses);
  Find(library, "nvmlEventSetCreate", &api.EventSetCreate);
  Find(library, "nvmlDeviceRegisterEvents", &api.RegisterEvents);
  Find(library, "nvmlEventSetWait_v2", &api.EventSetWait);
  Find(library, "nvmlEventSetFree", &api.EventSetFree);
  if (const nvml::Result result = api.Init(); result != nvml::kSuccess) {
    return absl::FailedPreconditionError(absl::StrCat(file, " does not start: ", api.ErrorString(result)));
  }
  self->started_ = true;
  return self;
}

NvmlLibrary::~NvmlLibrary() {
  if (events_ != nullptr && api_.EventSetFree != nullptr) api_.EventSetFree(events_);
  if (started_) api_.Shutdown();
  if (library_ != nullptr) dlclose(library_);
}

std::string NvmlLibrary::driver_version() const { return AskText(api_.SystemGetDriverVersion); }

std::string NvmlLibrary::cuda_driver_version() const {
  const int64_t version = Ask<int>(api_.SystemGetCudaDriverVersion);
  return version < 0 ? "" : absl::StrCat(version / 1000, ".", version / 10 % 100);
}

std::vector<GpuFacts> NvmlLibrary::Gpus() const {
  std::vector<GpuFacts> gpus;
  unsigned count = 0;
  if (api_.GetCount(&count) != nvml::kSuccess) return gpus;
  for (unsigned index = 0; index < std::min(count, kMaxGpus); ++index) {
    GpuFacts gpu{.index = index};
    nvml::Device device = nullptr;
    if (const nvml::Result result = api_.GetHandleByIndex(index, &device); result != nvml::kSuccess) {
      gpu.error = api_.ErrorString(result);
      gpus.push_back(gpu);
      continue;
    }
    gpu.name = AskText(api_.GetName, device);
    gpu.uuid = AskText(api_.GetUuid, device);
    nvml::PciInfo pci{};
    if (api_.GetPciInfo != nullptr && api_.GetPciInfo(device, &pci) == nvml::kSuccess) {
      pci.bus_id[sizeof(pci.bus_id) - 1] = '\0';
      gpu.bus_id = pci.bus_id;
    }
    nvml::Memory memory{};
    if (api_.GetMemoryInfo != nullptr && api_.GetMemoryInfo(device, &memory) == nvml::kSuccess) {
      gpu.memory_total_bytes = static_cast<int64_t>(memory.total);
      gpu.memory_used_bytes = static_cast<int64_t>(memory.used);
    }
    unsigned enabled = 0, pending = 0;
    if (api_.GetEccMode != nullptr && api_.GetEccMode(device, &enabled, &pending) == nvml::kSuccess) {
      gpu.ecc_enabled = enabled != 0;
    }
    const auto errors = [&](unsigned type, unsigned counter) {
      return Ask<unsigned long long>(api_.GetTotalEccErrors, device, type, counter);
    };
    gpu.ecc_corrected = errors(nvml::kCorrected, nvml::kVolatile);
    gpu.ecc_uncorrected = errors(nvml::kUncorrected, nvml::kVolatile);
    gpu.ecc_uncorrected_ever = errors(nvml::kUncorrected, nvml::kAggregate);
    unsigned corrected = 0, uncorrected = 0, remap_pending = 0, remap_failed = 0;
    if (api_.GetRemappedRows != nullptr &&
        api_.GetRemappedRows(device, &corrected, &uncorrected, &remap_pending, &remap_failed) ==
            nvml::kSuccess) {
      gpu.rows_remapped = static_cast<int64_t>(corrected) + uncorrected;
      gpu.remap_pending = remap_pending != 0;
      gpu.remap_failed = remap_failed != 0;
    }
    gpu.throttle_reasons = Ask<unsigned long long>(api_.GetThrottleReasons, device);
    gpu.sm_mhz = Ask<unsigned>(api_.GetClockInfo, device, nvml::kClockSm);
    gpu.max_sm_mhz = Ask<unsigned>(api_.GetMaxClockInfo, device, nvml::kClockSm);
    gpu.temperature_c = Ask<unsigned>(api_.GetTemperature, device, nvml::kTemperatureGpu);
    gpu.power_mw = Ask<unsigned>(api_.GetPowerUsage, device);
    gpu.power_limit_mw = Ask<unsigned>(api_.GetEnforcedPowerLimit, device);
    gpu.default_power_limit_mw = Ask<unsigned>(api_.GetDefaultPowerLimit, device);
    gpu.pcie_width = Ask<unsigned>(api_.GetPcieWidth, device);
    gpu.max_pcie_width = Ask<unsigned>(api_.GetMaxPcieWidth, device);
    gpu.persistence = Ask<unsigned>(api_.GetPersistenceMode, device);
    if (api_.GetComputeProcesses != nullptr) {
      std::vector<nvml::ProcessInfo> processes(256);
      unsigned num_processes = static_cast<unsigned>(processes.size());
      if (api_.GetComputeProcesses(device, &num_processes, processes.data()) == nvml::kSuccess) {
        gpu.num_processes = num_processes;
      }
    }
    gpus.push_back(gpu);
  }
  return gpus;
}

void NvmlLibrary::WatchXids() {
  if (api_.EventSetCreate == nullptr || api_.RegisterEvents == nullptr || api_.EventSetWait == nullptr)
    return;
  if (events_ != nullptr || api_.EventSetCreate(&events_) != nvml::kSuccess) return;
  unsigned count = 0;
  if (api_.GetCount(&count) != nvml::kSuccess) return;
  for (unsigned index = 0; index < std::min(count, kMaxGpus); ++index) {
    nvml::Device device = nullptr;
    // A GPU that offers no events is not watched.
    if (api_.GetHandleByIndex(index, &device) == nvml::kSuccess) {
      api_.RegisterEvents(device, nvml::kEventXid, events_);
    }
  }
}

void NvmlLibrary::CollectXids(std::vector<GpuFacts>* gpus) {
  if (events_ == nullptr) return;
  for (int i = 0; i < kMaxEvents; ++i) {
    nvml::EventData event{};
    if (api_.EventSetWait(events_, &event, /*timeout_ms=*/0) != nvml::kSuccess) return;
    if ((event.type & nvml::kEventXid) == 0) continue;
    const std::string uuid = AskText(api_.GetUuid, event.device);
    for (GpuFacts& gpu : *gpus) {
      if (!uuid.empty() && gpu.uuid == uuid) gpu.xids.push_back(static_cast<int64_t>(event.data));
    }
  }
}

GpusOfMachine ReadGpus(NvmlLibrary& nvml) {
  return {.asked = true,
          .missing = {},
          .driver = nvml.driver_version(),
          .cuda_driver = nvml.cuda_driver_version(),
          .gpus = nvml.Gpus()};
}

const GpuFacts* VisibleGpu(const std::vector<GpuFacts>& gpus, int64_t ordinal, const std::string& visible,
                           const std::string& device_order) {
  const bool one_model =
      std::all_of(gpus.begin(), gpus.end(), [&](const GpuFacts& gpu) { return gpu.name == gpus[0].name; });
  const bool in_pci_order = one_model || device_order == "PCI_BUS_ID";
  std::vector<const GpuFacts*> seen;
  if (visible.empty()) {
    if (!in_pci_order) return nullptr;
    for (const GpuFacts& gpu : gpus) seen.push_back(&gpu);
  }
  // The list ends at the first entry that names no GPU, as for the runtime.
  for (const absl::string_view entry : absl::StrSplit(visible, ',', absl::SkipEmpty())) {
    const std::string name(absl::StripAsciiWhitespace(entry));
    int64_t index = 0;
    const GpuFacts* found = nullptr;
    if (absl::SimpleAtoi(name, &index)) {
      if (!in_pci_order) return nullptr;
      if (index >= 0 && index < static_cast<int64_t>(gpus.size())) found = &gpus[static_cast<size_t>(index)];
    } else {
      const auto gpu = std::find_if(gpus.begin(), gpus.end(), [&](const GpuFacts& candidate) {
        return !name.empty() && absl::StartsWith(candidate.uuid, name);
      });
      if (gpu != gpus.end()) found = &*gpu;
    }
    if (found == nullptr) break;
    seen.push_back(found);
  }
  if (ordinal < 0 || ordinal >= static_cast<int64_t>(seen.size())) return nullptr;
  return seen[static_cast<size_t>(ordinal)];
}

std::string DescribeGpus(const std::vector<GpuFacts>& gpus) {
  std::string text = gpus.empty() ? "" : "GPUs of this machine:\n";
  for (const GpuFacts& gpu : gpus) {
    absl::StrAppend(&text, "  GPU ", gpu.index, gpu.uuid.empty() ? "" : absl::StrCat(" (", gpu.uuid, ")"),
                    ": ");
    if (!gpu.error.empty()) {
      absl::StrAppend(&text, "does not answer: ", gpu.error, "\n");
      continue;
    }
    std::vector<std::string> parts;
    const auto add = [&](int64_t value, const std::string& what) {
      if (value >= 0) parts.push_back(what);
    };
    add(gpu.memory_used_bytes,
        absl::StrCat(BytesText(gpu.memory_used_bytes), " of ", BytesText(gpu.memory_total_bytes), " in use"));
    add(gpu.sm_mhz, absl::StrCat(gpu.sm_mhz, " MHz"));
    add(gpu.temperature_c, absl::StrCat(gpu.temperature_c, " C"));
    add(gpu.power_mw, absl::StrCat(gpu.power_mw / 1000, " W"));
    add(gpu.ecc_uncorrected, absl::StrCat(gpu.ecc_uncorrected, " uncorrected memory errors"));
    if (gpu.remap_pending == 1) parts.push_back("a row of memory waits to be replaced");
    if (gpu.remap_failed == 1) parts.push_back("a row of memory could not be replaced");
    const std::string slow = ThrottleText(gpu.throttle_reasons);
    if (!slow.empty()) parts.push_back(absl::StrCat("slowed down: ", slow));
    absl::StrAppend(&text, absl::StrJoin(parts, ", "), "\n");
  }
  return text;
}

std::string ThrottleText(int64_t reasons) {
  if (reasons < 0) return "";
  const std::pair<uint64_t, const char*> kReasons[] = {
      {nvml::kThrottlePowerCap, "power cap"},
      {nvml::kThrottleHardware, "hardware slowdown"},
      {nvml::kThrottleSyncBoost, "sync boost group"},
      {nvml::kThrottleSoftwareThermal, "temperature (software)"},
      {nvml::kThrottleHardwareThermal, "temperature (hardware)"},
      {nvml::kThrottlePowerBrake, "power brake of the power supply"}};
  std::vector<std::string> texts;
  for (const auto& [bit, text] : kReasons) {
    if ((static_cast<uint64_t>(reasons) & bit) != 0) texts.emplace_back(text);
  }
  return absl::StrJoin(texts, ", ");
}
}  // namespace carousel
