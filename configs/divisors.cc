#include "configs/divisors.h"

#include "absl/strings/str_cat.h"

namespace carousel {

std::string NearestDivisors(int64_t n, int64_t wanted) {
  int64_t below = 0, above = 0;
  // Divisors come in pairs (d, n / d) with d <= sqrt(n).
  for (int64_t d = 1; d <= n / d; ++d) {
    if (n % d != 0) continue;
    for (const int64_t divisor : {d, n / d}) {
      if (divisor <= wanted && divisor > below) below = divisor;
      if (divisor >= wanted && (above == 0 || divisor < above)) above = divisor;
    }
  }
  if (below == 0) return absl::StrCat("use ", above);
  if (above == 0) return absl::StrCat("use ", below);
  return absl::StrCat("use ", below, " or ", above);
}

int64_t Gcd(int64_t a, int64_t b) { return b == 0 ? a : Gcd(b, a % b); }
}  // namespace carousel
