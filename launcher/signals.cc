#include "launcher/signals.h"

#include <pthread.h>

#include <atomic>
#include <csignal>
#include <ctime>
#include <initializer_list>

#include "core/base/status_exit_code.h"

namespace carousel {
namespace {
// A signal handler has no argument to reach an object through, so these flags are the globals of the program.
std::atomic<bool> stop_requested = false, end_requested = false;
static_assert(std::atomic<bool>::is_always_lock_free);

extern "C" void HandleStopSignal(int signal) {
  stop_requested = true;
  if (signal == SIGTERM) end_requested = true;
  // The next Ctrl-C is the default action: the process ends.
  if (signal == SIGINT) std::signal(SIGINT, SIG_DFL);
}

sigset_t SetOf(std::initializer_list<int> signals) {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : signals) sigaddset(&set, signal);
  return set;
}
sigset_t StopSignals() { return SetOf({SIGINT, SIGTERM, SIGUSR1, SIGUSR2}); }
}  // namespace

void InstallStopSignals() {
  // For threads that were there before (MPI's): they still take the signals.
  struct sigaction action {};
  action.sa_handler = HandleStopSignal;
  sigemptyset(&action.sa_mask);
  action.sa_flags = SA_RESTART;  // reads and writes in progress go on
  for (const int signal : {SIGINT, SIGTERM, SIGUSR1, SIGUSR2}) sigaction(signal, &action, nullptr);
  const sigset_t signals = StopSignals();
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  // Ctrl-C in "train | tee log" ends tee first: what cannot be printed any more must not cost what was
  // trained.
  std::signal(SIGPIPE, SIG_IGN);
}

namespace {
// What nobody took waits here.
void TakeSignals() {
  const sigset_t signals = StopSignals();
  const timespec at_once{};
  for (int signal = sigtimedwait(&signals, nullptr, &at_once); signal > 0;
       signal = sigtimedwait(&signals, nullptr, &at_once)) {
    HandleStopSignal(signal);
    if (signal != SIGINT) continue;
    const sigset_t interrupt = SetOf({SIGINT});
    pthread_sigmask(SIG_UNBLOCK, &interrupt, nullptr);
  }
}
}  // namespace

bool StopRequested() {
  TakeSignals();
  return stop_requested;
}

bool EndRequested() {
  TakeSignals();
  return end_requested;
}

absl::Status StopStatus() {
  if (!StopRequested()) return absl::OkStatus();
  return WithExitCode(
      absl::CancelledError("stopped by a signal before the first step; nothing was trained, and what "
                           "was saved before is as it was"),
      kExitStopped);
}
}  // namespace carousel
