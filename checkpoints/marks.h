// The marks of checkpoints as files (retention.h says what they mean). A mark is one line: what it says, a
// space, the CRC-32C of that as 8 hex digits. Internal to this folder.
#pragma once
#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "checkpoints/file_system.h"

namespace carousel {

constexpr char kMarksDir[] = "marks";

// "text 0a1b2c3d\n", and back: DataLoss if the checksum is not that of the text.
std::string Checksummed(const std::string& text);
absl::StatusOr<std::string> Unchecksummed(const std::string& line, const std::string& path);

// Without a mark nullopt, false. DataLoss: there is one, and it is damaged.
absl::StatusOr<std::optional<double>> ReadLossMark(FileSystem& files, const std::string& run_dir,
                                                   int64_t step);
// A mark about another checkpoint of the same step counts as none. REQUIRES: the checkpoint exists.
absl::StatusOr<bool> ReadGoodMark(FileSystem& files, const std::string& run_dir, int64_t step);
absl::StatusOr<std::optional<int64_t>> ReadUnhealthyMark(FileSystem& files, const std::string& run_dir);
// Durable on return.
absl::Status WriteUnhealthyMark(FileSystem& files, const std::string& run_dir, int64_t step);
// Removes the marks of the steps for which `gone` says so. temporaries: and what writers left that died; no
// mark is being written meanwhile.
absl::Status RemoveMarks(FileSystem& files, const std::string& run_dir,
                         const std::function<bool(int64_t step)>& gone, bool temporaries);
}  // namespace carousel
