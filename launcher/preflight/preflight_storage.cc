#include "launcher/preflight/preflight_storage.h"

#include <sys/statfs.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "checkpoints/directory_probe.h"
#include "core/base/status_macros.h"

namespace carousel {
namespace {
// Files of this name that a crash leaves behind are removed by the next start of a run.
constexpr char kTrialPrefix[] = ".probe-";
constexpr int64_t kHeaderBytes = 64 << 10, kBlockBytes = 4 << 10, kNumBlocks = 64;

double Seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// The directories of the path that do not exist, outermost first.
std::vector<std::string> MissingDirectories(FileSystem& files, std::string path) {
  std::vector<std::string> missing;
  while (true) {
    const absl::StatusOr<FileInfo> info = files.Stat(path);
    if (!info.ok() || info->exists) break;
    missing.push_back(path);
    const std::string parent = ParentPath(path);
    if (parent == path) break;
    path = parent;
  }
  std::reverse(missing.begin(), missing.end());
  return missing;
}

int64_t BytesBelow(const std::string& directory) {
  int64_t bytes = 0;
  std::error_code error;
  for (std::filesystem::recursive_directory_iterator it(directory, error), end; !error && it != end;
       it.increment(error)) {
    std::error_code ignored;
    const uint64_t size = it->is_regular_file(ignored) ? it->file_size(ignored) : 0;
    if (!ignored) bytes += static_cast<int64_t>(size);
  }
  return bytes;
}

// Writes as a save does; the seconds until everything is on the disk.
absl::StatusOr<double> TimeWrite(FileSystem& files, const std::string& path, int64_t bytes) {
  constexpr int64_t kPiece = 1 << 20;
  std::vector<char> piece(kPiece);
  // Nothing that a file system could compress to nothing.
  uint32_t state = 1;
  for (char& byte : piece) {
    state = state * 1664525 + 1013904223;
    byte = static_cast<char>(state >> 24);
  }
  const std::string temporary = path + ".tmp";
  const double start = Seconds();
  CAROUSEL_ASSIGN_OR_RETURN(const std::unique_ptr<WritableFile> file, files.CreateFile(temporary));
  for (int64_t written = 0; written < bytes; written += kPiece) {
    CAROUSEL_RETURN_IF_ERROR(file->Append(piece.data(), std::min(kPiece, bytes - written)));
  }
  CAROUSEL_RETURN_IF_ERROR(file->Sync());
  CAROUSEL_RETURN_IF_ERROR(file->Close());
  CAROUSEL_RETURN_IF_ERROR(files.Rename(temporary, path));
  CAROUSEL_RETURN_IF_ERROR(files.SyncDirectory(ParentPath(path)));
  return std::max(Seconds() - start, 1e-9);
}

// Whether a lock that rank 0 holds is one for all: what is wrong with it, empty if nothing.
std::string TryLock(FileSystem& files, const std::string& path, bool try_too, Communicator& world) {
  std::unique_ptr<FileLock> lock;
  std::string problem;
  if (world.rank() == 0) {
    absl::StatusOr<std::unique_ptr<FileLock>> mine = files.Lock(path, "preflight");
    if (mine.ok()) {
      lock = std::move(*mine);
    } else {
      problem = std::string(mine.status().message());
    }
  }
  const std::string of_rank0 = BroadcastBytes(world, problem, 0);
  if (!of_rank0.empty()) return of_rank0;
  if (world.rank() != 0 && try_too) {
    const absl::StatusOr<std::unique_ptr<FileLock>> second = files.Lock(path, "preflight");
    if (second.ok()) {
      problem = "a lock that rank 0 holds was given to this rank as well";
    } else if (!absl::IsFailedPrecondition(second.status())) {
      problem = std::string(second.status().message());
    }
  }
  world.Barrier();  // rank 0 holds its lock until all have tried
  return problem;
}
}  // namespace

std::string FileSystemName(const std::string& path) {
  struct statfs info {};
  if (statfs(path.c_str(), &info) != 0) return "";
  // linux/magic.h, and the file systems' own sources for those that are not part of the kernel.
  const std::pair<uint32_t, const char*> kNames[] = {
      {0xEF53, "ext4"},         {0x58465342, "xfs"},  {0x9123683E, "btrfs"},  {0x01021994, "tmpfs"},
      {0x794C7630, "overlay"},  {0x6969, "nfs"},      {0xFF534D42, "cifs"},   {0xFE534D42, "smb"},
      {0x0BD00BD0, "lustre"},   {0x47504653, "gpfs"}, {0x19830326, "beegfs"}, {0x00C36400, "ceph"},
      {0x65735546, "fuse"},     {0x01021997, "9p"},   {0x2FC12FC1, "zfs"},    {0x858458F6, "ramfs"},
      {0x6A656A63, "virtiofs"}, {0x73757245, "coda"}};
  const uint32_t type = static_cast<uint32_t>(info.f_type);
  for (const auto& [number, name] : kNames) {
    if (number == type) return name;
  }
  return absl::StrFormat("file system 0x%x", type);
}

StorageFacts TryStorage(const StorageTrial& trial, Communicator& world, FileSystem* files) {
  PosixFileSystem posix;
  FileSystem& fs = files != nullptr ? *files : posix;
  StorageFacts facts{.asked = true, .directory = trial.run_dir};
  const std::string store = JoinPath(trial.run_dir, "checkpoints");
  std::vector<std::string> missing;
  if (world.rank() == 0) {
    missing = MissingDirectories(fs, store);
    facts.existing_bytes = missing.empty() ? BytesBelow(store) : 0;
  }

  const absl::Status usable = ProbeRunDirectory(trial.run_dir, &world, trial.probe, &fs);
  facts.error = std::string(usable.message());
  if (usable.ok()) {
    const std::string number = BroadcastBytes(
        world, absl::StrCat(static_cast<int64_t>(getpid()), "-", static_cast<int64_t>(Seconds() * 1e6)), 0);
    const std::string base = JoinPath(store, absl::StrCat(kTrialPrefix, "trial-", number));
    const absl::StatusOr<int64_t> free = fs.FreeBytes(store);
    if (free.ok()) facts.free_bytes = *free;
    // A trial must not be what fills the disk, whoever else writes at the same time.
    const int64_t write_bytes =
        free.ok() ? std::min(trial.write_bytes, *free / 8 / world.size()) : trial.write_bytes;
    if (trial.measure && write_bytes > 0) {
      const std::string path = absl::StrCat(base, "-", world.rank());
      const absl::StatusOr<double> seconds = TimeWrite(fs, path, write_bytes);
      if (seconds.ok()) {
        facts.write_bytes = write_bytes;
        facts.write_seconds = *seconds;
      } else {
        facts.write_error = std::string(seconds.status().message());
      }
      (void)fs.RemoveFile(path + ".tmp");
      (void)fs.RemoveFile(path);
    }
    facts.lock_error = TryLock(fs, base + ".lock", trial.probe, world);
    if (world.rank() == 0) (void)fs.RemoveFile(base + ".lock");
    facts.file_system = FileSystemName(store);
    struct statfs info {};
    if (statfs(store.c_str(), &info) == 0) {
      facts.total_bytes = static_cast<int64_t>(info.f_blocks) * static_cast<int64_t>(info.f_bsize);
    }
  }
  world.Barrier();  // nobody needs the directory any more
  if (world.rank() == 0) {
    for (auto path = missing.rbegin(); path != missing.rend(); ++path) (void)fs.RemoveDirectory(*path);
  }
  return facts;
}

TokenFileFacts DigestFile(const std::string& path, FileSystem* files) {
  PosixFileSystem posix;
  FileSystem& fs = files != nullptr ? *files : posix;
  TokenFileFacts facts{.path = path};
  const absl::StatusOr<std::unique_ptr<ReadableFile>> file = fs.OpenFile(path);
  if (!file.ok()) {
    facts.error = std::string(file.status().message());
    return facts;
  }
  const int64_t size = (*file)->size();
  facts.bytes = size;
  uint64_t digest = 0xcbf29ce484222325u;  // FNV-1a
  const auto add = [&](const void* data, int64_t bytes) {
    const auto* const begin = static_cast<const unsigned char*>(data);
    for (int64_t i = 0; i < bytes; ++i) digest = (digest ^ begin[i]) * 0x100000001b3u;
  };
  add(&size, sizeof(size));
  const auto add_block = [&](int64_t offset, int64_t bytes) {
    std::vector<char> block(static_cast<size_t>(std::max<int64_t>(0, std::min(bytes, size - offset))));
    const int64_t length = static_cast<int64_t>(block.size());
    if (!facts.error.empty() || length == 0) return;
    const absl::Status read = (*file)->ReadAt(offset, block.data(), length);
    if (!read.ok()) facts.error = std::string(read.message());
    add(block.data(), length);
  };
  add_block(0, kHeaderBytes);
  // From the first block to the last, which ends with the file.
  const int64_t last = std::max<int64_t>(0, size - kBlockBytes), steps = kNumBlocks - 1;
  for (int64_t i = 0; size > kHeaderBytes && i < kNumBlocks; ++i) {
    add_block(last / steps * i + last % steps * i / steps, kBlockBytes);
  }
  facts.digest = absl::StrFormat("%016x", digest);
  return facts;
}
}  // namespace carousel
