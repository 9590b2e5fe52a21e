// Divisors, for messages that name the nearest value that would do.
#pragma once
#include <cstdint>
#include <string>

namespace carousel {

// "use 2 or 4": the nearest divisors of n below and above `wanted`. REQUIRES: n, wanted >= 1.
std::string NearestDivisors(int64_t n, int64_t wanted);
int64_t Gcd(int64_t a, int64_t b);
}  // namespace carousel
