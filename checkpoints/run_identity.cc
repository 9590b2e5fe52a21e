#include "checkpoints/run_identity.h"

#include <algorithm>
#include <random>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "checkpoints/checkpoint.h"
#include "checkpoints/checkpoint_store.h"
#include "checkpoints/manifest.h"
#include "checkpoints/marks.h"
#include "core/base/status_macros.h"

namespace carousel {
namespace pb = checkpoint;
namespace {

constexpr size_t kIdDigits = 32;
constexpr char kPrefix[] = "run ";
constexpr int64_t kMaxFileBytes = 4096;

std::string Name(const std::string& id) { return id.empty() ? "an unknown run" : absl::StrCat("run ", id); }
}  // namespace

std::string NewRunId() {
  std::random_device random;
  return absl::StrFormat("%08x%08x%08x%08x", random(), random(), random(), random());
}

bool IsRunId(const std::string& text) {
  return text.size() == kIdDigits && std::all_of(text.begin(), text.end(), [](char c) {
           return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
         });
}

absl::StatusOr<std::string> ReadRunIdFile(const std::string& run_dir, FileSystem* files) {
  PosixFileSystem posix;
  FileSystem& fs = files != nullptr ? *files : posix;
  const std::string path = JoinPath(run_dir, kRunIdFile);
  CAROUSEL_ASSIGN_OR_RETURN(const FileInfo info, fs.Stat(path));
  if (!info.exists || info.is_directory || info.size > kMaxFileBytes) return std::string();
  const absl::StatusOr<std::string> line = ReadFile(fs, path, kMaxFileBytes);
  if (absl::IsNotFound(line.status()) || absl::IsDataLoss(line.status())) return std::string();
  CAROUSEL_RETURN_IF_ERROR(line.status());
  const absl::StatusOr<std::string> text = Unchecksummed(*line, path);
  if (!text.ok() || !absl::StartsWith(*text, kPrefix)) return std::string();
  const std::string id = text->substr(sizeof(kPrefix) - 1);
  return IsRunId(id) ? id : std::string();
}

absl::StatusOr<std::string> RunIdOfCheckpoint(const std::string& dir, FileSystem* files) {
  PosixFileSystem posix;
  CAROUSEL_ASSIGN_OR_RETURN(const std::string payload,
                            ReadManifestPayload(files != nullptr ? *files : posix, dir));
  pb::Manifest manifest;
  if (!manifest.ParseFromString(payload)) {
    return absl::DataLossError(absl::StrCat(JoinPath(dir, kManifestFile), " cannot be parsed"));
  }
  return IsRunId(manifest.run_id()) ? manifest.run_id() : std::string();
}

absl::StatusOr<std::string> RunIdOf(const std::string& run_dir, bool all, FileSystem* files) {
  PosixFileSystem posix;
  FileSystem& fs = files != nullptr ? *files : posix;
  CAROUSEL_ASSIGN_OR_RETURN(std::string id, ReadRunIdFile(run_dir, &fs));
  if (!id.empty() && !all) return id;
  std::string said_by = id.empty() ? "" : JoinPath(run_dir, kRunIdFile);
  CAROUSEL_ASSIGN_OR_RETURN(const std::vector<std::string> dirs, ListCheckpoints(run_dir, &fs));
  for (size_t i = dirs.size(); i-- > 0;) {
    const absl::StatusOr<std::string> of = RunIdOfCheckpoint(dirs[i], &fs);
    // What is damaged or went away says nothing.
    if (absl::IsDataLoss(of.status()) || absl::IsNotFound(of.status())) continue;
    CAROUSEL_RETURN_IF_ERROR(of.status());
    if (of->empty() || *of == id) continue;
    if (!id.empty()) {
      return absl::FailedPreconditionError(absl::StrCat(
          JoinPath(dirs[i], kManifestFile), " is of run ", *of, ", and ", said_by, " of run ", id,
          ": checkpoints of two runs in one run directory; move those of the other run to a "
          "directory of their own"));
    }
    id = *of;
    said_by = JoinPath(dirs[i], kManifestFile);
  }
  return id;
}

absl::Status WriteRunId(const std::string& run_dir, const std::string& id, FileSystem* files) {
  PosixFileSystem posix;
  FileSystem& fs = files != nullptr ? *files : posix;
  CAROUSEL_ASSIGN_OR_RETURN(const std::string there, ReadRunIdFile(run_dir, &fs));
  if (there == id) return absl::OkStatus();
  const absl::Status written =
      ReplaceFile(fs, JoinPath(run_dir, kRunIdFile), Checksummed(absl::StrCat(kPrefix, id)));
  if (!absl::IsAlreadyExists(written)) return written;
  return absl::AlreadyExistsError(absl::StrCat(written.message(), "; move away what stands there"));
}

std::string RunDirAbove(const std::string& dir) {
  const std::string store = DirectoryAbove(dir), name = NameAtEnd(store);
  if (name != "checkpoints" && name != "." && name != "..") return "";
  return DirectoryAbove(store);
}

absl::Status CheckBelongs(const std::string& dir, const std::string& id_in_manifest, FileSystem& files) {
  if (!IsRunId(id_in_manifest)) return absl::OkStatus();
  const std::string run_dir = RunDirAbove(dir);
  if (run_dir.empty()) return absl::OkStatus();
  CAROUSEL_ASSIGN_OR_RETURN(const std::string id, ReadRunIdFile(run_dir, &files));
  if (id.empty() || id == id_in_manifest) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat(
      JoinPath(dir, kManifestFile), " is of another run: of run ", id_in_manifest, ", and ",
      JoinPath(run_dir, kRunIdFile), " says run ", id, "; move the checkpoint to a directory of its own"));
}

