#include "launcher/launch/launch_process.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace carousel {
namespace {
namespace fs = std::filesystem;

// Between fork and exec only what may be called there: nothing that takes memory.
[[noreturn]] void BecomeProgram(const SpawnOptions& options, char* const* argv, char* const* envp,
                                pid_t parent, int output, int errors, int report) {
  prctl(PR_SET_PDEATHSIG, options.signal_of_parents_death);
  if (getppid() != parent) _exit(127);  // it died before the line above
  setpgid(0, 0);
  const int null = open("/dev/null", O_RDONLY);
  bool ready = null >= 0 && dup2(null, STDIN_FILENO) >= 0 && dup2(output, STDOUT_FILENO) >= 0 &&
               dup2(errors, STDERR_FILENO) >= 0;
  if (null > STDERR_FILENO) close(null);
  sigset_t blocked;
  sigemptyset(&blocked);
  for (const int signal : options.blocked_signals) sigaddset(&blocked, signal);
  for (int signal = 1; signal < NSIG; ++signal) {
    if (signal != SIGKILL && signal != SIGSTOP) ::signal(signal, SIG_DFL);
  }
  ready = ready && sigprocmask(SIG_SETMASK, &blocked, nullptr) == 0;
  if (ready) execve(argv[0], argv, envp);
  const int error = errno;
  // The parent reads it; the pipe closes by itself when exec succeeds.
  if (write(report, &error, sizeof(error)) < 0) _exit(126);
  _exit(127);
}

std::vector<char*> Pointers(const std::vector<std::string>& words) {
  std::vector<char*> pointers;
  for (const std::string& word : words) pointers.push_back(const_cast<char*>(word.c_str()));
  pointers.push_back(nullptr);
  return pointers;
}

absl::Status Errno(const std::string& what) {
  return absl::UnavailableError(absl::StrCat(what, ": ", std::strerror(errno)));
}

absl::Status MakePipe(OwnedFd* read_end, OwnedFd* write_end) {
  int fds[2];
  if (pipe2(fds, O_CLOEXEC) != 0) return Errno("cannot make a pipe");
  *read_end = OwnedFd(fds[0]);
  *write_end = OwnedFd(fds[1]);
  return absl::OkStatus();
}

double Seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}
}  // namespace

OwnedFd& OwnedFd::operator=(OwnedFd&& other) noexcept {
  Close();
  fd_ = std::exchange(other.fd_, -1);
  return *this;
}
OwnedFd::~OwnedFd() { Close(); }
void OwnedFd::Close() {
  if (fd_ >= 0) close(fd_);
  fd_ = -1;
}

absl::StatusOr<Child> Spawn(const SpawnOptions& options) {
  Child child;
  OwnedFd output, errors, report_read, report_write;
  for (const absl::Status& status : {MakePipe(&child.output, &output), MakePipe(&child.errors, &errors),
                                     MakePipe(&report_read, &report_write)}) {
    if (!status.ok()) return status;
  }
  fcntl(child.output.get(), F_SETFL, O_NONBLOCK);
  fcntl(child.errors.get(), F_SETFL, O_NONBLOCK);
  const std::vector<char*> argv = Pointers(options.argv), envp = Pointers(options.environment);
  const pid_t self = getpid();
  child.pid = fork();
  if (child.pid < 0) return Errno("cannot start a process");
  if (child.pid == 0) {
    BecomeProgram(options, argv.data(), envp.data(), self, output.get(), errors.get(), report_write.get());
  }
  setpgid(child.pid, child.pid);  // both do it: neither knows who comes first
  report_write.Close();
  int error = 0;
  ssize_t n = 0;
  do {
    n = read(report_read.get(), &error, sizeof(error));
  } while (n < 0 && errno == EINTR);
  if (n != static_cast<ssize_t>(sizeof(error))) return child;
  int status = 0;
  while (waitpid(child.pid, &status, 0) < 0 && errno == EINTR) {
  }
  const std::string what = absl::StrCat("cannot run ", options.argv[0], ": ", std::strerror(error));
  return error == ENOENT   ? absl::NotFoundError(what)
         : error == EACCES ? absl::PermissionDeniedError(what)
                           : absl::UnavailableError(what);
}

ProcessEnd EndOf(int wait_status) {
  if (WIFSIGNALED(wait_status)) return {.exit_code = -1, .signal = WTERMSIG(wait_status)};
  return {.exit_code = WEXITSTATUS(wait_status)};
}

absl::StatusOr<OwnedFd> TakeSignals(std::initializer_list<int> signals) {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : signals) sigaddset(&set, signal);
  if (sigprocmask(SIG_BLOCK, &set, nullptr) != 0) return Errno("cannot block signals");
  OwnedFd fd(signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC));
  if (fd.get() < 0) return Errno("cannot wait for signals");
  return fd;
}

std::vector<TakenSignal> ReadSignals(const OwnedFd& fd) {
  std::vector<TakenSignal> taken;
  signalfd_siginfo info;
  while (read(fd.get(), &info, sizeof(info)) == static_cast<ssize_t>(sizeof(info))) {
    taken.push_back({.signal = static_cast<int>(info.ssi_signo), .sender = static_cast<pid_t>(info.ssi_pid)});
  }
  return taken;
}

