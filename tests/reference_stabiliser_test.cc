// The mLSTM with the stabiliser of the public implementation, against the parallel form written out.
#include "launcher/models/reference_stabiliser.h"

#include <limits>

#include "core/arena.h"
#include "launcher/models/tensor_copy.h"
#include "tests/model_testing.h"

namespace carousel {
namespace {
using testing::CpuDevice;
using testing::Unit;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

double LogSigmoid(double x) { return std::min(x, 0.0) - std::log1p(std::exp(-std::abs(x))); }

// One head with DHQK = DHV = 1. dh is the gradient that arrives.
struct Head {
  std::vector<double> q, k, v, i, f, dh;
  double eps;

  Head(int64_t T, double i_shift, double f_shift, double eps_in) : eps(eps_in) {
    const auto fill = [&](std::vector<double>* x, const char* name, double scale, double shift) {
      for (int64_t t = 0; t < T; ++t) x->push_back(shift + scale * Unit(name, t));
    };
    fill(&q, "q", 2, 0), fill(&k, "k", 2, 0), fill(&v, "v", 1, 0), fill(&dh, "dh", 1, 0);
    fill(&i, "i", 3, i_shift), fill(&f, "f", 2, f_shift);
  }
  // h_t of the parallel form: m_t is the largest exponent of row t.
  std::vector<double> Outputs() const {
    std::vector<double> h;
    for (size_t t = 0; t < q.size(); ++t) {
      double m = -kInfinity;
      std::vector<double> exponents(t + 1);
      double forgotten = 0;
      for (size_t j = t + 1; j-- > 0;) {
        exponents[j] = forgotten + i[j];
        m = std::max(m, exponents[j]);
        forgotten += LogSigmoid(f[j]);
      }
      double u = 0, a = 0;
      for (size_t j = 0; j <= t; ++j) {
        const double s = q[t] * k[j] * std::exp(exponents[j] - m);
        u += s * v[j], a += s;
      }
      h.push_back(u / (std::max(std::abs(a), std::exp(-m)) + eps));
    }
    return h;
  }
  double Loss() const {
    const std::vector<double> h = Outputs();
    double loss = 0;
    for (size_t t = 0; t < h.size(); ++t) loss += h[t] * dh[t];
    return loss;
  }
  // Central difference of the loss with respect to one element of *x, which must be a member of this.
  double Difference(std::vector<double>* x, size_t t) {
    const double at = (*x)[t], step = 1e-5;
    (*x)[t] = at + step;
    const double above = Loss();
    (*x)[t] = at - step;
    const double below = Loss();
    (*x)[t] = at;
    return (above - below) / (2 * step);
  }
};

struct Gradients {
  std::vector<double> h, di, df, dk;
};
// `parallel`: through ParallelFormOps. The gates are two columns of one tensor, as in a layer. *difference:
// of the outputs, as it reports it.
Gradients RunHead(const Head& head, bool parallel, double* difference = nullptr) {
  const auto device = CpuDevice();
  const int64_t T = static_cast<int64_t>(head.q.size());
  ModelSpec spec;
  spec.num_blocks = spec.num_heads = spec.qk_dim = spec.v_dim = 1;
  ParallelFormOps parallel_ops(spec, DType::kF64, /*B=*/1, T, *device);
  CAROUSEL_CHECK(parallel_ops.ok());
  const MlstmShape shape = {.B = 1, .T = T, .NH = 1, .DHQK = 1, .DHV = 1, .L = 4, .eps = head.eps};
  Tensor q, k, v, gates, dgates, h, denominator, m, dh, dq, dk, dv, workspace;
  const DeviceMemory memory(*device, [&](Arena& arena) {
    for (Tensor* t : {&q, &k, &v, &h, &denominator, &m, &dh, &dq, &dk, &dv}) {
      *t = arena.Persistent("test", DType::kF64, {T, 1});
    }
    gates = arena.Persistent("test", DType::kF64, {T, 2});
    dgates = arena.Persistent("test", DType::kF64, {T, 2});
    workspace = arena.Persistent("test", DType::kU8, {device->ops().MlstmWorkspaceBytes(shape, DType::kF64)});
  });
  Upload(*device, q, head.q), Upload(*device, k, head.k), Upload(*device, v, head.v);
  Upload(*device, dh, head.dh);
  std::vector<double> both;
  for (size_t t = 0; t < head.i.size(); ++t) both.insert(both.end(), {head.i[t], head.f[t]});
  Upload(*device, gates, both);
  Ops& ops = parallel ? static_cast<Ops&>(parallel_ops) : device->ops();
  if (difference != nullptr) parallel_ops.CompareOutputs(true);
  ops.MlstmForward({.h = h,
                    .denominator = denominator,
                    .m = m,
                    .q = q,
                    .k = k,
                    .v = v,
                    .i_pre = gates.Columns(0, 1),
                    .f_pre = gates.Columns(1, 1),
                    .workspace = workspace,
                    .shape = shape});
  if (difference != nullptr) *difference = parallel_ops.output_differences().at(0);
  ops.MlstmBackward({.dq = dq,
                     .dk = dk,
                     .dv = dv,
                     .di_pre = dgates.Columns(0, 1),
                     .df_pre = dgates.Columns(1, 1),
                     .dh = dh,
                     .q = q,
                     .k = k,
                     .v = v,
                     .i_pre = gates.Columns(0, 1),
                     .f_pre = gates.Columns(1, 1),
                     .h = h,
                     .denominator = denominator,
                     .m = m,
                     .workspace = workspace,
                     .shape = shape});
  Gradients g = {.h = Download(*device, h), .di = {}, .df = {}, .dk = Download(*device, dk)};
  const std::vector<double> d = Download(*device, dgates);
  for (size_t t = 0; t < head.i.size(); ++t) g.di.push_back(d[2 * t]), g.df.push_back(d[2 * t + 1]);
  return g;
}

// A large eps, so that what depends on it is seen: input gates low (the floor of the normaliser), around 0
// and high, forget gates open and closed.
std::vector<Head> Heads(double eps) {
  std::vector<Head> heads;
  for (const double i_shift : {-4.0, 0.0, 3.0}) {
    for (const double f_shift : {-2.0, 3.0}) heads.emplace_back(11, i_shift, f_shift, eps);
  }
  return heads;
}

TEST(ParallelFormOps, OutputsAreThoseOfTheParallelForm) {
  for (const Head& head : Heads(/*eps=*/0.1)) {
    const std::vector<double> expected = head.Outputs(), h = RunHead(head, /*parallel=*/true).h;
    for (size_t t = 0; t < h.size(); ++t) EXPECT_NEAR(h[t], expected[t], 1e-13) << t;
  }
}
TEST(ParallelFormOps, GradientsPassThroughTheStabiliser) {
  for (Head& head : Heads(/*eps=*/0.1)) {
    const Gradients g = RunHead(head, /*parallel=*/true);
    for (size_t t = 0; t < head.i.size(); ++t) {
      EXPECT_NEAR(g.di[t], head.Difference(&head.i, t), 1e-8) << t;
      EXPECT_NEAR(g.df[t], head.Difference(&head.f, t), 1e-8) << t;
      EXPECT_NEAR(g.dk[t], head.Difference(&head.k, t), 1e-8) << t;
    }
  }
}
TEST(ParallelFormOps, WithoutThemGradientsOfGatesAreOthers) {
  // Otherwise the test above would show nothing.
  Head head(11, 0, 3, /*eps=*/0.1);
  const Gradients g = RunHead(head, /*parallel=*/false);
  double largest = 0;
  for (size_t t = 0; t < head.i.size(); ++t) {
    largest = std::max(largest, std::abs(g.di[t] - head.Difference(&head.i, t)));
  }
  EXPECT_GT(largest, 1e-3);
}
TEST(ParallelFormOps, IsTheFormOfTrainingWithoutEps) {
  for (const Head& head : Heads(/*eps=*/0)) {
    const Gradients a = RunHead(head, /*parallel=*/true), b = RunHead(head, /*parallel=*/false);
    for (size_t t = 0; t < a.h.size(); ++t) {
      EXPECT_NEAR(a.h[t], b.h[t], 1e-13);
      EXPECT_NEAR(a.di[t], b.di[t], 1e-12);
      EXPECT_NEAR(a.df[t], b.df[t], 1e-12);
    }
  }
}
TEST(ParallelFormOps, OutputsOfTrainingDifferByAFactorWithinEps) {
  double largest = 0;
  for (const Head& head : Heads(/*eps=*/1e-3)) {
    double difference = -1;
    RunHead(head, /*parallel=*/true, &difference);
    EXPECT_GE(difference, 0);
    EXPECT_LE(difference, 1e-3);
    largest = std::max(largest, difference);
  }
  EXPECT_GT(largest, 5e-4);  // the bound is nearly reached where input gates are low
}
TEST(AddStabiliserPath, EndsWhereAnInputGateSetsTheStabiliser) {
  // m_1 = i_1 (m_0 is far below), m_2 = F_2 + m_1.
  const std::vector<double> i = {0, -9}, f = {1, 1}, dh_h = {2, 4}, denominator = {1, 3};
  std::vector<double> di(2, 0), df(2, 0);
  StabiliserPathArgs args = {.di = di.data(),
                             .df = df.data(),
                             .i = i.data(),
                             .f = f.data(),
                             .dh_h = dh_h.data(),
                             .denominator = denominator.data(),
                             .T = 2,
                             .m0 = -kInfinity,
                             .eps = 1};
  EXPECT_EQ(AddStabiliserPath(args), 0);
  EXPECT_DOUBLE_EQ(di[0], -1.0 - 1.0);
  EXPECT_EQ(di[1], 0);
  EXPECT_EQ(df[0], 0);
  EXPECT_DOUBLE_EQ(df[1], -1.0 / (1 + std::exp(1.0)));
  // From a large m_0 everything is passed on to it.
  args.m0 = 50;
  EXPECT_DOUBLE_EQ(AddStabiliserPath(args), -2.0);
}
}  // namespace
}  // namespace carousel
