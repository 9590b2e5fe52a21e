#include "launcher/report/run_profiler.h"

#include <algorithm>
#include <chrono>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "checkpoints/file_system.h"
#include "core/base/log.h"
#include "core/base/status_macros.h"
#include "kernels/cuda/profiler.h"
#include "launcher/report/appended_file.h"

namespace carousel {
namespace {

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

bool ParseStep(absl::string_view text, int64_t* step) { return absl::SimpleAtoi(text, step) && *step >= 1; }

// The collective calls of this rank since `start_seconds`, of each communicator the newest ones.
void AddCollectives(const Mesh& mesh, double start_seconds, std::vector<TraceEvent>* events) {
  std::vector<Communicator*> seen;
  for (const Axis* axis : {&mesh.world, &mesh.pipe, &mesh.replicate, &mesh.shard, &mesh.sequence,
                           &mesh.tensor, &mesh.replicas}) {
    for (Communicator* communicator : {axis->communicator, axis->control, axis->background}) {
      if (communicator == nullptr || std::find(seen.begin(), seen.end(), communicator) != seen.end())
        continue;
      seen.push_back(communicator);
      const std::string name = communicator->recorder().name();
      for (const FlightRecorder::Entry& entry : communicator->recorder().Entries()) {
        if (entry.start_seconds < start_seconds || entry.in_progress()) continue;
        events->push_back({.kind = TraceEvent::Kind::kCollective,
                           .name = Describe(entry.call),
                           .start_seconds = entry.start_seconds,
                           .seconds = entry.end_seconds - entry.start_seconds,
                           .arguments = absl::StrCat(name, " ", entry.site.ToString())});
      }
    }
  }
}
}  // namespace

absl::StatusOr<std::optional<ProfileSpec>> ParseProfile(const std::string& text) {
  if (text.empty()) return std::optional<ProfileSpec>();
  const auto wrong = [&](const std::string& what) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", text, "\": ", what,
                     "; write steps:FIRST-LAST[,ranks:R,R,...], for example steps:20-23,ranks:0,8"));
  };
  ProfileSpec spec;
  enum class Part { kNone, kSteps, kRanks } part = Part::kNone;
  bool has_steps = false, has_ranks = false;
  for (const absl::string_view piece : absl::StrSplit(text, ',')) {
    absl::string_view value = piece;
    if (absl::StartsWith(piece, "steps:")) {
      if (has_steps) return wrong("the steps are given twice");
      has_steps = true;
      part = Part::kSteps;
      value.remove_prefix(6);
      const size_t dash = value.find('-');
      if (!ParseStep(value.substr(0, dash), &spec.first_step)) return wrong("steps count from 1");
      spec.last_step = spec.first_step;
      if (dash != absl::string_view::npos && !ParseStep(value.substr(dash + 1), &spec.last_step)) {
        return wrong("steps count from 1");
      }
      if (spec.last_step < spec.first_step) return wrong("the last step is before the first");
      continue;
    }
    if (absl::StartsWith(piece, "ranks:")) {
      if (has_ranks) return wrong("the ranks are given twice");
      has_ranks = true;
      part = Part::kRanks;
      spec.ranks.clear();
      value.remove_prefix(6);
    }
    int64_t rank = 0;
    if (part != Part::kRanks) return wrong(absl::StrCat("\"", piece, "\" is neither steps nor ranks"));
    if (!absl::SimpleAtoi(value, &rank) || rank < 0) {
      return wrong(absl::StrCat("\"", value, "\" is not the number of a rank"));
    }
    if (std::find(spec.ranks.begin(), spec.ranks.end(), rank) == spec.ranks.end()) spec.ranks.push_back(rank);
  }
  if (!has_steps) return wrong("it does not say which steps");
  return std::optional<ProfileSpec>(spec);
}

absl::Status CheckProfile(const ProfileSpec& spec, int64_t total_steps, int64_t world_size) {
  if (spec.last_step > total_steps) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--profile: the run has ", total_steps, " steps (train.steps), there is no step ", spec.last_step));
  }
  for (const int64_t rank : spec.ranks) {
    if (rank < world_size) continue;
    return absl::InvalidArgumentError(absl::StrCat("--profile: there is no rank ", rank, "; the run has ",
                                                   world_size,
                                                   world_size == 1 ? " rank, number 0" : " ranks, from 0"));
  }
  return absl::OkStatus();
}

