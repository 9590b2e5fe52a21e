#include "checkpoints/model_save.h"

#include <algorithm>
#include <cstddef>

#include "checkpoints/digest.h"
#include "checkpoints/save_attempt.h"
#include "core/base/check.h"
#include "core/base/status_macros.h"

namespace carousel {
namespace {

// The state of an imported model, made when it is asked for.
class WeightState final : public StateSource {
 public:
  WeightState(const WeightSource& weights, const std::vector<StateSlice>& slices,
              const std::function<void(int64_t, int64_t)>& progress)
      : weights_(weights),
        slices_(slices),
        progress_(progress),
        digests_(slices.size(), 0),
        was_read_(slices.size(), false) {
    for (const StateSlice& slice : slices) total_bytes_ += slice.num_elems() * SizeOf(slice.dtype);
  }

  absl::Status Read(const PlannedFile& file, const Sink& sink) override {
    for (const PlannedBox& box : file.boxes) {
      CAROUSEL_RETURN_IF_ERROR(ReadSlice(static_cast<size_t>(box.slice), sink));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<std::vector<uint64_t>> Digests() override {
    const Sink nowhere = [](const void*, int64_t) { return absl::OkStatus(); };
    for (size_t i = 0; i < slices_.size(); ++i) {  // those of no file: there is such a checkpoint already
      if (!was_read_[i]) CAROUSEL_RETURN_IF_ERROR(ReadSlice(i, nowhere));
    }
    return digests_;
  }

 private:
  absl::Status ReadSlice(size_t index, const Sink& sink) {
    const StateSlice& slice = slices_[index];
    const int64_t num_elems = slice.num_elems(), elem_bytes = SizeOf(slice.dtype);
    piece_.assign(static_cast<size_t>(std::min(num_elems, kWeightPieceElems) * elem_bytes), std::byte{0});
    digests_[index] = 0;
    for (int64_t begin = 0; begin < num_elems; begin += kWeightPieceElems) {
      const int64_t count = std::min(kWeightPieceElems, num_elems - begin);
      if (slice.kind == StateKind::kWeight) {
        CAROUSEL_RETURN_IF_ERROR(weights_.Read(slice.name, begin, count, slice.dtype, piece_.data()));
      }
      digests_[index] += DigestRange(piece_.data(), slice.dtype, begin, count);
      CAROUSEL_RETURN_IF_ERROR(sink(piece_.data(), count * elem_bytes));
      done_bytes_ += count * elem_bytes;
      if (progress_) progress_(done_bytes_, total_bytes_);
    }
    was_read_[index] = true;
    return absl::OkStatus();
  }

  const WeightSource& weights_;
  const std::vector<StateSlice>& slices_;
  const std::function<void(int64_t, int64_t)>& progress_;
  std::vector<uint64_t> digests_;
  std::vector<bool> was_read_;
  std::vector<std::byte> piece_;
  int64_t done_bytes_ = 0, total_bytes_ = 0;
};
}  // namespace

absl::Status SaveWeights(const WeightSource& weights, const std::vector<Param>& params, DType dtype,
                         SaveRequest request, const std::function<void(int64_t, int64_t)>& progress) {
  CAROUSEL_CHECK(request.slices.empty() && request.communicator == nullptr);
  for (const Param& param : params) {
    for (const StateKind kind : {StateKind::kWeight, StateKind::kAdamM, StateKind::kAdamV}) {
      request.slices.push_back(WholeSlice(param.name, kind, dtype, param.shape, /*data=*/nullptr));
    }
  }
  SaveAttempt attempt(request);
  CAROUSEL_RETURN_IF_ERROR(attempt.Plan());
  CAROUSEL_RETURN_IF_ERROR(attempt.Begin(attempt.Prepare()));
  WeightState state(weights, request.slices, progress);
  attempt.Write(state);
  const absl::Status voted = attempt.Vote();
  return attempt.Announce(attempt.Complete(voted));
}
}  // namespace carousel
