// The mLSTM cell over segments of a sequence on the CPU (core/ops.h: MlstmSummary .. MlstmFoldBackward):
// entry points called by CpuOps. f64 runs the specification, plain loops over tokens; f32 and bf16 run
// simd/mlstm_summary.h. Results do not depend on the number of threads.
#pragma once
#include "core/ops.h"
#include "kernels/cpu/simd_level.h"
#include "kernels/cpu/thread_pool.h"

namespace carousel::cpu {

// Work is spread over (batch, head) pairs. use_tiles: bf16 on matrix tiles where there are any.
void MlstmSummary(const MlstmSummaryArgs& args, ThreadPool& pool, SimdLevel level, bool use_tiles);
void MlstmSummaryBackward(const MlstmSummaryBackwardArgs& args, ThreadPool& pool, SimdLevel level,
                          bool use_tiles);
// The specification, for every dtype (bf16 is converted at loads, sums are f32).
void MlstmReferenceSummary(const MlstmSummaryArgs& args, ThreadPool& pool);
void MlstmReferenceSummaryBackward(const MlstmSummaryBackwardArgs& args, ThreadPool& pool);

// Work is spread over blocks of elements of the state.
void MlstmFold(const MlstmFoldArgs& args, ThreadPool& pool);
void MlstmFoldBackward(const MlstmFoldBackwardArgs& args, ThreadPool& pool);

}  // namespace carousel::cpu
