// The preflight: every rank reads what its machine says and tries what the run will need, all tell each
// other, and all come to the same verdict, before anything of the run is written.
//
// `carousel train` does it at every start (--preflight=fast), `carousel doctor` for its own sake.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "checkpoints/file_system.h"
#include "core/comm/mesh.h"
#include "core/device.h"
#include "launcher/preflight/nvml_library.h"
#include "launcher/preflight/preflight_checks.h"
#include "launcher/preflight/preflight_facts.h"
#include "launcher/preflight/preflight_read.h"
#include "launcher/preflight/preflight_row.h"

namespace carousel {

enum class PreflightMode : uint8_t {
  kOff,
  kFast,  // what a start can wait for: a fraction of a second on a CPU, below 20 s on a cluster
  kFull   // also every pair of machines, and larger trials
};

struct PreflightOptions {
  PreflightMode mode = PreflightMode::kFast;
  // Who this rank is: rank, world, host, local_rank, local_size, build, launcher, variables, default_threads.
  // The rest is found out.
  RankFacts self = {};
  PreflightNeeds needs = {};
  Communicator* world = nullptr;              // for host memory; null: alone
  const Mesh* mesh = nullptr;                 // whose sums are tried; null: none are
  Device* device = nullptr;                   // null: none is tried
  std::string device_error = {};              // why there is none
  DType compute = DType::kBF16;               // of the trial product
  std::string run_dir = {};                   // empty: no trial of a disk
  std::vector<std::string> token_files = {};  // prefixes, as in data.train.path
  bool ask_gpus = false;                      // also where the ranks compute on CPUs
  // What tests replace.
  std::string nvml_file = kNvmlFile;
  SystemPaths paths = {};
  FileSystem* files = nullptr;                 // null: the real one
  std::function<double()> unix_seconds = {};   // null: the system's clock
  std::function<void(RankFacts*)> alter = {};  // what this rank says, before it is told to the others
  // Told what is tried next, for people who wait. May be null.
  std::function<void(const std::string& what)> progress = {};
};

struct PreflightResult {
  Ranks ranks;
  Rows rows;
  double seconds = 0;
};

// Collective over options.world. The same rows on every rank.
PreflightResult RunPreflight(const PreflightOptions& options);

// OK unless a row has failed: then FailedPrecondition with a message that lists those rows with their fixes.
// The exit code is kExitPreflight; kExitNotSaved if no more is wrong than the run's directory, kExitHardware
// if no more than that some machines compute wrong (their hosts: launcher/launch/suspect_hosts.h).
absl::Status PreflightStatusOf(const PreflightResult& result);

// The variables of the environment that checks look at.
std::vector<std::string> PreflightVariables();
}  // namespace carousel
