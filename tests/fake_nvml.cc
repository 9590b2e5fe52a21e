#include "tests/fake_nvml.h"

#include <cstdio>
#include <cstring>

#include "launcher/preflight/nvml_api.h"

namespace {
using carousel::FakeGpu;
using carousel::FakeMachine;
using carousel::nvml::Device;
using carousel::nvml::EventData;
using carousel::nvml::EventSet;
using carousel::nvml::Memory;
using carousel::nvml::PciInfo;
using carousel::nvml::ProcessInfo;
using carousel::nvml::Result;
constexpr Result kInvalidArgument = 2, kInsufficientSize = 7;

FakeMachine& Machine() {
  static FakeMachine& machine = *new FakeMachine();
  return machine;
}
// A handle is the number of the GPU plus one.
size_t IndexOf(Device device) { return reinterpret_cast<size_t>(device) - 1; }
FakeGpu& Gpu(Device device) { return Machine().gpus.at(IndexOf(device)); }
Result Give(unsigned* out, unsigned value) {
  *out = value;
  return 0;
}
Result GiveText(char* out, unsigned length, const std::string& text) {
  if (length <= text.size()) return kInsufficientSize;
  std::memcpy(out, text.c_str(), text.size() + 1);
  return 0;
}
bool registered = false;
}  // namespace

extern "C" {
FakeMachine* fake_nvml_machine() { return &Machine(); }

Result nvmlInit_v2() {
  ++Machine().starts;
  return Machine().init_result;
}
Result nvmlShutdown() {
  ++Machine().ends;
  return 0;
}
const char* nvmlErrorString(Result result) {
  return result == 15 ? "GPU is lost" : result == 9 ? "Driver Not Loaded" : "Unknown Error";
}
Result nvmlDeviceGetCount_v2(unsigned* count) {
  return Give(count, static_cast<unsigned>(Machine().gpus.size()));
}
Result nvmlDeviceGetHandleByIndex_v2(unsigned index, Device* device) {
  if (index >= Machine().gpus.size()) return kInvalidArgument;
  *device = reinterpret_cast<Device>(static_cast<size_t>(index) + 1);
  return Machine().gpus[index].lost;
}
Result nvmlSystemGetDriverVersion(char* version, unsigned length) {
  return GiveText(version, length, "550.54.15");
}
Result nvmlSystemGetCudaDriverVersion_v2(int* version) {
  *version = 12040;
  return 0;
}
Result nvmlDeviceGetName(Device device, char* name, unsigned length) {
  return GiveText(name, length, Gpu(device).name);
}
Result nvmlDeviceGetUUID(Device device, char* uuid, unsigned length) {
  return GiveText(uuid, length, Gpu(device).uuid);
}
Result nvmlDeviceGetPciInfo_v3(Device device, PciInfo* info) {
  std::memset(info, 0, sizeof(*info));
  std::snprintf(info->bus_id, sizeof(info->bus_id), "00000000:%02X:00.0",
                static_cast<unsigned>(IndexOf(device) + 1));
  return 0;
}
Result nvmlDeviceGetMemoryInfo(Device device, Memory* memory) {
  memory->total = Gpu(device).memory_total;
  memory->used = Gpu(device).memory_used;
  memory->free = memory->total - memory->used;
  return 0;
}
Result nvmlDeviceGetEccMode(Device device, unsigned* current, unsigned* pending) {
  *pending = 1;
  return Give(current, Gpu(device).ecc_enabled);
}
Result nvmlDeviceGetTotalEccErrors(Device device, unsigned type, unsigned counter,
                                   unsigned long long* count) {
  const FakeGpu& gpu = Gpu(device);
  *count = type == 0 ? gpu.corrected : counter == 0 ? gpu.uncorrected : gpu.uncorrected_ever;
  return 0;
}
Result nvmlDeviceGetRemappedRows(Device device, unsigned* corrected, unsigned* uncorrected, unsigned* pending,
                                 unsigned* failed) {
  const FakeGpu& gpu = Gpu(device);
  *corrected = 0;
  *uncorrected = gpu.remapped;
  *pending = gpu.remap_pending;
  return Give(failed, gpu.remap_failed);
}
Result nvmlDeviceGetCurrentClocksThrottleReasons(Device device, unsigned long long* reasons) {
  *reasons = Gpu(device).throttle;
  return 0;
}
Result nvmlDeviceGetClockInfo(Device device, unsigned, unsigned* mhz) {
  return Give(mhz, Gpu(device).sm_mhz);
}
Result nvmlDeviceGetMaxClockInfo(Device device, unsigned, unsigned* mhz) {
  return Give(mhz, Gpu(device).max_sm_mhz);
}
Result nvmlDeviceGetTemperature(Device device, unsigned, unsigned* celsius) {
  return Give(celsius, Gpu(device).temperature);
}
Result nvmlDeviceGetPowerUsage(Device device, unsigned* mw) { return Give(mw, Gpu(device).power_mw); }
Result nvmlDeviceGetEnforcedPowerLimit(Device device, unsigned* mw) {
  return Give(mw, Gpu(device).power_limit_mw);
}
Result nvmlDeviceGetPowerManagementDefaultLimit(Device device, unsigned* mw) {
  return Give(mw, Gpu(device).default_power_limit_mw);
}
Result nvmlDeviceGetCurrPcieLinkWidth(Device device, unsigned* lanes) {
  return Give(lanes, Gpu(device).pcie_width);
}
Result nvmlDeviceGetMaxPcieLinkWidth(Device device, unsigned* lanes) {
  return Give(lanes, Gpu(device).max_pcie_width);
}
// As where it is not supported.
Result nvmlDeviceGetPersistenceMode(Device, unsigned*) { return carousel::nvml::kNotSupported; }
Result nvmlDeviceGetComputeRunningProcesses_v3(Device device, unsigned* count, ProcessInfo*) {
  return Give(count, Gpu(device).num_processes);
}
Result nvmlEventSetCreate(EventSet* set) {
  ++Machine().event_sets;
  *set = reinterpret_cast<EventSet>(1);
  return 0;
}
Result nvmlDeviceRegisterEvents(Device, unsigned long long types, EventSet) {
  registered = types == carousel::nvml::kEventXid;
  return 0;
}
Result nvmlEventSetWait_v2(EventSet, EventData* event, unsigned) {
  if (!registered || Machine().xids.empty()) return carousel::nvml::kTimeout;
  const auto [index, number] = Machine().xids.front();
  Machine().xids.erase(Machine().xids.begin());
  *event = {.device = reinterpret_cast<Device>(index + 1),
            .type = carousel::nvml::kEventXid,
            .data = number,
            .gpu_instance = 0,
            .compute_instance = 0};
  return 0;
}
Result nvmlEventSetFree(EventSet) {
  --Machine().event_sets;
  return 0;
}
}  // extern "C"
