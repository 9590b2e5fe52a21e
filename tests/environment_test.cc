#include "launcher/environment.h"

#include <gtest/gtest.h>

#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace carousel {
namespace {
using Kind = LaunchInfo::Kind;

LaunchInfo Detect(const std::map<std::string, std::string>& variables) {
  return DetectLaunch([&](const char* name) -> const char* {
    const auto found = variables.find(name);
    return found == variables.end() ? nullptr : found->second.c_str();
  });
}

TEST(DetectLaunch, AProcessStartedByHandIsAlone) {
  const LaunchInfo info = Detect({{"HOME", "/root"}});
  EXPECT_EQ(info.kind, Kind::kSingle);
  EXPECT_EQ(info.announced_size, 1);
}

TEST(DetectLaunch, OpenMpiSaysRankAndSizeAndWhetherItBoundByDefault) {
  std::map<std::string, std::string> variables = {{"OMPI_COMM_WORLD_SIZE", "4"},
                                                  {"OMPI_COMM_WORLD_RANK", "3"},
                                                  {"PMIX_RANK", "3"},
                                                  {"OMPI_MCA_orte_bound_at_launch", "1"}};
  LaunchInfo info = Detect(variables);
  EXPECT_EQ(info.kind, Kind::kOpenMpi);
  EXPECT_EQ(info.announced_size, 4);
  EXPECT_EQ(info.announced_rank, 3);
  EXPECT_TRUE(info.bound_by_default);
  variables["OMPI_MCA_hwloc_base_binding_policy"] = "core";  // mpirun --bind-to core
  EXPECT_FALSE(Detect(variables).bound_by_default);
  variables.erase("OMPI_MCA_hwloc_base_binding_policy");
  variables.erase("OMPI_MCA_orte_bound_at_launch");  // more ranks than cores: Open MPI does not bind
  EXPECT_FALSE(Detect(variables).bound_by_default);
}

TEST(DetectLaunch, HydraAndSlurmWithMpi) {
  LaunchInfo info = Detect({{"PMI_RANK", "1"}, {"PMI_SIZE", "2"}});
  EXPECT_EQ(info.kind, Kind::kPmi);
  EXPECT_EQ(info.launcher, "mpiexec");
  EXPECT_EQ(info.announced_size, 2);
  info = Detect(
      {{"PMIX_RANK", "5"}, {"SLURM_STEP_ID", "0"}, {"SLURM_PROCID", "5"}, {"SLURM_STEP_NUM_TASKS", "8"}});
  EXPECT_EQ(info.kind, Kind::kPmi);
  EXPECT_EQ(info.launcher, "srun");
  EXPECT_EQ(info.announced_rank, 5);
  EXPECT_EQ(info.announced_size, 8);
}

TEST(DetectLaunch, SlurmWithoutMpiIsSeenAndABatchScriptIsAlone) {
  const LaunchInfo info =
      Detect({{"SLURM_STEP_ID", "0"}, {"SLURM_PROCID", "2"}, {"SLURM_STEP_NUM_TASKS", "8"}});
  EXPECT_EQ(info.kind, Kind::kSlurmWithoutMpi);
  EXPECT_EQ(info.announced_size, 8);
  EXPECT_EQ(Detect({{"SLURM_NTASKS", "8"}, {"SLURM_PROCID", "0"}}).kind, Kind::kSingle);
  EXPECT_EQ(Detect({{"SLURM_STEP_ID", "0"}, {"SLURM_PROCID", "0"}, {"SLURM_STEP_NUM_TASKS", "1"}}).kind,
            Kind::kSingle);
}

TEST(DetectLaunch, RubbishInTheEnvironmentIsNotANumber) {
  const LaunchInfo info = Detect({{"OMPI_COMM_WORLD_SIZE", "many"}, {"OMPI_COMM_WORLD_RANK", ""}});
  EXPECT_EQ(info.announced_size, 0);
  EXPECT_EQ(info.announced_rank, 0);
}

absl::StatusOr<std::optional<TcpNodeOptions>> DetectTcp(const std::map<std::string, std::string>& variables) {
  return DetectTcpLaunch([&](const char* name) -> const char* {
    const auto found = variables.find(name);
    return found == variables.end() ? nullptr : found->second.c_str();
  });
}

TEST(DetectTcpLaunch, TakesAllFourVariablesOrNone) {
  EXPECT_FALSE(DetectTcp({{"HOME", "/root"}})->has_value());
  // Every job of carousel launch has a secret, also one that talks through MPI.
  EXPECT_FALSE(DetectTcp({{"CAROUSEL_RUN_SECRET", "0123456789abcdef"}})->has_value());
  const std::map<std::string, std::string> all = {{"CAROUSEL_RENDEZVOUS", "tcp://node7:2345"},
                                                  {"CAROUSEL_RANK", "3"},
                                                  {"CAROUSEL_WORLD_SIZE", "4"},
                                                  {"CAROUSEL_RUN_SECRET", "0123456789abcdef"}};
  const absl::StatusOr<std::optional<TcpNodeOptions>> options = DetectTcp(all);
  ASSERT_TRUE(options.ok() && options->has_value()) << options.status();
  EXPECT_EQ((*options)->rendezvous, "tcp://node7:2345");
  EXPECT_EQ((*options)->rank, 3);
  EXPECT_EQ((*options)->size, 4);
  EXPECT_EQ((*options)->secret, "0123456789abcdef");
  for (const auto& [name, value] : all) {
    std::map<std::string, std::string> some = all;
    some.erase(name);
    const absl::Status status = DetectTcp(some).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status));
    EXPECT_NE(std::string(status.message()).find("are set, but not " + name), std::string::npos) << status;
  }
}

