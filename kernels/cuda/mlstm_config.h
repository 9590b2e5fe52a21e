// How DeviceOps computes an mLSTM cell: which scan, and how many pieces of the sequence side by side.
#pragma once
#include "kernels/cuda/context.h"
#include "kernels/cuda/mlstm_scan.h"
#include "kernels/cuda/mlstm_scan_sm90.h"

namespace carousel::CAROUSEL_DEVICE_NS {

// Scans of the shipped configs in bf16, by head widths DHQK/DHV (f32 and f64 take the generic scan):
//
//   tensor cores   64/64    demo_paper             192/384  xlstm_830m
//                  64/128   xlstm_165m             256/512  xlstm_1b4, xlstm_2b7, xlstm_7b, xlstm_7b_7to1
//                  128/128  bench_paper_1to1       384/384  paper_125m, paper_125m_7to1
//                  128/256  xlstm_400m             512/512  paper_350m, paper_350m_7to1
//   in blocks      768/768 of 384    paper_760m, paper_760m_7to1
//                  1024/1024 of 512  paper_1b3, paper_1b3_7to1
//                  1280/1280 of 256  paper_2b7
//   generic        32/64    bench_step, demo_bytes 96/192   bench_checkpoint
//
// Above 512 columns a warp cannot hold its part of the state in registers: there the state is cut into
// blocks, and so is every other head whose sizes are multiples of a block's (mlstm_blocks.h).
struct MlstmConfig {
  bool tensor_cores = false;  // the scan of mlstm_scan.h, else that of mlstm_generic.h
  bool sm90 = false;          // and of its roles those of mlstm_scan_sm90.h, where TMA can write `out`
  // and of those, which are one: heads of 64/64, 64/128 and 128/128
  MlstmSm90Joined sm90_joined = MlstmSm90Joined::kNone;
  MlstmSegments segments;  // of the tensor-core scan; the generic one walks through a sequence in one piece
};
// A pure function of its arguments; launches nothing. Every shape has a configuration. A call whose tensors
// cannot be read 16 bytes at a time takes the generic scan whatever this says.
MlstmConfig PickMlstmConfig(const MlstmShape& shape, DType compute, const DeviceInfo& device);

}  // namespace carousel::CAROUSEL_DEVICE_NS
