// The copies of the mLSTM kernels for one instruction set; with AMX (namespace simd_tiles) bf16 runs on
// matrix tiles.
#include "kernels/cpu/simd/mlstm_kernels.h"

#include "kernels/cpu/simd/mlstm_backward.h"
#include "kernels/cpu/simd/mlstm_forward.h"
#include "kernels/cpu/simd/mlstm_summary.h"
#if defined(__AMX_BF16__)
#include "kernels/cpu/simd/mlstm_tiles.h"
#endif

namespace carousel::cpu::CAROUSEL_SIMD_NS {
namespace {

#if defined(__AMX_BF16__)
using Bf16Engine = TileEngine;
#else
using Bf16Engine = VectorEngine;
#endif

void Forward(const MlstmHeadDims& dims, const MlstmHeadForward& head) {
  if (dims.bf16) {
    MlstmForwardHead<uint16_t, Bf16Engine>(dims, head);
  } else {
    MlstmForwardHead<float, VectorEngine>(dims, head);
  }
}
void Backward(const MlstmHeadDims& dims, const MlstmHeadBackward& head) {
  if (dims.bf16) {
    MlstmBackwardHead<uint16_t, Bf16Engine>(dims, head).Run();
  } else {
    MlstmBackwardHead<float, VectorEngine>(dims, head).Run();
  }
}
void Step(const MlstmHeadDims& dims, const MlstmHeadForward& head) {
  if (dims.bf16) {
    MlstmStepHead<uint16_t>(dims, head);
  } else {
    MlstmStepHead<float>(dims, head);
  }
}
void Summary(const MlstmHeadDims& dims, const MlstmHeadSummary& head) {
  if (dims.bf16) {
    MlstmSummaryHead<uint16_t, Bf16Engine>(dims, head).Run();
  } else {
    MlstmSummaryHead<float, VectorEngine>(dims, head).Run();
  }
}
void SummaryBackward(const MlstmHeadDims& dims, const MlstmHeadSummaryBackward& head) {
  if (dims.bf16) {
    MlstmSummaryBackwardHead<uint16_t, Bf16Engine>(dims, head).Run();
  } else {
    MlstmSummaryBackwardHead<float, VectorEngine>(dims, head).Run();
  }
}
}  // namespace

const MlstmKernels& GetMlstmKernels() {
  static constexpr MlstmKernels kernels = {Forward, Backward, Step, Summary, SummaryBackward};
  return kernels;
}
}  // namespace carousel::cpu::CAROUSEL_SIMD_NS
