// Cases of the loss and of the optimizer's update.
#pragma once
#include <algorithm>

#include "tests/op_cases.h"

namespace carousel::testing {

struct LossSize {
  int64_t n, V;
  double soft_cap;  // 0: none
  double range;     // of the logits
  bool gradient = true;
  bool some_targets_missing = true;
  bool correct = false;
};

inline std::vector<double> Losses(Values& v, const LossSize& size) {
  std::vector<double> loss(size.n);
  for (int64_t r = 0; r < size.n; ++r) {
    const int64_t target = static_cast<int64_t>(v["targets"][r]);
    if (target < 0) continue;
    std::vector<double> z(v["logits"].begin() + r * size.V, v["logits"].begin() + (r + 1) * size.V);
    double max = -INFINITY, sum = 0;
    for (double& value : z) {
      if (size.soft_cap > 0) value = size.soft_cap * std::tanh(value / size.soft_cap);
      max = std::max(max, value);
    }
    for (const double value : z) sum += std::exp(value - max);
    loss[r] = std::log(sum) + max - z[target];
  }
  return loss;
}

inline OpCase CrossEntropyCase(const std::string& name, const LossSize& size) {
  const int64_t n = size.n, V = size.V;
  OpCase result = {
      .name = "CrossEntropy_" + name,
      .tensors =
          {{.name = "loss", .dims = {n}, .role = Role::kWide, .use = Use::kOut},
           {.name = "logits", .dims = {n, V}, .role = Role::kWide, .low = -size.range, .high = size.range},
           {.name = "targets",
            .dims = {n},
            .role = Role::kI32,
            .low = size.some_targets_missing ? -2.0 : 0.0,
            .high = static_cast<double>(V - 1)}},
      .run =
          [cap = size.soft_cap](Ops& ops, const Tensors& t) {
            ops.CrossEntropy({.loss = t.at("loss"),
                              .dlogits = Optional(t, "dlogits"),
                              .logits = t.at("logits"),
                              .targets = t.at("targets"),
                              .correct = Optional(t, "correct"),
                              .soft_cap = cap});
          },
      .expected =
          [size](Values& v) {
            v["loss"] = Losses(v, size);
            for (int64_t r = 0; size.correct && r < size.n; ++r) {
              const double* logits = v["logits"].data() + r * size.V;
              const int64_t largest = std::max_element(logits, logits + size.V) - logits;
              v["correct"][r] = largest == static_cast<int64_t>(v["targets"][r]) ? 1 : 0;
            }
            if (!size.gradient) return;
            // Rows are independent: each on its own.
            for (int64_t r = 0; r < size.n; ++r) {
              Values row = {{"targets", {v["targets"][r]}}};
              row["logits"].assign(v["logits"].begin() + r * size.V, v["logits"].begin() + (r + 1) * size.V);
              LossSize one_row = size;
              one_row.n = 1;
              const std::vector<double> gradient =
                  NumericGradient(row, "logits", [&](Values& u) { return Losses(u, one_row)[0]; });
              std::copy(gradient.begin(), gradient.end(), v["dlogits"].begin() + r * size.V);
            }
          },
      // a logit of `range` is known to range * epsilon only
      .wide_error = 16 + 4 * size.range,
      .expected_error = size.gradient ? 4e-7 : 1e-13};
  if (size.gradient) result.tensors.push_back({.name = "dlogits", .dims = {n, V}, .use = Use::kOut});
  if (size.correct) {
    result.tensors.push_back({.name = "correct", .dims = {n}, .role = Role::kU8, .use = Use::kOut});
  }
  return result;
}

// weight: "none", or its role.
inline OpCase AdamWCase(const std::string& name, int64_t n, int64_t step, bool has_weight, Role weight) {
  constexpr double kLr = 0.01, kBeta1 = 0.9, kBeta2 = 0.99, kEps = 1e-6, kDecay = 0.1, kScale = 0.25;
  OpCase result = {
      .name = "AdamW_" + name,
      .tensors =
          {{.name = "master", .dims = {n}, .role = Role::kWide, .use = Use::kAccumulate},
           {.name = "m", .dims = {n}, .role = Role::kWide, .use = Use::kAccumulate},
           {.name = "v", .dims = {n}, .role = Role::kWide, .use = Use::kAccumulate, .low = 0, .high = 1},
           {.name = "grad", .dims = {n}, .role = Role::kWide, .low = -4, .high = 4}},
      .run =
          [step](Ops& ops, const Tensors& t) {
            ops.AdamW({.master = t.at("master"),
                       .m = t.at("m"),
                       .v = t.at("v"),
                       .weight = Optional(t, "weight"),
                       .grad = t.at("grad"),
                       .lr = kLr,
                       .beta1 = kBeta1,
                       .beta2 = kBeta2,
                       .eps = kEps,
                       .weight_decay = kDecay,
                       .grad_scale = kScale,
                       .step = step});
          },
      .expected =
          [n, step](Values& v) {
            for (int64_t i = 0; i < n; ++i) {
              const double g = v["grad"][i] * kScale;
              v["m"][i] = kBeta1 * v["m"][i] + (1 - kBeta1) * g;
              v["v"][i] = kBeta2 * v["v"][i] + (1 - kBeta2) * g * g;
              const double m_hat = v["m"][i] / (1 - std::pow(kBeta1, static_cast<double>(step)));
              const double v_hat = v["v"][i] / (1 - std::pow(kBeta2, static_cast<double>(step)));
              v["master"][i] -= kLr * (m_hat / (std::sqrt(v_hat) + kEps) + kDecay * v["master"][i]);
            }
            v["weight"] = v["master"];
          },
      // an update is lr m / sqrt(v), large where v is small by chance
      .wide_error = 64};
  if (has_weight) result.tensors.push_back({.name = "weight", .dims = {n}, .role = weight, .use = Use::kOut});
  return result;
}

inline void AppendLossCases(std::vector<OpCase>& cases) {
  cases.push_back(CrossEntropyCase("capped", {.n = 5, .V = 37, .soft_cap = 30, .range = 20}));
  cases.push_back(CrossEntropyCase("uncapped", {.n = 4, .V = 50, .soft_cap = 0, .range = 5}));
  cases.push_back(CrossEntropyCase("beyond_the_cap", {.n = 2, .V = 5, .soft_cap = 3, .range = 6}));
  cases.push_back(
      CrossEntropyCase("loss_only", {.n = 130, .V = 300, .soft_cap = 30, .range = 90, .gradient = false}));
  cases.push_back(
      CrossEntropyCase("huge_logits", {.n = 9, .V = 17, .soft_cap = 0, .range = 3000, .gradient = false}));
  cases.push_back(CrossEntropyCase("correct", {.n = 60, .V = 5, .soft_cap = 0, .range = 5, .correct = true}));
  cases.push_back(
      CrossEntropyCase("correct_beyond_the_cap",
                       {.n = 300, .V = 23, .soft_cap = 3, .range = 300, .gradient = false, .correct = true}));
  cases.push_back(CrossEntropyCase("one_class", {.n = 1, .V = 1, .soft_cap = 30, .range = 1}));
  cases.push_back(AdamWCase("first_step_to_compute", 1003, 1, true, Role::kCompute));
  cases.push_back(AdamWCase("later_step_to_wide", 77, 10, true, Role::kWide));
  cases.push_back(AdamWCase("no_weight", 16385, 1000, false, Role::kWide));
}
}  // namespace carousel::testing
