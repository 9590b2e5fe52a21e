// The specification of the chunkwise mLSTM cell: plain loops in the order of the formulas, for every dtype
// (bf16 is converted at loads and stores, sums are f32). It is what f64 runs, and what the fast code is
// tested against.
//
// One (batch, head) pair, one chunk of tokens t0 .. t0+len-1, local index i, j; (C, n, m) is the state before
// it:
//   F_t  = log sigmoid(f_pre_t)
//   D~ij = sum of F over (j, i] + i_j             j <= i        (i_j = i_pre, or log sigmoid(i_pre) for
//   kSigmoid) b_i  = sum of F over [0, i] m_i  = max(b_i + m, max_j D~ij)                             (0 for
//   kSigmoid) D_ij = exp(D~ij - m_i),  alpha_i = exp(b_i + m - m_i),  S_ij = s (q_i.k_j) D_ij,  s = DHQK^-0.5
//   u_i  = alpha_i s C^T q_i + sum_j S_ij v_j,   a_i = alpha_i s n.q_i + sum_j S_ij
//   N_i  = max(|a_i|, exp(-m_i)),                h_i = u_i / (N_i + eps)
//   C'   = alpha_last C + sum_j w_j k_j v_j^T,   n' alike,   w_j = D_last,j,   m' = m_last
// (xLSTM, arXiv:2405.04517; chunkwise form arXiv:2503.14376. The usual w_j = exp(sum of F after j + i_j - m')
// is the last row of D, because m' and m_last are the maximum of the same numbers.) A reset at token r begins
// a new sequence there: D_ij = 0 for j < r <= i, alpha_i = 0 for i >= r, and the sums and maxima start again
// at r from m = 0, F_r included.
//
// Backward holds every m_i constant: h does not depend on the choice of m except through eps.
//   du_i = dh_i / (N_i + eps),  rho_i = -(dh_i.h_i) / (N_i + eps) sign(a_i) [|a_i| > exp(-m_i)]   (0 for
//   kFrozen) G_ij = D_ij (du_i.v_j + rho_i) dq_i = s sum_j G_ij k_j + s alpha_i (C du_i + rho_i n) dk_j = s
//   sum_i G_ij q_i + w_j (dC' v_j + dn') dv_j = sum_i S_ij du_i + w_j dC'^T k_j dC   = alpha_last dC' + sum_i
//   s alpha_i q_i du_i^T,   dn = alpha_last dn' + sum_i s alpha_i rho_i q_i di_j = k_j.dk_j (times d log
//   sigmoid for kSigmoid) dF_t = sum of (q.dq - k.dk) over t .. end of the chunk or of t's document in it,
//   from dq and dk before they are
//          rounded, + <C',dC'> + <n',dn'> if the document reaches the end of the chunk;  0 where nothing
//          comes before t (a reset; the first token without an initial state);  df_pre_t = dF_t
//          sigmoid(-f_pre_t)
#pragma once
#include "core/ops.h"
#include "kernels/cpu/thread_pool.h"

namespace carousel::cpu {

int64_t MlstmReferenceWorkspaceBytes(const MlstmShape& shape, DType compute);

// As MlstmForward and MlstmBackward in mlstm.h.
void MlstmReferenceForward(const MlstmForwardArgs& args, ThreadPool& pool);
void MlstmReferenceBackward(const MlstmBackwardArgs& args, ThreadPool& pool);

}  // namespace carousel::cpu
