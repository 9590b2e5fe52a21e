// What the backward of the tensor-core scan needs of the normaliser and nobody keeps: its value with its
// sign, and dh.h. bf16 alone; the generic scan's role kDelta gives both with the precision of its sums.
#pragma once
#include "kernels/cuda/context.h"
#include "kernels/cuda/mlstm_records.h"

namespace carousel::CAROUSEL_DEVICE_NS {

struct MlstmNormalizerArgs {
  int64_t B = 0, num_tokens = 0, NH = 0, DHQK = 0, DHV = 0, NC = 0;
  MlstmRows<const bfloat16> q, k, h, dh;     // 16-byte rows (MlstmScanSupports)
  const MlstmFastRecord* records = nullptr;  // forward records
  const float* gamma = nullptr;              // (B * NH, NC)
  const float* initial_n = nullptr;          // (B * NH, DHQK), optional: 0
  float* n = nullptr;                        // (B * NH, NC, DHQK) scratch
  float* a = nullptr;                        // (B * NH, NC * kMlstmChunk) out: the signed normaliser
  float* dots = nullptr;                     // (B * NH, NC * kMlstmChunk) out: dh.h
};
// REQUIRES: DHQK a multiple of 32; DHV a multiple of 8; B * NH * NC > 0.
void LaunchMlstmNormalizer(Context& context, const MlstmNormalizerArgs& args);

}  // namespace carousel::CAROUSEL_DEVICE_NS
