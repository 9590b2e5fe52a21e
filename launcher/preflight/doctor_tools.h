// What `carousel doctor` asks about starting ranks from this machine: is there an mpirun, and does it work
// for this user?
#pragma once
#include <string>
#include <vector>

#include "launcher/preflight/preflight_row.h"

namespace carousel {

// A short program that was run to its end.
struct ToolResult {
  bool started = false;    // false: `output` says why not
  bool timed_out = false;  // it was ended
  int exit_code = -1;      // 128 + signal if it died of one
  std::string output;      // both streams, at most 4 KiB
};
// argv[0] is a path. The environment is this process's. Blocks, at most `seconds`.
ToolResult RunTool(const std::vector<std::string>& argv, double seconds);

struct MpirunFacts {
  bool program_has_mpi = false;
  std::string library;  // that this program has loaded: "Open MPI v4.1.4"
  std::string path;     // of mpirun; empty: it is not in PATH
  std::string version;  // first line of mpirun --version
  bool root = false, root_allowed = false;
  bool tried = false;  // mpirun -np 1 true
  ToolResult trial;
  int64_t cores = 0;           // of this machine
  bool oversubscribe = false;  // is allowed by the environment
};
// `path_variable`: PATH, where mpirun is looked for.
MpirunFacts ReadMpirun(const std::string& path_variable);
PreflightRow CheckMpirun(const MpirunFacts& facts);
}  // namespace carousel
