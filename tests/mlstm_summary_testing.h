// Runs a problem of mlstm_test_util.h segment by segment, as the ranks of a sequence axis do: summaries of
// all segments, the state before each folded out of them, the cell on each from there; then the gradients of
// those states, folded back, and the backward of each segment. Every output and the workspace start as NaN,
// and what lies between the rows of a tensor must survive.
#pragma once
#include <memory>
#include <utility>
#include <vector>

#include "tests/device_mlstm_testing.h"

namespace carousel::mlstm_test {

// Tokens [begin, end) of every sequence of a tensor (B * T, width).
inline Values TokensOf(const Values& x, const MlstmShape& s, int64_t begin, int64_t end) {
  if (x.empty()) return {};
  const int64_t width = static_cast<int64_t>(x.size()) / (s.B * s.T);
  Values y;
  for (int64_t b = 0; b < s.B; ++b)
    y.insert(y.end(), x.begin() + (b * s.T + begin) * width, x.begin() + (b * s.T + end) * width);
  return y;
}
// The inverse: y, of tokens [begin, end), to its place in x.
inline void PutTokens(Values& x, const Values& y, const MlstmShape& s, int64_t begin, int64_t end) {
  if (begin == end) return;
  const int64_t length = end - begin, width = static_cast<int64_t>(y.size()) / (s.B * length);
  x.resize(static_cast<size_t>(s.B * s.T * width));
  for (int64_t b = 0; b < s.B; ++b)
    std::copy(y.begin() + b * length * width, y.begin() + (b + 1) * length * width,
              x.begin() + (b * s.T + begin) * width);
}

struct SegmentRun {
  Result result;                // of the whole sequence; dC and dn: of the first segment's initial state
  std::vector<Values> C, n, m;  // the state before each segment
  std::vector<Values> summaries, dstates;
  std::vector<Values> dC_last, dn_last;  // the gradient of the state after each segment
  Values factors;
};

// ends: of the segments, rising; the last is T. The problem has no initial state and no gradient of the last.
template <class T>
class SegmentRunner {
 public:
  using W = Wide<T>;
  SegmentRunner(Device& device, const Problem& whole, std::vector<int64_t> ends, bool aligned = false)
      : device_(device), whole_(whole), ends_(std::move(ends)), aligned_(aligned) {
    CAROUSEL_CHECK(whole.initial_C.empty() && whole.dC.empty());
    CAROUSEL_CHECK_EQ(ends_.back(), whole.shape.T);
    for (const int64_t end : ends_)
      segments_.push_back(std::make_unique<Segment>(*this, begin_, end)), begin_ = end;
  }

  SegmentRun Run() {
    Forward();
    if (!whole_.dh.empty()) Backward();
    return std::move(run_);
  }

 private:
  // The tensors of one segment on the device.
  struct Segment {
    Segment(SegmentRunner& runner, int64_t begin_token, int64_t end_token)
        : begin(begin_token),
          end(end_token),
          s(ShapeOf(runner.whole_.shape, end - begin)),
          N(s.B * s.T),
          QK(s.NH * s.DHQK),
          HV(s.NH * s.DHV),
          q(runner.Compute(runner.whole_.q, begin, end, QK, 3)),
          k(runner.Compute(runner.whole_.k, begin, end, QK, 5)),
          v(runner.Compute(runner.whole_.v, begin, end, HV, 7)),
          i_pre(runner.Gate(runner.whole_.i_pre, begin, end, 1)),
          f_pre(runner.Gate(runner.whole_.f_pre, begin, end, 2)),
          h(runner.device_, {}, N, HV, runner.Extra(2)),
          denominator(runner.device_, {}, N, s.NH, 0),
          m(runner.device_, {}, N, s.NH, 1),
          initial(runner.device_, s, {}, {}, {}),
          last(runner.device_, s, {}, {}, {}) {
      if (runner.whole_.reset.empty()) return;
      std::vector<uint8_t> bits;
      for (int64_t b = 0; b < s.B; ++b)
        for (int64_t t = begin; t < end; ++t)
          bits.push_back(runner.whole_.reset[b * runner.whole_.shape.T + t]);
      reset_memory = runner.device_.Allocate(N);
      if (N > 0) runner.device_.CopyToDevice(reset_memory, bits.data(), N);
      reset = Tensor(reset_memory, DType::kU8, {N});
      device = &runner.device_;
    }
    ~Segment() {
      if (reset_memory != nullptr) device->Free(reset_memory);
    }
    static MlstmShape ShapeOf(MlstmShape shape, int64_t length) {
      shape.T = length;
      return shape;
    }
    int64_t begin, end;
    MlstmShape s;
    int64_t N, QK, HV;
    DeviceArray<T> q, k, v;
    DeviceArray<W> i_pre, f_pre;
    DeviceArray<T> h;
    DeviceArray<W> denominator, m;
    DeviceState<W> initial, last;
    Device* device = nullptr;
    void* reset_memory = nullptr;
    Tensor reset;
  };
  // A workspace as small as the op may ask for, all bits set.
  class Workspace {
   public:
    Workspace(Device& device, const MlstmShape& s) : device_(device) {
      const int64_t bytes = device.ops().MlstmWorkspaceBytes(s, DTypeOf<T>::value);
      const std::vector<uint8_t> poison(static_cast<size_t>(bytes), 0xff);
      memory_ = device.Allocate(bytes);
      device.CopyToDevice(memory_, poison.data(), bytes);
      tensor_ = Tensor(memory_, DType::kU8, {bytes});
    }
    ~Workspace() {
      device_.Synchronize();
      device_.Free(memory_);
    }
    Workspace(const Workspace&) = delete;
    Workspace& operator=(const Workspace&) = delete;
    const Tensor& tensor() const { return tensor_; }

