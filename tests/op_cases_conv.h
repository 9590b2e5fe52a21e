// Cases of the causal convolution: widths of the filter below, at and above the length of the sequence,
// documents that begin anywhere, states in and out, strides, with and without SiLU.
#pragma once
#include "tests/op_cases.h"

namespace carousel::testing {

struct ConvCase {
  std::string name;
  int64_t B, T, C, K;
  bool silu = true, bias = true, accumulate_dx = false;
  bool initial = false, last = false;  // states (in backward: and their gradients)
  bool last_is_initial = false;        // forward: the state is updated in place
  double resets = 0;  // documents begin at this share of the tokens (1: at each); 0: no such tensor
  int64_t gap = 0;
  bool large = false;  // compared with the specification run in double
};

// y and last, from the definition: a sequence with the state before it, cut into documents, each padded.
inline void CausalConv(const ConvCase& s, Values& v) {
  std::vector<double> y(s.B * s.T * s.C), last(s.B * (s.K - 1) * s.C);
  const auto at = [&](const char* name) { return v.count(name) > 0 ? v[name].data() : nullptr; };
  const double *x = at("x"), *weight = at("weight"), *bias = at("bias"), *initial = at("initial"),
               *reset = at("reset");
  for (int64_t b = 0; b < s.B; ++b) {
    for (int64_t c = 0; c < s.C; ++c) {
      // the last K-1 inputs of the document, oldest first
      std::vector<double> window(s.K - 1);
      for (int64_t i = 0; initial != nullptr && i < s.K - 1; ++i) {
        window[i] = initial[(b * (s.K - 1) + i) * s.C + c];
      }
      for (int64_t t = 0; t < s.T; ++t) {
        const int64_t row = b * s.T + t;
        if (reset != nullptr && reset[row] != 0) window.assign(s.K - 1, 0);
        window.push_back(x[row * s.C + c]);
        double p = bias == nullptr ? 0 : bias[c];
        for (int64_t j = 0; j < s.K; ++j) p += weight[c * s.K + j] * window[j];
        y[row * s.C + c] = s.silu ? p * Sigmoid(p) : p;
        window.erase(window.begin());
      }
      for (int64_t i = 0; i < s.K - 1; ++i) last[(b * (s.K - 1) + i) * s.C + c] = window[i];
    }
  }
  v["y"] = y;
  v["last"] = last;
}

inline std::vector<TensorSpec> ConvInputs(const ConvCase& s) {
  const int64_t N = s.B * s.T;
  std::vector<TensorSpec> tensors = {{.name = "x", .dims = {N, s.C}, .gap = s.gap == 0 ? 0 : s.gap + 3},
                                     {.name = "weight", .dims = {s.C, s.K}}};
  if (s.bias) tensors.push_back({.name = "bias", .dims = {s.C}, .role = Role::kWide});
  if (s.resets > 0) {
    tensors.push_back({.name = "reset", .dims = {N}, .role = Role::kU8, .low = s.resets, .high = s.resets});
  }
  if (s.initial) {
    tensors.push_back({.name = "initial", .dims = {s.B, s.K - 1, s.C}, .role = Role::kWide});
  }
  return tensors;
}

inline OpCase ConvForwardCase(const ConvCase& s) {
  OpCase result = {.name = "CausalConvForward_" + s.name,
                   .tensors = ConvInputs(s),
                   .run =
                       [s](Ops& ops, const Tensors& t) {
                         ops.CausalConvForward({.y = t.at("y"),
                                                .last = Optional(t, "last"),
                                                .x = t.at("x"),
                                                .weight = t.at("weight"),
                                                .bias = Optional(t, "bias"),
                                                .reset = Optional(t, "reset"),
                                                .initial = Optional(t, "initial"),
                                                .shape = {.B = s.B, .T = s.T, .C = s.C, .K = s.K},
                                                .silu = s.silu});
                       },
                   .wide_error = 4 + 2 * static_cast<double>(s.K)};
  result.tensors.push_back({.name = "y", .dims = {s.B * s.T, s.C}, .use = Use::kOut, .gap = s.gap});
  if (s.last) {
    result.tensors.push_back({.name = "last",
                              .dims = {s.B, s.K - 1, s.C},
                              .role = Role::kWide,
                              .use = Use::kOut,
                              .same_memory_as = s.last_is_initial ? "initial" : ""});
  }
  if (!s.large) result.expected = [s](Values& v) { CausalConv(s, v); };
  return result;
}

inline OpCase ConvBackwardCase(const ConvCase& s) {
  OpCase result = {.name = "CausalConvBackward_" + s.name,
                   .tensors = ConvInputs(s),
                   .run =
                       [s](Ops& ops, const Tensors& t) {
                         ops.CausalConvBackward({.dx = t.at("dx"),
                                                 .dweight = t.at("dweight"),
                                                 .dbias = Optional(t, "dbias"),
                                                 .dinitial = Optional(t, "dinitial"),
                                                 .dy = t.at("dy"),
                                                 .dlast = Optional(t, "dlast"),
                                                 .x = t.at("x"),
                                                 .weight = t.at("weight"),
                                                 .bias = Optional(t, "bias"),
                                                 .reset = Optional(t, "reset"),
                                                 .initial = Optional(t, "initial"),
                                                 .shape = {.B = s.B, .T = s.T, .C = s.C, .K = s.K},
                                                 .silu = s.silu,
                                                 .accumulate_dx = s.accumulate_dx});
                       },
                   // sums over all tokens in dweight and dbias
                   .wide_error = 16 + 0.25 * static_cast<double>(s.B * s.T),
                   .expected_error = kFiniteDifferenceError};
  const int64_t N = s.B * s.T;
  std::vector<TensorSpec>& tensors = result.tensors;
  tensors.push_back({.name = "dy", .dims = {N, s.C}, .gap = s.gap == 0 ? 0 : s.gap + 1});
  tensors.push_back(
      {.name = "dx", .dims = {N, s.C}, .use = s.accumulate_dx ? Use::kAccumulate : Use::kOut, .gap = s.gap});
  tensors.push_back({.name = "dweight", .dims = {s.C, s.K}, .role = Role::kWide, .use = Use::kAccumulate});
  if (s.bias)
    tensors.push_back({.name = "dbias", .dims = {s.C}, .role = Role::kWide, .use = Use::kAccumulate});
  if (s.initial) {
    tensors.push_back(
        {.name = "dinitial", .dims = {s.B, s.K - 1, s.C}, .role = Role::kWide, .use = Use::kOut});
  }
  if (s.last) tensors.push_back({.name = "dlast", .dims = {s.B, s.K - 1, s.C}, .role = Role::kWide});
  if (s.large) return result;
  result.expected = [s](Values& v) {
    const auto loss = [s](Values& u) {
      CausalConv(s, u);
      return Dot(u["dy"], u["y"]) + (s.last ? Dot(u["dlast"], u["last"]) : 0.0);
    };
    const std::vector<double> dx = NumericGradient(v, "x", loss);
    if (s.accumulate_dx) {
      AddTo(v["dx"], dx);
    } else {
      v["dx"] = dx;
    }
    AddTo(v["dweight"], NumericGradient(v, "weight", loss));
    if (s.bias) AddTo(v["dbias"], NumericGradient(v, "bias", loss));
    if (s.initial) v["dinitial"] = NumericGradient(v, "initial", loss);
  };
  return result;
}

inline void AppendConvCases(std::vector<OpCase>& cases) {
  const auto both = [&](const ConvCase& s) {
    cases.push_back(ConvForwardCase(s));
    cases.push_back(ConvBackwardCase(s));
  };
  both({.name = "plain", .B = 2, .T = 9, .C = 5, .K = 4});
  both({.name = "one_tap", .B = 2, .T = 5, .C = 3, .K = 1, .initial = true, .last = true, .resets = 0.5});
  both({.name = "two_taps", .B = 1, .T = 8, .C = 17, .K = 2, .initial = true, .last = true});
  both({.name = "seven_taps", .B = 2, .T = 23, .C = 6, .K = 7, .initial = true, .last = true, .resets = 0.3});
  both({.name = "linear", .B = 1, .T = 11, .C = 7, .K = 4, .silu = false, .last = true});
  both({.name = "without_bias", .B = 2, .T = 6, .C = 4, .K = 3, .bias = false, .initial = true});
  both({.name = "accumulate", .B = 1, .T = 12, .C = 9, .K = 4, .accumulate_dx = true, .resets = 0.2});
  both({.name = "shorter_than_the_filter",
        .B = 3,
        .T = 2,
        .C = 5,
        .K = 7,
        .initial = true,
        .last = true,
        .last_is_initial = true,
        .resets = 0.3});
  both({.name = "short_without_initial", .B = 2, .T = 3, .C = 5, .K = 7, .last = true});
  both({.name = "one_token",
        .B = 3,
        .T = 1,
        .C = 16,
        .K = 4,
        .initial = true,
        .last = true,
        .last_is_initial = true});
  both(
      {.name = "one_channel", .B = 1, .T = 40, .C = 1, .K = 4, .initial = true, .last = true, .resets = 0.2});
  both({.name = "strided",
        .B = 2,
        .T = 19,
        .C = 21,
        .K = 4,
        .accumulate_dx = true,
        .initial = true,
        .last = true,
        .resets = 0.2,
        .gap = 4});
  // every token starts a document: only the newest tap counts
  both({.name = "documents_of_one",
        .B = 1,
        .T = 9,
        .C = 8,
        .K = 4,
        .initial = true,
        .last = true,
        .resets = 1});
  // several partial sums, sequences that end inside of a task
  both({.name = "large",
        .B = 3,
        .T = 171,
        .C = 83,
        .K = 4,
        .initial = true,
        .last = true,
        .resets = 0.05,
        .gap = 2,
        .large = true});
  both({.name = "large_five_taps", .B = 2, .T = 130, .C = 40, .K = 5, .accumulate_dx = true, .large = true});
}
}  // namespace carousel::testing
