#include "mpi_test_main.h"

#include <gtest/gtest.h>

#include <cstdio>

#include "core/base/check.h"

namespace carousel {
namespace {
MpiSession* session = nullptr;

// The default printer says what runs; this one only what failed, with the rank.
class FailurePrinter : public ::testing::EmptyTestEventListener {
 public:
  explicit FailurePrinter(int rank) : rank_(rank) {}
  void OnTestPartResult(const ::testing::TestPartResult& result) override {
    if (!result.failed()) return;
    std::printf("[rank %d] %s:%d: %s\n", rank_, result.file_name() == nullptr ? "?" : result.file_name(),
                result.line_number(), result.message());
    std::fflush(stdout);
  }

 private:
  int rank_;
};
}  // namespace

MpiSession& TestMpiSession() { return *session; }
}  // namespace carousel

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  absl::StatusOr<std::unique_ptr<carousel::MpiSession>> started = carousel::MpiSession::Start();
  if (!started.ok()) {
    std::fprintf(stderr, "%s\n", started.status().ToString().c_str());
    return 1;
  }
  carousel::session = started->get();
  const int rank = carousel::session->world().rank();
  carousel::SetProcessRank(rank);
  if (rank != 0) {
    ::testing::TestEventListeners& listeners = ::testing::UnitTest::GetInstance()->listeners();
    delete listeners.Release(listeners.default_result_printer());
    listeners.Append(new carousel::FailurePrinter(rank));
  }
  return carousel::session->Finish(RUN_ALL_TESTS());
}
