// The device of a subcommand that computes alone, without ranks.
#pragma once
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "core/device.h"
#include "launcher/environment.h"

namespace carousel {

struct CommandDevice {
  std::unique_ptr<Environment> environment;
  std::unique_ptr<Device> device;  // destroyed before the environment
};

// name: "cpu" or "cuda:N"; threads: 0 for all cores that this process may use. InvalidArgument if there is no
// such device, or if the process is one of several ranks: they would all do the same.
absl::StatusOr<CommandDevice> MakeCommandDevice(const std::string& name, int64_t threads);
}  // namespace carousel
