// The directories of a run that a command makes and, when it fails, does not leave behind.
#pragma once
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "checkpoints/file_system.h"

namespace carousel {

class MadeDirectories {
 public:
  // Before anything is made: which of run_dir/checkpoints and the directories above it are missing.
  static absl::StatusOr<MadeDirectories> Note(const std::string& run_dir, FileSystem& files);
  // After a failure, and after the lease was given back: removes those that were missing and hold nothing now
  // but what a lease leaves. Errors end it quietly: the failure is what counts.
  void RemoveAgain() const;

 private:
  FileSystem* files_ = nullptr;
  std::string run_dir_;
  std::vector<std::string> missing_;  // the deepest first
};
}  // namespace carousel
