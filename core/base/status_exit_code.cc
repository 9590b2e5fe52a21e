#include "core/base/status_exit_code.h"

#include <string>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace carousel {
namespace {
constexpr char kPayload[] = "carousel/exit_code";
}

absl::Status WithExitCode(const absl::Status& status, int exit_code) {
  if (status.ok() || StatedExitCode(status).has_value()) return status;
  absl::Status result = status;
  result.SetPayload(kPayload, absl::Cord(absl::StrCat(exit_code)));
  return result;
}

std::optional<int> StatedExitCode(const absl::Status& status) {
  const auto payload = status.GetPayload(kPayload);
  int exit_code = 0;
  if (!payload.has_value() || !absl::SimpleAtoi(std::string(*payload), &exit_code)) return std::nullopt;
  return exit_code;
}

int ExitCodeOf(const absl::Status& status) {
  if (status.ok()) return kExitOk;
  if (const std::optional<int> stated = StatedExitCode(status)) return *stated;
  return absl::IsInvalidArgument(status) ? kExitUsage : kExitFailure;
}
}  // namespace carousel
