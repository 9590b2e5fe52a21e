#include "core/data/loader.h"

#include <algorithm>
#include <chrono>
#include <span>
#include <utility>

#include "core/base/check.h"
#include "core/base/int_math.h"

namespace carousel {
namespace {

// Masks the targets of row `row` that are no answers.
void ApplyLabels(const LabelFile& labels, int64_t begin, int64_t row, Batch* batch) {
  const size_t n = batch->targets.size(), T = static_cast<size_t>(batch->T);
  if (batch->lengths.empty()) batch->lengths.assign(n, 0);
  const std::span<uint16_t> lengths(batch->lengths.data() + static_cast<size_t>(row) * T, T);
  labels.Read(begin + 1, lengths);
  for (size_t t = 0; t < T; ++t) {
    if (lengths[t] == 0) batch->targets[static_cast<size_t>(row) * T + t] = -1;
  }
}

// Row `row` of the batch := the window. Returns whether a document starts in it.
bool FillRow(const Dataset& dataset, const BatchShape& shape, const Window& window, int64_t row,
             std::vector<int32_t>* tokens, Batch* batch) {
  const int64_t T = shape.T;
  tokens->resize(static_cast<size_t>(T + 1));
  const TokenFile& file = dataset.file(window.source);
  file.Read(window.index * T, *tokens);
  std::copy_n(tokens->begin(), T, batch->inputs.begin() + row * T);
  std::copy_n(tokens->begin() + 1, T, batch->targets.begin() + row * T);
  if (file.labels() != nullptr) ApplyLabels(*file.labels(), window.index * T, row, batch);
  bool any = false;
  if (shape.reset_at_document) {
    for (int64_t t = 0; t < T; ++t) {
      const bool reset = (*tokens)[static_cast<size_t>(t)] == shape.eod_id;
      batch->resets[static_cast<size_t>(row * T + t)] = reset;
      any |= reset;
    }
  }
  return any;
}

void SizeBatch(const BatchShape& shape, Batch* batch) {
  batch->B = shape.B;
  batch->T = shape.T;
  const size_t n = static_cast<size_t>(shape.B * shape.T);
  batch->inputs.resize(n);
  batch->targets.resize(n);
  batch->resets.assign(shape.reset_at_document ? n : 0, 0);
  batch->lengths.clear();
}

// The finaliser of SplitMix64 (Steele, Lea and Flood 2014): a bijection that mixes all bits.
uint64_t Mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}
}  // namespace

uint64_t BatchDigest(const Batch& batch, int64_t first_sample) {
  uint64_t sum = 0;
  for (int64_t b = 0; b < batch.B; ++b) {
    const uint64_t key = Mix(static_cast<uint64_t>(first_sample + b) + 0x9E3779B97F4A7C15ull);
    // Position 0 is the first input; position t + 1 is target t, which is also input t + 1 unless it is
    // masked.
    for (int64_t t = -1; t < batch.T; ++t) {
      const int32_t id = t < 0 ? batch.inputs[static_cast<size_t>(b * batch.T)]
                               : batch.targets[static_cast<size_t>(b * batch.T + t)];
      const uint64_t place = static_cast<uint64_t>(t + 1) << 32 | static_cast<uint32_t>(id);
      sum += Mix(key ^ Mix(place));
      if (t < 0 || id >= 0 || t + 1 == batch.T) continue;
      sum += Mix(~key ^ Mix(static_cast<uint64_t>(t + 1) << 32 |
                            static_cast<uint32_t>(batch.inputs[static_cast<size_t>(b * batch.T + t + 1)])));
    }
  }
  return sum;
}

TrainLoader::TrainLoader(const Dataset& dataset, Sampler sampler, const Options& options)
    : dataset_(dataset), sampler_(std::move(sampler)), options_(options) {
  CAROUSEL_CHECK(options.shape.B >= 1 && options.shape.T >= 1);
  CAROUSEL_CHECK(0 <= options.micro_begin && options.micro_begin < options.micro_end &&
                 options.micro_end <= options.micro_batches_per_step && options.micro_stride >= 1);
  CAROUSEL_CHECK_EQ(sampler_.T(), options.shape.T);
  CAROUSEL_CHECK_EQ(sampler_.num_sources(), dataset.num_sources());
  for (int64_t s = 0; s < dataset.num_sources(); ++s) {
    CAROUSEL_CHECK_EQ(sampler_.num_windows(s), NumWindows(dataset.file(s).num_tokens(), options.shape.T));
  }
  thread_ = std::thread([this] { PrefetchLoop(); });
}

