#include "launcher/models/reference_stabiliser.h"

#include <algorithm>
#include <cmath>

#include "launcher/models/tensor_copy.h"

namespace carousel {
namespace {
// Stands for -infinity in the state before the first token: exp(this - m) is 0 for every m whose exp(-m) is
// finite, and sums with it stay exact enough in f32.
constexpr double kBelowEverything = -1e4;

// The elements from the first of `t` to its last, row ends included.
Tensor Span(const Tensor& t) { return Tensor(t.data, t.dtype, {(t.dim[0] - 1) * t.row_stride + t.dim[1]}); }
// (rows, columns), which may be strided, packed.
std::vector<double> DownloadRows(Device& device, const Tensor& t) {
  const std::vector<double> span = Download(device, Span(t));
  std::vector<double> packed;
  packed.reserve(static_cast<size_t>(t.num_elems()));
  for (int64_t row = 0; row < t.dim[0]; ++row) {
    const auto begin = span.begin() + row * t.row_stride;
    packed.insert(packed.end(), begin, begin + t.dim[1]);
  }
  return packed;
}
// What lies between the rows stays as it is: the device does nothing else meanwhile.
void UploadRows(Device& device, const Tensor& t, const std::vector<double>& packed) {
  std::vector<double> span = Download(device, Span(t));
  for (int64_t row = 0; row < t.dim[0]; ++row) {
    const auto begin = packed.begin() + row * t.dim[1];
    std::copy(begin, begin + t.dim[1], span.begin() + row * t.row_stride);
  }
  Upload(device, Span(t), span);
}

// Per token and head, of (N, NH*V) rows: x_t.y_t.
std::vector<double> HeadDots(const std::vector<double>& x, const std::vector<double>& y, size_t V) {
  std::vector<double> dots(x.size() / V, 0);
  for (size_t j = 0; j < x.size(); ++j) dots[j / V] += x[j] * y[j];
  return dots;
}
}  // namespace

double AddStabiliserPath(const StabiliserPathArgs& a) {
  const size_t T = static_cast<size_t>(a.T);
  // forgets[t]: m_t comes from m_{t-1}, not from i_t.
  std::vector<bool> forgets(T);
  double m = a.m0;
  for (size_t t = 0; t < T; ++t) {
    const double kept = std::min(a.f[t], 0.0) - std::log1p(std::exp(-std::abs(a.f[t]))) + m;
    forgets[t] = kept >= a.i[t];
    m = std::max(kept, a.i[t]);
  }
  double dm = 0;
  for (size_t t = T; t-- > 0;) {
    dm -= a.dh_h[t] * a.eps / (a.denominator[t] + a.eps);
    if (forgets[t]) {
      a.df[t] += dm / (1 + std::exp(a.f[t]));  // d log sigmoid(f) / df = sigmoid(-f)
    } else {
      a.di[t] += dm;
      dm = 0;
    }
  }
  return dm;
}

ParallelFormOps::ParallelFormOps(const ModelSpec& spec, DType compute, int64_t B, int64_t T, Device& device)
    : ForwardingOps(device.ops()), device_(device) {
  bool has_mlstm = false;
  for (int64_t block = 0; block < spec.num_blocks; ++block) has_mlstm |= !spec.is_slstm(block);
  memory_ = std::make_unique<DeviceMemory>(device, [&](Arena& arena) {
    if (!has_mlstm) return;
    const DType wide = WideOf(compute);
    const int64_t NH = spec.num_heads, DHQK = spec.head_dim_qk();
    start_ = {.C = arena.Persistent("parallel form", wide, {B, NH, DHQK, spec.head_dim_v()}),
              .n = arena.Persistent("parallel form", wide, {B, NH, DHQK}),
              .m = arena.Persistent("parallel form", wide, {B, NH})};
    h_ = arena.Persistent("parallel form", compute, {B * T, spec.v_dim});
    denominator_ = arena.Persistent("parallel form", wide, {B * T, NH});
    m_ = arena.Persistent("parallel form", wide, {B * T, NH});
  });
  if (!memory_->ok() || !has_mlstm) return;
  for (const Tensor& zero : {start_.C, start_.n}) ops_.Fill({.y = zero, .value = 0});
  ops_.Fill({.y = start_.m, .value = kBelowEverything});
}

bool ParallelFormOps::Applies(const MlstmShape& shape, const MlstmState& initial) const {
  return shape.input_gate == InputGate::kExponential && !initial.C.defined();
}

void ParallelFormOps::MlstmForward(const MlstmForwardArgs& a) {
  MlstmForwardArgs parallel = a;
  if (Applies(a.shape, a.initial)) parallel.initial = start_;
  ops_.MlstmForward(parallel);
  if (!compare_ || !Applies(a.shape, a.initial)) return;

  MlstmForwardArgs trained = a;
  trained.h = h_, trained.denominator = denominator_, trained.m = m_;
  trained.last = {};
  ops_.MlstmForward(trained);
  const size_t V = static_cast<size_t>(a.shape.DHV);
  const std::vector<double> theirs = DownloadRows(device_, a.h);
  std::vector<double> difference = DownloadRows(device_, h_);
  for (size_t j = 0; j < theirs.size(); ++j) difference[j] -= theirs[j];
  const std::vector<double> squares = HeadDots(theirs, theirs, V),
                            apart = HeadDots(difference, difference, V);
  double largest = 0;
  for (size_t j = 0; j < squares.size(); ++j) {
    if (apart[j] > 0) largest = std::max(largest, std::sqrt(apart[j] / squares[j]));
  }
  output_differences_.push_back(largest);
}

void ParallelFormOps::MlstmBackward(const MlstmBackwardArgs& a) {
  if (!Applies(a.shape, a.initial)) return ops_.MlstmBackward(a);
  MlstmBackwardArgs parallel = a;
  parallel.initial = start_;
  ops_.MlstmBackward(parallel);

  const MlstmShape& s = a.shape;
  const size_t T = static_cast<size_t>(s.T), NH = static_cast<size_t>(s.NH);
  const std::vector<double> i = DownloadRows(device_, a.i_pre), f = DownloadRows(device_, a.f_pre);
  const std::vector<double> denominator = DownloadRows(device_, a.denominator);
  const std::vector<double> dh_h =
      HeadDots(DownloadRows(device_, a.dh), DownloadRows(device_, a.h), static_cast<size_t>(s.DHV));
  std::vector<double> di = DownloadRows(device_, a.di_pre), df = DownloadRows(device_, a.df_pre);
  for (size_t b = 0; b < static_cast<size_t>(s.B); ++b) {
    for (size_t head = 0; head < NH; ++head) {
      // (N, NH) has the tokens of a head NH apart.
      const auto tokens = [&](const std::vector<double>& x) {
        std::vector<double> y(T);
        for (size_t t = 0; t < T; ++t) y[t] = x[(b * T + t) * NH + head];
        return y;
      };
      std::vector<double> added_i(T), added_f(T);
      const std::vector<double> head_i = tokens(i), head_f = tokens(f), head_dh_h = tokens(dh_h),
                                head_denominator = tokens(denominator);
      AddStabiliserPath({.di = added_i.data(),
                         .df = added_f.data(),
                         .i = head_i.data(),
                         .f = head_f.data(),
                         .dh_h = head_dh_h.data(),
                         .denominator = head_denominator.data(),
                         .T = s.T,
                         .m0 = kBelowEverything,
                         .eps = s.eps});
      for (size_t t = 0; t < T; ++t) {
        di[(b * T + t) * NH + head] += added_i[t];
        df[(b * T + t) * NH + head] += added_f[t];
      }
    }
  }
  UploadRows(device_, a.di_pre, di);
  UploadRows(device_, a.df_pre, df);
}
}  // namespace carousel
