#include "launcher/report/evaluation_report.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace carousel {

std::string FormatEvaluation(const EvaluationReport& r) {
  const char* const target = r.by_length.empty() ? "token" : "answer";
  std::string text = absl::StrFormat("step %d  validation loss %.4f nats/%s", r.step, r.loss, target);
  if (!std::isnan(r.bits_per_byte)) absl::StrAppendFormat(&text, ", %.4f bits/byte", r.bits_per_byte);
  if (!r.by_length.empty()) absl::StrAppendFormat(&text, ", accuracy %.4f", r.accuracy);
  if (r.source_entropy > 0) {
    absl::StrAppendFormat(&text, ", the source's entropy %.4f nats/token %+.2f %%", r.source_entropy,
                          r.excess_percent());
  }
  absl::StrAppendFormat(&text, " (%d %ss, %.1f s)", r.num_targets, target, r.seconds);
  return text;
}

std::string FormatAccuracyTable(const EvaluationReport& r) {
  if (r.by_length.empty()) return "";
  std::string text = absl::StrFormat("accuracy by length of the problem at step %d", r.step);
  if (r.chance > 0) absl::StrAppendFormat(&text, " (always the most frequent answer: %.4f)", r.chance);
  absl::StrAppendFormat(&text, "\n  %11s  %9s  %8s", "length", "answers", "accuracy");
  for (const LengthBucket& b : r.by_length) {
    const std::string lengths =
        b.first == b.last ? absl::StrCat(b.first) : absl::StrCat(b.first, "-", b.last);
    absl::StrAppendFormat(&text, "\n  %11s  %9d  %8.4f", lengths, b.count, b.accuracy());
  }
  absl::StrAppendFormat(&text, "\n  %11s  %9d  %8.4f", "all", r.num_targets, r.accuracy);
  return text;
}
}  // namespace carousel
