// The directory run_dir/checkpoints: names in it, what is committed, what is left over. Internal to this
// folder; the public part is in checkpoint.h.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "checkpoints/checkpoint.h"
#include "checkpoints/manifest.pb.h"

namespace carousel {

constexpr char kTemporaryPrefix[] = ".tmp-";
constexpr char kTrashPrefix[] = ".trash-";
constexpr char kBadPrefix[] = ".bad-";
constexpr char kAsidePrefix[] = ".aside-";  // whole, but of steps that the run went back behind
constexpr char kLatestFile[] = "LATEST";
constexpr char kLeaseFile[] = ".lease";
constexpr char kLeaseLockSuffix[] = ".lock";
constexpr char kProbePrefix[] = ".probe-";

std::string StoreDir(const std::string& run_dir);  // run_dir/checkpoints
std::string NameAtEnd(const std::string& path);    // "b" of "a/b" and "a/b//"
// The directory above, also of a path that ends in "." or "..".
std::string DirectoryAbove(const std::string& path);
std::string StepName(int64_t step);           // "step-000000200"
int64_t StepOfName(const std::string& name);  // -1 if it is no such name

// All step-* directories of a run, by step, newest last, whether they have a manifest or not.
absl::StatusOr<std::vector<std::string>> ListStepDirectories(FileSystem& files, const std::string& run_dir);

// The manifest, state.pb verified, the files all there with the right sizes. NotFound: no manifest.
struct OpenedCheckpoint {
  std::string manifest_payload, state_payload;
  checkpoint::Manifest manifest;
  TrainState state;
};
absl::StatusOr<OpenedCheckpoint> OpenAndCheck(FileSystem& files, const std::string& dir);
CheckpointInfo InfoOf(const OpenedCheckpoint& opened, const std::string& dir);

// Renames run_dir/checkpoints/<name> to <prefix><name>, with a number if that exists; durable. *to
// (optional): the new path.
absl::Status MoveAside(FileSystem& files, const std::string& run_dir, const std::string& name,
                       const std::string& prefix, std::string* to);
// The line in LATEST: the name and its CRC-32C.
absl::Status WriteLatest(FileSystem& files, const std::string& run_dir, const std::string& name);
}  // namespace carousel
