// Op cases: what joins the segments of an mLSTM's sequence, MlstmFold and MlstmFoldBackward. The passes over
// tokens have tests of their own (mlstm_summary_test.cc): what they leave in their workspace is nobody's.
#pragma once
#include <algorithm>

#include "tests/op_cases.h"

namespace carousel::testing {

struct FoldSize {
  int64_t num_segments, index, B, NH, DHQK, DHV;
  MlstmShape Shape() const { return {.B = B, .T = 1, .NH = NH, .DHQK = DHQK, .DHV = DHV, .L = 1}; }
  int64_t pairs() const { return B * NH; }
  // Of element e of a segment's [C | n]: its pair.
  int64_t PairOf(int64_t e) const {
    const int64_t size = DHQK * DHV;
    return e < pairs() * size ? e / size : (e - pairs() * size) / DHQK;
  }
  std::string Name() const {
    return std::to_string(index) + "_of_" + std::to_string(num_segments) + "_" + std::to_string(B) + "x" +
           std::to_string(NH) + "x" + std::to_string(DHQK) + "x" + std::to_string(DHV);
  }
};

// The state before segment `index` as a sum over the segments before it, each with the weight that its true
// value exp(m_j) C_j has by then.
inline OpCase FoldCase(const FoldSize& f, bool with_factors) {
  const int64_t elems = MlstmSummaryElems(f.Shape()), states = MlstmStateGradientElems(f.Shape());
  OpCase c;
  c.name = "MlstmFold_" + f.Name() + (with_factors ? "" : "_state_alone");
  // values, stabilisers and sums of log gates alike are in (-1, 1): a sum above 0 is no less a number
  c.tensors = {{.name = "C", .dims = {f.B, f.NH, f.DHQK, f.DHV}, .role = Role::kWide, .use = Use::kOut},
               {.name = "n", .dims = {f.B, f.NH, f.DHQK}, .role = Role::kWide, .use = Use::kOut},
               {.name = "m", .dims = {f.B, f.NH}, .role = Role::kWide, .use = Use::kOut},
               {.name = "summaries", .dims = {f.num_segments * elems}, .role = Role::kWide}};
  if (with_factors) {
    c.tensors.push_back(
        {.name = "factors", .dims = {f.num_segments, f.B, f.NH}, .role = Role::kWide, .use = Use::kOut});
  }
  c.run = [f](Ops& ops, const Tensors& t) {
    ops.MlstmFold({.initial = {t.at("C"), t.at("n"), t.at("m")},
                   .factors = Optional(t, "factors"),
                   .summaries = t.at("summaries"),
                   .num_segments = f.num_segments,
                   .index = f.index,
                   .shape = f.Shape()});
  };
  c.expected = [f, elems, states](Values& v) {
    const std::vector<double>& s = v["summaries"];
    const auto m = [&](int64_t j, int64_t pair) { return s[j * elems + states + pair]; };
    const auto G = [&](int64_t j, int64_t pair) { return s[j * elems + states + f.pairs() + pair]; };
    // m before segment j: the largest of what each source brings, the start at 0 included
    const auto before = [&](int64_t j, int64_t pair) {
      double start = 0;
      for (int64_t l = 0; l < j; ++l) start += G(l, pair);
      double largest = start;
      for (int64_t l = 0; l < j; ++l) {
        double own = m(l, pair);
        for (int64_t later = l + 1; later < j; ++later) own += G(later, pair);
        largest = std::max(largest, own);
      }
      return largest;
    };
    for (int64_t pair = 0; pair < f.pairs(); ++pair) {
      v["m"][pair] = before(f.index, pair);
      for (int64_t j = 0; j < f.num_segments && v.count("factors") > 0; ++j)
        v["factors"][j * f.pairs() + pair] = std::exp(G(j, pair) + before(j, pair) - before(j + 1, pair));
    }
    for (int64_t e = 0; e < states; ++e) {
      const int64_t pair = f.PairOf(e);
      double sum = 0;
      for (int64_t j = 0; j < f.index; ++j) {
        double exponent = m(j, pair) - before(f.index, pair);
        for (int64_t later = j + 1; later < f.index; ++later) exponent += G(later, pair);
        sum += std::exp(exponent) * s[j * elems + e];
      }
      const int64_t size = f.pairs() * f.DHQK * f.DHV;
      (e < size ? v["C"][e] : v["n"][e - size]) = sum;
    }
  };
  return c;
}

inline OpCase FoldBackwardCase(const FoldSize& f) {
  const int64_t elems = MlstmStateGradientElems(f.Shape());
  OpCase c;
  c.name = "MlstmFoldBackward_" + f.Name();
  c.tensors = {
      {.name = "dC", .dims = {f.B, f.NH, f.DHQK, f.DHV}, .role = Role::kWide, .use = Use::kOut},
      {.name = "dn", .dims = {f.B, f.NH, f.DHQK}, .role = Role::kWide, .use = Use::kOut},
      {.name = "dstates", .dims = {f.num_segments * elems}, .role = Role::kWide},
      {.name = "factors", .dims = {f.num_segments, f.B, f.NH}, .role = Role::kWide, .low = 0, .high = 1}};
  c.run = [f](Ops& ops, const Tensors& t) {
    ops.MlstmFoldBackward({.dlast = {t.at("dC"), t.at("dn"), {}},
                           .dstates = t.at("dstates"),
                           .factors = t.at("factors"),
                           .num_segments = f.num_segments,
                           .index = f.index,
                           .shape = f.Shape()});
  };
  // the recursion from the last segment back
  c.expected = [f, elems](Values& v) {
    for (int64_t e = 0; e < elems; ++e) {
      double gradient = 0;
      for (int64_t j = f.num_segments - 1; j > f.index; --j)
        gradient = v["dstates"][j * elems + e] + v["factors"][j * f.pairs() + f.PairOf(e)] * gradient;
      const int64_t size = f.pairs() * f.DHQK * f.DHV;
      (e < size ? v["dC"][e] : v["dn"][e - size]) = gradient;
    }
  };
  return c;
}

inline void AppendMlstmCases(std::vector<OpCase>& cases) {
  for (const FoldSize& f : {FoldSize{1, 0, 1, 1, 1, 1},
                            {4, 0, 2, 3, 5, 3},
                            {4, 2, 2, 3, 5, 3},
                            {4, 3, 2, 3, 5, 3},
                            {2, 1, 1, 2, 67, 65},
                            {9, 8, 1, 1, 20, 33}}) {
    cases.push_back(FoldCase(f, /*with_factors=*/true));
    cases.push_back(FoldBackwardCase(f));
  }
  cases.push_back(FoldCase({3, 2, 1, 2, 4, 7}, /*with_factors=*/false));
}
}  // namespace carousel::testing