TrainLoader::~TrainLoader() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

TrainLoader::Place TrainLoader::Next(Place place) const {
  const int64_t next = place.micro + options_.micro_stride;
  if (next < options_.micro_end) return {place.step, next};
  return {place.step + 1, options_.micro_begin};
}

void TrainLoader::Fill(Place place, Filled* filled) const {
  const BatchShape& shape = options_.shape;
  SizeBatch(shape, &filled->batch);
  const int64_t first =
      options_.first_sample + (place.step * options_.micro_batches_per_step + place.micro) * shape.B;
  CAROUSEL_CHECK_GE(first, int64_t{0});
  std::vector<int32_t> tokens;
  bool any_reset = false;
  for (int64_t b = 0; b < shape.B; ++b) {
    any_reset |= FillRow(dataset_, shape, sampler_.At(first + b), b, &tokens, &filled->batch);
  }
  if (!any_reset) filled->batch.resets.clear();
  filled->digest = BatchDigest(filled->batch, first);
}

void TrainLoader::PrefetchLoop() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return stop_ || working_; });
    if (stop_) return;
    // While working_ is true, prefetched_ and wanted_ belong to this thread.
    const Place place = wanted_;
    lock.unlock();
    Fill(place, &prefetched_);
    lock.lock();
    ready_ = place;
    working_ = false;
    changed_.notify_all();
  }
}

void TrainLoader::Get(int64_t step, int64_t micro, Batch* batch) {
  CAROUSEL_CHECK(step >= 0 && micro >= 0 && micro < options_.micro_batches_per_step);
  const auto start = std::chrono::steady_clock::now();
  const Place place = {step, micro};
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [this] { return !working_; });
  if (ready_ == place) {
    std::swap(*batch, prefetched_.batch);
    digest_ += prefetched_.digest;
  } else {
    // The first call, or one out of order.
    Filled filled;
    std::swap(filled.batch, *batch);
    Fill(place, &filled);
    std::swap(filled.batch, *batch);
    digest_ += filled.digest;
  }
  wanted_ = Next(place);
  ready_ = {};
  working_ = true;
  lock.unlock();
  changed_.notify_all();
  starved_seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

uint64_t TrainLoader::TakeDigest() { return std::exchange(digest_, 0); }

absl::StatusOr<EvaluationSource> EvaluationSource::Create(const Dataset& dataset, const BatchShape& shape,
                                                          int64_t num_windows) {
  CAROUSEL_CHECK(shape.B >= 1 && shape.T >= 1);
  absl::StatusOr<std::vector<Window>> windows = SpreadWindows(dataset.SamplerSources(), shape.T, num_windows);
  if (!windows.ok()) return windows.status();
  return EvaluationSource(dataset, shape, std::move(windows).value());
}

int64_t EvaluationSource::num_batches() const { return CeilDiv(num_windows(), shape_.B); }

void EvaluationSource::Get(int64_t /*step*/, int64_t micro, Batch* batch) {
  CAROUSEL_CHECK(micro >= 0 && micro < num_batches());
  SizeBatch(shape_, batch);
  const int64_t begin = micro * shape_.B, count = std::min(shape_.B, num_windows() - begin);
  std::vector<int32_t> tokens;
  bool any_reset = false;
  for (int64_t b = 0; b < count; ++b) {
    any_reset |= FillRow(dataset_, shape_, windows_[static_cast<size_t>(begin + b)], b, &tokens, batch);
  }
  std::fill(batch->inputs.begin() + count * shape_.T, batch->inputs.end(),
            std::max(shape_.eod_id, 0));  // any valid id: its target is none
  std::fill(batch->targets.begin() + count * shape_.T, batch->targets.end(), -1);
  if (!any_reset) batch->resets.clear();
}
}  // namespace carousel
