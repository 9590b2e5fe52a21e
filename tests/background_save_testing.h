// Ranks that save in the background, for the tests of BackgroundSaver: steps that do nothing but go by.
#pragma once
#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "checkpoints/background_saver.h"
#include "tests/checkpoint_testing.h"

namespace carousel {

// Holds whoever comes through until it is opened.
class Gate {
 public:
  void Pass() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return open_; });
  }
  void Open() {
    const std::lock_guard<std::mutex> lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool open_ = false;
};

// One step of training of this rank: the sum of what the savers contribute, and what follows from it.
inline std::optional<SaveOutcome> OneStep(BackgroundSaver& saver, Communicator* communicator) {
  std::vector<int64_t> numbers;
  saver.Contribute(&numbers);
  if (communicator != nullptr) {
    communicator->AllReduceSum(Tensor(numbers.data(), DType::kI64, {static_cast<int64_t>(numbers.size())}));
  }
  saver.WaitUntilStaged();
  return saver.Advance(numbers.data());
}
// Steps until the save has ended; *num_steps (optional) counts them.
inline SaveOutcome StepUntilEnd(BackgroundSaver& saver, Communicator* communicator,
                                int* num_steps = nullptr) {
  while (true) {
    if (num_steps != nullptr) ++*num_steps;
    if (std::optional<SaveOutcome> outcome = OneStep(saver, communicator)) return *outcome;
    std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
}

// A file system that tells somebody of every call before it makes it.
class ObservedFiles final : public FileSystem {
 public:
  using Observer = std::function<void(const std::string& call, const std::string& path)>;
  ObservedFiles(FileSystem& files, Observer observer) : files_(files), observer_(std::move(observer)) {}

  absl::StatusOr<std::unique_ptr<WritableFile>> CreateFile(const std::string& path) override {
    observer_("create", path);
    absl::StatusOr<std::unique_ptr<WritableFile>> file = files_.CreateFile(path);
    if (!file.ok()) return file.status();
    return std::unique_ptr<WritableFile>(std::make_unique<Writer>(*this, path, std::move(*file)));
  }
  absl::StatusOr<std::unique_ptr<ReadableFile>> OpenFile(const std::string& path) override {
    observer_("open", path);
    return files_.OpenFile(path);
  }
  absl::StatusOr<FileInfo> Stat(const std::string& path) override {
    observer_("stat", path);
    return files_.Stat(path);
  }
  absl::StatusOr<std::vector<std::string>> ListDirectory(const std::string& path) override {
    observer_("list", path);
    return files_.ListDirectory(path);
  }
  absl::Status CreateDirectory(const std::string& path) override {
    observer_("mkdir", path);
    return files_.CreateDirectory(path);
  }
  absl::Status Rename(const std::string& from, const std::string& to) override {
    observer_("rename", to);
    return files_.Rename(from, to);
  }
  absl::Status LinkFile(const std::string& from, const std::string& to) override {
    observer_("link", to);
    return files_.LinkFile(from, to);
  }
  absl::Status RemoveFile(const std::string& path) override {
    observer_("unlink", path);
    return files_.RemoveFile(path);
  }
  absl::Status RemoveDirectory(const std::string& path) override {
    observer_("rmdir", path);
    return files_.RemoveDirectory(path);
  }
  absl::Status SyncDirectory(const std::string& path) override {
    observer_("fsync", path);
    return files_.SyncDirectory(path);
  }
  absl::Status SyncFile(const std::string& path) override {
    observer_("fdatasync", path);
    return files_.SyncFile(path);
  }
  absl::Status DropCached(const std::string& path) override {
    observer_("fadvise", path);
    return files_.DropCached(path);
  }
  absl::StatusOr<int64_t> FreeBytes(const std::string& path) override {
    observer_("statvfs", path);
    return files_.FreeBytes(path);
  }
  absl::StatusOr<std::unique_ptr<FileLock>> Lock(const std::string& path, const std::string& owner) override {
    observer_("lock", path);
    return files_.Lock(path, owner);
  }

 private:
  class Writer final : public WritableFile {
   public:
    Writer(ObservedFiles& files, std::string path, std::unique_ptr<WritableFile> file)
        : files_(files), path_(std::move(path)), file_(std::move(file)) {}
    absl::Status Append(const void* data, int64_t num_bytes) override {
      files_.observer_("write", path_);
      return file_->Append(data, num_bytes);
    }
    absl::Status Sync() override {
      files_.observer_("fdatasync", path_);
      return file_->Sync();
    }
    absl::Status Close() override {
      files_.observer_("close", path_);
      return file_->Close();
    }

   private:
    ObservedFiles& files_;
    std::string path_;
    std::unique_ptr<WritableFile> file_;
  };

  FileSystem& files_;
  const Observer observer_;
};
}  // namespace carousel
