// A small state with odd shapes, cut over any number of ranks, for the tests of checkpoints.
#pragma once
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "checkpoints/boxes.h"
#include "checkpoints/checkpoint.h"
#include "core/base/random.h"
#include "core/train/state_visitor.h"

namespace carousel {

struct TestTensor {
  std::string name;
  std::vector<int64_t> shape;
  DType dtype = DType::kF32;
  int64_t num_elems() const {
    int64_t n = 1;
    for (const int64_t d : shape) n *= d;
    return n;
  }
};
inline std::vector<TestTensor> SmallModel() {
  return {
      {"embedding.weight", {11, 5}},       {"blocks.0.q.weight", {6, 8}}, {"blocks.0.conv.weight", {4, 3, 5}},
      {"blocks.0.norm.weight", {13}},      {"blocks.0.bias", {1}},        {"scale", {}},
      {"head.weight", {3, 7}, DType::kF64}};
}

// Fills a slice with bits that are a function of (seed, tensor, kind, element).
inline void FillRandomBits(const StateSlice& slice, uint64_t seed) {
  const uint64_t stream = StreamOf(slice.name) + static_cast<uint64_t>(slice.kind);
  const size_t elem_bytes = static_cast<size_t>(SizeOf(slice.dtype));
  ForEachRun(slice, [&](int64_t elem, char* data, int64_t count) {
    for (int64_t j = 0; j < count; ++j, data += elem_bytes) {
      const uint64_t bits = RandomUint64(seed, stream, static_cast<uint64_t>(elem + j));
      std::memcpy(data, &bits, elem_bytes);
    }
  });
}

// One rank's part of the state: weights and both moments of every tensor. All tensors of a kind form one flat
// buffer, which the ranks share like shards of an optimizer; a few cuts are uneven on purpose.
class RankState {
 public:
  // Values are random bits, a function of (seed, tensor, kind, element); without a seed everything is 0.
  RankState(const std::vector<TestTensor>& tensors, int world, int rank, uint64_t seed) : tensors_(tensors) {
    int64_t total = 0;
    for (const TestTensor& t : tensors) total += t.num_elems();
    const int64_t begin = Cut(total, world, rank), end = Cut(total, world, rank + 1);
    for (const StateKind kind : {StateKind::kWeight, StateKind::kAdamM, StateKind::kAdamV}) {
      int64_t at = 0;  // of the tensor in the flat buffer
      for (const TestTensor& t : tensors) {
        const int64_t from = std::max(begin, at), to = std::min(end, at + t.num_elems());
        const int64_t count = std::max(to - from, int64_t{0});
        for (Box& box : BoxesOfRange(t.shape, count > 0 ? from - at : 0, count)) {
          Add(t, kind, std::move(box), seed);
        }
        at += t.num_elems();
      }
    }
    for (size_t i = 0; i < slices_.size(); ++i) slices_[i].data = storage_[i].data();
  }
  RankState(const RankState&) = delete;
  RankState& operator=(const RankState&) = delete;

  std::vector<StateSlice>& slices() { return slices_; }
  // Only the slices of one kind.
  std::vector<StateSlice> Of(StateKind kind) const {
    std::vector<StateSlice> result;
    for (const StateSlice& s : slices_) {
      if (s.kind == kind) result.push_back(s);
    }
    return result;
  }
  // Whether every element is what `seed` gives.
  bool Holds(uint64_t seed) const {
    for (size_t i = 0; i < slices_.size(); ++i) {
      if (storage_[i] != Bytes(slices_[i], seed)) return false;
    }
    return true;
  }

 private:
  static int64_t Cut(int64_t total, int world, int rank) {
    if (rank == 0 || rank == world) return rank == 0 ? 0 : total;
    return (total * rank * rank) / (int64_t{world} * world);  // the first ranks have little
  }
  static std::vector<char> Bytes(const StateSlice& slice, uint64_t seed) {
    std::vector<char> bytes(static_cast<size_t>(slice.num_elems() * SizeOf(slice.dtype)));
    StateSlice copy = slice;
    copy.data = bytes.data();
    if (seed != 0) FillRandomBits(copy, seed);
    return bytes;
  }
  void Add(const TestTensor& t, StateKind kind, Box box, uint64_t seed) {
    slices_.push_back({t.name, kind, t.dtype, t.shape, std::move(box.offset), std::move(box.size)});
    storage_.push_back(Bytes(slices_.back(), seed));
  }

  std::vector<TestTensor> tensors_;
  std::vector<StateSlice> slices_;
  std::vector<std::vector<char>> storage_;
};

inline TrainState StateAt(int64_t step) {
  return {.step = step,
          .consumed_sequences = 8 * step,
          .consumed_tokens = 1024 * step,
          .seed = 0xfedcba9876543210u,
          .skipped_steps = step / 7,
          .wall_seconds = 1.5 * static_cast<double>(step),
          .data_fingerprint = 77,
          .skipped_in_row = step >= 7 ? 1 : 0,
          .last_skipped_step = step >= 7 ? step : 0,
          .evaluated_step = step / 2,
          .validation_loss = 1.25,
          .loss_window = {2.5, 1.5},
          .grad_norm_window = {0.5, 0.25, 3},
          .num_rollbacks = step / 5,
          .left_out_sequences = step,
          .consumed_by_source = {5 * step, 3 * step}};
}

// A save of a rank's state at `step`, which keeps so many of the newest (0: all).
inline SaveRequest RequestFor(const std::string& run_dir, int64_t step, int64_t keep_last, RankState& state,
                              Communicator* communicator, FileSystem* files,
                              int64_t max_file_bytes = 1 << 30) {
  SaveRequest request;
  request.run_dir = run_dir;
  request.run_id = "test-run";
  request.state = StateAt(step);
  request.slices = state.slices();
  request.config_text = "model {}\n";
  request.writer = "checkpoint_test";
  request.attempt = 3;
  request.mesh = {.replicate = 2, .shard = 1, .sequence = 1, .tensor = 1, .pipe = 1};
  request.keep.keep_last = keep_last;
  request.communicator = communicator;
  request.records = {JoinPath(run_dir, "metrics.jsonl")};
  request.files = files;
  request.max_file_bytes = max_file_bytes;
  return request;
}
// Saves the small model with the values of `seed` at `step`, as rank communicator->rank() (null: alone).
inline absl::Status SaveStep(const std::string& run_dir, int64_t step, uint64_t seed, int64_t keep_last,
                             Communicator* communicator, FileSystem* files, int64_t max_file_bytes = 1 << 30,
                             const std::string& run_id = "test-run",
                             const std::string& config = "model {}\n") {
  RankState state(SmallModel(), communicator != nullptr ? communicator->size() : 1,
                  communicator != nullptr ? communicator->rank() : 0, seed);
  SaveRequest request = RequestFor(run_dir, step, keep_last, state, communicator, files, max_file_bytes);
  request.run_id = run_id;
  request.config_text = config;
  return SaveCheckpoint(request);
}
}  // namespace carousel
