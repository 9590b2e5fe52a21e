// Which tokens sample n of a run consists of: a pure function of the config, O(1) in time, no state. Whatever
// the number of ranks and wherever the run was interrupted, sample n is the same.
//
// A source's token stream is cut into windows of T + 1 tokens, T apart: window w is tokens [w T, w T + T],
// the last of which is the first of window w + 1 (a target there, an input here). The tail that fills no
// window is not used. Epoch e of a source visits its windows in the order of a permutation keyed by (seed,
// source, e). Several sources share the samples by a fixed table of kMixturePeriod slots, in which each
// source has a share by its weight, spread evenly.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace carousel {

struct Window {
  int32_t source = 0;
  int64_t epoch = 0;  // how often the source had been read in full before
  int64_t index = 0;  // tokens [index T, index T + T] of the source
  friend bool operator==(const Window&, const Window&) = default;
};

struct SamplerSource {
  std::string name;  // for messages
  int64_t num_tokens = 0;
  double weight = 1;  // share of the samples, relative to the sum of all weights
};

// floor((num_tokens - 1) / T), at least 0.
int64_t NumWindows(int64_t num_tokens, int64_t T);

class Sampler {
 public:
  static constexpr int64_t kMixturePeriod = 65536;

  // InvalidArgument if there is no source, a source is shorter than T + 1 tokens, a weight is not positive
  // and finite, or a weight's share is too small for one slot of the period.
  static absl::StatusOr<Sampler> Create(std::vector<SamplerSource> sources, int64_t T, uint64_t seed);

  // REQUIRES: n >= 0.
  Window At(int64_t n) const;
  int64_t T() const { return T_; }
  int64_t num_sources() const { return static_cast<int64_t>(num_windows_.size()); }
  int64_t num_windows(int64_t source) const { return num_windows_[static_cast<size_t>(source)]; }
  // How many of the samples [0, n) come from `source`. O(kMixturePeriod).
  int64_t CountBefore(int64_t n, int64_t source) const;

 private:
  int64_t T_ = 0;
  uint64_t seed_ = 0;
  std::vector<int64_t> num_windows_;  // by source
  std::vector<int64_t> num_slots_;    // by source, sum kMixturePeriod
  struct Slot {
    int32_t source, rank;  // rank: how many earlier slots of the period have this source
  };
  std::vector<Slot> slots_;  // kMixturePeriod; empty for a single source
};

// The fixed list for validation: min(count, all) windows spread evenly over the windows of all sources in
// order. InvalidArgument if a source is shorter than T + 1 tokens or count < 1.
absl::StatusOr<std::vector<Window>> SpreadWindows(const std::vector<SamplerSource>& sources, int64_t T,
                                                  int64_t count);
}  // namespace carousel
