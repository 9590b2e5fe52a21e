// Text from a Markov source of exactly known entropy. Each letter depends on the `order` letters before it:
// of the alphabet in an order of its own for each such context, letter k (from 0) follows with a probability
// proportional to 1 / (k + 1)^2. The probabilities are the same numbers in every context, so the entropy of
// the next letter is one closed sum, whatever the stationary distribution:
//   entropy = -sum_k p_k log p_k    nats per letter: no model can do better in the mean.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace carousel {

struct MarkovSpec {
  int64_t num_letters = 16;  // of "abc..."
  int64_t order = 2;
  uint64_t seed = 0;
};

class MarkovText {
 public:
  static constexpr int64_t kMaxLetters = 26, kMaxContexts = 1 << 20;
  // InvalidArgument if the spec is outside of what there is: 2 to kMaxLetters letters, an order from 0 with
  // at most kMaxContexts contexts.
  static absl::Status Check(const MarkovSpec& spec);
  // REQUIRES: Check(spec) is OK. `split` ("train", "valid"): another text of the same source.
  MarkovText(const MarkovSpec& spec, const std::string& split);

  double entropy_nats() const { return entropy_nats_; }  // per letter
  // Appends the next num_letters letters of one endless text. It begins as if "a" stood before it for ever.
  void Generate(int64_t num_letters, std::string* text);
  // -log of the probability of all text generated so far, given the source: what a model that knows the
  // source pays for it.
  double information_nats() const { return information_nats_; }

 private:
  MarkovSpec spec_;
  uint64_t stream_;
  int64_t num_contexts_ = 1, context_ = 0, num_generated_ = 0;
  std::vector<uint8_t> successors_;   // (num_contexts, num_letters): which letter has probability k
  std::vector<uint64_t> cumulative_;  // of the weights, integers
  std::vector<double> nats_;          // -log p_k
  double entropy_nats_ = 0, information_nats_ = 0;
};

struct MarkovFileSpec {
  std::string prefix;
  MarkovSpec source;
  std::string split;
  int64_t num_letters = 0;
  std::string parameters = {};  // TaskMeta::parameters
};
struct MarkovFileResult {
  int64_t num_tokens = 0;
  double entropy_nats = 0;
  double information_nats = 0;  // of this text, per letter
};
// Token files of the byte tokenizer, one document each, without labels. Every file is written in full under
// another name before the first one takes its place; an error up to then leaves nothing behind.
absl::StatusOr<std::vector<MarkovFileResult>> WriteMarkovFiles(const std::vector<MarkovFileSpec>& files,
                                                               bool overwrite);
}  // namespace carousel
