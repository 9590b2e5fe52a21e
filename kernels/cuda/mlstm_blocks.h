// Heads too wide for a block of a tensor-core scan to hold its rows of their state: the state is cut into
// square blocks, each of which a scan takes as if it were a head.
//
// A scan is independent in the rows of the state and linear in its columns (mlstm_records.h): a block of
// columns reads its columns of `read` and `upd`, and its scores, which enter as they are, make its out a part
// of a sum over the blocks. So rows only mean more slices, and for columns
//   - out leaves in f32, (column blocks, N, NH * width of the role's rows), and one more kernel adds the
//   parts
//     in order and rounds once; kH's parts are of the numerator and of the normaliser a, and that kernel
//     divides
//   - dots and anchors have more parts
//   - kH's n is a vector of columns, of which every block has its own; the column of the normaliser in kDQ
//     and kDK (addend, n, dn) belongs to block 0, for all others addend is zero.
#pragma once
#include <cstdint>

#include "kernels/cuda/context.h"
#include "kernels/cuda/mlstm_records.h"

namespace carousel::CAROUSEL_DEVICE_NS {

// Rows and columns of a block; 0: these heads are not cut. The largest width that divides both sizes.
constexpr int64_t MlstmBlockWidth(int64_t DHQK, int64_t DHV) {
  if (DHQK <= 0 || DHV <= 0 || (DHQK <= DHV && DHV <= 512)) return 0;  // scans of their own, or none
  for (const int64_t width : {512, 384, 256}) {
    if (DHQK % width == 0 && DHV % width == 0) return width;
  }
  return 0;
}
// Blocks of a head; 1 if it is not cut.
constexpr int64_t NumMlstmBlocks(int64_t DHQK, int64_t DHV) {
  const int64_t width = MlstmBlockWidth(DHQK, DHV);
  return width == 0 ? 1 : (DHQK / width) * (DHV / width);
}
// Blocks of columns of a role.
constexpr int64_t NumMlstmColumnBlocks(MlstmRole role, int64_t DHQK, int64_t DHV) {
  const int64_t width = MlstmBlockWidth(DHQK, DHV);
  const bool rows_are_values = role == MlstmRole::kH || role == MlstmRole::kDV;
  return width == 0 ? 1 : (rows_are_values ? DHQK : DHV) / width;
}
// Elements of MlstmScanArgs::partials that are enough for every role: 0 if the heads are not cut.
constexpr int64_t MlstmPartialElems(int64_t B, int64_t num_tokens, int64_t NH, int64_t DHQK, int64_t DHV) {
  const int64_t width = MlstmBlockWidth(DHQK, DHV);  // the same for rows of keys and of values
  return width == 0 ? 0 : B * num_tokens * NH * DHQK * (DHV / width);
}

// Enqueues what follows a scan of cut heads: out from its parts, and with kH the denominator.
void LaunchMlstmJoin(Context& context, MlstmRole role, const MlstmFastScanArgs& args);

}  // namespace carousel::CAROUSEL_DEVICE_NS
