// The library of NVIDIA's driver as the preflight loads and judges it, against one that describes made-up
// GPUs.
#include "launcher/preflight/nvml_library.h"

#include <dlfcn.h>
#include <gtest/gtest.h>

#include "launcher/preflight/preflight.h"
#include "tests/fake_nvml.h"

namespace carousel {
namespace {

class Nvml : public testing::Test {
 protected:
  Nvml() : library_(dlopen(CAROUSEL_FAKE_NVML, RTLD_NOW)) {
    CAROUSEL_CHECK_MSG(library_ != nullptr, dlerror());
    machine_ = reinterpret_cast<FakeMachine* (*)()>(dlsym(library_, "fake_nvml_machine"))();
    *machine_ = FakeMachine();
    for (int i = 0; i < 4; ++i) machine_->gpus.push_back({.uuid = "GPU-" + std::to_string(i)});
  }
  ~Nvml() override {
    EXPECT_EQ(machine_->starts, machine_->ends) << "NVML was started and not ended";
    EXPECT_EQ(machine_->event_sets, 0);
    dlclose(library_);
  }

  // The rows of a preflight of a rank on device cuda:1 of this machine, without a GPU to compute on.
  Rows RowsHere(PreflightNeeds needs = {.device = "cuda:1"}) {
    RankFacts self{.host = "node1"};
    needs.ranks_may_share_gpu = false;
    const PreflightResult result =
        RunPreflight({.self = self,
                      .needs = needs,
                      .ask_gpus = true,
                      .nvml_file = CAROUSEL_FAKE_NVML,
                      .alter = [](RankFacts* facts) { facts->device.uuid = "GPU-1"; }});
    return result.rows;
  }
  static PreflightRow Row(const Rows& rows, const std::string& check) {
    for (const PreflightRow& row : rows) {
      if (row.check == check) return row;
    }
    ADD_FAILURE() << "no row " << check;
    return {};
  }
  void Expect(const std::string& check, PreflightStatus status, const std::string& finding) {
    const PreflightRow row = Row(RowsHere(), check);
    EXPECT_EQ(NameOf(row.status), std::string(NameOf(status))) << row.finding;
    EXPECT_NE(row.finding.find(finding), std::string::npos) << row.finding;
    if (status == PreflightStatus::kFailed || status == PreflightStatus::kWarning) {
      EXPECT_FALSE(row.fix.empty()) << check;
    }
  }

