// OpProfiler: how long every op of a device takes, for devices that run ops at once (the CPU, the emulated
// GPU): a Device that passes everything on and, while it is on, notes each call and each named range. From
// them a table, and a trace that chrome://tracing and ui.perfetto.dev show.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/device.h"

namespace carousel {

// Something that took time on this process. Seconds are of std::chrono::steady_clock.
struct TraceEvent {
  enum class Kind : uint8_t { kOp, kRange, kCollective };
  Kind kind = Kind::kOp;
  std::string name;
  double start_seconds = 0, seconds = 0;
  double flops = 0;            // of a matrix multiplication
  std::string arguments = {};  // "512 x 256 x 1024"
};

class OpProfiler final : public Device {
 public:
  explicit OpProfiler(Device& device);  // must outlive this
  ~OpProfiler() override;

  // Off at first.
  void Record(bool on);
  // Of ops and ranges, in the order in which they ended; at most kMaxEvents, what came later was dropped.
  const std::vector<TraceEvent>& events() const;
  int64_t num_dropped() const;
  static constexpr int64_t kMaxEvents = 1'000'000;

  std::string name() const override { return device_.name(); }
  bool host_accessible() const override { return device_.host_accessible(); }
  void* Allocate(int64_t bytes) override { return device_.Allocate(bytes); }
  void Free(void* memory) override { device_.Free(memory); }
  MemoryInfo memory() const override { return device_.memory(); }
  std::string allocation_error() const override { return device_.allocation_error(); }
  void CopyToDevice(void* device_destination, const void* host_source, int64_t bytes) override {
    device_.CopyToDevice(device_destination, host_source, bytes);
  }
  void CopyToHost(void* host_destination, const void* device_source, int64_t bytes) override {
    device_.CopyToHost(host_destination, device_source, bytes);
  }
  void* AllocateHost(int64_t bytes) override { return device_.AllocateHost(bytes); }
  void FreeHost(void* memory) override { device_.FreeHost(memory); }
  void Synchronize() override { device_.Synchronize(); }
  Ops& ops() override;
  void* native_stream() override { return device_.native_stream(); }
  std::unique_ptr<Stream> ComputeStream() override { return device_.ComputeStream(); }
  std::unique_ptr<Stream> MakeStream() override { return device_.MakeStream(); }
  std::unique_ptr<Event> MakeEvent() override { return device_.MakeEvent(); }
  // What a recording stands for is issued anew each time, so that every op is seen. The results are the same.
  bool records() const override { return false; }

 private:
  class TimedOps;
  Device& device_;
  std::unique_ptr<TimedOps> ops_;
};

// One line per op, the one that took longest first: calls, total and mean time, share, GFLOP/s of Matmul.
// `seconds`: of the steps that were profiled; what no op took is the last line.
std::string FormatOpTable(const std::vector<TraceEvent>& events, double seconds, int64_t num_steps);
// {"traceEvents":[...]} of the Trace Event Format: complete events ("ph":"X", microseconds from the first
// one), the process is the rank, ranges and ops are one thread, collectives another.
std::string ChromeTrace(const std::vector<TraceEvent>& events, int64_t rank, const std::string& host);
}  // namespace carousel
