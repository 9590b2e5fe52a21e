// The pure parts of `carousel launch`: hosts, the command, what the end of an attempt means, what passes to
// the console.
#include "launcher/launch/launch_plan.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_join.h"
#include "configs/load.h"
#include "core/base/status_exit_code.h"
#include "launcher/launch/launch_hosts.h"

namespace carousel {
namespace {

std::string Text(const std::vector<LaunchHost>& hosts) {
  return absl::StrJoin(hosts, " ", [](std::string* out, const LaunchHost& host) {
    absl::StrAppend(out, host.name, ":", host.slots);
  });
}

TEST(LaunchHosts, HostfilesAreReadAsMpirunReadsThem) {
  const struct {
    const char* text;
    int64_t default_slots;
    const char* hosts;
  } cases[] = {
      {"node1 slots=8\nnode2 slots=4\n", 0, "node1:8 node2:4"},
      {"# all\n\n  node1   slots=8 max_slots=16 # ours\r\n", 0, "node1:8"},
      {"node1\nnode1\nnode2\n", 0, "node1:2 node2:1"},
      {"node1\nnode2 slots=3", 8, "node1:8 node2:3"},
      {"node1:2\n10.0.0.7:4", 0, "node1:2 10.0.0.7:4"},
      {"fe80::17 slots=2", 0, "fe80::17:2"},
  };
  for (const auto& c : cases) {
    const auto hosts = ParseHostfile(c.text, "hosts", c.default_slots);
    ASSERT_TRUE(hosts.ok()) << c.text << ": " << hosts.status();
    EXPECT_EQ(Text(*hosts), c.hosts) << c.text;
    const auto again = ParseHostfile(FormatHostfile(*hosts), "again", 0);
    ASSERT_TRUE(again.ok());
    EXPECT_EQ(Text(*again), c.hosts);
  }
}

TEST(LaunchHosts, WhatIsNoHostfileIsNamedWithItsLine) {
  const struct {
    const char* text;
    const char* says;
  } cases[] = {
      {"# none\n", "hosts names no host; it holds one line HOST slots=N"},
      {"node1 slots=0", "hosts:1: 'slots=0' is no number of slots"},
      {"node1\nnode2 slots=many", "hosts:2: 'slots=many' is no number of slots"},
      {"node1 cores=8", "hosts:1: 'cores=8' is not understood"},
      {"node1:x", "hosts:1: 'x' behind node1: is no number of slots"},
      {"-oProxyCommand=reboot slots=1", "is no host name"},
      {"node1;reboot", "is no host name"},
      {"$(reboot)", "is no host name"},
  };
  for (const auto& c : cases) {
    const auto hosts = ParseHostfile(c.text, "hosts", 0);
    ASSERT_FALSE(hosts.ok()) << c.text;
    EXPECT_TRUE(absl::StrContains(hosts.status().message(), c.says)) << hosts.status();
    EXPECT_EQ(ExitCodeOf(hosts.status()), kExitUsage);
  }
  EXPECT_FALSE(ParseHostList("node1,,node2", 0).ok());
  EXPECT_FALSE(ParseHostList("-x", 0).ok());
  EXPECT_EQ(Text(*ParseHostList("a:2,b,a:1", 0)), "a:3 b:1");
}

TEST(LaunchHosts, SlurmListsAreExpanded) {
  const struct {
    const char* text;
    const char* nodes;
  } cases[] = {
      {"login", "login"},
      {"a,b,c7", "a b c7"},
      {"node[01-03,7],login", "node01 node02 node03 node7 login"},
      {"r[1-2]-ib,x", "r1-ib r2-ib x"},
      {"n[098-101]", "n098 n099 n100 n101"},
  };
  for (const auto& c : cases) {
    const auto nodes = ExpandNodeList(c.text);
    ASSERT_TRUE(nodes.ok()) << c.text << nodes.status();
    EXPECT_EQ(absl::StrJoin(*nodes, " "), c.nodes);
  }
  for (const char* wrong :
       {"", ",", "a,", "n[1-", "n[3-1]", "n[a-b]", "n]1[", "n[1-2]]", "n[0-99999999]", "n[]"}) {
    EXPECT_FALSE(ExpandNodeList(wrong).ok()) << wrong;
  }
  EXPECT_EQ(absl::StrJoin(*ExpandTaskCounts("2(x3),1"), " "), "2 2 2 1");
  EXPECT_EQ(absl::StrJoin(*ExpandTaskCounts("4"), " "), "4");
  for (const char* wrong : {"", "x", "2(3)", "2(x", "0", "2(x3)1", "2(x99999999)"}) {
    EXPECT_FALSE(ExpandTaskCounts(wrong).ok()) << wrong;
  }
}

LaunchSurroundings Workstation() {
  return {.root = false,
          .cores = 8,
          .environment = {"PATH=/usr/bin", "HOME=/home/me", "NCCL_DEBUG=INFO", "AWS_SECRET_ACCESS_KEY=x"},
          .mpirun = "/usr/bin/mpirun",
          .srun = "",
          .program = "/opt/carousel",
          .host = "here"};
}
const std::vector<std::string> kTrain = {"train", "--config", "a b.textproto", "--run_dir", "/r"};

// The command as one line, without the -x of variables.
std::string Command(const LaunchOptions& options, const LaunchSurroundings& here,
                    const std::string& hostfile = "") {
  const auto target = FindTarget(options, here, hostfile);
  if (!target.ok()) return target.status().ToString();
  const LaunchCommand command =
      MakeLaunchCommand(options, here, *target, target->hosts, target->ranks, "/r/hosts", kTrain);
  std::vector<std::string> words;
  for (size_t i = 0; i < command.argv.size(); ++i) {
    if (command.argv[i] == "-x") {
      ++i;
    } else {
      words.push_back(command.argv[i]);
    }
  }
  return absl::StrJoin(words, " ");
}

TEST(LaunchCommand, MpirunOnOneMachine) {
  EXPECT_EQ(Command({.ranks = 8}, Workstation()),
            "/usr/bin/mpirun -np 8 --bind-to none --mca odls_base_sigkill_timeout 20 /opt/carousel "
            "launch_rank train "
            "--config a b.textproto --run_dir /r");
}

TEST(LaunchCommand, RootIsAllowedOnlyWhereItIs) {
  LaunchSurroundings here = Workstation();
  EXPECT_FALSE(absl::StrContains(Command({.ranks = 2}, here), "allow-run-as-root"));
  here.root = true;
  EXPECT_TRUE(absl::StrContains(Command({.ranks = 2}, here), "mpirun --allow-run-as-root -np 2"));
}

TEST(LaunchCommand, OnlyMoreRanksThanCoresOrSlotsOversubscribe) {
  const std::string crowded = "--oversubscribe --mca mpi_yield_when_idle 1";
  EXPECT_FALSE(absl::StrContains(Command({.ranks = 8}, Workstation()), crowded));
  EXPECT_TRUE(absl::StrContains(Command({.ranks = 9}, Workstation()), crowded));
  const std::string hosts = "a slots=8\nb slots=8\n";
  EXPECT_FALSE(absl::StrContains(Command({.ranks = 16, .hostfile = "h"}, Workstation(), hosts), crowded));
  EXPECT_TRUE(absl::StrContains(Command({.ranks = 17, .hostfile = "h"}, Workstation(), hosts), crowded));
}

TEST(LaunchCommand, HostsAgentAndPassedWords) {
  LaunchOptions options{.hostfile = "h", .per_node = 4, .kill_timeout = 7};
  options.rsh_agent = "ssh -p 2222";
  options.launcher_args = {"--mca", "btl_tcp_if_include", "eth0"};
  options.program = "/shared/carousel";
  EXPECT_EQ(Command(options, Workstation(), "a slots=8\nb\n"),
            "/usr/bin/mpirun -np 8 --hostfile /r/hosts --map-by ppr:4:node --bind-to none --mca "
            "odls_base_sigkill_timeout 7 --mca plm_rsh_agent ssh -p 2222 --mca btl_tcp_if_include eth0 "
            "/shared/carousel launch_rank train --config a b.textproto --run_dir /r");
}

TEST(LaunchCommand, VariablesAreHandedOnByNameAndNeverWithTheirValue) {
  LaunchOptions options{.ranks = 2, .exports = {"HOME"}};
  const auto target = FindTarget(options, Workstation(), "");
  ASSERT_TRUE(target.ok());
  const LaunchCommand command =
      MakeLaunchCommand(options, Workstation(), *target, target->hosts, 2, "", kTrain);
  EXPECT_EQ(absl::StrJoin(command.exports, " "),
            "CAROUSEL_ATTEMPT_DIR CAROUSEL_RUN_SECRET HOME NCCL_DEBUG PATH");
  for (size_t i = 0; i + 1 < command.argv.size(); ++i) {
    if (command.argv[i] != "-x") continue;
    EXPECT_FALSE(absl::StrContains(command.argv[i + 1], "="));
  }
  EXPECT_FALSE(FindTarget({.exports = {"NOT_SET"}}, Workstation(), "").ok());
  EXPECT_FALSE(FindTarget({.exports = {"HOME=/x"}}, Workstation(), "").ok());
}

LaunchSurroundings SlurmJob() {
  LaunchSurroundings here = Workstation();
  here.srun = "/usr/bin/srun";
  here.environment = {"SLURM_JOB_ID=7", "SLURM_JOB_NODELIST=n[1-2]", "SLURM_TASKS_PER_NODE=4(x2)",
                      "SLURM_NTASKS=8"};
  return here;
}

TEST(LaunchCommand, SlurmAllocationsGiveHostsAndRanks) {
  const auto target = FindTarget({}, SlurmJob(), "");
  ASSERT_TRUE(target.ok()) << target.status();
  EXPECT_EQ(target->launcher, JobLauncher::kMpirun);
  EXPECT_EQ(Text(target->hosts), "n1:4 n2:4");
  EXPECT_EQ(target->ranks, 8);
  EXPECT_EQ(
      Command({.launcher = JobLauncher::kSrun}, SlurmJob()),
      "/usr/bin/srun --mpi=pmix --ntasks=8 --cpu-bind=none --kill-on-bad-exit=1 --input=none --export=ALL "
      "/opt/carousel launch_rank train --config a b.textproto --run_dir /r");
  LaunchSurroundings without_mpirun = SlurmJob();
  without_mpirun.mpirun.clear();
  EXPECT_EQ(FindTarget({}, without_mpirun, "")->launcher, JobLauncher::kSrun);
  EXPECT_EQ(FindTarget({.per_node = 2}, SlurmJob(), "")->ranks, 4);
}

TEST(LaunchCommand, SrunLeavesOutANode) {
  const LaunchOptions options{.per_node = 4, .launcher = JobLauncher::kSrun};
  const auto target = FindTarget(options, SlurmJob(), "");
  ASSERT_TRUE(target.ok());
  const LaunchCommand command =
      MakeLaunchCommand(options, SlurmJob(), *target, {target->hosts[1]}, 4, "", kTrain);
  EXPECT_TRUE(absl::StrContains(absl::StrJoin(command.argv, " "),
                                "--ntasks=4 --ntasks-per-node=4 --nodes=1 --nodelist=n2 "));
}

TEST(LaunchCommand, WhatCannotStartIsSaidWithTheFix) {
  LaunchSurroundings bare = Workstation();
  bare.mpirun.clear();
  const struct {
    LaunchOptions options;
    LaunchSurroundings here;
    const char* says;
    int exit_code;
  } cases[] = {
      {{.ranks = 2}, bare, "mpirun was not found in PATH; install Open MPI", kExitPreflight},
      {{.launcher = JobLauncher::kSrun}, Workstation(), "srun was not found in PATH", kExitPreflight},
      {{.hostfile = "h", .hosts = "a"}, Workstation(), "give one of them", kExitUsage},
      {{.min_nodes = 2}, Workstation(), "--min_nodes 2, but there is only 1 host; name more", kExitUsage},
      {{.hosts = "a b"}, Workstation(), "is no host name", kExitUsage},
      {{.exports = {"NOT_SET"}}, Workstation(), "set it (export NOT_SET=VALUE) or leave it out", kExitUsage},
  };
  for (const auto& c : cases) {
    const auto target = FindTarget(c.options, c.here, "");
    ASSERT_FALSE(target.ok()) << c.says;
    EXPECT_TRUE(absl::StrContains(target.status().message(), c.says)) << target.status();
    EXPECT_EQ(ExitCodeOf(target.status()), c.exit_code) << target.status();
  }
  LaunchSurroundings outside = Workstation();
  outside.srun = "/usr/bin/srun";
  EXPECT_TRUE(absl::StrContains(FindTarget({.launcher = JobLauncher::kSrun}, outside, "").status().message(),
                                "start it from sbatch or salloc"));
}

RunSpec RunWith(const std::string& parallel) {
  return *LoadRunFromText(
      "model { embedding_dim: 64 num_blocks: 2 num_heads: 2 chunk_length: 16 } data { train { path: "
      "\"t\" } sequence_length: 64 } train { steps: 10 global_batch: 8 micro_batch: 1 } parallel { " +
          parallel + " }",
      "test", {});
}

TEST(ChooseWorld, TakesTheLargestNumberThatDivides) {
  EXPECT_EQ(*ChooseWorld(RunWith(""), 8, 8, 0), 8);
  EXPECT_EQ(*ChooseWorld(RunWith(""), 8, 7, 0), 4);  // 8 sequences: 1, 2, 4 or 8 ranks
  EXPECT_EQ(*ChooseWorld(RunWith("shard: 2"), 8, 6, 0), 4);
  EXPECT_EQ(*ChooseWorld(RunWith("tensor: 2"), 16, 12, 0), 8);
  EXPECT_EQ(*ChooseWorld(RunWith("shard: 2"), 8, 3, 0), 2);
  EXPECT_EQ(*ChooseWorld(RunWith(""), 8, 6, 2), 4);  // whole nodes of two
  const auto none = ChooseWorld(RunWith("shard: 4"), 8, 3, 0);
  ASSERT_FALSE(none.ok());
  EXPECT_TRUE(absl::StrContains(none.status().message(), "no number of ranks up to 3 suits the config"));
  EXPECT_FALSE(ChooseWorld(RunWith("replicate: 4"), 4, 3, 0).ok());
  EXPECT_FALSE(ChooseWorld(RunWith(""), 8, 3, 4).ok());
}

TEST(TrainArgs, ARestartGoesOnAndGoesBackOnce) {
  const std::vector<std::string> args = {"train", "--fresh", "--run_dir", "/r"};
  EXPECT_EQ(absl::StrJoin(TrainArgsForRestart(args, false), " "), "train --run_dir /r");
  const std::vector<std::string> back = TrainArgsForRestart(args, true);
  EXPECT_EQ(absl::StrJoin(back, " "), "train --run_dir /r --from_good");
  EXPECT_EQ(absl::StrJoin(TrainArgsForRestart(back, false), " "), "train --run_dir /r");
}

TEST(QuotedCommand, CanBePastedIntoAShell) {
  EXPECT_EQ(QuotedCommand({"a", "b c", "", "it's", "$HOME", "--x=1,2"}),
            "a 'b c' '' 'it'\\''s' '$HOME' --x=1,2");
  // What would command a terminal is written as the shell reads it.
  EXPECT_EQ(QuotedCommand({"r\033[1m's\\"}), "$'r\\x1b[1m\\'s\\\\'");
}
}  // namespace
}  // namespace carousel
