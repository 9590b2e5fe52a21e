// What the records of the ranks of a run that hung say together.
#include "launcher/watch/flight_report.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <random>

#include "tests/temp_dir.h"

namespace carousel {
namespace {
using Call = FlightRecord::Call;
using Group = FlightRecord::Group;
using Ranks = std::vector<int>;

Call Done(int64_t sequence, const std::string& what) {
  return {
      .sequence = sequence, .step = 12, .what = what, .site = "core/a.cc:1", .seconds = 0.001, .peers = {}};
}
Call Waiting(int64_t sequence, const std::string& what, const std::string& site = "core/b.cc:2") {
  return {.sequence = sequence,
          .step = 12,
          .what = what,
          .site = site,
          .seconds = 61,
          .in_progress = true,
          .peers = {}};
}
Group Of(const std::string& name, const Ranks& members, const std::vector<Call>& calls) {
  return {.name = name, .members = members, .num_calls = calls.back().sequence + 1, .calls = calls};
}
FlightRecord Record(int rank, int size, const std::vector<Group>& groups, const Ranks& waits_for = {}) {
  FlightRecord record{.rank = rank,
                      .size = size,
                      .host = "node" + std::to_string(rank / 2),
                      .hosts = {},
                      .section = "a step",
                      .idle_seconds = 61,
                      .limit_seconds = 60,
                      .step = 12,
                      .waits_in = waits_for.empty() ? "" : "a call",
                      .waits_for = waits_for,
                      .groups = groups};
  for (int r = 0; r < size; ++r) record.hosts.push_back("node" + std::to_string(r / 2));
  return record;
}
bool Says(const FlightFinding& finding, const std::string& part) {
  return finding.text.find(part) != std::string::npos;
}

TEST(FlightReport, ARankWithoutRecordForWhomAllWaitIsTheSuspect) {
  const Ranks world = {0, 1, 2, 3};
  std::vector<FlightRecord> records;
  for (const int r : {0, 1, 3}) {
    records.push_back(
        Record(r, 4, {Of("world", world, {Done(6, "Barrier"), Waiting(7, "AllReduceSum(5 x i64)")})}, {2}));
  }
  const FlightFinding finding = AnalyzeFlightRecords(records);
  EXPECT_EQ(finding.suspects, Ranks{2});
  EXPECT_EQ(finding.suspect_hosts, std::vector<std::string>{"node1"});
  EXPECT_TRUE(Says(finding,
                   "suspect: rank 2 (node1): left no record: stopped, dead or cut off; ranks 0, 1 and 3 wait "
                   "for it"))
      << finding.text;
  EXPECT_TRUE(Says(finding, "61.0 s in AllReduceSum(5 x i64) on 'world' #7 at core/b.cc:2, waits for rank 2"))
      << finding.text;
}

// The transport says nothing (NCCL): who has not entered the call follows from the records.
TEST(FlightReport, ARankThatDidNotEnterTheCallIsTheSuspect) {
  const Ranks world = {0, 1, 2};
  const Call sum = Waiting(7, "AllReduceSum(5 x i64)");
  const FlightFinding finding =
      AnalyzeFlightRecords({Record(0, 3, {Of("world", world, {Done(6, "Barrier"), sum})}),
                            Record(1, 3, {Of("world", world, {Done(6, "Barrier")})}),
                            Record(2, 3, {Of("world", world, {Done(6, "Barrier"), sum})})});
  EXPECT_EQ(finding.suspects, Ranks{1});
  EXPECT_TRUE(Says(finding,
                   "rank 1 (node0): in no collective call, a step for 61.0 s; its last call was Barrier on "
                   "'world' #6"))
      << finding.text;
}

// 0 waits for 1 on one axis, 1 for 3 on another, 3 sleeps: only 3 is to blame, although nobody else waits for
// it directly.
TEST(FlightReport, TheCauseIsFoundAcrossCommunicators) {
  std::vector<FlightRecord> records = {
      Record(0, 4, {Of("tensor", {0, 1}, {Waiting(3, "AllGather(8 x f32)")})}, {1}),
      Record(1, 4,
             {Of("tensor", {0, 1}, {Done(2, "AllGather(8 x f32)")}),
              Of("replicas", {1, 3}, {Waiting(9, "Barrier")})},
             {3}),
      Record(2, 4, {Of("tensor", {2, 3}, {Waiting(3, "AllGather(8 x f32)")})}, {3}),
      Record(3, 4,
             {Of("tensor", {2, 3}, {Done(2, "AllGather(8 x f32)")}),
              Of("replicas", {1, 3}, {Done(8, "Barrier")})})};
  const FlightFinding finding = AnalyzeFlightRecords(records);
  EXPECT_EQ(finding.suspects, Ranks{3});
  EXPECT_TRUE(Says(finding, "ranks 0, 1 and 2 wait for it")) << finding.text;
}

TEST(FlightReport, CallsThatDifferNameBothPlacesAndTheMinority) {
  const Ranks world = {0, 1, 2};
  const FlightFinding finding = AnalyzeFlightRecords(
      {Record(
           0, 3,
           {Of("world", world, {Done(6, "Barrier"), Waiting(7, "AllReduceSum(5 x i64)", "core/x.cc:10")})}),
       Record(1, 3,
              {Of("world", world,
                  {Done(6, "Barrier"), Waiting(7, "Broadcast(5 x i64, root 0)", "core/y.cc:20")})}),
       Record(
           2, 3,
           {Of("world", world, {Done(6, "Barrier"), Waiting(7, "AllReduceSum(5 x i64)", "core/x.cc:10")})})});
  EXPECT_EQ(finding.suspects, Ranks{1});
  EXPECT_TRUE(Says(finding, "call #7 on 'world' (ranks 0, 1 and 2) differs:")) << finding.text;
  EXPECT_TRUE(Says(finding, "ranks 0 and 2: AllReduceSum(5 x i64) at core/x.cc:10")) << finding.text;
  EXPECT_TRUE(Says(finding, "rank 1: Broadcast(5 x i64, root 0) at core/y.cc:20")) << finding.text;
}

TEST(FlightReport, RanksThatCallOnDifferentAxesWaitForEachOther) {
  const FlightFinding finding = AnalyzeFlightRecords(
      {Record(0, 2,
              {Of("tensor", {0, 1}, {Waiting(3, "Barrier", "core/x.cc:10")}),
               Of("world", {0, 1}, {Done(4, "Barrier")})},
              {1}),
       Record(1, 2,
              {Of("tensor", {0, 1}, {Done(2, "Barrier")}),
               Of("world", {0, 1}, {Done(4, "Barrier"), Waiting(5, "Barrier", "core/y.cc:20")})},
              {0})});
  EXPECT_TRUE(finding.suspects.empty());
  EXPECT_TRUE(Says(finding, "ranks 0 and 1 wait for each other")) << finding.text;
  EXPECT_TRUE(Says(finding, "Barrier on 'tensor' #3 at core/x.cc:10, waits for rank 1")) << finding.text;
  EXPECT_TRUE(Says(finding, "Barrier on 'world' #5 at core/y.cc:20, waits for rank 0")) << finding.text;
}

TEST(FlightReport, MessagesBetweenTwoRanksAreNotComparedByNumber) {
  Call send = Done(1, "Send(4 x f32, rank 1)"), receive = Waiting(1, "Recv(4 x f32, rank 0)");
  send.peers = {1};
  receive.peers = {0};
  const FlightFinding finding = AnalyzeFlightRecords(
      {Record(0, 2, {Of("pipe", {0, 1}, {send})}), Record(1, 2, {Of("pipe", {0, 1}, {receive})})});
  EXPECT_FALSE(Says(finding, "differs")) << finding.text;
  EXPECT_EQ(finding.suspects, Ranks{0});
}

TEST(FlightReport, ASingleRankIsItsOwnSuspect) {
  const FlightFinding finding = AnalyzeFlightRecords({Record(0, 1, {})});
  EXPECT_EQ(finding.suspects, Ranks{0});
}

TEST(FlightRecord, IsReadAsItWasWritten) {
  FlightRecord record =
      Record(1, 2, {Of("pipe", {0, 1}, {Done(4, "Barrier"), Waiting(5, "Recv(4 x f32, rank 0)")})}, {0});
  record.groups[0].calls[1].peers = {0};
  record.ended_because = "node1 is silent";
  const absl::StatusOr<FlightRecord> again = ParseFlightRecord(ToJson(record));
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(*again, record);
  const std::string text = Describe(record, 1);
  EXPECT_NE(text.find("#5 step 12 Recv(4 x f32, rank 0) at core/b.cc:2 IN PROGRESS for 61.0 s"),
            std::string::npos)
      << text;
  EXPECT_EQ(text.find("#4"), std::string::npos) << text;
}

TEST(FlightRecord, DamagedTextIsRefusedAndNeverCrashes) {
  const std::string good = ToJson(Record(1, 2, {Of("pipe", {0, 1}, {Done(4, "Barrier")})}, {0}));
  for (size_t length = 0; length < good.size() - 1; ++length) {
    EXPECT_FALSE(ParseFlightRecord(good.substr(0, length)).ok()) << length;
  }
  std::mt19937 random(7);
  for (int round = 0; round < 3000; ++round) {
    std::string text = good;
    for (int k = 0; k < 3; ++k) text[random() % text.size()] = static_cast<char>(random() % 256);
    const absl::StatusOr<FlightRecord> record = ParseFlightRecord(text);
    if (record.ok()) {
      AnalyzeFlightRecords({*record});
    }
  }
  for (const char* text : {"{}", "[]", "null", "7", R"({"flight_record":2})"}) {
    EXPECT_FALSE(ParseFlightRecord(text).ok()) << text;
  }
}

TEST(FlightReport, FindsTheNewestRecordsBelowARunDirectory) {
  const TempDir dir;
  EXPECT_FALSE(ExplainFlightRecords(dir.path()).ok());
  const std::string old_dir = dir.path() + "/flight_records/1", new_dir = dir.path() + "/flight_records/2";
  for (const std::string& d : {old_dir, new_dir}) std::filesystem::create_directories(d);
  const Ranks world = {0, 1};
  std::ofstream(FlightRecordPath(old_dir, 1, "json"))
      << ToJson(Record(1, 2, {Of("world", world, {Waiting(7, "Barrier")})}));
  std::ofstream(FlightRecordPath(new_dir, 0, "json"))
      << ToJson(Record(0, 2, {Of("world", world, {Waiting(7, "Barrier")})}));
  std::ofstream(FlightRecordPath(new_dir, 1, "json")) << "garbage";
  const auto past =
      std::filesystem::last_write_time(FlightRecordPath(new_dir, 0, "json")) - std::chrono::hours(1);
  std::filesystem::last_write_time(FlightRecordPath(old_dir, 1, "json"), past);
  const absl::StatusOr<std::string> text = ExplainFlightRecords(dir.path());
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_NE(text->find("suspect: rank 1"), std::string::npos) << *text;
  EXPECT_NE(text->find(new_dir + "/rank-*.txt"), std::string::npos) << *text;
  EXPECT_TRUE(ExplainFlightRecords(old_dir).ok());
}
}  // namespace
}  // namespace carousel
