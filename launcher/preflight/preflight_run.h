// The preflight of a training run: from a config and its environment to the checks.
#pragma once
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "configs/run_spec.h"
#include "core/device.h"
#include "launcher/environment.h"
#include "launcher/preflight/preflight.h"
#include "launcher/train/run_mesh.h"

namespace carousel {

// This rank, as the environment knows it.
RankFacts SelfOf(const Environment& environment);

// What a run on `world` ranks will take. InvalidArgument if it cannot be cut that way.
absl::StatusOr<PreflightNeeds> NeedsOf(const RunSpec& run, int64_t world, Device& device,
                                       const std::string& device_name, RunMesh::Transport transport);

// The prefixes of all token files of a run.
std::vector<std::string> TokenFilesOf(const RunSpec& run);

// Collective; the same status on every rank. What `carousel train` does before it writes anything: rank 0
// prints a line, and what is not as it should be; an error (kExitPreflight) if a check has failed. Token
// files that are missing everywhere are left to those who open them.
struct RunPreflightArgs {
  PreflightMode mode = PreflightMode::kFast;
  const RunSpec* run = nullptr;
  Environment* environment = nullptr;
  Device* device = nullptr;
  std::string device_name;
  RunMesh::Transport transport = RunMesh::Transport::kAuto;
  const Mesh* mesh = nullptr;
};
absl::Status PreflightRun(const RunPreflightArgs& args);

// {"off", "fast", "full"} -> mode. REQUIRES: one of them.
PreflightMode PreflightModeOf(const std::string& name);
}  // namespace carousel
