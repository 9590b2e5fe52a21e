// Which machines a job may use, as people and schedulers write it. Pure functions over text.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace carousel {

struct LaunchHost {
  std::string name = {};
  int64_t slots = 1;  // ranks that it is meant to carry
};

// A hostfile of mpirun: "node1 slots=8" or "node1:8" or "node1" (one slot each time it stands there), '#'
// begins a comment. default_slots: for hosts that do not say (0: one per mention). InvalidArgument names file
// and line.
absl::StatusOr<std::vector<LaunchHost>> ParseHostfile(const std::string& text, const std::string& path,
                                                      int64_t default_slots);
// --host: "node1:8,node2:8".
absl::StatusOr<std::vector<LaunchHost>> ParseHostList(const std::string& text, int64_t default_slots);
// SLURM_JOB_NODELIST: "node[01-03,7],login" -> node01, node02, node03, node7, login.
absl::StatusOr<std::vector<std::string>> ExpandNodeList(const std::string& text);
// SLURM_TASKS_PER_NODE: "2(x3),1" -> 2, 2, 2, 1.
absl::StatusOr<std::vector<int64_t>> ExpandTaskCounts(const std::string& text);

// What ParseHostfile reads.
std::string FormatHostfile(const std::vector<LaunchHost>& hosts);
int64_t TotalSlots(const std::vector<LaunchHost>& hosts);
// A name or an address as a machine may have it, and nothing that a program could take for an option.
bool IsHostName(const std::string& name);
}  // namespace carousel
