// A library with the functions of NVML that describes GPUs which a test makes up (fake_nvml.cc, built as a
// shared library). A test opens it by its path and finds the machine through `fake_nvml_machine`.
#pragma once
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace carousel {

struct FakeGpu {
  std::string name = "NVIDIA H100 80GB HBM3", uuid;
  int lost = 0;  // NVML's result for its handle
  uint64_t memory_total = uint64_t{80} << 30, memory_used = uint64_t{1} << 30;
  unsigned ecc_enabled = 1;
  uint64_t corrected = 0, uncorrected = 0, uncorrected_ever = 0;
  unsigned remapped = 0, remap_pending = 0, remap_failed = 0;
  uint64_t throttle = 0;
  unsigned sm_mhz = 1980, max_sm_mhz = 1980, temperature = 40;
  unsigned power_mw = 100000, power_limit_mw = 700000, default_power_limit_mw = 700000;
  unsigned pcie_width = 16, max_pcie_width = 16;
  unsigned num_processes = 0;
};
struct FakeMachine {
  int init_result = 0;
  std::vector<FakeGpu> gpus;
  // XID messages that the driver will report to whoever has registered: number of the GPU and of the message.
  std::vector<std::pair<size_t, uint64_t>> xids;
  int starts = 0, ends = 0, event_sets = 0;  // calls; sets that are not freed
};
}  // namespace carousel
