#include "checkpoints/staging.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "checkpoints/digest.h"
#include "core/base/check.h"
#include "core/base/status_macros.h"

namespace carousel {
namespace {
constexpr size_t kPageBytes = 4096;
}

StagingPool::StagingPool(int64_t num_blocks, StateCopier* copier) : num_blocks_(num_blocks), copier_(copier) {
  CAROUSEL_CHECK(num_blocks > 0);
  const int64_t bytes = num_blocks * kStagingBlockBytes;
  memory_ =
      static_cast<char*>(copier != nullptr ? copier->Allocate(bytes)
                                           : std::aligned_alloc(kPageBytes, static_cast<size_t>(bytes)));
}

StagingPool::~StagingPool() {
  if (copier_ != nullptr) {
    copier_->Free(memory_);
  } else {
    std::free(memory_);
  }
}

StagedState::StagedState(std::shared_ptr<StagingPool> pool, StateCopier* copier, const SaveAttempt& attempt,
                         Clock::time_point deadline, std::function<void()> progress)
    : pool_(std::move(pool)),
      copier_(copier),
      slices_(attempt.request().slices),
      deadline_(deadline),
      progress_(std::move(progress)),
      digests_(slices_.size(), 0) {
  std::vector<bool> written(slices_.size(), false);
  for (const PlannedFile& file : attempt.files()) {
    if (file.rank != attempt.rank() || attempt.exists()) continue;
    for (const PlannedBox& box : file.boxes) {
      order_.push_back({.slice = static_cast<size_t>(box.slice)});
      written[static_cast<size_t>(box.slice)] = true;
    }
    if (!file.boxes.empty()) order_.back().ends_block = true;
  }
  for (size_t s = 0; s < slices_.size(); ++s) {
    if (!written[s]) order_.push_back({.slice = s, .written = false});
  }
  for (int64_t i = pool_->num_blocks(); i > 0; --i) free_.push_back(i - 1);
}

void StagedState::Cancel(const absl::Status& why) {
  const std::lock_guard<std::mutex> lock(mutex_);
  cancelled_.Update(why);  // the first reason stays
  changed_.notify_all();
}

absl::Status StagedState::Wait(std::unique_lock<std::mutex>* lock, const std::function<bool()>& condition) {
  const bool met = changed_.wait_until(*lock, deadline_, [&] { return !cancelled_.ok() || condition(); });
  CAROUSEL_RETURN_IF_ERROR(cancelled_);
  if (!met) {
    return absl::DeadlineExceededError(
        "copying the state took too long: blocks are not written in time; is the disk there, or should "
        "checkpoint.staging_mib be larger?");
  }
  return absl::OkStatus();
}

// ---- the producer

absl::StatusOr<int64_t> StagedState::TakeFree(bool wait) {
  std::unique_lock<std::mutex> lock(mutex_);
  if (free_.empty() && !wait) return -1;
  CAROUSEL_RETURN_IF_ERROR(Wait(&lock, [this] { return !free_.empty(); }));
  const int64_t index = free_.back();
  free_.pop_back();
  most_used_ = std::max(most_used_, pool_->num_blocks() - static_cast<int64_t>(free_.size()));
  return index;
}

void StagedState::Fill(Block* block) {
  char* const memory = pool_->block(block->index);
  int64_t used = 0;
  while (!copied_all()) {
    const Item& item = order_[at_];
    const StateSlice& from = slice(item.slice);
    if (run_ == nullptr) run_ = std::make_unique<SliceRuns>(from);
    while (!run_->done()) {
      const int64_t elem_bytes = SizeOf(from.dtype);
      const int64_t count = std::min(run_->count() - run_done_, (kStagingBlockBytes - used) / elem_bytes);
      if (count == 0) return;  // full
      const char* const data = run_->data() + run_done_ * elem_bytes;
      const int64_t elem = run_->elem() + run_done_, num_bytes = count * elem_bytes;
      if (copier_ != nullptr) {
        copier_->Copy(memory + used, data, num_bytes);
        block->pieces.push_back({.slice = item.slice, .elem = elem, .count = count, .offset = used});
      } else {
        std::memcpy(memory + used, data, static_cast<size_t>(num_bytes));
        digests_[item.slice] += DigestRange(data, from.dtype, elem, count);
      }
      used += num_bytes;
      if (item.written) block->num_bytes = used;
      run_done_ += count;
      if (run_done_ == run_->count()) {
        run_->Next();
        run_done_ = 0;
      }
    }
    run_.reset();
    ++at_;
    if (item.ends_block) return;
  }
}

void StagedState::Hand(std::vector<Block> blocks) {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (Block& block : blocks) ready_.push_back(std::move(block));
  changed_.notify_all();
}

void StagedState::CopyWhatFits() {
  while (!copied_all()) {
    const absl::StatusOr<int64_t> index = TakeFree(/*wait=*/false);
    if (!index.ok() || *index < 0) return;
    under_way_.push_back({.index = *index});
    Fill(&under_way_.back());
  }
}

absl::Status StagedState::CopyAll() {
  while (!copied_all() || !under_way_.empty()) {
    if (progress_ != nullptr) progress_();
    if (!under_way_.empty()) {
      copier_->Wait();
      Hand(std::exchange(under_way_, {}));
      continue;
    }
    if (copier_ == nullptr && !order_[at_].written) {
      const size_t index = order_[at_++].slice;
      digests_[index] = DigestSlice(slice(index));
      continue;
    }
    Block block;
    CAROUSEL_ASSIGN_OR_RETURN(block.index, TakeFree(/*wait=*/true));
    Fill(&block);
    if (copier_ == nullptr) {
      Hand({std::move(block)});
    } else {
      under_way_.push_back(std::move(block));
      CopyWhatFits();
    }
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  done_ = true;
  changed_.notify_all();
  return absl::OkStatus();
}

// ---- the consumer

absl::StatusOr<StagedState::Block> StagedState::Take(bool* done) {
  std::unique_lock<std::mutex> lock(mutex_);
  CAROUSEL_RETURN_IF_ERROR(Wait(&lock, [this] { return !ready_.empty() || done_; }));
  *done = ready_.empty();
  if (*done) return Block();
  Block block = std::move(ready_.front());
  ready_.pop_front();
  lock.unlock();
  for (const Piece& piece : block.pieces) {
    digests_[piece.slice] += DigestRange(pool_->block(block.index) + piece.offset, slice(piece.slice).dtype,
                                         piece.elem, piece.count);
  }
  return block;
}

void StagedState::GiveBack(const Block& block) {
  const std::lock_guard<std::mutex> lock(mutex_);
  free_.push_back(block.index);
  changed_.notify_all();
}

absl::Status StagedState::Read(const PlannedFile& file, const Sink& sink) {
  int64_t left = file.num_bytes - static_cast<int64_t>(file.prefix.size());
  while (left > 0) {
    bool done = false;
    CAROUSEL_ASSIGN_OR_RETURN(const Block block, Take(&done));
    CAROUSEL_CHECK(!done && block.num_bytes <= left);
    const absl::Status taken = sink(pool_->block(block.index), block.num_bytes);
    left -= block.num_bytes;
    GiveBack(block);
    CAROUSEL_RETURN_IF_ERROR(taken);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<uint64_t>> StagedState::Digests() {
  while (true) {
    bool done = false;
    CAROUSEL_ASSIGN_OR_RETURN(const Block block, Take(&done));
    if (done) return digests_;
    CAROUSEL_CHECK(block.num_bytes == 0);
    GiveBack(block);
  }
}

int64_t StagedState::most_blocks_used() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return most_used_;
}
}  // namespace carousel