absl::Status CheckProfileIsAhead(const ProfileSpec& spec, int64_t finished_steps) {
  if (spec.first_step > finished_steps) return absl::OkStatus();
  const int64_t first = finished_steps + 2;  // the first step of a process is slow
  return absl::InvalidArgumentError(
      absl::StrCat("--profile: the run has ", finished_steps, " steps behind it, step ", spec.first_step,
                   " is not taken again; choose later ones, for example --profile steps:", first, "-",
                   first + spec.last_step - spec.first_step));
}

RunProfiler::RunProfiler(const ProfileSpec& spec, Device& device, std::string run_dir, int64_t rank,
                         std::string host)
    : spec_(spec), device_(device), run_dir_(std::move(run_dir)), host_(std::move(host)), rank_(rank) {
  // On CUDA an op returns before it has run: there the tools of the maker measure.
  if (!absl::StartsWith(device.name(), "cuda")) ops_ = std::make_unique<OpProfiler>(device);
}

RunProfiler::~RunProfiler() {
  if (on_ && ops_ != nullptr) {
    CAROUSEL_LOG(WARNING) << "the run ended before step " << spec_.last_step
                          << ", the last one to be profiled: there is no profile";
  }
  if (on_ && ops_ == nullptr) cuda::StopProfiler();
}

void RunProfiler::BeforeStep(int64_t step) {
  in_step_ = 0;
  if (ops_ != nullptr) ops_->Record(false);
  if (done_ || step < spec_.first_step || step > spec_.last_step) return;
  if (!on_) {
    on_ = true;
    if (ops_ == nullptr) {
      device_.Synchronize();
      cuda::StartProfiler();
    }
    first_start_ = Now();
  }
  in_step_ = step;
  if (ops_ != nullptr) ops_->Record(true);
  step_start_ = Now();
}

absl::StatusOr<std::string> RunProfiler::AfterStep(int64_t step, const Mesh& mesh) {
  if (step != in_step_ || done_) return std::string();
  in_step_ = 0;
  seconds_ += Now() - step_start_;
  ++num_steps_;
  // What is between steps (evaluations, saves) is not part of it.
  if (ops_ != nullptr) ops_->Record(false);
  if (step < spec_.last_step) return std::string();
  done_ = true;
  return Finish(mesh);
}

absl::StatusOr<std::string> RunProfiler::Finish(const Mesh& mesh) {
  const std::string steps = spec_.first_step == spec_.last_step
                                ? absl::StrCat("step ", spec_.first_step)
                                : absl::StrCat("steps ", spec_.first_step, " to ", spec_.last_step);
  if (ops_ == nullptr) {
    device_.Synchronize();
    cuda::StopProfiler();
    on_ = false;
    return absl::StrCat("profiled ", steps, " on rank ", rank_,
                        ": what a profiler of CUDA has captured, if one was started (nsys profile "
                        "--capture-range=cudaProfilerApi ...)");
  }
  on_ = false;
  std::vector<TraceEvent> events = ops_->events();
  AddCollectives(mesh, first_start_, &events);
  const std::string table = FormatOpTable(ops_->events(), seconds_, num_steps_);
  const std::string dir = JoinPath(run_dir_, "profile");
  PosixFileSystem files;
  CAROUSEL_RETURN_IF_ERROR(CreateDirectories(files, dir));
  const std::string path =
      absl::StrCat(dir, "/steps-", spec_.first_step, "-", spec_.last_step, ".rank-", rank_);
  CAROUSEL_RETURN_IF_ERROR(ReplaceFileQuickly(path + ".json", ChromeTrace(events, rank_, host_)));
  CAROUSEL_RETURN_IF_ERROR(ReplaceFileQuickly(path + ".txt", table + "\n"));
  return absl::StrCat("profile of ", steps, " on rank ", rank_, ", on ", device_.name(),
                      ops_->num_dropped() > 0 ? absl::StrCat(" (without the last ", ops_->num_dropped(),
                                                             " calls, which are too many)")
                                              : "",
                      "\n", table, "\ntrace for chrome://tracing or ui.perfetto.dev: ", path, ".json");
}
}  // namespace carousel
