// A model is bound once and run with any smaller batch: workspaces must not grow when B or T shrink.
#include <gtest/gtest.h>

#include "tests/model_testing.h"

namespace carousel {
namespace {

const int64_t kSequences[] = {1, 2, 3, 8, 17, 64};
const int64_t kTokens[] = {1, 2, 15, 64, 65, 256, 2048};

template <class Bytes>
void ExpectMonotone(const Bytes& bytes) {
  for (const int64_t B : kSequences) {
    for (const int64_t T : kTokens) {
      for (const int64_t smaller_B : kSequences) {
        for (const int64_t smaller_T : kTokens) {
          if (smaller_B > B || smaller_T > T) continue;
          EXPECT_LE(bytes(smaller_B, smaller_T), bytes(B, T))
              << smaller_B << " x " << smaller_T << " in " << B << " x " << T;
        }
      }
    }
  }
}

TEST(Workspace, ASmallerBatchNeedsNoMoreForTheSlstm) {
  const auto device = testing::CpuDevice();
  for (const DType compute : {DType::kF32, DType::kBF16, DType::kF64}) {
    for (const int64_t D : {1, 48, 64, 192, 384, 512}) {
      SCOPED_TRACE(D);
      ExpectMonotone([&](int64_t B, int64_t T) {
        return device->ops().SlstmWorkspaceBytes({.B = B, .T = T, .NH = 4, .D = D}, compute);
      });
    }
  }
}

TEST(Workspace, ASmallerBatchNeedsNoMoreForTheMlstm) {
  const auto device = testing::CpuDevice();
  for (const DType compute : {DType::kF32, DType::kBF16, DType::kF64}) {
    for (const int64_t DHQK : {16, 64, 384}) {
      SCOPED_TRACE(DHQK);
      ExpectMonotone([&](int64_t B, int64_t T) {
        return device->ops().MlstmWorkspaceBytes(
            {.B = B, .T = T, .NH = 4, .DHQK = DHQK, .DHV = 2 * DHQK, .L = 64}, compute);
      });
    }
  }
}
}  // namespace
}  // namespace carousel
