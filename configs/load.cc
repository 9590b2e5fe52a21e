#include "configs/load.h"

#include <cerrno>
#include <fstream>
#include <set>
#include <system_error>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "configs/field_path.h"
#include "configs/parse.h"
#include "configs/resolve.h"
#include "configs/validate.h"
#include "core/base/check.h"
#include "core/base/status_macros.h"
#include "core/base/terminal_text.h"

namespace carousel {
namespace {
constexpr size_t kMaxShown = 80;  // characters of an assignment that are repeated

absl::StatusOr<std::string> ReadConfig(const std::string& path) {
  if (path.empty()) {
    return absl::InvalidArgumentError(
        "no config was given; for example --config configs/demo_bytes.textproto");
  }
  errno = 0;
  std::ifstream in(path, std::ios::binary);
  const int open_error = errno;
  // One byte more than the limit, so that ParseRunConfig sees that it was exceeded.
  std::string bytes(kMaxConfigBytes + 1, '\0');
  if (in) in.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  if (in.bad() || (!in && !in.eof())) {
    const int error = open_error != 0 ? open_error : errno;
    const std::string reason = std::generic_category().message(error);
    return absl::InvalidArgumentError(absl::StrCat("cannot read the config ", path, ": ", reason,
                                                   "; give --config the path of a .textproto file"));
  }
  bytes.resize(static_cast<size_t>(in.gcount()));
  return bytes;
}

// Origins below a path that was set or cleared are no longer true.
void ForgetOrigins(const std::string& path, Origins* origins) {
  for (auto it = origins->begin(); it != origins->end();) {
    const bool below = it->first == path || absl::StartsWith(it->first, path + ".") ||
                       absl::StartsWith(it->first, path + "[");
    it = below ? origins->erase(it) : std::next(it);
  }
}
}  // namespace

absl::StatusOr<RunSpec> LoadRunFromText(const std::string& text, const std::string& name,
                                        const RunOverrides& overrides) {
  Problems problems;
  Origins origins;
  config::RunConfig config;
  const bool complete = ParseRunConfig(text, name, &config, &origins, &problems);
  const bool parsed = problems.empty();
  std::set<std::string> misspelt;  // paths whose value on the command line was not understood
  for (const std::string& set : overrides.sets) {
    std::string path;
    const absl::Status status = SetField(set, &config, &path);
    if (!status.ok()) {
      problems.Add(absl::StrCat("--set ", absl::CEscape(set.substr(0, kMaxShown)), ": ", status.message()));
      misspelt.insert(set.substr(0, set.find_first_of("[=")));
      continue;
    }
    ForgetOrigins(path, &origins);
    origins[path] = "--set";
  }
  if (!overrides.run_dir.empty()) {
    config.set_run_dir(overrides.run_dir);
    origins["run_dir"] = "--run_dir";
  }
  if (const std::string shown = EscapeControls(config.run_dir());
      shown != config.run_dir() || absl::StrContains(shown, '\n')) {
    problems.Add(
        origins, "run_dir",
        absl::StrCat("run_dir=\"", absl::CEscape(config.run_dir().substr(0, kMaxShown)),
                     "\" holds control characters, which no command, log or table can show; use a name "
                     "without them"));
  }

  // Of a text that was not understood to its end, nothing is known: neither what is missing nor what fits.
  if (!complete) return problems.ToStatus(name);
  std::set<std::string> wrong = CheckRanges(config, origins, &problems);
  // A misspelt field was meant to be given: do not also call it missing.
  if (parsed) CheckRequired(config, &problems);
  // With their defaults instead of the wrong values, relations between the others can still be looked at.
  for (const std::string& field : wrong) {
    std::string cleared;
    const absl::Status status = SetField(field + "=", &config, &cleared);
    CAROUSEL_CHECK_MSG(status.ok(), std::string(status.message()));
  }
  wrong.merge(misspelt);
  ResolveDefaults(&config);
  CheckRelations(config, origins, wrong, &problems);
  if (overrides.for_training && parsed) CheckForTraining(config, origins, &problems);
  CAROUSEL_RETURN_IF_ERROR(problems.ToStatus(name));

  RunSpec run = ToRunSpec(config);
  run.resolved_text = ResolvedText(config, NotesOn(config));
  return run;
}

absl::StatusOr<RunSpec> LoadRun(const std::string& config_path, const RunOverrides& overrides) {
  CAROUSEL_ASSIGN_OR_RETURN(const std::string text, ReadConfig(config_path));
  return LoadRunFromText(text, config_path, overrides);
}
}  // namespace carousel