absl::Status CheckOutsideCheckpoints(const std::string& path, FileSystem& files) {
  std::string folder = DirectoryAbove(path);
  // A checkpoint is a directory in checkpoints/ of a run, and nothing lies deeper: two levels will do.
  for (int level = 0; level < 2; ++level, folder = DirectoryAbove(folder)) {
    CAROUSEL_ASSIGN_OR_RETURN(const FileInfo manifest, files.Stat(JoinPath(folder, kManifestFile)));
    bool inside = manifest.exists;
    if (!inside && NameAtEnd(folder) == "checkpoints") {
      CAROUSEL_ASSIGN_OR_RETURN(const FileInfo run, files.Stat(JoinPath(DirectoryAbove(folder), kRunIdFile)));
      inside = run.exists;
    }
    if (inside) {
      return absl::FailedPreconditionError(
          absl::StrCat(path, " would lie among the checkpoints of a run; choose another place"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckStillSame(const std::string& run_dir, const std::string& id, FileSystem& files) {
  if (!IsRunId(id)) return absl::OkStatus();
  CAROUSEL_ASSIGN_OR_RETURN(const std::string there, ReadRunIdFile(run_dir, &files));
  if (there.empty() || there == id) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(JoinPath(run_dir, kRunIdFile), " says run ", there,
                                                    ", and the checkpoint would be of run ", id,
                                                    "; use another run_dir"));
}

absl::Status CheckMayReceive(const std::string& run_dir, const std::string& id, const std::string& what,
                             FileSystem* files) {
  PosixFileSystem posix;
  FileSystem& fs = files != nullptr ? *files : posix;
  CAROUSEL_ASSIGN_OR_RETURN(const std::string there, RunIdOf(run_dir, /*all=*/true, &fs));
  CAROUSEL_ASSIGN_OR_RETURN(const std::vector<std::string> checkpoints, ListStepDirectories(fs, run_dir));
  if (there == id || (there.empty() && checkpoints.empty())) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(run_dir, " belongs to ", Name(there), ", and ", what,
                                                    " is of ", Name(id),
                                                    "; give a directory that does not exist yet"));
}
}  // namespace carousel
