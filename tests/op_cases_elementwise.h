// Cases of Cast, Add, ColumnSum, the embedding, the gate soft cap and the SwiGLU product.
#pragma once
#include "tests/op_cases.h"

namespace carousel::testing {

inline OpCase CastCase(const std::string& name, Role to, Role from, int64_t N, int64_t W, int64_t gap) {
  return {.name = "Cast_" + name,
          .tensors = {{.name = "y", .dims = {N, W}, .role = to, .use = Use::kOut, .gap = gap},
                      {.name = "x", .dims = {N, W}, .role = from, .gap = gap == 0 ? 0 : gap + 3}},
          .run = [](Ops& ops, const Tensors& t) { ops.Cast({.y = t.at("y"), .x = t.at("x")}); },
          .expected = [](Values& v) { v["y"] = v["x"]; },
          .wide_error = 0,
          .expected_error = 0};
}

inline OpCase AddCase(const std::string& name, Role y, Role a, Role b, int64_t n, const std::string& y_is) {
  return {
      .name = "Add_" + name,
      .tensors = {{.name = "a", .dims = {n}, .role = a},
                  {.name = "b", .dims = {n}, .role = b},
                  {.name = "y", .dims = {n}, .role = y, .use = Use::kOut, .same_memory_as = y_is}},
      .run = [](Ops& ops, const Tensors& t) { ops.Add({.y = t.at("y"), .a = t.at("a"), .b = t.at("b")}); },
      .expected =
          [](Values& v) {
            std::vector<double> y(v["a"].size());
            for (size_t i = 0; i < y.size(); ++i) y[i] = v["a"][i] + v["b"][i];
            v["y"] = y;
          },
      .wide_error = 1};
}

inline OpCase ColumnSumCase(const std::string& name, Role x, int64_t N, int64_t W, int64_t gap) {
  return {.name = "ColumnSum_" + name,
          .tensors = {{.name = "y", .dims = {W}, .role = Role::kWide, .use = Use::kAccumulate},
                      {.name = "x", .dims = {N, W}, .role = x, .gap = gap}},
          .run = [](Ops& ops, const Tensors& t) { ops.ColumnSum({.y = t.at("y"), .x = t.at("x")}); },
          .expected =
              [N, W](Values& v) {
                for (int64_t i = 0; i < N * W; ++i) v["y"][i % W] += v["x"][i];
              },
          .wide_error = 64};
}

inline OpCase EmbeddingForwardCase(const std::string& name, int64_t N, int64_t V, int64_t D) {
  return {
      .name = "EmbeddingForward_" + name,
      .tensors =
          {{.name = "y", .dims = {N, D}, .role = Role::kWide, .use = Use::kOut},
           {.name = "weight", .dims = {V, D}},
           {.name = "ids", .dims = {N}, .role = Role::kI32, .low = 0, .high = static_cast<double>(V - 1)}},
      .run =
          [](Ops& ops, const Tensors& t) {
            ops.EmbeddingForward({.y = t.at("y"), .weight = t.at("weight"), .ids = t.at("ids")});
          },
      .expected =
          [N, D](Values& v) {
            for (int64_t i = 0; i < N * D; ++i) {
              v["y"][i] = v["weight"][static_cast<int64_t>(v["ids"][i / D]) * D + i % D];
            }
          },
      .wide_error = 0,
      .expected_error = 0};
}

inline OpCase EmbeddingBackwardCase(const std::string& name, int64_t N, int64_t V, int64_t D) {
  return {
      .name = "EmbeddingBackward_" + name,
      .tensors =
          {{.name = "dweight", .dims = {V, D}, .role = Role::kWide, .use = Use::kAccumulate},
           {.name = "dy", .dims = {N, D}, .role = Role::kWide},
           {.name = "ids", .dims = {N}, .role = Role::kI32, .low = 0, .high = static_cast<double>(V - 1)}},
      .run =
          [](Ops& ops, const Tensors& t) {
            ops.EmbeddingBackward({.dweight = t.at("dweight"), .dy = t.at("dy"), .ids = t.at("ids")});
          },
      .expected =
          [N, D](Values& v) {
            for (int64_t i = 0; i < N * D; ++i) {
              v["dweight"][static_cast<int64_t>(v["ids"][i / D]) * D + i % D] += v["dy"][i];
            }
          },
      .wide_error = 64};
}

inline void SoftCap(Values& v, const std::string& y, const std::string& x, double cap) {
  std::vector<double> result(v[x].size());
  for (size_t i = 0; i < result.size(); ++i) result[i] = cap * std::tanh(v[x][i] / cap);
  v[y] = result;
}

inline OpCase SoftCapForwardCase(const std::string& name, int64_t n, double cap, double range,
                                 bool in_place) {
  return {
      .name = "SoftCapForward_" + name,
      .tensors = {{.name = "x", .dims = {n}, .role = Role::kWide, .low = -range, .high = range},
                  {.name = "y",
                   .dims = {n},
                   .role = Role::kWide,
                   .use = Use::kOut,
                   .same_memory_as = in_place ? "x" : ""}},
      .run = [cap](Ops& ops,
                   const Tensors& t) { ops.SoftCapForward({.y = t.at("y"), .x = t.at("x"), .cap = cap}); },
      .expected = [cap](Values& v) { SoftCap(v, "y", "x", cap); },
      .wide_error = 4};
}

// The op reads the forward's result y; the loss is a function of x, whose place in `values` y takes.
inline OpCase SoftCapBackwardCase(const std::string& name, int64_t n, double cap, bool in_place) {
  return {.name = "SoftCapBackward_" + name,
          .tensors = {{.name = "dy", .dims = {n}, .role = Role::kWide},
                      {.name = "y", .dims = {n}, .role = Role::kWide, .low = -0.9 * cap, .high = 0.9 * cap},
                      {.name = "dx",
                       .dims = {n},
                       .role = Role::kWide,
                       .use = Use::kOut,
                       .same_memory_as = in_place ? "dy" : ""}},
          .run =
              [cap](Ops& ops, const Tensors& t) {
                ops.SoftCapBackward({.dx = t.at("dx"), .dy = t.at("dy"), .y = t.at("y"), .cap = cap});
              },
          .expected =
              [cap](Values& v) {
                std::vector<double>& x = v["x"] = v["y"];
                for (double& value : x) value = cap * std::atanh(value / cap);
                v["dx"] = NumericGradient(v, "x", [cap](Values& u) {
                  SoftCap(u, "z", "x", cap);
                  return Dot(u["dy"], u["z"]);
                });
              },
          .wide_error = 8,
          .expected_error = kFiniteDifferenceError};
}

inline std::vector<double> Glu(const Values& v, GluActivation activation) {
  std::vector<double> y(v.at("gate").size());
  for (size_t i = 0; i < y.size(); ++i) {
    const double g = v.at("gate")[i];
    const double factor =
        activation == GluActivation::kSilu ? Sigmoid(g) : std::erfc(-g / std::sqrt(2.0)) / 2;
    y[i] = g * factor * v.at("up")[i];
  }
  return y;
}
inline std::string NameOf(GluActivation activation) {
  return activation == GluActivation::kSilu ? "silu_" : "gelu_";
}

inline OpCase GluForwardCase(const std::string& name, GluActivation activation, int64_t N, int64_t F,
                             int64_t gap, double range) {
  return {.name = "GluForward_" + NameOf(activation) + name,
          .tensors = {{.name = "y", .dims = {N, F}, .use = Use::kOut},
                      {.name = "gate", .dims = {N, F}, .gap = gap, .low = -range, .high = range},
                      {.name = "up", .dims = {N, F}, .gap = gap == 0 ? 0 : gap + 2}},
          .run =
              [activation](Ops& ops, const Tensors& t) {
                ops.GluForward(
                    {.y = t.at("y"), .gate = t.at("gate"), .up = t.at("up"), .activation = activation});
              },
          .expected = [activation](Values& v) { v["y"] = Glu(v, activation); },
          .wide_error = 8};
}

inline OpCase GluBackwardCase(const std::string& name, GluActivation activation, int64_t N, int64_t F,
                              int64_t gap, bool in_place, bool large) {
  OpCase result = {.name = "GluBackward_" + NameOf(activation) + name,
                   .tensors = {{.name = "dy", .dims = {N, F}},
                               {.name = "gate", .dims = {N, F}, .gap = gap, .low = -6, .high = 6},
                               {.name = "up", .dims = {N, F}, .gap = gap},
                               {.name = "dgate",
                                .dims = {N, F},
                                .use = Use::kOut,
                                .gap = gap,
                                .same_memory_as = in_place ? "gate" : ""},
                               {.name = "dup",
                                .dims = {N, F},
                                .use = Use::kOut,
                                .gap = gap,
                                .same_memory_as = in_place ? "up" : ""}},
                   .run =
                       [activation](Ops& ops, const Tensors& t) {
                         ops.GluBackward({.dgate = t.at("dgate"),
                                          .dup = t.at("dup"),
                                          .dy = t.at("dy"),
                                          .gate = t.at("gate"),
                                          .up = t.at("up"),
                                          .activation = activation});
                       },
                   .expected =
                       [activation](Values& v) {
                         const auto loss = [activation](Values& u) {
                           return Dot(u["dy"], Glu(u, activation));
                         };
                         const std::vector<double> dgate = NumericGradient(v, "gate", loss);
                         v["dup"] = NumericGradient(v, "up", loss);
                         v["dgate"] = dgate;
                       },
                   .wide_error = 16,
                   .expected_error = kFiniteDifferenceError};
  if (large) result.expected = nullptr;
  return result;
}

inline void AppendElementwiseCases(std::vector<OpCase>& cases) {
  const Role compute = Role::kCompute, wide = Role::kWide;
  cases.push_back(CastCase("to_compute", compute, wide, 5, 37, 0));
  cases.push_back(CastCase("to_wide", wide, compute, 5, 37, 0));
  cases.push_back(CastCase("equal", compute, compute, 3, 9, 0));
  cases.push_back(CastCase("strided", compute, wide, 19, 8, 5));
  cases.push_back(CastCase("strided_wide_rows", wide, compute, 2, 20001, 7));
  cases.push_back(CastCase("large", compute, wide, 1, 70001, 0));
  cases.push_back(AddCase("wide_and_compute", wide, wide, compute, 40003, ""));
  cases.push_back(AddCase("in_place_a", wide, wide, compute, 77, "a"));
  cases.push_back(AddCase("in_place_b", compute, wide, compute, 77, "b"));
  cases.push_back(AddCase("compute", compute, compute, compute, 1, ""));
  cases.push_back(AddCase("compute_and_wide", compute, compute, wide, 31, ""));
  cases.push_back(AddCase("two_wide", compute, wide, wide, 31, ""));
  cases.push_back(ColumnSumCase("one_row", compute, 1, 7, 0));
  cases.push_back(ColumnSumCase("one_column", wide, 200, 1, 3));
  cases.push_back(ColumnSumCase("odd", compute, 131, 301, 2));
  cases.push_back(ColumnSumCase("wide", wide, 65, 16, 0));
  cases.push_back(EmbeddingForwardCase("odd", 37, 11, 5));
  cases.push_back(EmbeddingForwardCase("one", 1, 1, 1));
  cases.push_back(EmbeddingBackwardCase("repeats", 400, 3, 67));
  cases.push_back(EmbeddingBackwardCase("one", 1, 4, 33));
  cases.push_back(SoftCapForwardCase("gates", 613, 15, 60, false));
  cases.push_back(SoftCapForwardCase("small_values", 100, 15, 0.01, true));
  cases.push_back(SoftCapForwardCase("many", 40001, 30, 100, true));
  cases.push_back(SoftCapBackwardCase("gates", 97, 15, false));
  cases.push_back(SoftCapBackwardCase("in_place", 33, 2.5, true));
  for (const GluActivation activation : {GluActivation::kSilu, GluActivation::kGelu}) {
    cases.push_back(GluForwardCase("odd", activation, 7, 53, 0, 30));
    cases.push_back(GluForwardCase("strided", activation, 300, 70, 70, 30));
    cases.push_back(GluForwardCase("one", activation, 1, 1, 0, 3));
    cases.push_back(GluBackwardCase("odd", activation, 3, 21, 0, false, false));
    cases.push_back(GluBackwardCase("in_place", activation, 5, 18, 4, true, false));
    cases.push_back(GluBackwardCase("large", activation, 300, 97, 11, true, true));
  }
}
}  // namespace carousel::testing
