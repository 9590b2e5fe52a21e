// Every synchronisation of every kernel is needed, and the checker sees when it is missing: each op runs once
// to list its synchronisations (their places in the source), then once more for each of them with that one
// removed. The kernels' sources are not changed. Further planted bugs: arguments that claim too much memory,
// outputs that are not written, a missing event.
#include <gtest/gtest-spi.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "core/base/exact_sum.h"
#include "core/base/value_stats.h"
#include "kernels/simt/emulator.h"
#include "kernels/simt/fake_cudart.h"
#include "tests/device_copy.h"
#include "tests/device_mlstm_testing.h"
#include "tests/device_testing.h"
#include "tests/mlstm_summary_testing.h"
#include "tests/op_call.h"
#include "tests/op_cases.h"
#include "tests/op_cases_block_linear.h"
#include "tests/op_cases_conv.h"
#include "tests/op_cases_elementwise.h"
#include "tests/op_cases_loss.h"
#include "tests/op_cases_matmul.h"
#include "tests/op_cases_norm.h"

namespace carousel::testing {
namespace {

std::string first_report;  // of the emulation, since it was cleared

cudaError_t RunAndKeepReport(const gpu::LaunchCfg& config, emulator::Thunk thunk,
                             std::shared_ptr<void> pack) {
  try {
    emulator::run_grid(config, thunk, pack.get());
  } catch (const emulator::KernelError& error) {
    if (first_report.empty()) first_report = error.what();
  }
  return cudaSuccess;
}
// Work runs when it is enqueued, and a kernel's error is kept here instead of ending the process.
class KeepReports {
 public:
  KeepReports()
      : submit_(std::exchange(emulator::submit, RunAndKeepReport)), options_(fake_cuda::GetOptions()) {
    fake_cuda::Options eager = options_;
    eager.eager = true;
    fake_cuda::SetOptions(eager);
    emulator::options().name_lines = false;  // nobody reads them here
  }
  ~KeepReports() {
    emulator::options().name_lines = true;
    emulator::submit = submit_;
    fake_cuda::SetOptions(options_);
  }

