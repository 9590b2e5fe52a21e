// Text from a source of known entropy: a Markov chain over invented words. A model that has learned the
// source completely reaches its entropy and none can do better, so a training run on this text has a known
// floor.
//
// Each word is followed by one of kSuccessors others, chosen with fixed probabilities proportional to 1, 1/2,
// 1/3, ... Each word ends with a space or a newline, so text and words determine each other, and
//   entropy per byte = entropy of the next word / mean word length under the stationary distribution.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace carousel {

class SyntheticText {
 public:
  static constexpr int64_t kWords = 1024, kSuccessors = 64;

  explicit SyntheticText(uint64_t seed);

  // Bits per byte of the stationary source.
  double entropy_bits_per_byte() const { return entropy_bits_per_byte_; }

  // Appends the next words of one endless text, which depends on the seed alone, until *text has grown by at
  // least `num_bytes` (by at most one word more).
  void Generate(int64_t num_bytes, std::string* text);
  // -log2 of the probability of all text generated so far, given the source: what a model that knows it pays.
  double information_bits() const { return information_bits_; }

 private:
  uint64_t seed_;
  std::vector<std::string> words_;
  std::vector<std::vector<int32_t>> successors_;  // by word
  std::vector<uint64_t> cumulative_;              // of the fixed weights, integers
  std::vector<double> bits_;                      // -log2 probability of successor k
  double entropy_bits_per_byte_ = 0, information_bits_ = 0;
  int64_t num_words_ = 0;
  int32_t state_ = 0;
};
}  // namespace carousel
