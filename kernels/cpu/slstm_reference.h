// The specification of the sLSTM cell: plain loops in the order of the formulas, for every dtype (bf16 is
// converted at loads and stores, everything else is f32). It is what f64 runs, and what the fast code is
// tested against.
//
// Forward: core/ops.h (xLSTM, arXiv:2405.04517, section 2.2). Of the two gates i and f one is 1 and the other
// e^-|d|, d = raw^i - lambda, except that a fresh element has i = 1 and f = min(1, e^-d). Between the passes
// `gates` holds d, sigmoid(-raw^f), z and o in the places of wx.
//
// Backward, t descending; dc, dn, dr (of the recurrence: R^T draw of the token after) begin as dlast:
//   dy   = dy_t + clip(dr)                       (0 instead of clip(dr) with gradient_cut)
//   dc  += dy o / n_t,     dn -= dy o c_t / n_t^2
//   draw^i = i (z dc + dn),                      draw^f = f (c_{t-1} dc + n_{t-1} dn) sigmoid(-raw^f),
//   draw^z = i (1 - z^2) dc,                     draw^o = dy (1 - o) o c_t / n_t
//   dr  = sum_g R^g^T draw^g,    dc *= f,   dn *= f         (all three 0 if a document starts at t)
//   dwx = draw;   dR^g += draw^g y_{t-1}^T, both of the compute type;   db^g += draw^g before it is rounded
// What remains after t = 0 is dinitial.
#pragma once
#include "core/ops.h"
#include "kernels/cpu/thread_pool.h"

namespace carousel::cpu {

int64_t SlstmReferenceWorkspaceBytes(const SlstmShape& shape, DType compute);

// REQUIRES: arguments as in core/ops.h (checked by the caller).
void SlstmReferenceForward(const SlstmForwardArgs& args, ThreadPool& pool);
void SlstmReferenceBackward(const SlstmBackwardArgs& args, ThreadPool& pool);

}  // namespace carousel::cpu
