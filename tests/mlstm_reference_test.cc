// The specification of the mLSTM cell (f64, plain loops) against an independent step-by-step recurrence,
// against finite differences and against the dumps of the public implementation.
#include <gtest/gtest.h>

#include <functional>

#include "checkpoints/safetensors.h"
#include "tests/mlstm_test_util.h"

namespace carousel::mlstm_test {
namespace {

// The recurrent form (arXiv:2405.04517, equations 19 to 27, q scaled by DHQK^-0.5), written for this test
// alone.
Result Recurrence(const Problem& p) {
  const MlstmShape& s = p.shape;
  const int64_t K = s.DHQK, V = s.DHV;
  const bool sigmoid = s.input_gate == InputGate::kSigmoid;
  Result r;
  r.h.resize(p.N() * s.NH * V);
  r.denominator.resize(p.N() * s.NH);
  r.m = r.denominator;
  for (int64_t pair = 0; pair < s.B * s.NH; ++pair) {
    const int64_t b = pair / s.NH, head = pair % s.NH;
    Values C(K * V, 0.0), n(K, 0.0);
    double m = 0;
    if (!p.initial_C.empty()) {
      C.assign(p.initial_C.begin() + pair * K * V, p.initial_C.begin() + (pair + 1) * K * V);
      n.assign(p.initial_n.begin() + pair * K, p.initial_n.begin() + (pair + 1) * K);
      m = p.initial_m[pair];
    }
    for (int64_t t = 0; t < s.T; ++t) {
      const int64_t gate = (b * s.T + t) * s.NH + head;
      if (!p.reset.empty() && p.reset[b * s.T + t]) {
        std::fill(C.begin(), C.end(), 0.0);
        std::fill(n.begin(), n.end(), 0.0);
        m = 0;
      }
      const double log_f = -std::log1p(std::exp(-p.f_pre[gate]));
      const double log_i = sigmoid ? -std::log1p(std::exp(-p.i_pre[gate])) : p.i_pre[gate];
      const double next_m = sigmoid ? 0 : std::max(log_f + m, log_i);
      const double f = std::exp(log_f + m - next_m), i = std::exp(log_i - next_m);
      m = next_m;
      double a = 0;
      Values u(V, 0.0);
      for (int64_t d = 0; d < K; ++d) {
        const double k = p.k[gate * K + d], q = p.q[gate * K + d] / std::sqrt(static_cast<double>(K));
        n[d] = f * n[d] + i * k;
        a += n[d] * q;
        for (int64_t e = 0; e < V; ++e) {
          C[d * V + e] = f * C[d * V + e] + i * k * p.v[gate * V + e];
          u[e] += C[d * V + e] * q;
        }
      }
      const double N = s.normalize ? std::max(std::abs(a), std::exp(-m)) : 1.0;
      for (int64_t e = 0; e < V; ++e) r.h[gate * V + e] = u[e] / (s.normalize ? N + s.eps : 1.0);
      r.denominator[gate] = N;
      r.m[gate] = m;
    }
    r.last_C.insert(r.last_C.end(), C.begin(), C.end());
    r.last_n.insert(r.last_n.end(), n.begin(), n.end());
    r.last_m.push_back(m);
  }
  return r;
}

struct Variant {
  const char* name;
  InputGate gate;
  bool normalize;
};
constexpr Variant kVariants[] = {{"exponential", InputGate::kExponential, true},
                                 {"sigmoid", InputGate::kSigmoid, true},
                                 {"sigmoid, not normalized", InputGate::kSigmoid, false}};
MlstmShape Shape(const Variant& variant, int64_t B, int64_t T, int64_t NH, int64_t DHQK, int64_t DHV,
                 int64_t L) {
  return {.B = B,
          .T = T,
          .NH = NH,
          .DHQK = DHQK,
          .DHV = DHV,
          .L = L,
          .input_gate = variant.gate,
          .normalize = variant.normalize};
}
// A problem with initial state, gradient of the last state and `resets` (token indices of the flattened
// batch).
Problem FullProblem(const MlstmShape& shape, uint64_t seed, const std::vector<int64_t>& resets = {}) {
  Problem p = RandomProblem(shape, seed);
  AddInitialState(p, seed);
  AddLastGradient(p, seed);
  if (!resets.empty()) p.reset.assign(p.N(), 0);
  for (const int64_t t : resets) p.reset[t] = 1;
  return p;
}

TEST(MlstmReference, EqualsTheStepByStepRecurrenceForEveryChunkLength) {
  for (const Variant& variant : kVariants) {
    for (const int64_t T : {1, 2, 7, 13}) {
      for (int64_t L = 1; L <= T + 1; ++L) {
        for (const bool resets : {false, true}) {
          SCOPED_TRACE(testing::Message()
                       << variant.name << " T=" << T << " L=" << L << " resets=" << resets);
          Problem p = RandomProblem(Shape(variant, 2, T, 2, 3, 5, L), 1);
          AddInitialState(p, 1);
          if (resets) {
            p.reset.assign(p.N(), 0);
            for (const int64_t t : {T - 1, T, T + T / 2, T + T / 2 + 1}) p.reset[std::min(t, 2 * T - 1)] = 1;
          }
          p.dh.clear();
          const Result chunkwise = Specification(p), expected = Recurrence(p);
          const auto x = OutputsOf(chunkwise), y = OutputsOf(expected);
          for (size_t e = 0; e < x.size(); ++e) {
            EXPECT_LE(LargestError(*x[e].values, *y[e].values), 1e-12) << x[e].name;
          }
        }
      }
    }
  }
}

TEST(MlstmReference, GradientsDoNotDependOnTheChunkLength) {
  for (const Variant& variant : kVariants) {
    const Problem whole = FullProblem(Shape(variant, 2, 11, 2, 3, 4, 11), 2, {3, 4, 15});
    const Result expected = Specification(whole);
    for (const int64_t L : {1, 2, 3, 4, 5, 10, 100}) {
      SCOPED_TRACE(testing::Message() << variant.name << " L=" << L);
      Problem p = whole;
      p.shape.L = L;
      ExpectClose(Specification(p), expected, 1e-12);
    }
  }
}

TEST(MlstmReference, InitialStateMayBeUpdatedInPlace) {
  const Problem p = FullProblem(Shape(kVariants[0], 2, 9, 2, 3, 4, 4), 3);
  const Result separate = Specification(p),
               in_place = RunAs<double>(p, {"reference"}, /*last_in_place=*/true);
  EXPECT_EQ(separate.h, in_place.h);
  EXPECT_EQ(separate.last_C, in_place.last_C);
  EXPECT_EQ(separate.last_n, in_place.last_n);
  EXPECT_EQ(separate.last_m, in_place.last_m);
}

TEST(MlstmReference, SplitAnywhereWithCarriedStateEqualsTheWhole) {
  for (const Variant& variant : kVariants) {
    const int64_t T = 9, NH = 2, K = 3, V = 4;
    const Problem whole = FullProblem(Shape(variant, 1, T, NH, K, V, 4), 4, {6});
    const Result expected = Specification(whole);
    for (int64_t split = 1; split < T; ++split) {
      SCOPED_TRACE(testing::Message() << variant.name << " split=" << split);
      const auto part = [&](int64_t begin, int64_t end) {
        Problem p = whole;
        p.shape.T = end - begin;
        const auto rows = [&](Values& x, int64_t width) {
          x = Values(&x[begin * width], &x[begin * width] + (end - begin) * width);
        };
        rows(p.q, NH * K), rows(p.k, NH * K), rows(p.v, NH * V), rows(p.dh, NH * V), rows(p.i_pre, NH),
            rows(p.f_pre, NH);
        p.reset = {whole.reset.begin() + begin, whole.reset.begin() + end};
        return p;
      };
      Problem first = part(0, split), second = part(split, T);
      Result a = Specification(first);
      second.initial_C = a.last_C, second.initial_n = a.last_n, second.initial_m = a.last_m;
      const Result b = Specification(second);
      first.dC = b.dC, first.dn = b.dn;
      a = Specification(first);
      const auto join = [](Values x, const Values& y) {
        x.insert(x.end(), y.begin(), y.end());
        return x;
      };
      Result joined = {.h = join(a.h, b.h),
                       .denominator = join(a.denominator, b.denominator),
                       .m = join(a.m, b.m),
                       .last_C = b.last_C,
                       .last_n = b.last_n,
                       .last_m = b.last_m,
                       .dq = join(a.dq, b.dq),
                       .dk = join(a.dk, b.dk),
                       .dv = join(a.dv, b.dv),
                       .di_pre = join(a.di_pre, b.di_pre),
                       .df_pre = join(a.df_pre, b.df_pre),
                       .dC = a.dC,
                       .dn = a.dn,
                       .dm = a.dm};
      ExpectClose(joined, expected, 1e-12);
    }
  }
}

TEST(MlstmReference, PackedDocumentsEqualSeparateDocuments) {
  const std::vector<int64_t> lengths = {3, 1, 6,
                                        2, 1, 4};  // several borders in one chunk, one at the last token
  const int64_t NH = 2, K = 3, V = 4;
  int64_t T = 0;
  for (const int64_t length : lengths) T += length;
  for (const Variant& variant : kVariants) {
    for (const int64_t L : {1, 4, 5, 8, 17}) {
      SCOPED_TRACE(testing::Message() << variant.name << " L=" << L);
      // an initial state that the reset at token 0 discards
      Problem packed = FullProblem(Shape(variant, 1, T, NH, K, V, L), 5, {0});
      for (int64_t d = 0, t = 0; d < static_cast<int64_t>(lengths.size()); t += lengths[d++])
        packed.reset[t] = 1;
      const Result r = Specification(packed);
      for (const Values* gradient : {&r.dC, &r.dn, &r.dm}) {
        for (const double x : *gradient) EXPECT_EQ(x, 0.0);
      }
      for (int64_t d = 0, begin = 0; d < static_cast<int64_t>(lengths.size()); begin += lengths[d++]) {
        const bool is_last = d + 1 == static_cast<int64_t>(lengths.size());
        const int64_t length = lengths[d];
        const auto rows = [&](const Values& x, int64_t width) {
          return Values(&x[begin * width], &x[begin * width] + length * width);
        };
        Problem document;
        document.shape = packed.shape;
        document.shape.T = length;
        document.q = rows(packed.q, NH * K), document.k = rows(packed.k, NH * K);
        document.v = rows(packed.v, NH * V), document.dh = rows(packed.dh, NH * V);
        document.i_pre = rows(packed.i_pre, NH), document.f_pre = rows(packed.f_pre, NH);
        if (is_last) document.dC = packed.dC, document.dn = packed.dn;
        const Result e = Specification(document);
        EXPECT_LE(LargestError(rows(r.h, NH * V), e.h), 1e-12);
        EXPECT_LE(LargestError(rows(r.m, NH), e.m), 1e-12);
        EXPECT_LE(LargestError(rows(r.dq, NH * K), e.dq), 1e-12);
        EXPECT_LE(LargestError(rows(r.dk, NH * K), e.dk), 1e-12);
        EXPECT_LE(LargestError(rows(r.dv, NH * V), e.dv), 1e-12);
        EXPECT_LE(LargestError(rows(r.di_pre, NH), e.di_pre), 1e-12);
        EXPECT_LE(LargestError(rows(r.df_pre, NH), e.df_pre), 1e-12);
        if (is_last) {
          EXPECT_LE(LargestError(r.last_C, e.last_C), 1e-12);
          EXPECT_LE(LargestError(r.last_n, e.last_n), 1e-12);
          EXPECT_LE(LargestError(r.last_m, e.last_m), 1e-12);
        }
      }
    }
  }
}

// ---- finite differences

// Sum of h*dh and of the true last state (stored times e^m) times fixed weights. With frozen != null,
// denominators are those of `frozen`: the numerators h N e^m over a constant.
double Loss(const Problem& p, const Values& dC_true, const Values& dn_true, const Result* frozen) {
  Problem forward_only = p;
  forward_only.dh.clear();
  const Result r = Recurrence(forward_only);
  const MlstmShape& s = p.shape;
  double loss = 0;
  for (size_t e = 0; e < r.h.size(); ++e) {
    const size_t gate = e / s.DHV;
    double h = r.h[e];
    if (frozen != nullptr) {
      h *= r.denominator[gate] / frozen->denominator[gate] * std::exp(r.m[gate] - frozen->m[gate]);
    }
    loss += h * p.dh[e];
  }
  for (size_t e = 0; e < dC_true.size(); ++e) {
    loss += std::exp(r.last_m[e / (s.DHQK * s.DHV)]) * r.last_C[e] * dC_true[e];
  }
  for (size_t e = 0; e < dn_true.size(); ++e)
    loss += std::exp(r.last_m[e / s.DHQK]) * r.last_n[e] * dn_true[e];
  return loss;
}

void ExpectGradientsMatchDifferences(Problem p) {
  const MlstmShape& s = p.shape;
  const Values dC_true = p.dC, dn_true = p.dn;
  const Result forward = Specification(p);
  for (size_t e = 0; e < p.dC.size(); ++e) p.dC[e] *= std::exp(forward.last_m[e / (s.DHQK * s.DHV)]);
  for (size_t e = 0; e < p.dn.size(); ++e) p.dn[e] *= std::exp(forward.last_m[e / s.DHQK]);
  const Result r = Specification(p);
  const Result* const frozen = p.normalizer_gradient == NormalizerGradient::kFrozen ? &forward : nullptr;
  struct Input {
    const char* name;
    Values Problem::*values;
    const Values* gradient;
  };
  const Input inputs[] = {{"q", &Problem::q, &r.dq},
                          {"k", &Problem::k, &r.dk},
                          {"v", &Problem::v, &r.dv},
                          {"i_pre", &Problem::i_pre, &r.di_pre},
                          {"f_pre", &Problem::f_pre, &r.df_pre},
                          {"C", &Problem::initial_C, &r.dC},
                          {"n", &Problem::initial_n, &r.dn},
                          {"m", &Problem::initial_m, &r.dm}};
  for (const Input& input : inputs) {
    if ((p.*input.values).empty()) continue;
    if (input.values == &Problem::initial_m && s.input_gate == InputGate::kSigmoid) continue;  // always 0
    Values differences;
    for (double& x : p.*input.values) {
      const double kept = x, step = 1e-5;
      x = kept + step;
      const double above = Loss(p, dC_true, dn_true, frozen);
      x = kept - step;
      const double below = Loss(p, dC_true, dn_true, frozen);
      x = kept;
      differences.push_back((above - below) / (2 * step));
    }
    EXPECT_LE(RelativeError(*input.gradient, differences), 1e-7) << input.name;
  }
}

TEST(MlstmReference, GradientsEqualFiniteDifferencesOfTheRecurrence) {
  for (const Variant& variant : kVariants) {
    for (const double i_mean : {-3.0, 0.0, 2.0}) {  // denominators at the floor, mixed, above it
      SCOPED_TRACE(testing::Message() << variant.name << " i_mean=" << i_mean);
      Problem p = RandomProblem(Shape(variant, 1, 7, 2, 3, 2, 3), 6, {.i_mean = i_mean, .f_mean = 2});
      p.shape.eps = 0;  // h depends on m through eps only, and backward holds m constant
      AddInitialState(p, 6);
      AddLastGradient(p, 6);
      ExpectGradientsMatchDifferences(p);
      p.reset = {0, 0, 0, 0, 1, 0, 0};
      ExpectGradientsMatchDifferences(p);
    }
  }
}

TEST(MlstmReference, FrozenNormalizerGradientsEqualDifferencesWithConstantDenominators) {
  for (const Variant& variant : kVariants) {
    SCOPED_TRACE(variant.name);
    Problem p = RandomProblem(Shape(variant, 1, 7, 2, 3, 2, 3), 7, {.i_mean = 1, .f_mean = 2});
    p.shape.eps = 0;
    p.normalizer_gradient = NormalizerGradient::kFrozen;
    AddInitialState(p, 7);
    AddLastGradient(p, 7);
    ExpectGradientsMatchDifferences(p);
  }
}

TEST(MlstmReference, ExtremeGatesStayFinite) {
  for (const Variant& variant : kVariants) {
    for (const double i : {-100.0, -15.0, 15.0, 80.0}) {
      for (const double f : {-100.0, -15.0, 15.0, 80.0}) {
        Problem p = FullProblem(Shape(variant, 1, 10, 1, 3, 4, 4), 8);
        for (int64_t t = 0; t < 10; ++t) p.i_pre[t] = t % 3 == 2 ? -i : i, p.f_pre[t] = t % 4 == 3 ? -f : f;
        const auto expect_finite = [&](const Result& r) {
          for (const NamedValues& x : AllOf(r)) {
            for (const double e : *x.values)
              ASSERT_TRUE(std::isfinite(e)) << x.name << " i=" << i << " f=" << f;
          }
        };
        expect_finite(Specification(p));
        expect_finite(RunAs<float>(p, {"reference"}));
      }
    }
  }
}

// ---- dumps of the public implementation

// (B, NH, T, width) to token-major rows.
Values TokenMajor(const Values& x, const MlstmShape& s, int64_t width) {
  Values y(x.size());
  for (int64_t b = 0; b < s.B; ++b) {
    for (int64_t head = 0; head < s.NH; ++head) {
      for (int64_t t = 0; t < s.T; ++t) {
        for (int64_t c = 0; c < width; ++c) {
          y[((b * s.T + t) * s.NH + head) * width + c] = x[((b * s.NH + head) * s.T + t) * width + c];
        }
      }
    }
  }
  return y;
}

TEST(MlstmReference, EqualsTheDumpsOfThePublicImplementation) {
  for (const std::string name :
       {"zero_state", "with_state", "large_gates", "tiny_igate", "siging_norm", "siging_nonorm"}) {
    SCOPED_TRACE(name);
    const auto file = SafetensorsReader::Open(std::string(CAROUSEL_SOURCE_DIR) + "/tests/golden/mlstm_" +
                                              name + ".safetensors");
    ASSERT_TRUE(file.ok()) << file.status();
    const auto read = [&](const std::string& tensor) {
      const auto values = file->ReadAsDouble(tensor);
      EXPECT_TRUE(values.ok()) << values.status();
      return values.ok() ? *values : Values();
    };
    const auto has = [&](const std::string& tensor) { return file->Find(tensor) != nullptr; };
    const std::vector<int64_t> q_shape = file->Find("q")->shape, v_shape = file->Find("v")->shape;
    Problem p;
    MlstmShape& s = p.shape;
    s = {.B = q_shape[0], .T = q_shape[2], .NH = q_shape[1], .DHQK = q_shape[3], .DHV = v_shape[3], .L = 48};
    if (file->metadata().at("input_gate") == "sigmoid") {
      s.input_gate = InputGate::kSigmoid;
      s.normalize = file->metadata().at("normalize") == "True";
    }
    p.q = TokenMajor(read("q"), s, s.DHQK);
    p.k = TokenMajor(read("k"), s, s.DHQK);
    p.v = TokenMajor(read("v"), s, s.DHV);
    p.i_pre = TokenMajor(read("i"), s, 1);
    p.f_pre = TokenMajor(read("f"), s, 1);
    p.dh = TokenMajor(read("dh"), s, s.DHV);
    if (has("c0")) p.initial_C = read("c0"), p.initial_n = read("n0"), p.initial_m = read("m0");
    if (has("dc_true")) {  // the dump's loss weighs the true state C e^m
      p.dC = read("dc_true"), p.dn = read("dn_true");
      const Result forward = Specification(p);
      for (size_t e = 0; e < p.dC.size(); ++e) p.dC[e] *= std::exp(forward.last_m[e / (s.DHQK * s.DHV)]);
      for (size_t e = 0; e < p.dn.size(); ++e) p.dn[e] *= std::exp(forward.last_m[e / s.DHQK]);
    }
    const Result r = Specification(p);
    EXPECT_LE(RelativeError(r.h, TokenMajor(read("h"), s, s.DHV)), 1e-9);
    EXPECT_LE(RelativeError(r.dq, TokenMajor(read("grad.q"), s, s.DHQK)), 1e-9);
    EXPECT_LE(RelativeError(r.dk, TokenMajor(read("grad.k"), s, s.DHQK)), 1e-9);
    EXPECT_LE(RelativeError(r.dv, TokenMajor(read("grad.v"), s, s.DHV)), 1e-9);
    // the dump differentiates through m, on which h depends through eps
    EXPECT_LE(RelativeError(r.di_pre, TokenMajor(read("grad.i"), s, 1)), 1e-5);
    EXPECT_LE(RelativeError(r.df_pre, TokenMajor(read("grad.f"), s, 1)), 1e-5);
    if (has("c_last")) {
      const auto unstabilise = [](Values x, const Values& m) {
        const size_t width = x.size() / m.size();
        for (size_t e = 0; e < x.size(); ++e) x[e] *= std::exp(m[e / width]);
        return x;
      };
      const Values m_last = read("m_last");
      EXPECT_LE(RelativeError(unstabilise(r.last_C, r.last_m), unstabilise(read("c_last"), m_last)), 1e-9);
      EXPECT_LE(RelativeError(unstabilise(r.last_n, r.last_m), unstabilise(read("n_last"), m_last)), 1e-9);
    }
    if (has("grad.c0")) {
      EXPECT_LE(RelativeError(r.dC, read("grad.c0")), 1e-9);
      EXPECT_LE(RelativeError(r.dn, read("grad.n0")), 1e-9);
      EXPECT_LE(RelativeError(r.dm, read("grad.m0")), 1e-5);
    }
  }
}
}  // namespace
}  // namespace carousel::mlstm_test
