// <run_dir>/starts.jsonl: every start of a run and how it ended, one line each, for the report:
//   {"start":{"attempt":2,"step":1000,"unix_seconds":...,"num_ranks":16,"hosts":["node1","node2"],
//    "mesh":"shard 16","device":"cuda:0 (NVIDIA H100)","build":"...","command":"...","num_parameters":...,
//    "tokens_per_step":...,"total_steps":...,"unigram_entropy":...,"vocab_size":...}}
//   {"end":{"attempt":2,"step":1500,"unix_seconds":...,"why":"finished"}}
// A start without an end was killed, or goes on. And what `carousel launch` wrote into attempts/N/exit.json.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "launcher/report/metrics_sink.h"

namespace carousel {

struct RecordedStart {
  RunStart start;  // without the config
  bool ended = false;
  int64_t end_step = 0;
  double end_unix_seconds = 0;
  std::string why;
};
std::string StartsPath(const std::string& run_dir);
absl::Status RecordRunStart(const std::string& run_dir, const RunStart& start);
absl::Status RecordRunEnd(const std::string& run_dir, int64_t attempt, int64_t step, const std::string& why,
                          double unix_seconds);
// The newest ones, at most 200, oldest first; lines that are not understood are left out. Empty if there is
// no file.
std::vector<RecordedStart> ReadRunStarts(const std::string& run_dir);

// One attempts/N/exit.json.
struct RecordedAttempt {
  int64_t attempt = 0, exit_code = 0, rank = -1, step = -1, last_checkpoint = -1;
  std::string reason, host, next;
  double began = 0, ended = 0;  // seconds since 1970
};
// The newest ones, at most 200, oldest first. What cannot be read is left out.
std::vector<RecordedAttempt> ReadAttempts(const std::string& run_dir);
}  // namespace carousel
