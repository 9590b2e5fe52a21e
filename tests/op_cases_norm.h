// Cases of the RMS norm and of the per-head norm with the output gate.
#pragma once
#include "tests/op_cases.h"

namespace carousel::testing {

struct RmsNormSize {
  int64_t N, D;
  bool delta, bias, residual;
  bool dx_in_place = false;
  bool large = false;
};

// y of the values x (and delta), weight, bias; also writes sum and rstd.
inline void RmsNorm(Values& v, const RmsNormSize& size, double eps) {
  std::vector<double> s = v["x"];
  if (v.count("delta")) AddTo(s, v["delta"]);
  std::vector<double> y(s.size()), rstd(size.N);
  for (int64_t r = 0; r < size.N; ++r) {
    double squares = 0;
    for (int64_t c = 0; c < size.D; ++c) squares += s[r * size.D + c] * s[r * size.D + c];
    rstd[r] = 1 / std::sqrt(squares / static_cast<double>(size.D) + eps);
    for (int64_t c = 0; c < size.D; ++c) {
      y[r * size.D + c] = s[r * size.D + c] * rstd[r] * v["weight"][c] + (v.count("bias") ? v["bias"][c] : 0);
    }
  }
  v["sum"] = s;
  v["y"] = y;
  v["rstd"] = rstd;
}

inline OpCase RmsNormForwardCase(const std::string& name, const RmsNormSize& size) {
  constexpr double kEps = 1e-3;
  const int64_t N = size.N, D = size.D;
  OpCase result = {.name = "RmsNormForward_" + name,
                   .tensors = {{.name = "y", .dims = {N, D}, .use = Use::kOut},
                               {.name = "rstd", .dims = {N}, .role = Role::kWide, .use = Use::kOut},
                               {.name = "x", .dims = {N, D}, .role = Role::kWide},
                               {.name = "weight", .dims = {D}, .role = Role::kWide, .low = 0.5, .high = 1.5}},
                   .run =
                       [](Ops& ops, const Tensors& t) {
                         ops.RmsNormForward({.y = t.at("y"),
                                             .rstd = t.at("rstd"),
                                             .sum = Optional(t, "sum"),
                                             .x = t.at("x"),
                                             .delta = Optional(t, "delta"),
                                             .weight = t.at("weight"),
                                             .bias = Optional(t, "bias"),
                                             .eps = kEps});
                       },
                   .expected = [size](Values& v) { RmsNorm(v, size, kEps); }};
  if (size.delta) {
    result.tensors.push_back({.name = "delta", .dims = {N, D}});
    result.tensors.push_back({.name = "sum", .dims = {N, D}, .role = Role::kWide, .use = Use::kOut});
  }
  if (size.bias) result.tensors.push_back({.name = "bias", .dims = {D}, .role = Role::kWide});
  return result;
}

inline OpCase RmsNormBackwardCase(const std::string& name, const RmsNormSize& size) {
  const int64_t N = size.N, D = size.D;
  OpCase result = {
      .name = "RmsNormBackward_" + name,
      .tensors = {{.name = "dx",
                   .dims = {N, D},
                   .role = Role::kWide,
                   .use = Use::kOut,
                   .same_memory_as = size.dx_in_place ? "dresidual" : ""},
                  {.name = "dweight", .dims = {D}, .role = Role::kWide, .use = Use::kAccumulate},
                  {.name = "dy", .dims = {N, D}},
                  {.name = "x", .dims = {N, D}, .role = Role::kWide},
                  {.name = "weight", .dims = {D}, .role = Role::kWide, .low = 0.5, .high = 1.5},
                  // overwritten before the call by what the forward gives for x
                  {.name = "rstd", .dims = {N}, .role = Role::kWide, .low = 1, .high = 2}},
      .run =
          [](Ops& ops, const Tensors& t) {
            ops.RmsNormBackward({.dx = t.at("dx"),
                                 .dweight = t.at("dweight"),
                                 .dbias = Optional(t, "dbias"),
                                 .dy = t.at("dy"),
                                 .dresidual = Optional(t, "dresidual"),
                                 .x = t.at("x"),
                                 .weight = t.at("weight"),
                                 .rstd = t.at("rstd")});
          },
      .expected =
          [size](Values& v) {
            // The op gets rstd as a number; the loss is a function of x whose own rstd is that number.
            std::vector<double> dx(v["x"].size());
            for (int64_t r = 0; r < size.N; ++r) {
              Values row = {{"weight", v["weight"]}};
              for (const char* part : {"x", "dy"}) {
                row[part].assign(v[part].begin() + r * size.D, v[part].begin() + (r + 1) * size.D);
              }
              const RmsNormSize one_row = {
                  .N = 1, .D = size.D, .delta = false, .bias = false, .residual = false};
              const double eps =
                  1 / (v["rstd"][r] * v["rstd"][r]) - Dot(row["x"], row["x"]) / static_cast<double>(size.D);
              const auto loss = [&](Values& u) {
                RmsNorm(u, one_row, eps);
                return Dot(u["dy"], u["y"]);
              };
              const std::vector<double> dx_row = NumericGradient(row, "x", loss);
              std::copy(dx_row.begin(), dx_row.end(), dx.begin() + r * size.D);
              AddTo(v["dweight"], NumericGradient(row, "weight", loss));
              if (v.count("dbias")) AddTo(v["dbias"], row["dy"]);
            }
            if (v.count("dresidual")) AddTo(dx, v["dresidual"]);
            v["dx"] = dx;
          },
      .wide_error = 64,
      .expected_error = kFiniteDifferenceError};
  if (size.residual) result.tensors.push_back({.name = "dresidual", .dims = {N, D}, .role = Role::kWide});
  if (size.bias) {
    result.tensors.push_back({.name = "dbias", .dims = {D}, .role = Role::kWide, .use = Use::kAccumulate});
  }
  if (size.large) result.expected = nullptr;
  return result;
}

struct HeadNormSize {
  int64_t N, NH, DHV;
  bool bias;
  int64_t gap;
  bool large = false;
};

inline void HeadNormGate(Values& v, const HeadNormSize& size, double eps) {
  const int64_t width = size.NH * size.DHV;
  std::vector<double> y(size.N * width), mean(size.N * size.NH), rstd(size.N * size.NH);
  for (int64_t i = 0; i < size.N * size.NH; ++i) {
    const double* h = v["h"].data() + i * size.DHV;
    for (int64_t c = 0; c < size.DHV; ++c) mean[i] += h[c] / static_cast<double>(size.DHV);
    double variance = 0;
    for (int64_t c = 0; c < size.DHV; ++c) {
      variance += (h[c] - mean[i]) * (h[c] - mean[i]) / static_cast<double>(size.DHV);
    }
    rstd[i] = 1 / std::sqrt(variance + eps);
    for (int64_t c = 0; c < size.DHV; ++c) {
      const int64_t column = i % size.NH * size.DHV + c;
      const double z =
          (h[c] - mean[i]) * rstd[i] * v["weight"][column] + (v.count("bias") ? v["bias"][column] : 0);
      y[i * size.DHV + c] = Sigmoid(v["o_pre"][i * size.DHV + c]) * z;
    }
  }
  v["y"] = y;
  v["mean"] = mean;
  v["rstd"] = rstd;
}

inline OpCase HeadNormGateForwardCase(const std::string& name, const HeadNormSize& size) {
  constexpr double kEps = 1e-3;
  const int64_t N = size.N, width = size.NH * size.DHV;
  OpCase result = {
      .name = "HeadNormGateForward_" + name,
      .tensors = {{.name = "y", .dims = {N, width}, .use = Use::kOut},
                  {.name = "mean", .dims = {N, size.NH}, .role = Role::kWide, .use = Use::kOut},
                  {.name = "rstd", .dims = {N, size.NH}, .role = Role::kWide, .use = Use::kOut},
                  {.name = "h", .dims = {N, width}, .low = -1, .high = 2},
                  {.name = "o_pre", .dims = {N, width}, .gap = size.gap, .low = -8, .high = 8},
                  {.name = "weight", .dims = {width}, .role = Role::kWide, .low = 0.5, .high = 1.5}},
      .run =
          [NH = size.NH](Ops& ops, const Tensors& t) {
            ops.HeadNormGateForward({.y = t.at("y"),
                                     .mean = t.at("mean"),
                                     .rstd = t.at("rstd"),
                                     .h = t.at("h"),
                                     .o_pre = t.at("o_pre"),
                                     .weight = t.at("weight"),
                                     .bias = Optional(t, "bias"),
                                     .NH = NH,
                                     .eps = kEps});
          },
      .expected = [size](Values& v) { HeadNormGate(v, size, kEps); },
      // a variance near eps magnifies rounding of the mean by sqrt(1 / eps)
      .wide_error = 64};
  if (size.bias) result.tensors.push_back({.name = "bias", .dims = {width}, .role = Role::kWide});
  return result;
}

// The op gets mean and rstd as numbers. They are chosen freely here, so the gradient is checked through a
// loss in which h enters xhat = (h - mean) rstd, and mean and rstd change with h as those of the norm would.
inline OpCase HeadNormGateBackwardCase(const std::string& name, const HeadNormSize& size) {
  const int64_t N = size.N, width = size.NH * size.DHV;
  OpCase result = {
      .name = "HeadNormGateBackward_" + name,
      .tensors = {{.name = "dh", .dims = {N, width}, .use = Use::kOut},
                  {.name = "do_pre", .dims = {N, width}, .use = Use::kOut, .gap = size.gap},
                  {.name = "dweight", .dims = {width}, .role = Role::kWide, .use = Use::kAccumulate},
                  {.name = "dy", .dims = {N, width}},
                  {.name = "h", .dims = {N, width}, .low = -1, .high = 2},
                  {.name = "o_pre",
                   .dims = {N, width},
                   .gap = size.gap == 0 ? 0 : size.gap + 1,
                   .low = -4,
                   .high = 4},
                  {.name = "weight", .dims = {width}, .role = Role::kWide, .low = 0.5, .high = 1.5},
                  {.name = "mean", .dims = {N, size.NH}, .role = Role::kWide, .low = 0.4, .high = 0.6},
                  {.name = "rstd", .dims = {N, size.NH}, .role = Role::kWide, .low = 0.5, .high = 1}},
      .run =
          [NH = size.NH](Ops& ops, const Tensors& t) {
            ops.HeadNormGateBackward({.dh = t.at("dh"),
                                      .do_pre = t.at("do_pre"),
                                      .dweight = t.at("dweight"),
                                      .dbias = Optional(t, "dbias"),
                                      .dy = t.at("dy"),
                                      .h = t.at("h"),
                                      .o_pre = t.at("o_pre"),
                                      .weight = t.at("weight"),
                                      .bias = Optional(t, "bias"),
                                      .mean = t.at("mean"),
                                      .rstd = t.at("rstd"),
                                      .NH = NH});
          },
      .expected =
          [size](Values& v) {
            // d mean / dh_c = 1 / DHV; d rstd / dh_c = -rstd^2 (h_c - mean) rstd / DHV: what layer norm's
            // mean and deviation do near this point, whatever their values are.
            const Values at = v;
            const auto loss = [&size, &at](Values& u) {
              double total = 0;
              const int64_t width = size.NH * size.DHV;
              for (int64_t i = 0; i < size.N * size.NH; ++i) {
                double mean = at.at("mean")[i], rstd = at.at("rstd")[i];
                for (int64_t c = i * size.DHV; c < (i + 1) * size.DHV; ++c) {
                  const double step = (u["h"][c] - at.at("h")[c]) / static_cast<double>(size.DHV);
                  mean += step;
                  rstd -= at.at("rstd")[i] * at.at("rstd")[i] * at.at("rstd")[i] *
                          (at.at("h")[c] - at.at("mean")[i]) * step;
                }
                for (int64_t c = i * size.DHV; c < (i + 1) * size.DHV; ++c) {
                  const double z = (u["h"][c] - mean) * rstd * u["weight"][c % width] +
                                   (u.count("bias") ? u["bias"][c % width] : 0);
                  total += u["dy"][c] * Sigmoid(u["o_pre"][c]) * z;
                }
              }
              return total;
            };
            v["dh"] = NumericGradient(v, "h", loss);
            v["do_pre"] = NumericGradient(v, "o_pre", loss);
            AddTo(v["dweight"], NumericGradient(v, "weight", loss));
            if (v.count("dbias")) AddTo(v["dbias"], NumericGradient(v, "bias", loss));
          },
      .wide_error = 64,
      .expected_error = kFiniteDifferenceError};
  if (size.bias) {
    result.tensors.push_back({.name = "bias", .dims = {width}, .role = Role::kWide});
    result.tensors.push_back(
        {.name = "dbias", .dims = {width}, .role = Role::kWide, .use = Use::kAccumulate});
  }
  if (size.large) result.expected = nullptr;
  return result;
}

inline void AppendNormCases(std::vector<OpCase>& cases) {
  cases.push_back(
      RmsNormForwardCase("plain", {.N = 5, .D = 37, .delta = false, .bias = false, .residual = false}));
  cases.push_back(
      RmsNormForwardCase("delta", {.N = 300, .D = 131, .delta = true, .bias = false, .residual = false}));
  cases.push_back(
      RmsNormForwardCase("bias", {.N = 1, .D = 1, .delta = true, .bias = true, .residual = false}));
  cases.push_back(
      RmsNormForwardCase("aligned", {.N = 70, .D = 64, .delta = false, .bias = true, .residual = false}));
  cases.push_back(
      RmsNormBackwardCase("plain", {.N = 4, .D = 19, .delta = false, .bias = false, .residual = false}));
  cases.push_back(RmsNormBackwardCase(
      "residual_in_place",
      {.N = 3, .D = 32, .delta = false, .bias = true, .residual = true, .dx_in_place = true}));
  cases.push_back(
      RmsNormBackwardCase("one", {.N = 1, .D = 1, .delta = false, .bias = false, .residual = true}));
  cases.push_back(RmsNormBackwardCase("many_rows", {.N = 2100,
                                                    .D = 45,
                                                    .delta = false,
                                                    .bias = true,
                                                    .residual = true,
                                                    .dx_in_place = true,
                                                    .large = true}));
  cases.push_back(HeadNormGateForwardCase("odd", {.N = 5, .NH = 3, .DHV = 21, .bias = false, .gap = 0}));
  cases.push_back(HeadNormGateForwardCase("strided", {.N = 140, .NH = 4, .DHV = 32, .bias = true, .gap = 9}));
  cases.push_back(HeadNormGateForwardCase("one_row", {.N = 1, .NH = 1, .DHV = 2, .bias = true, .gap = 0}));
  cases.push_back(HeadNormGateBackwardCase("odd", {.N = 2, .NH = 3, .DHV = 7, .bias = false, .gap = 0}));
  cases.push_back(HeadNormGateBackwardCase("strided", {.N = 3, .NH = 2, .DHV = 16, .bias = true, .gap = 5}));
  cases.push_back(HeadNormGateBackwardCase(
      "many_rows", {.N = 333, .NH = 4, .DHV = 40, .bias = true, .gap = 3, .large = true}));
}
}  // namespace carousel::testing