TEST(DetectTcpLaunch, NamesTheVariableThatIsWrong) {
  const auto message = [](const char* name, const char* value) {
    std::map<std::string, std::string> variables = {{"CAROUSEL_RENDEZVOUS", "file:/shared/meet"},
                                                    {"CAROUSEL_RANK", "1"},
                                                    {"CAROUSEL_WORLD_SIZE", "2"},
                                                    {"CAROUSEL_RUN_SECRET", "0123456789abcdef"}};
    variables[name] = value;
    return std::string(DetectTcp(variables).status().message());
  };
  EXPECT_EQ(message("CAROUSEL_RANK", "0"), "");
  EXPECT_EQ(
      message("CAROUSEL_WORLD_SIZE", "0"),
      "CAROUSEL_WORLD_SIZE='0' is no number of ranks; give how many there are, 1 or more, the same on all "
      "of them");
  for (const auto& [name, value] :
       std::vector<std::pair<const char*, const char*>>{{"CAROUSEL_RENDEZVOUS", "node7"},
                                                        {"CAROUSEL_RENDEZVOUS", ""},
                                                        {"CAROUSEL_RANK", "2"},
                                                        {"CAROUSEL_RANK", "-1"},
                                                        {"CAROUSEL_RANK", "one"},
                                                        {"CAROUSEL_WORLD_SIZE", "0"},
                                                        {"CAROUSEL_WORLD_SIZE", "99999999999"},
                                                        {"CAROUSEL_RUN_SECRET", "0123456789abcde"}}) {
    EXPECT_EQ(message(name, value).find(name), 0u) << name << "=" << value << ": " << message(name, value);
  }
}

TEST(CheckLaunch, AgreesWhereMpiSeesWhatTheLauncherStarted) {
  EXPECT_TRUE(CheckLaunch(Detect({}), 1, true, "").ok());
  EXPECT_TRUE(CheckLaunch(Detect({{"OMPI_COMM_WORLD_SIZE", "4"}}), 4, true, "").ok());
  EXPECT_TRUE(CheckLaunch(Detect({{"PMIX_RANK", "0"}}), 4, true, "").ok());  // a launcher that does not say
}

TEST(CheckLaunch, SingletonsAreRefusedWithTheReason) {
  const auto message = [](const LaunchInfo& launch, bool has_mpi) {
    const absl::Status status = CheckLaunch(launch, 1, has_mpi, "Open MPI v4.1.4");
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    return std::string(status.message());
  };
  const LaunchInfo mpirun = Detect({{"OMPI_COMM_WORLD_SIZE", "3"}});
  EXPECT_NE(message(mpirun, true).find("mpirun (Open MPI) started 3 processes, but MPI sees 1 process"),
            std::string::npos);
  EXPECT_NE(message(mpirun, true).find("Open MPI v4.1.4"), std::string::npos);
  EXPECT_NE(message(mpirun, false).find("built without MPI"), std::string::npos);
  const LaunchInfo srun =
      Detect({{"SLURM_STEP_ID", "0"}, {"SLURM_PROCID", "0"}, {"SLURM_STEP_NUM_TASKS", "3"}});
  EXPECT_NE(message(srun, true).find("--mpi=pmix"), std::string::npos);
}

