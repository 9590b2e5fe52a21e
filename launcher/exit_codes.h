// Exit codes, the same for every subcommand (documented in `carousel --help`).
#pragma once
#include "absl/status/status.h"

namespace carousel {

constexpr int kExitOk = 0;         // done; for train also: stopped early as asked, with a checkpoint
constexpr int kExitFailure = 1;    // the work failed: a file, the disk, a checksum, a tolerance, a rank
constexpr int kExitUsage = 2;      // the command line or the config is wrong; nothing was started
constexpr int kExitNotSaved = 73;  // training could not be saved: too often in a row, or at its end

// The same status, for which the process ends with this code.
absl::Status WithExitCode(const absl::Status& status, int exit_code);
// What WithExitCode says; else kExitUsage for InvalidArgument (what the user wrote is wrong), kExitOk for
// success, kExitFailure for anything else.
int ExitCodeOf(const absl::Status& status);
}  // namespace carousel
