#include "launcher/launch/launch_attempt.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "checkpoints/checkpoint.h"
#include "checkpoints/retention.h"
#include "core/base/log.h"
#include "core/base/status_exit_code.h"
#include "core/base/status_macros.h"
#include "launcher/launch/attempt_recorder.h"
#include "launcher/launch/launch_output.h"
#include "launcher/train/run_directory.h"

namespace carousel {
namespace {
namespace fs = std::filesystem;

constexpr double kLookSeconds = 0.25;       // between looks at the records of the ranks
constexpr double kRepeatSeconds = 2;        // SIGUSR2 is lost on an mpirun that is just starting its ranks
constexpr double kLingerSeconds = 0.5;      // that mpirun has to end by itself after its last rank
constexpr double kCleanLingerSeconds = 30;  // the same where every rank has ended well
constexpr double kForceSeconds = 3;         // from the first SIGTERM to SIGKILL
constexpr double kLeaveSeconds = 2;         // that orphans have to write their records
constexpr double kKillSeconds = 20;
constexpr size_t kKeptOutput = 256 << 10;
constexpr size_t kSecretBytes = 32;
constexpr int64_t kMaxAttempts = int64_t{1} << 40;

double Seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

absl::StatusOr<std::string> NewSecret() {
  std::string bytes(kSecretBytes, '\0');
  size_t have = 0;
  while (have < bytes.size()) {
    const ssize_t n = getrandom(bytes.data() + have, bytes.size() - have, 0);
    if (n > 0) have += static_cast<size_t>(n);
    if (n < 0 && errno != EINTR) {
      return absl::UnavailableError(
          absl::StrCat("no random numbers from the kernel: ", std::strerror(errno)));
    }
  }
  return absl::BytesToHexString(bytes);
}

absl::Status MakeDirectory(const std::string& path, bool may_exist) {
  if (mkdir(path.c_str(), S_IRWXU | S_IRGRP | S_IXGRP) == 0) return absl::OkStatus();
  if (errno == EEXIST && may_exist) return absl::OkStatus();
  if (errno == EEXIST) return absl::AlreadyExistsError(path);
  return WithExitCode(absl::FailedPreconditionError(
                          absl::StrCat("cannot make ", path, ": ", std::strerror(errno),
                                       "; the run directory must be writable and on a disk that has room")),
                      kExitNotSaved);
}

// One attempt while it runs.
class Watch {
 public:
  Watch(const AttemptPlan& plan, const LaunchOptions& options, StopSignals* signals)
      : plan_(plan),
        options_(options),
        signals_(*signals),
        to_output_(STDOUT_FILENO, plan.dir + "/launcher.log"),
        to_errors_(STDERR_FILENO, plan.dir + "/launcher.log") {}

  absl::Status Start();
  void Run();
  void Fill(AttemptFacts* facts) const;

 private:
  void Turn();
  void TakeOutput();
  void LookAtSignals();
  void LookAtRanks();
  void Say(const std::string& text, bool warning = false);
  void EndNow(const std::string& why);
  void Force();
  void Sweep();

