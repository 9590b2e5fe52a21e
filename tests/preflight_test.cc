// The trials of a preflight on ranks that are threads: devices and communicators that err, clocks that
// differ, disks and token files that are not the same for all; and the verdict, which is the same on every
// rank.
#include "launcher/preflight/preflight.h"
#include "launcher/launch/suspect_hosts.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <mutex>
#include <set>

#include "core/base/status_exit_code.h"
#include "kernels/make_device.h"
#include "launcher/plan/forwarding_ops.h"
#include "launcher/preflight/preflight_probes.h"
#include "launcher/preflight/preflight_storage.h"
#include "parallel/local_communicator.h"
#include "parallel/mesh_builder.h"
#include "tests/memory_file_system.h"
#include "tests/temp_dir.h"

namespace carousel {
namespace {

std::unique_ptr<Device> MakeCpu() {
  std::string error;
  std::unique_ptr<Device> device = MakeDevice("cpu", 1, &error);
  CAROUSEL_CHECK_MSG(device != nullptr, error);
  return device;
}

// Passes calls on, and changes one bit of one rank's sum of f32.
class FlippingCommunicator final : public Communicator {
 public:
  FlippingCommunicator(Communicator& inner, int victim) : inner_(inner), victim_(victim) {}
  int rank() const override { return inner_.rank(); }
  int size() const override { return inner_.size(); }
  [[noreturn]] void Abort(int exit_code) override {
    inner_.Abort(exit_code);
    std::abort();
  }

 private:
  void DoAllReduceSum(Tensor x) override {
    inner_.AllReduceSum(x);
    if (rank() == victim_ && x.dtype == DType::kF32 && x.num_elems() > 1000) {
      static_cast<uint32_t*>(x.data)[777] ^= 1u << 3;
    }
  }
  void DoAllGather(Tensor all, Tensor mine) override { inner_.AllGather(all, mine); }
  void DoReduceScatterSum(Tensor mine, Tensor all) override { inner_.ReduceScatterSum(mine, all); }
  void DoAllToAll(Tensor out, Tensor in) override { inner_.AllToAll(out, in); }
  void DoBroadcast(Tensor x, int root) override { inner_.Broadcast(x, root); }
  void DoSend(Tensor x, int destination) override { inner_.Send(x, destination); }
  void DoRecv(Tensor x, int source) override { inner_.Recv(x, source); }
  void DoBarrier() override { inner_.Barrier(); }

  Communicator& inner_;
  const int victim_;
};

// A device whose second product has one other bit.
class ForgetfulDevice final : public Device {
 public:
  std::string name() const override { return "cpu"; }
  bool host_accessible() const override { return true; }
  void* Allocate(int64_t bytes) override { return device_->Allocate(bytes); }
  void Free(void* memory) override { device_->Free(memory); }
  void CopyToDevice(void* to, const void* from, int64_t bytes) override {
    device_->CopyToDevice(to, from, bytes);
  }
  void CopyToHost(void* to, const void* from, int64_t bytes) override {
    device_->CopyToHost(to, from, bytes);
  }
  void Synchronize() override {}
  carousel::Ops& ops() override { return ops_; }

