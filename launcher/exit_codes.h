// Exit codes, the same for every subcommand: the constants are in core/base/exit_code.h, which status ends
// with which in core/base/status_exit_code.h; `carousel --help` documents them.
#pragma once
#include <cstdint>
#include <string>

#include "core/base/exit_code.h"
#include "core/base/status_exit_code.h"

namespace carousel {

// What whoever started the process should do next.
enum class AfterExit : uint8_t {
  kDone,            // nothing
  kStop,            // nothing: starting it again would fail alike
  kRestart,         // start again, but not for ever
  kRestartWithout,  // start again without the node that is suspected
  kRollBack,        // start again from the last checkpoint that is marked as good
  kRequeue          // give the job back to the scheduler: the same command goes on
};
AfterExit ActionAfter(int exit_code);
// "71 hang or transport failure" -> the words: "hang or transport failure". For a signal "signal 9 (Killed)".
std::string ExitCodeText(int exit_code);
// The table of `carousel --help`.
const char* ExitCodeTable();
}  // namespace carousel
