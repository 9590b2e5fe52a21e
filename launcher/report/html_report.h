// The report of a run: one HTML file that needs nothing else, neither network nor other files; drawn from
// what the run directory holds. Its size is bounded, however long the run is. Everything that comes from
// outside (samples that a model wrote, configs, host names, messages) is shown as text: escaped, and the page
// forbids itself all scripts but its own and everything from elsewhere (Content-Security-Policy).
#pragma once
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "launcher/report/run_history.h"
#include "launcher/report/run_starts.h"

namespace carousel {

struct ReportInput {
  std::string run_dir;  // for the title
  const RunHistory* history = nullptr;
  std::vector<RecordedStart> starts = {};
  std::vector<RecordedAttempt> attempts = {};
  // The config's fields, and what each would be if it had not been given (empty: not known).
  std::vector<std::pair<std::string, std::string>> config = {}, default_config = {};
  double unix_seconds = 0;   // of now
  bool still_going = false;  // the page loads itself again
  double seconds_between = 30;
};
std::string RenderReport(const ReportInput& input);

// <run_dir>/report.html
std::string ReportPath(const std::string& run_dir);
// Reads the run directory, apart from metrics.jsonl.
ReportInput ReadReportInput(const std::string& run_dir, const RunHistory& history);
// Reads everything and writes the report to `out` in one step. NotFound if there is no run in run_dir.
absl::Status WriteReport(const std::string& run_dir, const std::string& out);

// What every field of this resolved config would be if only the model's size had been given. Empty if the
// text is not a config.
std::string DefaultConfigText(const std::string& resolved_text);
}  // namespace carousel
