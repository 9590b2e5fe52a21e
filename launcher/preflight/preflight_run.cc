#include "launcher/preflight/preflight_run.h"

#include <algorithm>
#include <chrono>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "core/base/check.h"
#include "core/base/log.h"
#include "core/base/status_macros.h"
#include "core/train/agreement.h"
#include "launcher/plan/plan.h"
#include "launcher/version.h"

namespace carousel {

PreflightMode PreflightModeOf(const std::string& name) {
  if (name == "off") return PreflightMode::kOff;
  if (name == "fast") return PreflightMode::kFast;
  CAROUSEL_CHECK_MSG(name == "full", "no such preflight: " + name);
  return PreflightMode::kFull;
}

RankFacts SelfOf(const Environment& environment) {
  RankFacts self;
  self.rank = environment.rank();
  self.world = environment.size();
  self.host = environment.host();
  self.local_rank = environment.local_rank();
  self.local_size = environment.local_size();
  self.build = VersionLine();
  self.launcher = environment.launcher();
  self.default_threads = environment.default_threads();
  for (const std::string& name : PreflightVariables()) {
    const std::string value = Environment::Variable(name);
    if (!value.empty()) self.variables[name] = value;
  }
  return self;
}

absl::StatusOr<PreflightNeeds> NeedsOf(const RunSpec& run, int64_t world, Device& device,
                                       const std::string& device_name, RunMesh::Transport transport) {
  CAROUSEL_ASSIGN_OR_RETURN(const RunPlan plan, MakePlan(run, world, device));
  const RunSpec::Checkpoint& checkpoint = run.checkpoint;
  const int64_t saves =
      checkpoint.every_steps > 0 ? (run.steps + checkpoint.every_steps - 1) / checkpoint.every_steps : 1;
  PreflightNeeds needs{
      .for_run = true,
      .device = device_name,
      .ranks_may_share_gpu = transport == RunMesh::Transport::kStaged,
      .threads = device.host_accessible() ? run.threads : 0,
      .host_bytes = plan.staging_bytes,
      .checkpoint_bytes = plan.checkpoint_bytes,
      .num_checkpoints = checkpoint.keep_last == 0 ? saves : std::min(saves, checkpoint.keep_last + 1),
      .save_timeout_seconds = checkpoint.timeout_seconds};
  (device.host_accessible() ? needs.host_bytes : needs.device_bytes) += plan.largest().total_bytes;
  return needs;
}

std::vector<std::string> TokenFilesOf(const RunSpec& run) {
  std::vector<std::string> prefixes;
  for (const DataSourceSpec& source : run.train_data) prefixes.push_back(source.path);
  if (run.eval_every_steps > 0) {
    for (const DataSourceSpec& source : run.validation_data) prefixes.push_back(source.path);
  }
  return Distinct(prefixes);
}

absl::Status PreflightRun(const RunPreflightArgs& args) {
  if (args.mode == PreflightMode::kOff) return absl::OkStatus();
  Environment& environment = *args.environment;
  const absl::StatusOr<PreflightNeeds> needs =
      NeedsOf(*args.run, environment.size(), *args.device, args.device_name, args.transport);
  CAROUSEL_RETURN_IF_ERROR(AgreeOnStatus(environment.world(), needs.status()));
  auto told = std::chrono::steady_clock::now();
  const PreflightResult checked =
      RunPreflight({.mode = args.mode,
                    .self = SelfOf(environment),
                    .needs = *needs,
                    .world = &environment.world(),
                    .mesh = args.mesh,
                    .device = args.device,
                    .compute = args.run->compute,
                    .run_dir = args.run->run_dir,
                    .token_files = TokenFilesOf(*args.run),
                    .progress = [&](const std::string& what) {
                      const auto now = std::chrono::steady_clock::now();
                      if (environment.rank() != 0 || now - told < std::chrono::seconds(5)) return;
                      told = now;
                      CAROUSEL_LOG(INFO) << "preflight: " << what;
                    }});
  PreflightResult result = checked;
  // Missing for all: the error of who opens them says more, and ends with the code of bad data.
  const auto missing_for_all = [](const PreflightRow& row) {
    return row.check == kTokenFilesCheck && row.status == PreflightStatus::kFailed && row.ranks.empty();
  };
  result.rows.erase(std::remove_if(result.rows.begin(), result.rows.end(), missing_for_all),
                    result.rows.end());
  CAROUSEL_RETURN_IF_ERROR(PreflightStatusOf(result));
  if (environment.rank() != 0) return absl::OkStatus();
  const std::string counts =
      absl::StrFormat("preflight: %s (%.1f s)", CountsText(result.rows), result.seconds);
  if (WorstOf(result.rows) == PreflightStatus::kWarning) {
    CAROUSEL_LOG(WARNING) << counts << "\n"
                          << FormatPreflightTable(result.rows, {.only_problems = true})
                          << "`carousel doctor` shows all checks";
  } else {
    CAROUSEL_LOG(INFO) << counts;
  }
  return absl::OkStatus();
}
}  // namespace carousel
