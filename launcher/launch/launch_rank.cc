#include "launcher/launch/launch_rank.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <functional>
#include <thread>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "core/base/terminal_text.h"
#include "launcher/environment.h"
#include "launcher/exit_codes.h"
#include "launcher/launch/attempt_recorder.h"
#include "launcher/launch/launch_output.h"
#include "launcher/launch/launch_plan.h"
#include "launcher/launch/launch_process.h"

namespace carousel {
namespace {
constexpr int64_t kMaxForwardedLines = 40;     // of one rank that is not rank 0
constexpr int kDirectoryPatienceSeconds = 10;  // a network file system may show a new directory late
constexpr int kDrainMilliseconds = 500;

int Fail(int exit_code, const std::string& message) {
  std::fprintf(stderr, "carousel: %s\n", EscapeControls(message).c_str());
  return exit_code;
}

bool WaitForDirectory(const std::string& path) {
  for (int i = 0; i < kDirectoryPatienceSeconds * 10; ++i) {
    struct stat info {};
    if (stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode)) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
  return false;
}

std::string HostName() {
  char name[256] = {};
  return gethostname(name, sizeof(name) - 1) == 0 ? name : "unknown";
}

// Open MPI keeps what ranks of one machine share in files that a rank which was killed leaves behind.
void RemoveSharedMemory(const std::vector<std::string>& environment, const std::string& host, int64_t rank) {
  int64_t job = 0;
  if (!absl::SimpleAtoi(ValueOf(environment, "PMIX_NAMESPACE"), &job) || job <= 0 || !IsHostName(host))
    return;
  unlink(absl::StrFormat("/dev/shm/vader_segment.%s.%d.%x.%d", host, getuid(), job, rank).c_str());
}

class RankWatch {
 public:
  RankWatch(const std::vector<std::string>& args, std::vector<std::string> environment, pid_t parent)
      : args_(args), environment_(std::move(environment)), parent_(parent) {
    known_.rank = LaunchedRank(environment_);
    known_.host = HostName();
    known_.began = UnixSeconds();
  }

  int Run();

 private:
  absl::Status Start();
  // Waits until something happens; false when the rank has ended.
  bool Turn();
  void TakeOutput();
  void Forward(const std::vector<std::string>& lines);
  int Finish();

