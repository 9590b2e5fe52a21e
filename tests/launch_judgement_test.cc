// What the end of an attempt means to `carousel launch`, the records that say it, and what passes to the
// console.
#include "launcher/launch/launch_judgement.h"
#include "launcher/launch/launch_attempt.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <csignal>
#include <filesystem>
#include <fstream>

#include "absl/strings/match.h"
#include "absl/strings/str_join.h"
#include "launcher/exit_codes.h"
#include "launcher/launch/attempt_recorder.h"
#include "launcher/launch/launch_output.h"
#include "launcher/launch/launch_probe.h"
#include "launcher/launch/launch_rank.h"
#include "tests/temp_dir.h"

namespace carousel {
namespace {

RankEnd End(int64_t rank, int exit_code, double ended, const std::string& reason = "", int64_t step = 5) {
  return {.rank = rank,
          .host = "node" + std::to_string(rank / 2),
          .pid = 100 + rank,
          .exit_code = exit_code,
          .reason = reason,
          .step = step,
          .began = 1,
          .ended = ended};
}

AttemptFacts Facts(std::vector<RankEnd> ends, ProcessEnd launcher, int64_t ranks = 4) {
  AttemptFacts facts;
  facts.attempt = 1;
  facts.ranks = ranks;
  facts.hosts = {{.name = "node0", .slots = 2}, {.name = "node1", .slots = 2}};
  facts.ends = std::move(ends);
  facts.launcher = launcher;
  facts.checkpoint_before = 0;
  facts.checkpoint = 4;
  return facts;
}

TEST(Judge, TheRankThatKnowsWhyWinsOverThoseThatLostIt) {
  const struct {
    std::vector<int> codes;  // of ranks 0, 1, ...; they end in this order
    int launcher;
    int exit_code;
    int64_t rank;
  } cases[] = {
      {{0, 0, 0, 0}, 0, 0, -1},
      {{0, 0, 0, 0}, 1, 0, -1},  // mpirun was told to end; every rank had
                                 // done its work
      {{71, 71, 139, 71}, 139, 139, 2},
      {{71, 143, 71, 70}, 1, 70, 3},
      {{143, 143, 71, 143}, 1, 71, 2},
      {{143, 143, 143, 143}, 1, 143, 0},
      {{71, 71, 71, 71}, 71, 71, 0},
      {{72, 72, 72, 72}, 72, 72, 0},
      {{71, 76, 71, 71}, 76, 76, 1},
      {{71, 73, 71, 71}, 73, 73, 1},
      {{64, 64, 64, 64}, 64, 64, 0},
      {{74, 71, 77, 71}, 74, 77, 2},
      {{75, 75, 75, 75}, 75, 75, 0},
      {{75, 0, 0, 0}, 75, 75, 0},
  };
  for (const auto& c : cases) {
    std::vector<RankEnd> ends;
    for (size_t i = 0; i < c.codes.size(); ++i) {
      ends.push_back(End(static_cast<int64_t>(i), c.codes[i], 10.0 + static_cast<double>(i), "words"));
    }
    const AttemptExit exit = Judge(Facts(ends, {.exit_code = c.launcher}));
    EXPECT_EQ(exit.exit_code, c.exit_code) << absl::StrJoin(c.codes, " ");
    EXPECT_EQ(exit.rank, c.rank) << absl::StrJoin(c.codes, " ");
  }
}

TEST(Judge, OfEqualEndsTheFirstCounts) {
  const AttemptExit exit = Judge(
      Facts({End(0, 70, 12), End(1, 70, 11, "first"), End(2, 71, 3), End(3, 70, 13)}, {.exit_code = 1}));
  EXPECT_EQ(exit.rank, 1);
  EXPECT_EQ(exit.host, "node0");
  EXPECT_EQ(exit.reason, "first");
  EXPECT_EQ(exit.step, 5);
  EXPECT_EQ(exit.last_checkpoint, 4);
  EXPECT_EQ(exit.launcher_status, "exit code 1");
}

TEST(Judge, ARankWithoutARecordIsTheCauseIfNobodyKnowsABetterOne) {
  AttemptExit exit = Judge(Facts({End(0, 143, 10), End(1, 71, 10), End(3, 143, 10)}, {.exit_code = 137}));
  EXPECT_EQ(exit.exit_code, 137);
  EXPECT_EQ(exit.rank, 2);
  EXPECT_EQ(exit.reason, "rank 2 ended without a word: signal 9 (Killed)");
  exit = Judge(Facts({End(0, 70, 10, "disk"), End(1, 71, 10), End(3, 143, 10)}, {.exit_code = 137}));
  EXPECT_EQ(exit.exit_code, 70);
  EXPECT_EQ(exit.rank, 0);
  exit = Judge(Facts({}, {.exit_code = -1, .signal = SIGKILL}));
  EXPECT_EQ(exit.exit_code, 137);
  EXPECT_EQ(exit.rank, -1);
  EXPECT_EQ(exit.launcher_status, "signal 9 (Killed)");
  // What we ended ourselves is no cause.
  AttemptFacts facts =
      Facts({End(0, 71, 10, "lost rank 2"), End(1, 71, 11)}, {.exit_code = -1, .signal = SIGKILL});
  facts.ended_by_force = true;
  exit = Judge(facts);
  EXPECT_EQ(exit.exit_code, 71);
  EXPECT_EQ(exit.reason, "lost rank 2");
}

TEST(Judge, SuspectsAreThoseThatRanksNameAndForHardwareTheirOwnHost) {
  std::vector<RankEnd> ends = {End(0, 71, 10), End(1, 71, 11), End(2, 76, 12), End(3, 71, 13)};
  EXPECT_EQ(absl::StrJoin(Judge(Facts(ends, {.exit_code = 76})).suspect_hosts, " "), "node1");
  ends[2].suspect_hosts = {"node7"};
  EXPECT_EQ(absl::StrJoin(Judge(Facts(ends, {.exit_code = 76})).suspect_hosts, " "), "node7");
  ends[2].exit_code = 71;
  ends[0].suspect_hosts = {"node7", "node8"};
  EXPECT_EQ(absl::StrJoin(Judge(Facts(ends, {.exit_code = 71})).suspect_hosts, " "), "node7 node8");
}

TEST(Judge, TheReasonIsOfOneThatBlamesTheRightHost) {
  // node1 is cut off, and its clock is behind: what it says seems to come first.
  std::vector<RankEnd> ends = {End(0, 71, 10, "node1 is silent"), End(1, 71, 11, "node1 is silent"),
                               End(2, 71, 5, "node0 is silent"), End(3, 71, 5, "node0 is silent"),
                               End(4, 71, 12, "node1 is silent")};
  for (RankEnd& end : ends) end.suspect_hosts = {end.host == "node1" ? "node0" : "node1"};
  AttemptFacts facts = Facts(ends, {.exit_code = 1}, 5);
  facts.launcher_host = "node0";
  AttemptExit exit = Judge(facts);
  EXPECT_EQ(exit.exit_code, 71);
  EXPECT_EQ(exit.rank, 0);
  EXPECT_EQ(exit.reason, "node1 is silent");
  EXPECT_EQ(absl::StrJoin(exit.suspect_hosts, " "), "node1");
  // mpirun has noticed as well: the ranks know more.
  facts.output =
      "ORTE has lost communication with a remote daemon.\n  Remote daemon: [[1,0],1] on node node1\n";
  exit = Judge(facts);
  EXPECT_EQ(exit.reason, "node1 is silent");
  EXPECT_EQ(absl::StrJoin(exit.suspect_hosts, " "), "node1");
  // Those on it cannot say anything, nor be ended.
  facts.ends = {ends[0], ends[1], ends[4]};
  facts.launcher = {.exit_code = 1};
  exit = Judge(facts);
  EXPECT_EQ(exit.reason, "node1 is silent");
  // Nobody but mpirun knows.
  for (RankEnd& end : facts.ends) end.suspect_hosts.clear();
  exit = Judge(facts);
  EXPECT_EQ(exit.reason, "node1: a host was lost");
  EXPECT_EQ(absl::StrJoin(exit.suspect_hosts, " "), "node1");
}

TEST(Judge, WhoHasSaidWhyItEndsIsNoSuspectOfThoseThatMissIt) {
  std::vector<RankEnd> ends = {End(0, 71, 10), End(1, 71, 11), End(2, 74, 12, "no data"), End(3, 71, 13)};
  for (RankEnd& end : ends) {
    if (end.exit_code == 71) end.suspect_hosts = {"node1"};
  }
  EXPECT_TRUE(Judge(Facts(ends, {.exit_code = 74})).suspect_hosts.empty());
  // A crash says nothing of its host.
  ends[2].exit_code = 139;
  EXPECT_EQ(absl::StrJoin(Judge(Facts(ends, {.exit_code = 139})).suspect_hosts, " "), "node1");
}

TEST(Judge, AStopThatSavedIsAStopWhateverMpirunSays) {
  bool out_of_time = false;
  const auto stopped = [&](std::vector<RankEnd> ends, ProcessEnd launcher, int64_t checkpoint,
                           int64_t recorded) {
    AttemptFacts facts = Facts(std::move(ends), launcher);
    facts.told_to_stop = true;
    facts.out_of_time = out_of_time;
    facts.stop_signal = SIGTERM;
    facts.checkpoint = checkpoint;
    facts.recorded_step = recorded;
    return Judge(facts).exit_code;
  };
  EXPECT_EQ(stopped({End(0, 75, 1), End(1, 75, 1), End(2, 75, 1), End(3, 75, 1)}, {.exit_code = 1}, 5, 5),
            75);
  // Just then it was done.
  EXPECT_EQ(stopped({End(0, 0, 1), End(1, 0, 1), End(2, 0, 1), End(3, 0, 1)}, {.exit_code = 1}, 5, 5), 0);
  // Before main: the signal killed what was starting.
  EXPECT_EQ(stopped({}, {.exit_code = -1, .signal = SIGUSR2}, 0, 0), 75);
  EXPECT_EQ(stopped({}, {.exit_code = 140}, -1, -1), 75);
  // A rank died while all were saving; it was saved.
  EXPECT_EQ(stopped({End(0, 71, 1), End(1, 139, 1)}, {.exit_code = 139}, 5, 5), 75);
  // A rank failed just then: steps are lost as by any failure, and the same command goes on.
  EXPECT_EQ(stopped({End(0, 137, 1), End(1, 71, 1)}, {.exit_code = 1}, 4, 5), 75);
  // The grace was too short: steps are lost by that, and the code says so.
  out_of_time = true;
  EXPECT_EQ(stopped({End(0, 143, 1)}, {.exit_code = 1}, 4, 5), 143);
  EXPECT_EQ(stopped({}, {.exit_code = 1}, 4, 9), 143);
  EXPECT_EQ(stopped({}, {.exit_code = 1}, 9, 9), 75);
  // It could not be saved, which a restart does not mend.
  EXPECT_EQ(stopped({End(0, 73, 1), End(1, 73, 1), End(2, 73, 1), End(3, 73, 1)}, {.exit_code = 73}, 4, 5),
            73);
}

TEST(ReadComplaint, KnowsWhatMpirunSshAndSlurmSay) {
  const struct {
    const char* text;
    int exit_code;
    const char* host;
  } cases[] = {
      {"There are not enough slots available in the system to satisfy the 64\nslots that were requested", 64,
       ""},
      {"mpirun was unable to launch the specified application as it could not access or execute an "
       "executable:",
       77, ""},
      {"ssh: connect to host node7 port 22: No route to host\nORTE was unable to reliably start one or more "
       "daemons.",
       71, "node7"},
      {"ssh: Could not resolve hostname nodex: Name or service not known", 71, "nodex"},
      {"Host key verification failed.", 77, ""},
      {"me@node3: Permission denied (publickey,password).", 77, ""},
      {"bash: line 1: orted: command not found", 77, ""},
      {"ORTE has lost communication with a remote daemon.\n\n  HNP daemon   : [[1,0],0] on node node1\n  "
       "Remote daemon: [[1,0],1] on node node2\n",
       71, "node2"},
      {"srun: error: cannot find MPI plugin type 'pmix'... MPI plugin type 'pmix'", 77, ""},
      {"all is well", 0, ""},
  };
  for (const auto& c : cases) {
    const LauncherComplaint complaint = ReadComplaint(c.text);
    EXPECT_EQ(complaint.exit_code, c.exit_code) << c.text;
    EXPECT_EQ(absl::StrJoin(complaint.hosts, " "), c.host) << c.text;
    EXPECT_EQ(complaint.cause.empty(), c.exit_code == 0);
  }
  const AttemptExit exit = [&] {
    AttemptFacts facts = Facts({}, {.exit_code = 1});
    facts.output = cases[2].text;
    return Judge(facts);
  }();
  EXPECT_EQ(exit.exit_code, 71);
  EXPECT_TRUE(absl::StartsWith(exit.reason, "node7: a host cannot be reached"));
  EXPECT_EQ(absl::StrJoin(exit.suspect_hosts, " "), "node7");
}

NextMove Next(int exit_code, LaunchHistory history = {}, int64_t checkpoint = -1, bool told = false) {
  AttemptExit exit;
  exit.exit_code = exit_code;
  exit.last_checkpoint = checkpoint;
  return DecideNext(exit, history, {.backoff_seconds = 5, .max_backoff_seconds = 60}, told);
}

TEST(DecideNext, FollowsTheContract) {
  const struct {
    int exit_code;
    bool restart, from_good, without_suspects;
  } cases[] = {
      {0, false, false, false},  {64, false, false, false}, {70, true, false, false},
      {71, true, false, false},  {72, true, true, false},   {73, false, false, false},
      {74, false, false, false}, {75, true, false, false},  {76, true, false, true},
      {77, false, false, false}, {137, true, false, false}, {139, true, false, false},
      {143, true, false, false}, {1, true, false, false},
  };
  for (const auto& c : cases) {
    const NextMove move = Next(c.exit_code);
    EXPECT_EQ(move.restart, c.restart) << c.exit_code;
    EXPECT_EQ(move.from_good, c.from_good) << c.exit_code;
    EXPECT_EQ(move.without_suspects, c.without_suspects) << c.exit_code;
    EXPECT_FALSE(Next(c.exit_code, {}, -1, /*told=*/true).restart) << c.exit_code;
  }
}

TEST(DecideNext, StopsAfterThreeRestartsWithoutANewCheckpoint) {
  LaunchHistory history{.best_checkpoint = 10};
  std::vector<double> waits;
  NextMove move = Next(70, history, 10);
  for (; move.restart; move = Next(70, move.history, 10)) waits.push_back(move.wait_seconds);
  EXPECT_EQ(waits, (std::vector<double>{5, 10, 20}));
  EXPECT_TRUE(absl::StrContains(move.why, "3 restarts in a row brought no new checkpoint beyond step 10"))
      << move.why;
}

TEST(DecideNext, ProgressIsACheckpointBeyondTheBestEver) {
  // Rolled back to step 10 each time, and saved again at 15, where 20 had been reached once.
  LaunchHistory history{.best_checkpoint = 10};
  NextMove move = Next(72, history, 20);
  EXPECT_EQ(move.history.restarts_without_progress, 1);
  int restarts = 0;
  for (; move.restart; move = Next(72, move.history, 15)) ++restarts;
  EXPECT_EQ(restarts, 3);
  // With progress it goes on until the restarts are used up, at the shortest wait.
  move = Next(71, {}, 1);
  for (int64_t step = 2; move.restart; move = Next(71, move.history, step++)) EXPECT_EQ(move.wait_seconds, 5);
  EXPECT_EQ(move.history.restarts, 100);
  EXPECT_TRUE(absl::StrContains(move.why, "--max_restarts 100 are used up"));
}

TEST(DecideNext, WaitsAreCapped) {
  AttemptExit exit;
  exit.exit_code = 71;
  LaunchHistory history;
  NextMove move;
  for (int i = 0; i < 90; ++i) {
    move = DecideNext(
        exit, history,
        {.max_restarts = 1000, .max_no_progress = 1000, .backoff_seconds = 5, .max_backoff_seconds = 60},
        false);
    EXPECT_LE(move.wait_seconds, 60);
    history = move.history;
  }
  EXPECT_EQ(move.wait_seconds, 60);
}

TEST(RankEnd, ComesBackAsItWasWritten) {
  TempDir dir;
  std::filesystem::create_directories(dir.path() + "/ends");
  RankEnd end = End(3, 71, 12.5, "lost \"rank 2\"\nin AllReduce \xff", -1);
  end.gpu = "GPU-1";
  end.suspect_hosts = {"node2"};
  ASSERT_TRUE(WriteRankEnd(dir.path(), end).ok());
  std::ofstream(dir.path() + "/ends/rank-00004.json") << "{\"rank\": 4, \"exit";
  std::ofstream(dir.path() + "/ends/rank-00005.json") << ToJson(end);
  const std::vector<RankEnd> ends = ReadRankEnds(dir.path());
  ASSERT_EQ(ends.size(), 1u);
  EXPECT_EQ(ends[0].rank, 3);
  EXPECT_EQ(ends[0].exit_code, 71);
  EXPECT_EQ(ends[0].step, -1);
  EXPECT_EQ(ends[0].gpu, "GPU-1");
  EXPECT_EQ(ends[0].ended, 12.5);
  EXPECT_EQ(ends[0].suspect_hosts, std::vector<std::string>{"node2"});
  EXPECT_TRUE(absl::StartsWith(ends[0].reason, "lost \"rank 2\"\nin AllReduce "));
  struct stat info {};
  ASSERT_EQ(stat(RankEndPath(dir.path(), 3).c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0640u);
}

TEST(RankEnd, WhatIsNoRecordIsRefused) {
  for (const char* text :
       {"", "[]", "7", "{}", "{\"rank\": 1}", "{\"rank\": -1, \"exit_code\": 0}",
        "{\"rank\": 1, \"exit_code\": 256}", "{\"rank\": 1.5, \"exit_code\": 0}",
        "{\"rank\": 1, \"exit_code\": \"0\"}", "{\"rank\": 1, \"exit_code\": 0, \"suspect_hosts\": \"a\"}",
        "{\"rank\": 1, \"exit_code\": 0, \"suspect_hosts\": [1]}",
        "{\"rank\": 1, \"exit_code\": 0, \"step\": -2}", "{\"rank\": 99999999999, \"exit_code\": 0}",
        "{\"rank\": 1, \"exit_code\": 0, \"host\": null}"}) {
    EXPECT_FALSE(ParseRankEnd(text).ok()) << text;
  }
}

TEST(RankEnd, LogsStayInTheirFolderWhateverAHostIsCalled) {
  EXPECT_EQ(RankLogPath("/a", "node-1.x", 3), "/a/rank_logs/node-1.x.3.log");
  EXPECT_EQ(RankLogPath("/a", "../../etc", 3), "/a/rank_logs/_._.._etc.3.log");
  EXPECT_EQ(RankLogPath("/a", "", 3), "/a/rank_logs/unknown.3.log");
}

TEST(AttemptRecorder, TheFirstReasonCounts) {
  TempDir dir;
  std::filesystem::create_directories(dir.path() + "/ends");
  AttemptRecorder recorder(dir.path(), -1);
  recorder.Ending(70, "nobody knows the rank yet");
  EXPECT_TRUE(ReadRankEnds(dir.path()).empty());
  recorder.SetRank(2, "h");
  recorder.CompletedStep(17);
  recorder.Ending(71, "hang", {"node9"});
  recorder.Ending(0, "");
  const std::vector<RankEnd> ends = ReadRankEnds(dir.path());
  ASSERT_EQ(ends.size(), 1u);
  EXPECT_EQ(ends[0].exit_code, 71);
  EXPECT_EQ(ends[0].step, 17);
  EXPECT_EQ(ends[0].host, "h");
  AttemptRecorder nobody("", 0);
  nobody.Ending(70, "without a launch nothing is written");
}

TEST(FinalRankEnd, AFailureStandsASuccessMustLast) {
  const RankEnd known = End(1, 0, 9);
  RankEnd own = End(1, 71, 8, "hang");
  EXPECT_EQ(FinalRankEnd(known, &own, 137, "x").exit_code, 71);
  EXPECT_EQ(FinalRankEnd(known, &own, 137, "x").reason, "hang");
  own.exit_code = 0;
  EXPECT_EQ(FinalRankEnd(known, &own, 0, "x").exit_code, 0);
  EXPECT_EQ(FinalRankEnd(known, &own, 139, "x").exit_code, 139);
  EXPECT_TRUE(absl::StartsWith(FinalRankEnd(known, &own, 139, "x").reason,
                               "failed after it had finished: signal 11"));
  EXPECT_EQ(FinalRankEnd(known, nullptr, 137, "").reason, "signal 9 (Killed)");
  EXPECT_EQ(FinalRankEnd(known, nullptr, 134, "free(): invalid").reason,
            "signal 6 (Aborted); its last words: free(): invalid");
  EXPECT_EQ(FinalRankEnd(known, nullptr, 70, "carousel: no disk").reason, "carousel: no disk");
}

TEST(LaunchedRank, IsWhatTheLauncherSays) {
  EXPECT_EQ(LaunchedRank({"OMPI_COMM_WORLD_RANK=3", "PMIX_RANK=4"}), 3);
  EXPECT_EQ(LaunchedRank({"PMIX_RANK=4", "SLURM_PROCID=4"}), 4);
  EXPECT_EQ(LaunchedRank({"SLURM_PROCID=0"}), 0);
  EXPECT_EQ(LaunchedRank({"PMIX_RANK=x", "HOME=/"}), -1);
}

TEST(RecordedEnvironment, HoldsWhatMattersAndNoSecret) {
  EXPECT_EQ(absl::StrJoin(
                RecordedEnvironment({"PATH=/bin", "HOME=/root", "CAROUSEL_RUN_SECRET=s", "NCCL_DEBUG=INFO",
                                     "CAROUSEL_ATTEMPT_DIR=/r/1", "SLURM_JWT=x", "CUDA_API_KEY=1",
                                     "CAROUSEL_TOKEN=t", "SLURM_JOB_ID=1", "AWS_ACCESS_KEY_ID=1"}),
                " "),
            "CAROUSEL_ATTEMPT_DIR=/r/1 NCCL_DEBUG=INFO PATH=/bin SLURM_JOB_ID=1");
}

TEST(LaunchOutput, ErrorsOfAnyRankCarryRankAndHost) {
  EXPECT_FALSE(IsErrorLine("[12:00:00 I] resuming"));
  EXPECT_FALSE(IsErrorLine("[12:00:00 W] [rank 3] slow"));
  EXPECT_FALSE(IsErrorLine("  \t"));
  EXPECT_TRUE(IsErrorLine("[12:00:00 E] [rank 3] lost"));
  EXPECT_TRUE(IsErrorLine("*** SIGSEGV received"));
  EXPECT_TRUE(IsErrorLine("carousel: no such file"));
  EXPECT_EQ(PrefixedLine("[12:00:00 E] [rank 3] lost", "node7", 3), "[12:00:00 E] [node7 rank 3] lost");
  EXPECT_EQ(PrefixedLine("terminate called", "node7", 3), "[node7 rank 3] terminate called");
  EXPECT_EQ(PrefixedLine("[short]", "n", 0), "[n rank 0] [short]");
}

TEST(LaunchOutput, LinesAreCutAndNeverGrowWithoutEnd) {
  LineCutter cutter;
  EXPECT_EQ(absl::StrJoin(cutter.Add("a\r\nb"), "|"), "a");
  EXPECT_EQ(absl::StrJoin(cutter.Add("c\n\n"), "|"), "bc|");
  EXPECT_EQ(cutter.Add(std::string(20000, 'x')).size(), 2u);
  EXPECT_EQ(cutter.Rest().size(), 20000u - 2 * 8192);
  EXPECT_EQ(cutter.Rest(), "");
}

TEST(LaunchOutput, RemarksOfMpirunAreTakenOutInAnyPieces) {
  const std::string row(74, '-');
  const std::string text = "one\n" + row + "\nmpirun noticed that\n" + row + "\ntwo\n--short--\nthree";
  for (size_t piece = 1; piece < text.size(); ++piece) {
    BannerFilter filter;
    std::string passed;
    for (size_t at = 0; at < text.size(); at += piece) passed += filter.Pass(text.substr(at, piece));
    EXPECT_EQ(passed + filter.Rest(), "one\ntwo\n--short--\nthree") << piece;
  }
  BannerFilter filter;
  EXPECT_EQ(filter.Pass("step 1\r"), "step 1\r");  // a line that has no end yet is not held back
  EXPECT_EQ(filter.Pass("\n" + row + "\nnever closed\n"), "\n");
  EXPECT_EQ(filter.Rest(), row + "\nnever closed\n");
  // A text that is longer than any remark is not kept.
  std::string passed = filter.Pass(row + "\n");
  for (int i = 0; i < 10000; ++i) passed += filter.Pass("0123456789\n");
  EXPECT_GT(passed.size() + filter.Rest().size(), 100000u);
}

TEST(LaunchOutput, SignalsThatMpirunPassesOnAreNotShown) {
  const std::string line = "mpirun: Forwarding signal 12 to job\n";
  const std::string text = "one\n" + line + "mpirun: Forwarding signal x to job\n" + line + line +
                           "mpirun: Forwarding signal 12 to jobs\nmpirun: killing job...\nmpi";
  for (size_t piece = 1; piece < text.size(); ++piece) {
    BannerFilter filter;
    std::string passed;
    for (size_t at = 0; at < text.size(); at += piece) passed += filter.Pass(text.substr(at, piece));
    EXPECT_EQ(passed + filter.Rest(),
              "one\nmpirun: Forwarding signal x to job\nmpirun: Forwarding signal 12 to jobs\n"
              "mpirun: killing job...\nmpi")
        << piece;
  }
  BannerFilter filter;
  EXPECT_EQ(filter.Pass("mpirun was"), "mpirun was");  // held back no longer than it may be such a line
  // A row of dashes with no end of line behind it is not kept for ever.
  const std::string row(74, '-');
  std::string passed = filter.Pass("\n" + row + "\n");
  for (int i = 0; i < 10000; ++i) passed += filter.Pass("0123456789");
  EXPECT_GT(passed.size(), 90000u);
}

TEST(StopSignals, TheSecondOneCountsWhenSomebodyMeansIt) {
  const auto hurried = [](std::initializer_list<std::pair<int, double>> signals) {
    StopSignals taken;
    EXPECT_FALSE(taken.asked());
    for (const auto& [signal, at] : signals) taken.Note(signal, at);
    EXPECT_TRUE(taken.asked());
    EXPECT_EQ(taken.first(), signals.begin()->first);
    return taken.hurried();
  };
  EXPECT_FALSE(hurried({{SIGTERM, 10}}));
  EXPECT_FALSE(
      hurried({{SIGTERM, 10}, {SIGTERM, 10.01}, {SIGINT, 10.9}}));  // to the process, and to its group
  EXPECT_FALSE(hurried({{SIGHUP, 10}, {SIGHUP, 12}}));              // from the shell, and the terminal
  EXPECT_FALSE(hurried({{SIGUSR2, 10}, {SIGUSR1, 300}}));
  EXPECT_TRUE(hurried({{SIGTERM, 10}, {SIGTERM, 11}}));
  EXPECT_TRUE(hurried({{SIGUSR2, 10}, {SIGTERM, 310}}));
  EXPECT_TRUE(hurried({{SIGINT, 10}, {SIGHUP, 10.5}, {SIGINT, 11.5}}));
}

TEST(HostNames, WithAndWithoutTheirDomain) {
  EXPECT_TRUE(SameHostName("node1", "node1"));
  EXPECT_TRUE(SameHostName("node1", "node1.cluster.local"));
  EXPECT_TRUE(SameHostName("node1.cluster.local", "node1"));
  EXPECT_FALSE(SameHostName("node1", "node10"));
  EXPECT_FALSE(SameHostName("node1.a", "node1.b"));
  EXPECT_FALSE(SameHostName("10.0", "10.0.0.1"));
}

TEST(LaunchOutput, LastLinesOfALog) {
  EXPECT_EQ(LastLines("a\nb\nc\n\n", 2), "b\nc");
  EXPECT_EQ(LastLines("a\n", 5), "a");
  EXPECT_EQ(LastLines("\n\n", 5), "");
}
}  // namespace
}  // namespace carousel
