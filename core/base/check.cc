#include "core/base/check.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>

namespace carousel {
namespace {
std::atomic<int> process_rank{-1};
}  // namespace

void SetProcessRank(int rank) { process_rank.store(rank); }
int ProcessRank() { return process_rank.load(); }

void CheckFailed(const char* file, int line, const std::string& message) {
  const int rank = ProcessRank();
  if (rank >= 0) std::fprintf(stderr, "[rank %d] ", rank);
  std::fprintf(stderr, "%s:%d: %s\n", file, line, message.c_str());
  std::fflush(stderr);
  std::abort();
}
}  // namespace carousel
