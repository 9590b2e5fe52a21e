// How DeviceOps computes an mLSTM cell: which scan, and how many pieces of the sequence side by side.
#pragma once
#include "kernels/cuda/context.h"
#include "kernels/cuda/mlstm_scan.h"

namespace carousel::CAROUSEL_DEVICE_NS {

struct MlstmConfig {
  bool tensor_cores = false;  // the scan of mlstm_scan.h, else that of mlstm_generic.h
  MlstmSegments segments;  // of the tensor-core scan; the generic one walks through a sequence in one piece
};
// A pure function of its arguments; launches nothing. Every shape has a configuration. A call whose tensors
// cannot be read 16 bytes at a time takes the generic scan whatever this says.
MlstmConfig PickMlstmConfig(const MlstmShape& shape, DType compute, const DeviceInfo& device);

}  // namespace carousel::CAROUSEL_DEVICE_NS
