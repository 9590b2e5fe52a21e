// Initial values: f(seed, name, element), so that any rank can compute any range alone and every mesh starts
// from the same bits.
#include <cmath>

#include "core/base/random.h"
#include "core/model/param_store.h"

namespace carousel {
namespace {

// One counter gives four standard normals: two Box-Muller pairs from four 32-bit uniforms. The first of a
// pair lies in (0, 1), so that the logarithm is finite; |z| <= 6.8.
void FourNormals(uint64_t seed, uint64_t stream, uint64_t index, double out[4]) {
  const auto bits = RandomBits(seed, stream, index);
  for (int pair = 0; pair < 2; ++pair) {
    const double u = (static_cast<double>(bits[static_cast<size_t>(2 * pair)]) + 0.5) * 0x1.0p-32;
    const double angle =
        static_cast<double>(bits[static_cast<size_t>(2 * pair + 1)]) * (6.283185307179586476925 * 0x1.0p-32);
    const double radius = std::sqrt(-2 * std::log(u));
    out[2 * pair] = radius * std::cos(angle);
    out[2 * pair + 1] = radius * std::sin(angle);
  }
}

void FillNormal(uint64_t seed, uint64_t stream, double mean, double deviation, int64_t begin, int64_t count,
                double* out) {
  double four[4];
  for (int64_t j = 0; j < count; ++j) {
    const int64_t element = begin + j;
    if (j == 0 || element % 4 == 0) FourNormals(seed, stream, static_cast<uint64_t>(element / 4), four);
    out[j] = mean + deviation * four[element % 4];
  }
}
}  // namespace

void InitialValues(const Param& param, uint64_t seed, int64_t begin, int64_t count, double* out) {
  CAROUSEL_CHECK(begin >= 0 && count >= 0 && begin + count <= param.num_elems);
  const ParamInit& init = param.init;
  if (init.rule == InitRule::kNormal) {
    return FillNormal(seed, StreamOf(param.name), init.b, init.a, begin, count, out);
  }
  const int64_t period = init.period > 0 ? init.period : param.num_elems;
  for (int64_t j = 0; j < count; ++j) {
    const int64_t element = begin + j;
    // 0 at the first element of a period, 1 at the last.
    const double place =
        period == 1 ? 0 : static_cast<double>(element % period) / static_cast<double>(period - 1);
    switch (init.rule) {
      case InitRule::kZero:
        out[j] = 0;
        break;
      case InitRule::kOne:
        out[j] = 1;
        break;
      case InitRule::kConstant:
        out[j] = init.a;
        break;
      case InitRule::kUniform:
        out[j] = init.a * (2 * RandomUniform(seed, StreamOf(param.name), static_cast<uint64_t>(element)) - 1);
        break;
      case InitRule::kLinspace:
        out[j] = init.a + (init.b - init.a) * place;
        break;
      case InitRule::kForgetPowerLaw:
        out[j] = 5 - 12 * std::pow(place, init.a);
        break;
      case InitRule::kNormal:
        break;  // above
    }
  }
}
}  // namespace carousel
