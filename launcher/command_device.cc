#include "launcher/command_device.h"

#include "absl/strings/str_cat.h"
#include "core/base/status_macros.h"
#include "kernels/make_device.h"

namespace carousel {

absl::StatusOr<CommandDevice> MakeCommandDevice(const std::string& name, int64_t threads) {
  CommandDevice result;
  CAROUSEL_ASSIGN_OR_RETURN(result.environment, Environment::Start());
  if (result.environment->size() > 1) {
    return absl::InvalidArgumentError(absl::StrCat("this command runs alone, not as one of ",
                                                   result.environment->size(),
                                                   " ranks; start it without mpirun"));
  }
  if (threads <= 0) threads = result.environment->default_threads();
  std::string error;
  result.device = MakeDevice(name, static_cast<int>(threads), &error);
  if (result.device == nullptr) return absl::InvalidArgumentError(absl::StrCat("device ", name, ": ", error));
  return result;
}
}  // namespace carousel
