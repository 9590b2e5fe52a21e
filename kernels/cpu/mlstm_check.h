// Checks of the arguments of the mLSTM cell: shapes, dtypes, workspace. A violation is a programmer's error.
#pragma once
#include "core/ops.h"

namespace carousel::cpu {

void CheckMlstmForward(const MlstmForwardArgs& args, int64_t workspace_bytes);
void CheckMlstmBackward(const MlstmBackwardArgs& args, int64_t workspace_bytes);
void CheckMlstmSummary(const MlstmSummaryArgs& args, int64_t workspace_bytes);
void CheckMlstmFold(const MlstmFoldArgs& args);
void CheckMlstmSummaryBackward(const MlstmSummaryBackwardArgs& args, int64_t workspace_bytes);
void CheckMlstmFoldBackward(const MlstmFoldBackwardArgs& args);

}  // namespace carousel::cpu
