#include "core/data/synthetic_text.h"

#include <cmath>
#include <set>
#include <utility>

#include "core/base/check.h"
#include "core/base/random.h"
#include "core/data/permutation.h"

namespace carousel {
namespace {
// Weight of successor k: kScale / (k + 1), in integers so that every machine draws the same text.
constexpr uint64_t kScale = uint64_t{1} << 32;

// A pronounceable word of 1 to 4 syllables.
std::string MakeWord(uint64_t seed, uint64_t index) {
  constexpr char kConsonants[] = "bdfghklmnprstvwz", kVowels[] = "aeiou";
  const auto bits = RandomBits(seed, StreamOf("synthetic word"), index);
  const uint32_t num_syllables = 1 + (bits[0] >> 30);
  std::string word;
  uint32_t r = bits[1];
  for (uint32_t s = 0; s < num_syllables; ++s) {
    word.push_back(kConsonants[r % 16]);
    word.push_back(kVowels[r / 16 % 5]);
    r /= 80;
  }
  return word;
}

// x in [0, total) from 64 random bits.
uint64_t Below(uint64_t total, uint64_t bits) {
  return static_cast<uint64_t>(static_cast<unsigned __int128>(bits) * total >> 64);
}
}  // namespace

SyntheticText::SyntheticText(uint64_t seed) : seed_(seed) {
  // Different words; one in sixteen ends a line.
  std::set<std::string> seen;
  for (uint64_t candidate = 0; static_cast<int64_t>(words_.size()) < kWords; ++candidate) {
    std::string word = MakeWord(seed, candidate);
    if (!seen.insert(word).second) continue;
    word += words_.size() % 16 == 0 ? ".\n" : " ";
    words_.push_back(std::move(word));
  }
  // Successor k of word w: a permutation of all words keyed by w, so the successors are different.
  for (int64_t w = 0; w < kWords; ++w) {
    const Permutation order(kWords,
                            RandomUint64(seed, StreamOf("synthetic successors"), static_cast<uint64_t>(w)));
    std::vector<int32_t> row;
    for (int64_t k = 0; k < kSuccessors; ++k) row.push_back(static_cast<int32_t>(order(k)));
    successors_.push_back(std::move(row));
  }
  uint64_t total = 0;
  for (int64_t k = 0; k < kSuccessors; ++k) {
    total += kScale / static_cast<uint64_t>(k + 1);
    cumulative_.push_back(total);
  }
  std::vector<double> probability;
  double entropy_bits = 0;  // of the next word, whatever the last one
  for (int64_t k = 0; k < kSuccessors; ++k) {
    probability.push_back(static_cast<double>(kScale / static_cast<uint64_t>(k + 1)) /
                          static_cast<double>(total));
    bits_.push_back(-std::log2(probability.back()));
    entropy_bits += probability.back() * bits_.back();
  }
  // The stationary distribution by power iteration; the chain mixes within a few words.
  std::vector<double> p(static_cast<size_t>(kWords), 1.0 / kWords), next;
  for (int iteration = 0; iteration < 100; ++iteration) {
    next.assign(p.size(), 0);
    for (size_t w = 0; w < p.size(); ++w) {
      for (size_t k = 0; k < probability.size(); ++k) {
        next[static_cast<size_t>(successors_[w][k])] += p[w] * probability[k];
      }
    }
    std::swap(p, next);
  }
  double mean_bytes = 0;
  for (size_t w = 0; w < p.size(); ++w) mean_bytes += p[w] * static_cast<double>(words_[w].size());
  entropy_bits_per_byte_ = entropy_bits / mean_bytes;
}

void SyntheticText::Generate(int64_t num_bytes, std::string* text) {
  CAROUSEL_CHECK_GE(num_bytes, 0);
  const uint64_t stream = StreamOf("synthetic text");
  const size_t end = text->size() + static_cast<size_t>(num_bytes);
  while (text->size() < end) {
    const uint64_t x =
        Below(cumulative_.back(), RandomUint64(seed_, stream, static_cast<uint64_t>(num_words_++)));
    size_t k = 0;
    while (x >= cumulative_[k]) ++k;
    information_bits_ += bits_[k];
    state_ = successors_[static_cast<size_t>(state_)][k];
    *text += words_[static_cast<size_t>(state_)];
  }
}
}  // namespace carousel
