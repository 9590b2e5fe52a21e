#include "launcher/exit_codes.h"

#include <cstring>

#include "absl/strings/str_cat.h"

namespace carousel {

AfterExit ActionAfter(int exit_code) {
  switch (exit_code) {
    case kExitOk:
      return AfterExit::kDone;
    case kExitUsage:
    case kExitNotSaved:
    case kExitData:
    case kExitPreflight:
      return AfterExit::kStop;
    case kExitNumeric:
      return AfterExit::kRollBack;
    case kExitStopped:
      return AfterExit::kRequeue;
    case kExitHardware:
      return AfterExit::kRestartWithout;
    default:
      return AfterExit::kRestart;  // 70, 71, signals, and what is none of ours
  }
}

std::string ExitCodeText(int exit_code) {
  switch (exit_code) {
    case kExitOk:
      return "done";
    case kExitUsage:
      return "wrong command line or config";
    case kExitFailure:
      return "the work failed";
    case kExitTransport:
      return "hang or transport failure";
    case kExitNumeric:
      return "loss or gradient stayed bad";
    case kExitNotSaved:
      return "training cannot be saved";
    case kExitData:
      return "data error";
    case kExitStopped:
      return "stopped by a signal, saved";
    case kExitHardware:
      return "hardware suspected";
    case kExitPreflight:
      return "preflight failed";
    default:
      break;
  }
  if (exit_code <= 128 || exit_code > 128 + 64) return absl::StrCat("exit code ", exit_code);
  const char* name = strsignal(exit_code - 128);
  return absl::StrCat("signal ", exit_code - 128, " (", name == nullptr ? "unknown" : name, ")");
}

const char* ExitCodeTable() {
  return R"(Exit status:
  0    done
  64   the command line or the config is wrong; starting again does not help
  70   the work failed: a file, a checksum, a tolerance
  71   a hang, or ranks that cannot reach each other; a restart may help
  72   loss or gradient stayed bad; go on from an earlier checkpoint (--from_good)
  73   training cannot be saved: checkpoint.max_failed_saves times in a row, or another run writes there
  74   token files or a checkpoint are missing, damaged or not those of the run
  75   stopped by a signal, everything saved; the same command goes on
  76   a device or machine computes wrong; go on without it
  77   a check before the start failed
  128+ ended by a signal: 128 + its number
)";
}
}  // namespace carousel
