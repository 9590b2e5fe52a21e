// Checks of the arguments of the sLSTM op: shapes, dtypes, memory.
#pragma once
#include "core/ops.h"

namespace carousel::cpu {
// Abort with the name of the member that is wrong. workspace_bytes: what the caller needs.
void CheckSlstmShape(const SlstmShape& shape, DType compute);
void CheckSlstmForward(const SlstmForwardArgs& args, int64_t workspace_bytes);
void CheckSlstmBackward(const SlstmBackwardArgs& args, int64_t workspace_bytes);
}  // namespace carousel::cpu
