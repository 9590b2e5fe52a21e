// BatchSources over a Dataset. Inputs are the first T tokens of a window of T + 1, targets the last T. Of a
// file with labels, only answers are targets, and the batch has the lengths of their problems. With
// reset_at_document, resets is 1 where the input is the EOD token: there the next document begins, and the
// state from before is forgotten. A batch without any such place has empty resets.
#pragma once
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "core/data/dataset.h"
#include "core/data/sampler.h"
#include "core/train/batch.h"

namespace carousel {

struct BatchShape {
  int64_t B = 0, T = 0;  // sequences of a micro-batch, tokens of a sequence
  int32_t eod_id = 0;
  bool reset_at_document = true;
};

// Sum over the batch's tokens of a hash of (sample, position, id), modulo 2^64, where row b is sample
// first_sample + b of the run. Sums over the micro-batches of a step, on any ranks, are equal exactly when
// (up to hash collisions) all saw the same tokens at the same places: two runs with equal digests saw equal
// data.
uint64_t BatchDigest(const Batch& batch, int64_t first_sample);

// Training: micro-batch m of step s holds samples first_sample + [(s M + m) B, (s M + m + 1) B) of the
// sampler, where M is the number of micro-batches per step over all ranks. A thread prepares the micro-batch
// that this rank will ask for next while the caller computes. Any other one may be asked for too: it is made
// on the spot.
class TrainLoader final : public BatchSource {
 public:
  struct Options {
    BatchShape shape;
    int64_t micro_batches_per_step = 1;  // M, over all ranks
    // This rank's part of [0, M), what to prefetch: micro_begin and every micro_stride-th up to micro_end.
    int64_t micro_begin = 0, micro_end = 1, micro_stride = 1;
    // Not 0 if earlier steps had another batch size: (sequences consumed so far) - (steps done so far) M B,
    // so that no sample is skipped or seen twice. May be negative.
    int64_t first_sample = 0;
  };
  // `dataset` must outlive the loader; `sampler` must have been made from it with T = shape.T.
  TrainLoader(const Dataset& dataset, Sampler sampler, const Options& options);
  ~TrainLoader() override;

  // One caller at a time.
  void Get(int64_t step, int64_t micro, Batch* batch) override;

  // Seconds that Get has waited for the prefetch thread or read by itself, since construction.
  double starved_seconds() const { return starved_seconds_; }
  // Sum of BatchDigest over the micro-batches handed out since the last call.
  uint64_t TakeDigest();

  const Sampler& sampler() const { return sampler_; }

 private:
  struct Place {
    int64_t step = -1, micro = -1;
    friend bool operator==(const Place&, const Place&) = default;
  };
  struct Filled {
    Batch batch;
    uint64_t digest = 0;
  };
  Place Next(Place place) const;
  void Fill(Place place, Filled* filled) const;
  void PrefetchLoop();

  const Dataset& dataset_;
  const Sampler sampler_;
  const Options options_;
  double starved_seconds_ = 0;  // of the caller's thread only
  uint64_t digest_ = 0;         // of the caller's thread only

  // Guarded by mutex_, except that the thread alone touches prefetched_ while working_ is true.
  std::mutex mutex_;
  std::condition_variable changed_;
  Place wanted_, ready_;  // asked of the thread; standing in prefetched_
  bool working_ = false, stop_ = false;
  Filled prefetched_;
  std::thread thread_;
};

// Validation: the fixed list of SpreadWindows, in order, B at a time; the rest of the last batch is EOD with
// targets -1 (id 0 if eod_id is negative). Get ignores `step`; 0 <= micro < num_batches().
class EvaluationSource final : public BatchSource {
 public:
  // `dataset` must outlive the source.
  static absl::StatusOr<EvaluationSource> Create(const Dataset& dataset, const BatchShape& shape,
                                                 int64_t num_windows);
  void Get(int64_t step, int64_t micro, Batch* batch) override;
  int64_t num_batches() const;
  int64_t num_windows() const { return static_cast<int64_t>(windows_.size()); }

 private:
  EvaluationSource(const Dataset& dataset, const BatchShape& shape, std::vector<Window> windows)
      : dataset_(dataset), shape_(shape), windows_(std::move(windows)) {}
  const Dataset& dataset_;
  BatchShape shape_;
  std::vector<Window> windows_;
};
}  // namespace carousel
