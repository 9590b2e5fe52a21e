#include "checkpoints/directory_probe.h"

#include <random>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "checkpoints/checkpoint_store.h"
#include "checkpoints/collective.h"
#include "checkpoints/run_lease.h"
#include "core/base/status_macros.h"

namespace carousel {
namespace {

constexpr int64_t kProbeBytes = 4096;

std::string Pattern(const std::string& name) {
  std::string pattern;
  while (static_cast<int64_t>(pattern.size()) < kProbeBytes) absl::StrAppend(&pattern, name, "\n");
  return pattern;
}

absl::Status Compare(FileSystem& files, const std::string& path, const std::string& expected) {
  CAROUSEL_ASSIGN_OR_RETURN(const std::string contents,
                            ReadFile(files, path, 2 * static_cast<int64_t>(expected.size())));
  if (contents == expected) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat(path, " does not hold what was written to it"));
}

// What a save does to a file.
absl::Status TryFile(FileSystem& files, const std::string& path) {
  const std::string temporary = path + ".tmp", pattern = Pattern(path);
  CAROUSEL_RETURN_IF_ERROR(WriteFile(files, temporary, pattern));
  CAROUSEL_RETURN_IF_ERROR(files.Rename(temporary, path));
  CAROUSEL_RETURN_IF_ERROR(files.SyncDirectory(ParentPath(path)));
  CAROUSEL_RETURN_IF_ERROR(Compare(files, path, pattern));
  return files.RemoveFile(path);
}

absl::Status ReadRootFile(FileSystem& files, const std::string& path, const std::string& run_dir) {
  const absl::Status read = Compare(files, path, Pattern(path));
  if (!absl::IsNotFound(read)) return read;
  return absl::FailedPreconditionError(absl::StrCat("does not see ", path, ", which rank 0 wrote; run_dir (",
                                                    run_dir,
                                                    ") must be on a file system that all ranks share"));
}
}  // namespace

absl::Status ProbeRunDirectory(const std::string& run_dir, Communicator* communicator, bool probe,
                               FileSystem* files) {
  PosixFileSystem posix;
  FileSystem& fs = files != nullptr ? *files : posix;
  const int rank = RankOf(communicator);
  // Rank 0's file, whose name tells the others that it is there.
  absl::Status status;
  std::string root_path;
  if (rank == 0) {
    std::random_device random;
    root_path = JoinPath(StoreDir(run_dir), absl::StrFormat("%s%08x%08x", kProbePrefix, random(), random()));
    status = CreateDirectories(fs, StoreDir(run_dir));
    if (status.ok()) status = WriteFile(fs, root_path, Pattern(root_path));
    if (status.ok()) status = fs.SyncDirectory(StoreDir(run_dir));
  }
  root_path = BytesOfRank0(communicator, root_path);
  CAROUSEL_CHECK(!root_path.empty());
  const std::string mine = absl::StrCat(root_path, "-", rank);
  // Rank 0's trouble is everybody's: the others would only report that they see nothing.
  absl::Status agreed = AgreeOn(communicator, status);
  if (agreed.ok()) {
    if (probe) {
      status = TryFile(fs, mine);
      if (status.ok()) status = ReadRootFile(fs, root_path, run_dir);
      if (!status.ok()) {
        status =
            absl::Status(status.code(), absl::StrCat("host ", ThisProcess().host, ": ", status.message()));
      }
    }
    agreed = AgreeOn(communicator, status);
  }
  // Best effort: the next start removes what stays.
  if (probe) {
    (void)fs.RemoveFile(mine + ".tmp");
    (void)fs.RemoveFile(mine);
  }
  if (rank == 0) (void)fs.RemoveFile(root_path);
  if (agreed.ok()) return agreed;
  return absl::Status(agreed.code(), absl::StrCat("the run directory cannot be used: ", agreed.message()));
}
}  // namespace carousel