 private:
  class ForgetfulOps final : public ForwardingOps {
   public:
    using ForwardingOps::ForwardingOps;
    void Matmul(const MatmulArgs& a) override {
      ops_.Matmul(a);
      if (++calls_ == 2) static_cast<uint32_t*>(a.c.data)[5] ^= 1;
    }
    int calls_ = 0;
  };
  std::unique_ptr<Device> device_ = MakeCpu();
  ForgetfulOps ops_{device_->ops()};
};

// One rank for each "machine", unless told otherwise.
RankFacts SelfOf(const Communicator& world, int per_host = 1) {
  RankFacts self;
  self.rank = world.rank();
  self.world = world.size();
  self.host = "node" + std::to_string(world.rank() / per_host + 1);
  self.local_rank = world.rank() % per_host;
  self.local_size = per_host;
  self.launcher = "test";
  return self;
}

// Runs `size` ranks, whose options `change` may alter, and returns rank 0's rows; all ranks must have them.
Rows RowsOf(int size, const std::function<void(Communicator&, PreflightOptions*)>& change) {
  std::mutex mutex;
  std::vector<Rows> all;
  RunLocalRanks(size, [&](Communicator& world) {
    PreflightOptions options;
    options.self = SelfOf(world);
    options.world = &world;
    options.nvml_file = "libno-such-nvml.so";
    change(world, &options);
    const PreflightResult result = RunPreflight(options);
    const std::lock_guard<std::mutex> lock(mutex);
    all.push_back(result.rows);
  });
  for (const Rows& rows : all) {
    EXPECT_EQ(FormatPreflightTable(rows, {}), FormatPreflightTable(all[0], {}))
        << "ranks come to other verdicts";
  }
  return all[0];
}
std::vector<PreflightRow> NotOk(const Rows& rows, const std::string& check) {
  std::vector<PreflightRow> found;
  for (const PreflightRow& row : rows) {
    if (row.check == check && row.status != PreflightStatus::kOk) found.push_back(row);
  }
  return found;
}
bool Has(const std::string& text, const std::string& part) {
  if (text.find(part) != std::string::npos) return true;
  ADD_FAILURE() << "\"" << part << "\" is not in: " << text;
  return false;
}

TEST(MatmulTrial, GivesARateAndTheSameBitsEachTime) {
  const std::unique_ptr<Device> device = MakeCpu();
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF64}) {
    DeviceFacts facts, again;
    TryMatmul(*device, {.dtype = dtype, .size = 64, .repeats = 3}, &facts);
    TryMatmul(*device, {.dtype = dtype, .size = 64, .repeats = 3}, &again);
    EXPECT_EQ(facts.repeats, 3);
    EXPECT_EQ(facts.different, 0);
    EXPECT_GT(facts.flops, 0);
    EXPECT_EQ(facts.digest, again.digest);
    EXPECT_EQ(facts.error, "");
  }
  // What it computes depends on every number: products of other sizes have other digests.
  DeviceFacts other, usual;
  TryMatmul(*device, {.size = 65, .repeats = 1}, &other);
  TryMatmul(*device, {.size = 64, .repeats = 1}, &usual);
  EXPECT_NE(other.digest, usual.digest);
}

TEST(MatmulTrial, NoticesADeviceThatDoesNotRepeatItself) {
  const Rows rows = RowsOf(3, [&](Communicator& world, PreflightOptions* options) {
    static thread_local std::unique_ptr<Device> device;
    device = world.rank() == 1 ? std::unique_ptr<Device>(new ForgetfulDevice()) : MakeCpu();
    options->device = device.get();
  });
  const auto bad = NotOk(rows, "products repeat");
  ASSERT_EQ(bad.size(), 1u) << FormatPreflightTable(rows, {});
  EXPECT_EQ(bad[0].status, PreflightStatus::kFailed);
  EXPECT_EQ(bad[0].ranks, std::vector<int>{1});
  EXPECT_EQ(bad[0].hosts, std::vector<std::string>{"node2"});
  Has(bad[0].finding, "1 of 4 repeats");
  PreflightResult result{.ranks = {}, .rows = rows};
  const absl::Status status = PreflightStatusOf(result);
  EXPECT_EQ(ExitCodeOf(status), kExitHardware);
  EXPECT_EQ(SuspectHosts(status), std::vector<std::string>{"node2"});
  Has(std::string(status.message()), "rank 1 (node2)");
}

