#include "core/data/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "core/base/check.h"
#include "core/base/random.h"
#include "core/data/permutation.h"

namespace carousel {
namespace {

absl::Status CheckLength(const SamplerSource& source, int64_t T, const char* field) {
  if (NumWindows(source.num_tokens, T) > 0) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(source.name, " holds ", source.num_tokens, " tokens, fewer than one window of ", field,
                   " + 1 = ", T + 1, "; use a longer text or a sequence_length of at most ",
                   std::max<int64_t>(source.num_tokens - 1, 0)));
}

// `total` slots in proportion to the weights, by largest remainder; among equal remainders the earlier
// source.
std::vector<int64_t> Apportion(const std::vector<SamplerSource>& sources, int64_t total) {
  // Divided by the largest first, so that the sum cannot overflow.
  double largest = 0, sum = 0;
  for (const SamplerSource& s : sources) largest = std::max(largest, s.weight);
  for (const SamplerSource& s : sources) sum += s.weight / largest;
  std::vector<int64_t> slots;
  std::vector<double> remainders;
  int64_t given = 0;
  for (const SamplerSource& s : sources) {
    const double exact = s.weight / largest / sum * static_cast<double>(total);
    slots.push_back(std::min(static_cast<int64_t>(exact), total - given));
    remainders.push_back(exact - static_cast<double>(slots.back()));
    given += slots.back();
  }
  std::vector<size_t> order(sources.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return remainders[a] > remainders[b]; });
  for (size_t i = 0; given < total; ++i, ++given) ++slots[order[i % order.size()]];
  return slots;
}
}  // namespace

int64_t NumWindows(int64_t num_tokens, int64_t T) {
  CAROUSEL_CHECK_GE(T, 1);
  return num_tokens < 1 ? 0 : (num_tokens - 1) / T;
}

absl::StatusOr<Sampler> Sampler::Create(std::vector<SamplerSource> sources, int64_t T, uint64_t seed) {
  if (sources.empty())
    return absl::InvalidArgumentError("no training data; name at least one data.train source");
  if (static_cast<int64_t>(sources.size()) > kMixturePeriod) {
    return absl::InvalidArgumentError(
        absl::StrCat(sources.size(), " training sources; at most ", kMixturePeriod));
  }
  for (const SamplerSource& s : sources) {
    if (absl::Status status = CheckLength(s, T, "data.sequence_length"); !status.ok()) return status;
    if (!(s.weight > 0) || !std::isfinite(s.weight)) {
      return absl::InvalidArgumentError(
          absl::StrCat(s.name, " has weight ", s.weight, "; a weight must be positive and finite, e.g. 1"));
    }
  }
  Sampler sampler;
  sampler.T_ = T;
  sampler.seed_ = seed;
  for (const SamplerSource& s : sources) sampler.num_windows_.push_back(NumWindows(s.num_tokens, T));
  sampler.num_slots_ = Apportion(sources, kMixturePeriod);
  for (size_t i = 0; i < sources.size(); ++i) {
    if (sampler.num_slots_[i] == 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          sources[i].name, " has weight ", sources[i].weight, ", less than 1/", kMixturePeriod,
          " of the sum of all weights, so it would never be read; raise the weight or leave the source out"));
    }
  }
  if (sources.size() == 1) return sampler;

  // Occurrence k of a source with c slots belongs at the fraction (k + 1/2) / c of the period; sorted by
  // that.
  struct Occurrence {
    int64_t numerator, denominator;  // (2 k + 1) / (2 c)
    Slot slot;
  };
  std::vector<Occurrence> occurrences;
  for (size_t i = 0; i < sources.size(); ++i) {
    const int64_t c = sampler.num_slots_[i];
    for (int64_t k = 0; k < c; ++k) {
      occurrences.push_back({2 * k + 1, 2 * c, {static_cast<int32_t>(i), static_cast<int32_t>(k)}});
    }
  }
  std::stable_sort(occurrences.begin(), occurrences.end(), [](const Occurrence& a, const Occurrence& b) {
    return a.numerator * b.denominator < b.numerator * a.denominator;
  });
  for (const Occurrence& o : occurrences) sampler.slots_.push_back(o.slot);
  return sampler;
}

Window Sampler::At(int64_t n) const {
  CAROUSEL_CHECK_GE(n, 0);
  Window window;
  int64_t i = n;  // how many samples of the same source came before
  if (!slots_.empty()) {
    const Slot& slot = slots_[static_cast<size_t>(n % kMixturePeriod)];
    window.source = slot.source;
    i = n / kMixturePeriod * num_slots_[static_cast<size_t>(slot.source)] + slot.rank;
  }
  const int64_t size = num_windows_[static_cast<size_t>(window.source)];
  window.epoch = i / size;
  const uint64_t key = RandomUint64(seed_, StreamOf("window order") + static_cast<uint64_t>(window.source),
                                    static_cast<uint64_t>(window.epoch));
  window.index = Permutation(size, key)(i % size);
  return window;
}

int64_t Sampler::CountBefore(int64_t n, int64_t source) const {
  CAROUSEL_CHECK(n >= 0 && source >= 0 && source < num_sources());
  if (slots_.empty()) return n;
  int64_t count = n / kMixturePeriod * num_slots_[static_cast<size_t>(source)];
  for (int64_t i = 0; i < n % kMixturePeriod; ++i) count += slots_[static_cast<size_t>(i)].source == source;
  return count;
}

absl::StatusOr<std::vector<Window>> SpreadWindows(const std::vector<SamplerSource>& sources, int64_t T,
                                                  int64_t count) {
  if (sources.empty()) {
    return absl::InvalidArgumentError("no validation data; name at least one data.validation source");
  }
  if (count < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("eval.num_windows=", count, "; must be at least 1, e.g. 64"));
  }
  int64_t total = 0;
  for (const SamplerSource& s : sources) {
    if (absl::Status status = CheckLength(s, T, "eval.sequence_length"); !status.ok()) return status;
    total += NumWindows(s.num_tokens, T);
  }
  count = std::min(count, total);
  std::vector<Window> windows;
  windows.reserve(static_cast<size_t>(count));
  int64_t source = 0, before = 0;  // windows of the sources before this one
  for (int64_t i = 0; i < count; ++i) {
    // floor(i total / count), without the product's overflow.
    const int64_t position =
        i * (total / count) + static_cast<int64_t>(static_cast<unsigned __int128>(i) *
                                                   static_cast<unsigned __int128>(total % count) /
                                                   static_cast<unsigned __int128>(count));
    while (position - before >= NumWindows(sources[static_cast<size_t>(source)].num_tokens, T)) {
      before += NumWindows(sources[static_cast<size_t>(source)].num_tokens, T);
      ++source;
    }
    windows.push_back({.source = static_cast<int32_t>(source), .epoch = 0, .index = position - before});
  }
  return windows;
}
}  // namespace carousel
