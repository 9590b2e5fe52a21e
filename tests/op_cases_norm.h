// Cases of the norms.
#pragma once
#include "tests/op_cases.h"
#include "tests/op_cases_head_norm.h"

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

struct LayerNormSize {
  int64_t N, D;
  bool delta = false, bias = false, residual_weight = false;
  bool dresidual = false;
  bool in_place = false;  // forward: sum takes the place of x; backward: dx takes the place of dresidual
  bool large = false;
};
inline TensorSpec LayerNormWeight(const LayerNormSize& size) {
  const double zero = size.residual_weight ? -1 : 0;
  return {.name = "weight", .dims = {size.D}, .role = Role::kWide, .low = zero + 0.5, .high = zero + 1.5};
}

inline OpCase LayerNormForwardCase(const std::string& name, const LayerNormSize& size) {
  constexpr double kEps = 1e-3;
  const int64_t N = size.N, D = size.D;
  OpCase result = {.name = "LayerNormForward_" + name,
                   .tensors = {{.name = "y", .dims = {N, D}, .use = Use::kOut},
                               {.name = "mean", .dims = {N}, .role = Role::kWide, .use = Use::kOut},
                               {.name = "rstd", .dims = {N}, .role = Role::kWide, .use = Use::kOut},
                               {.name = "x", .dims = {N, D}, .role = Role::kWide, .low = -1, .high = 2},
                               LayerNormWeight(size)},
                   .run =
                       [residual_weight = size.residual_weight](Ops& ops, const Tensors& t) {
                         ops.LayerNormForward({.y = t.at("y"),
                                               .mean = t.at("mean"),
                                               .rstd = t.at("rstd"),
                                               .sum = Optional(t, "sum"),
                                               .x = t.at("x"),
                                               .delta = Optional(t, "delta"),
                                               .weight = t.at("weight"),
                                               .bias = Optional(t, "bias"),
                                               .residual_weight = residual_weight,
                                               .eps = kEps});
                       },
                   .expected =
                       [size](Values& v) {
                         std::vector<double> s = v["x"];
                         if (v.count("delta")) AddTo(s, v["delta"]);
                         for (int64_t r = 0; r < size.N; ++r) {
                           const double* row = s.data() + r * size.D;
                           double mean = 0, variance = 0;
                           for (int64_t c = 0; c < size.D; ++c) mean += row[c] / static_cast<double>(size.D);
                           for (int64_t c = 0; c < size.D; ++c) {
                             variance += (row[c] - mean) * (row[c] - mean) / static_cast<double>(size.D);
                           }
                           v["mean"][r] = mean;
                           v["rstd"][r] = 1 / std::sqrt(variance + kEps);
                           for (int64_t c = 0; c < size.D; ++c) {
                             const double scale = v["weight"][c] + (size.residual_weight ? 1 : 0);
                             v["y"][r * size.D + c] = (row[c] - mean) * v["rstd"][r] * scale +
                                                      (v.count("bias") ? v["bias"][c] : 0);
                           }
                         }
                         v["sum"] = s;
                       },
                   .wide_error = 64};
  if (size.delta) result.tensors.push_back({.name = "delta", .dims = {N, D}});
  if (size.delta || size.in_place) {
    result.tensors.push_back({.name = "sum",
                              .dims = {N, D},
                              .role = Role::kWide,
                              .use = Use::kOut,
                              .same_memory_as = size.in_place ? "x" : ""});
  }
  if (size.bias) result.tensors.push_back({.name = "bias", .dims = {D}, .role = Role::kWide});
  return result;
}

// Layer norm's y of one row for the gradient's check: mean and rstd are given numbers near the point `at`,
// and change with x as those of the norm do: d mean / dx_c = 1 / D, d rstd / dx_c = -rstd^3 (x_c - mean) / D.
inline double NormalizedNear(const double* at, const double* x, int64_t D, int64_t column, double mean,
                             double rstd) {
  double new_mean = mean, new_rstd = rstd;
  for (int64_t c = 0; c < D; ++c) {
    const double step = (x[c] - at[c]) / static_cast<double>(D);
    new_mean += step;
    new_rstd -= rstd * rstd * rstd * (at[c] - mean) * step;
  }
  return (x[column] - new_mean) * new_rstd;
}

