#include "launcher/exit_codes.h"

#include <optional>
#include <string>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace carousel {
namespace {
constexpr char kPayload[] = "carousel/exit_code";
}

absl::Status WithExitCode(const absl::Status& status, int exit_code) {
  absl::Status result = status;
  result.SetPayload(kPayload, absl::Cord(absl::StrCat(exit_code)));
  return result;
}

int ExitCodeOf(const absl::Status& status) {
  if (status.ok()) return kExitOk;
  int exit_code = 0;
  const auto payload = status.GetPayload(kPayload);
  if (payload.has_value() && absl::SimpleAtoi(std::string(*payload), &exit_code)) return exit_code;
  return absl::IsInvalidArgument(status) ? kExitUsage : kExitFailure;
}
}  // namespace carousel
