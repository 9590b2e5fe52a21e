#include "core/base/check.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>

namespace carousel {
namespace {
std::atomic<int> process_rank{-1};
std::atomic<int64_t> process_step{-1};
}  // namespace

void SetProcessRank(int rank) { process_rank.store(rank); }
int ProcessRank() { return process_rank.load(); }
void SetProcessStep(int64_t step) { process_step.store(step); }
int64_t ProcessStep() { return process_step.load(); }

void CheckFailed(const char* file, int line, const std::string& message) {
  const int rank = ProcessRank();
  const int64_t step = ProcessStep();
  if (rank >= 0) std::fprintf(stderr, "[rank %d] ", rank);
  if (step >= 0) std::fprintf(stderr, "[step %lld] ", static_cast<long long>(step));
  std::fprintf(stderr, "%s:%d: %s\n", file, line, message.c_str());
  std::fflush(stderr);
  std::abort();
}
}  // namespace carousel
