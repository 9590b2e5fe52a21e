// What the tests of layers on a mesh share: one layer run on the ranks of a mesh (threads) from the same
// whole weights and inputs, with outputs and gradients put together to whole tensors again. Which gradients
// are sums over ranks is read from the parameters (Param::reduce_axes), as a ParamSync does.
#pragma once
#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "tests/mesh_testing.h"
#include "tests/model_testing.h"

namespace carousel::testing {

// Widths and heads that split over up to 4 ranks, and over 2 x 2.
inline ModelSpec MeshSpecOfLayers() {
  ModelSpec spec = TinySpec();
  spec.num_heads = 4;
  spec.qk_dim = 12;
  spec.v_dim = 20;
  spec.ffn_dim = 28;
  spec.slstm_num_heads = 4;
  // The norms' epsilon is as large as what it is added to. With a small one a head's output after its norm
  // does not depend on the scale of the input gates, and the gradient of their bias is what rounding leaves
  // of a sum that cancels: in f32 no two orders of adding agree on it.
  spec.norm_eps = 0.5;
  return spec;
}

struct LayerCase {
  ModelSpec spec = MeshSpecOfLayers();
  MeshSizes sizes = {};
  SequenceMode mode = SequenceMode::kAuto;
  int64_t B = 2, T = 16;             // of the pass, all tokens
  std::vector<uint8_t> resets = {};  // (B*T) of all tokens; empty: none
  DType compute = DType::kF64;
  std::optional<uint64_t> dropout_key = {};
  // What memory is bound for, in tokens of all ranks; B == 0: the pass.
  PassShape bound = {};
  int64_t problem = 0;  // which random weights and inputs
};

// Whole tensors, whatever the mesh was.
struct LayerResult {
  std::vector<double> y, dx;                                  // (B*T, D)
  std::map<std::string, std::vector<double>> gradients = {};  // by the parameter's name
};

// Random numbers of a problem begin at a place of their own.
inline int64_t FirstElement(int64_t problem) { return problem << 32; }

// Sets this rank's part of every weight: a value of the name, the whole parameter's element and the problem.
inline void RandomizeWeightParts(ParamStore& params, int64_t problem = 0) {
  for (int i = 0; i < static_cast<int>(params.params().size()); ++i) {
    const Param& param = params.param(i);
    const Tensor weight = params.Weight(i);
    DispatchFloat(weight.dtype, [&]<class T>() {
      ForEachLocalRun(param.part, 0, param.local_elems, [&](int64_t elem, int64_t local, int64_t count) {
        for (int64_t j = 0; j < count; ++j) {
          weight.as<T>()[local + j] =
              static_cast<T>(static_cast<Wide<T>>(RandomParameter(param, FirstElement(problem) + elem + j)));
        }
      });
    });
  }
}

// fn(element of x, its place in the whole tensor); row r of x is row whole_rows[r] of it.
template <class Fn>
void ForEachElement(Tensor x, const std::vector<int64_t>& whole_rows, const Fn& fn) {
  const int64_t D = x.dim[1];
  DispatchFloat(x.dtype, [&]<class T>() {
    for (size_t r = 0; r < whole_rows.size(); ++r) {
      for (int64_t c = 0; c < D; ++c) {
        fn(x.as<T>()[static_cast<int64_t>(r) * D + c], whole_rows[r] * D + c);
      }
    }
  });
}

// Subject: a layer with
//   Subject(const ModelSpec&, ParamStore&);
//   DType activations(const ParamStore&) const;            // dtype of x, y, dx, dy
//   void Bind(Arena&, const Ops&, const PassShape&);
//   void Forward(const LayerContext&, Tensor y, Tensor x);
//   void Backward(const LayerContext&, Tensor dx, Tensor dy, Tensor x);
template <class Subject>
LayerResult RunLayer(const LayerCase& c) {
  const int64_t D = c.spec.embedding_dim, S = c.sizes.sequence, t = c.sizes.tensor, T = c.T / S;
  CAROUSEL_CHECK(c.T % S == 0 && c.B * T % t == 0);
  const size_t num_elems = static_cast<size_t>(c.B * c.T * D);
  LayerResult result = {.y = std::vector<double>(num_elems), .dx = std::vector<double>(num_elems)};
  std::vector<std::map<std::string, std::vector<double>>> gradients(static_cast<size_t>(c.sizes.world()));

  RunLocalMesh(c.sizes, [&](const Mesh& mesh) {
    const auto device = CpuDevice(1);
    ParamStore params(c.compute, {.tensor_size = t, .tensor_index = mesh.tensor.index});
    Subject subject(c.spec, params);
    PassShape shape = c.bound.B > 0 ? c.bound : PassShape{.B = c.B, .T = c.T};
    shape.T /= S;
    shape.evaluation_T /= S;
    shape.axes = AxesOf(mesh, c.mode);
    Tensor x, y, dx, dy;
    const int64_t rows = c.B * T / t;
    const DeviceMemory memory(*device, [&](Arena& arena) {
      params.Bind(arena, false);
      params.BindGradients(arena);
      const DType dtype = subject.activations(params);
      for (Tensor* tensor : {&x, &y, &dx, &dy}) *tensor = arena.Persistent("test", dtype, {rows, D});
      subject.Bind(arena, device->ops(), shape);
    });
    RandomizeWeightParts(params, c.problem);
    params.ZeroGradients(device->ops());

    // This rank's tokens, and its rows of the stream among them.
    std::vector<uint8_t> resets, all_resets = c.resets;
    std::vector<int64_t> whole_rows;
    for (int64_t n = 0; n < c.B * T; ++n) {
      const int64_t whole = n / T * c.T + mesh.sequence.index * T + n % T;
      if (!c.resets.empty()) resets.push_back(c.resets[static_cast<size_t>(whole)]);
      if (n / rows == mesh.tensor.index) whole_rows.push_back(whole);
    }
    ForEachElement(x, whole_rows, [&]<class E>(E& e, int64_t j) {
      e = static_cast<E>(static_cast<Wide<E>>(Unit("x", FirstElement(c.problem) + j)));
    });
    ForEachElement(dy, whole_rows, [&]<class E>(E& e, int64_t j) {
      e = static_cast<E>(static_cast<Wide<E>>(Unit("dy", FirstElement(c.problem) + j)));
    });

    LayerContext ctx = {.ops = device->ops(),
                        .params = params,
                        .axes = shape.axes,
                        .B = c.B,
                        .T = T,
                        .dropout_key = c.dropout_key};
    if (!resets.empty()) {
      ctx.resets = Tensor(resets.data(), DType::kU8, {c.B * T});
      if (S > 1) ctx.all_resets = Tensor(all_resets.data(), DType::kU8, {c.B * c.T});
    }
    subject.Forward(ctx, y, x);
    subject.Backward(ctx, dx, dy, x);

    // Ranks write different rows.
    ForEachElement(y, whole_rows, [&](auto e, int64_t j) {
      result.y[static_cast<size_t>(j)] = static_cast<double>(static_cast<Wide<decltype(e)>>(e));
    });
    ForEachElement(dx, whole_rows, [&](auto e, int64_t j) {
      result.dx[static_cast<size_t>(j)] = static_cast<double>(static_cast<Wide<decltype(e)>>(e));
    });
    for (int i = 0; i < static_cast<int>(params.params().size()); ++i) {
      const Param& param = params.param(i);
      std::vector<double>& whole = gradients[static_cast<size_t>(mesh.world.index)][param.name];
      whole.resize(static_cast<size_t>(param.num_elems));
      // One rank of an axis speaks for all where nothing is summed and nothing is split.
      const bool sharded = param.tensor.kind == Placement::Kind::kShard;
      if (!sharded && !param.reduces_over(MeshAxis::kTensor) && mesh.tensor.index > 0) continue;
      if (!param.reduces_over(MeshAxis::kSequence) && mesh.sequence.index > 0) continue;
      DispatchFloat(params.wide(), [&]<class W>() {
        const W* grad = params.Grad(i).as<W>();
        ForEachLocalRun(param.part, 0, param.local_elems, [&](int64_t elem, int64_t local, int64_t count) {
          for (int64_t j = 0; j < count; ++j) {
            whole[static_cast<size_t>(elem + j)] = static_cast<double>(static_cast<Wide<W>>(grad[local + j]));
          }
        });
      });
    }
  });
  // Every rank's part, or its term of the sum.
  for (const auto& rank : gradients) {
    for (const auto& [name, part] : rank) {
      std::vector<double>& sum = result.gradients[name];
      sum.resize(part.size());
      for (size_t j = 0; j < part.size(); ++j) sum[j] += part[j];
    }
  }
  return result;
}

// The same on one rank.
inline LayerCase OnOneRank(LayerCase c) {
  c.sizes = {};
  c.mode = SequenceMode::kAuto;
  return c;
}

constexpr double kF32Rounding = 1.2e-7;  // of one operation: 2^-23

// y, dx and every gradient by name, and all gradients as one vector.
inline std::map<std::string, std::vector<double>> NamedTensors(const LayerResult& result) {
  std::map<std::string, std::vector<double>> tensors = {{"y", result.y}, {"dx", result.dx}};
  std::vector<double>& all = tensors["all gradients"];
  for (const auto& [name, gradient] : result.gradients) {
    tensors["gradient of " + name] = gradient;
    all.insert(all.end(), gradient.begin(), gradient.end());
  }
  return tensors;
}

// Forward and all gradients. In f64 every tensor is compared relative to its norm.
//
// In bf16, where operands are rounded to 2^-9 at other places (terms of a sum over ranks, states at the
// borders of segments), a sum over tokens that cancels keeps few digits: there all gradients are one vector.
//
// In f32 every tensor is compared by itself, over several problems: the gradient of a bias is a sum over
// tokens of a few numbers, which in some problem or other happens to cancel, on one rank as on many (the
// worst of 30: 3e-6 between one rank and f64). The root mean square over problems is what a mesh decides: it
// is held to 2e-6. The distance of y, dx and all gradients from f64 is held to twice that of one rank.
template <class Subject>
void ExpectSameAsOneRank(LayerCase c, const std::string& what) {
  const double tolerance = c.compute == DType::kF64 ? 1e-12 : c.compute == DType::kF32 ? 2e-6 : 2e-2;
  const int64_t num_problems = c.compute == DType::kF32 ? 8 : 1;
  struct SquaredErrors {
    double to_one = 0, to_exact = 0, of_one = 0;
  };
  std::map<std::string, SquaredErrors> errors;
  const auto squared = [](double x) { return x * x; };
  for (c.problem = 0; c.problem < num_problems; ++c.problem) {
    const LayerResult result = RunLayer<Subject>(c), one = RunLayer<Subject>(OnOneRank(c));
    const auto tensors = NamedTensors(result), expected = NamedTensors(one);
    LayerCase exact_case = OnOneRank(c);
    exact_case.compute = DType::kF64;
    const auto exact = c.compute == DType::kF32 ? NamedTensors(RunLayer<Subject>(exact_case)) : expected;
    ASSERT_EQ(tensors.size(), expected.size()) << what;
    for (const auto& [name, tensor] : expected) {
      SquaredErrors& e = errors[name];
      e.to_one += squared(RelativeL2(tensors.at(name), tensor));
      e.to_exact += squared(RelativeL2(tensors.at(name), exact.at(name)));
      e.of_one += squared(RelativeL2(tensor, exact.at(name)));
    }
  }
  const auto rms = [&](double sum) { return std::sqrt(sum / static_cast<double>(num_problems)); };
  for (const auto& [name, e] : errors) {
    const bool one_tensor = name.rfind("gradient of ", 0) == 0;
    if (c.compute == DType::kBF16 && one_tensor) continue;
    EXPECT_LT(rms(e.to_one), tolerance) << what << ": " << name;
    if (c.compute != DType::kF32 || one_tensor) continue;
    EXPECT_LT(rms(e.to_exact), 2 * std::max(rms(e.of_one), kF32Rounding)) << what << ": " << name;
  }
}

// Ways in which documents lie over the borders between parts of `part` tokens, of B sequences of T tokens.
inline std::map<std::string, std::vector<uint8_t>> DocumentBorders(int64_t B, int64_t T, int64_t part) {
  const auto make = [&](auto starts) {
    std::vector<uint8_t> resets;
    for (int64_t n = 0; n < B * T; ++n) resets.push_back(starts(n / T, n % T) ? 1 : 0);
    return resets;
  };
  return {
      {"none", {}},
      {"never", make([](int64_t, int64_t) { return false; })},
      {"first token of a part", make([&](int64_t, int64_t t) { return t % part == 0; })},
      {"last token of a part", make([&](int64_t, int64_t t) { return t % part == part - 1; })},
      {"everywhere", make([](int64_t, int64_t) { return true; })},
      {"in the first part only", make([&](int64_t, int64_t t) { return t == part / 2; })},
      {"in the last part only", make([&](int64_t, int64_t t) { return t == T - 1 - part / 2; })},
      {"other places in each sequence", make([&](int64_t b, int64_t t) { return (3 * t + 5 * b) % 7 == 0; })},
  };
}
}  // namespace carousel::testing
