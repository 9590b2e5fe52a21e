#include "core/model/sequence_choice.h"

#include "core/comm/head_exchange.h"

namespace carousel {

int64_t StateBytes(const MlstmShape& segment, int64_t S, DType compute) {
  return (S - 1) * (MlstmSummaryElems(segment) + MlstmStateGradientElems(segment)) * SizeOf(WideOf(compute));
}

int64_t HeadsBytes(const MlstmShape& segment, int64_t S, DType compute) {
  const MlstmShape& s = segment;
  const int64_t rows = s.B * s.T, qkv = s.NH * (2 * s.DHQK + s.DHV);
  const int64_t in = HeadExchange::BlockBytes(
      S, rows, {{.dtype = WideOf(compute), .width = 2 * s.NH}, {.dtype = compute, .width = qkv}});
  const int64_t out = HeadExchange::BlockBytes(S, rows, {{.dtype = compute, .width = s.NH * s.DHV}});
  return 2 * (S - 1) * (in + out);
}

SequenceMode ChooseSequenceMode(SequenceMode asked, const MlstmShape& segment, int64_t S, DType compute) {
  CAROUSEL_CHECK_GT(S, int64_t{1});
  const bool divides = segment.NH % S == 0;
  CAROUSEL_CHECK_MSG(asked != SequenceMode::kHeads || divides,
                     "the ranks of the sequence axis do not divide the heads");
  if (asked != SequenceMode::kAuto) return asked;
  if (!divides) return SequenceMode::kState;
  return HeadsBytes(segment, S, compute) < StateBytes(segment, S, compute) ? SequenceMode::kHeads
                                                                           : SequenceMode::kState;
}
}  // namespace carousel
