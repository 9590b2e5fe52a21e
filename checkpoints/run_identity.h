// Which run a directory and a checkpoint belong to. Every run has an id, 128 random bits drawn when it is
// begun:
//
//   <run_dir>/run_id                  "run <32 hex digits> <CRC-32C>\n"
//   Manifest.run_id                   the same 32 digits, in every checkpoint of the run
//
// A directory that was moved or copied holds the same run. A checkpoint under checkpoints/ of a run directory
// with another id is of another run, however it came there: it is refused when it is opened, and never
// removed. Checkpoints of programs that knew no ids have something else in Manifest.run_id: they are of an
// unknown run and are taken wherever they lie.
#pragma once
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "checkpoints/file_system.h"

namespace carousel {

constexpr char kRunIdFile[] = "run_id";

std::string NewRunId();
bool IsRunId(const std::string& text);  // 32 digits 0 to 9, a to f

// The id of the run that lives in run_dir: what run_id says, else what its checkpoints say. Empty: there is
// no run, or one without an id. FailedPrecondition: the checkpoints are of several runs, or (if run_id says
// something and `all` is set) of others than run_id says; names the files and both ids. A run_id that is
// damaged counts as missing.
absl::StatusOr<std::string> RunIdOf(const std::string& run_dir, bool all = true, FileSystem* files = nullptr);
// Writes run_id, if it does not say so already. Durable on return.
absl::Status WriteRunId(const std::string& run_dir, const std::string& id, FileSystem* files = nullptr);

// The id in the manifest of a committed checkpoint; empty: of an unknown run. Errors as ReadManifestPayload.
absl::StatusOr<std::string> RunIdOfCheckpoint(const std::string& dir, FileSystem* files = nullptr);
// What run_id of the run directory says; empty if there is none or it is damaged.
absl::StatusOr<std::string> ReadRunIdFile(const std::string& run_dir, FileSystem* files = nullptr);
// The run directory in whose checkpoints/ the checkpoint `dir` lies, by its name alone; empty: in none.
std::string RunDirAbove(const std::string& dir);
// DataLoss if a checkpoint with this id in its manifest lies in the directory of another run.
absl::Status CheckBelongs(const std::string& dir, const std::string& id_in_manifest, FileSystem& files);
// FailedPrecondition if run_dir is that of another run than `id` (empty: unknown, which is another one too).
// what: "a checkpoint of runs/a", for the message. OK if nothing lives in run_dir.
absl::Status CheckMayReceive(const std::string& run_dir, const std::string& id, const std::string& what,
                             FileSystem* files = nullptr);
// FailedPrecondition if `path`, a file or directory that a command is to make, would lie in a checkpoint or
// among those of a run.
absl::Status CheckOutsideCheckpoints(const std::string& path, FileSystem& files);
// FailedPrecondition if run_id of run_dir says another run than `id`, for which a checkpoint is to be saved.
// OK if either says nothing.
absl::Status CheckStillSame(const std::string& run_dir, const std::string& id, FileSystem& files);
}  // namespace carousel
