// The chunkwise mLSTM cell on the CPU: entry points called by CpuOps::Mlstm*.
//
// Formulas, shapes and meaning of every member: core/ops.h and mlstm_reference.h. Implementations:
//  - f64: the specification (mlstm_reference.h), plain loops in the order of the paper;
//  - f32 and bf16: blocked vector code (simd/mlstm_*.cc), compiled for several instruction sets; bf16 with T
//  > 1 uses
//    the matrix tiles of the processor (AMX) at level kV4 where it has them.
// Every result is a function of the arguments, the level and the machine alone: the number of threads changes
// nothing, and neither the workspace nor the outputs are read before they are written.
#pragma once
#include "core/ops.h"
#include "kernels/cpu/simd_level.h"
#include "kernels/cpu/thread_pool.h"

namespace carousel::cpu {

// Bytes of scratch that the passes here and in mlstm_summary.h (and the reference) need; one size serves all.
// Grows with the number of (batch, head) pairs only up to a fixed number of concurrent slots. A pure
// function.
int64_t MlstmWorkspaceBytes(const MlstmShape& shape, DType compute);

// REQUIRES: shapes and dtypes as in core/ops.h (checked), workspace of at least MlstmWorkspaceBytes.
// Return when the results are written. The work is spread over (batch, head) pairs. The specification in
// plain loops for every dtype is MlstmReferenceForward and MlstmReferenceBackward in mlstm_reference.h.
void MlstmForward(const MlstmForwardArgs& args, ThreadPool& pool, SimdLevel level);
void MlstmBackward(const MlstmBackwardArgs& args, ThreadPool& pool, SimdLevel level);

// Whether bf16 runs on matrix tiles at this level on this machine. `use_tiles` = false in the two functions
// below keeps to vectors (for tests and comparisons); the functions above use tiles where they can.
bool MlstmTilesAvailable(SimdLevel level);
void MlstmForward(const MlstmForwardArgs& args, ThreadPool& pool, SimdLevel level, bool use_tiles);
void MlstmBackward(const MlstmBackwardArgs& args, ThreadPool& pool, SimdLevel level, bool use_tiles);

}  // namespace carousel::cpu
