// NVML, the management library of NVIDIA's driver, loaded when it is asked for.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "launcher/preflight/nvml_api.h"
#include "launcher/preflight/preflight_facts.h"

namespace carousel {

constexpr char kNvmlFile[] = "libnvidia-ml.so.1";

class NvmlLibrary {
 public:
  // Loads and starts the library. `file`: as dlopen takes it. NotFound, with the loader's words, where there
  // is none; FailedPrecondition if it is there but has no driver to talk to, or lacks what every one has.
  static absl::StatusOr<std::unique_ptr<NvmlLibrary>> Open(const std::string& file = kNvmlFile);
  ~NvmlLibrary();
  NvmlLibrary(const NvmlLibrary&) = delete;
  NvmlLibrary& operator=(const NvmlLibrary&) = delete;

  std::string driver_version() const;       // "535.54.03"; empty if it does not say
  std::string cuda_driver_version() const;  // the newest CUDA that the driver knows: "12.2"
  // All GPUs, in the order of their PCI addresses. A GPU that does not answer (it fell off the bus) is there
  // with its number and NVML's words (GpuFacts::error).
  std::vector<GpuFacts> Gpus() const;

  // From now on the driver's XID messages are noted. They cannot be asked for later: NVML keeps none.
  void WatchXids();
  // Those that came since, into the GPUs that they are about. Does not wait.
  void CollectXids(std::vector<GpuFacts>* gpus);

 private:
  NvmlLibrary() = default;

  void* library_ = nullptr;
  bool started_ = false;
  nvml::Functions api_;
  nvml::EventSet events_ = nullptr;
};

// The GPUs of this machine, or why they cannot be listed.
GpusOfMachine ReadGpus(NvmlLibrary& nvml);

// Which of the machine's GPUs the CUDA runtime calls device `ordinal`, given the variables
// CUDA_VISIBLE_DEVICES
// (`visible`; empty: unset) and CUDA_DEVICE_ORDER. Null where that cannot be known: the runtime sorts GPUs of
// different models by speed unless the order is PCI_BUS_ID; or where there is no such device.
const GpuFacts* VisibleGpu(const std::vector<GpuFacts>& gpus, int64_t ordinal, const std::string& visible,
                           const std::string& device_order);
// The state of each GPU now, a line each, for the record of a hang.
std::string DescribeGpus(const std::vector<GpuFacts>& gpus);
// The state of every GPU in a line, for the record of a hang. Empty for none.
std::string DescribeGpus(const std::vector<GpuFacts>& gpus);

// "power cap, hardware slowdown"; empty for none. Bits that are no slowdown (idle, clocks set by the user)
// are left out.
std::string ThrottleText(int64_t reasons);
}  // namespace carousel