inline OpCase LayerNormBackwardCase(const std::string& name, const LayerNormSize& size) {
  const int64_t N = size.N, D = size.D;
  OpCase result = {
      .name = "LayerNormBackward_" + name,
      .tensors = {{.name = "dx",
                   .dims = {N, D},
                   .role = Role::kWide,
                   .use = Use::kOut,
                   .same_memory_as = size.in_place ? "dresidual" : ""},
                  {.name = "dweight", .dims = {D}, .role = Role::kWide, .use = Use::kAccumulate},
                  {.name = "dy", .dims = {N, D}},
                  {.name = "x", .dims = {N, D}, .role = Role::kWide, .low = -1, .high = 2},
                  LayerNormWeight(size),
                  {.name = "mean", .dims = {N}, .role = Role::kWide, .low = 0.4, .high = 0.6},
                  {.name = "rstd", .dims = {N}, .role = Role::kWide, .low = 0.5, .high = 1}},
      .run =
          [residual_weight = size.residual_weight](Ops& ops, const Tensors& t) {
            ops.LayerNormBackward({.dx = t.at("dx"),
                                   .dweight = t.at("dweight"),
                                   .dbias = Optional(t, "dbias"),
                                   .dy = t.at("dy"),
                                   .dresidual = Optional(t, "dresidual"),
                                   .x = t.at("x"),
                                   .weight = t.at("weight"),
                                   .mean = t.at("mean"),
                                   .rstd = t.at("rstd"),
                                   .residual_weight = residual_weight});
          },
      .expected =
          [size](Values& v) {
            std::vector<double> dx;
            for (int64_t r = 0; r < size.N; ++r) {
              Values row = {{"weight", v["weight"]}};
              for (const char* part : {"x", "dy"}) {
                row[part].assign(v[part].begin() + r * size.D, v[part].begin() + (r + 1) * size.D);
              }
              const std::vector<double> at = row["x"];
              const auto loss = [&](Values& u) {
                double total = 0;
                for (int64_t c = 0; c < size.D; ++c) {
                  total += u["dy"][c] * (u["weight"][c] + (size.residual_weight ? 1 : 0)) *
                           NormalizedNear(at.data(), u["x"].data(), size.D, c, v["mean"][r], v["rstd"][r]);
                }
                return total;
              };
              const std::vector<double> dx_row = NumericGradient(row, "x", loss);
              dx.insert(dx.end(), dx_row.begin(), dx_row.end());
              AddTo(v["dweight"], NumericGradient(row, "weight", loss));
              if (v.count("dbias")) AddTo(v["dbias"], row["dy"]);
            }
            if (v.count("dresidual")) AddTo(dx, v["dresidual"]);
            v["dx"] = dx;
          },
      .wide_error = 64,
      .expected_error = kFiniteDifferenceError};
  if (size.dresidual) result.tensors.push_back({.name = "dresidual", .dims = {N, D}, .role = Role::kWide});
  if (size.bias) {
    result.tensors.push_back({.name = "dbias", .dims = {D}, .role = Role::kWide, .use = Use::kAccumulate});
  }
  if (size.large) result.expected = nullptr;
  return result;
}

inline void AppendLayerNormCases(std::vector<OpCase>& cases) {
  // every combination of the options
  for (int options = 0; options < 16; ++options) {
    LayerNormSize size = {.N = 3, .D = 21};
    size.bias = (options & 1) != 0;
    size.residual_weight = (options & 2) != 0;
    size.delta = size.dresidual = (options & 4) != 0;
    size.in_place = (options & 8) != 0;
    if (size.in_place) size.dresidual = true;
    std::string name = size.bias ? "bias" : "plain";
    if (size.residual_weight) name += "_residual_weight";
    if (size.delta) name += "_delta";
    if (size.in_place) name += "_in_place";
    cases.push_back(LayerNormForwardCase(name, size));
    if (!size.in_place || size.delta) cases.push_back(LayerNormBackwardCase(name, size));
  }
  cases.push_back(LayerNormForwardCase("one", {.N = 1, .D = 1, .bias = true}));
  cases.push_back(LayerNormForwardCase("aligned", {.N = 70, .D = 64, .delta = true}));
  cases.push_back(LayerNormForwardCase("many_rows", {.N = 300, .D = 131, .delta = true, .bias = true}));
  cases.push_back(LayerNormBackwardCase("one", {.N = 1, .D = 1, .dresidual = true}));
  cases.push_back(LayerNormBackwardCase("aligned", {.N = 2, .D = 32, .bias = true}));
  cases.push_back(LayerNormBackwardCase("many_rows", {.N = 2100,
                                                      .D = 45,
                                                      .bias = true,
                                                      .residual_weight = true,
                                                      .dresidual = true,
                                                      .in_place = true,
                                                      .large = true}));
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
  AppendLayerNormCases(cases);
  AppendHeadNormCases(cases);
}
}  // namespace carousel::testing
