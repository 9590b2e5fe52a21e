// The few functions of NVIDIA's management library (NVML) that the preflight calls, declared here because the
// library comes with the driver and is loaded at run time (nvml_library.h): a program that is built without
// any NVIDIA file can still ask it. Names, types and numbers: NVML API Reference Manual, driver 535 and
// later; the functions with a version in their names keep their layout for ever.
#pragma once
#include <cstddef>
#include <cstdint>

namespace carousel::nvml {

struct DeviceHandle;  // opaque
using Device = DeviceHandle*;
struct EventSetHandle;  // opaque
using EventSet = EventSetHandle*;

using Result = int;
constexpr Result kSuccess = 0;
constexpr Result kNotSupported = 3;
constexpr Result kTimeout = 10;

struct PciInfo {  // nvmlPciInfo_t
  char bus_id_legacy[16];
  unsigned domain, bus, device;
  unsigned pci_device_id, pci_subsystem_id;
  char bus_id[32];
};
static_assert(sizeof(PciInfo) == 68);
struct Memory {  // nvmlMemory_t
  unsigned long long total, free, used;
};
struct EventData {  // nvmlEventData_t
  Device device;
  unsigned long long type, data;
  unsigned gpu_instance, compute_instance;
};
static_assert(sizeof(EventData) == 32);
struct ProcessInfo {  // nvmlProcessInfo_v2_t, of nvmlDeviceGetComputeRunningProcesses_v3
  unsigned pid;
  unsigned long long used_memory;
  unsigned gpu_instance, compute_instance;
};
static_assert(sizeof(ProcessInfo) == 24);

constexpr unsigned kCorrected = 0, kUncorrected = 1;  // nvmlMemoryErrorType_t
constexpr unsigned kVolatile = 0, kAggregate = 1;  // nvmlEccCounterType_t: since the driver was loaded, ever
constexpr unsigned kClockSm = 1;                   // nvmlClockType_t
constexpr unsigned kTemperatureGpu = 0;            // nvmlTemperatureSensors_t
constexpr unsigned long long kEventXid = 8;        // nvmlEventTypeXidCriticalError

// Bits of nvmlDeviceGetCurrentClocksThrottleReasons.
constexpr uint64_t kThrottleIdle = 0x1, kThrottleApplicationClocks = 0x2, kThrottlePowerCap = 0x4,
                   kThrottleHardware = 0x8, kThrottleSyncBoost = 0x10, kThrottleSoftwareThermal = 0x20,
                   kThrottleHardwareThermal = 0x40, kThrottlePowerBrake = 0x80, kThrottleDisplay = 0x100;

// One member for each function, filled in by name. Null: this driver has none of that name.
struct Functions {
  // What every driver has.
  Result (*Init)() = nullptr;
  Result (*Shutdown)() = nullptr;
  const char* (*ErrorString)(Result) = nullptr;
  Result (*GetCount)(unsigned* count) = nullptr;
  Result (*GetHandleByIndex)(unsigned index, Device* device) = nullptr;
  // What it may lack.
  Result (*SystemGetDriverVersion)(char* version, unsigned length) = nullptr;
  Result (*SystemGetCudaDriverVersion)(int* version) = nullptr;
  Result (*GetName)(Device, char* name, unsigned length) = nullptr;
  Result (*GetUuid)(Device, char* uuid, unsigned length) = nullptr;
  Result (*GetPciInfo)(Device, PciInfo*) = nullptr;
  Result (*GetMemoryInfo)(Device, Memory*) = nullptr;
  Result (*GetEccMode)(Device, unsigned* current, unsigned* pending) = nullptr;
  Result (*GetTotalEccErrors)(Device, unsigned type, unsigned counter, unsigned long long* count) = nullptr;
  Result (*GetRemappedRows)(Device, unsigned* corrected, unsigned* uncorrected, unsigned* pending,
                            unsigned* failed) = nullptr;
  Result (*GetThrottleReasons)(Device, unsigned long long* reasons) = nullptr;
  Result (*GetClockInfo)(Device, unsigned type, unsigned* mhz) = nullptr;
  Result (*GetMaxClockInfo)(Device, unsigned type, unsigned* mhz) = nullptr;
  Result (*GetTemperature)(Device, unsigned sensor, unsigned* celsius) = nullptr;
  Result (*GetPowerUsage)(Device, unsigned* milliwatts) = nullptr;
  Result (*GetEnforcedPowerLimit)(Device, unsigned* milliwatts) = nullptr;
  Result (*GetDefaultPowerLimit)(Device, unsigned* milliwatts) = nullptr;
  Result (*GetPcieWidth)(Device, unsigned* lanes) = nullptr;
  Result (*GetMaxPcieWidth)(Device, unsigned* lanes) = nullptr;
  Result (*GetPersistenceMode)(Device, unsigned* mode) = nullptr;
  Result (*GetComputeProcesses)(Device, unsigned* count, ProcessInfo*) = nullptr;
  Result (*EventSetCreate)(EventSet*) = nullptr;
  Result (*RegisterEvents)(Device, unsigned long long types, EventSet) = nullptr;
  Result (*EventSetWait)(EventSet, EventData*, unsigned timeout_ms) = nullptr;
  Result (*EventSetFree)(EventSet) = nullptr;
};
}  // namespace carousel::nvml
