// One (batch, head) pair's part of a segment's summary and of a gradient of states, as core/ops.h lays them
// out.
#pragma once
#include "kernels/cpu/mlstm_internal.h"

namespace carousel::cpu {

template <class W>
struct SummaryViews {  // W may be const
  SummaryViews(W* summary, const MlstmShape& s, int64_t b, int64_t head) {
    const int64_t pairs = s.B * s.NH, pair = b * s.NH + head;
    W* const n = summary + pairs * s.DHQK * s.DHV;
    W* const m = n + pairs * s.DHQK;
    state = {summary + pair * s.DHQK * s.DHV, n + pair * s.DHQK, m + pair};
    G = m + pairs + pair;
  }
  HeadState<W> state;
  W* G;
};
// m is null.
template <class W>
HeadState<W> StateGradientOf(W* dstate, const MlstmShape& s, int64_t b, int64_t head) {
  const int64_t pairs = s.B * s.NH, pair = b * s.NH + head;
  return {dstate + pair * s.DHQK * s.DHV, dstate + pairs * s.DHQK * s.DHV + pair * s.DHQK, nullptr};
}
}  // namespace carousel::cpu
