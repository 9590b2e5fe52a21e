// Reads a list of blocks of a checkpoint ahead of the one who uses them. Internal to this folder.
#pragma once
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "checkpoints/file_system.h"
#include "checkpoints/manifest.pb.h"
#include "checkpoints/shard_reader.h"

namespace carousel {

class BlockQueue {
 public:
  struct Id {
    int64_t file = 0, number = 0;
  };
  // `num_threads` threads read and check blocks, each one block at a time: so many blocks are in memory. With
  // 0, Next() reads. References must outlive the queue.
  BlockQueue(FileSystem& files, const std::string& dir, const checkpoint::Manifest& manifest,
             std::vector<Id> blocks, int num_threads);
  ~BlockQueue();
  BlockQueue(const BlockQueue&) = delete;
  BlockQueue& operator=(const BlockQueue&) = delete;

  // The contents of the next block of the list, valid until the next call. Errors as ShardReader's.
  // REQUIRES: there is one, and no earlier call failed.
  absl::StatusOr<const char*> Next();

 private:
  // Every n-th block of the list, from one on; of the reader's blocks one at a time.
  struct Lane {
    explicit Lane(ShardReader r) : reader(std::move(r)) {}
    ShardReader reader;
    absl::StatusOr<const char*> block = nullptr;
    bool full = false;  // guarded by mutex_; while it is, the user has the reader, otherwise the thread
    std::thread thread;
  };
  void ReadAhead(size_t lane);

  const std::vector<Id> blocks_;
  size_t next_ = 0;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool stop_ = false;
  std::vector<std::unique_ptr<Lane>> lanes_;
};
}  // namespace carousel
