// The scan of the mLSTM cell for every size, dtype and alignment: plain multiply-adds in the wide type, the
// state in global memory. The same roles and arguments as the tensor-core scan (mlstm_records.h).
#pragma once
#include "kernels/cuda/context.h"
#include "kernels/cuda/mlstm_records.h"

namespace carousel::CAROUSEL_DEVICE_NS {

template <class T>
using MlstmGenericArgs = MlstmScanArgs<T, double>;

// Parts of the state that `dots` is split over.
int64_t MlstmGenericSlices(MlstmRole role, int64_t DHQK, int64_t DHV);

// Elements of the wide type that a scan needs as scratch.
int64_t MlstmGenericScratchElems(int64_t B, int64_t NH, int64_t DHQK, int64_t DHV, int64_t num_segments);

// Enqueues one scan. T: bfloat16, float, double. B * NH * segments > 0; NC == 0 copies the state.
template <class T>
void LaunchMlstmGeneric(Context& context, MlstmRole role, const MlstmGenericArgs<T>& args, Wide<T>* scratch);

}  // namespace carousel::CAROUSEL_DEVICE_NS
