#include "core/comm/comm_time.h"

#include <chrono>

namespace carousel {
namespace {
struct ThreadTimes {
  int depth = 0;
  std::chrono::steady_clock::time_point start;
  double seconds = 0;
};
// Calls are made deep inside of layers that know nothing of who measures them.
thread_local ThreadTimes times;
}  // namespace

double ThreadCollectiveSeconds() { return times.seconds; }

CollectiveTimer::CollectiveTimer() {
  if (times.depth++ == 0) times.start = std::chrono::steady_clock::now();
}

CollectiveTimer::~CollectiveTimer() {
  if (--times.depth > 0) return;
  times.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - times.start).count();
}
}  // namespace carousel