TEST(PreflightStatus, SaysWhatAStartAgainCouldMend) {
  const auto row = [](PreflightStatus status, int exit_code, const std::string& host) {
    return PreflightRow{.check = "a check", .status = status, .hosts = {host}, .exit_code = exit_code};
  };
  const auto status_of = [](const Rows& rows) { return PreflightStatusOf({.ranks = {}, .rows = rows}); };
  const PreflightRow bad_machine = row(PreflightStatus::kFailed, kExitHardware, "node2");
  const PreflightRow bad_disk = row(PreflightStatus::kFailed, kExitNotSaved, "node1");
  EXPECT_TRUE(status_of({row(PreflightStatus::kWarning, kExitHardware, "node2")}).ok());
  EXPECT_EQ(ExitCodeOf(status_of({bad_disk})), kExitNotSaved);
  EXPECT_EQ(ExitCodeOf(status_of({bad_disk, bad_machine})), kExitNotSaved);
  EXPECT_TRUE(SuspectHosts(status_of({bad_disk, bad_machine})).empty());
  EXPECT_EQ(ExitCodeOf(status_of({bad_machine, row(PreflightStatus::kFailed, kExitPreflight, "node3")})),
            kExitPreflight);
  EXPECT_EQ(SuspectHosts(status_of({bad_machine, row(PreflightStatus::kWarning, kExitPreflight, "node3")})),
            std::vector<std::string>{"node2"});
}

TEST(SumTrial, IsExactOnEveryAxisOfAMesh) {
  RunLocalRanks(8, [](Communicator& world) {
    const std::unique_ptr<Device> device = MakeCpu();
    const std::unique_ptr<BuiltMesh> mesh =
        BuildMesh(MeshSizes{.replicate = 2, .shard = 2, .tensor = 2}, world);
    const std::vector<ReduceFacts> facts = TrySums(mesh->mesh(), *device, {.num_elems = 5000, .repeats = 2});
    ASSERT_EQ(facts.size(), 8u);  // three axes and the world, in f32 and i64
    std::set<std::string> axes;
    for (const ReduceFacts& sum : facts) {
      axes.insert(sum.axis);
      EXPECT_EQ(sum.num_wrong, 0) << sum.axis << " " << sum.kind << ": " << sum.got << ", not "
                                  << sum.expected;
      EXPECT_EQ(sum.bytes > 0, sum.kind == "f32");
      EXPECT_EQ(std::count(sum.members.begin(), sum.members.end(), world.rank()), 1);
    }
    EXPECT_EQ(axes, (std::set<std::string>{"replicate", "shard", "tensor", "world"}));
  });
}

TEST(SumTrial, NamesTheRankThatGotAnotherSum) {
  const Rows rows = RowsOf(4, [](Communicator& world, PreflightOptions* options) {
    static thread_local std::unique_ptr<Device> device;
    static thread_local std::unique_ptr<FlippingCommunicator> faulty;
    static thread_local Mesh mesh;
    device = MakeCpu();
    faulty = std::make_unique<FlippingCommunicator>(world, 2);
    mesh = Mesh();
    mesh.world = {.size = 4, .index = world.rank(), .communicator = faulty.get()};
    options->device = device.get();
    options->mesh = &mesh;
  });
  const auto bad = NotOk(rows, "sums are exact");
  ASSERT_EQ(bad.size(), 1u) << FormatPreflightTable(rows, {});
  EXPECT_EQ(bad[0].status, PreflightStatus::kFailed);
  EXPECT_EQ(bad[0].ranks, std::vector<int>{2});
  Has(bad[0].finding,
      "over 'world' (ranks 0-3 (node1, node2, node3, node4)) arrived wrong; the first: element 777 is");
}

TEST(PairTrial, LetsEveryMachineMeetEveryOtherOnceAndOneAtATime) {
  for (int64_t size = 2; size <= 9; ++size) {
    std::set<std::pair<int64_t, int64_t>> met;
    for (int64_t round = 0; round < RoundsOf(size); ++round) {
      for (int64_t player = 0; player < size; ++player) {
        const int64_t partner = PartnerOf(player, round, size);
        if (partner < 0) continue;
        ASSERT_NE(partner, player);
        EXPECT_EQ(PartnerOf(partner, round, size), player) << size << " players, round " << round;
        met.insert({player, partner});
      }
    }
    EXPECT_EQ(static_cast<int64_t>(met.size()), size * (size - 1)) << size;
  }
  EXPECT_EQ(RoundsOf(1), 0);
}

