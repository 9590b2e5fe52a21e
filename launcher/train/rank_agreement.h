// Before a run begins, its ranks must be one program that was asked for one thing: the same build everywhere,
// the same command and config, GPUs of their own. All functions are collective and return the same status on
// every rank; errors name the ranks, their machines and what differs.
#pragma once
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "configs/run_spec.h"
#include "core/comm/communicator.h"

namespace carousel {

// FailedPrecondition unless all ranks are the same build; `build` is this rank's (VersionLine).
absl::Status CheckSameBuild(Communicator& world, const std::string& host, const std::string& build);

// What a rank was started with: ("--device", "cuda"), ("--set", "a.b=c"), ... in a fixed order.
using RankOptions = std::vector<std::pair<std::string, std::string>>;
// InvalidArgument unless all ranks' options are equal.
absl::Status CheckSameOptions(Communicator& world, const std::string& host, const RankOptions& options);

// The run of rank 0 for all ranks. `mine` is what this rank read; a rank that could not read the config file
// (it need not be on every machine) takes rank 0's. InvalidArgument if a rank read something else: its fields
// are named.
absl::StatusOr<RunSpec> AgreeOnRun(Communicator& world, const std::string& host,
                                   const absl::StatusOr<RunSpec>& mine);
}  // namespace carousel
