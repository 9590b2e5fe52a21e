// The judgement of a preflight: pure functions from what all ranks know (preflight_facts.h) to rows. Every
// rank has all facts, so every rank comes to the same rows.
//
// Ranks are in order: ranks[i] is rank i. A check that has nothing to say (no GPUs were asked for, one rank
// sums nothing) gives no rows.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "launcher/preflight/preflight_facts.h"
#include "launcher/preflight/preflight_row.h"

namespace carousel {

// What the run will take. Zeros: not known, there is no run.
struct PreflightNeeds {
  bool for_run = false;        // there is a config; false: what can this machine do?
  std::string device = "cpu";  // as --device takes it
  bool ranks_may_share_gpu = false;
  int64_t threads = 0;       // parallel.threads
  int64_t host_bytes = 0;    // memory of the machine that the largest rank takes
  int64_t device_bytes = 0;  // memory of its device, where that is not the machine's
  int64_t checkpoint_bytes = 0;
  int64_t num_checkpoints = 0;      // that shall fit: those that are kept, and the one being written
  double save_timeout_seconds = 0;  // checkpoint.timeout_seconds; 0: none
};

// A rate this far below the median of its equals is told.
constexpr double kSlowShare = 0.9;
constexpr double kMaxClockOffsetSeconds = 0.1;
constexpr char kTokenFilesCheck[] = "token files";  // the name of CheckTokenFiles

using Ranks = std::vector<RankFacts>;
using Rows = std::vector<PreflightRow>;

// preflight_machine_checks.cc
Rows CheckBuild(const Ranks& ranks);
Rows CheckLaunch(const Ranks& ranks, const PreflightNeeds& needs);
Rows CheckLibraries(const Ranks& ranks);
Rows CheckProcessor(const Ranks& ranks, const PreflightNeeds& needs);
Rows CheckCores(const Ranks& ranks, const PreflightNeeds& needs);
Rows CheckMemory(const Ranks& ranks, const PreflightNeeds& needs);
Rows CheckClocks(const Ranks& ranks);

// preflight_limit_checks.cc
Rows CheckOpenFiles(const Ranks& ranks);
Rows CheckLockedMemory(const Ranks& ranks, const PreflightNeeds& needs);
Rows CheckFileSizeLimit(const Ranks& ranks, const PreflightNeeds& needs);
Rows CheckSharedMemory(const Ranks& ranks, const PreflightNeeds& needs);
Rows CheckCoreDumps(const Ranks& ranks);
Rows CheckNetwork(const Ranks& ranks);

// preflight_gpu_checks.cc
Rows CheckGpus(const Ranks& ranks, const PreflightNeeds& needs);
Rows CheckGpuSharing(const Ranks& ranks, const PreflightNeeds& needs);
Rows CheckGpuMemoryErrors(const Ranks& ranks);
Rows CheckGpuRowRemapping(const Ranks& ranks);
Rows CheckGpuThrottling(const Ranks& ranks);
Rows CheckGpuPower(const Ranks& ranks);
Rows CheckGpuLink(const Ranks& ranks);
Rows CheckGpuXids(const Ranks& ranks);

// preflight_trial_checks.cc
Rows CheckDevice(const Ranks& ranks, const PreflightNeeds& needs);
Rows CheckMatmulBits(const Ranks& ranks);
Rows CheckMatmulRate(const Ranks& ranks);
Rows CheckSums(const Ranks& ranks);
Rows CheckSumRates(const Ranks& ranks);
Rows CheckPairs(const Ranks& ranks);

// preflight_disk_checks.cc
Rows CheckRunDirectory(const Ranks& ranks);
Rows CheckDiskSpace(const Ranks& ranks, const PreflightNeeds& needs);
Rows CheckDiskRate(const Ranks& ranks, const PreflightNeeds& needs);
Rows CheckTokenFiles(const Ranks& ranks);

// All of the above, in this order.
Rows JudgeFacts(const Ranks& ranks, const PreflightNeeds& needs);

// ---- what the checks share (preflight_checks.cc)

std::vector<std::string> HostsOf(const Ranks& ranks);  // hosts[i] of rank i
// "1.5 GiB", "unlimited", "unknown".
std::string BytesText(int64_t bytes);
// "412 GFLOP/s", "1.21 TFLOP/s", "12.5 GB/s", ...: `amount` per second with a unit that keeps three digits.
std::string RateText(double amount, const std::string& unit);
// The middle one, or the mean of the two in the middle. REQUIRES: not empty.
double MedianOf(std::vector<double> values);
// Rows of one check that compares a text of all ranks. Equal everywhere: one row, ok, with that text. Else a
// row of status `differs` with `fix` for each group of ranks that has another text than most (rank 0's if
// none is more frequent).
Rows CompareRanks(const std::string& check, const std::vector<std::string>& texts, const Ranks& ranks,
                  PreflightStatus differs, const std::string& fix);
}  // namespace carousel
