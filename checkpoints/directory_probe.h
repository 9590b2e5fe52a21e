// Whether the directory of a run does what checkpoints rely on, asked before anything else is done.
#pragma once
#include <string>

#include "absl/status/status.h"
#include "checkpoints/file_system.h"
#include "core/comm/communicator.h"

namespace carousel {

// Collective; the same status on every rank. Every rank with `probe` (one of each machine is enough) creates
// a file in run_dir/checkpoints, syncs, renames, reads and removes it, and reads what rank 0 wrote there. The
// message names ranks, hosts and the call that failed; FailedPrecondition: a rank does not see rank 0's file,
// so run_dir is not on a file system that all share. A null communicator means that there is one rank.
// Creates run_dir if need be; leaves nothing else behind, after a crash .probe-* files that SweepLeftovers
// removes.
absl::Status ProbeRunDirectory(const std::string& run_dir, Communicator* communicator, bool probe = true,
                               FileSystem* files = nullptr);
}  // namespace carousel
