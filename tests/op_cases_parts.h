// Cases of ops on a part of a tensor whose other parts are elsewhere: the loss and the embedding over parts
// of the vocabulary, dropout of rows and columns of a larger activation, the convolution's state alone.
#pragma once
#include <algorithm>

#include "core/base/random.h"
#include "tests/op_cases_conv.h"
#include "tests/op_cases_loss.h"

namespace carousel::testing {

struct PartsLoss {
  int64_t n, V, parts;  // V: ids of a part
  double soft_cap, range;
  bool gradient = true;
};

// The logits of all parts side by side.
inline Values WholeLogits(const PartsLoss& s, Values& v) {
  Values whole = {{"targets", v["targets"]}};
  std::vector<double>& logits = whole["logits"];
  for (int64_t r = 0; r < s.n; ++r) {
    for (int64_t p = 0; p < s.parts; ++p) {
      const auto row = v["logits" + std::to_string(p)].begin() + r * s.V;
      logits.insert(logits.end(), row, row + s.V);
    }
  }
  return whole;
}

inline OpCase CrossEntropyPartsCase(const std::string& name, const PartsLoss& s) {
  const int64_t n = s.n, V = s.V, parts = s.parts;
  OpCase result = {
      .name = "CrossEntropyParts_" + name,
      .tensors = {{.name = "loss", .dims = {n}, .role = Role::kWide, .use = Use::kOut},
                  {.name = "correct", .dims = {n}, .role = Role::kU8, .use = Use::kOut},
                  {.name = "stats", .dims = {parts * n, 4}, .role = Role::kWide, .use = Use::kOut},
                  {.name = "targets",
                   .dims = {n},
                   .role = Role::kI32,
                   .low = -2,
                   .high = static_cast<double>(parts * V - 1)}},
      .run =
          [s](Ops& ops, const Tensors& t) {
            const auto logits = [&](int64_t p) { return t.at("logits" + std::to_string(p)); };
            for (int64_t p = 0; p < s.parts; ++p) {
              ops.CrossEntropyStats({.stats = t.at("stats").Rows(p * s.n, s.n),
                                     .logits = logits(p),
                                     .targets = t.at("targets"),
                                     .first_id = p * s.V,
                                     .soft_cap = s.soft_cap});
            }
            for (int64_t p = 0; p < s.parts; ++p) {
              ops.CrossEntropyFromStats({.loss = t.at("loss"),
                                         .dlogits = Optional(t, "dlogits" + std::to_string(p)),
                                         .correct = t.at("correct"),
                                         .stats = t.at("stats"),
                                         .num_parts = s.parts,
                                         .logits = logits(p),
                                         .targets = t.at("targets"),
                                         .first_id = p * s.V,
                                         .soft_cap = s.soft_cap});
            }
          },
      .expected =
          [s](Values& v) {
            const int64_t width = s.parts * s.V;
            const LossSize whole_size = {.n = s.n, .V = width, .soft_cap = s.soft_cap, .range = s.range};
            Values whole = WholeLogits(s, v);
            v["loss"] = Losses(whole, whole_size);
            const auto z = [&](double x) {
              return s.soft_cap > 0 ? s.soft_cap * std::tanh(x / s.soft_cap) : x;
            };
            for (int64_t r = 0; r < s.n; ++r) {
              const int64_t target = static_cast<int64_t>(v["targets"][r]);
              const double* row = whole["logits"].data() + r * width;
              v["correct"][r] = std::max_element(row, row + width) - row == target ? 1 : 0;
              for (int64_t p = 0; p < s.parts; ++p) {
                double* stats = v["stats"].data() + (p * s.n + r) * 4;
                std::fill_n(stats, 4, 0.0);
                if (target < 0) continue;
                const double* part = row + p * s.V;
                const int64_t largest = std::max_element(part, part + s.V) - part;
                stats[0] = part[largest];
                for (int64_t c = 0; c < s.V; ++c) stats[1] += std::exp(z(part[c]) - z(part[largest]));
                if (target / s.V == p) stats[2] = z(row[target]);
                stats[3] = static_cast<double>(p * s.V + largest);
              }
              if (!s.gradient) continue;
              Values one = {{"targets", {v["targets"][r]}}};
              one["logits"].assign(row, row + width);
              LossSize one_row = whole_size;
              one_row.n = 1;
              const std::vector<double> gradient =
                  NumericGradient(one, "logits", [&](Values& u) { return Losses(u, one_row)[0]; });
              for (int64_t c = 0; c < width; ++c) {
                v["dlogits" + std::to_string(c / s.V)][r * s.V + c % s.V] = gradient[c];
              }
            }
          },
      // a logit of `range` is known to range * epsilon only
      .wide_error = 16 + 4 * s.range,
      .expected_error = s.gradient ? 4e-7 : 1e-13};
  for (int64_t p = 0; p < parts; ++p) {
    const std::string part = std::to_string(p);
    result.tensors.push_back(
        {.name = "logits" + part, .dims = {n, V}, .role = Role::kWide, .low = -s.range, .high = s.range});
    if (s.gradient) result.tensors.push_back({.name = "dlogits" + part, .dims = {n, V}, .use = Use::kOut});
  }
  return result;
}

// Rows [first, first + V) of a table; ids lie on both sides of them, too.
inline void AppendEmbeddingPartCases(std::vector<OpCase>& cases, const std::string& name, int64_t N,
                                     int64_t V, int64_t D, int64_t first) {
  const TensorSpec ids = {.name = "ids",
                          .dims = {N},
                          .role = Role::kI32,
                          .low = static_cast<double>(first - V),
                          .high = static_cast<double>(first + 2 * V)};
  const auto row_of = [V, first](double id) {
    const int64_t row = static_cast<int64_t>(id) - first;
    return row >= 0 && row < V ? row : int64_t{-1};
  };
  cases.push_back(
      {.name = "EmbeddingForward_part_" + name,
       .tensors = {{.name = "y", .dims = {N, D}, .role = Role::kWide, .use = Use::kOut},
                   {.name = "weight", .dims = {V, D}},
                   ids},
       .run =
           [first](Ops& ops, const Tensors& t) {
             ops.EmbeddingForward(
                 {.y = t.at("y"), .weight = t.at("weight"), .ids = t.at("ids"), .first_id = first});
           },
       .expected =
           [N, D, row_of](Values& v) {
             for (int64_t i = 0; i < N * D; ++i) {
               const int64_t row = row_of(v["ids"][i / D]);
               v["y"][i] = row < 0 ? 0 : v["weight"][row * D + i % D];
             }
           },
       .wide_error = 0,
       .expected_error = 0});
  cases.push_back(
      {.name = "EmbeddingBackward_part_" + name,
       .tensors = {{.name = "dweight", .dims = {V, D}, .role = Role::kWide, .use = Use::kAccumulate},
                   {.name = "dy", .dims = {N, D}, .role = Role::kWide},
                   ids},
       .run =
           [first](Ops& ops, const Tensors& t) {
             ops.EmbeddingBackward(
                 {.dweight = t.at("dweight"), .dy = t.at("dy"), .ids = t.at("ids"), .first_id = first});
           },
       .expected =
           [N, D, row_of](Values& v) {
             for (int64_t i = 0; i < N * D; ++i) {
               const int64_t row = row_of(v["ids"][i / D]);
               if (row >= 0) v["dweight"][row * D + i % D] += v["dy"][i];
             }
           },
       .wide_error = 64});
}

inline OpCase DropoutCase(const std::string& name, int64_t N, int64_t W, int64_t gap,
                          const ElementPlaces& places) {
  constexpr double kRate = 0.375;
  constexpr uint64_t kKey = 0x123456789abcdef0;
  return {.name = "Dropout_" + name,
          .tensors = {{.name = "y", .dims = {N, W}, .use = Use::kOut, .gap = gap},
                      {.name = "x", .dims = {N, W}, .gap = gap}},
          .run =
              [places](Ops& ops, const Tensors& t) {
                ops.Dropout({.y = t.at("y"), .x = t.at("x"), .rate = kRate, .key = kKey, .places = places});
              },
          .expected =
              [N, W, places](Values& v) {
                const int64_t columns = places.num_columns > 0 ? places.num_columns : W;
                for (int64_t n = 0; n < N; ++n) {
                  int64_t row = places.first_row + n;
                  if (places.segment > 0) {
                    row = row / places.segment * places.segment_stride + places.segment_begin +
                          row % places.segment;
                  }
                  for (int64_t c = 0; c < W; ++c) {
                    const uint64_t e = static_cast<uint64_t>(row * columns + places.first_column + c);
                    const bool keep = RandomBits(kKey, 0, e / 4)[e % 4] >= kRate * 0x1p32;
                    v["y"][n * W + c] = keep ? v["x"][n * W + c] / (1 - kRate) : 0;
                  }
                }
              },
          .wide_error = 2};
}

// The same call without y, or without the gradients of all rows.
inline OpCase ConvLastCase(const ConvCase& s) {
  OpCase result = ConvForwardCase(s);
  result.name = "CausalConvForward_only_last_" + s.name;
  std::erase_if(result.tensors, [](const TensorSpec& spec) { return spec.name == "y"; });
  result.run = [s](Ops& ops, const Tensors& t) {
    ops.CausalConvForward({.y = {},
                           .last = t.at("last"),
                           .x = t.at("x"),
                           .weight = t.at("weight"),
                           .bias = Optional(t, "bias"),
                           .reset = Optional(t, "reset"),
                           .initial = Optional(t, "initial"),
                           .shape = {.B = s.B, .T = s.T, .C = s.C, .K = s.K},
                           .silu = s.silu});
  };
  return result;
}
inline OpCase ConvInitialGradientCase(const ConvCase& s) {
  OpCase result = ConvBackwardCase(s);
  result.name = "CausalConvBackward_only_dinitial_" + s.name;
  std::erase_if(result.tensors, [](const TensorSpec& spec) {
    return spec.name == "dx" || spec.name == "dweight" || spec.name == "dbias";
  });
  result.run = [s](Ops& ops, const Tensors& t) {
    ops.CausalConvBackward({.dx = {},
                            .dweight = {},
                            .dinitial = t.at("dinitial"),
                            .dy = t.at("dy"),
                            .dlast = Optional(t, "dlast"),
                            .x = t.at("x"),
                            .weight = t.at("weight"),
                            .bias = Optional(t, "bias"),
                            .reset = Optional(t, "reset"),
                            .initial = t.at("initial"),
                            .shape = {.B = s.B, .T = s.T, .C = s.C, .K = s.K},
                            .silu = s.silu});
  };
  if (s.large) return result;
  result.expected = [s](Values& v) {
    v["dinitial"] = NumericGradient(v, "initial", [s](Values& u) {
      CausalConv(s, u);
      return Dot(u["dy"], u["y"]) + (s.last ? Dot(u["dlast"], u["last"]) : 0.0);
    });
  };
  return result;
}

inline void AppendPartsCases(std::vector<OpCase>& cases) {
  const auto loss = [&](const std::string& name, const PartsLoss& s) {
    cases.push_back(CrossEntropyPartsCase(name, s));
  };
  loss("one_part", {.n = 6, .V = 37, .parts = 1, .soft_cap = 30, .range = 20});
  loss("two_capped", {.n = 7, .V = 19, .parts = 2, .soft_cap = 30, .range = 20});
  loss("three_uncapped", {.n = 9, .V = 16, .parts = 3, .soft_cap = 0, .range = 5});
  loss("four_beyond_the_cap", {.n = 60, .V = 5, .parts = 4, .soft_cap = 3, .range = 6});
  loss("correct_far_beyond_the_cap",
       {.n = 200, .V = 11, .parts = 2, .soft_cap = 3, .range = 300, .gradient = false});
  loss("huge_logits", {.n = 30, .V = 8, .parts = 4, .soft_cap = 0, .range = 3000, .gradient = false});
  loss("one_id_each", {.n = 20, .V = 1, .parts = 5, .soft_cap = 30, .range = 3});
  loss("long_rows", {.n = 3, .V = 1200, .parts = 2, .soft_cap = 30, .range = 90, .gradient = false});

  AppendEmbeddingPartCases(cases, "first", 41, 11, 5, 0);
  AppendEmbeddingPartCases(cases, "later", 130, 9, 8, 27);
  AppendEmbeddingPartCases(cases, "one_row", 200, 1, 12, 3);

  cases.push_back(DropoutCase("whole", 13, 20, 0, {}));
  cases.push_back(DropoutCase("rows", 9, 12, 0, {.first_row = 18}));
  cases.push_back(DropoutCase("rows_of_an_odd_width", 9, 7, 0, {.first_row = 5}));
  cases.push_back(DropoutCase("strided_rows", 9, 16, 8, {.first_row = 5}));
  cases.push_back(
      DropoutCase("sequences", 12, 8, 0, {.segment = 4, .segment_stride = 12, .segment_begin = 8}));
  cases.push_back(DropoutCase("sequences_cut_in_rows", 5, 9, 3,
                              {.first_row = 6, .segment = 4, .segment_stride = 8, .segment_begin = 4}));
  cases.push_back(DropoutCase("columns", 11, 16, 0, {.first_column = 32, .num_columns = 48}));
  cases.push_back(DropoutCase("odd_columns", 11, 5, 2, {.first_column = 7, .num_columns = 13}));
  cases.push_back(DropoutCase("one_row_of_columns", 1, 12, 0, {.first_column = 4, .num_columns = 20}));
  cases.push_back(DropoutCase("aligned_columns_of_an_odd_width", 6, 8, 0,
                              {.first_row = 2, .first_column = 4, .num_columns = 17}));
  cases.push_back(DropoutCase("everything", 10, 24, 8,
                              {.first_row = 20,
                               .segment = 5,
                               .segment_stride = 15,
                               .segment_begin = 5,
                               .first_column = 24,
                               .num_columns = 96}));

  const auto both = [&](const ConvCase& s) {
    cases.push_back(ConvLastCase(s));
    if (s.initial) cases.push_back(ConvInitialGradientCase(s));
  };
  both({.name = "plain", .B = 2, .T = 9, .C = 5, .K = 4, .initial = true, .last = true});
  both({.name = "resets", .B = 3, .T = 9, .C = 17, .K = 4, .initial = true, .last = true, .resets = 0.3});
  both({.name = "one_tap", .B = 2, .T = 5, .C = 3, .K = 1, .initial = true, .last = true});
  both({.name = "short",
        .B = 3,
        .T = 2,
        .C = 5,
        .K = 7,
        .initial = true,
        .last = true,
        .last_is_initial = true,
        .resets = 0.3});
  both({.name = "short_without_resets", .B = 2, .T = 2, .C = 5, .K = 4, .initial = true, .last = true});
  both({.name = "without_initial", .B = 2, .T = 6, .C = 8, .K = 4, .last = true});
  both({.name = "linear_strided",
        .B = 2,
        .T = 7,
        .C = 21,
        .K = 5,
        .silu = false,
        .bias = false,
        .initial = true,
        .last = true,
        .gap = 4});
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
}
}  // namespace carousel::testing