TEST(ShareCores, RanksThatMayRunAnywhereSplitTheMachine) {
  const std::vector<int> eight = {0, 1, 2, 3, 4, 5, 6, 7};
  const CoreShare share = ShareCores({eight, eight}, 1, 0);
  EXPECT_EQ(share.threads, 4);
  EXPECT_EQ(share.cores, (std::vector<int>{4, 5, 6, 7}));
  EXPECT_EQ(ShareCores({eight}, 0, 0).threads, 8);
  EXPECT_EQ(ShareCores({eight, eight, eight}, 2, 0).threads, 2);
}

TEST(ShareCores, MoreRanksThanCoresFloatWithOneThreadEach) {
  const std::vector<int> two = {0, 1};
  for (int64_t rank = 0; rank < 4; ++rank) {
    const CoreShare share = ShareCores({two, two, two, two}, rank, 0);
    EXPECT_EQ(share.threads, 1);
    EXPECT_EQ(share.cores, two);
    EXPECT_DOUBLE_EQ(share.own_cores, 0.5);
  }
}

TEST(ShareCores, AnExplicitBindingIsKept) {
  const CoreShare share = ShareCores({{0, 1, 2}, {3, 4, 5, 6, 7}}, 1, 0);
  EXPECT_EQ(share.threads, 5);
  EXPECT_EQ(share.cores, (std::vector<int>{3, 4, 5, 6, 7}));
  EXPECT_DOUBLE_EQ(share.own_cores, 5);
  EXPECT_EQ(ShareCores({{0}, {0}}, 0, 0).threads, 1);
  EXPECT_DOUBLE_EQ(ShareCores({{0}, {0, 1}}, 1, 0).own_cores, 1.5);
  EXPECT_EQ(ShareCores({{}}, 0, 0).threads, 1);  // a machine that does not say
  EXPECT_EQ(ShareCores({{}}, 0, 0).own_cores, 0);
}

TEST(ShareCores, AContainersQuotaIsForAllItsRanks) {
  std::vector<int> many;
  for (int cpu = 0; cpu < 64; ++cpu) many.push_back(cpu);
  EXPECT_EQ(ShareCores({many}, 0, 2).threads, 2);
  const CoreShare share = ShareCores({many, many}, 0, 4);
  EXPECT_EQ(share.threads, 2);
  EXPECT_EQ(share.cores, many);  // the quota limits time, not places
  EXPECT_EQ(ShareCores({many, many}, 0, 1).threads, 1);
  EXPECT_DOUBLE_EQ(ShareCores({many, many}, 0, 1).own_cores, 0.5);
  EXPECT_EQ(ShareCores({many, many}, 0, 200).threads, 32);
}

TEST(ParseCpuMax, ReadsQuotaOverPeriod) {
  EXPECT_EQ(ParseCpuMax("200000 100000"), 2);
  EXPECT_EQ(ParseCpuMax("150000 100000\n"), 2);
  EXPECT_EQ(ParseCpuMax("max 100000"), 0);
  EXPECT_EQ(ParseCpuMax("-1 100000"), 0);
  EXPECT_EQ(ParseCpuMax(""), 0);
  EXPECT_EQ(ParseCpuMax("1 0"), 0);
}

TEST(Environment, AProcessAloneHasAWorldOfOne) {
  // Only where this test itself was started by hand or by ctest.
  if (!Environment::Variable("OMPI_COMM_WORLD_SIZE").empty()) GTEST_SKIP() << "started by mpirun";
  absl::StatusOr<std::unique_ptr<Environment>> environment = Environment::Start();
  ASSERT_TRUE(environment.ok()) << environment.status();
  EXPECT_EQ((*environment)->size(), 1);
  EXPECT_EQ((*environment)->rank(), 0);
  EXPECT_EQ((*environment)->local_size(), 1);
  EXPECT_GE((*environment)->default_threads(), 1);
  EXPECT_FALSE((*environment)->host().empty());
  EXPECT_NE((*environment)->Describe().find("started alone"), std::string::npos);
  EXPECT_EQ((*environment)->Finish(3), 3);
}
}  // namespace
}  // namespace carousel
