// The state on its way from where it lives to a file: copied block by block into a pool of bounded size, and
// taken from there by the thread that writes, which gives each block back when it is written. Internal to
// this folder.
#pragma once
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "absl/status/status.h"
#include "checkpoints/save_attempt.h"
#include "core/train/state_copier.h"
#include "core/train/state_visitor.h"

namespace carousel {

constexpr int64_t kStagingBlockBytes = int64_t{1} << 20;

// Host memory for blocks, all of it from the beginning.
class StagingPool {
 public:
  // `copier` allocates; null: the heap. It must outlive the pool.
  StagingPool(int64_t num_blocks, StateCopier* copier);
  ~StagingPool();
  StagingPool(const StagingPool&) = delete;
  StagingPool& operator=(const StagingPool&) = delete;

  bool ok() const { return memory_ != nullptr; }  // there was so much memory
  int64_t num_blocks() const { return num_blocks_; }
  char* block(int64_t index) const { return memory_ + index * kStagingBlockBytes; }

 private:
  const int64_t num_blocks_;
  StateCopier* const copier_;
  char* memory_ = nullptr;
};

// One save's passage through the pool. The producer is one thread, the consumer (Read, Digests) another.
class StagedState final : public StateSource {
 public:
  using Clock = std::chrono::steady_clock;
  // The attempt has begun and outlives this, for its files and slices. With a copier, Begin has been called.
  // Who still waits at the deadline gives up. progress: called by the producer for every block.
  StagedState(std::shared_ptr<StagingPool> pool, StateCopier* copier, const SaveAttempt& attempt,
              Clock::time_point deadline, std::function<void()> progress = nullptr);

  // Producer: copies everything, each part when there is room for it. DeadlineExceeded, or Cancelled.
  absl::Status CopyAll();
  // Producer, with a copier: enqueues the copies there is room for now, which CopyAll will wait for.
  void CopyWhatFits();

  // Both sides stop, and say why.
  void Cancel(const absl::Status& why = absl::CancelledError("the save was given up"));

  absl::Status Read(const PlannedFile& file, const Sink& sink) override;
  absl::StatusOr<std::vector<uint64_t>> Digests() override;

  int64_t most_blocks_used() const;

 private:
  // A part of a slice in a block.
  struct Piece {
    size_t slice = 0;
    int64_t elem = 0, count = 0;
    int64_t offset = 0;  // bytes in the block
  };
  struct Block {
    int64_t index = 0;
    int64_t num_bytes = 0;           // for the file; 0: only digested
    std::vector<Piece> pieces = {};  // to be digested by the consumer
  };
  // What is copied, in the order of the files; what this rank does not write comes last, for its digest.
  struct Item {
    size_t slice = 0;
    bool written = true;
    bool ends_block = false;  // the last of a file
  };

  bool copied_all() const { return at_ == order_.size(); }
  const StateSlice& slice(size_t index) const { return slices_[index]; }
  // The index of a free block; -1: none (without `wait`), or an error.
  absl::StatusOr<int64_t> TakeFree(bool wait);
  absl::Status Wait(std::unique_lock<std::mutex>* lock, const std::function<bool()>& condition);
  void Fill(Block* block);
  void Hand(std::vector<Block> blocks);
  absl::StatusOr<Block> Take(bool* done);
  void GiveBack(const Block& block);

  const std::shared_ptr<StagingPool> pool_;
  StateCopier* const copier_;
  const std::vector<StateSlice>& slices_;
  const Clock::time_point deadline_;
  const std::function<void()> progress_;
  std::vector<Item> order_;
  // The producer's.
  size_t at_ = 0;                   // in order_
  std::unique_ptr<SliceRuns> run_;  // of the slice there
  int64_t run_done_ = 0;            // elements of the run
  std::vector<Block> under_way_;    // enqueued, not arrived
  // The producer's until done_, or with a copier the consumer's.
  std::vector<uint64_t> digests_;

  mutable std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  std::vector<int64_t> free_;
  std::deque<Block> ready_;
  int64_t most_used_ = 0;
  bool done_ = false;
  absl::Status cancelled_;  // OK: it was not
};
}  // namespace carousel
