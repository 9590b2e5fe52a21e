// Starting and watching other processes without a shell: what `carousel launch` and what watches over one
// rank have in common. For programs with one thread: a child may die with its parent's thread.
#pragma once
#include <sys/types.h>

#include <csignal>
#include <functional>
#include <initializer_list>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "core/base/log.h"
#include "launcher/launch/launch_judgement.h"

namespace carousel {

// Owns a file descriptor.
class OwnedFd {
 public:
  OwnedFd() = default;
  explicit OwnedFd(int fd) : fd_(fd) {}
  OwnedFd(OwnedFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  OwnedFd& operator=(OwnedFd&& other) noexcept;
  ~OwnedFd();
  int get() const { return fd_; }
  void Close();

 private:
  int fd_ = -1;
};

struct SpawnOptions {
  std::vector<std::string> argv = {};         // argv[0]: a path
  std::vector<std::string> environment = {};  // "NAME=value", all of it
  int signal_of_parents_death = SIGKILL;      // what the kernel sends the child when we are gone
  std::vector<int> blocked_signals = {};      // that the child begins with as blocked
};
struct Child {
  pid_t pid = 0;
  OwnedFd output, errors;  // we read what it prints
};
// In a process group of its own, input from /dev/null, signals as by default. NotFound, PermissionDenied with
// the path if it cannot be run.
absl::StatusOr<Child> Spawn(const SpawnOptions& options);
// The meaning of a status from waitpid.
ProcessEnd EndOf(int wait_status);

// From now on these signals come out of the descriptor, one signalfd_siginfo each, and interrupt nothing.
absl::StatusOr<OwnedFd> TakeSignals(std::initializer_list<int> signals);
struct TakenSignal {
  int signal = 0;
  pid_t sender = 0;
};
std::vector<TakenSignal> ReadSignals(const OwnedFd& fd);

// Reads what is there into `text`. False when nothing more will come.
bool ReadSome(const OwnedFd& fd, std::string* text);
// Writes all of it, whatever it takes; gives up when nobody reads any more, or, while a descriptor that does
// not block is full, when go_on says so (asked once a second).
void WriteAll(int fd, const std::string& text, const std::function<bool()>& go_on = nullptr);

// Takes text for a console or a pipe that may be slow, stuck or closed, and never waits for it. What it
// cannot keep is left out, and a remark says so when the other side reads again.
class Outlet {
 public:
  // The descriptor stays the caller's, and stays as it is for all others who write to it. where_all_is: a
  // path for the remark.
  Outlet(int fd, std::string where_all_is);
  void Add(const std::string& text);
  // Writes what can be written now.
  void Flush();
  // Writes what can be written within so many seconds.
  void FlushFor(double seconds);
  // Nothing waits to be written. Where nobody reads any more nothing ever does.
  bool empty() const { return waiting_.empty() && left_out_ == 0; }
  int fd() const { return own_.get() >= 0 ? own_.get() : fd_; }

 private:
  const int fd_;
  const std::string where_all_is_;
  OwnedFd own_;  // the same file, opened again so that a write never blocks; where that works
  std::string waiting_;
  size_t left_out_ = 0;
  bool closed_ = false;
};

// A log line (core/base/log.h) that is left out where the console takes nothing for half a second.
class LaunchLine {
 public:
  explicit LaunchLine(LogLevel level) : level_(level) {}
  ~LaunchLine();
  std::ostream& stream() { return stream_; }

 private:
  const LogLevel level_;
  std::ostringstream stream_;
};

// Becomes parent of every descendant that loses its own.
void AdoptOrphans();
std::vector<pid_t> ChildrenOf(pid_t parent);
// SIGKILL to all children and all that are adopted thereby, until none is left or the time is over. False if
// some are left (they wait for a disk).
bool KillChildren(double seconds);
}  // namespace carousel
