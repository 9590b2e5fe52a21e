#include "kernels/cpu/simd_level.h"

namespace carousel::cpu {

SimdLevel DetectSimdLevel() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                  __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") &&
                  __builtin_cpu_supports("f16c") && __builtin_cpu_supports("lzcnt") &&
                  __builtin_cpu_supports("movbe");
  const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vl");
  if (v4) return SimdLevel::kV4;
  if (v3) return SimdLevel::kV3;
#endif
  return SimdLevel::kBase;
}

const char* NameOf(SimdLevel level) {
  switch (level) {
    case SimdLevel::kBase:
      return "base";
    case SimdLevel::kV3:
      return "x86-64-v3";
    case SimdLevel::kV4:
      return "x86-64-v4";
  }
  return "?";
}
}  // namespace carousel::cpu