  void* library_;
  FakeMachine* machine_;
};

TEST_F(Nvml, DescribesEveryGpuInALine) {
  machine_->gpus[2].temperature = 77;
  const absl::StatusOr<std::unique_ptr<NvmlLibrary>> nvml = NvmlLibrary::Open(CAROUSEL_FAKE_NVML);
  ASSERT_TRUE(nvml.ok()) << nvml.status();
  std::vector<GpuFacts> gpus = (*nvml)->Gpus();
  gpus[1].error = "GPU is lost";
  gpus[3].throttle_reasons = static_cast<int64_t>(nvml::kThrottlePowerBrake);
  const std::string text = DescribeGpus(gpus);
  for (const std::string part :
       {"GPU 2 (GPU-2): ", " of 80.0 GiB in use, ", ", 77 C, ", ": does not answer: GPU is lost\n",
        "slowed down: power brake of the power supply\n"}) {
    EXPECT_NE(text.find(part), std::string::npos) << part << " in " << text;
  }
  EXPECT_EQ(DescribeGpus({}), "");
}

TEST_F(Nvml, ReadsEveryGpu) {
  machine_->gpus[2].temperature = 77;
  const absl::StatusOr<std::unique_ptr<NvmlLibrary>> nvml = NvmlLibrary::Open(CAROUSEL_FAKE_NVML);
  ASSERT_TRUE(nvml.ok()) << nvml.status();
  EXPECT_EQ((*nvml)->driver_version(), "550.54.15");
  EXPECT_EQ((*nvml)->cuda_driver_version(), "12.4");
  const std::vector<GpuFacts> gpus = (*nvml)->Gpus();
  ASSERT_EQ(gpus.size(), 4u);
  EXPECT_EQ(gpus[2].name, "NVIDIA H100 80GB HBM3");
  EXPECT_EQ(gpus[2].uuid, "GPU-2");
  EXPECT_EQ(gpus[2].bus_id, "00000000:03:00.0");
  EXPECT_EQ(gpus[2].memory_total_bytes, int64_t{80} << 30);
  EXPECT_EQ(gpus[2].temperature_c, 77);
  EXPECT_EQ(gpus[2].power_limit_mw, 700000);
  EXPECT_EQ(gpus[2].persistence, -1) << "what is not supported is not known";
}

TEST_F(Nvml, FindsNothingWrongWithAHealthyMachine) {
  const Rows rows = RowsHere();
  for (const char* check : {"GPUs", "a GPU each", "GPU memory (ECC)", "GPU row remapping", "GPU throttling",
                            "GPU clocks and power", "GPU link (PCIe)", "GPU errors (XID)"}) {
    EXPECT_EQ(NameOf(Row(rows, check).status), std::string("ok"))
        << check << ": " << Row(rows, check).finding;
  }
  EXPECT_EQ(Row(rows, "GPUs").finding, "4 x NVIDIA H100 80GB HBM3, driver 550.54.15 for CUDA 12.4");
}

TEST_F(Nvml, NamesEverythingThatCanBeWrongWithAGpu) {
  const FakeGpu healthy = machine_->gpus[1];
  FakeGpu& gpu = machine_->gpus[1];
  const auto fresh = [&] { gpu = healthy; };
  gpu.uncorrected = 3;
  Expect("GPU memory (ECC)", PreflightStatus::kFailed, "GPU 1 (GPU-1): 3 uncorrected memory errors");
  fresh(), gpu.ecc_enabled = 0;
  Expect("GPU memory (ECC)", PreflightStatus::kWarning, "switched off");
  fresh(), gpu.corrected = 5000;
  Expect("GPU memory (ECC)", PreflightStatus::kWarning, "5000 corrected");
  fresh(), gpu.uncorrected_ever = 2;
  Expect("GPU memory (ECC)", PreflightStatus::kNote, "2 uncorrected memory errors in its life");
  fresh(), gpu.remap_failed = 1;
  Expect("GPU row remapping", PreflightStatus::kFailed, "could not be replaced");
  fresh(), gpu.remap_pending = 1;
  Expect("GPU row remapping", PreflightStatus::kWarning, "waits to be replaced");
  fresh(), gpu.remapped = 2;
  Expect("GPU row remapping", PreflightStatus::kNote, "2 rows");
  fresh(), gpu.throttle = nvml::kThrottleHardwareThermal | nvml::kThrottleIdle, gpu.sm_mhz = 600,
           gpu.temperature = 91;
  Expect("GPU throttling", PreflightStatus::kWarning, "temperature (hardware), 600 of 1980 MHz, 91 C");
  Expect("GPU clocks and power", PreflightStatus::kWarning, "91 C");
  fresh(), gpu.throttle = nvml::kThrottlePowerCap;
  Expect("GPU throttling", PreflightStatus::kNote, "power cap");
  fresh(), gpu.throttle = nvml::kThrottleIdle;
  Expect("GPU throttling", PreflightStatus::kOk, "none");
  fresh(), gpu.power_limit_mw = 400000;
  Expect("GPU clocks and power", PreflightStatus::kWarning, "limited to 400 W, as delivered 700 W");
  fresh(), gpu.pcie_width = 4;
  Expect("GPU link (PCIe)", PreflightStatus::kWarning, "4 of 16 lanes");
  fresh(), gpu.num_processes = 3;
  Expect("a GPU each", PreflightStatus::kWarning, "2 other processes compute on it");
  fresh(), machine_->xids = {{1, 79}};
  Expect("GPU errors (XID)", PreflightStatus::kFailed, "XID 79");
  machine_->gpus[3].lost = 15;
  Expect("GPUs", PreflightStatus::kFailed, "GPU 3 does not answer: GPU is lost");
}

TEST_F(Nvml, DoesNotJudgeTheGpusOfOthers) {
  machine_->gpus[0].uncorrected = 1;
  machine_->gpus[2].remap_failed = 1;
  Expect("GPU memory (ECC)", PreflightStatus::kOk, "no uncorrected errors");
  Expect("GPU row remapping", PreflightStatus::kOk, "nothing pending");
}

TEST_F(Nvml, SaysWhyItCannotBeAsked) {
  machine_->init_result = 9;
  const absl::Status no_driver = NvmlLibrary::Open(CAROUSEL_FAKE_NVML).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(no_driver));
  EXPECT_NE(no_driver.message().find("Driver Not Loaded"), std::string::npos) << no_driver;
  machine_->ends = machine_->starts;  // what did not start needs no end
  EXPECT_TRUE(absl::IsNotFound(NvmlLibrary::Open("libno-such-nvml.so").status()));
  // A library of another kind.
  const absl::Status other = NvmlLibrary::Open("libc.so.6").status();
  EXPECT_NE(other.message().find("has no nvmlInit_v2"), std::string::npos) << other;
}

TEST_F(Nvml, AMissingLibraryIsNoFailureOnACpuAndAWarningOnGpus) {
  const auto rows = [](const std::string& device) {
    return RunPreflight({.needs = {.device = device}, .ask_gpus = true, .nvml_file = "libno-such-nvml.so"})
        .rows;
  };
  const PreflightRow cpu = Row(rows("cpu"), "GPUs"), cuda = Row(rows("cuda"), "GPUs");
  EXPECT_EQ(NameOf(cpu.status), std::string("skipped"));
  EXPECT_NE(cpu.finding.find("libno-such-nvml.so"), std::string::npos) << cpu.finding;
  EXPECT_EQ(NameOf(cuda.status), std::string("warning"));
}

TEST(VisibleGpu, FollowsTheVariablesOfTheRuntime) {
  std::vector<GpuFacts> gpus;
  for (int i = 0; i < 4; ++i)
    gpus.push_back({.index = i, .name = "A", .uuid = "GPU-" + std::to_string(i) + "f"});
  const auto index = [&](int64_t ordinal, const std::string& visible, const std::string& order = "") {
    const GpuFacts* gpu = VisibleGpu(gpus, ordinal, visible, order);
    return gpu == nullptr ? -1 : gpu->index;
  };
  EXPECT_EQ(index(2, ""), 2);
  EXPECT_EQ(index(4, ""), -1);
  EXPECT_EQ(index(0, "3,1"), 3);
  EXPECT_EQ(index(1, "3,1"), 1);
  EXPECT_EQ(index(2, "3,1"), -1);
  EXPECT_EQ(index(0, "GPU-2"), 2);
  EXPECT_EQ(index(1, "0,9,2"), -1) << "the list ends at what is not there";
  // The runtime puts the fastest first where models differ, and we cannot know which that is.
  gpus[3].name = "B";
  EXPECT_EQ(index(0, "3,1"), -1);
  EXPECT_EQ(index(0, "3,1", "PCI_BUS_ID"), 3);
  EXPECT_EQ(index(0, "GPU-3f"), 3);
}
}  // namespace
}  // namespace carousel