TEST(PairTrial, ExchangesBetweenMachinesAndComparesWhatArrives) {
  RunLocalRanks(6, [](Communicator& world) {
    const std::unique_ptr<Device> device = MakeCpu();
    const Axis axis{.size = 6, .index = world.rank(), .communicator = &world};
    const bool first = world.rank() % 2 == 0;  // three machines with two ranks each
    int64_t ticks = 0;
    const std::vector<PairFacts> pairs =
        TryPairs(axis, *device, first, 10000, [&](int64_t done, int64_t rounds) { ticks += done <= rounds; });
    EXPECT_EQ(pairs.size(), first ? 2u : 0u);
    EXPECT_EQ(ticks, first ? 3 : 0);
    for (const PairFacts& pair : pairs) {
      EXPECT_EQ(pair.peer % 2, 0);
      EXPECT_NE(pair.peer, world.rank());
      EXPECT_EQ(pair.num_wrong, 0);
      EXPECT_GT(pair.seconds, 0);
    }
  });
}

TEST(ClockTrial, FindsTheMachineWhoseClockDiffers) {
  const Rows rows = RowsOf(3, [](Communicator& world, PreflightOptions* options) {
    const double ahead = world.rank() == 2 ? 2.5 : 0;
    options->unix_seconds = [ahead] {
      return ahead +
             std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
    };
  });
  const auto bad = NotOk(rows, "clocks");
  ASSERT_EQ(bad.size(), 1u) << FormatPreflightTable(rows, {});
  EXPECT_EQ(bad[0].ranks, std::vector<int>{2});
  Has(bad[0].finding, "s ahead of that of rank 0 (node1)");
}

TEST(StorageTrial, LeavesNothingBehind) {
  const TempDir dir;
  const std::string run_dir = dir.path() + "/new/run";
  RunLocalRanks(3, [&](Communicator& world) {
    const StorageFacts facts = TryStorage({.run_dir = run_dir, .write_bytes = 100000}, world);
    EXPECT_EQ(facts.error, "");
    EXPECT_EQ(facts.lock_error, "");
    EXPECT_EQ(facts.write_error, "");
    EXPECT_EQ(facts.write_bytes, 100000);
    EXPECT_GT(facts.write_seconds, 0);
    EXPECT_GT(facts.free_bytes, 0);
    EXPECT_NE(facts.file_system, "");
  });
  EXPECT_TRUE(std::filesystem::is_empty(dir.path())) << "the trial left a directory";
  // What was there stays, and counts.
  std::filesystem::create_directories(run_dir + "/checkpoints/step-000000001");
  std::ofstream(run_dir + "/checkpoints/step-000000001/file") << std::string(5000, 'x');
  RunLocalRanks(1, [&](Communicator& world) {
    EXPECT_EQ(TryStorage({.run_dir = run_dir, .write_bytes = 1}, world).existing_bytes, 5000);
  });
  int64_t num_files = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(run_dir))
    num_files += entry.is_regular_file();
  EXPECT_EQ(num_files, 1);
}

TEST(StorageTrial, DoesNotFillASmallDisk) {
  MemoryFileSystem files;
  files.SetFreeBytes(80000);
  RunLocalRanks(1, [&](Communicator& world) {
    EXPECT_EQ(TryStorage({.run_dir = "/run"}, world, &files).write_bytes, 10000);
    files.SetFreeBytes(7);
    const StorageFacts full = TryStorage({.run_dir = "/run"}, world, &files);
    EXPECT_EQ(full.write_bytes, 0);
    EXPECT_EQ(full.write_error, "");
    EXPECT_EQ(full.free_bytes, 7);
  });
}

