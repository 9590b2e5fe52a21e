#include "checkpoints/marks.h"

#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "checkpoints/checkpoint_store.h"
#include "checkpoints/crc32c.h"
#include "checkpoints/manifest.h"
#include "checkpoints/retention.h"
#include "core/base/status_macros.h"

namespace carousel {
namespace {

constexpr char kLossSuffix[] = ".loss";
constexpr char kGoodSuffix[] = ".good";
constexpr char kUnhealthyMark[] = "last_unhealthy";
constexpr char kTemporarySuffix[] = ".tmp";  // of ReplaceFile
constexpr int64_t kMaxMarkBytes = 4096;

std::string MarksDir(const std::string& run_dir) { return JoinPath(StoreDir(run_dir), kMarksDir); }
std::string MarkPath(const std::string& run_dir, int64_t step, const char* suffix) {
  return JoinPath(MarksDir(run_dir), StepName(step) + suffix);
}

absl::Status WriteMark(FileSystem& files, const std::string& path, const std::string& text) {
  CAROUSEL_RETURN_IF_ERROR(CreateDirectories(files, ParentPath(path)));
  return ReplaceFile(files, path, Checksummed(text));
}

// The words of a mark; none if there is no mark.
absl::StatusOr<std::vector<std::string>> ReadMark(FileSystem& files, const std::string& path) {
  CAROUSEL_ASSIGN_OR_RETURN(const FileInfo info, files.Stat(path));
  if (!info.exists) return std::vector<std::string>();
  const absl::StatusOr<std::string> line = ReadFile(files, path, kMaxMarkBytes);
  if (absl::IsNotFound(line.status())) return std::vector<std::string>();
  CAROUSEL_RETURN_IF_ERROR(line.status());
  CAROUSEL_ASSIGN_OR_RETURN(const std::string text, Unchecksummed(*line, path));
  return std::vector<std::string>(absl::StrSplit(text, ' '));
}

absl::Status Misread(const std::string& path) {
  return absl::DataLossError(absl::StrCat(path, " does not say what a mark of its name says; remove it"));
}

// What tells a checkpoint from another one of the same step: the checksum at the end of its manifest.
absl::StatusOr<std::string> ManifestIdentity(FileSystem& files, const std::string& dir) {
  CAROUSEL_ASSIGN_OR_RETURN(const std::unique_ptr<ReadableFile> manifest,
                            files.OpenFile(JoinPath(dir, kManifestFile)));
  unsigned char crc[4] = {};
  if (manifest->size() < 4) return absl::DataLossError(absl::StrCat(dir, ": the manifest is cut off"));
  CAROUSEL_RETURN_IF_ERROR(manifest->ReadAt(manifest->size() - 4, crc, 4));
  return absl::StrFormat("%02x%02x%02x%02x", crc[3], crc[2], crc[1], crc[0]);
}
}  // namespace

std::string Checksummed(const std::string& text) {
  const uint32_t crc = UpdateCrc32c(0, text.data(), static_cast<int64_t>(text.size()));
  return absl::StrFormat("%s %08x\n", text, crc);
}

absl::StatusOr<std::string> Unchecksummed(const std::string& line, const std::string& path) {
  constexpr size_t kTail = 10;  // a space, 8 digits, a line feed
  const std::string text = line.size() < kTail ? std::string() : line.substr(0, line.size() - kTail);
  if (line.size() < kTail || Checksummed(text) != line) {
    return absl::DataLossError(absl::StrCat(path, " is damaged: its checksum is not that of its text"));
  }
  return text;
}

absl::StatusOr<std::optional<double>> ReadLossMark(FileSystem& files, const std::string& run_dir,
                                                   int64_t step) {
  const std::string path = MarkPath(run_dir, step, kLossSuffix);
  CAROUSEL_ASSIGN_OR_RETURN(const std::vector<std::string> words, ReadMark(files, path));
  if (words.empty()) return std::optional<double>();
  double loss = 0;
  if (words.size() != 3 || words[0] != StepName(step) || words[1] != "validation_loss" ||
      !absl::SimpleAtod(words[2], &loss)) {
    return Misread(path);
  }
  return std::optional<double>(loss);
}

absl::StatusOr<bool> ReadGoodMark(FileSystem& files, const std::string& run_dir, int64_t step) {
  const std::string path = MarkPath(run_dir, step, kGoodSuffix);
  CAROUSEL_ASSIGN_OR_RETURN(const std::vector<std::string> words, ReadMark(files, path));
  if (words.empty()) return false;
  if (words.size() != 4 || words[0] != StepName(step) || words[1] != "good" || words[2] != "manifest") {
    return Misread(path);
  }
  CAROUSEL_ASSIGN_OR_RETURN(const std::string identity,
                            ManifestIdentity(files, JoinPath(StoreDir(run_dir), StepName(step))));
  return words[3] == identity;
}

absl::StatusOr<std::optional<int64_t>> ReadUnhealthyMark(FileSystem& files, const std::string& run_dir) {
  const std::string path = JoinPath(MarksDir(run_dir), kUnhealthyMark);
  CAROUSEL_ASSIGN_OR_RETURN(const std::vector<std::string> words, ReadMark(files, path));
  if (words.empty()) return std::optional<int64_t>();
  int64_t step = 0;
  if (words.size() != 2 || words[0] != kUnhealthyMark || !absl::SimpleAtoi(words[1], &step)) {
    return Misread(path);
  }
  return std::optional<int64_t>(step);
}

absl::Status WriteUnhealthyMark(FileSystem& files, const std::string& run_dir, int64_t step) {
  return WriteMark(files, JoinPath(MarksDir(run_dir), kUnhealthyMark),
                   absl::StrCat(kUnhealthyMark, " ", step));
}

absl::Status RemoveMarks(FileSystem& files, const std::string& run_dir,
                         const std::function<bool(int64_t step)>& gone, bool temporaries) {
  const std::string dir = MarksDir(run_dir);
  CAROUSEL_ASSIGN_OR_RETURN(const FileInfo info, files.Stat(dir));
  if (!info.is_directory) return absl::OkStatus();
  CAROUSEL_ASSIGN_OR_RETURN(const std::vector<std::string> names, files.ListDirectory(dir));
  for (const std::string& name : names) {
    const int64_t step = StepOfName(name.substr(0, name.find('.')));
    const bool temporary = absl::EndsWith(name, kTemporarySuffix);
    if (temporary ? !temporaries : step < 0 || !gone(step)) continue;
    const absl::Status removed = files.RemoveFile(JoinPath(dir, name));
    if (!removed.ok() && !absl::IsNotFound(removed)) return removed;
  }
  return absl::OkStatus();
}

absl::Status RecordValidationLoss(const std::string& run_dir, int64_t step, double loss, FileSystem* files) {
  PosixFileSystem posix;
  // 17 digits are the number again.
  return WriteMark(files != nullptr ? *files : posix, MarkPath(run_dir, step, kLossSuffix),
                   absl::StrFormat("%s validation_loss %.17g", StepName(step), loss));
}

absl::Status MarkGood(const std::string& run_dir, int64_t step, FileSystem* files) {
  PosixFileSystem posix;
  FileSystem& fs = files != nullptr ? *files : posix;
  CAROUSEL_ASSIGN_OR_RETURN(const std::string identity,
                            ManifestIdentity(fs, JoinPath(StoreDir(run_dir), StepName(step))));
  return WriteMark(fs, MarkPath(run_dir, step, kGoodSuffix),
                   absl::StrCat(StepName(step), " good manifest ", identity));
}

absl::Status ForgetMarksAfter(const std::string& run_dir, int64_t step, FileSystem* files) {
  PosixFileSystem posix;
  return RemoveMarks(
      files != nullptr ? *files : posix, run_dir, [&](int64_t s) { return s > step; }, /*temporaries=*/true);
}

}  // namespace carousel