   private:
    Device& device_;
    void* memory_;
    Tensor tensor_;
  };

  int64_t Extra(int64_t odd) const { return aligned_ ? 8 : odd; }
  DeviceArray<T> Compute(const Values& x, int64_t begin, int64_t end, int64_t width, int64_t odd) {
    return {device_, TokensOf(x, whole_.shape, begin, end), whole_.shape.B * (end - begin), width,
            Extra(odd)};
  }
  DeviceArray<W> Gate(const Values& x, int64_t begin, int64_t end, int64_t odd) {
    return {device_, TokensOf(x, whole_.shape, begin, end), whole_.shape.B * (end - begin), whole_.shape.NH,
            odd};
  }
  int64_t Count() const { return static_cast<int64_t>(segments_.size()); }
  static Values Joined(const std::vector<Values>& parts) {
    Values all;
    for (const Values& part : parts) all.insert(all.end(), part.begin(), part.end());
    return all;
  }

  void Forward() {
    Ops& ops = device_.ops();
    for (const auto& x : segments_) {
      const DeviceArray<W> summary(device_, {}, 1, MlstmSummaryElems(x->s), 0);
      const Workspace workspace(device_, x->s);
      ops.MlstmSummary({.summary = summary.As({MlstmSummaryElems(x->s)}),
                        .k = x->k.tensor(),
                        .v = x->v.tensor(),
                        .i_pre = x->i_pre.tensor(),
                        .f_pre = x->f_pre.tensor(),
                        .reset = x->reset,
                        .workspace = workspace.tensor(),
                        .shape = x->s});
      run_.summaries.push_back(summary.values());
    }
    const Values all = Joined(run_.summaries);
    const DeviceArray<W> summaries(device_, all, 1, static_cast<int64_t>(all.size()), 0);
    const MlstmShape& whole = whole_.shape;
    for (int64_t index = 0; index < Count(); ++index) {
      Segment& x = *segments_[index];
      const DeviceArray<W> factors(device_, {}, 1, Count() * whole.B * whole.NH, 0);
      // every second call without factors, which are the same in all
      const bool wanted = index % 2 == 0;
      ops.MlstmFold({.initial = x.initial.state(),
                     .factors = wanted ? factors.As({Count(), whole.B, whole.NH}) : Tensor(),
                     .summaries = summaries.As({static_cast<int64_t>(all.size())}),
                     .num_segments = Count(),
                     .index = index,
                     .shape = x.s});
      run_.C.push_back(x.initial.C.values());
      run_.n.push_back(x.initial.n.values());
      run_.m.push_back(x.initial.m.values());
      if (wanted) {
        const Values mine = factors.values();
        if (index > 0) {
          EXPECT_EQ(mine, run_.factors) << "factors depend on the index";
        }
        run_.factors = mine;
      }
      const Workspace workspace(device_, x.s);
      ops.MlstmForward({.h = x.h.tensor(),
                        .denominator = x.denominator.tensor(),
                        .m = x.m.tensor(),
                        .last = x.last.state(),
                        .q = x.q.tensor(),
                        .k = x.k.tensor(),
                        .v = x.v.tensor(),
                        .i_pre = x.i_pre.tensor(),
                        .f_pre = x.f_pre.tensor(),
                        .reset = x.reset,
                        .initial = x.initial.state(),
                        .workspace = workspace.tensor(),
                        .shape = x.s});
      PutTokens(run_.result.h, x.h.values(), whole, x.begin, x.end);
      PutTokens(run_.result.denominator, x.denominator.values(), whole, x.begin, x.end);
      PutTokens(run_.result.m, x.m.values(), whole, x.begin, x.end);
    }
    const Segment& end = *segments_.back();
    run_.result.last_C = end.last.C.values();
    run_.result.last_n = end.last.n.values();
    run_.result.last_m = end.last.m.values();
  }

