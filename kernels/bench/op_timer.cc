#include "kernels/bench/op_timer.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>

#include "core/base/random.h"

namespace carousel {
namespace {
constexpr int64_t kNumNormals = 1 << 16;  // drawn once, then repeated
constexpr double kGroupSeconds = 2e-3;

double Seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}
double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}
}  // namespace

OpTimer::OpTimer(Device& device, const OpBenchShape& shape, int64_t repeats)
    : device_(device), shape_(shape), repeats_(std::max<int64_t>(repeats, 1)) {
  for (int64_t i = 0; i < kNumNormals; ++i) {
    normals_.push_back(static_cast<float>(RandomNormal(1, 0, static_cast<uint64_t>(i))));
  }
}
OpTimer::~OpTimer() { FreeAll(); }

void OpTimer::FreeAll() {
  device_.Synchronize();
  for (void* memory : memory_) device_.Free(memory);
  memory_.clear();
}

Tensor OpTimer::Empty(DType dtype, std::initializer_list<int64_t> dims) {
  Tensor t(nullptr, dtype, dims);
  if (t.num_bytes() == 0) return t;
  t.data = device_.Allocate(t.num_bytes());
  CAROUSEL_CHECK_MSG(t.data != nullptr, "the device is out of memory; benchmark a smaller shape");
  memory_.push_back(t.data);
  return t;
}

Tensor OpTimer::Random(DType dtype, std::initializer_list<int64_t> dims, double scale) {
  const Tensor t = Empty(dtype, dims);
  if (t.num_elems() == 0) return t;
  const int64_t num = std::min(t.num_elems(), kNumNormals);
  std::vector<float> host(static_cast<size_t>(num));
  for (size_t i = 0; i < host.size(); ++i) host[i] = static_cast<float>(scale) * normals_[i];
  const Tensor block(device_.Allocate(num * 4), DType::kF32, {num});
  CAROUSEL_CHECK_MSG(block.data != nullptr, "the device is out of memory; benchmark a smaller shape");
  device_.CopyToDevice(block.data, host.data(), block.num_bytes());
  const Tensor flat = t.Flatten();
  for (int64_t begin = 0; begin < flat.dim[0]; begin += num) {
    const int64_t count = std::min(num, flat.dim[0] - begin);
    device_.ops().Cast({.y = flat.Rows(begin, count), .x = block.Rows(0, count)});
  }
  device_.Synchronize();
  device_.Free(block.data);
  return t;
}

Tensor OpTimer::Ids(int64_t count, int64_t limit) {
  std::vector<int32_t> host(static_cast<size_t>(count));
  for (size_t i = 0; i < host.size(); ++i) {
    host[i] = static_cast<int32_t>(RandomUint64(2, 0, i) % static_cast<uint64_t>(limit));
  }
  const Tensor t = Empty(DType::kI32, {count});
  device_.CopyToDevice(t.data, host.data(), t.num_bytes());
  return t;
}

void OpTimer::Time(const std::string& name, const Cost& cost, const std::function<void()>& call) {
  call();  // the first call may plan and allocate
  device_.Synchronize();
  double start = Seconds();
  call();
  device_.Synchronize();
  const double single = std::max(Seconds() - start, 1e-7);
  const auto group = static_cast<int64_t>(std::clamp(std::ceil(kGroupSeconds / single), 1.0, 64.0));
  std::vector<double> seconds;
  for (int64_t r = 0; r < repeats_; ++r) {
    start = Seconds();
    for (int64_t i = 0; i < group; ++i) call();
    device_.Synchronize();
    seconds.push_back((Seconds() - start) / static_cast<double>(group));
  }
  timings_.push_back({.name = name,
                      .calls = cost.calls,
                      .ms = Median(seconds) * 1e3,
                      .flops = cost.flops,
                      .bytes = cost.bytes,
                      .steps = cost.steps,
                      .is_matmul = cost.is_matmul});
}

DeviceRates MeasureRates(Device& device, DType compute, int64_t repeats) {
  const std::string name = device.name();
  // beyond the caches; small in the emulation, where rates mean nothing
  const bool emulated = name.rfind("simt", 0) == 0, host = device.host_accessible();
  const int64_t copy_elems = emulated ? 1 << 14 : host ? 16 << 20 : 256 << 20;
  const int64_t n = emulated ? 64 : host ? 1024 : 8192;
  OpTimer timer(device, {.compute = compute}, repeats);
  {
    const Tensor x = timer.Random(DType::kF32, {copy_elems}), y = timer.Empty(DType::kF32, {copy_elems});
    timer.Time("copy", {.bytes = 8.0 * static_cast<double>(copy_elems)},
               [&] { timer.ops().Cast({.y = y, .x = x}); });
    timer.FreeAll();
  }
  const Tensor a = timer.Random(compute, {n, n}), b = timer.Random(compute, {n, n}),
               c = timer.Empty(compute, {n, n});
  const double flops = 2.0 * static_cast<double>(n) * static_cast<double>(n) * static_cast<double>(n);
  timer.Time("product", {.flops = flops},
             [&] { timer.ops().Matmul({.c = c, .a = a, .b = b, .transpose_b = true}); });
  const std::vector<OpTiming> timings = timer.Take();
  return {.copy_gb_per_s = timings[0].bytes / timings[0].ms * 1e-6,
          .matmul_tflop_s = timings[1].flops / timings[1].ms * 1e-9};
}

std::string OpTable(const std::vector<OpTiming>& timings, const DeviceRates& rates) {
  char line[256];
  std::string table =
      "| op | calls per step | ms per call | GB/s | TFLOP/s | floor ms | floor / time | us per token step |\n"
      "|---|---|---|---|---|---|---|---|\n";
  double matmul_ms = 0, matmul_flops = 0, other_ms = 0;
  for (const OpTiming& t : timings) {
    const double floor_ms =
        std::max(t.bytes / rates.copy_gb_per_s * 1e-6, t.flops / rates.matmul_tflop_s * 1e-9);
    char flops[32] = "", step[32] = "";
    if (t.flops > 0) std::snprintf(flops, sizeof flops, "%.2f", t.flops / t.ms * 1e-9);
    if (t.steps > 0) std::snprintf(step, sizeof step, "%.2f", t.ms * 1e3 / static_cast<double>(t.steps));
    std::snprintf(line, sizeof line, "| %s | %lld | %.4f | %.1f | %s | %.4f | %.0f %% | %s |\n",
                  t.name.c_str(), static_cast<long long>(t.calls), t.ms, t.bytes / t.ms * 1e-6, flops,
                  floor_ms, 100 * floor_ms / t.ms, step);
    table += line;
    const double step_ms = t.ms * static_cast<double>(t.calls);
    (t.is_matmul ? matmul_ms : other_ms) += step_ms;
    if (t.is_matmul) matmul_flops += t.flops * static_cast<double>(t.calls);
  }
  if (matmul_ms > 0) {
    std::snprintf(line, sizeof line, "\nProducts %.3f ms per step at %.2f TFLOP/s; other ops %.3f ms.\n",
                  matmul_ms, matmul_flops / matmul_ms * 1e-9, other_ms);
    table += line;
  }
  return table;
}
}  // namespace carousel
