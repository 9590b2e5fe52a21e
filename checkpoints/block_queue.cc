#include "checkpoints/block_queue.h"

#include <algorithm>

#include "checkpoints/worker.h"
#include "core/base/check.h"

namespace carousel {

BlockQueue::BlockQueue(FileSystem& files, const std::string& dir, const checkpoint::Manifest& manifest,
                       std::vector<Id> blocks, int num_threads)
    : blocks_(std::move(blocks)) {
  const size_t threads = std::min(static_cast<size_t>(num_threads), blocks_.size());
  for (size_t i = 0; i < std::max<size_t>(threads, 1); ++i) {
    lanes_.push_back(std::make_unique<Lane>(ShardReader(files, dir, manifest)));
  }
  for (size_t i = 0; i < threads; ++i) {
    lanes_[i]->thread = std::thread([this, i] { ReadAhead(i); });
  }
}

BlockQueue::~BlockQueue() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  for (const std::unique_ptr<Lane>& lane : lanes_) {
    if (lane->thread.joinable()) lane->thread.join();
  }
}

void BlockQueue::ReadAhead(size_t lane_number) {
  Lane& lane = *lanes_[lane_number];
  for (size_t b = lane_number; b < blocks_.size(); b += lanes_.size()) {
    {
      std::unique_lock<std::mutex> lock(mutex_);
      changed_.wait(lock, [&] { return stop_ || !lane.full; });
      if (stop_) return;
    }
    const absl::Status read = WithoutThrowing([&] {
      lane.block = lane.reader.Block(blocks_[b].file, blocks_[b].number);
      return absl::OkStatus();
    });
    if (!read.ok()) lane.block = read;
    const bool failed = !lane.block.ok();
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      lane.full = true;
    }
    changed_.notify_all();
    if (failed) return;
  }
}

absl::StatusOr<const char*> BlockQueue::Next() {
  CAROUSEL_CHECK(next_ < blocks_.size());
  const Id id = blocks_[next_];
  Lane& lane = *lanes_[next_ % lanes_.size()];
  if (!lane.thread.joinable()) {
    ++next_;
    return lane.reader.Block(id.file, id.number);
  }
  std::unique_lock<std::mutex> lock(mutex_);
  if (next_ > 0) lanes_[(next_ - 1) % lanes_.size()]->full = false;  // the block before is done with
  changed_.notify_all();
  // With one thread it is this lane's block that was given back: wait until it is full again.
  changed_.wait(lock, [&] { return lane.full; });
  ++next_;
  return lane.block;
}
}  // namespace carousel
