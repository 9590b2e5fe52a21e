// The judgement of a preflight, from facts that are made up: every row that can be bad is bad here once,
// names who is meant, and says what to do.
#include "launcher/preflight/preflight_checks.h"

#include <gtest/gtest.h>

#include <limits>

namespace carousel {
namespace {

constexpr int64_t kGiB = int64_t{1} << 30;

// Healthy ranks: `world` of them, `per_host` on each of node1, node2, ...
Ranks Healthy(int64_t world, int64_t per_host) {
  Ranks ranks;
  for (int64_t r = 0; r < world; ++r) {
    RankFacts rank;
    rank.rank = r;
    rank.world = world;
    rank.host = "node" + std::to_string(r / per_host + 1);
    rank.local_rank = r % per_host;
    rank.local_size = per_host;
    rank.build = "carousel 0.1.0, revision 0123456789ab";
    rank.launcher = world > 1 ? "mpirun (Open MPI)" : "";
    rank.libraries = {{"MPI", "Open MPI v4.1.4"}, {"C library", "glibc 2.36"}};
    rank.default_threads = 4;
    for (int64_t core = 0; core < 4 * per_host; ++core) rank.machine.cores.push_back(core);
    rank.machine.machine_cores = 4 * per_host;
    rank.machine.cpu = "Test CPU";
    rank.machine.simd = "AVX2";
    rank.machine.kernel = "Linux 6.1";
    rank.machine.memory_bytes = 64 * kGiB;
    rank.machine.memory_available_bytes = 60 * kGiB;
    rank.machine.open_files = 65536;
    rank.machine.locked_bytes = kUnlimited;
    rank.machine.file_bytes = rank.machine.address_bytes = rank.machine.processes = kUnlimited;
    rank.machine.core_bytes = 0;
    rank.machine.shm_total_bytes = rank.machine.shm_free_bytes = 32 * kGiB;
    rank.machine.interfaces = {
        {.name = "eth0", .up = true, .addresses = {"10.0.0." + std::to_string(r / per_host + 1)}},
        {.name = "ib0", .up = false, .addresses = {}},
        {.name = "lo", .up = true, .addresses = {"127.0.0.1"}}};
    rank.device = {
        .name = "cpu", .kind = "Test CPU, 4 threads", .uuid = {}, .error = {}, .dtype = "bf16", .size = 384};
    rank.device.flops = 1e12;
    rank.device.repeats = 4;
    rank.device.digest = "00000000000000aa";
    ranks.push_back(rank);
  }
  return ranks;
}
// The one row that is not ok.
PreflightRow TheBadRow(const Rows& rows) {
  std::vector<PreflightRow> bad;
  for (const PreflightRow& row : rows) {
    if (row.status != PreflightStatus::kOk) bad.push_back(row);
  }
  EXPECT_EQ(bad.size(), 1u) << FormatPreflightTable(rows, {});
  return bad.empty() ? PreflightRow{} : bad[0];
}
void ExpectRow(const PreflightRow& row, PreflightStatus status, const std::string& finding,
               const std::string& ranks) {
  EXPECT_EQ(std::string(NameOf(row.status)), NameOf(status)) << row.finding;
  EXPECT_NE(row.finding.find(finding), std::string::npos) << row.finding;
  EXPECT_EQ(RanksText(row.ranks), ranks) << row.finding;
  if (status == PreflightStatus::kFailed || status == PreflightStatus::kWarning) {
    EXPECT_FALSE(row.fix.empty()) << row.check << " has no fix";
  }
}
void ExpectBad(const Rows& rows, PreflightStatus status, const std::string& finding,
               const std::string& ranks) {
  ExpectRow(TheBadRow(rows), status, finding, ranks);
}
constexpr auto kFailed = PreflightStatus::kFailed;
constexpr auto kWarning = PreflightStatus::kWarning;
constexpr auto kNote = PreflightStatus::kNote;

TEST(PreflightChecks, FindNothingWrongWithHealthyRanks) {
  for (const auto& [world, per_host] : std::vector<std::pair<int64_t, int64_t>>{{1, 1}, {8, 4}, {64, 8}}) {
    const Rows rows = JudgeFacts(Healthy(world, per_host), {});
    EXPECT_EQ(NameOf(WorstOf(rows)), std::string("ok")) << FormatPreflightTable(rows, {});
    for (const PreflightRow& row : rows) EXPECT_TRUE(row.ranks.empty()) << row.check << " is not folded";
  }
}

TEST(PreflightChecks, NameTheRankWithAnotherProgramOrLibrary) {
  Ranks ranks = Healthy(8, 4);
  ranks[5].build = "carousel 0.0.9";
  ExpectBad(CheckBuild(ranks), kFailed, "carousel 0.0.9; most ranks: carousel 0.1.0", "5");
  EXPECT_EQ(TheBadRow(CheckBuild(ranks)).hosts, std::vector<std::string>{"node2"});
  ranks[2].libraries["MPI"] = "Open MPI v4.0.1";
  ExpectBad(CheckLibraries(ranks), kFailed, "MPI Open MPI v4.0.1; most ranks: MPI Open MPI v4.1.4", "2");
  ranks = Healthy(8, 4);
  ranks[7].libraries["NVIDIA driver"] = "535.1";
  ExpectBad(CheckLibraries(ranks), kWarning, "NVIDIA driver 535.1; most ranks: NVIDIA driver is missing",
            "7");
  ranks = Healthy(8, 4);
  for (int r = 4; r < 8; ++r) ranks[static_cast<size_t>(r)].machine.cpu = "Other CPU";
  ExpectBad(CheckProcessor(ranks, {}), kWarning, "Other CPU", "4-7");
}

TEST(PreflightChecks, SeeARankThatWasMeantToBeOneOfMany) {
  Ranks ranks = Healthy(1, 1);
  ranks[0].variables["SLURM_NTASKS"] = "16";
  ExpectBad(CheckLaunch(ranks, {.for_run = true}), kFailed, "16 tasks, but this process was started alone",
            "");
  ExpectBad(CheckLaunch(ranks, {}), kWarning, "16 tasks", "");
  // Under mpirun the job's tasks are not ours to count.
  ranks[0].launcher = "mpirun (Open MPI)";
  EXPECT_EQ(CheckLaunch(ranks, {.for_run = true})[0].status, PreflightStatus::kOk);
}

TEST(PreflightChecks, CompareRanksWithCores) {
  Ranks ranks = Healthy(4, 4);
  for (RankFacts& rank : ranks) rank.machine.cores = {0, 1}, rank.default_threads = 1;
  ExpectBad(CheckCores(ranks, {}), kWarning, "4 ranks share 2 cores", "");
  // One core each: fine for a test on CPUs, too few to feed a GPU.
  for (RankFacts& rank : ranks) rank.machine.cores = {0, 1, 2, 3};
  ExpectBad(CheckCores(ranks, {}), kNote, "1 core for each of 4 ranks", "");
  ExpectBad(CheckCores(ranks, {.device = "cuda"}), kWarning, "1 core", "");
  ExpectBad(CheckCores(Healthy(4, 4), {.threads = 8}), kWarning, "but parallel.threads is 8", "");
  // Bound to different cores by the launcher: together they have enough.
  for (size_t r = 0; r < 4; ++r) ranks[r].machine.cores = {static_cast<int64_t>(r)};
  ExpectBad(CheckCores(ranks, {}), kNote, "1 core for each", "");
}

TEST(PreflightChecks, CompareThePlanWithMemory) {
  Ranks ranks = Healthy(8, 4);
  EXPECT_EQ(CheckMemory(ranks, {.host_bytes = 10 * kGiB})[0].status, PreflightStatus::kOk);
  ExpectBad(CheckMemory(ranks, {.host_bytes = 20 * kGiB}), kFailed,
            "the run takes 80.0 GiB here (4 ranks, 20.0 GiB each), but this machine has 64.0 GiB", "");
  for (size_t r = 4; r < 8; ++r) ranks[r].machine.cgroup_limit_bytes = 32 * kGiB;
  ExpectBad(CheckMemory(ranks, {.host_bytes = 10 * kGiB}), kFailed, "memory limit of its control group",
            "4-7");
  ranks = Healthy(8, 4);
  ranks[1].machine.memory_available_bytes = 5 * kGiB;
  ExpectBad(CheckMemory(ranks, {.host_bytes = 10 * kGiB}), kWarning, "only 5 GiB of 64.0 GiB are free", "1");
  ranks = Healthy(8, 4);
  ranks[3].machine.address_bytes = kGiB;
  ExpectBad(CheckMemory(ranks, {.host_bytes = 2 * kGiB}), kFailed, "`ulimit -v` allows 1.0 GiB", "3");
}

TEST(PreflightChecks, KnowWhatLimitsAreTooLow) {
  Ranks ranks = Healthy(8, 4);
  ranks[6].machine.open_files = 64;
  ExpectBad(CheckOpenFiles(ranks), kFailed, "only 64 allowed; 8 ranks need 144", "6");
  ranks[6].machine.open_files = 512;
  ExpectBad(CheckOpenFiles(ranks), kWarning, "only 512 allowed", "6");
  ranks[6].machine.open_files = 4096;
  ExpectBad(CheckOpenFiles(ranks), kWarning, "4096 allowed; most ranks: 65536", "6");

  ranks = Healthy(8, 4);
  ranks[0].machine.locked_bytes = 64 << 10;
  ExpectBad(CheckLockedMemory(ranks, {}), kWarning, "64.0 KiB may be locked; most ranks: unlimited", "0");
  for (RankFacts& rank : ranks) rank.machine.locked_bytes = 64 << 10;
  EXPECT_EQ(CheckLockedMemory(ranks, {})[0].status, PreflightStatus::kOk) << "nothing here needs it";
  ExpectBad(CheckLockedMemory(ranks, {.device = "cuda"}), kWarning, "only 64.0 KiB may be locked", "");
  for (RankFacts& rank : ranks) rank.machine.infiniband = true;
  ExpectBad(CheckLockedMemory(ranks, {}), kWarning, "InfiniBand", "");

  ranks = Healthy(8, 4);
  ranks[2].machine.file_bytes = 1 << 20;
  ExpectBad(CheckFileSizeLimit(ranks, {}), kWarning, "files may grow to 1.0 MiB only", "2");
  ExpectBad(CheckFileSizeLimit(ranks, {.checkpoint_bytes = kGiB}), kFailed,
            "part of a checkpoint takes 128.0 MiB", "2");

  ranks = Healthy(8, 4);
  for (size_t r = 4; r < 8; ++r)
    ranks[r].machine.shm_total_bytes = ranks[r].machine.shm_free_bytes = 60 << 20;
  ExpectBad(CheckSharedMemory(ranks, {}), kWarning, "less than 64.0 MiB free of 60.0 MiB", "4-7");
  for (size_t r = 4; r < 8; ++r) ranks[r].machine.shm_total_bytes = -1;
  ExpectBad(CheckSharedMemory(ranks, {}), kWarning, "there is no /dev/shm", "4-7");

  ranks = Healthy(2, 2);
  ranks[1].machine.core_bytes = kUnlimited;
  ranks[1].machine.core_pattern = "core";
  ExpectBad(CheckCoreDumps(ranks), kNote, "up to unlimited, to 'core' in its working directory", "1");
  ranks[1].machine.core_pattern = "|/usr/lib/systemd-coredump %P";
  EXPECT_EQ(NameOf(WorstOf(CheckCoreDumps(ranks))), std::string("ok"));
}

TEST(PreflightChecks, KnowNamesOfInterfaces) {
  Ranks ranks = Healthy(4, 2);
  const auto with = [&](const std::string& name, const std::string& value) {
    Ranks changed = ranks;
    for (RankFacts& rank : changed) rank.variables[name] = value;
    return CheckNetwork(changed);
  };
  for (const char* fine : {"eth0", "eth", "=eth0", "^docker", "eth0,ib", "eno,eth0:5000"}) {
    EXPECT_EQ(NameOf(WorstOf(with("NCCL_SOCKET_IFNAME", fine))), std::string("ok")) << fine;
  }
  ExpectBad(with("NCCL_SOCKET_IFNAME", "eno1"), kFailed,
            "NCCL_SOCKET_IFNAME=eno1: eno1 is no interface of this machine; interfaces that are up: eth0",
            "");
  ExpectBad(with("NCCL_SOCKET_IFNAME", "=eth"), kFailed, "eth is no interface", "");
  ExpectBad(with("NCCL_SOCKET_IFNAME", "ib0"), kFailed, "ib0 is down", "");
  const char* const include = "OMPI_MCA_btl_tcp_if_include";
  for (const char* fine : {"eth0", "10.0.0.0/24", "eth0,lo"}) {
    EXPECT_EQ(NameOf(WorstOf(with(include, fine))), std::string("ok")) << fine;
  }
  ExpectBad(with(include, "eth"), kFailed, "eth is no interface", "");
  ExpectBad(with(include, "192.168.0.0/16"), kFailed, "192.168.0.0/16 is no interface", "");
  // The bridge of docker has one address everywhere.
  for (RankFacts& rank : ranks) {
    rank.machine.interfaces.push_back({.name = "docker0", .up = true, .addresses = {"172.17.0.1"}});
  }
  ExpectBad(CheckNetwork(ranks), kWarning, "docker0 has the address 172.17.0.1 on 2 machines", "");
  EXPECT_EQ(NameOf(WorstOf(with(include, "eth0"))), std::string("ok"));
}

TEST(PreflightChecks, TellClocksThatDiffer) {
  Ranks ranks = Healthy(4, 2);
  for (RankFacts& rank : ranks) rank.clock_asked = rank.local_rank == 0;
  ranks[2].clock_offset_seconds = 0.09;
  EXPECT_EQ(CheckClocks(ranks)[0].finding, "within 90.0 ms of rank 0's");
  ranks[2].clock_offset_seconds = -3.5;
  ExpectBad(CheckClocks(ranks), kWarning, "3.500 s behind that of rank 0 (node1)", "2");
  // On a slow way the offset is not known so well.
  ranks[2].clock_uncertainty_seconds = 3.45;
  EXPECT_EQ(CheckClocks(ranks)[0].status, PreflightStatus::kOk);
}

TEST(PreflightChecks, NoticeRanksOnOneGpu) {
  Ranks ranks = Healthy(4, 2);
  for (RankFacts& rank : ranks) {
    rank.gpus = {.asked = true, .missing = {}, .driver = "550", .cuda_driver = {}, .gpus = {}};
    for (int g = 0; g < 2; ++g) {
      rank.gpus.gpus.push_back({.index = g, .name = "H100", .uuid = rank.host + "-" + std::to_string(g)});
    }
    rank.device.uuid = rank.host + "-" + std::to_string(rank.local_rank);
  }
  EXPECT_EQ(NameOf(WorstOf(CheckGpuSharing(ranks, {.device = "cuda"}))), std::string("ok"));
  ranks[3].device.uuid = "node2-0";
  ExpectBad(CheckGpuSharing(ranks, {.device = "cuda"}), kFailed, "compute on one GPU, node2-0", "2, 3");
  ExpectBad(CheckGpuSharing(ranks, {.device = "cuda", .ranks_may_share_gpu = true}), kNote, "node2-0",
            "2, 3");
  ranks[2].gpus.gpus.pop_back();
  ranks[3].gpus.gpus.pop_back();
  ExpectBad(CheckGpus(ranks, {.device = "cuda"}), kFailed, "2 ranks on this machine, which has 1 x H100",
            "2, 3");
  // More GPUs than ranks.
  for (RankFacts& rank : ranks) rank.gpus.gpus.resize(4, {.name = "H100"});
  ExpectBad(CheckGpus(ranks, {.device = "cuda"}), kNote, "2 of them stay idle", "");
  // A GPU whose clock ends below the others'.
  ranks = Healthy(3, 3);
  for (RankFacts& rank : ranks) {
    rank.gpus.asked = true;
    rank.gpus.gpus = {{.name = "H100",
                       .uuid = "u" + std::to_string(rank.rank),
                       .max_sm_mhz = rank.rank == 1 ? 1200 : 1980}};
    rank.device.uuid = rank.gpus.gpus[0].uuid;
  }
  ExpectBad(CheckGpuPower(ranks), kWarning, "its clock ends at 1200 MHz, that of the others at 1980", "1");
}

TEST(PreflightChecks, NameDevicesThatDoNotRepeatThemselves) {
  Ranks ranks = Healthy(8, 4);
  ranks[3].device.different = 2;
  ExpectBad(CheckMatmulBits(ranks), kFailed,
            "cpu gave other bits in 2 of 4 repeats of one bf16 product of 384 x 384 x 384", "3");
  ranks[3].device.different = 0;
  ranks[6].device.digest = "00000000000000bb";
  ExpectBad(CheckMatmulBits(ranks), kFailed,
            "gives other bits for a bf16 product of 384 x 384 x 384 than 7 other devices", "6");
  // Of another kind, it may.
  ranks[6].device.kind = "Other CPU";
  EXPECT_EQ(NameOf(WorstOf(CheckMatmulBits(ranks))), std::string("ok"));
  // Two against two: nobody knows who is right.
  ranks = Healthy(4, 2);
  ranks[2].device.digest = ranks[3].device.digest = "00000000000000bb";
  EXPECT_EQ(CheckMatmulBits(ranks).size(), 4u);
  EXPECT_NE(CheckMatmulBits(ranks)[0].finding.find("no majority"), std::string::npos);
}

TEST(PreflightChecks, NameSlowDevices) {
  Ranks ranks = Healthy(8, 4);
  ranks[5].device.flops = 0.91e12;
  EXPECT_EQ(NameOf(WorstOf(CheckMatmulRate(ranks))), std::string("ok"));
  ranks[5].device.flops = 0.85e12;
  ExpectBad(CheckMatmulRate(ranks), kWarning,
            "850 GFLOP/s, 15 % below the median of equal devices (1.00 TFLOP/s)", "5");
  // Where ranks take turns on the cores, a rate says little.
  for (RankFacts& rank : ranks) rank.machine.cores = {0, 1};
  ExpectBad(CheckMatmulRate(ranks), kNote, "take turns", "5");
  // A device of another kind is no outlier.
  ranks = Healthy(8, 4);
  ranks[5].device.kind = "Other CPU", ranks[5].device.flops = 1e11;
  EXPECT_EQ(NameOf(WorstOf(CheckMatmulRate(ranks))), std::string("ok"));
}

TEST(PreflightChecks, CompareDevicesWithThePlan) {
  Ranks ranks = Healthy(2, 2);
  ranks[1].device = {
      .name = "cuda:1", .kind = "H100", .memory_total_bytes = 80 * kGiB, .memory_free_bytes = 30 * kGiB};
  ExpectBad(CheckDevice(ranks, {.device = "cuda", .device_bytes = 60 * kGiB}), kFailed,
            "the run takes 60.0 GiB of a device, H100 has 30.0 GiB free of 80.0 GiB", "1");
  ranks[1].device = {.error = "--device cuda: no GPU"};
  ExpectBad(CheckDevice(ranks, {.device = "cuda"}), kFailed, "--device cuda: no GPU", "1");
}

TEST(PreflightChecks, NameWrongAndSlowSums) {
  Ranks ranks = Healthy(8, 4);
  for (RankFacts& rank : ranks) {
    const int64_t begin = rank.rank / 2 * 2;
    rank.sums = {
        {.axis = "tensor", .kind = "f32", .members = {begin, begin + 1}, .bytes = 1 << 20, .seconds = 1e-3}};
  }
  EXPECT_EQ(NameOf(WorstOf(CheckSums(ranks))), std::string("ok"));
  EXPECT_EQ(NameOf(WorstOf(CheckSumRates(ranks))), std::string("ok"));
  ranks[5].sums[0].num_wrong = 1;
  ranks[5].sums[0].first_wrong = 77;
  ranks[5].sums[0].expected = 154, ranks[5].sums[0].got = 155;
  ExpectBad(CheckSums(ranks), kFailed,
            "1 elements of a sum of integers in f32 over 'tensor' (ranks 4, 5 (node2)) arrived wrong; the "
            "first: element 77 is "
            "155, not 154",
            "5");
  ranks[2].sums[0].seconds = 1.5e-3;
  ExpectBad(CheckSumRates(ranks), kWarning,
            "tensor: 699 MB/s, 33 % below the median of the groups of this axis", "2, 3");
}

TEST(PreflightChecks, NameTheMachineWithABadLink) {
  Ranks ranks = Healthy(4, 1);
  for (RankFacts& rank : ranks) {
    for (int64_t peer = 0; peer < 4; ++peer) {
      if (peer != rank.rank) rank.pairs.push_back({.peer = peer, .bytes = 1 << 20, .seconds = 1e-3});
    }
  }
  EXPECT_EQ(NameOf(WorstOf(CheckPairs(ranks))), std::string("ok"));
  Ranks link = ranks;
  link[1].pairs[2].seconds = link[3].pairs[1].seconds = 2e-3;
  ExpectBad(CheckPairs(link), kWarning, "524 MB/s with node4, 50 % below the median", "1, 3");
  Ranks slow = ranks;
  for (RankFacts& rank : slow) {
    for (PairFacts& pair : rank.pairs) {
      if (rank.rank == 2 || pair.peer == 2) pair.seconds = 3e-3;
    }
  }
  ExpectBad(CheckPairs(slow), kWarning, "350 MB/s with the other machines", "2");
  ranks[0].pairs[1].num_wrong = 4;
  ExpectBad(CheckPairs(ranks), kFailed, "4 of 1048576 bytes from node3 arrived wrong", "0");
}

TEST(PreflightChecks, CompareThePlanWithTheDisk) {
  Ranks ranks = Healthy(4, 2);
  for (RankFacts& rank : ranks) {
    rank.storage = {.asked = true, .directory = "runs/a", .file_system = "ext4"};
    rank.storage.free_bytes = 10 * kGiB, rank.storage.total_bytes = 100 * kGiB;
    if (rank.local_rank == 0) rank.storage.write_bytes = 100 << 20, rank.storage.write_seconds = 1;
  }
  PreflightNeeds needs{.checkpoint_bytes = 2 * kGiB, .num_checkpoints = 4};
  EXPECT_EQ(NameOf(WorstOf(CheckDiskSpace(ranks, needs))), std::string("ok"));
  needs.num_checkpoints = 6;
  ExpectBad(CheckDiskSpace(ranks, needs), kWarning,
            "a checkpoint takes 2.0 GiB, and up to 6 of them 12.0 GiB; only 10.0 GiB are free", "");
  ranks[0].storage.existing_bytes = 4 * kGiB;
  EXPECT_EQ(NameOf(WorstOf(CheckDiskSpace(ranks, needs))), std::string("ok"))
      << "those that are there will be replaced";
  needs.checkpoint_bytes = 11 * kGiB;
  ExpectBad(CheckDiskSpace(ranks, needs), kFailed,
            "a checkpoint takes 11.0 GiB, but only 10.0 GiB are free of 100.0 GiB in runs/a", "");
  needs.num_checkpoints = std::numeric_limits<int64_t>::max();
  ranks[0].storage.free_bytes = 20 * kGiB;
  ExpectBad(CheckDiskSpace(ranks, needs), kWarning, "more than any disk", "");
  needs.save_timeout_seconds = 10;
  ExpectBad(CheckDiskRate(ranks, needs), kWarning, "checkpoint.timeout_seconds is 10", "");

  ranks[0].storage.error = "the run directory cannot be used: [rank 2] host node2: does not see x";
  ExpectBad(CheckRunDirectory(ranks), kFailed, "[rank 2] host node2: does not see", "");
  ranks[0].storage.error = "";
  ranks[2].storage.lock_error = "no locks";
  ExpectBad(CheckRunDirectory(ranks), kNote, "files cannot be locked here (no locks)", "2");
  ranks[2].storage.lock_error = "";
  ranks[2].storage.write_error = "No space left on device";
  ExpectBad(CheckRunDirectory(ranks), kFailed, "No space left on device", "2");
}

TEST(PreflightChecks, NameRanksWithOtherTokens) {
  Ranks ranks = Healthy(4, 2);
  for (RankFacts& rank : ranks)
    rank.tokens = {{.path = "a.bin", .bytes = 100, .digest = "x"},
                   {.path = "a.idx", .bytes = 9, .digest = "y"}};
  EXPECT_EQ(NameOf(WorstOf(CheckTokenFiles(ranks))), std::string("ok"));
  ranks[3].tokens[0].bytes = 90;
  ExpectBad(CheckTokenFiles(ranks), kFailed, "a.bin has 90 bytes here and 100 on rank 0", "3");
  ranks[3].tokens[0] = {.path = "a.bin", .bytes = 100, .digest = "z"};
  ExpectBad(CheckTokenFiles(ranks), kFailed, "a.bin holds other data than on rank 0, in as many bytes (100)",
            "3");
  ranks[3].tokens[0].error = "cannot open a.bin: No such file or directory";
  ExpectBad(CheckTokenFiles(ranks), kFailed, "cannot open a.bin", "3");
}

TEST(PreflightFacts, SurviveTheWayToOtherRanks) {
  RankFacts rank = Healthy(4, 2)[2];
  rank.sums = {{.axis = "world", .members = {0, 1, 2, 3}, .num_wrong = 1, .expected = 0.1, .got = -1e300}};
  rank.gpus = {.asked = true,
               .missing = "quote \" and byte \xff",
               .driver = {},
               .cuda_driver = {},
               .gpus = {{.uuid = "u", .xids = {79}}}};
  const absl::StatusOr<RankFacts> copy = ParseRankFacts(ToText(rank));
  ASSERT_TRUE(copy.ok()) << copy.status();
  EXPECT_EQ(ToText(*copy), ToText(*ParseRankFacts(ToText(*copy))));
  EXPECT_EQ(copy->machine.locked_bytes, kUnlimited);
  EXPECT_EQ(copy->sums[0].got, -1e300);
  EXPECT_EQ(copy->gpus.gpus[0].xids, std::vector<int64_t>{79});
  // Another build's facts, or garbage.
  EXPECT_EQ(ParseRankFacts(R"({"build": "other", "news": 1})")->build, "other");
  for (const char* garbage : {"", "[]", "{\"rank\": \"x\"}", "{\"machine\": 5}", "{", "\xff"}) {
    EXPECT_EQ(ParseRankFacts(garbage).status().code(), absl::StatusCode::kDataLoss) << garbage;
  }
}

TEST(PreflightTable, FoldsRanksAndNamesHosts) {
  EXPECT_EQ(RanksText({0, 1, 2, 5, 7, 8}), "0-2, 5, 7, 8");
  EXPECT_EQ(RanksAndHosts({3}, {"node2"}), "rank 3 (node2)");
  std::vector<std::string> hosts;
  for (int i = 0; i < 12; ++i) hosts.push_back("n" + std::to_string(i));
  EXPECT_EQ(RanksAndHosts({0, 1, 2}, hosts), "ranks 0-2 (n0, n1, n2, n3, n4, n5, n6, n7, and 4 more)");
  const Rows rows = {{.check = "open files", .finding = "1024 allowed"},
                     {.check = "clocks",
                      .status = kWarning,
                      .finding = std::string(30, 'x') + " " + std::string(30, 'y') + " \x1b[2J",
                      .fix = "Let them agree.",
                      .ranks = {2},
                      .hosts = {"node2"}},
                     {.check = "disk", .status = kFailed, .finding = "full", .fix = "Make room."}};
  EXPECT_EQ(FormatPreflightTable(rows, {.columns = 60}),
            "  ok       open files  1024 allowed\n"
            "  warning  clocks      rank 2 (node2):\n"
            "                       xxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\n"
            "                       yyyyyyyyyyyyyyyyyyyyyyyyyyyyyy ?[2J\n"
            "                       fix: Let them agree.\n"
            "  FAILED   disk        full\n"
            "                       fix: Make room.\n");
  EXPECT_EQ(FormatPreflightTable({rows[0]}, {.only_problems = true}), "");
  EXPECT_EQ(CountsText(rows), "3 checks: 1 ok, 1 warning, 1 failed");
}
}  // namespace
}  // namespace carousel