  const AttemptPlan& plan_;
  const LaunchOptions& options_;
  StopSignals& signals_;
  Outlet to_output_, to_errors_;
  Child child_;
  OwnedFd log_;
  BannerFilter filter_;
  std::string output_;
  bool output_open_ = true, errors_open_ = true;
  bool running_ = true, told_ = false, out_of_time_ = false;
  ProcessEnd end_;
  double next_look_ = 0;
  double deadline_ = 0, next_request_ = 0;         // after the first stop signal
  double failed_since_ = 0, all_ended_since_ = 0;  // 0: not
  double force_since_ = 0;                         // 0: not
  int terms_ = 0;
};

absl::Status Watch::Start() {
  CAROUSEL_ASSIGN_OR_RETURN(const std::string secret, NewSecret());
  SpawnOptions spawn{.argv = plan_.command.argv, .environment = {}, .signal_of_parents_death = SIGKILL};
  bool has_secret = false;
  for (const std::string& variable : plan_.environment) {
    const std::string name = variable.substr(0, variable.find('='));
    if (name == kAttemptDirVariable) continue;
    has_secret |= name == kRunSecretVariable;
    spawn.environment.push_back(variable);
  }
  spawn.environment.push_back(absl::StrCat(kAttemptDirVariable, "=", plan_.dir));
  // In the environment and nowhere else: it shows in no command line, no file and no log.
  if (!has_secret) spawn.environment.push_back(absl::StrCat(kRunSecretVariable, "=", secret));
  const std::string log = plan_.dir + "/launcher.log";
  log_ = OwnedFd(
      open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW | O_CLOEXEC, S_IRUSR | S_IWUSR | S_IRGRP));
  if (log_.get() < 0) {
    return WithExitCode(
        absl::UnavailableError(absl::StrCat("cannot write ", log, ": ", std::strerror(errno))),
        kExitNotSaved);
  }
  CAROUSEL_ASSIGN_OR_RETURN(child_, Spawn(spawn));
  return absl::OkStatus();
}

void Watch::TakeOutput() {
  std::string text;
  if (output_open_) output_open_ = ReadSome(child_.output, &text);
  to_output_.Add(text);
  WriteAll(log_.get(), text);
  text.clear();
  if (errors_open_) errors_open_ = ReadSome(child_.errors, &text);
  to_errors_.Add(filter_.Pass(text));
  WriteAll(log_.get(), text);
  output_ += text;
  if (output_.size() > 2 * kKeptOutput) output_.erase(0, output_.size() - kKeptOutput);
}

// A console that takes nothing must not keep us from what we say here.
void Watch::Say(const std::string& text, bool warning) {
  to_errors_.Flush();
  if (!to_errors_.empty()) {
    to_errors_.Add("carousel launch: " + text + "\n");
  } else {
    LaunchLine(warning ? LogLevel::WARNING : LogLevel::INFO).stream() << text;
  }
}

void Watch::EndNow(const std::string& why) {
  if (force_since_ > 0) return;
  force_since_ = Seconds();
  if (!why.empty()) Say(why, /*warning=*/true);
}

// mpirun waits its kill time-out twice before it ends, unless it is told so again and again.
void Watch::Force() {
  const double since = Seconds() - force_since_;
  if (since >= kForceSeconds) {
    kill(child_.pid, SIGKILL);
  } else if (terms_ < 3 && since >= 0.3 * terms_) {
    ++terms_;
    kill(child_.pid, SIGCONT);
    kill(child_.pid, SIGTERM);
  }
}

void Watch::LookAtSignals() {
  signals_.Look(Seconds());
  if (!signals_.asked()) return;
  if (told_) {
    if (!signals_.hurried() || out_of_time_) return;
    out_of_time_ = true;
    EndNow("told again: ending at once");
    return;
  }
  told_ = true;
  deadline_ = Seconds() + options_.grace_seconds;
  Say(absl::StrCat(strsignal(signals_.first()), ": asking the ranks to save and end, within ",
                   options_.grace_seconds, " s"));
}

void Watch::LookAtRanks() {
  const double now = Seconds();
  if (now < next_look_) return;
  next_look_ = now + kLookSeconds;
  const std::vector<RankEnd> ends = ReadRankEnds(plan_.dir);
  const bool failed =
      SaysJobFailed(output_) || std::any_of(ends.begin(), ends.end(), [this](const RankEnd& end) {
        return end.exit_code != kExitOk && !(end.exit_code == kExitStopped && told_);
      });
  if (failed && failed_since_ == 0) failed_since_ = now;
  // Also where ranks or their daemons could say nothing: mpirun has no child any more.
  const bool all_ended =
      static_cast<int64_t>(ends.size()) == plan_.ranks || (failed && ChildrenOf(child_.pid).empty());
  if (all_ended && all_ended_since_ == 0) all_ended_since_ = now;
  if (failed_since_ > 0 && now - failed_since_ > options_.failure_grace_seconds) {
    EndNow("a rank has failed, and the others do not end: ending them");
  }
  const bool stopped = failed || std::any_of(ends.begin(), ends.end(),
                                             [](const RankEnd& end) { return end.exit_code != kExitOk; });
  if (all_ended_since_ > 0 && now - all_ended_since_ > (stopped ? kLingerSeconds : kCleanLingerSeconds))
    EndNow("");
}

void Watch::Turn() {
  pollfd waiting[] = {{.fd = signals_.fd().get(), .events = POLLIN, .revents = 0},
                      {.fd = output_open_ ? child_.output.get() : -1, .events = POLLIN, .revents = 0},
                      {.fd = errors_open_ ? child_.errors.get() : -1, .events = POLLIN, .revents = 0},
                      {.fd = to_output_.empty() ? -1 : to_output_.fd(), .events = POLLOUT, .revents = 0},
                      {.fd = to_errors_.empty() ? -1 : to_errors_.fd(), .events = POLLOUT, .revents = 0}};
  poll(waiting, 5, 100);
  to_output_.Flush();
  to_errors_.Flush();
  TakeOutput();
  LookAtSignals();
  LookAtRanks();
  const double now = Seconds();
  if (told_ && force_since_ == 0) {
    if (now >= next_request_) {
      kill(child_.pid, SIGUSR2);
      next_request_ = now + kRepeatSeconds;
    }
    if (now >= deadline_) {
      out_of_time_ = true;
      EndNow("--grace is over: ending what is left");
    }
  }
  if (force_since_ > 0) Force();
  // Orphans of the job come to us as well.
  int status = 0;
  for (pid_t pid = waitpid(-1, &status, WNOHANG); pid > 0; pid = waitpid(-1, &status, WNOHANG)) {
    if (pid != child_.pid) continue;
    end_ = EndOf(status);
    running_ = false;
  }
}

// Nothing of the job stays on this machine. What runs on others ends with its connection to mpirun.
void Watch::Sweep() {
  const double deadline = Seconds() + kLeaveSeconds;
  while (Seconds() < deadline) {
    TakeOutput();
    while (waitpid(-1, nullptr, WNOHANG) > 0) {
    }
    if (ChildrenOf(getpid()).empty() && !output_open_ && !errors_open_) break;
    poll(nullptr, 0, 10);
  }
  if (!KillChildren(kKillSeconds)) {
    LaunchLine(LogLevel::WARNING).stream()
        << "processes of this attempt are stuck in the kernel and still there";
  }
  TakeOutput();
  to_errors_.Add(filter_.Rest());
  to_output_.FlushFor(kLeaveSeconds);
  to_errors_.FlushFor(kLeaveSeconds);
}

void Watch::Run() {
  while (running_) Turn();
  Sweep();
  signals_.Look(Seconds());
}

void Watch::Fill(AttemptFacts* facts) const {
  facts->ends = ReadRankEnds(plan_.dir);
  facts->launcher = end_;
  facts->output = output_;
  facts->told_to_stop = told_;
  facts->ended_by_force = force_since_ > 0;
  facts->out_of_time = out_of_time_;
  facts->stop_signal = signals_.first();
}
}  // namespace