TEST(StorageTrial, NamesARankThatSeesAnotherDirectory) {
  MemoryFileSystem shared, own;
  const Rows rows = RowsOf(3, [&](Communicator& world, PreflightOptions* options) {
    // Rank 1 has a disk of its own under the same name.
    options->run_dir = "/runs/a";
    options->files = world.rank() == 1 ? &own : &shared;
  });
  const auto bad = NotOk(rows, "directory");
  ASSERT_EQ(bad.size(), 1u) << FormatPreflightTable(rows, {});
  EXPECT_EQ(bad[0].status, PreflightStatus::kFailed);
  Has(bad[0].finding, "[rank 1]");
  for (MemoryFileSystem* files : {&shared, &own}) EXPECT_TRUE(files->ListDirectory("/")->empty());
}

TEST(StorageTrial, SaysWhyADirectoryCannotBeUsed) {
  const Rows rows =
      RowsOf(1, [&](Communicator&, PreflightOptions* options) { options->run_dir = "/proc/carousel"; });
  const auto bad = NotOk(rows, "directory");
  ASSERT_EQ(bad.size(), 1u) << FormatPreflightTable(rows, {});
  Has(bad[0].finding, "/proc/carousel");
  Has(bad[0].fix, "--run_dir");
}

TEST(TokenFiles, AreToldApartByTheirSizesAndSampledBlocks) {
  const TempDir dir;
  const auto write = [&](const std::string& name, size_t size, size_t changed) {
    std::string bytes(size, 'a');
    if (changed < size) bytes[changed] = 'b';
    std::ofstream(dir.path() + "/" + name, std::ios::binary) << bytes;
    return DigestFile(dir.path() + "/" + name);
  };
  const size_t kNowhere = SIZE_MAX;
  for (const size_t size : {size_t{0}, size_t{100}, size_t{70000}, size_t{1} << 20}) {
    EXPECT_EQ(write("a", size, kNowhere).digest, write("b", size, kNowhere).digest);
    EXPECT_EQ(write("a", size, kNowhere).bytes, static_cast<int64_t>(size));
    if (size == 0) continue;
    EXPECT_NE(write("a", size, kNowhere).digest, write("b", size, 0).digest);
    EXPECT_NE(write("a", size, kNowhere).digest, write("b", size, size - 1).digest) << size;
    EXPECT_NE(write("a", size, kNowhere).digest, write("b", size + 1, kNowhere).digest);
  }
  Has(DigestFile(dir.path() + "/nowhere").error, "nowhere");
}

TEST(Preflight, NamesARankWhoseLimitsOrTokensDiffer) {
  const TempDir dir;
  for (const char* name : {"/x.bin", "/x.idx", "/y.bin", "/y.idx"}) std::ofstream(dir.path() + name) << name;
  const Rows rows = RowsOf(4, [&](Communicator& world, PreflightOptions* options) {
    options->token_files = {dir.path() + (world.rank() == 3 ? "/y" : "/x")};
    options->alter = [&world](RankFacts* facts) {
      facts->machine.open_files = world.rank() == 1 ? 32 : 1 << 16;
      facts->machine.cpu = world.rank() == 2 ? "Old CPU" : "New CPU";
    };
  });
  ASSERT_EQ(NotOk(rows, "open files").size(), 1u);
  EXPECT_EQ(NotOk(rows, "open files")[0].hosts, std::vector<std::string>{"node2"});
  ASSERT_EQ(NotOk(rows, "token files").size(), 1u);
  EXPECT_EQ(NotOk(rows, "token files")[0].ranks, std::vector<int>{3});
  ASSERT_EQ(NotOk(rows, "processor").size(), 1u);
  EXPECT_EQ(NotOk(rows, "processor")[0].ranks, std::vector<int>{2});
}