  void Backward() {
    Ops& ops = device_.ops();
    for (const auto& x : segments_) {
      const DeviceArray<T> dh = Compute(whole_.dh, x->begin, x->end, x->HV, 4);
      const int64_t elems = MlstmStateGradientElems(x->s);
      const DeviceArray<W> dstate(device_, {}, 1, elems, 0);
      const Workspace workspace(device_, x->s);
      ops.MlstmSummaryBackward({.dstate = dstate.As({elems}),
                                .dh = dh.tensor(),
                                .q = x->q.tensor(),
                                .k = x->k.tensor(),
                                .i_pre = x->i_pre.tensor(),
                                .f_pre = x->f_pre.tensor(),
                                .reset = x->reset,
                                .initial = x->initial.state(),
                                .h = x->h.tensor(),
                                .denominator = x->denominator.tensor(),
                                .m = x->m.tensor(),
                                .workspace = workspace.tensor(),
                                .shape = x->s,
                                .normalizer_gradient = whole_.normalizer_gradient});
      run_.dstates.push_back(dstate.values());
    }
    const Values all = Joined(run_.dstates);
    const DeviceArray<W> dstates(device_, all, 1, static_cast<int64_t>(all.size()), 0);
    const MlstmShape& whole = whole_.shape;
    const DeviceArray<W> factors(device_, run_.factors, 1, Count() * whole.B * whole.NH, 0);
    for (int64_t index = 0; index < Count(); ++index) {
      Segment& x = *segments_[index];
      const DeviceState<W> dlast(device_, x.s, {}, {}, {}), dinitial(device_, x.s, {}, {}, {});
      MlstmState dlast_state = dlast.state();
      dlast_state.m = Tensor();
      ops.MlstmFoldBackward({.dlast = dlast_state,
                             .dstates = dstates.As({static_cast<int64_t>(all.size())}),
                             .factors = factors.As({Count(), whole.B, whole.NH}),
                             .num_segments = Count(),
                             .index = index,
                             .shape = x.s});
      run_.dC_last.push_back(dlast.C.values());
      run_.dn_last.push_back(dlast.n.values());
      const DeviceArray<T> dh = Compute(whole_.dh, x.begin, x.end, x.HV, 4);
      const DeviceArray<T> dq(device_, {}, x.N, x.QK, Extra(6)), dk(device_, {}, x.N, x.QK, Extra(1)),
          dv(device_, {}, x.N, x.HV, Extra(3));
      const DeviceArray<W> di_pre(device_, {}, x.N, x.s.NH, 3), df_pre(device_, {}, x.N, x.s.NH, 1);
      const Workspace workspace(device_, x.s);
      ops.MlstmBackward({.dq = dq.tensor(),
                         .dk = dk.tensor(),
                         .dv = dv.tensor(),
                         .di_pre = di_pre.tensor(),
                         .df_pre = df_pre.tensor(),
                         .dinitial = dinitial.state(),
                         .dh = dh.tensor(),
                         .dlast = dlast_state,
                         .q = x.q.tensor(),
                         .k = x.k.tensor(),
                         .v = x.v.tensor(),
                         .i_pre = x.i_pre.tensor(),
                         .f_pre = x.f_pre.tensor(),
                         .reset = x.reset,
                         .initial = x.initial.state(),
                         .h = x.h.tensor(),
                         .denominator = x.denominator.tensor(),
                         .m = x.m.tensor(),
                         .workspace = workspace.tensor(),
                         .shape = x.s,
                         .normalizer_gradient = whole_.normalizer_gradient});
      Result& r = run_.result;
      for (const auto& [to, from] :
           {std::pair(&r.dq, dq.values()), std::pair(&r.dk, dk.values()), std::pair(&r.dv, dv.values()),
            std::pair(&r.di_pre, di_pre.values()), std::pair(&r.df_pre, df_pre.values())}) {
        PutTokens(*to, from, whole, x.begin, x.end);
      }
      if (index == 0) r.dC = dinitial.C.values(), r.dn = dinitial.n.values(), r.dm = dinitial.m.values();
    }
  }

  Device& device_;
  const Problem& whole_;
  const std::vector<int64_t> ends_;
  const bool aligned_;
  int64_t begin_ = 0;
  std::vector<std::unique_ptr<Segment>> segments_;
  SegmentRun run_;
};

template <class T>
SegmentRun RunSegments(Device& device, const Problem& p, const std::vector<int64_t>& ends,
                       bool aligned = false) {
  return SegmentRunner<T>(device, p, ends, aligned).Run();
}
// num_segments segments of equal length.
inline std::vector<int64_t> EqualSegments(int64_t T, int64_t num_segments) {
  CAROUSEL_CHECK_EQ(T % num_segments, 0);
  std::vector<int64_t> ends;
  for (int64_t j = 1; j <= num_segments; ++j) ends.push_back(j * T / num_segments);
  return ends;
}
}  // namespace carousel::mlstm_test
