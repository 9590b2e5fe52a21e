// Reads what the system says about this machine and this process. Nothing is judged here, and nothing that
// cannot be read is an error: the fact stays unknown.
#pragma once
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "launcher/preflight/preflight_facts.h"

namespace carousel {

// Where the system keeps its files; tests bring their own.
struct SystemPaths {
  std::string proc = "/proc", sys = "/sys", shm = "/dev/shm";
};
// Limits, cores and interfaces are those of this process; everything else comes from files below `paths`.
MachineFacts ReadMachineFacts(const SystemPaths& paths = {});

// Names and versions of the libraries that this process has loaded, and of the driver: "MPI", "NCCL", "CUDA
// runtime", "NVIDIA driver", "C library". What is not there is not named.
std::map<std::string, std::string> ReadLibraries(const SystemPaths& paths = {});

// Of "/proc/meminfo": the bytes of a field ("MemAvailable"); -1 if it is not there.
int64_t MeminfoBytes(const std::string& meminfo, const std::string& field);
// The lowest memory limit of the control groups that this process is in (both versions of control groups).
// The files: those of /proc/self/cgroup and /sys/fs/cgroup.
struct CgroupMemory {
  int64_t limit_bytes = -1, used_bytes = -1;  // -1: no limit
};
CgroupMemory ReadCgroupMemory(const SystemPaths& paths);
// One logical CPU for each core of those in `allowed`: siblings of a core count once.
std::vector<int64_t> OnePerCore(const std::vector<int64_t>& allowed, const SystemPaths& paths);
// A file's contents, at most 4 MiB, without line breaks at its end; nothing if it cannot be read.
std::optional<std::string> ReadSmallFile(const std::string& path);
// Where a program is found in the directories of PATH; empty if nowhere.
std::string FindProgram(const std::string& name, const std::string& path_variable);
}  // namespace carousel