absl::StatusOr<StopSignals> StopSignals::Take() {
  StopSignals signals;
  CAROUSEL_ASSIGN_OR_RETURN(signals.fd_, TakeSignals({SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2}));
  return signals;
}

void StopSignals::Hold() {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : {SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2}) sigaddset(&set, signal);
  sigprocmask(SIG_BLOCK, &set, nullptr);
}

void StopSignals::Look(double now) {
  for (const TakenSignal& taken : ReadSignals(fd_)) Note(taken.signal, now);
}

void StopSignals::Note(int signal, double now) {
  constexpr double kAgainSeconds = 1;
  if (first_ == 0) {
    first_ = signal;
    first_at_ = now;
  } else if ((signal == SIGTERM || signal == SIGINT) && now - first_at_ >= kAgainSeconds) {
    hurried_ = true;
  }
}

absl::StatusOr<AttemptPlan> MakeAttemptDirectory(const std::string& run_dir) {
  AttemptPlan plan;
  std::error_code error;
  fs::create_directories(run_dir, error);
  const std::string attempts = run_dir + "/attempts";
  CAROUSEL_RETURN_IF_ERROR(MakeDirectory(attempts, /*may_exist=*/true));
  int64_t last = 0;
  fs::directory_iterator entries(attempts, error);
  for (; !error && entries != fs::directory_iterator(); entries.increment(error)) {
    int64_t number = 0;
    // Whatever else lies there is nobody's attempt.
    if (absl::SimpleAtoi(entries->path().filename().string(), &number) && number < kMaxAttempts) {
      last = std::max(last, number);
    }
  }
  absl::Status made = absl::OkStatus();
  do {
    plan.number = ++last;
    plan.dir = absl::StrCat(attempts, "/", plan.number);
    made = MakeDirectory(plan.dir, /*may_exist=*/false);
  } while (absl::IsAlreadyExists(made));
  CAROUSEL_RETURN_IF_ERROR(made);
  CAROUSEL_RETURN_IF_ERROR(MakeDirectory(plan.dir + "/rank_logs", false));
  CAROUSEL_RETURN_IF_ERROR(MakeDirectory(plan.dir + "/ends", false));
  return plan;
}

