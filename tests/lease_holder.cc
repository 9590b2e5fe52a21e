// A process that takes the lease of a run directory and says what it sees, for run_lease_machines_test.sh:
//
//   lease_holder RUN_DIR BEAT_SECONDS STALE_SECONDS CLOCK_SKEW_SECONDS
//
// Prints "held", or "refused: WHY" and ends with 1. Prints "lost: WHY" and ends with 2 when the lease is
// taken over; gives it back and ends with 0 when its input ends.
#include <poll.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "checkpoints/run_lease.h"

namespace carousel {
namespace {

// The clock of a machine that is set wrong.
class SkewedClock final : public LeaseClock {
 public:
  explicit SkewedClock(double skew_seconds) : skew_(skew_seconds) {}
  int64_t UnixNanos() override {
    const auto now = std::chrono::system_clock::now().time_since_epoch();
    return std::chrono::duration_cast<std::chrono::nanoseconds>(now).count() +
           static_cast<int64_t>(1e9 * skew_);
  }
  double Seconds() override {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
  }
  void Sleep(double seconds) override { std::this_thread::sleep_for(std::chrono::duration<double>(seconds)); }

 private:
  const double skew_;
};

bool InputEnded() {
  pollfd input{.fd = STDIN_FILENO, .events = POLLIN, .revents = 0};
  if (poll(&input, 1, /*timeout_ms=*/50) <= 0) return false;
  char byte = 0;
  return read(STDIN_FILENO, &byte, 1) <= 0;
}

int Run(const std::string& run_dir, double beat_seconds, double stale_seconds, double skew_seconds) {
  SkewedClock clock(skew_seconds);
  const auto lease = RunLease::Acquire(
      run_dir, {.clock = &clock, .beat_seconds = beat_seconds, .stale_seconds = stale_seconds});
  if (!lease.ok()) {
    std::printf("refused: %s\n", std::string(lease.status().message()).c_str());
    return 1;
  }
  std::printf("held\n");
  std::fflush(stdout);
  while (!InputEnded()) {
    const absl::Status seen = (*lease)->SeenLost();
    if (seen.ok()) continue;
    std::printf("lost: %s\n", std::string(seen.message()).c_str());
    return 2;
  }
  return 0;
}
}  // namespace
}  // namespace carousel

int main(int argc, char** argv) {
  if (argc != 5) {
    std::fprintf(stderr, "usage: lease_holder RUN_DIR BEAT_SECONDS STALE_SECONDS CLOCK_SKEW_SECONDS\n");
    return 64;
  }
  return carousel::Run(argv[1], std::atof(argv[2]), std::atof(argv[3]), std::atof(argv[4]));
}
