// The headers that stand in for NVIDIA's say the same.
#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace carousel {
namespace nvidia_headers {
std::vector<std::pair<std::string, int64_t>> HeaderValues();  // kernels/simt/header_values.cc
}
namespace own_headers {
std::vector<std::pair<std::string, int64_t>> HeaderValues();
}

namespace {
TEST(SimtHeaders, HaveTheValuesAndTypesOfTheRealOnes) {
  const auto real = nvidia_headers::HeaderValues();
  EXPECT_GT(real.size(), 90u);
  EXPECT_EQ(own_headers::HeaderValues(), real);
}
}  // namespace
}  // namespace carousel
