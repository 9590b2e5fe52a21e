// a_t and dh_t.h_t of mlstm_normalizer.h for any size, dtype and alignment: what the gradient of a segment's
// initial state needs of the normaliser (core/ops.h: MlstmSummaryBackward). Unlike the role kDelta of the
// generic scan it has no matrix state and needs no values.
#pragma once
#include "kernels/cuda/context.h"
#include "kernels/cuda/mlstm_records.h"

namespace carousel::CAROUSEL_DEVICE_NS {

template <class T>
struct MlstmPlainNormalizerArgs {
  using W = Wide<T>;
  int64_t B = 0, num_tokens = 0, NH = 0, DHQK = 0, DHV = 0, NC = 0;
  MlstmRows<const T> q, k, h, dh;
  const MlstmRecord<double, W>* records = nullptr;  // forward records
  const W* gamma = nullptr;                         // (B * NH, NC)
  const W* initial_n = nullptr;                     // (B * NH, DHQK), optional: 0
  W* n = nullptr;                                   // (B * NH, NC, DHQK) scratch
  W* a = nullptr;                                   // (B * NH, NC * kMlstmChunk) out: the signed normaliser
  W* dots = nullptr;                                // (B * NH, NC * kMlstmChunk) out: dh.h
};
// T: bfloat16, float, double. B * NH * NC > 0.
template <class T>
void LaunchMlstmPlainNormalizer(Context& context, const MlstmPlainNormalizerArgs<T>& args);

}  // namespace carousel::CAROUSEL_DEVICE_NS
