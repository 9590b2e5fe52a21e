// Cases of the per-head norm with scale, bias, skip and output gate.
#pragma once
#include "tests/op_cases.h"

namespace carousel::testing {

struct HeadNormSize {
  enum class Gate { kNone, kSigmoid, kSilu };
  enum class Weight { kNone, kPlain, kResidual };
  int64_t N, NH, DHV;
  bool bias = false;
  int64_t gap = 0;  // between rows of o_pre; those of the other strided tensors differ from it
  Gate gate = Gate::kSigmoid;
  bool skip = false;
  Weight weight = Weight::kPlain;
  bool large = false;

  OutputGate output_gate() const { return gate == Gate::kSilu ? OutputGate::kSilu : OutputGate::kSigmoid; }
  bool residual_weight() const { return weight == Weight::kResidual; }
  int64_t Gap(int64_t more) const { return gap == 0 ? 0 : gap + more; }
};

// y of one element from its xhat; e is its place in (N, NH*DHV).
inline double HeadNormOutput(Values& v, const HeadNormSize& size, int64_t e, double xhat) {
  const int64_t column = e % (size.NH * size.DHV);
  double scale = size.residual_weight() ? 1 : 0;
  scale += size.weight == HeadNormSize::Weight::kNone ? 1 : v["weight"][column];
  double z = xhat * scale;
  if (v.count("bias")) z += v["bias"][column];
  if (size.skip) z += v["skip_weight"][column] * v["skip"][e];
  switch (size.gate) {
    case HeadNormSize::Gate::kNone:
      return z;
    case HeadNormSize::Gate::kSigmoid:
      return Sigmoid(v["o_pre"][e]) * z;
    default:
      return v["o_pre"][e] * Sigmoid(v["o_pre"][e]) * z;
  }
}

// The inputs that forward and backward share, except h.
inline void AppendHeadNormInputs(OpCase& to, const HeadNormSize& size, double o_pre_range) {
  const int64_t N = size.N, width = size.NH * size.DHV;
  if (size.gate != HeadNormSize::Gate::kNone) {
    to.tensors.push_back(
        {.name = "o_pre", .dims = {N, width}, .gap = size.gap, .low = -o_pre_range, .high = o_pre_range});
  }
  if (size.weight != HeadNormSize::Weight::kNone) {
    const double zero = size.residual_weight() ? -1 : 0;
    to.tensors.push_back(
        {.name = "weight", .dims = {width}, .role = Role::kWide, .low = zero + 0.5, .high = zero + 1.5});
  }
  if (size.bias) to.tensors.push_back({.name = "bias", .dims = {width}, .role = Role::kWide});
  if (size.skip) {
    to.tensors.push_back({.name = "skip", .dims = {N, width}, .gap = size.Gap(2)});
    to.tensors.push_back({.name = "skip_weight", .dims = {width}, .role = Role::kWide});
  }
}

inline OpCase HeadNormGateForwardCase(const std::string& name, const HeadNormSize& size) {
  constexpr double kEps = 1e-3;
  const int64_t N = size.N, width = size.NH * size.DHV;
  OpCase result = {.name = "HeadNormGateForward_" + name,
                   .tensors = {{.name = "y", .dims = {N, width}, .use = Use::kOut},
                               {.name = "mean", .dims = {N, size.NH}, .role = Role::kWide, .use = Use::kOut},
                               {.name = "rstd", .dims = {N, size.NH}, .role = Role::kWide, .use = Use::kOut},
                               {.name = "h", .dims = {N, width}, .low = -1, .high = 2}},
                   .run =
                       [size](Ops& ops, const Tensors& t) {
                         ops.HeadNormGateForward({.y = t.at("y"),
                                                  .mean = t.at("mean"),
                                                  .rstd = t.at("rstd"),
                                                  .h = t.at("h"),
                                                  .o_pre = Optional(t, "o_pre"),
                                                  .weight = Optional(t, "weight"),
                                                  .bias = Optional(t, "bias"),
                                                  .skip = Optional(t, "skip"),
                                                  .skip_weight = Optional(t, "skip_weight"),
                                                  .NH = size.NH,
                                                  .eps = kEps,
                                                  .gate = size.output_gate(),
                                                  .residual_weight = size.residual_weight()});
                       },
                   .expected =
                       [size](Values& v) {
                         for (int64_t i = 0; i < size.N * size.NH; ++i) {
                           const double* h = v["h"].data() + i * size.DHV;
                           double mean = 0, variance = 0;
                           for (int64_t c = 0; c < size.DHV; ++c)
                             mean += h[c] / static_cast<double>(size.DHV);
                           for (int64_t c = 0; c < size.DHV; ++c) {
                             variance += (h[c] - mean) * (h[c] - mean) / static_cast<double>(size.DHV);
                           }
                           v["mean"][i] = mean;
                           v["rstd"][i] = 1 / std::sqrt(variance + kEps);
                           for (int64_t e = i * size.DHV; e < (i + 1) * size.DHV; ++e) {
                             v["y"][e] = HeadNormOutput(v, size, e, (v["h"][e] - mean) * v["rstd"][i]);
                           }
                         }
                       },
                   // a variance near eps magnifies rounding of the mean by sqrt(1 / eps)
                   .wide_error = 64};
  AppendHeadNormInputs(result, size, 8);
  return result;
}

// The op gets mean and rstd as numbers. They are chosen freely here, so the gradient is checked through a
// loss in which h enters xhat = (h - mean) rstd, and mean and rstd change with h as those of the norm would:
// d mean / dh_c = 1 / DHV; d rstd / dh_c = -rstd^3 (h_c - mean) / DHV.
inline OpCase HeadNormGateBackwardCase(const std::string& name, const HeadNormSize& size) {
  const int64_t N = size.N, width = size.NH * size.DHV;
  const Role wide = Role::kWide;
  OpCase result = {.name = "HeadNormGateBackward_" + name,
                   .tensors = {{.name = "dh", .dims = {N, width}, .use = Use::kOut},
                               {.name = "dy", .dims = {N, width}},
                               {.name = "h", .dims = {N, width}, .low = -1, .high = 2},
                               {.name = "mean", .dims = {N, size.NH}, .role = wide, .low = 0.4, .high = 0.6},
                               {.name = "rstd", .dims = {N, size.NH}, .role = wide, .low = 0.5, .high = 1}},
                   .run =
                       [size](Ops& ops, const Tensors& t) {
                         ops.HeadNormGateBackward({.dh = t.at("dh"),
                                                   .do_pre = Optional(t, "do_pre"),
                                                   .dskip = Optional(t, "dskip"),
                                                   .dweight = Optional(t, "dweight"),
                                                   .dbias = Optional(t, "dbias"),
                                                   .dskip_weight = Optional(t, "dskip_weight"),
                                                   .dy = t.at("dy"),
                                                   .h = t.at("h"),
                                                   .o_pre = Optional(t, "o_pre"),
                                                   .weight = Optional(t, "weight"),
                                                   .bias = Optional(t, "bias"),
                                                   .skip = Optional(t, "skip"),
                                                   .skip_weight = Optional(t, "skip_weight"),
                                                   .mean = t.at("mean"),
                                                   .rstd = t.at("rstd"),
                                                   .NH = size.NH,
                                                   .gate = size.output_gate(),
                                                   .residual_weight = size.residual_weight()});
                       },
                   .expected =
                       [size](Values& v) {
                         const std::vector<double> at = v["h"];
                         const auto loss = [&size, &at](Values& u) {
                           double total = 0;
                           for (int64_t i = 0; i < size.N * size.NH; ++i) {
                             const double rstd_at = u["rstd"][i], mean_at = u["mean"][i];
                             double mean = mean_at, rstd = rstd_at;
                             for (int64_t e = i * size.DHV; e < (i + 1) * size.DHV; ++e) {
                               const double step = (u["h"][e] - at[e]) / static_cast<double>(size.DHV);
                               mean += step;
                               rstd -= rstd_at * rstd_at * rstd_at * (at[e] - mean_at) * step;
                             }
                             for (int64_t e = i * size.DHV; e < (i + 1) * size.DHV; ++e) {
                               total += u["dy"][e] * HeadNormOutput(u, size, e, (u["h"][e] - mean) * rstd);
                             }
                           }
                           return total;
                         };
                         Values gradients;
                         for (const char* input : {"h", "o_pre", "skip", "weight", "bias", "skip_weight"}) {
                           if (v.count(input))
                             gradients[std::string("d") + input] = NumericGradient(v, input, loss);
                         }
                         for (const auto& [gradient, value] : gradients) {
                           const bool activation =
                               gradient == "dh" || gradient == "do_pre" || gradient == "dskip";
                           if (activation) std::fill(v[gradient].begin(), v[gradient].end(), 0.0);
                           AddTo(v[gradient], value);
                         }
                       },
                   .wide_error = 64,
                   .expected_error = kFiniteDifferenceError};
  AppendHeadNormInputs(result, size, 4);
  if (size.gate != HeadNormSize::Gate::kNone) {
    result.tensors.push_back({.name = "do_pre", .dims = {N, width}, .use = Use::kOut, .gap = size.Gap(1)});
  }
  if (size.skip) {
    result.tensors.push_back({.name = "dskip", .dims = {N, width}, .use = Use::kOut, .gap = size.Gap(3)});
    result.tensors.push_back(
        {.name = "dskip_weight", .dims = {width}, .role = wide, .use = Use::kAccumulate});
  }
  if (size.weight != HeadNormSize::Weight::kNone) {
    result.tensors.push_back({.name = "dweight", .dims = {width}, .role = wide, .use = Use::kAccumulate});
  }
  if (size.bias) {
    result.tensors.push_back({.name = "dbias", .dims = {width}, .role = wide, .use = Use::kAccumulate});
  }
  if (size.large) result.expected = nullptr;
  return result;
}

inline void AppendHeadNormCases(std::vector<OpCase>& cases) {
  using Gate = HeadNormSize::Gate;
  using Weight = HeadNormSize::Weight;
  // every combination of the options
  for (const auto& [gate_name, gate] : std::map<std::string, Gate>{
           {"ungated", Gate::kNone}, {"sigmoid", Gate::kSigmoid}, {"silu", Gate::kSilu}}) {
    for (const auto& [weight_name, weight] : std::map<std::string, Weight>{
             {"", Weight::kNone}, {"_weight", Weight::kPlain}, {"_residual_weight", Weight::kResidual}}) {
      for (const bool bias : {false, true}) {
        for (const bool skip : {false, true}) {
          const HeadNormSize size = {.N = 2,
                                     .NH = 2,
                                     .DHV = 19,
                                     .bias = bias,
                                     .gap = bias ? 0 : 5,
                                     .gate = gate,
                                     .skip = skip,
                                     .weight = weight};
          const std::string name = gate_name + weight_name + (bias ? "_bias" : "") + (skip ? "_skip" : "");
          cases.push_back(HeadNormGateForwardCase(name, size));
          cases.push_back(HeadNormGateBackwardCase(name, size));
        }
      }
    }
  }
  cases.push_back(HeadNormGateForwardCase("odd", {.N = 5, .NH = 3, .DHV = 21}));
  cases.push_back(HeadNormGateForwardCase("strided", {.N = 140, .NH = 4, .DHV = 32, .bias = true, .gap = 9}));
  cases.push_back(HeadNormGateForwardCase("one_row", {.N = 1, .NH = 1, .DHV = 2, .bias = true}));
  cases.push_back(HeadNormGateBackwardCase("odd", {.N = 2, .NH = 3, .DHV = 7}));
  cases.push_back(HeadNormGateBackwardCase("strided", {.N = 3, .NH = 2, .DHV = 16, .bias = true, .gap = 5}));
  // many narrow heads, whose number is not a power of two
  for (const int64_t NH : {9, 11, 15, 40}) {
    const HeadNormSize size = {.N = 6, .NH = NH, .DHV = 8, .bias = true};
    cases.push_back(HeadNormGateForwardCase("heads_" + std::to_string(NH), size));
    cases.push_back(HeadNormGateBackwardCase("heads_" + std::to_string(NH), size));
  }
  cases.push_back(HeadNormGateBackwardCase(
      "many_rows", {.N = 333, .NH = 4, .DHV = 40, .bias = true, .gap = 3, .large = true}));
  cases.push_back(HeadNormGateBackwardCase("many_rows_skip", {.N = 333,
                                                              .NH = 4,
                                                              .DHV = 48,
                                                              .gap = 3,
                                                              .gate = Gate::kSilu,
                                                              .skip = true,
                                                              .weight = Weight::kResidual,
                                                              .large = true}));
}
}  // namespace carousel::testing
