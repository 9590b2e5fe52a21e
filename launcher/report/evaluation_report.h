// What an evaluation found, for people: the line when it is done, the table at the end of the run.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "core/train/accuracy.h"

namespace carousel {

struct EvaluationReport {
  int64_t step = 0;  // finished steps
  double loss = 0;   // nats per target
  int64_t num_targets = 0;
  double accuracy = 0;       // share of the targets that had the largest logit
  double bits_per_byte = 0;  // NaN where a token is not a byte
  // Of the source that wrote the data, nats per token: the least mean loss there is. 0: not known.
  double source_entropy = 0;
  // A task's answers by the length of their problem; empty for text.
  std::vector<LengthBucket> by_length = {};
  double chance = 0;   // accuracy of the most frequent answer; 0: not known
  double seconds = 0;  // that the evaluation took
  // How far the loss is above the entropy, in percent of it. REQUIRES: source_entropy > 0.
  double excess_percent() const { return 100 * (loss / source_entropy - 1); }
};

// "step 500  validation loss 0.1234 nats/answer, accuracy 0.9532 (1820 answers, 3.1 s)".
std::string FormatEvaluation(const EvaluationReport& report);
// One row per bucket of lengths and one for all; empty without lengths. No line break at the end.
std::string FormatAccuracyTable(const EvaluationReport& report);
}  // namespace carousel
