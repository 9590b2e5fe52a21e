// The specification of the sLSTM cell (f64, plain loops) against the dumps of the public implementation,
// finite differences, and what must hold for states, documents and the options of the gradient.
#include <gtest/gtest.h>

#include "checkpoints/safetensors.h"
#include "tests/slstm_test_util.h"

namespace carousel::slstm_test {
namespace {

// (T, B, width) of the dumps to (B, T, width).
Values SequenceMajor(const Values& x, const SlstmShape& s) {
  const int64_t width = static_cast<int64_t>(x.size()) / (s.B * s.T);
  Values y;
  for (int64_t b = 0; b < s.B; ++b) {
    for (int64_t t = 0; t < s.T; ++t)
      y.insert(y.end(), x.begin() + (t * s.B + b) * width, x.begin() + (t * s.B + b + 1) * width);
  }
  return y;
}
// (H, gate, D*D) of the dumps to (gate, H, D*D).
Values GateMajor(const Values& x, const SlstmShape& s) {
  Values y(x.size());
  for (int64_t head = 0; head < s.NH; ++head) {
    for (int64_t g = 0; g < 4; ++g) {
      std::copy_n(x.begin() + (head * 4 + g) * s.D * s.D, s.D * s.D,
                  y.begin() + (g * s.NH + head) * s.D * s.D);
    }
  }
  return y;
}
// (4, B, width) of the dumps.
State StateOf(const Values& x) {
  const auto part = [&](size_t i) {
    return Values(x.begin() + i * x.size() / 4, x.begin() + (i + 1) * x.size() / 4);
  };
  return {part(0), part(1), part(2), part(3)};
}

TEST(SlstmReference, EqualsTheDumpsOfThePublicImplementation) {
  for (const std::string name : {"zero_state", "with_state"}) {
    SCOPED_TRACE(name);
    const auto file = SafetensorsReader::Open(std::string(CAROUSEL_SOURCE_DIR) + "/tests/golden/slstm_" +
                                              name + ".safetensors");
    ASSERT_TRUE(file.ok()) << file.status();
    const auto read = [&](const std::string& tensor) {
      const auto values = file->ReadAsDouble(tensor);
      EXPECT_TRUE(values.ok()) << values.status();
      return values.ok() ? *values : Values();
    };
    const std::vector<int64_t> wx_shape = file->Find("wx")->shape, R_shape = file->Find("R")->shape;
    Problem p;
    p.shape = {.B = wx_shape[1], .T = wx_shape[0], .NH = R_shape[0], .D = R_shape[2]};
    p.wx = SequenceMajor(read("wx"), p.shape);
    p.R = GateMajor(read("R"), p.shape);
    p.b = read("b");
    p.dy = SequenceMajor(read("dy"), p.shape);
    p.initial = StateOf(read("s0"));
    const Result r = Specification(p);
    EXPECT_LE(RelativeError(r.y, SequenceMajor(read("y"), p.shape)), 1e-14);
    const State last = StateOf(read("last"));
    EXPECT_LE(RelativeError(r.last.y, last.y), 1e-14);
    EXPECT_LE(RelativeError(r.last.c, last.c), 1e-14);
    EXPECT_LE(RelativeError(r.last.n, last.n), 1e-14);
    EXPECT_LE(RelativeError(r.last.m, last.m), 1e-14);
    EXPECT_LE(RelativeError(r.dwx, SequenceMajor(read("grad.wx"), p.shape)), 1e-13);
    EXPECT_LE(RelativeError(r.dR, GateMajor(read("grad.R"), p.shape)), 1e-13);
    EXPECT_LE(RelativeError(r.db, read("grad.b")), 1e-13);
    if (file->Find("grad.s0") == nullptr) continue;
    const State dinitial = StateOf(read("grad.s0"));
    EXPECT_LE(RelativeError(r.dinitial.y, dinitial.y), 1e-13);
    EXPECT_LE(RelativeError(r.dinitial.c, dinitial.c), 1e-13);
    EXPECT_LE(RelativeError(r.dinitial.n, dinitial.n), 1e-13);
    EXPECT_LE(RelativeError(r.dinitial.m, dinitial.m), 1e-13);
  }
}

// <y, dy> + <last, dlast>. The stabiliser of the last state is a choice that dlast is relative to: c and n
// are brought to the given one first.
double Loss(const Problem& p, const Values& m) {
  Problem forward = p;
  forward.dy.clear();
  const Result r = Specification(forward);
  double loss = 0;
  for (size_t e = 0; e < p.dy.size(); ++e) loss += p.dy[e] * r.y[e];
  for (size_t e = 0; e < p.dlast.y.size(); ++e) {
    const double scale = std::exp(r.last.m[e] - m[e]);
    loss += p.dlast.y[e] * r.last.y[e] + scale * (p.dlast.c[e] * r.last.c[e] + p.dlast.n[e] * r.last.n[e]);
  }
  return loss;
}
void ExpectGradient(const char* name, const Problem& p, Values Problem::*member, const Values& gradient,
                    const Values& m) {
  ASSERT_EQ((p.*member).size(), gradient.size());
  const double h = 1e-5;
  for (size_t e = 0; e < gradient.size(); ++e) {
    Problem up = p, down = p;
    (up.*member)[e] += h;
    (down.*member)[e] -= h;
    const double difference = (Loss(up, m) - Loss(down, m)) / (2 * h);
    EXPECT_NEAR(gradient[e], difference, 1e-8 * (1 + std::abs(difference))) << name << " " << e;
  }
}
void ExpectStateGradient(const char* name, const Problem& p, Values State::*member, const State& gradient,
                         const Values& m) {
  const double h = 1e-5;
  for (size_t e = 0; e < (gradient.*member).size(); ++e) {
    Problem up = p, down = p;
    (up.initial.*member)[e] += h;
    (down.initial.*member)[e] -= h;
    const double difference = (Loss(up, m) - Loss(down, m)) / (2 * h);
    EXPECT_NEAR((gradient.*member)[e], difference, 1e-8 * (1 + std::abs(difference)))
        << "dinitial." << name << " " << e;
  }
}
TEST(SlstmReference, GradientsEqualFiniteDifferences) {
  for (const bool with_resets : {false, true}) {
    SCOPED_TRACE(with_resets);
    Problem p = RandomProblem({.B = 2, .T = 7, .NH = 2, .D = 3}, 21);
    AddInitialState(p, 22);
    AddLastGradient(p, 23);
    if (with_resets) {
      p.reset.assign(p.N(), 0);
      for (const int64_t row : {0, 3, 7 + 4, 7 + 5}) p.reset[row] = 1;
    }
    const Result r = Specification(p);
    ExpectGradient("wx", p, &Problem::wx, r.dwx, r.last.m);
    ExpectGradient("R", p, &Problem::R, r.dR, r.last.m);
    ExpectGradient("b", p, &Problem::b, r.db, r.last.m);
    ExpectStateGradient("y", p, &State::y, r.dinitial, r.last.m);
    ExpectStateGradient("c", p, &State::c, r.dinitial, r.last.m);
    ExpectStateGradient("n", p, &State::n, r.dinitial, r.last.m);
    ExpectStateGradient("m", p, &State::m, r.dinitial, r.last.m);
  }
}

TEST(SlstmReference, SegmentsEqualTheWholeSequence) {
  for (const double clip : {0.0, 0.1}) {
    for (const bool cut : {false, true}) {
      SCOPED_TRACE(testing::Message() << "clip " << clip << " cut " << cut);
      Problem p = RandomProblem({.B = 3, .T = 11, .NH = 2, .D = 5}, 31);
      AddInitialState(p, 32);
      AddLastGradient(p, 33);
      p.reset.assign(p.N(), 0);
      p.reset[4] = p.reset[11 + 6] = p.reset[22 + 9] = 1;  // 4: the first token of a segment
      p.gradient_clip = clip;
      p.gradient_cut = cut;
      const Result whole = Specification(p);
      const int64_t bounds[] = {0, 4, 5, 11};
      State states[4] = {p.initial};
      std::vector<Result> parts(3);
      for (int i = 0; i < 3; ++i) {
        Problem part = Segment(p, bounds[i], bounds[i + 1], states[i]);
        part.dy.clear();
        parts[i] = Specification(part);
        EXPECT_EQ(parts[i].y, Tokens(whole.y, p.shape, bounds[i], bounds[i + 1]));
        EXPECT_EQ(parts[i].m, Tokens(whole.m, p.shape, bounds[i], bounds[i + 1]));
        states[i + 1] = parts[i].last;
      }
      EXPECT_EQ(states[3].y, whole.last.y);
      EXPECT_EQ(states[3].c, whole.last.c);
      EXPECT_EQ(states[3].n, whole.last.n);
      EXPECT_EQ(states[3].m, whole.last.m);
      // backward from the last segment to the first; the gradient of weights is a sum of three
      State gradient = p.dlast;
      Values dR(whole.dR.size(), 0.0);
      for (int i = 2; i >= 0; --i) {
        Problem part = Segment(p, bounds[i], bounds[i + 1], states[i]);
        part.dlast = gradient;
        const Result r = Specification(part);
        EXPECT_EQ(r.dwx, Tokens(whole.dwx, p.shape, bounds[i], bounds[i + 1]));
        gradient = r.dinitial;
        for (size_t e = 0; e < dR.size(); ++e) dR[e] += r.dR[e];
      }
      EXPECT_EQ(gradient.y, whole.dinitial.y);
      EXPECT_EQ(gradient.c, whole.dinitial.c);
      EXPECT_EQ(gradient.n, whole.dinitial.n);
      EXPECT_EQ(gradient.m, whole.dinitial.m);
      EXPECT_LE(RelativeError(dR, whole.dR), 1e-14);
    }
  }
}

TEST(SlstmReference, PackedDocumentsEqualSeparateSequences) {
  Problem packed = RandomProblem({.B = 1, .T = 12, .NH = 2, .D = 4}, 41);
  AddInitialState(packed, 42);  // belongs to what came before: not seen, row 0 starts a document
  AddLastGradient(packed, 43);
  packed.reset.assign(12, 0);
  const std::vector<int64_t> bounds = {0, 1, 6, 7, 12};
  for (size_t i = 0; i + 1 < bounds.size(); ++i) packed.reset[bounds[i]] = 1;
  const Result whole = Specification(packed);
  Values dR(whole.dR.size(), 0.0), db(whole.db.size(), 0.0);
  for (size_t i = 0; i + 1 < bounds.size(); ++i) {
    Problem document = Segment(packed, bounds[i], bounds[i + 1], {});
    document.reset.clear();
    const Result r = Specification(document);
    EXPECT_EQ(r.y, Tokens(whole.y, packed.shape, bounds[i], bounds[i + 1]));
    EXPECT_EQ(r.c, Tokens(whole.c, packed.shape, bounds[i], bounds[i + 1]));
    EXPECT_EQ(r.n, Tokens(whole.n, packed.shape, bounds[i], bounds[i + 1]));
    EXPECT_EQ(r.m, Tokens(whole.m, packed.shape, bounds[i], bounds[i + 1]));
    EXPECT_EQ(r.dwx, Tokens(whole.dwx, packed.shape, bounds[i], bounds[i + 1]));
    for (size_t e = 0; e < dR.size(); ++e) dR[e] += r.dR[e];
    for (size_t e = 0; e < db.size(); ++e) db[e] += r.db[e];
  }
  EXPECT_LE(RelativeError(whole.dR, dR), 1e-14);
  EXPECT_LE(RelativeError(whole.db, db), 1e-14);
  const Values zeros(packed.Width(), 0.0);
  EXPECT_EQ(whole.dinitial.y, zeros);
  EXPECT_EQ(whole.dinitial.c, zeros);
  EXPECT_EQ(whole.dinitial.n, zeros);
  EXPECT_EQ(whole.dinitial.m, zeros);
}

TEST(SlstmReference, EveryElementIsFreshOnItsOwn) {
  // Sequence 0 begins anew, sequence 1 goes on; in a third only some elements are fresh.
  Problem p = RandomProblem({.B = 3, .T = 5, .NH = 2, .D = 4}, 51);
  AddInitialState(p, 52);
  const int64_t width = p.Width();
  const auto clear = [&](int64_t e) {
    for (Values* x : {&p.initial.y, &p.initial.c, &p.initial.n, &p.initial.m}) (*x)[e] = 0;
  };
  for (int64_t e = 0; e < width; ++e) clear(e);
  for (int64_t e = 1; e < width; e += 3) clear(2 * width + e);
  // a fresh element takes raw^i for m even where lambda is larger
  for (double& x : p.wx) x -= 4;
  const Result r = Specification(p);
  Problem alone = p;  // sequence 0 without any state
  alone.shape.B = 1;
  alone.wx.resize(p.wx.size() / 3);
  alone.dy.resize(p.dy.size() / 3);
  alone.initial = {};
  const Result first = Specification(alone);
  EXPECT_EQ(first.y, Values(r.y.begin(), r.y.begin() + 5 * width));
  EXPECT_EQ(first.m, Values(r.m.begin(), r.m.begin() + 5 * width));
  EXPECT_EQ(first.dwx, Values(r.dwx.begin(), r.dwx.begin() + 5 * 4 * width));
  for (int64_t b = 0; b < 3; ++b) {
    for (int64_t e = 0; e < width; ++e) {
      const int64_t row = b * 5, head = e / 4;
      double raw[2];
      for (int64_t g = 0; g < 2; ++g) {
        raw[g] = p.wx[row * 4 * width + g * width + e] + p.b[g * width + e];
        for (int64_t in = 0; in < 4; ++in)
          raw[g] += p.R[(g * width + e) * 4 + in] * p.initial.y[b * width + head * 4 + in];
      }
      const double lambda = p.initial.m[b * width + e] - std::log1p(std::exp(-raw[1]));
      const bool fresh = p.initial.n[b * width + e] == 0;
      EXPECT_NEAR(r.m[row * width + e], fresh ? raw[0] : std::max(raw[0], lambda), 1e-13);
      if (!fresh) continue;
      EXPECT_EQ(r.n[row * width + e], 1) << "n = i = 1";
      EXPECT_EQ(r.dinitial.m[b * width + e], 0);
    }
  }
}

TEST(SlstmReference, ClipAndCutChangeTheGradientThroughTheRecurrenceOnly) {
  Problem p = RandomProblem({.B = 2, .T = 9, .NH = 2, .D = 4}, 61);
  AddInitialState(p, 62);
  AddLastGradient(p, 63);
  const Result plain = Specification(p);
  Problem clipped = p;
  clipped.gradient_clip = 0.05;
  const Result small = Specification(clipped);
  ExpectEqualBits(OutputsOf(small), OutputsOf(plain));
  EXPECT_GT(RelativeError(small.dwx, plain.dwx), 1e-3);
  clipped.gradient_clip = 1e6;
  ExpectEqualBits(AllOf(Specification(clipped)), AllOf(plain));
  // Cut: the gradient of the cell as if R y_{t-1} were an input. That is the plain gradient of a cell with
  // R = 0 whose wx contains the recurrent part.
  Problem cut = p;
  cut.gradient_cut = true;
  const Result r = Specification(cut);
  ExpectEqualBits(OutputsOf(r), OutputsOf(plain));
  Problem open = p;
  open.dlast.y.assign(open.dlast.y.size(), 0.0);
  std::fill(open.R.begin(), open.R.end(), 0.0);
  const int64_t width = p.Width(), D = p.shape.D;
  for (int64_t n = 0; n < p.N(); ++n) {
    const int64_t b = n / p.shape.T, t = n % p.shape.T;
    for (int64_t unit = 0; unit < 4 * width; ++unit) {
      const int64_t head = unit / D % p.shape.NH;
      for (int64_t in = 0; in < D; ++in) {
        const double before =
            t == 0 ? p.initial.y[b * width + head * D + in] : plain.y[(n - 1) * width + head * D + in];
        open.wx[n * 4 * width + unit] += p.R[unit * D + in] * before;
      }
    }
  }
  const Result expected = Specification(open);
  EXPECT_LE(RelativeError(r.dwx, expected.dwx), 1e-13);
  EXPECT_LE(RelativeError(r.dR, expected.dR), 1e-13);
  EXPECT_LE(RelativeError(r.dinitial.c, expected.dinitial.c), 1e-13);
  EXPECT_EQ(r.dinitial.y, Values(r.dinitial.y.size(), 0.0));
}

TEST(SlstmReference, GradientsOfWeightsAreSumsOverTokensAndAccumulate) {
  Problem p = RandomProblem({.B = 3, .T = 6, .NH = 3, .D = 2}, 71);
  AddInitialState(p, 72);
  p.reset.assign(p.N(), 0);
  p.reset[2] = p.reset[6] = 1;
  const Result r = Specification(p, {.accumulated = 0.75});
  const int64_t width = p.Width(), D = p.shape.D;
  Values dR(4 * width * D, 0.75), db(4 * width, 0.75);
  for (int64_t n = 0; n < p.N(); ++n) {
    const int64_t b = n / p.shape.T, t = n % p.shape.T;
    for (int64_t unit = 0; unit < 4 * width; ++unit) {
      const double draw = r.dwx[n * 4 * width + unit];
      db[unit] += draw;
      if (p.reset[n]) continue;
      for (int64_t in = 0; in < D; ++in) {
        const int64_t column = unit / D % p.shape.NH * D + in;
        dR[unit * D + in] +=
            draw * (t == 0 ? p.initial.y[b * width + column] : r.y[(n - 1) * width + column]);
      }
    }
  }
  EXPECT_LE(RelativeError(r.dR, dR), 1e-14);
  EXPECT_LE(RelativeError(r.db, db), 1e-14);
}

TEST(SlstmReference, ExtremeGatesGiveFiniteValuesAndGradients) {
  for (const double size : {100.0, 700.0}) {
    Problem p = RandomProblem({.B = 16, .T = 24, .NH = 1, .D = 4}, 81);
    AddLastGradient(p, 82);
    // every gate of every element at -size, its own value or +size, in all combinations over time
    for (size_t e = 0; e < p.wx.size(); ++e)
      p.wx[e] += size * static_cast<double>(static_cast<int64_t>(RandomUint64(83, 0, e) % 3) - 1);
    const Result r = Specification(p);
    for (const NamedValues& x : AllOf(r)) {
      for (const double value : *x.values) ASSERT_TRUE(std::isfinite(value)) << x.name << " " << size;
    }
    for (const double n : r.n) EXPECT_GE(n, 1);
  }
}

TEST(SlstmReference, NotANumberReachesTheOutputOfItsSequenceOnly) {
  for (int64_t gate = 0; gate < 4; ++gate) {
    for (const bool fresh : {true, false}) {
      Problem p = RandomProblem({.B = 2, .T = 4, .NH = 1, .D = 3}, 91);
      p.dy.clear();
      const int64_t token = fresh ? 0 : 1;
      p.wx[token * 12 + gate * 3 + 1] = std::nan("");
      const Result r = Specification(p);
      EXPECT_TRUE(std::isnan(r.y[3 * 3 + 1])) << "gate " << gate << " fresh " << fresh;
      for (int64_t e = 12; e < 24; ++e) EXPECT_TRUE(std::isfinite(r.y[e]));
    }
  }
}

TEST(SlstmReference, InPlaceGivesTheSameBits) {
  Problem p = RandomProblem({.B = 2, .T = 5, .NH = 2, .D = 3}, 101);
  AddInitialState(p, 102);
  AddLastGradient(p, 103);
  ExpectEqualBits(AllOf(Specification(p, {.in_place = true})), AllOf(Specification(p)));
}

TEST(SlstmReference, AnEmptySequencePassesItsStateAndGradientThrough) {
  Problem p = RandomProblem({.B = 2, .T = 0, .NH = 2, .D = 3}, 111);
  AddInitialState(p, 112);
  AddLastGradient(p, 113);
  const Result r = Specification(p);
  EXPECT_EQ(r.last.y, p.initial.y);
  EXPECT_EQ(r.last.c, p.initial.c);
  EXPECT_EQ(r.last.n, p.initial.n);
  EXPECT_EQ(r.last.m, p.initial.m);
  EXPECT_EQ(r.dinitial.y, p.dlast.y);
  EXPECT_EQ(r.dinitial.c, p.dlast.c);
  EXPECT_EQ(r.dinitial.n, p.dlast.n);
}
}  // namespace
}  // namespace carousel::slstm_test
