// What the exit code of the process says: the contract between `carousel`, whoever starts it again, and the
// schedulers above. It starts at 64 because mpirun and shells use the small codes for themselves.
#pragma once

namespace carousel {

constexpr int kExitOk = 0;          // done
constexpr int kExitUsage = 64;      // the command line or the config is wrong: starting again does not help
constexpr int kExitFailure = 70;    // the work failed: a file, a comparison, a bug. Starting again may help
constexpr int kExitTransport = 71;  // a hang, or ranks that cannot reach each other: start again
constexpr int kExitNumeric = 72;    // loss or gradient stayed bad: go on from an earlier, good checkpoint
constexpr int kExitNotSaved = 73;   // training cannot be saved: the disk, or another run holds the directory
constexpr int kExitData = 74;       // token files or a checkpoint are missing, damaged or not the run's
constexpr int kExitStopped = 75;    // stopped by a signal, everything saved: the same command goes on
constexpr int kExitHardware = 76;   // a device or machine computes wrong: start again without it
constexpr int kExitPreflight = 77;  // a check before the start failed: this job cannot work as it was started
constexpr int kExitTerminated = 143;  // 128 + SIGTERM: told to end, as launchers tell all when one rank died

// The code of a job of which one rank would end with `a` and another with `b`, each for a reason of its own.
// What another start cannot mend wins over what it can, the specific over the general, and any failure over
// success and over having been stopped: 64, 77, 74, 73, 76, 72, 128 and above, 70, 71, 75, 0. A rank that
// lost its peers (71, 143) so gives way to the peer that knows why.
constexpr int CombinedExitCode(int a, int b) {
  const auto weight = [](int code) {
    switch (code) {
      case kExitOk:
        return 0;
      case kExitStopped:
        return 1;
      case kExitTerminated:
        return 2;
      case kExitTransport:
        return 3;
      case kExitFailure:
        return 4;
      case kExitNumeric:
        return 6;
      case kExitHardware:
        return 7;
      case kExitNotSaved:
        return 8;
      case kExitData:
        return 9;
      case kExitPreflight:
        return 10;
      case kExitUsage:
        return 11;
      default:
        return 5;  // signals
    }
  };
  return weight(b) > weight(a) ? b : a;
}
}  // namespace carousel
