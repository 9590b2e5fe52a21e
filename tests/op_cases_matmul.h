// Cases of the matmul: every combination of flags, types of c, strides and bias, on shapes from one element
// to several tiles in each direction.
#pragma once
#include "tests/op_cases.h"

namespace carousel::testing {

struct MatmulSize {
  int64_t M, N, K;
  bool transpose_a = false, transpose_b = false, accumulate = false, bias = false, wide_c = true;
  int64_t gap = 0;
};

inline OpCase MatmulCase(const MatmulSize& s) {
  const std::string name = "Matmul_" + std::to_string(s.M) + "x" + std::to_string(s.N) + "x" +
                           std::to_string(s.K) + (s.transpose_a ? "_ta" : "") + (s.transpose_b ? "_tb" : "") +
                           (s.accumulate ? "_accumulate" : "") + (s.bias ? "_bias" : "") +
                           (s.wide_c ? "_wide" : "_compute") + (s.gap > 0 ? "_strided" : "");
  OpCase result = {
      .name = name,
      .tensors = {{.name = "c",
                   .dims = {s.M, s.N},
                   .role = s.wide_c ? Role::kWide : Role::kCompute,
                   .use = s.accumulate ? Use::kAccumulate : Use::kOut,
                   .gap = s.gap},
                  {.name = "a",
                   .dims = s.transpose_a ? std::vector<int64_t>{s.K, s.M} : std::vector<int64_t>{s.M, s.K},
                   .gap = s.gap == 0 ? 0 : s.gap + 2},
                  {.name = "b",
                   .dims = s.transpose_b ? std::vector<int64_t>{s.N, s.K} : std::vector<int64_t>{s.K, s.N},
                   .gap = s.gap == 0 ? 0 : s.gap + 1}},
      .run =
          [s](Ops& ops, const Tensors& t) {
            ops.Matmul({.c = t.at("c"),
                        .a = t.at("a"),
                        .b = t.at("b"),
                        .bias = Optional(t, "bias"),
                        .transpose_a = s.transpose_a,
                        .transpose_b = s.transpose_b,
                        .accumulate = s.accumulate});
          },
      .expected =
          [s](Values& v) {
            const std::vector<double>&a = v["a"], &b = v["b"];
            std::vector<double>& c = v["c"];
            for (int64_t i = 0; i < s.M; ++i) {
              for (int64_t j = 0; j < s.N; ++j) {
                double sum = 0;
                for (int64_t k = 0; k < s.K; ++k) {
                  sum += a[s.transpose_a ? k * s.M + i : i * s.K + k] *
                         b[s.transpose_b ? j * s.K + k : k * s.N + j];
                }
                if (s.bias) sum += v["bias"][j];
                c[i * s.N + j] = sum + (s.accumulate ? c[i * s.N + j] : 0);
              }
            }
          },
      // sums of K products below 1 in f32: K epsilon at worst
      .wide_error = 8 + 0.5 * static_cast<double>(s.K)};
  if (s.bias) result.tensors.push_back({.name = "bias", .dims = {s.N}, .role = Role::kWide});
  return result;
}

inline void AppendMatmulCases(std::vector<OpCase>& cases) {
  // every combination on one odd shape
  for (int flags = 0; flags < 64; ++flags) {
    cases.push_back(MatmulCase({.M = 35,
                                .N = 67,
                                .K = 41,
                                .transpose_a = (flags & 1) != 0,
                                .transpose_b = (flags & 2) != 0,
                                .accumulate = (flags & 4) != 0,
                                .bias = (flags & 8) != 0,
                                .wide_c = (flags & 16) != 0,
                                .gap = (flags & 32) != 0 ? 3 : 0}));
  }
  // every transposition on edges of the shape: single rows, columns and terms, several tiles, nothing to sum
  const MatmulSize edges[] = {
      {.M = 1, .N = 1, .K = 1},      {.M = 1, .N = 300, .K = 64},   {.M = 300, .N = 1, .K = 33},
      {.M = 64, .N = 8, .K = 96},    {.M = 8, .N = 96, .K = 520},   {.M = 300, .N = 272, .K = 2},
      {.M = 32, .N = 32, .K = 32},   {.M = 2, .N = 5, .K = 0},      {.M = 3, .N = 600, .K = 1},
      {.M = 530, .N = 20, .K = 200}, {.M = 70, .N = 330, .K = 129}, {.M = 33, .N = 600, .K = 1030}};
  for (const MatmulSize& edge : edges) {
    for (int transposes = 0; transposes < 4; ++transposes) {
      MatmulSize s = edge;
      s.transpose_a = (transposes & 1) != 0;
      s.transpose_b = (transposes & 2) != 0;
      s.wide_c = transposes == 0 || transposes == 3;
      s.accumulate = transposes == 1;
      s.bias = transposes == 2;
      cases.push_back(MatmulCase(s));
    }
  }
}
}  // namespace carousel::testing