bool ReadSome(const OwnedFd& fd, std::string* text) {
  char buffer[1 << 16];
  while (true) {
    const ssize_t n = read(fd.get(), buffer, sizeof(buffer));
    if (n > 0) {
      text->append(buffer, static_cast<size_t>(n));
      // Others must have their turn as well.
      if (text->size() >= (1 << 20)) return true;
      continue;
    }
    if (n < 0 && errno == EINTR) continue;
    return n < 0 && errno == EAGAIN;
  }
}

void WriteAll(int fd, const std::string& text, const std::function<bool()>& go_on) {
  const char* at = text.data();
  size_t left = text.size();
  while (left > 0) {
    const ssize_t n = write(fd, at, left);
    if (n > 0) {
      at += n;
      left -= static_cast<size_t>(n);
    } else if (n < 0 && errno == EAGAIN) {
      if (go_on != nullptr && !go_on()) return;
      pollfd waiting{.fd = fd, .events = POLLOUT, .revents = 0};
      poll(&waiting, 1, 1000);
    } else if (!(n < 0 && errno == EINTR)) {
      return;
    }
  }
}

namespace {
constexpr size_t kMaxWaiting = 1 << 20;
// Fits into a pipe that takes anything at all.
constexpr size_t kPiece = 4096;
}  // namespace

Outlet::Outlet(int fd, std::string where_all_is) : fd_(fd), where_all_is_(std::move(where_all_is)) {
  struct stat info {};
  // A file has a position, which who writes to it shares; and it takes what it is given.
  if (fstat(fd, &info) != 0 || (!S_ISFIFO(info.st_mode) && !S_ISCHR(info.st_mode))) return;
  own_ =
      OwnedFd(open(absl::StrCat("/proc/self/fd/", fd).c_str(), O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC));
}

void Outlet::Add(const std::string& text) {
  if (closed_) return;
  if (left_out_ > 0 || waiting_.size() + text.size() > kMaxWaiting) {
    left_out_ += text.size();
  } else {
    waiting_ += text;
  }
  Flush();
}

void Outlet::Flush() {
  while (!closed_ && !empty()) {
    if (waiting_.empty()) {
      waiting_ = absl::StrCat("\n... ", left_out_, " bytes of output are left out here; all of it is in ",
                              where_all_is_, "\n");
      left_out_ = 0;
    }
    pollfd ready{.fd = fd(), .events = POLLOUT, .revents = 0};
    if (poll(&ready, 1, 0) == 0) return;
    const ssize_t n = write(fd(), waiting_.data(), std::min(waiting_.size(), kPiece));
    if (n > 0) {
      waiting_.erase(0, static_cast<size_t>(n));
    } else if (n < 0 && errno == EAGAIN) {
      return;
    } else if (!(n < 0 && errno == EINTR)) {
      closed_ = true;
      waiting_.clear();
      left_out_ = 0;
    }
  }
}

void Outlet::FlushFor(double seconds) {
  const double deadline = Seconds() + seconds;
  Flush();
  while (!empty() && Seconds() < deadline) {
    poll(nullptr, 0, 10);
    Flush();
  }
}

LaunchLine::~LaunchLine() {
  constexpr int kPatienceMilliseconds = 500;
  pollfd ready{.fd = STDERR_FILENO, .events = POLLOUT, .revents = 0};
  if (poll(&ready, 1, kPatienceMilliseconds) > 0) LogLine(level_).stream() << stream_.str();
}

void AdoptOrphans() { prctl(PR_SET_CHILD_SUBREAPER, 1); }

std::vector<pid_t> ChildrenOf(pid_t parent) {
  std::vector<pid_t> children;
  std::error_code error;
  fs::directory_iterator entries("/proc", error);
  for (; !error && entries != fs::directory_iterator(); entries.increment(error)) {
    pid_t pid = 0;
    if (!absl::SimpleAtoi(entries->path().filename().string(), &pid)) continue;
    std::ifstream in(entries->path() / "stat");
    std::string line;
    std::getline(in, line);
    // "pid (name) state ppid": the name may hold anything, brackets too.
    const size_t name_end = line.rfind(')');
    if (name_end == std::string::npos || name_end + 4 > line.size()) continue;
    pid_t ppid = 0;
    const std::string rest = line.substr(name_end + 4);
    if (absl::SimpleAtoi(rest.substr(0, rest.find(' ')), &ppid) && ppid == parent) children.push_back(pid);
  }
  return children;
}

bool KillChildren(double seconds) {
  const double deadline = Seconds() + seconds;
  while (true) {
    for (const pid_t pid : ChildrenOf(getpid())) kill(pid, SIGKILL);
    int status = 0;
    pid_t reaped = 0;
    while ((reaped = waitpid(-1, &status, WNOHANG)) > 0) {
    }
    if (reaped < 0 && errno == ECHILD) return true;
    if (Seconds() > deadline) return false;
    poll(nullptr, 0, 10);
  }
}
}  // namespace carousel