 private:
  const emulator::SubmitFn submit_;
  const fake_cuda::Options options_;
};

struct OpRun {
  std::string name;
  std::function<void(Device&)> call;
};
// The emulation's report of one run, or "". What the run's own expectations say is not asked.
std::string ReportOf(Device& device, const OpRun& run) {
  first_report.clear();
  ::testing::TestPartResultArray ignored;
  ::testing::ScopedFakeTestPartResultReporter reporter(
      ::testing::ScopedFakeTestPartResultReporter::INTERCEPT_ONLY_CURRENT_THREAD, &ignored);
  run.call(device);
  return first_report;
}

std::string NameOf(const emulator::Site& site) {
  return site.file.substr(site.file.rfind('/') + 1) + ":" + std::to_string(site.line) + " " + site.kind +
         " in " + site.kernel;
}
// A place in the source counts once for each kind: once however many kernels run it, or once for each.
enum class Count { kPlaces, kPlacesOfKernels };
using Place = std::tuple<std::string, unsigned, std::string, std::string>;

// Removes every synchronisation that the runs execute, and expects a report from some run each time.
// `expected` names kinds of which at least so many places must have been found: a test that finds none would
// hold for nothing.
void ExpectEverySynchronisationIsNeeded(const std::vector<OpRun>& runs,
                                        const std::map<std::string, size_t>& expected,
                                        Count count = Count::kPlaces) {
  const auto place_of = [count](const emulator::Site& site) -> Place {
    return {site.file, site.line, site.kind, count == Count::kPlaces ? "" : site.kernel};
  };
  const std::unique_ptr<Device> device = MakeTestDevice();
  const KeepReports keep;
  std::vector<std::vector<emulator::Site>> sites(runs.size());
  std::vector<emulator::Site> all;
  for (size_t r = 0; r < runs.size(); ++r) {
    emulator::RecordSites();
    ASSERT_EQ(ReportOf(*device, runs[r]), "") << runs[r].name << " is not clean";
    sites[r] = emulator::ListSites();
    for (const emulator::Site& site : sites[r]) {
      if (std::find(all.begin(), all.end(), site) == all.end()) all.push_back(site);
    }
  }
  std::set<Place> reported, missed;
  std::map<std::string, std::set<Place>> found;
  for (const emulator::Site& site : all) {
    found[site.kind].insert(place_of(site));
    if (reported.count(place_of(site))) continue;
    emulator::RemoveSite(site);
    for (size_t r = 0; r < runs.size() && !reported.count(place_of(site)); ++r) {
      if (std::find(sites[r].begin(), sites[r].end(), site) == sites[r].end()) continue;
      if (!ReportOf(*device, runs[r]).empty()) reported.insert(place_of(site));
    }
    emulator::RestoreSites();
  }
  for (const emulator::Site& site : all) {
    if (reported.count(place_of(site)) || !missed.insert(place_of(site)).second) continue;
    ADD_FAILURE() << NameOf(site) << ": its removal is not reported";
  }
  for (const auto& [kind, at_least] : expected) EXPECT_GE(found[kind].size(), at_least) << kind;
}

// The op cases, small ones, in bf16 and f32.
std::vector<OpRun> RunsOf(void (*append)(std::vector<OpCase>&)) {
  static std::vector<std::unique_ptr<OpCase>>& kept = *new std::vector<std::unique_ptr<OpCase>>;
  std::vector<OpCase> cases;
  append(cases);
  std::vector<std::pair<int64_t, OpRun>> sized;
  for (const OpCase& op_case : cases) {
    int64_t elems = 0;
    for (const TensorSpec& spec : op_case.tensors) {
      int64_t n = 1;
      for (int64_t d : spec.dims) n *= d;
      elems += n;
    }
    if (elems > 40000) continue;
    kept.push_back(std::make_unique<OpCase>(op_case));
    const OpCase* c = kept.back().get();
    for (const DType compute : {DType::kBF16, DType::kF32}) {
      sized.push_back(
          {elems, {op_case.name, [c, compute](Device& device) { OpCall(*c, compute).RunOn(device); }}});
    }
  }
  std::stable_sort(sized.begin(), sized.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<OpRun> runs;
  for (auto& [elems, run] : sized) runs.push_back(std::move(run));
  return runs;
}

void Append(std::vector<OpRun>& to, std::vector<OpRun> runs) {
  for (OpRun& run : runs) to.push_back(std::move(run));
}

// Sums over enough elements for several blocks of several warps.
OpRun ExactSumsRun() {
  return {"exact sums", [](Device& device) {
            std::vector<float> values(20000);
            for (size_t i = 0; i < values.size(); ++i) {
              values[i] = static_cast<float>(RandomUniform(4, 0, i) - 0.5);
            }
            const DeviceCopy<float> x(device, values);
            const DeviceCopy<int64_t> sum(device, std::vector<int64_t>(kExactSumElems, 0));
            device.ops().SquaredNorm({.sum = sum.t(), .x = x.t()});
            device.ops().SumExactly({.sum = sum.t(), .x = x.t()});
            const DeviceCopy<int64_t> stats(device, std::vector<int64_t>(kValueSumElems, 0));
            device.ops().TensorStats({.stats = stats.t(), .x = x.t().Reshape({100, 200})});
            device.Synchronize();
          }};
}

TEST(PlantedBugs, EverySynchronisationOfTheSimpleOpsIsNeeded) {
  std::vector<OpRun> runs = {ExactSumsRun()};
  for (const auto append : {AppendNormCases, AppendElementwiseCases, AppendLossCases, AppendMatmulCases,
                            AppendConvCases, AppendBlockLinearCases}) {
    Append(runs, RunsOf(append));
  }
  ExpectEverySynchronisationIsNeeded(runs, {{"__syncthreads", 11}});
}

// ---- the recurrent cells
template <class T>
OpRun MlstmRun(MlstmShape shape, bool with_states, bool last_in_place = false) {
  mlstm_test::Problem p = mlstm_test::RandomProblem(shape, 5);
  p.reset.assign(static_cast<size_t>(p.N()), 0);
  p.reset[static_cast<size_t>(p.N()) / 2] = 1;
  if (with_states) {
    mlstm_test::AddInitialState(p, 6);
    mlstm_test::AddLastGradient(p, 7);
  }
  return {"mLSTM", [p, last_in_place](Device& device) {
            mlstm_test::RunOn<T>(device, p, {.last_in_place = last_in_place, .aligned = true});
          }};
}
// By the kernels for every architecture.
OpRun PortableMlstmRun(const MlstmShape& shape) {
  return {"portable mLSTM", [run = MlstmRun<bfloat16>(shape, true)](Device&) {
            run.call(*MakeTestDevice(GpuKernels::kPortable));
          }};
}
// In another order of the threads. The checker takes a fence of the asynchronous proxy for one where the
// writer has passed any since; so a group must be seen to read before the writers get on to their next fence.
OpRun InOrder(emulator::Order order, const OpRun& run) {
  return {run.name, [order, run](Device& device) {
            const emulator::Order before = std::exchange(emulator::options().order, order);
            run.call(device);
            emulator::options().order = before;
          }};
}
// Two segments of the sequence: summaries, folds and the cell on each.
template <class T>
OpRun MlstmSegmentsRun(const MlstmShape& shape) {
  const mlstm_test::Problem p = mlstm_test::RandomProblem(shape, 5);
  return {"mLSTM segments", [p](Device& device) {
            mlstm_test::RunSegments<T>(device, p, mlstm_test::EqualSegments(p.shape.T, 2), /*aligned=*/true);
          }};
}
TEST(PlantedBugs, EverySynchronisationOfTheMlstmIsNeeded) {
  std::vector<OpRun> runs = {
      MlstmRun<float>({.B = 1, .T = 70, .NH = 1, .DHQK = 8, .DHV = 16, .L = 64}, false),
      MlstmRun<float>({.B = 1, .T = 130, .NH = 1, .DHQK = 24, .DHV = 40, .L = 64}, true, true),
      MlstmRun<float>({.B = 1, .T = 70, .NH = 1, .DHQK = 80, .DHV = 72, .L = 64}, true),
      MlstmRun<float>({.B = 2, .T = 1, .NH = 2, .DHQK = 24, .DHV = 40, .L = 64}, true, true),
      MlstmRun<bfloat16>({.B = 1, .T = 130, .NH = 1, .DHQK = 64, .DHV = 64, .L = 64}, true),
      // long enough to be split into segments, whose states are combined
      MlstmRun<bfloat16>({.B = 1, .T = 530, .NH = 1, .DHQK = 64, .DHV = 64, .L = 64}, true),
      // two groups with a half of the rows, and the one for dv
      MlstmRun<bfloat16>({.B = 1, .T = 200, .NH = 1, .DHQK = 128, .DHV = 128, .L = 64}, true),
      InOrder(emulator::Order::kFifo,
              MlstmRun<bfloat16>({.B = 1, .T = 130, .NH = 1, .DHQK = 64, .DHV = 64, .L = 64}, true)),
      InOrder(emulator::Order::kRandom,
              MlstmRun<bfloat16>({.B = 1, .T = 130, .NH = 1, .DHQK = 64, .DHV = 64, .L = 64}, true)),
      PortableMlstmRun({.B = 1, .T = 130, .NH = 1, .DHQK = 128, .DHV = 128, .L = 64}),
      PortableMlstmRun({.B = 1, .T = 70, .NH = 1, .DHQK = 192, .DHV = 384, .L = 64}),
      // more steps than the copies of a cluster have stages
      MlstmRun<bfloat16>({.B = 1, .T = 290, .NH = 1, .DHQK = 128, .DHV = 256, .L = 64}, true),
      MlstmRun<bfloat16>({.B = 1, .T = 200, .NH = 1, .DHQK = 256, .DHV = 256, .L = 64}, true),
      // and with column groups
      MlstmRun<bfloat16>({.B = 1, .T = 140, .NH = 1, .DHQK = 192, .DHV = 384, .L = 64}, true),
      MlstmRun<bfloat16>({.B = 1, .T = 140, .NH = 1, .DHQK = 384, .DHV = 384, .L = 64}, true),
      // heads that are cut into blocks
      PortableMlstmRun({.B = 1, .T = 70, .NH = 1, .DHQK = 256, .DHV = 768, .L = 64}),
      MlstmRun<bfloat16>({.B = 1, .T = 200, .NH = 1, .DHQK = 768, .DHV = 256, .L = 64}, true),
      MlstmRun<bfloat16>({.B = 1, .T = 100, .NH = 1, .DHQK = 384, .DHV = 768, .L = 64}, true),
      MlstmSegmentsRun<float>({.B = 1, .T = 80, .NH = 1, .DHQK = 80, .DHV = 72, .L = 64}),
      MlstmSegmentsRun<bfloat16>({.B = 1, .T = 140, .NH = 1, .DHQK = 64, .DHV = 64, .L = 64})};
  Append(runs, RunsOf(AppendLossCases));  // the first barrier of BlockReduce: two reductions in one kernel
  ExpectEverySynchronisationIsNeeded(runs, {{"__syncthreads", 12}, {"cp_async_wait", 2}, {"__syncwarp", 3}});
}

template <class T>
OpRun SlstmRun(const SlstmShape& shape) {
  return {"sLSTM", [shape](Device& device) {
            using W = std::conditional_t<std::is_same_v<T, double>, double, float>;
            const int64_t N = shape.B * shape.T, width = shape.NH * shape.D;
            const auto random = [](int64_t n, uint64_t stream) {
              std::vector<double> x(static_cast<size_t>(n));
              for (size_t e = 0; e < x.size(); ++e) x[e] = RandomUniform(3, stream, e) - 0.5;
              return x;
            };
            const auto narrow = [&]<class V>(V, int64_t n, uint64_t stream) {
              std::vector<V> values;
              for (double x : random(n, stream)) values.push_back(static_cast<V>(static_cast<float>(x)));
              return values;
            };
            const DeviceCopy<W> wx(device, narrow(W(), N * 4 * width, 0)),
                bias(device, narrow(W(), 4 * width, 1)), gates(device, narrow(W(), N * 4 * width, 2)),
                c(device, narrow(W(), N * width, 3)), n(device, narrow(W(), N * width, 4)),
                m(device, narrow(W(), N * width, 5)), state(device, narrow(W(), shape.B * width, 12)),
                dR(device, narrow(W(), 4 * width * shape.D, 6)), db(device, narrow(W(), 4 * width, 7));
            const DeviceCopy<T> R(device, narrow(T(0.0f), 4 * width * shape.D, 8)),
                y(device, narrow(T(0.0f), N * width, 9)), dy(device, narrow(T(0.0f), N * width, 10)),
                dwx(device, narrow(T(0.0f), N * 4 * width, 11));
            const Tensor one = state.t({shape.B, width});
            const SlstmState initial = {one, one, one, one};
            std::vector<uint8_t> document_starts(static_cast<size_t>(N), 0);
            document_starts[static_cast<size_t>(N) / 2] = 1;
            const DeviceCopy<uint8_t> reset(device, document_starts);
            const std::vector<uint8_t> room(
                static_cast<size_t>(device.ops().SlstmWorkspaceBytes(shape, DTypeOf<T>::value)), 0xff);
            const DeviceCopy<uint8_t> workspace(device, room);
            device.ops().SlstmForward({.y = y.t({N, width}),
                                       .gates = gates.t({N, 4 * width}),
                                       .c = c.t({N, width}),
                                       .n = n.t({N, width}),
                                       .m = m.t({N, width}),
                                       .wx = wx.t({N, 4 * width}),
                                       .recurrent = R.t({4 * width, shape.D}),
                                       .bias = bias.t(),
                                       .reset = reset.t(),
                                       .initial = initial,
                                       .workspace = workspace.t(),
                                       .shape = shape});
            device.ops().SlstmBackward({.dwx = dwx.t({N, 4 * width}),
                                        .drecurrent = dR.t({4 * width, shape.D}),
                                        .dbias = db.t(),
                                        .dy = dy.t({N, width}),
                                        .y = y.t({N, width}),
                                        .gates = gates.t({N, 4 * width}),
                                        .c = c.t({N, width}),
                                        .n = n.t({N, width}),
                                        .m = m.t({N, width}),
                                        .recurrent = R.t({4 * width, shape.D}),
                                        .reset = reset.t(),
                                        .initial = initial,
                                        .workspace = workspace.t(),
                                        .shape = shape});
          }};
}
TEST(PlantedBugs, EverySynchronisationOfTheSlstmIsNeeded) {
  // Tensor cores with a head in one block and spread over a cluster, plain arithmetic, token by token.
  ExpectEverySynchronisationIsNeeded({SlstmRun<bfloat16>({.B = 3, .T = 4, .NH = 1, .D = 32}),
                                      SlstmRun<bfloat16>({.B = 2, .T = 5, .NH = 1, .D = 192}),
                                      SlstmRun<float>({.B = 3, .T = 4, .NH = 2, .D = 24}),
                                      SlstmRun<float>({.B = 2, .T = 3, .NH = 1, .D = 260})},
                                     {{"__syncthreads", 8},
                                      {"__syncwarp", 1},
                                      {"cluster_sync", 2},
                                      {"fence_mbar_init", 2},
                                      {"mbar_arrive", 4},
                                      {"mbar_expect_tx", 4},
                                      {"mbar_wait", 2}},
                                     Count::kPlacesOfKernels);
}

// ---- other bugs
TEST(PlantedBugs, ARowMoreThanWasAllocatedIsReported) {
  const std::unique_ptr<Device> device = MakeTestDevice();
  const KeepReports keep;
  const DeviceCopy<float> x(*device, std::vector<float>(5 * 64, 1.0f)),
      y(*device, std::vector<float>(5 * 64)), rstd(*device, std::vector<float>(6)),
      weight(*device, std::vector<float>(64, 1.0f));
  for (const int64_t rows : {5, 6}) {
    first_report.clear();
    Tensor claimed_x = x.t({5, 64}), claimed_y = y.t({5, 64});
    claimed_x.dim[0] = claimed_y.dim[0] = rows;
    device->ops().RmsNormForward({.y = claimed_y,
                                  .rstd = Tensor(rstd.t().data, DType::kF32, {rows}),
                                  .x = claimed_x,
                                  .weight = weight.t(),
                                  .eps = 1e-6});
    if (rows == 5) {
      EXPECT_EQ(first_report, "");
    } else {
      EXPECT_NE(first_report.find("out-of-bounds read"), std::string::npos) << first_report;
    }
  }
}

// A kernel that leaves out a part of its output: NaN stays there. The op cases start every output as NaN.
TEST(PlantedBugs, OutputsThatAreNotWrittenAreNan) {
  const std::unique_ptr<Device> device = MakeTestDevice();
  const KeepReports keep;
  constexpr int64_t kRows = 300, kWidth = 64;
  const DeviceCopy<float> x(*device, std::vector<float>(kRows * kWidth, 1.0f)),
      weight(*device, std::vector<float>(kWidth, 1.0f)), rstd(*device, std::vector<float>(kRows));
  for (const int64_t only_block : {-1, 0}) {
    const DeviceCopy<float> y(*device, std::vector<float>(kRows * kWidth, std::nanf("")));
    emulator::options().only_block = only_block;
    device->ops().RmsNormForward({.y = y.t({kRows, kWidth}),
                                  .rstd = rstd.t(),
                                  .x = x.t({kRows, kWidth}),
                                  .weight = weight.t(),
                                  .eps = 1e-6});
    emulator::options().only_block = -1;
    int64_t missing = 0;
    for (const float value : y.Get()) missing += std::isnan(value);
    if (only_block < 0) {
      EXPECT_EQ(missing, 0);
    } else {
      EXPECT_GT(missing, 0);
    }
  }
}
}  // namespace
}  // namespace carousel::testing
