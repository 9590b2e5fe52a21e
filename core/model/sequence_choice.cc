#include "core/model/sequence_choice.h"

namespace carousel {

int64_t StateBytes(const MlstmShape& segment, int64_t S, DType compute) {
  return (S - 1) * (MlstmSummaryElems(segment) + MlstmStateGradientElems(segment)) * SizeOf(WideOf(compute));
}

int64_t HeadsBytes(const MlstmShape& segment, int64_t S, DType compute) {
  const MlstmShape& s = segment;
  const int64_t row = 4 * (s.DHQK + s.DHV) * SizeOf(compute) + 4 * SizeOf(WideOf(compute));
  return s.B * s.T * s.NH * row / S * (S - 1);
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
