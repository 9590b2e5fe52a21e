// What the tests of the model share: a device, tiny specs, random weights and tokens, central differences.
#pragma once
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/base/exact_sum.h"
#include "core/base/random.h"
#include "core/model/bound_model.h"
#include "core/train/batch.h"
#include "kernels/make_device.h"

namespace carousel::testing {

inline std::unique_ptr<Device> CpuDevice(int threads = 2) {
  std::string error;
  std::unique_ptr<Device> device = MakeDevice("cpu", threads, &error);
  CAROUSEL_CHECK_MSG(device != nullptr, error);
  return device;
}

// Odd sizes on purpose: no width is a multiple of a vector or of a chunk.
inline ModelSpec TinySpec() {
  ModelSpec spec;
  spec.vocab_size = 19;
  spec.embedding_dim = 12;
  spec.num_blocks = 2;
  spec.num_heads = 2;
  spec.qk_dim = 6;
  spec.v_dim = 10;
  spec.ffn_dim = 14;
  // No epsilon in the cell: the value is then independent of the stabiliser, which backward holds constant.
  spec.cell_eps = 0;
  spec.chunk_length = 4;
  spec.loss_chunk_tokens = 5;
  return spec;
}

// Uniform in [-1, 1): element `index` of a named stream.
inline double Unit(const std::string& name, int64_t index) {
  return 2 * RandomUniform(/*seed=*/1, StreamOf(name), static_cast<uint64_t>(index)) - 1;
}
inline void FillUnit(Tensor x, const std::string& name, double scale = 1, double shift = 0) {
  DispatchFloat(x.dtype, [&]<class T>() {
    for (int64_t j = 0; j < x.num_elems(); ++j) {
      x.as<T>()[j] = static_cast<T>(static_cast<Wide<T>>(shift + scale * Unit(name, j)));
    }
  });
}

// All parameters random, also those that start at 0 or 1: a value from the name only.
inline double RandomParameter(const Param& param, int64_t element) {
  const double u = Unit(param.name, element);
  const auto contains = [&](const char* part) { return param.name.find(part) != std::string::npos; };
  if (contains("norm") && contains("weight")) return 1 + 0.2 * u;
  if (contains("igate_preact.bias")) return 1 + u;  // so that both branches of the normaliser occur
  if (contains("fgate_preact.bias")) return 2 + u;
  if (param.shape.size() == 1) return 0.3 * u;
  return u * std::sqrt(3.0 / static_cast<double>(param.shape[1]));
}
inline std::vector<double> RandomParameterValues(const Param& param) {
  std::vector<double> values(static_cast<size_t>(param.num_elems));
  for (int64_t j = 0; j < param.num_elems; ++j) values[static_cast<size_t>(j)] = RandomParameter(param, j);
  return values;
}
inline Tensor HostView(std::vector<double>& values) {
  return Tensor(values.data(), DType::kF64, {static_cast<int64_t>(values.size())});
}
// The same for a store on the CPU that is bound.
inline void RandomizeWeights(ParamStore& params) {
  for (int i = 0; i < static_cast<int>(params.params().size()); ++i) {
    const Tensor weight = params.Weight(i);
    DispatchFloat(weight.dtype, [&]<class T>() {
      for (int64_t j = 0; j < weight.num_elems(); ++j) {
        weight.as<T>()[j] = static_cast<T>(static_cast<Wide<T>>(RandomParameter(params.param(i), j)));
      }
    });
  }
}
inline void RandomizeWeights(BoundModel& bound) {
  for (int i = 0; i < static_cast<int>(bound.params().params().size()); ++i) {
    std::vector<double> values = RandomParameterValues(bound.params().param(i));
    bound.SetWeight(i, HostView(values));
  }
}

// Random tokens; about one target in eight is missing, about one token in six starts a document if `resets`.
inline Batch RandomBatch(int64_t B, int64_t T, int64_t V, uint64_t seed, bool resets) {
  Batch batch;
  batch.B = B;
  batch.T = T;
  for (int64_t n = 0; n < B * T; ++n) {
    const auto bits = RandomBits(seed, StreamOf("batch"), static_cast<uint64_t>(n));
    batch.inputs.push_back(static_cast<int32_t>(bits[0] % static_cast<uint64_t>(V)));
    batch.targets.push_back(bits[1] % 8 == 0 ? -1 : static_cast<int32_t>(bits[2] % static_cast<uint64_t>(V)));
    if (resets) batch.resets.push_back(bits[3] % 6 == 0);
  }
  return batch;
}
// The batch as the model's input; host memory is device memory on the CPU.
inline LanguageModel::Input InputOf(Batch& batch) {
  const int64_t N = batch.B * batch.T;
  LanguageModel::Input input;
  input.ids = Tensor(batch.inputs.data(), DType::kI32, {N});
  input.targets = Tensor(batch.targets.data(), DType::kI32, {N});
  if (!batch.resets.empty()) input.resets = Tensor(batch.resets.data(), DType::kU8, {N});
  input.B = batch.B;
  input.T = batch.T;
  return input;
}

inline double Loss(BoundModel& bound, Batch& batch) {
  ExactSum sum;
  bound.model().ForwardLoss(bound.device().ops(), nullptr, InputOf(batch),
                            Tensor(&sum, DType::kI64, {kExactSumElems}));
  return sum.ToDouble();
}
// Sets the gradients of the sum of the losses and returns it.
inline double LossAndGradients(BoundModel& bound, Batch& batch) {
  ExactSum sum;
  bound.ZeroGradients();
  bound.model().ForwardBackward(bound.device().ops(), nullptr, InputOf(batch),
                                Tensor(&sum, DType::kI64, {kExactSumElems}));
  return sum.ToDouble();
}
inline std::vector<double> Gradient(const BoundModel& bound, int param) {
  std::vector<double> values(
      static_cast<size_t>(const_cast<BoundModel&>(bound).params().param(param).num_elems));
  bound.GetGrad(param, HostView(values));
  return values;
}
inline std::vector<double> AllLogits(BoundModel& bound, Batch& batch) {
  const int64_t N = batch.B * batch.T, V = bound.model().spec().vocab_size;
  std::vector<double> result(static_cast<size_t>(N * V));
  DispatchFloat(bound.params().wide(), [&]<class W>() {
    std::vector<W> logits(result.size());
    bound.model().ForwardLogits(bound.device().ops(), InputOf(batch),
                                Tensor(logits.data(), bound.params().wide(), {N, V}));
    for (size_t j = 0; j < logits.size(); ++j)
      result[j] = static_cast<double>(static_cast<Wide<W>>(logits[j]));
  });
  return result;
}

inline double RelativeL2(const std::vector<double>& a, const std::vector<double>& expected) {
  CAROUSEL_CHECK_EQ(a.size(), expected.size());
  double difference = 0, norm = 0;
  for (size_t j = 0; j < a.size(); ++j) {
    difference += (a[j] - expected[j]) * (a[j] - expected[j]);
    norm += expected[j] * expected[j];
  }
  return std::sqrt(difference) / std::max(std::sqrt(norm), 1e-300);
}

// Compares gradients with fourth-order central differences of `loss` at up to max_elems elements of `values`
// (all f64). Step 1e-4: rounding of a loss of 100 costs 1e-14 / 1e-4 = 1e-10; what remains is truncation,
// where a normaliser near zero or a norm over few columns bends the loss.
inline void ExpectGradient(const std::string& what, const std::function<double()>& loss, Tensor values,
                           Tensor gradient, int64_t max_elems = 40, double tolerance = 1e-7) {
  const int64_t n = values.num_elems(), step = std::max<int64_t>(1, n / max_elems);
  constexpr double h = 1e-4;
  double scale = 1e-3;
  for (int64_t j = 0; j < n; ++j) scale = std::max(scale, std::abs(gradient.as<double>()[j]));
  for (int64_t j = 0; j < n; j += step) {
    double& x = values.as<double>()[j];
    const double x0 = x;
    const auto at = [&](double offset) {
      x = x0 + offset;
      const double result = loss();
      x = x0;
      return result;
    };
    const double numeric = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h);
    EXPECT_NEAR(gradient.as<double>()[j], numeric, tolerance * scale) << what << " element " << j;
  }
}

// Checks the gradients of every parameter of `params` (f64, on the CPU).
inline void ExpectParameterGradients(const std::function<double()>& loss, const ParamStore& params,
                                     int64_t max_elems) {
  for (int i = 0; i < static_cast<int>(params.params().size()); ++i) {
    ExpectGradient(params.param(i).name, loss, params.Weight(i).Flatten(), params.Grad(i).Flatten(),
                   max_elems);
  }
}

// sum(y * dy) of two f64 tensors.
inline double Dot(Tensor y, Tensor dy) {
  double sum = 0;
  for (int64_t j = 0; j < y.num_elems(); ++j) sum += y.as<double>()[j] * dy.as<double>()[j];
  return sum;
}
}  // namespace carousel::testing
