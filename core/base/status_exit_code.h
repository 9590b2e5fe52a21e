// An absl::Status that says with which code the process ends because of it.
#pragma once
#include <optional>

#include "absl/status/status.h"
#include "core/base/exit_code.h"

namespace carousel {

// The same status with the code as a payload; an OK status stays as it is. A code that it has already stays.
absl::Status WithExitCode(const absl::Status& status, int exit_code);
// What WithExitCode said.
std::optional<int> StatedExitCode(const absl::Status& status);
// What WithExitCode said; else kExitOk for success, kExitUsage for InvalidArgument (what the user wrote is
// wrong), kExitFailure for anything else.
int ExitCodeOf(const absl::Status& status);
}  // namespace carousel