absl::Status RecordAttempt(const AttemptPlan& plan, const std::string& config_text) {
  const std::string environment = absl::StrJoin(RecordedEnvironment(plan.environment), "\n") + "\n";
  for (const auto& [name, text] :
       {std::pair<const char*, std::string>{"command.txt", QuotedCommand(plan.command.argv) + "\n"},
        {"hosts", FormatHostfile(plan.hosts)},
        {"environment", environment},
        {"config.textproto", config_text}}) {
    const absl::Status written = WriteFileWhole(absl::StrCat(plan.dir, "/", name), text);
    if (!written.ok()) return WithExitCode(written, kExitNotSaved);
  }
  return absl::OkStatus();
}

namespace {
int64_t StepOf(const std::string& checkpoint) {
  const std::string name = fs::path(checkpoint).filename().string();
  int64_t step = -1;
  const size_t dash = name.rfind('-');
  return dash != std::string::npos && absl::SimpleAtoi(name.substr(dash + 1), &step) ? step : -1;
}
}  // namespace

int64_t NewestCheckpointStep(const std::string& run_dir) {
  const absl::StatusOr<std::vector<std::string>> checkpoints = ListCheckpoints(run_dir);
  return checkpoints.ok() && !checkpoints->empty() ? StepOf(checkpoints->back()) : -1;
}

int64_t NewestGoodStep(const std::string& run_dir) {
  const absl::StatusOr<std::string> good = FindGoodCheckpoint(run_dir);
  return good.ok() ? StepOf(*good) : -1;
}

int64_t LastRecordedStep(const std::string& run_dir) {
  constexpr int64_t kTail = 256 << 10;
  std::ifstream in(MetricsPath(run_dir), std::ios::binary | std::ios::ate);
  if (!in) return -1;
  const int64_t size = static_cast<int64_t>(in.tellg());
  in.seekg(std::max<int64_t>(0, size - kTail));
  const std::string text((std::istreambuf_iterator<char>(in)), {});
  const std::vector<std::string> lines = absl::StrSplit(text, '\n');
  for (auto line = lines.rbegin(); line != lines.rend(); ++line) {
    const nlohmann::json json = nlohmann::json::parse(*line, nullptr, /*allow_exceptions=*/false);
    if (!json.is_object()) continue;
    const auto step = json.find("step");
    if (step != json.end() && step->is_number_integer()) return step->get<int64_t>();
  }
  return -1;
}

absl::StatusOr<AttemptFacts> RunAttempt(const AttemptPlan& plan, const LaunchOptions& options,
                                        const std::string& run_dir, StopSignals* signals) {
  AttemptFacts facts;
  facts.attempt = plan.number;
  facts.ranks = plan.ranks;
  facts.hosts = plan.hosts;
  facts.began = UnixSeconds();
  facts.checkpoint_before = NewestCheckpointStep(run_dir);
  Watch watch(plan, options, signals);
  CAROUSEL_RETURN_IF_ERROR(watch.Start());
  watch.Run();
  watch.Fill(&facts);
  facts.checkpoint = NewestCheckpointStep(run_dir);
  facts.good_checkpoint = NewestGoodStep(run_dir);
  facts.recorded_step = LastRecordedStep(run_dir);
  facts.ended = UnixSeconds();
  return facts;
}
}  // namespace carousel
