#include "launcher/launch/launch_supervisor.h"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/base/log.h"
#include "core/base/status_exit_code.h"
#include "core/base/status_macros.h"
#include "core/base/terminal_text.h"
#include "launcher/exit_codes.h"
#include "launcher/launch/attempt_recorder.h"
#include "launcher/launch/launch_output.h"
#include "launcher/launch/launch_probe.h"
#include "launcher/train/train_setup.h"

namespace carousel {
namespace {
constexpr size_t kShownLogLines = 12;

double Seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::string ReadEnd(const std::string& path, int64_t bytes) {
  std::ifstream in(path, std::ios::binary | std::ios::ate);
  if (!in) return "";
  in.seekg(std::max<int64_t>(0, static_cast<int64_t>(in.tellg()) - bytes));
  return std::string((std::istreambuf_iterator<char>(in)), {});
}

std::string HostNames(const std::vector<LaunchHost>& hosts) {
  return absl::StrJoin(hosts, ", ", [](std::string* out, const LaunchHost& host) { out->append(host.name); });
}
}  // namespace

LaunchSupervisor::LaunchSupervisor(const RunSpec& run, const LaunchOptions& options,
                                   const LaunchSurroundings& here, const LaunchTarget& target,
                                   const std::vector<std::string>& train_args)
    : run_(run), options_(options), here_(here), target_(target), train_args_(train_args) {}

absl::StatusOr<int64_t> LaunchSupervisor::RanksOn(const std::vector<LaunchHost>& hosts) const {
  const int64_t wanted = target_.ranks > 0 ? target_.ranks : WantedWorld(run_);
  if (target_.local || hosts.size() == target_.hosts.size()) {
    CAROUSEL_RETURN_IF_ERROR(ValidateMesh(MakeMeshSpec(run_, wanted)));
    return wanted;
  }
  // Where the hosts were crowded from the beginning they stay as crowded.
  const int64_t all = TotalSlots(target_.hosts), left = TotalSlots(hosts);
  const int64_t room = wanted > all ? wanted * left / all : left;
  return ChooseWorld(run_, wanted, room, options_.per_node);
}

std::vector<LaunchHost> LaunchSupervisor::AllowedHosts() const {
  std::vector<LaunchHost> hosts;
  for (const LaunchHost& host : target_.hosts) {
    if (excluded_.count(host.name) == 0) hosts.push_back(host);
  }
  return hosts;
}

bool LaunchSupervisor::CanRunOn(const std::vector<LaunchHost>& hosts) const {
  return static_cast<int64_t>(hosts.size()) >= std::max<int64_t>(options_.min_nodes, 1) &&
         RanksOn(hosts).ok();
}

std::vector<LaunchHost> LaunchSupervisor::UsableHosts(bool probe) {
  const std::vector<LaunchHost> allowed = AllowedHosts();
  if (!probe || target_.local || target_.in_slurm) return allowed;
  const std::vector<HostAnswer> answers = AskHosts(allowed, options_.rsh_agent, here_, [this] {
    LookForSignals();
    return signals_.asked();
  });
  std::vector<LaunchHost> hosts;
  std::vector<std::string> silent;
  for (size_t i = 0; i < allowed.size(); ++i) {
    if (!answers[i].own_name.empty()) own_names_[allowed[i].name] = answers[i].own_name;
    if (answers[i].answers) {
      hosts.push_back(allowed[i]);
    } else {
      silent.push_back(allowed[i].name);
    }
  }
  if (!silent.empty()) {
    LaunchLine(LogLevel::WARNING).stream()
        << absl::StrJoin(silent, ", ") << (silent.size() == 1 ? " does" : " do")
        << " not answer: this attempt does without";
  }
  return hosts;
}

std::string LaunchSupervisor::TargetHost(const std::string& own_name) {
  const auto find = [&](const auto& name_of) {
    std::vector<std::string> found;
    for (const LaunchHost& host : target_.hosts) {
      if (SameHostName(name_of(host), own_name)) found.push_back(host.name);
    }
    return found.size() == 1 ? found[0] : "";
  };
  std::string host = find([](const LaunchHost& h) { return h.name; });
  if (!host.empty() || target_.local) return host;
  // The list may hold addresses, or names that only the name service knows.
  if (!target_.in_slurm && own_names_.size() < target_.hosts.size()) {
    const std::vector<HostAnswer> answers = AskHosts(target_.hosts, options_.rsh_agent, here_, [this] {
      LookForSignals();
      return signals_.asked();
    });
    for (size_t i = 0; i < answers.size(); ++i) {
      if (!answers[i].own_name.empty()) own_names_[target_.hosts[i].name] = answers[i].own_name;
    }
  }
  return find([this](const LaunchHost& h) {
    const auto known = own_names_.find(h.name);
    return known == own_names_.end() ? h.name : known->second;
  });
}

int LaunchSupervisor::Print() const {
  const int64_t ranks = RanksOn(target_.hosts).value();
  const LaunchCommand command = MakeLaunchCommand(options_, here_, target_, target_.hosts, ranks,
                                                  run_.run_dir + "/attempts/N/hosts", train_args_);
  std::printf("%s\n", QuotedCommand(command.argv).c_str());
  std::printf("# %ld %s on %zu %s: %s; attempts are recorded in %s/attempts\n", ranks,
              ranks == 1 ? "rank" : "ranks", target_.hosts.size(),
              target_.hosts.size() == 1 ? "host" : "hosts", HostNames(target_.hosts).c_str(),
              EscapeControls(run_.run_dir).c_str());
  return kExitOk;
}

AttemptExit LaunchSupervisor::Attempt(bool probe, bool from_good, AttemptFacts* facts) {
  const double began = UnixSeconds();
  attempt_dir_.clear();
  const auto failed = [&](const absl::Status& status, int exit_code) {
    AttemptExit exit;
    exit.exit_code = exit_code;
    exit.reason = std::string(status.message());
    exit.last_checkpoint = NewestCheckpointStep(run_.run_dir);
    exit.last_good_checkpoint = NewestGoodStep(run_.run_dir);
    exit.began = began;
    exit.ended = UnixSeconds();
    return exit;
  };
  const std::vector<LaunchHost> hosts = UsableHosts(probe);
  if (signals_.asked()) {
    return failed(absl::CancelledError("stopped before the ranks were started"), kExitStopped);
  }
  if (static_cast<int64_t>(hosts.size()) < std::max<int64_t>(options_.min_nodes, 1)) {
    return failed(absl::UnavailableError(absl::StrCat("only ", hosts.size(), " of ", target_.hosts.size(),
                                                      " hosts can be used, --min_nodes asks for ",
                                                      std::max<int64_t>(options_.min_nodes, 1))),
                  kExitTransport);
  }
  const absl::StatusOr<int64_t> ranks = RanksOn(hosts);
  // With all hosts they suit: that was checked before anything was started.
  if (!ranks.ok()) return failed(ranks.status(), kExitTransport);
  absl::StatusOr<AttemptPlan> plan = MakeAttemptDirectory(run_.run_dir);
  if (!plan.ok()) return failed(plan.status(), ExitCodeOf(plan.status()));
  attempt_dir_ = plan->dir;
  plan->ranks = *ranks;
  plan->hosts = hosts;
  plan->environment = here_.environment;
  plan->command = MakeLaunchCommand(options_, here_, target_, hosts, *ranks, plan->dir + "/hosts",
                                    probe ? TrainArgsForRestart(train_args_, from_good) : train_args_);
  if (const absl::Status status = RecordAttempt(*plan, run_.resolved_text); !status.ok()) {
    AttemptExit exit = failed(status, ExitCodeOf(status));
    exit.attempt = plan->number;
    return exit;
  }
  LaunchLine(LogLevel::INFO).stream()
      << "attempt " << plan->number << ": " << *ranks << (*ranks == 1 ? " rank" : " ranks")
      << (target_.local ? "" : " on " + HostNames(hosts)) << ", records in " << plan->dir;
  absl::StatusOr<AttemptFacts> ran = RunAttempt(*plan, options_, run_.run_dir, &signals_);
  if (!ran.ok()) {
    AttemptExit exit = failed(ran.status(), StatedExitCode(ran.status()).value_or(kExitPreflight));
    exit.attempt = plan->number;
    return exit;
  }
  *facts = *std::move(ran);
  facts->launcher_host = here_.host;
  AttemptExit exit = Judge(*facts);
  if (exit.rank >= 0 && !exit.host.empty()) exit.log = RankLogPath(plan->dir, exit.host, exit.rank);
  return exit;
}

bool LaunchSupervisor::Suspect(const AttemptExit& exit, const NextMove& move) {
  const std::set<std::string> before = excluded_;
  for (const std::string& own_name : exit.suspect_hosts) {
    // Hardware that computes wrong is not tried again; a host that is blamed twice in a row for a hang
    // neither.
    const bool twice = move.history.restarts_without_progress > 1 &&
                       std::find(suspected_.begin(), suspected_.end(), own_name) != suspected_.end();
    if (!move.without_suspects && !twice) continue;
    const std::string host = TargetHost(own_name);
    if (!host.empty()) excluded_.insert(host);
  }
  suspected_ = exit.suspect_hosts;
  if (excluded_ == before) return true;
  if (!CanRunOn(AllowedHosts())) {
    // A hang may have been another's fault: better with the host than not at all.
    if (!move.without_suspects) excluded_ = before;
    return !move.without_suspects;
  }
  for (const std::string& host : excluded_) {
    if (before.count(host) == 0) {
      LaunchLine(LogLevel::WARNING).stream() << host << " is suspected and not used again by this launch";
    }
  }
  return true;
}

void LaunchSupervisor::LookForSignals() { signals_.Look(Seconds()); }

bool LaunchSupervisor::Wait(double seconds) {
  const double end = Seconds() + seconds;
  while (true) {
    LookForSignals();
    if (signals_.asked()) return false;
    const double left = end - Seconds();
    if (left <= 0) return true;
    pollfd waiting{.fd = signals_.fd().get(), .events = POLLIN, .revents = 0};
    poll(&waiting, 1, static_cast<int>(std::min(left, 60.0) * 1000) + 1);
  }
}

// The last thing on the console: who failed first, with what words, and where there are more.
void LaunchSupervisor::Report(const AttemptExit& exit, const AttemptFacts& facts) const {
  if (exit.exit_code == kExitOk) return;
  std::string text = "carousel launch: ";
  if (exit.rank >= 0) {
    absl::StrAppend(&text, "rank ", exit.rank, exit.host.empty() ? "" : " on " + exit.host,
                    exit.gpu.empty() ? "" : " (" + exit.gpu + ")", ": ");
  }
  const std::string what = ExitCodeText(exit.exit_code);
  absl::StrAppend(&text, exit.reason);
  if (exit.reason != what) absl::StrAppend(&text, " (", exit.exit_code, ", ", what, ")");
  if (!exit.suspect_hosts.empty()) {
    absl::StrAppend(&text, "; suspected: ", absl::StrJoin(exit.suspect_hosts, ", "));
  }
  absl::StrAppend(&text, "\n");
  // A crash says where in its log, and a job that no rank speaks for in what mpirun printed.
  if (exit.exit_code >= 128 && !exit.log.empty()) {
    const std::string words = LastLines(ReadEnd(exit.log, 64 << 10), kShownLogLines);
    if (!words.empty()) text = absl::StrCat(words, "\n", text);
  } else if (exit.rank < 0 && exit.exit_code != kExitStopped) {
    const std::string words = LastLines(facts.output, 2 * kShownLogLines);
    if (!words.empty()) text = absl::StrCat(words, "\n", text);
  }
  const std::string log = !exit.log.empty()      ? exit.log
                          : attempt_dir_.empty() ? ""
                                                 : attempt_dir_ + "/launcher.log";
  if (!log.empty() && exit.exit_code != kExitStopped) absl::StrAppend(&text, "  log: ", log, "\n");
  Outlet console(STDERR_FILENO, log);
  console.Add(text);
  console.FlushFor(2);
}

int LaunchSupervisor::Run() {
  absl::StatusOr<StopSignals> signals = StopSignals::Take();
  if (!signals.ok()) {
    LaunchLine(LogLevel::ERROR).stream() << std::string(signals.status().message());
    return kExitFailure;
  }
  signals_ = *std::move(signals);
  AdoptOrphans();
  if (!Wait(0)) {
    LaunchLine(LogLevel::INFO).stream() << "told to stop before anything was started";
    return kExitStopped;
  }
  LaunchHistory history{.best_checkpoint = NewestCheckpointStep(run_.run_dir)};
  bool from_good = false;
  while (true) {
    AttemptFacts facts;
    AttemptExit exit = Attempt(/*probe=*/history.restarts > 0, from_good, &facts);
    LookForSignals();
    NextMove move = DecideNext(exit, history, options_, signals_.asked());
    if (move.restart && !Suspect(exit, move)) {
      move.restart = false;
      move.why = absl::StrCat("the run cannot go on without ", absl::StrJoin(exit.suspect_hosts, ", "));
    }
    exit.next = move.why;
    if (!attempt_dir_.empty()) {
      const absl::Status written = WriteFileWhole(attempt_dir_ + "/exit.json", ToJson(exit));
      if (!written.ok()) LaunchLine(LogLevel::WARNING).stream() << std::string(written.message());
    }
    const auto from = [](int64_t step) {
      return step < 0 ? std::string("the beginning") : absl::StrCat("the checkpoint of step ", step);
    };
    if (!move.restart) {
      if (exit.exit_code == kExitStopped) {
        LaunchLine(LogLevel::INFO).stream()
            << exit.reason << "; the same command goes on from " << from(exit.last_checkpoint);
      } else if (exit.exit_code != kExitOk) {
        LaunchLine(LogLevel::ERROR).stream() << "giving up: " << move.why;
        Report(exit, facts);
      }
      return exit.exit_code;
    }
    Report(exit, facts);
    LaunchLine(LogLevel::WARNING).stream()
        << move.why << ", from " << from(move.from_good ? exit.last_good_checkpoint : exit.last_checkpoint);
    history = move.history;
    from_good = move.from_good;
    if (!Wait(move.wait_seconds)) {
      LaunchLine(LogLevel::INFO).stream()
          << "told to stop while waiting; the same command goes on from " << from(exit.last_checkpoint);
      return kExitStopped;
    }
  }
}
}  // namespace carousel
