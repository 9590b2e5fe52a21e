#include "launcher/signals.h"

#include <pthread.h>

#include <csignal>
#include <ctime>
#include <initializer_list>

namespace carousel {
namespace {
// A signal handler has no argument to reach an object through, so this flag is the one global of the program.
volatile std::sig_atomic_t stop_requested = 0;

extern "C" void HandleStopSignal(int signal) {
  stop_requested = 1;
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
}

bool StopRequested() {
  // What nobody took waits here.
  const sigset_t signals = StopSignals();
  const timespec at_once{};
  for (int signal = sigtimedwait(&signals, nullptr, &at_once); signal > 0;
       signal = sigtimedwait(&signals, nullptr, &at_once)) {
    HandleStopSignal(signal);
    if (signal != SIGINT) continue;
    const sigset_t interrupt = SetOf({SIGINT});
    pthread_sigmask(SIG_UNBLOCK, &interrupt, nullptr);
  }
  return stop_requested != 0;
}
}  // namespace carousel
