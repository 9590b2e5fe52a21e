#include "launcher/launch/launch_judgement.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "launcher/exit_codes.h"
#include "launcher/launch/suspect_hosts.h"

namespace carousel {
namespace {

std::string SignalText(int signal) {
  const char* name = strsignal(signal);
  return absl::StrCat("signal ", signal, name == nullptr ? "" : absl::StrCat(" (", name, ")"));
}

// Ends that say no more than that somebody else failed, or that nothing did.
bool IsConsequence(int exit_code) {
  return exit_code == kExitOk || exit_code == kExitStopped || exit_code == kExitTransport ||
         exit_code == kExitTerminated;
}

// The word behind `before` in `line`, without quotes and punctuation at its end.
std::string WordBehind(absl::string_view line, absl::string_view before) {
  const size_t at = line.find(before);
  if (at == absl::string_view::npos) return "";
  absl::string_view rest = line.substr(at + before.size());
  while (!rest.empty() && (rest[0] == ' ' || rest[0] == '\'' || rest[0] == '"')) rest.remove_prefix(1);
  std::string word(rest.substr(0, rest.find_first_of(" \t\r,;'\"()")));
  while (!word.empty() && (word.back() == ':' || word.back() == '.')) word.pop_back();
  return word;
}

struct KnownText {
  const char* text;         // stands in a line
  const char* host_behind;  // the host's name stands behind these words of the same line; null: not named
  int exit_code;
  const char* cause;
};
constexpr KnownText kKnownTexts[] = {
    {"not enough slots available", nullptr, kExitUsage,
     "there are fewer slots than ranks; give fewer ranks (-n), more slots in the hostfile, or --launcher_arg "
     "--oversubscribe"},
    {"All nodes which are allocated for this job are already filled", nullptr, kExitUsage,
     "the hosts have fewer slots than --per_node and -n ask for; give fewer ranks or more slots"},
    {"was unable to launch the specified application", nullptr, kExitPreflight,
     "the program is not on every host under the same path; install it there, or name it with --program"},
    {"unable to find the specified executable", nullptr, kExitPreflight,
     "the program is not on every host under the same path; install it there, or name it with --program"},
    {"Could not resolve hostname", "resolve hostname", kExitTransport,
     "a host's name is not known here; correct the hostfile or the name service"},
    {"No route to host", "connect to host", kExitTransport,
     "a host cannot be reached; is it up, and its network connected?"},
    {"Connection refused", "connect to host", kExitTransport,
     "a host takes no ssh connections; is its sshd running, and on that port? (--rsh_agent \"ssh -p PORT\")"},
    {"Connection timed out", "connect to host", kExitTransport,
     "a host does not answer; is it up, and its network connected?"},
    {"Host key verification failed", nullptr, kExitPreflight,
     "ssh does not know a host's key; connect once by hand, or collect the keys with ssh-keyscan"},
    {"Permission denied (publickey", nullptr, kExitPreflight,
     "ssh cannot log in to a host without a password; put a public key into its authorized_keys"},
    {"orted: command not found", nullptr, kExitPreflight,
     "Open MPI is not on the PATH of a host; install the same version there, or give --launcher_arg --prefix "
     "--launcher_arg DIR"},
    {"orted: not found", nullptr, kExitPreflight,
     "Open MPI is not on the PATH of a host; install the same version there, or give --launcher_arg --prefix "
     "--launcher_arg DIR"},
    {"ORTE has lost communication with a remote daemon", nullptr, kExitTransport, "a host was lost"},
    {"Remote daemon: ", "on node", kExitTransport, "a host was lost"},
    {"ORTE was unable to reliably start one or more daemons", nullptr, kExitTransport,
     "mpirun could not start its daemon on every host; can all be reached by ssh without a password, and is "
     "Open MPI "
     "installed on all?"},
    {"MPI plugin type 'pmix'", nullptr, kExitPreflight,
     "this Slurm has no PMIx; use --launcher mpirun (srun --mpi=list shows what there is)"},
    {"invalid MPI type 'pmix'", nullptr, kExitPreflight,
     "this Slurm has no PMIx; use --launcher mpirun (srun --mpi=list shows what there is)"},
    {"Requested node configuration is not available", nullptr, kExitUsage,
     "the allocation is too small for these ranks; give fewer (-n, --per_node) or ask Slurm for more"},
    {"More processors requested than permitted", nullptr, kExitUsage,
     "the allocation is too small for these ranks; give fewer (-n, --per_node) or ask Slurm for more"},
};
}  // namespace

std::string Describe(const ProcessEnd& end) {
  return end.signal != 0 ? SignalText(end.signal) : absl::StrCat("exit code ", end.exit_code);
}

LauncherComplaint ReadComplaint(const std::string& output) {
  LauncherComplaint complaint;
  for (absl::string_view line : absl::StrSplit(output, '\n')) {
    for (const KnownText& known : kKnownTexts) {
      if (!absl::StrContains(line, known.text)) continue;
      // The first one is the cause, what follows are its consequences.
      if (complaint.exit_code == 0) {
        complaint.exit_code = known.exit_code;
        complaint.cause = known.cause;
      }
      if (known.host_behind == nullptr) continue;
      const std::string host = WordBehind(line, known.host_behind);
      if (IsHostName(host) &&
          std::find(complaint.hosts.begin(), complaint.hosts.end(), host) == complaint.hosts.end()) {
        complaint.hosts.push_back(host);
      }
    }
  }
  return complaint;
}

bool SaysJobFailed(const std::string& output) {
  for (const char* text :
       {"Primary job  terminated", "mpirun noticed that", "mpirun detected that one or more processes",
        "lost communication with a remote daemon", "was unable to launch the specified application"}) {
    if (absl::StrContains(output, text)) return true;
  }
  return false;
}

namespace {
// Ranks that left no record.
std::vector<int64_t> Silent(const AttemptFacts& facts) {
  std::set<int64_t> known;
  for (const RankEnd& end : facts.ends) known.insert(end.rank);
  std::vector<int64_t> silent;
  for (int64_t rank = 0; rank < facts.ranks; ++rank) {
    if (known.count(rank) == 0) silent.push_back(rank);
  }
  return silent;
}

std::string RanksText(const std::vector<int64_t>& ranks) {
  constexpr size_t kShown = 8;
  const std::vector<int64_t> shown(ranks.begin(), ranks.begin() + std::min(ranks.size(), kShown));
  return absl::StrCat(ranks.size() == 1 ? "rank " : "ranks ", absl::StrJoin(shown, ", "),
                      ranks.size() > kShown ? absl::StrCat(" and ", ranks.size() - kShown, " more") : "");
}

// What ranks say of hosts, and mpirun of those that it lost.
std::vector<Accusation> AccusationsOf(const AttemptFacts& facts, int code,
                                      const std::vector<std::string>& lost_hosts) {
  std::vector<Accusation> by_code, by_others;
  for (const RankEnd& end : facts.ends) {
    if (end.suspect_hosts.empty()) continue;
    (end.exit_code == code ? by_code : by_others)
        .push_back({.by = end.host, .rank = end.rank, .hosts = end.suspect_hosts});
  }
  // That ranks miss one which has said why it ends is no reason to suspect its host.
  const bool lost = code == kExitFailure || code >= 128 || IsConsequence(code);
  if (by_code.empty() && lost) by_code = std::move(by_others);
  if (!lost_hosts.empty() && IsConsequence(code)) {
    by_code.push_back({.by = facts.launcher_host, .rank = facts.ranks, .hosts = lost_hosts});
  }
  return by_code;
}

bool Share(const std::vector<std::string>& a, const std::vector<std::string>& b) {
  return std::any_of(a.begin(), a.end(),
                     [&](const std::string& word) { return std::find(b.begin(), b.end(), word) != b.end(); });
}

void JudgeFailure(const AttemptFacts& facts, AttemptExit* exit) {
  int code = kExitOk;
  for (const RankEnd& end : facts.ends) code = CombinedExitCode(code, end.exit_code);
  const std::vector<int64_t> silent = Silent(facts);
  const LauncherComplaint complaint = ReadComplaint(facts.output);
  exit->suspect_hosts = BelievedSuspects(AccusationsOf(facts, code, complaint.hosts), facts.launcher_host);
  // The ranks that lost a host know since when, and who was on it; mpirun, no more than that it is lost.
  const bool ranks_know =
      code == kExitTransport && std::any_of(facts.ends.begin(), facts.ends.end(), [](const RankEnd& end) {
        return end.exit_code == kExitTransport && !end.suspect_hosts.empty();
      });

  if (IsConsequence(code) && complaint.exit_code != 0 &&
      !(ranks_know && complaint.exit_code == kExitTransport)) {
    exit->exit_code = complaint.exit_code;
    exit->reason = complaint.hosts.empty()
                       ? complaint.cause
                       : absl::StrCat(absl::StrJoin(complaint.hosts, ", "), ": ", complaint.cause);
    return;
  }
  // Nobody who could speak knows the cause: it is with those who could not. What ended at our force is not
  // among them.
  const bool by_signal = facts.launcher.code() >= 128 && !facts.ended_by_force;
  if (IsConsequence(code) && !silent.empty() && !facts.told_to_stop &&
      (code != kExitTransport || !facts.ended_by_force) && (by_signal || !ranks_know)) {
    exit->exit_code = by_signal ? facts.launcher.code() : kExitTransport;
    exit->rank = silent.front();
    exit->reason = absl::StrCat(RanksText(silent), " ended without a word",
                                by_signal ? absl::StrCat(": ", SignalText(facts.launcher.code() - 128)) : "");
    if (facts.ends.empty()) {
      exit->rank = -1;
      exit->reason =
          absl::StrCat("the job ended (", Describe(facts.launcher), ") before any rank could say why");
      // 132 is what mpirun returns when it could start nothing, and no signal.
      const bool signal = facts.launcher.signal != 0 || (by_signal && facts.launcher.code() != 132);
      exit->exit_code = signal ? facts.launcher.code() : kExitFailure;
    }
    return;
  }
  exit->exit_code = code;
  const RankEnd* first = nullptr;
  const auto errs = [exit](const RankEnd& end) {
    return !end.suspect_hosts.empty() && !Share(end.suspect_hosts, exit->suspect_hosts);
  };
  for (const RankEnd& end : facts.ends) {
    if (end.exit_code != code) continue;
    if (first == nullptr ||
        std::make_pair(errs(end), end.ended) < std::make_pair(errs(*first), first->ended)) {
      first = &end;
    }
  }
  if (first == nullptr) return;
  exit->rank = first->rank;
  exit->host = first->host;
  exit->gpu = first->gpu;
  exit->reason = first->reason.empty() ? ExitCodeText(code) : first->reason;
  if (code == kExitHardware && exit->suspect_hosts.empty()) exit->suspect_hosts = {first->host};
}
}  // namespace

AttemptExit Judge(const AttemptFacts& facts) {
  AttemptExit exit;
  exit.attempt = facts.attempt;
  exit.ranks = facts.ranks;
  for (const LaunchHost& host : facts.hosts) exit.hosts.push_back(host.name);
  exit.began = facts.began;
  exit.ended = facts.ended;
  exit.last_checkpoint = facts.checkpoint;
  exit.last_good_checkpoint = facts.good_checkpoint;
  exit.launcher_status = Describe(facts.launcher);
  for (const RankEnd& end : facts.ends) exit.step = std::max(exit.step, end.step);
  // Ranks that were killed told nobody how far they were.
  if (facts.recorded_step > facts.checkpoint_before) exit.step = std::max(exit.step, facts.recorded_step);

  const bool all_done = static_cast<int64_t>(facts.ends.size()) == facts.ranks &&
                        std::all_of(facts.ends.begin(), facts.ends.end(),
                                    [](const RankEnd& e) { return e.exit_code == kExitOk; });
  if (all_done) {
    exit.reason = "finished";
    return exit;
  }
  JudgeFailure(facts, &exit);
  // Nobody failed, but not everybody could say so; the launcher's word then.
  if (exit.exit_code == kExitOk) {
    if (facts.launcher.code() == 0 && !facts.ended_by_force) return exit;
    exit.exit_code =
        facts.launcher.code() >= 128 && !facts.ended_by_force ? facts.launcher.code() : kExitTransport;
    exit.reason = absl::StrCat("the job ended (", Describe(facts.launcher), ") before every rank had ended");
  }
  if (!facts.told_to_stop) return exit;

  const AfterExit after = ActionAfter(exit.exit_code);
  if (after == AfterExit::kStop || exit.exit_code == kExitStopped) return exit;
  const std::string saved =
      facts.checkpoint < 0 ? "nothing" : absl::StrCat("everything up to step ", facts.checkpoint);
  if (exit.step < 0) {
    exit.reason = "stopped before the first step of this attempt";
  } else if (exit.step <= facts.checkpoint) {
    exit.reason = absl::StrCat("stopped; ", saved, " is saved");
  } else {
    const std::string failure = exit.reason;
    exit.reason =
        absl::StrCat("stopped by ", SignalText(facts.stop_signal), " after step ", exit.step, ", and ", saved,
                     " is saved: ", failure, facts.out_of_time ? "; give more time with --grace" : "");
    if (facts.out_of_time) {
      exit.exit_code = 128 + facts.stop_signal;
      return exit;
    }
  }
  exit.exit_code = kExitStopped;
  return exit;
}

NextMove DecideNext(const AttemptExit& exit, const LaunchHistory& history, const LaunchOptions& options,
                    bool told_to_stop) {
  NextMove move;
  move.history = history;
  const bool progress = exit.last_checkpoint > history.best_checkpoint;
  move.history.best_checkpoint = std::max(history.best_checkpoint, exit.last_checkpoint);
  // Progress is what counts, not how long it took: the next failure begins at the shortest wait again.
  const int64_t fruitless = progress ? 0 : history.restarts_without_progress;
  const AfterExit after = ActionAfter(exit.exit_code);
  if (after == AfterExit::kDone || after == AfterExit::kStop) {
    move.why =
        after == AfterExit::kDone ? "done" : absl::StrCat(ExitCodeText(exit.exit_code), ": no restart helps");
    return move;
  }
  if (told_to_stop) {
    move.why = "told to stop";
    return move;
  }
  if (history.restarts >= options.max_restarts) {
    move.why = absl::StrCat("--max_restarts ", options.max_restarts, " are used up");
    return move;
  }
  if (fruitless >= options.max_no_progress) {
    move.why =
        absl::StrCat(fruitless, " restarts in a row brought no new checkpoint beyond ",
                     move.history.best_checkpoint < 0 ? std::string("the beginning")
                                                      : absl::StrCat("step ", move.history.best_checkpoint));
    return move;
  }
  move.restart = true;
  move.from_good = after == AfterExit::kRollBack;
  move.without_suspects = after == AfterExit::kRestartWithout;
  move.history.restarts += 1;
  move.history.restarts_without_progress = fruitless + 1;
  move.wait_seconds = std::min(
      options.max_backoff_seconds,
      options.backoff_seconds * std::pow(2.0, static_cast<double>(std::min<int64_t>(fruitless, 60))));
  move.why = absl::StrFormat("restart %d in %.3g s", move.history.restarts, move.wait_seconds);
  return move;
}
}  // namespace carousel
