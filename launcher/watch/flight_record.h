// What one rank of a run leaves when it hangs: its last collective calls, and for whom it waits. Written by
// its watchdog (watchdog.h), read by flight_report.h.
//
//   DIR/rank-00003.json   FlightRecord
//   DIR/rank-00003.txt    the same for people, with the stacks of all threads
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/comm/communicator.h"

namespace carousel {

struct FlightRecord {
  static constexpr int64_t kMaxCalls = 128;  // of each communicator, the newest
  struct Call {
    int64_t sequence = 0, step = -1;
    std::string what, site;  // "AllReduceSum(5 x i64)", "core/train/step_sums.cc:60"
    double seconds = 0;      // that it took, or that it has taken so far
    bool in_progress = false;
    std::vector<int> peers;  // of the world; empty: a call of all members, which all make alike
    bool operator==(const Call&) const = default;
  };
  struct Group {  // a communicator
    std::string name;
    std::vector<int> members;  // ranks of the world, in its order
    int64_t num_calls = 0;
    std::vector<Call> calls;  // oldest first
    bool operator==(const Group&) const = default;
  };
  int rank = 0, size = 1;
  std::string host;
  std::vector<std::string> hosts;  // of all ranks; empty if they were not known yet
  std::string section;             // what the rank was doing
  std::string ended_because = {};  // empty: its own limit was over
  double idle_seconds = 0, limit_seconds = 0;
  int64_t step = -1;
  // What the transport says: the call that waits for messages, and from which ranks of the world. Empty: it
  // does not wait, or cannot say.
  std::string waits_in;
  std::vector<int> waits_for;
  std::vector<Group> groups;
  bool operator==(const FlightRecord&) const = default;
};

// Of this process's communicator. members: WorldRank of its ranks.
FlightRecord::Group RecordGroup(const FlightRecorder& recorder, const std::string& name,
                                const std::vector<int>& members);

std::string ToJson(const FlightRecord& record);
// InvalidArgument: the text comes from a file.
absl::StatusOr<FlightRecord> ParseFlightRecord(const std::string& text);
// For people: what the rank was doing and its last calls, at most max_calls of each communicator.
std::string Describe(const FlightRecord& record, int64_t max_calls);
std::string FlightRecordPath(const std::string& dir, int rank, const std::string& extension);
}  // namespace carousel
