#include "launcher/plan/device_peak.h"

#include "absl/strings/ascii.h"

namespace carousel {
namespace {
// Whether `part` stands in the name as words of its own: an "RTX A1000" is no A100.
bool Names(const std::string& name, const std::string& part) {
  for (size_t at = name.find(part); at != std::string::npos; at = name.find(part, at + 1)) {
    const size_t end = at + part.size();
    if ((at == 0 || !absl::ascii_isalnum(static_cast<unsigned char>(name[at - 1]))) &&
        (end == name.size() || !absl::ascii_isalnum(static_cast<unsigned char>(name[end])))) {
      return true;
    }
  }
  return false;
}
}  // namespace

double PeakFlops(const std::string& device_name, DType compute) {
  if (compute != DType::kBF16) return 0;
  struct Peak {
    const char* part;  // of the name as the driver gives it
    double flops;
  };
  // The special before the general: "H100 PCIe" is not an "H100 80GB HBM3".
  constexpr Peak kPeaks[] = {
      {"GB200", 2500e12},   {"B200", 2250e12},     {"GH200", 989e12},    {"H200 NVL", 835e12},
      {"H200", 989e12},     {"H100 PCIe", 756e12}, {"H100 NVL", 835e12}, {"H100", 989e12},
      {"H800", 989e12},     {"H20", 148e12},       {"A100", 312e12},     {"A800", 312e12},
      {"A30", 165e12},      {"A40", 149.7e12},     {"A10G", 70e12},      {"A10", 125e12},
      {"L40S", 362e12},     {"L40", 181e12},       {"L4", 121e12},       {"RTX A6000", 154.8e12},
      {"RTX 4090", 165e12}, {"RTX 3090", 71e12},
  };
  for (const Peak& peak : kPeaks) {
    if (Names(device_name, peak.part)) return peak.flops;
  }
  return 0;
}
}  // namespace carousel
