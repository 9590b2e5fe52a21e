// Cases of the block-diagonal map: blocks from one column to more than a vector holds, square or not, wide
// or compute results, strides.
#pragma once
#include "tests/op_cases.h"

namespace carousel::testing {

struct BlockLinearCase {
  int64_t N, blocks, in, out;
  bool bias = false, wide_y = false, accumulate_dx = false;
  int64_t gap = 0;
};
inline std::string NameOfCase(const BlockLinearCase& s) {
  return std::to_string(s.N) + "x" + std::to_string(s.blocks) + "_blocks_" + std::to_string(s.out) + "x" +
         std::to_string(s.in) + (s.bias ? "_bias" : "") + (s.wide_y ? "_wide" : "") +
         (s.accumulate_dx ? "_accumulate" : "") + (s.gap > 0 ? "_strided" : "");
}

inline OpCase BlockLinearForwardCase(const BlockLinearCase& s) {
  OpCase result = {
      .name = "BlockLinearForward_" + NameOfCase(s),
      .tensors = {{.name = "y",
                   .dims = {s.N, s.blocks * s.out},
                   .role = s.wide_y ? Role::kWide : Role::kCompute,
                   .use = Use::kOut,
                   .gap = s.gap},
                  {.name = "x", .dims = {s.N, s.blocks * s.in}, .gap = s.gap == 0 ? 0 : s.gap + 2},
                  {.name = "weight", .dims = {s.blocks * s.out, s.in}}},
      .run =
          [s](Ops& ops, const Tensors& t) {
            ops.BlockLinearForward({.y = t.at("y"),
                                    .x = t.at("x"),
                                    .weight = t.at("weight"),
                                    .bias = Optional(t, "bias"),
                                    .num_blocks = s.blocks});
          },
      .expected =
          [s](Values& v) {
            // the dense matrix with zeros beside the blocks
            const int64_t outs = s.blocks * s.out, ins = s.blocks * s.in;
            std::vector<double> dense(outs * ins);
            for (int64_t o = 0; o < outs; ++o) {
              for (int64_t i = 0; i < s.in; ++i) {
                dense[o * ins + o / s.out * s.in + i] = v["weight"][o * s.in + i];
              }
            }
            for (int64_t r = 0; r < s.N; ++r) {
              for (int64_t o = 0; o < outs; ++o) {
                double sum = s.bias ? v["bias"][o] : 0;
                for (int64_t i = 0; i < ins; ++i) sum += dense[o * ins + i] * v["x"][r * ins + i];
                v["y"][r * outs + o] = sum;
              }
            }
          },
      .wide_error = 4 + static_cast<double>(s.in)};
  if (s.bias) result.tensors.push_back({.name = "bias", .dims = {s.blocks * s.out}, .role = Role::kWide});
  return result;
}

inline OpCase BlockLinearBackwardCase(const BlockLinearCase& s) {
  OpCase result = {
      .name = "BlockLinearBackward_" + NameOfCase(s),
      .tensors = {{.name = "dx",
                   .dims = {s.N, s.blocks * s.in},
                   .use = s.accumulate_dx ? Use::kAccumulate : Use::kOut,
                   .gap = s.gap},
                  {.name = "dweight",
                   .dims = {s.blocks * s.out, s.in},
                   .role = Role::kWide,
                   .use = Use::kAccumulate},
                  {.name = "dy", .dims = {s.N, s.blocks * s.out}, .gap = s.gap == 0 ? 0 : s.gap + 1},
                  {.name = "x", .dims = {s.N, s.blocks * s.in}, .gap = s.gap == 0 ? 0 : s.gap + 2},
                  {.name = "weight", .dims = {s.blocks * s.out, s.in}}},
      .run =
          [s](Ops& ops, const Tensors& t) {
            ops.BlockLinearBackward({.dx = t.at("dx"),
                                     .dweight = t.at("dweight"),
                                     .dbias = Optional(t, "dbias"),
                                     .dy = t.at("dy"),
                                     .x = t.at("x"),
                                     .weight = t.at("weight"),
                                     .num_blocks = s.blocks,
                                     .accumulate_dx = s.accumulate_dx});
          },
      // gradients of the sum of dy y, y linear in each input: the derivative term by term
      .expected =
          [s](Values& v) {
            std::vector<double>& dx = v["dx"];
            if (!s.accumulate_dx) dx.assign(dx.size(), 0);
            for (int64_t r = 0; r < s.N; ++r) {
              for (int64_t b = 0; b < s.blocks; ++b) {
                for (int64_t o = b * s.out; o < (b + 1) * s.out; ++o) {
                  const double dy = v["dy"][r * s.blocks * s.out + o];
                  if (s.bias) v["dbias"][o] += dy;
                  for (int64_t i = 0; i < s.in; ++i) {
                    const int64_t column = r * s.blocks * s.in + b * s.in + i;
                    dx[column] += dy * v["weight"][o * s.in + i];
                    v["dweight"][o * s.in + i] += dy * v["x"][column];
                  }
                }
              }
            }
          },
      .wide_error = 8 + static_cast<double>(s.out) + 0.5 * static_cast<double>(s.N)};
  if (s.bias) {
    result.tensors.push_back(
        {.name = "dbias", .dims = {s.blocks * s.out}, .role = Role::kWide, .use = Use::kAccumulate});
  }
  return result;
}

inline void AppendBlockLinearCases(std::vector<OpCase>& cases) {
  const std::vector<BlockLinearCase> sizes = {
      {.N = 5, .blocks = 7, .in = 1, .out = 1, .bias = true},
      {.N = 37, .blocks = 19, .in = 2, .out = 2, .bias = true, .wide_y = true, .gap = 3},
      {.N = 1, .blocks = 1, .in = 4, .out = 4},
      {.N = 131, .blocks = 13, .in = 4, .out = 4, .bias = true, .accumulate_dx = true, .gap = 5},
      {.N = 70, .blocks = 8, .in = 4, .out = 4, .wide_y = true},
      {.N = 45, .blocks = 5, .in = 8, .out = 8, .bias = true, .gap = 1},
      {.N = 66, .blocks = 3, .in = 16, .out = 16, .bias = true, .wide_y = true, .accumulate_dx = true},
      {.N = 33, .blocks = 2, .in = 32, .out = 32, .bias = true},
      {.N = 67, .blocks = 3, .in = 64, .out = 64, .bias = true, .accumulate_dx = true, .gap = 8},
      {.N = 2, .blocks = 2, .in = 64, .out = 64, .bias = true, .wide_y = true, .gap = 3},
      // no power of two, not square
      {.N = 40, .blocks = 11, .in = 3, .out = 3, .bias = true, .accumulate_dx = true, .gap = 2},
      {.N = 9, .blocks = 4, .in = 5, .out = 2, .bias = true, .accumulate_dx = true},
      {.N = 21, .blocks = 3, .in = 1, .out = 13, .wide_y = true, .gap = 4},
      {.N = 17, .blocks = 2, .in = 20, .out = 6, .bias = true, .wide_y = true, .gap = 1},
      {.N = 26, .blocks = 3, .in = 8, .out = 40, .accumulate_dx = true}};
  for (const BlockLinearCase& s : sizes) {
    cases.push_back(BlockLinearForwardCase(s));
    cases.push_back(BlockLinearBackwardCase(s));
  }
}
}  // namespace carousel::testing