TEST(Preflight, TakesAFractionOfASecondForASmallRun) {
  const TempDir dir;
  const std::unique_ptr<Device> device = MakeCpu();
  // The fastest of three: other programs may run beside this test.
  double fastest = 1e9;
  for (int i = 0; i < 3; ++i) {
    fastest =
        std::min(fastest, RunPreflight({.device = device.get(), .run_dir = dir.path() + "/run"}).seconds);
  }
  EXPECT_LT(fastest, 1.0);
}

// Files of a machine that a test makes up.
TEST(ReadMachine, KnowsTheLowestLimitOfTheControlGroups) {
  const TempDir dir;
  const SystemPaths paths{.proc = dir.path() + "/proc", .sys = dir.path() + "/sys", .shm = dir.path()};
  const auto write = [&](const std::string& path, const std::string& text) {
    std::filesystem::create_directories(std::filesystem::path(dir.path() + path).parent_path());
    std::ofstream(dir.path() + path) << text;
  };
  EXPECT_EQ(ReadCgroupMemory(paths).limit_bytes, -1) << "no control groups at all";
  write("/proc/self/cgroup", "0::/slice/job\n");
  write("/sys/fs/cgroup/slice/job/memory.max", "max\n");
  EXPECT_EQ(ReadCgroupMemory(paths).limit_bytes, -1);
  write("/sys/fs/cgroup/slice/memory.max", "1000000\n");
  write("/sys/fs/cgroup/slice/memory.current", "500\n");
  EXPECT_EQ(ReadCgroupMemory(paths).limit_bytes, 1000000) << "a limit holds for all groups below";
  EXPECT_EQ(ReadCgroupMemory(paths).used_bytes, 500);
  write("/proc/self/cgroup", "4:cpu,memory:/docker/x\n0::/\n");
  write("/sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes", "2000\n");
  EXPECT_EQ(ReadCgroupMemory(paths).limit_bytes, 2000);
  write("/sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes", "9223372036854771712\n");
  EXPECT_EQ(ReadCgroupMemory(paths).limit_bytes, -1) << "version 1's way to say that there is none";
  write("/proc/self/cgroup", "0::/../..\n::\ngarbage\n");
  EXPECT_EQ(ReadCgroupMemory(paths).limit_bytes, -1);
}

TEST(ReadMachine, CountsCoresOnce) {
  const TempDir dir;
  const SystemPaths paths{.proc = dir.path(), .sys = dir.path(), .shm = dir.path()};
  for (int cpu = 0; cpu < 4; ++cpu) {
    const std::string topology = dir.path() + "/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology";
    std::filesystem::create_directories(topology);
    std::ofstream(topology + "/thread_siblings_list") << (cpu % 2 == 0 ? "0,2\n" : "1,3\n");
  }
  EXPECT_EQ(OnePerCore({0, 1, 2, 3}, paths), (std::vector<int64_t>{0, 1}));
  EXPECT_EQ(OnePerCore({2, 3}, paths), (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(OnePerCore({7}, paths), (std::vector<int64_t>{7})) << "a machine that does not say";
  EXPECT_EQ(
      MeminfoBytes("MemTotal:       16 kB\nMemAvailable:\t5 kB\nHugePages_Total:   7\n", "MemAvailable"),
      5 * 1024);
  EXPECT_EQ(MeminfoBytes("MemTotal:       16 kB\n", "MemFree"), -1);
  EXPECT_EQ(MeminfoBytes("HugePages_Total:   7\n", "HugePages_Total"), 7);
}

TEST(ReadMachine, ReadsThisOne) {
  const MachineFacts facts = ReadMachineFacts();
  EXPECT_GT(facts.memory_bytes, 0);
  EXPECT_FALSE(facts.cores.empty());
  EXPECT_GT(facts.open_files, 0);
  EXPECT_FALSE(facts.interfaces.empty());
  EXPECT_NE(facts.simd, "");
}
}  // namespace
}  // namespace carousel