  const std::vector<std::string>& args_;
  const std::vector<std::string> environment_;
  const pid_t parent_;
  // Where mpirun is gone, its end of our output may live on in other processes, and be full.
  const std::function<bool()> parent_lives_ = [this] { return getppid() == parent_; };
  std::string attempt_dir_;
  RankEnd known_;
  OwnedFd signals_, parent_end_, log_;
  Child rank_;
  bool output_open_ = true, errors_open_ = true, orphaned_ = false;
  LineCutter error_lines_;
  int64_t forwarded_ = 0;
  std::string last_error_;
};

absl::Status RankWatch::Start() {
  const std::string log = RankLogPath(attempt_dir_, known_.host, known_.rank);
  log_ = OwnedFd(
      open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW | O_CLOEXEC, S_IRUSR | S_IWUSR | S_IRGRP));
  if (log_.get() < 0) {
    return WithExitCode(absl::UnavailableError(absl::StrCat("cannot write ", log, " on ", known_.host, ": ",
                                                            std::strerror(errno))),
                        kExitNotSaved);
  }
  char self[4096];
  const ssize_t length = readlink("/proc/self/exe", self, sizeof(self));
  if (length <= 0 || length >= static_cast<ssize_t>(sizeof(self))) {
    return absl::UnavailableError("cannot find out where this program is: is /proc mounted?");
  }
  SpawnOptions spawn{.argv = {std::string(self, static_cast<size_t>(length))},
                     .environment = environment_,
                     .blocked_signals = {SIGUSR1, SIGUSR2}};
  spawn.argv.insert(spawn.argv.end(), args_.begin(), args_.end());
  absl::StatusOr<Child> child = Spawn(spawn);
  if (!child.ok()) return child.status();
  rank_ = *std::move(child);
  known_.pid = rank_.pid;
  // Who started us may end without a chance to tell; kernels before 5.3 are asked now and then instead.
  parent_end_ = OwnedFd(static_cast<int>(syscall(SYS_pidfd_open, parent_, 0)));
  return absl::OkStatus();
}

void RankWatch::Forward(const std::vector<std::string>& lines) {
  for (const std::string& line : lines) {
    if (!IsErrorLine(line)) continue;
    // What the crash handler says first says more than the frames below.
    if (last_error_.compare(0, 4, "*** ") != 0) last_error_ = line;
    if (known_.rank == 0 || forwarded_ > kMaxForwardedLines) continue;
    if (++forwarded_ > kMaxForwardedLines) {
      WriteAll(STDERR_FILENO,
               PrefixedLine(absl::StrCat("more in ", RankLogPath(attempt_dir_, known_.host, known_.rank)),
                            known_.host, known_.rank) +
                   "\n",
               parent_lives_);
    } else {
      WriteAll(STDERR_FILENO, PrefixedLine(line, known_.host, known_.rank) + "\n", parent_lives_);
    }
  }
}

void RankWatch::TakeOutput() {
  std::string text;
  if (output_open_) output_open_ = ReadSome(rank_.output, &text);
  WriteAll(log_.get(), text);
  if (known_.rank == 0) WriteAll(STDOUT_FILENO, text, parent_lives_);
  text.clear();
  if (errors_open_) errors_open_ = ReadSome(rank_.errors, &text);
  WriteAll(log_.get(), text);
  if (known_.rank == 0) WriteAll(STDERR_FILENO, text, parent_lives_);
  Forward(error_lines_.Add(text));
}

bool RankWatch::Turn() {
  // A descriptor of -1 is passed over.
  pollfd waiting[] = {{.fd = signals_.get(), .events = POLLIN, .revents = 0},
                      {.fd = parent_end_.get(), .events = POLLIN, .revents = 0},
                      {.fd = output_open_ ? rank_.output.get() : -1, .events = POLLIN, .revents = 0},
                      {.fd = errors_open_ ? rank_.errors.get() : -1, .events = POLLIN, .revents = 0}};
  poll(waiting, 4, 500);
  TakeOutput();
  if (!orphaned_ && getppid() != parent_) {
    orphaned_ = true;
    kill(-rank_.pid, SIGKILL);
  }
  for (const TakenSignal& taken : ReadSignals(signals_)) {
    if (taken.signal != SIGCHLD) kill(rank_.pid, taken.signal);
    // One that is stopped learns of no signal until it goes on; its peers may have given it up long ago.
    if (taken.signal == SIGTERM) kill(rank_.pid, SIGCONT);
  }
  // It stays a zombie, so that its number is nobody else's until all of its group is gone.
  siginfo_t info{};
  return waitid(P_PID, static_cast<id_t>(rank_.pid), &info, WEXITED | WNOHANG | WNOWAIT) != 0 ||
         info.si_pid != rank_.pid;
}

int RankWatch::Finish() {
  // What the rank had written is in the pipes. Something that it started may hold them open: not for long.
  for (int waited = 0; (output_open_ || errors_open_) && waited < kDrainMilliseconds; waited += 10) {
    TakeOutput();
    if (output_open_ || errors_open_) poll(nullptr, 0, 10);
  }
  kill(-rank_.pid, SIGKILL);
  int status = 0;
  while (waitpid(rank_.pid, &status, 0) < 0 && errno == EINTR) {
  }
  const int code = EndOf(status).code();
  if (const std::string rest = error_lines_.Rest(); !rest.empty()) Forward({rest});
  if (code != 0) RemoveSharedMemory(environment_, known_.host, known_.rank);
  const absl::StatusOr<RankEnd> own = ReadRankEnd(RankEndPath(attempt_dir_, known_.rank));
  const bool has_own = own.ok() && own->pid == known_.pid;
  known_.ended = UnixSeconds();
  RankEnd end = FinalRankEnd(known_, has_own ? &*own : nullptr, code, last_error_);
  if (orphaned_ && !has_own) {
    end.exit_code = kExitTransport;
    end.reason = "the process of mpirun or srun that had started this rank is gone";
  }
  const absl::Status written = WriteRankEnd(attempt_dir_, end);
  if (!written.ok()) Fail(0, absl::StrCat("rank ", known_.rank, ": ", std::string(written.message())));
  return code;
}

int RankWatch::Run() {
  attempt_dir_ = ValueOf(environment_, kAttemptDirVariable);
  if (attempt_dir_.empty() || args_.empty() || args_[0] != "train") {
    return Fail(
        kExitUsage,
        "launch_rank is started by `carousel launch`; to train, use carousel launch or carousel train");
  }
  if (known_.rank < 0) {
    return Fail(kExitPreflight,
                "neither mpirun nor srun says which rank this is (OMPI_COMM_WORLD_RANK, PMIX_RANK, "
                "SLURM_PROCID); start "
                "ranks with carousel launch, and on Slurm with srun --mpi=pmix");
  }
  if (!WaitForDirectory(attempt_dir_ + "/ends")) {
    return Fail(
        kExitPreflight,
        absl::StrCat(
            known_.host, " does not see ", attempt_dir_,
            ": the run directory must be on a file system that all hosts share, under the same path"));
  }
  absl::StatusOr<OwnedFd> signals = TakeSignals({SIGCHLD, SIGTERM, SIGUSR1, SIGUSR2, SIGHUP});
  absl::Status started = signals.status();
  if (signals.ok()) {
    signals_ = *std::move(signals);
    started = Start();
  }
  if (!started.ok()) {
    known_.exit_code = ExitCodeOf(started);
    known_.reason = std::string(started.message());
    known_.ended = UnixSeconds();
    WriteRankEnd(attempt_dir_, known_).IgnoreError();
    return Fail(known_.exit_code, absl::StrCat("rank ", known_.rank, ": ", known_.reason));
  }
  std::signal(SIGPIPE, SIG_IGN);
  for (const int fd : {STDOUT_FILENO, STDERR_FILENO}) fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
  while (Turn()) {
  }
  return Finish();
}
}  // namespace

int64_t LaunchedRank(const std::vector<std::string>& environment) {
  for (const char* name : {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID"}) {
    int64_t rank = 0;
    if (absl::SimpleAtoi(ValueOf(environment, name), &rank) && rank >= 0) return rank;
  }
  return -1;
}

RankEnd FinalRankEnd(const RankEnd& known, const RankEnd* own, int code, const std::string& last_error) {
  RankEnd end = own != nullptr ? *own : known;
  end.rank = known.rank;
  if (own != nullptr && (own->exit_code != 0 || code == 0)) return end;
  end.exit_code = code;
  end.ended = known.ended;
  const std::string how = code > 128 ? ExitCodeText(code) : "";
  if (own != nullptr) {
    end.reason =
        absl::StrCat("failed after it had finished: ", code > 128 ? how : absl::StrCat("exit code ", code));
  } else if (code != 0) {
    end.reason = how.empty()          ? last_error
                 : last_error.empty() ? how
                                      : absl::StrCat(how, "; its last words: ", last_error);
  }
  return end;
}

int RunLaunchedRank(const std::vector<std::string>& args) {
  // Asked first: whoever started us may be gone any moment.
  const pid_t parent = getppid();
  return RankWatch(args, Environment::AllVariables(), parent).Run();
}
}  // namespace carousel
