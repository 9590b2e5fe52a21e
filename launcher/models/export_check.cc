#include "launcher/models/export_check.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <memory>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "checkpoints/hf_names.h"
#include "core/base/status_macros.h"
#include "launcher/command_device.h"

namespace carousel {
namespace {
constexpr int64_t kCheckTokens = 150;  // more than two chunks of 64
constexpr double kMaxDeltaLogit = 1e-4;

// Weights as a bf16 file holds them.
class RoundedWeights final : public WeightSource {
 public:
  explicit RoundedWeights(const WeightSource& source) : source_(source) {}
  const std::vector<Param>& params() const override { return source_.params(); }
  absl::Status Read(const std::string& name, int64_t begin, int64_t count, DType dtype,
                    void* data) const override {
    std::vector<bfloat16> rounded(static_cast<size_t>(count));
    CAROUSEL_RETURN_IF_ERROR(source_.Read(name, begin, count, DType::kBF16, rounded.data()));
    ConvertElems(dtype, data, DType::kBF16, rounded.data(), count);
    return absl::OkStatus();
  }

 private:
  const WeightSource& source_;
};

// Token ids that visit the vocabulary.
std::vector<int32_t> CheckPrompt(int64_t vocab_size) {
  std::vector<int32_t> ids;
  const int64_t limit = std::min<int64_t>(vocab_size, 256);
  for (int64_t t = 0; t < kCheckTokens; ++t)
    ids.push_back(static_cast<int32_t>((7 + 31 * t + 3 * t * t) % limit));
  return ids;
}

absl::StatusOr<std::vector<float>> CheckLogits(const ModelSpec& spec, const WeightSource& weights,
                                               Device& device) {
  BoundModel model(spec, {.compute = DType::kF32, .B = 1, .T = kCheckTokens}, device);
  if (!model.ok()) {
    return absl::ResourceExhaustedError(
        absl::StrCat(model.NotEnough("comparing logits"), "; --check digests needs next to none"));
  }
  CAROUSEL_RETURN_IF_ERROR(LoadWeights(weights, model));
  return Logits(model, CheckPrompt(spec.vocab_size));
}

double MaxDelta(const std::vector<float>& a, const std::vector<float>& b) {
  double delta = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double d = std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
    if (!(d <= delta)) delta = d;  // also if it is not a number
  }
  return delta;
}

// The number in a file that holds one; the largest if there is none ("max" is no limit).
int64_t NumberIn(const std::string& path) {
  std::ifstream in(path);
  std::string text;
  int64_t number = 0;
  return in >> text && absl::SimpleAtoi(text, &number) ? number : std::numeric_limits<int64_t>::max();
}
}  // namespace

int64_t LogitCheckBytes(const ModelSpec& spec) {
  int64_t largest = 0;
  for (const Param& param : ModelParams(spec)) largest = std::max(largest, param.num_elems);
  const int64_t activations = 64 * kCheckTokens * (spec.embedding_dim + spec.ffn_dim + spec.qk_dim);
  return 4 * (NumParameters(spec) + 3 * largest + 3 * kCheckTokens * spec.vocab_size + activations);
}

int64_t AvailableHostBytes() {
  int64_t available = 0;
  std::ifstream meminfo("/proc/meminfo");
  for (std::string line; std::getline(meminfo, line);) {
    int64_t kib = 0;
    if (!absl::StartsWith(line, "MemAvailable:")) continue;
    const size_t begin = line.find_first_of("0123456789"), end = line.find(' ', begin);
    if (begin != std::string::npos && absl::SimpleAtoi(line.substr(begin, end - begin), &kib)) {
      available = kib << 10;
    }
  }
  // The group of this process and those above it, in the unified hierarchy.
  std::ifstream groups("/proc/self/cgroup");
  for (std::string line; available > 0 && std::getline(groups, line);) {
    if (!absl::StartsWith(line, "0::/")) continue;
    for (std::string group = line.substr(3); !group.empty(); group.resize(group.rfind('/'))) {
      const std::string dir = absl::StrCat("/sys/fs/cgroup", group == "/" ? "" : group);
      const int64_t limit = NumberIn(absl::StrCat(dir, "/memory.max"));
      const int64_t used = NumberIn(absl::StrCat(dir, "/memory.current"));
      if (used < limit && limit < std::numeric_limits<int64_t>::max()) {
        available = std::min(available, limit - used);
      }
    }
  }
  return available;
}

absl::StatusOr<std::string> CompareLogits(const ModelSource& source, const std::string& dir, DType dtype,
                                          int64_t threads) {
  CAROUSEL_ASSIGN_OR_RETURN(const CommandDevice on, MakeCommandDevice("cpu", threads));
  CAROUSEL_ASSIGN_OR_RETURN(const ModelSource exported, OpenModel(dir));
  CAROUSEL_ASSIGN_OR_RETURN(const std::vector<float> theirs,
                            CheckLogits(exported.spec, *exported.weights, *on.device));
  CAROUSEL_ASSIGN_OR_RETURN(const std::vector<float> ours,
                            CheckLogits(source.spec, *source.weights, *on.device));
  double delta = MaxDelta(theirs, ours);
  std::string report = absl::StrFormat(
      "max |delta logit| = %.3g against the model it was made from (%d tokens, f32 arithmetic)\n", delta,
      kCheckTokens);
  if (dtype == DType::kBF16) {
    CAROUSEL_ASSIGN_OR_RETURN(const std::vector<float> rounded,
                              CheckLogits(source.spec, RoundedWeights(*source.weights), *on.device));
    delta = MaxDelta(theirs, rounded);
    absl::StrAppendFormat(
        &report, "max |delta logit| = %.3g against that model with its weights rounded to bf16\n", delta);
  }
  if (delta <= kMaxDeltaLogit) return report;
  return absl::DataLossError(
      absl::StrFormat("what was written does not compute what %s computes: max |delta logit| is %.3g, above "
                      "%g; the directory was removed",
                      source.description, delta, kMaxDeltaLogit));
}
}  // namespace carousel
