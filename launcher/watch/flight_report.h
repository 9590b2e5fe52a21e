// What follows from the flight records of all ranks of a run that hung: who waits for whom, whose calls
// differ, and who is the cause.
#pragma once
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "launcher/watch/flight_record.h"

namespace carousel {

struct FlightFinding {
  std::vector<int> suspects;               // ranks, in the order of suspicion; empty: nobody stands out
  std::vector<std::string> suspect_hosts;  // theirs, each once, where known
  std::string text;                        // several lines
};
// Records of one run, each rank at most once, at least one record.
FlightFinding AnalyzeFlightRecords(const std::vector<FlightRecord>& records);

// The records in this directory; if it has none, those of the newest directory in it that has some: a run
// directory or an attempt may be given as well. Records that cannot be read are skipped. NotFound if there
// are none.
absl::StatusOr<std::vector<FlightRecord>> ReadFlightRecords(const std::string& dir);
// `carousel doctor --flight_recorder DIR`: reads, analyzes, and says where the stacks are.
absl::StatusOr<std::string> ExplainFlightRecords(const std::string& dir);
}  // namespace carousel
