// What one attempt at a run leaves in RUN_DIR/attempts/N/, where N counts the starts by `carousel launch`:
//   command.txt, hosts, environment, config.textproto   how it was started
//   ends/rank-00003.json       how rank 3 ended: written by the rank itself as the last thing it does, else
//   by
//                              the process that watches over it (launch_rank.h)
//   rank_logs/HOST.RANK.log    what the rank printed, both streams
//   launcher.log               what mpirun or srun printed
//   exit.json                  how the attempt ended, and why (AttemptExit)
//
// Every rank of a launch has in its environment:
//   CAROUSEL_ATTEMPT_DIR   absolute path of attempts/N
//   CAROUSEL_RUN_SECRET    64 hex digits, new in every attempt: proves to a peer that one belongs to the run
// Without a launch (plain mpirun) both are unset, and nothing is recorded.
// SIGUSR2, which asks a run to save and end, may reach a rank several times, and before main().
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace carousel {

constexpr char kAttemptDirVariable[] = "CAROUSEL_ATTEMPT_DIR";
constexpr char kRunSecretVariable[] = "CAROUSEL_RUN_SECRET";

// How a rank ended.
struct RankEnd {
  int64_t rank = 0;
  std::string host = {};
  int64_t pid = 0;
  int exit_code = 0;                            // by core/base/exit_code.h; 128 + signal if it was killed
  std::string reason = {};                      // one message for people, without the path of the log
  std::string gpu = {};                         // UUID or name; empty on a CPU
  int64_t step = -1;                            // the last step that it completed; -1: none in this attempt
  double began = 0, ended = 0;                  // seconds since 1970
  std::vector<std::string> suspect_hosts = {};  // hosts that the rank believes to be the cause (71, 76); for
                                                // 76 without any, its own
};

std::string ToJson(const RankEnd& end);  // one line
// InvalidArgument with the reason: the text comes from another process.
absl::StatusOr<RankEnd> ParseRankEnd(const std::string& text);

// ATTEMPT_DIR/ends/rank-00003.json
std::string RankEndPath(const std::string& attempt_dir, int64_t rank);
// ATTEMPT_DIR/rank_logs/HOST.RANK.log
std::string RankLogPath(const std::string& attempt_dir, const std::string& host, int64_t rank);
// Atomically (a temporary file is renamed), replacing what is there, mode 0640. May be called by any thread
// of a process that is about to end. Not synced: nobody waits for a disk here.
absl::Status WriteRankEnd(const std::string& attempt_dir, const RankEnd& end);
// In the same way: any file of an attempt.
absl::Status WriteFileWhole(const std::string& path, const std::string& text);
// NotFound; InvalidArgument.
absl::StatusOr<RankEnd> ReadRankEnd(const std::string& path);
// All that can be read; what cannot is left out (a rank may die while it writes).
std::vector<RankEnd> ReadRankEnds(const std::string& attempt_dir);

// exit.json.
struct AttemptExit {
  int64_t attempt = 0;
  int exit_code = 0;        // what the attempt means by the contract
  std::string reason = {};  // of the rank that failed first
  int64_t rank = -1;        // that rank; -1: none is known
  std::string host = {}, gpu = {}, log = {};
  int64_t step = -1;                  // the last step that any rank completed in this attempt
  int64_t last_checkpoint = -1;       // newest committed checkpoint when the attempt had ended
  int64_t last_good_checkpoint = -1;  // newest that is marked as good
  double began = 0, ended = 0;        // seconds since 1970
  int64_t ranks = 0;
  std::vector<std::string> hosts = {}, suspect_hosts = {};
  std::string launcher_status = {};  // "exit code 1", "signal 9 (Killed)": of mpirun or srun itself
  std::string next = {};             // what carousel launch does now: "restart in 5 s", "stop", ...
};
std::string ToJson(const AttemptExit& exit);  // indented

// Of these environment variables ("NAME=value") those that matter for a run, sorted: nothing whose name or
// value may be a secret.
std::vector<std::string> RecordedEnvironment(const std::vector<std::string>& environment);
}  // namespace carousel
