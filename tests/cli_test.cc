// The program as a user meets it: help, errors, exit codes, the plan, signals.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <regex>
#include <string>
#include <vector>

#include "launcher/commands.h"
#include "launcher/signals.h"
#include "tests/temp_dir.h"

namespace carousel {
namespace {

struct Result {
  int exit_code = -1;
  std::string out, err;
};

std::string ReadAndClose(int fd) {
  std::string text;
  char buffer[4096];
  for (ssize_t n; (n = read(fd, buffer, sizeof(buffer))) > 0;) text.append(buffer, static_cast<size_t>(n));
  close(fd);
  return text;
}

// Runs the program in the root of the source tree. Errors go to a file, so that neither stream can block.
Result Carousel(std::vector<std::string> args) {
  const TempDir dir;
  const std::string err_path = dir.path() + "/err";
  int out[2];
  EXPECT_EQ(pipe(out), 0);
  const pid_t child = fork();
  if (child == 0) {
    dup2(out[1], STDOUT_FILENO);
    close(out[0]);
    close(out[1]);
    if (freopen(err_path.c_str(), "w", stderr) == nullptr || chdir(CAROUSEL_SOURCE_DIR) != 0) _exit(126);
    args.insert(args.begin(), CAROUSEL_PROGRAM);
    std::vector<char*> argv;
    for (std::string& arg : args) argv.push_back(arg.data());
    argv.push_back(nullptr);
    execv(CAROUSEL_PROGRAM, argv.data());
    _exit(127);
  }
  close(out[1]);
  Result result;
  result.out = ReadAndClose(out[0]);
  int status = 0;
  waitpid(child, &status, 0);
  result.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  std::ifstream err(err_path);
  result.err.assign(std::istreambuf_iterator<char>(err), {});
  return result;
}

bool Says(const std::string& text, const std::string& part) {
  if (text.find(part) != std::string::npos) return true;
  ADD_FAILURE() << "\"" << part << "\" is not in:\n" << text;
  return false;
}

// The commands that the top-level help lists.
std::vector<std::string> CommandNames() {
  const std::string help = Carousel({"--help"}).out;
  std::vector<std::string> names;
  const size_t begin = help.find("Subcommands:");
  const size_t end = help.find("Examples:");
  const std::string list = help.substr(begin, end - begin);
  const std::regex entry("\n  ([a-z]+) ");
  for (std::sregex_iterator it(list.begin(), list.end(), entry), none; it != none; ++it)
    names.push_back((*it)[1]);
  return names;
}

TEST(Cli, HelpOfTheProgramAndOfEveryCommandExitsZeroAndHasExamples) {
  const Result top = Carousel({"--help"});
  EXPECT_EQ(top.exit_code, kExitOk);
  Says(top.out, "Examples:");
  Says(top.out, "Exit status:");
  const std::vector<std::string> names = CommandNames();
  EXPECT_EQ(names, (std::vector<std::string>{"train", "launch", "doctor", "plan", "generate", "data",
                                             "checkpoint", "export", "import", "verify", "report", "bench",
                                             "manual", "completion"}));
  for (const std::string& name : names) {
    const Result help = Carousel({name, "--help"});
    EXPECT_EQ(help.exit_code, kExitOk) << name;
    EXPECT_TRUE(help.err.empty()) << help.err;
    Says(help.out, "carousel " + name);
    Says(help.out, "xample");
    EXPECT_TRUE(std::none_of(help.out.begin(), help.out.end(), [](char c) { return c < ' ' && c != '\n'; }))
        << name << " --help has control characters";
    EXPECT_EQ(Carousel({name, "-h"}).out, help.out);
  }
}

TEST(Cli, VersionNamesVersionAndRevision) {
  const Result version = Carousel({"--version"});
  EXPECT_EQ(version.exit_code, kExitOk);
  EXPECT_TRUE(std::regex_search(
      version.out,
      std::regex("^carousel [0-9]+\\.[0-9]+\\.[0-9]+, revision ([0-9a-f]{12}(-dirty)?|unknown), ")))
      << version.out;
}

TEST(Cli, MistakesOnTheCommandLineExit64AndSayWhatWasMeant) {
  const struct {
    std::vector<std::string> args;
    const char* says;
  } kCases[] = {
      {{"trian"}, "no command \"trian\"; did you mean \"train\"?"},
      {{"trian", "--config", "x"}, "did you mean \"train\"?"},
      {{"zzz"}, "valid: train, launch, doctor, plan"},
      {{"plan", "--confg", "x"}, "carousel plan: no option --confg; did you mean \"--config\"?"},
      {{"plan", "--run-dir=x", "--config", "y"}, "no option --run-dir; did you mean \"--run_dir\"?"},
      {{"plan"}, "--config is missing; write --config FILE: The run as a text file"},
      {{"plan", "--config"}, "--config"},
      {{"plan", "--config", "x", "--world", "0"}, "--world"},
      {{"launch", "-n", "0", "train", "--config", "x"},
       "carousel launch: --np: \"0\" is not a whole number from 1 to 1048576"},
      {{"launch", "-n", "two", "train", "--config", "x"},
       "carousel launch: --np: \"two\" is not a whole number from 1 to 1048576"},
      {{"launch", "--backoff", "-1", "train", "--config", "x"},
       "carousel launch: --backoff: \"-1\" is not a number from 0 to 1000000"},
      {{"launch", "--grace", "nan", "train", "--config", "x"}, "--grace: \"nan\" is not a number from 0"},
      {{"launch", "--host", "", "train", "--config", "x"}, "--host is empty: it names no host; leave it out"},
      {{"launch", "-n", "2", "generate"}, "\"generate\" cannot be launched, only train can; write train"},
      {{"plan", "--config", "x", "y"}, "unexpected argument \"y\"; options begin with --"},
      {{"plan", "--config", "x", "--config", "y"}, "--config is given several times; give it once"},
      {{"plan", "--config"}, "--config: its value is missing; write --config FILE"},
      {{"plan", "--config", "x", "--mfu", "45"}, "--mfu: \"45\" is not a number from 0.001 to 1"},
      {{"report"}, "--run_dir is missing; write --run_dir DIR: The run"},
      {{"completion"}, "SHELL is missing: For which shell; write bash|zsh"},
      {{"checkpoint", "ls"}, "RUN_DIR is missing: A run directory or one checkpoint"},
      {{"checkpoint", "diff", "a", "b", "--tolerance", "-1"}, "\"-1\" is not a number from 0 to 1000000"},
      {{"data", "synth", "--output", "x", "--bytes", "0"}, "--bytes: \"0\" is not a number above 0"},
      {{"generate", "--model", "x", "--seed", "x"}, "--seed: \"x\" is no number, or too large"},
      {{"data", "inspect", "x", "--sample", "-1"}, "--sample: \"-1\" is not a number of at least 0"},
      {{"checkpoint", "diff", "a", "b", "--tolerance", "nan"}, "\"nan\" is not a number from 0"},
      {{"train", "--fresh=maybe", "--run_dir", "x"}, "--fresh takes no value"},
      {{"train", "--fresh", "--from_good"}, "--fresh excludes --from_good; give one of them"},
      {{"tr\033[31m"}, "no command \"tr\\x1b[31m\""},
      {{"train", "--config", "x", "--gpu_transport", "foo"}, "foo not in {auto,nccl,staged}"},
      {{"data"}, "say which: build"},
      {{"data", "bild"}, "no command \"bild\"; did you mean \"build\"?"},
      {{"plan", "--config", "nonexistent.textproto"},
       "cannot read the config nonexistent.textproto: No such file"},
      {{"plan", "--config", "configs/demo_bytes.textproto", "--set", "model.num_hed=4"},
       "did you mean \"num_heads\"?"},
      {{"plan", "--config", "configs/demo_bytes.textproto", "--set", "model.num_heads=7", "--set",
        "train.steps=0"},
       "2 problems"},
  };
  for (const auto& c : kCases) {
    const Result result = Carousel(c.args);
    EXPECT_EQ(result.exit_code, kExitUsage) << result.err;
    EXPECT_TRUE(result.out.empty()) << result.out;
    Says(result.err, c.says);
  }
  const Result nothing = Carousel({});
  EXPECT_EQ(nothing.exit_code, kExitUsage);
  Says(nothing.err, "Usage: carousel");
}

TEST(CliPlan, PrintsThePublishedParameterCountsExactly) {
  const struct {
    const char* recipe;
    const char* total;
  } kSizes[] = {{"165m", "164,110,224"},  {"400m", "406,856,896"},  {"830m", "841,496,256"},
                {"1b4", "1,420,839,104"}, {"2b7", "2,780,449,600"}, {"7b", "6,865,424,896"}};
  for (const auto& size : kSizes) {
    const std::string config = std::string("configs/xlstm_") + size.recipe + ".textproto";
    const Result plan = Carousel({"plan", "--config", config, "--world", "8"});
    EXPECT_EQ(plan.exit_code, kExitOk) << plan.err;
    EXPECT_TRUE(std::regex_search(plan.out, std::regex(std::string("\n  total +") + size.total + "\n")))
        << plan.out;
  }
}

TEST(CliPlan, CountsEveryCheckpointThatMayBeOnDisk) {
  const auto plan = [](const std::vector<std::string>& sets) {
    std::vector<std::string> args = {"plan", "--config", "configs/demo_bytes.textproto"};
    for (const std::string& set : sets) args.insert(args.end(), {"--set", "checkpoint." + set});
    return Carousel(args).out;
  };
  // 1000 steps, saved every 10: two last, the newest good, the one being written, and what else is kept.
  Says(plan({"every_steps=10", "keep_last=2"}), "on disk, at most 4 of them");
  Says(plan({"every_steps=10", "keep_last=2", "keep_best=3", "keep_every_steps=400"}), "at most 9 of them");
  Says(plan({"every_steps=10", "keep_last=0"}), "at most 100 of them");
  Says(plan({"every_steps=400", "keep_last=5"}), "at most 3 of them");
  Says(plan({"every_steps=0", "keep_last=5"}), "at most 1 of them");
}

TEST(CliPlan, ShowsEverythingThatARunTakes) {
  const Result plan = Carousel({"plan", "--config", "configs/demo_bytes.textproto", "--world", "2", "--set",
                                "train.steps=1000", "--set", "train.global_batch=16", "--set",
                                "train.micro_batch=4", "--set", "data.sequence_length=256"});
  ASSERT_EQ(plan.exit_code, kExitOk) << plan.err;
  for (const char* row : {"weights", "optimizer", "gradients", "saved", "scratch", "FLOPs per token"}) {
    Says(plan.out, row);
  }
  const auto row = [&](const std::string& pattern) {
    EXPECT_TRUE(std::regex_search(plan.out, std::regex("\n  " + pattern))) << pattern << "\n" << plan.out;
  };
  row("steps +1,000\n");
  row("micro-batches per step +4   2 per rank\n");
  row("tokens per step +4,096   16 x 256\n");
  row("tokens +4,096,000 ");
  row("one +[0-9,]+   [0-9.]+ MiB, 12 per parameter\n");
  row("replicate +2   different sequences");
  row("replicas: AllToAll +[0-9,]+   [0-9.]+ MiB in [0-9]+ calls\n");
  row("replicas: AllGather +[0-9,]+   [0-9.]+ MiB in [0-9]+ calls\n");
  row("exposed: replicas +[0-9.]+ ms   of [0-9.]+ ms within a node at 360 GB/s\n");
  row("step +[0-9.]+ ms   [0-9.]+% of it computes\n");
  // One rank sends nothing.
  Says(Carousel({"plan", "--config", "configs/demo_bytes.textproto"}).out,
       "sent per rank and step, bytes\n  total                                                   0   0 B\n");
}

TEST(CliPlan, PlansEveryAxisForThousandsOfRanks) {
  const Result plan =
      Carousel({"plan", "--config", "configs/xlstm_7b.textproto", "--world", "4096", "--set",
                "parallel.shard=8", "--set", "parallel.tensor=2", "--set", "parallel.sequence=2", "--set",
                "parallel.pipe=4", "--set", "train.global_batch=1024", "--set", "train.micro_batch=1"});
  ASSERT_EQ(plan.exit_code, kExitOk) << plan.err;
  for (const char* row : {"\n  pipe ", "\n  replicate ", "\n  shard ", "\n  sequence ", "\n  tensor ",
                          "memory per rank of stage", "shard: AllGather", "tensor: ReduceScatterSum",
                          "sequence: ", "pipe: Send", "between nodes", "tokens per second"}) {
    Says(plan.out, row);
  }
}

TEST(CliPlan, NamesAllProblemsOfTheMeshAtOnce) {
  const Result plan = Carousel({"plan", "--config", "configs/demo_bytes.textproto", "--world", "12", "--set",
                                "parallel.tensor=3", "--set", "sample.every_steps=0", "--set",
                                "train.global_batch=16", "--set", "train.micro_batch=8"});
  EXPECT_EQ(plan.exit_code, kExitUsage);
  Says(plan.err, "parallel.tensor=3 does not divide model.vocab_size=320, model.num_heads=4");
  Says(plan.err, "replicate x shard = 4 ranks cannot share the 2 micro-batches");
}

TEST(CliPlan, ResolvedConfigIsAConfig) {
  const TempDir dir;
  const std::string path = dir.path() + "/again.textproto";
  const Result first = Carousel({"plan", "--config", "configs/xlstm_400m.textproto", "--resolved"});
  ASSERT_EQ(first.exit_code, kExitOk) << first.err;
  std::ofstream(path) << first.out;
  const Result second = Carousel({"plan", "--config", path, "--resolved"});
  EXPECT_EQ(second.out, first.out);
}

TEST(StopSignals, SetAFlagAndASecondInterruptEndsTheProcess) {
  const pid_t child = fork();
  if (child == 0) {
    InstallStopSignals();
    if (StopRequested()) _exit(1);
    raise(SIGTERM);
    raise(SIGUSR1);
    raise(SIGUSR2);
    raise(SIGINT);
    if (!StopRequested()) _exit(2);
    raise(SIGTERM);
    raise(SIGINT);
    _exit(3);  // not reached
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGINT) << status;
}
}  // namespace
}  // namespace carousel
