#include "launcher/signals.h"

#include <csignal>
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
}  // namespace

void InstallStopSignals() {
  struct sigaction action {};
  action.sa_handler = HandleStopSignal;
  sigemptyset(&action.sa_mask);
  action.sa_flags = SA_RESTART;  // reads and writes in progress go on
  for (const int signal : {SIGINT, SIGTERM, SIGUSR1, SIGUSR2}) sigaction(signal, &action, nullptr);
}

bool StopRequested() { return stop_requested != 0; }
}  // namespace carousel
