#include "launcher/report/op_profiler.h"

#include <algorithm>
#include <chrono>
#include <map>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "launcher/plan/forwarding_ops.h"

namespace carousel {
namespace {
double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}
}  // namespace

class OpProfiler::TimedOps final : public ForwardingOps {
 public:
  using ForwardingOps::ForwardingOps;

  void BeginRange(const char* name) override {
    if (recording) open_.push_back({.kind = TraceEvent::Kind::kRange, .name = name, .start_seconds = Now()});
    ops_.BeginRange(name);
  }
  void EndRange() override {
    ops_.EndRange();
    // A range that was begun before recording is not noted.
    if (open_.empty()) return;
    TraceEvent range = std::move(open_.back());
    open_.pop_back();
    range.seconds = Now() - range.start_seconds;
    Keep(std::move(range));
  }
  void Matmul(const MatmulArgs& a) override {
    if (!recording) return ops_.Matmul(a);
    const int64_t M = a.c.dim[0], N = a.c.dim[1], K = a.transpose_a ? a.a.dim[0] : a.a.dim[1];
    TraceEvent event = {.name = "Matmul", .start_seconds = Now()};
    ops_.Matmul(a);
    event.seconds = Now() - event.start_seconds;
    event.flops = 2.0 * static_cast<double>(M) * static_cast<double>(N) * static_cast<double>(K);
    event.arguments = absl::StrCat(M, " x ", K, " x ", N, " ", NameOf(a.a.dtype));
    Keep(std::move(event));
  }
#define CAROUSEL_TIMED_OP(Op, Args)                           \
  void Op(const Args& args) override {                        \
    if (!recording) return ops_.Op(args);                     \
    TraceEvent event = {.name = #Op, .start_seconds = Now()}; \
    ops_.Op(args);                                            \
    event.seconds = Now() - event.start_seconds;              \
    Keep(std::move(event));                                   \
  }
  CAROUSEL_TIMED_OP(Fill, FillArgs)
  CAROUSEL_TIMED_OP(Cast, CastArgs)
  CAROUSEL_TIMED_OP(Add, AddArgs)
  CAROUSEL_TIMED_OP(ColumnSum, ColumnSumArgs)
  CAROUSEL_TIMED_OP(EmbeddingForward, EmbeddingForwardArgs)
  CAROUSEL_TIMED_OP(EmbeddingBackward, EmbeddingBackwardArgs)
  CAROUSEL_TIMED_OP(RmsNormForward, RmsNormForwardArgs)
  CAROUSEL_TIMED_OP(RmsNormBackward, RmsNormBackwardArgs)
  CAROUSEL_TIMED_OP(LayerNormForward, LayerNormForwardArgs)
  CAROUSEL_TIMED_OP(LayerNormBackward, LayerNormBackwardArgs)
  CAROUSEL_TIMED_OP(SoftCapForward, SoftCapForwardArgs)
  CAROUSEL_TIMED_OP(SoftCapBackward, SoftCapBackwardArgs)
  CAROUSEL_TIMED_OP(MlstmForward, MlstmForwardArgs)
  CAROUSEL_TIMED_OP(MlstmBackward, MlstmBackwardArgs)
  CAROUSEL_TIMED_OP(MlstmSummary, MlstmSummaryArgs)
  CAROUSEL_TIMED_OP(MlstmFold, MlstmFoldArgs)
  CAROUSEL_TIMED_OP(MlstmSummaryBackward, MlstmSummaryBackwardArgs)
  CAROUSEL_TIMED_OP(MlstmFoldBackward, MlstmFoldBackwardArgs)
  CAROUSEL_TIMED_OP(HeadNormGateForward, HeadNormGateForwardArgs)
  CAROUSEL_TIMED_OP(HeadNormGateBackward, HeadNormGateBackwardArgs)
  CAROUSEL_TIMED_OP(Dropout, DropoutArgs)
  CAROUSEL_TIMED_OP(GluForward, GluForwardArgs)
  CAROUSEL_TIMED_OP(GluBackward, GluBackwardArgs)
  CAROUSEL_TIMED_OP(BlockLinearForward, BlockLinearForwardArgs)
  CAROUSEL_TIMED_OP(BlockLinearBackward, BlockLinearBackwardArgs)
  CAROUSEL_TIMED_OP(CausalConvForward, CausalConvForwardArgs)
  CAROUSEL_TIMED_OP(CausalConvBackward, CausalConvBackwardArgs)
  CAROUSEL_TIMED_OP(SlstmForward, SlstmForwardArgs)
  CAROUSEL_TIMED_OP(SlstmBackward, SlstmBackwardArgs)
  CAROUSEL_TIMED_OP(CrossEntropy, CrossEntropyArgs)
  CAROUSEL_TIMED_OP(CrossEntropyStats, CrossEntropyStatsArgs)
  CAROUSEL_TIMED_OP(CrossEntropyFromStats, CrossEntropyFromStatsArgs)
  CAROUSEL_TIMED_OP(AdamW, AdamWArgs)
  CAROUSEL_TIMED_OP(SquaredNorm, SquaredNormArgs)
  CAROUSEL_TIMED_OP(SumExactly, ExactSumArgs)
  CAROUSEL_TIMED_OP(TensorStats, TensorStatsArgs)
  CAROUSEL_TIMED_OP(Digest, DigestArgs)
#undef CAROUSEL_TIMED_OP

  void Keep(TraceEvent event) {
    if (static_cast<int64_t>(events.size()) < kMaxEvents) {
      events.push_back(std::move(event));
    } else {
      ++num_dropped;
    }
  }

  bool recording = false;
  std::vector<TraceEvent> events;
  int64_t num_dropped = 0;

 private:
  std::vector<TraceEvent> open_;
};

OpProfiler::OpProfiler(Device& device) : device_(device), ops_(std::make_unique<TimedOps>(device.ops())) {}
OpProfiler::~OpProfiler() = default;

Ops& OpProfiler::ops() { return *ops_; }
void OpProfiler::Record(bool on) { ops_->recording = on; }
const std::vector<TraceEvent>& OpProfiler::events() const { return ops_->events; }
int64_t OpProfiler::num_dropped() const { return ops_->num_dropped; }

std::string FormatOpTable(const std::vector<TraceEvent>& events, double seconds, int64_t num_steps) {
  struct Sum {
    int64_t calls = 0;
    double seconds = 0, flops = 0;
  };
  std::map<std::string, Sum> sums;
  double in_ops = 0;
  for (const TraceEvent& event : events) {
    if (event.kind == TraceEvent::Kind::kRange) continue;
    Sum& sum = sums[event.name];
    ++sum.calls;
    sum.seconds += event.seconds;
    sum.flops += event.flops;
    in_ops += event.seconds;
  }
  std::vector<std::pair<std::string, Sum>> rows(sums.begin(), sums.end());
  std::stable_sort(rows.begin(), rows.end(),
                   [](const auto& a, const auto& b) { return a.second.seconds > b.second.seconds; });
  const double steps = static_cast<double>(std::max<int64_t>(num_steps, 1));
  std::string table = absl::StrFormat("%-24s %12s %12s %8s %12s %10s\n", "op", "calls/step", "ms/step",
                                      "share", "us/call", "GFLOP/s");
  const auto share = [&](double part) { return seconds > 0 ? 100 * part / seconds : 0.0; };
  for (const auto& [name, sum] : rows) {
    absl::StrAppendFormat(
        &table, "%-24s %12.1f %12.3f %7.1f%% %12.2f %10s\n", name, static_cast<double>(sum.calls) / steps,
        1e3 * sum.seconds / steps, share(sum.seconds), 1e6 * sum.seconds / static_cast<double>(sum.calls),
        sum.flops > 0 && sum.seconds > 0 ? absl::StrFormat("%.1f", 1e-9 * sum.flops / sum.seconds)
                                         : std::string("-"));
  }
  const double rest = std::max(0.0, seconds - in_ops);
  absl::StrAppendFormat(&table, "%-24s %12s %12.3f %7.1f%%\n", "outside of ops", "", 1e3 * rest / steps,
                        share(rest));
  absl::StrAppendFormat(&table, "%-24s %12s %12.3f %7.1f%%", "a step", "", 1e3 * seconds / steps, 100.0);
  return table;
}

std::string ChromeTrace(const std::vector<TraceEvent>& events, int64_t rank, const std::string& host) {
  double first = 0;
  for (size_t i = 0; i < events.size(); ++i) {
    first = i == 0 ? events[i].start_seconds : std::min(first, events[i].start_seconds);
  }
  using Json = nlohmann::ordered_json;
  const auto dump = [](const Json& json) {
    return json.dump(-1, ' ', /*ensure_ascii=*/true, Json::error_handler_t::replace);
  };
  std::string text = "{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n";
  text += dump(Json{{"name", "process_name"},
                    {"ph", "M"},
                    {"pid", rank},
                    {"tid", 0},
                    {"args", {{"name", absl::StrCat("rank ", rank, " on ", host)}}}});
  for (const auto& [thread, name] : {std::pair<int, const char*>{1, "ops"}, {2, "collectives"}}) {
    absl::StrAppend(&text, ",\n",
                    dump(Json{{"name", "thread_name"},
                              {"ph", "M"},
                              {"pid", rank},
                              {"tid", thread},
                              {"args", {{"name", name}}}}));
  }
  for (const TraceEvent& event : events) {
    const char* category = event.kind == TraceEvent::Kind::kOp      ? "op"
                           : event.kind == TraceEvent::Kind::kRange ? "range"
                                                                    : "collective";
    // Written by hand where nothing needs escaping: there are many.
    absl::StrAppendFormat(
        &text, ",\n{\"name\":%s,\"cat\":\"%s\",\"ph\":\"X\",\"ts\":%.3f,\"dur\":%.3f,\"pid\":%d,\"tid\":%d",
        dump(event.name), category, 1e6 * (event.start_seconds - first), 1e6 * event.seconds, rank,
        event.kind == TraceEvent::Kind::kCollective ? 2 : 1);
    if (!event.arguments.empty()) {
      absl::StrAppend(&text, ",\"args\":{\"what\":", dump(event.arguments));
      if (event.flops > 0 && event.seconds > 0) {
        absl::StrAppendFormat(&text, ",\"GFLOP/s\":%.3f", 1e-9 * event.flops / event.seconds);
      }
      text += "}";
    }
    text += "}";
  }
  return text + "\n]}\n";
}
}  // namespace carousel
