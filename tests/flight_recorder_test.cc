// What a rank can say of its calls when something hangs.
#include "core/comm/flight_recorder.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "parallel/local_communicator.h"

namespace carousel {
namespace {

CollectiveCall Call(int64_t n) {
  return {.op = CollectiveOp::kAllGather, .dtype = DType::kBF16, .num_elems = n};
}
void Record(FlightRecorder& recorder, int64_t n) {
  recorder.Begin(Call(n), CallSite::Here());
  recorder.End();
}

TEST(FlightRecorder, KeepsTheLast512CallsInOrder) {
  FlightRecorder recorder;
  EXPECT_TRUE(recorder.Entries().empty());
  EXPECT_EQ(recorder.Dump(), "");
  for (int64_t i = 0; i < 1000; ++i) Record(recorder, i);
  const std::vector<FlightRecorder::Entry> entries = recorder.Entries();
  ASSERT_EQ(entries.size(), 512u);
  EXPECT_EQ(recorder.num_calls(), 1000);
  for (size_t i = 0; i < entries.size(); ++i) {
    EXPECT_EQ(entries[i].sequence, 488 + static_cast<int64_t>(i));
    EXPECT_EQ(entries[i].call.num_elems, entries[i].sequence);
    EXPECT_FALSE(entries[i].in_progress());
  }
}

TEST(FlightRecorder, DumpsOneLineForEachCall) {
  FlightRecorder recorder;
  recorder.set_name("tensor");
  SetProcessStep(12);
  Record(recorder, 4096);
  SetProcessStep(-1);
  recorder.Begin(Call(1), CallSite::Here());
  const std::string dump = recorder.Dump();
  EXPECT_NE(dump.find("tensor #0 step 12 AllGather(4096 x bf16) 8192 B tests/flight_recorder_test.cc:"),
            std::string::npos)
      << dump;
  EXPECT_NE(dump.find("tensor #1 AllGather(1 x bf16) 2 B"), std::string::npos) << dump;
  EXPECT_NE(dump.find("in progress for"), std::string::npos) << dump;
  EXPECT_EQ(recorder.Dump(1).find("#0"), std::string::npos);
  recorder.End();
  EXPECT_EQ(recorder.Dump().find("in progress"), std::string::npos);
}

TEST(FlightRecorder, NotesTheCallersLine) {
  RunLocalRanks(2, [](Communicator& c) {
    c.Barrier();
    const unsigned line = __LINE__ - 1;
    const FlightRecorder::Entry entry = c.recorder().Entries().back();
    EXPECT_EQ(entry.site.line, line);
    EXPECT_EQ(entry.site.ToString(), "tests/flight_recorder_test.cc:" + std::to_string(line));
  });
}

TEST(FlightRecorder, EveryCallIsOneEntryUnderAnyTransportOption) {
  RunLocalRanks(2, [](Communicator& c) {
    c.set_verify_calls(true);
    float x[4] = {};
    const Tensor four(x, DType::kF32, {4}), two(x, DType::kF32, {2});
    c.AllReduceSum(four);
    c.AllGather(four, four.Rows(2 * c.rank(), 2));
    const std::unique_ptr<Communicator> part = c.Split(0);
    part->set_name("part");
    part->Barrier();
    const std::vector<FlightRecorder::Entry> entries = c.recorder().Entries();
    ASSERT_EQ(entries.size(), 3u);
    EXPECT_EQ(Describe(entries[0].call), "AllReduceSum(4 x f32)");
    EXPECT_EQ(Describe(entries[1].call), "AllGather(4 x f32)");
    EXPECT_EQ(Describe(entries[2].call), "Split()");
    EXPECT_EQ(part->recorder().num_calls(), 1);
    EXPECT_EQ(part->recorder().name(), "part");
  });
}

// A watchdog reads while the rank goes on, and while it waits.
TEST(FlightRecorder, CanBeReadByAnotherThreadAtAnyTime) {
  LocalWorld world(2);
  std::atomic<bool> done = false;
  std::thread watchdog([&] {
    while (!done) {
      for (int r = 0; r < 2; ++r) {
        int64_t last = -1;
        for (const FlightRecorder::Entry& entry : world.communicator(r).recorder().Entries()) {
          if (last >= 0) {
            EXPECT_EQ(entry.sequence, last + 1);
          }
          last = entry.sequence;
        }
        static_cast<void>(world.communicator(r).recorder().Dump());
      }
    }
  });
  std::thread first([&] {
    for (int i = 0; i < 3000; ++i) world.communicator(0).Barrier();
  });
  for (int i = 0; i < 2999; ++i) world.communicator(1).Barrier();
  // The other one waits now: so its record says.
  FlightRecorder& recorder = world.communicator(0).recorder();
  while (recorder.num_calls() < 3000) std::this_thread::yield();
  EXPECT_TRUE(recorder.Entries().back().in_progress());
  world.communicator(1).Barrier();
  first.join();
  EXPECT_FALSE(recorder.Entries().back().in_progress());
  done = true;
  watchdog.join();
}
}  // namespace
}  // namespace carousel
