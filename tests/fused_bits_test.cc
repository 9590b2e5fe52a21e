// Ops that do in one pass what others do one after the other give the bits of those: the residual addition in
// the norms, the rounding of their gradient, and in the backward of norms and of a gated feed-forward what
// the forward gave. On every device: the one made of the sources in kernels/cuda, the CPU on every
// instruction set, and the specification.
#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "tests/device_op_testing.h"

namespace carousel::testing {
namespace {

std::vector<std::pair<std::string, std::unique_ptr<Device>>> Devices() {
  std::vector<std::pair<std::string, std::unique_ptr<Device>>> devices;
  devices.emplace_back("kernels/cuda", MakeTestDevice());
  devices.emplace_back("specification", std::make_unique<cpu::CpuDevice>(
                                            cpu::CpuOptions{.num_threads = 1, .reference = true}));
  for (const cpu::SimdLevel level : {cpu::SimdLevel::kBase, cpu::SimdLevel::kV3, cpu::SimdLevel::kV4}) {
    if (level > cpu::DetectSimdLevel()) continue;
    devices.emplace_back(
        "CPU, level " + std::to_string(static_cast<int>(level)),
        std::make_unique<cpu::CpuDevice>(cpu::CpuOptions{.num_threads = 2, .simd_level = level}));
  }
  return devices;
}

// A contiguous tensor on a device, `shift` elements behind an aligned address, with random values. What lies
// around it must not change.
class Operand {
 public:
  Operand(Device& device, DType dtype, std::initializer_list<int64_t> dims, int64_t shift, uint64_t seed,
          double low = -1, double high = 1)
      : elems_(Tensor(nullptr, dtype, dims).num_elems()),
        shift_(shift),
        host_(dtype, 1, shift + elems_ + kBehind),
        start_(host_) {
    for (int64_t i = 0; i < host_.t().num_elems(); ++i) {
      const double unit =
          static_cast<double>(RandomUint64(9, seed, static_cast<uint64_t>(i)) >> 11) * 0x1p-53;
      host_.Set(0, i, low + unit * (high - low));
    }
    std::memcpy(start_.t().data, host_.t().data, static_cast<size_t>(host_.t().num_bytes()));
    memory_ = std::make_unique<OnDevice>(device, host_);
    t_ = Tensor(static_cast<char*>(memory_->t().data) + shift * SizeOf(dtype), dtype, dims);
  }
  const Tensor& t() const { return t_; }
  std::vector<std::byte> Bits() {
    memory_->CopyTo(host_);
    const int64_t size = SizeOf(host_.t().dtype);
    const auto* now = static_cast<const std::byte*>(host_.t().data);
    const auto* before = static_cast<const std::byte*>(start_.t().data);
    EXPECT_EQ(std::memcmp(now, before, static_cast<size_t>(shift_ * size)), 0) << "written before it";
    const int64_t behind = (shift_ + elems_) * size;
    EXPECT_EQ(std::memcmp(now + behind, before + behind, static_cast<size_t>(kBehind * size)), 0)
        << "written behind it";
    return {now + shift_ * size, now + behind};
  }

 private:
  static constexpr int64_t kBehind = 9;
  int64_t elems_, shift_;
  Matrix host_, start_;
  std::unique_ptr<OnDevice> memory_;
  Tensor t_;
};

struct Shape {
  int64_t N, D, shift;
};
// Nothing, one element, odd rows, rows of one and of several warps, rows that are read again; addresses that
// vectors may have and others.
constexpr Shape kShapes[] = {{0, 24, 0},   {1, 1, 0},    {5, 7, 0},    {70, 53, 1},
                             {9, 64, 0},   {9, 64, 1},   {3, 520, 0},  {3, 1000, 8},
                             {3, 1023, 0}, {2, 4100, 0}, {2, 8200, 0}, {2, 9001, 3}};

void ForEachCase(const std::function<void(Device&, DType, const Shape&)>& check) {
  for (const auto& [name, device] : Devices()) {
    for (const DType compute : kComputes) {
      for (const Shape& shape : kShapes) {
        SCOPED_TRACE(name + ", " + NameOf(compute) + ", " + std::to_string(shape.N) + " x " +
                     std::to_string(shape.D) + " + " + std::to_string(shape.shift));
        check(*device, compute, shape);
      }
    }
  }
}

TEST(FusedBits, ANormThatAddsTheResidualIsAnAdditionAndANorm) {
  ForEachCase([](Device& device, DType compute, const Shape& s) {
    const DType wide = WideOf(compute);
    for (const bool layer_norm : {false, true}) {
      SCOPED_TRACE(layer_norm ? "layer norm" : "RMS norm");
      const Operand x(device, wide, {s.N, s.D}, s.shift, 1), delta(device, compute, {s.N, s.D}, s.shift, 2),
          weight(device, wide, {s.D}, s.shift, 3);
      struct Results {
        Operand y, sum, mean, rstd;
      };
      const auto results = [&] {
        return Results{.y = Operand(device, compute, {s.N, s.D}, s.shift, 4),
                       .sum = Operand(device, wide, {s.N, s.D}, s.shift, 5),
                       .mean = Operand(device, wide, {s.N}, 0, 6),
                       .rstd = Operand(device, wide, {s.N}, 0, 7)};
      };
      const auto norm = [&](Results& r, const Tensor& in, Tensor added, Tensor sum) {
        if (layer_norm) {
          device.ops().LayerNormForward({.y = r.y.t(),
                                         .mean = r.mean.t(),
                                         .rstd = r.rstd.t(),
                                         .sum = sum,
                                         .x = in,
                                         .delta = added,
                                         .weight = weight.t(),
                                         .residual_weight = true,
                                         .eps = 1e-5});
        } else {
          device.ops().RmsNormForward({.y = r.y.t(),
                                       .rstd = r.rstd.t(),
                                       .sum = sum,
                                       .x = in,
                                       .delta = added,
                                       .weight = weight.t(),
                                       .eps = 1e-5});
        }
      };
      Results one = results(), two = results();
      norm(one, x.t(), delta.t(), one.sum.t());
      device.ops().Add({.y = two.sum.t(), .a = x.t(), .b = delta.t()});
      norm(two, two.sum.t(), Tensor(), Tensor());
      EXPECT_EQ(one.sum.Bits(), two.sum.Bits());
      EXPECT_EQ(one.rstd.Bits(), two.rstd.Bits());
      EXPECT_EQ(one.mean.Bits(), two.mean.Bits());
      EXPECT_EQ(one.y.Bits(), two.y.Bits());
    }
  });
}

TEST(FusedBits, ANormRoundsItsGradientAsACastDoesEvenInPlace) {
  ForEachCase([](Device& device, DType compute, const Shape& s) {
    const DType wide = WideOf(compute);
    for (const bool layer_norm : {false, true}) {
      SCOPED_TRACE(layer_norm ? "layer norm" : "RMS norm");
      const Operand x(device, wide, {s.N, s.D}, s.shift, 1), weight(device, wide, {s.D}, s.shift, 2),
          mean(device, wide, {s.N}, 0, 3), rstd(device, wide, {s.N}, 0, 4, 0.5, 1.5);
      struct Gradients {
        Operand dx, dy, rounded, dweight;  // dx begins as the residual's gradient
      };
      const auto gradients = [&] {
        return Gradients{.dx = Operand(device, wide, {s.N, s.D}, s.shift, 5),
                         .dy = Operand(device, compute, {s.N, s.D}, s.shift, 6),
                         .rounded = Operand(device, compute, {s.N, s.D}, s.shift, 7),
                         .dweight = Operand(device, wide, {s.D}, s.shift, 8)};
      };
      const auto norm_backward = [&](Gradients& g, Tensor rounded) {
        if (layer_norm) {
          device.ops().LayerNormBackward({.dx = g.dx.t(),
                                          .dx_rounded = rounded,
                                          .dweight = g.dweight.t(),
                                          .dy = g.dy.t(),
                                          .dresidual = g.dx.t(),
                                          .x = x.t(),
                                          .weight = weight.t(),
                                          .mean = mean.t(),
                                          .rstd = rstd.t(),
                                          .residual_weight = true});
        } else {
          device.ops().RmsNormBackward({.dx = g.dx.t(),
                                        .dx_rounded = rounded,
                                        .dweight = g.dweight.t(),
                                        .dy = g.dy.t(),
                                        .dresidual = g.dx.t(),
                                        .x = x.t(),
                                        .weight = weight.t(),
                                        .rstd = rstd.t()});
        }
      };
      Gradients one = gradients(), in_place = gradients(), two = gradients();
      norm_backward(one, one.rounded.t());
      norm_backward(in_place, in_place.dy.t());
      norm_backward(two, Tensor());
      device.ops().Cast({.y = two.rounded.t(), .x = two.dx.t()});
      for (Gradients* fused : {&one, &in_place}) {
        EXPECT_EQ(fused->dx.Bits(), two.dx.Bits());
        EXPECT_EQ(fused->dweight.Bits(), two.dweight.Bits());
      }
      EXPECT_EQ(one.dy.Bits(), two.dy.Bits());
      EXPECT_EQ(one.rounded.Bits(), two.rounded.Bits());
      EXPECT_EQ(in_place.dy.Bits(), two.rounded.Bits());
    }
  });
}

TEST(FusedBits, TheBackwardOfANormGivesTheNormOnceMore) {
  ForEachCase([](Device& device, DType compute, const Shape& s) {
    const DType wide = WideOf(compute);
    for (const bool layer_norm : {false, true}) {
      for (const bool with_bias : {false, true}) {
        SCOPED_TRACE(std::string(layer_norm ? "layer norm" : "RMS norm") + (with_bias ? ", bias" : ""));
        const Operand x(device, wide, {s.N, s.D}, s.shift, 1, -3, 3), weight(device, wide, {s.D}, s.shift, 2),
            bias_memory(device, wide, {s.D}, s.shift, 3);
        const Tensor bias = with_bias ? bias_memory.t() : Tensor();
        Operand y(device, compute, {s.N, s.D}, s.shift, 4), mean(device, wide, {s.N}, 0, 5),
            rstd(device, wide, {s.N}, 0, 6);
        if (layer_norm) {
          device.ops().LayerNormForward({.y = y.t(),
                                         .mean = mean.t(),
                                         .rstd = rstd.t(),
                                         .x = x.t(),
                                         .weight = weight.t(),
                                         .bias = bias,
                                         .residual_weight = true,
                                         .eps = 1e-5});
        } else {
          device.ops().RmsNormForward(
              {.y = y.t(), .rstd = rstd.t(), .x = x.t(), .weight = weight.t(), .bias = bias, .eps = 1e-5});
        }
        struct Gradients {
          Operand dx, dy, again, dweight, dbias;
        };
        const auto gradients = [&] {
          return Gradients{.dx = Operand(device, wide, {s.N, s.D}, s.shift, 7),
                           .dy = Operand(device, compute, {s.N, s.D}, s.shift, 8),
                           .again = Operand(device, compute, {s.N, s.D}, s.shift, 9),
                           .dweight = Operand(device, wide, {s.D}, s.shift, 10),
                           .dbias = Operand(device, wide, {s.D}, s.shift, 11)};
        };
        const auto backward = [&](Gradients& g, Tensor to_y) {
          if (layer_norm) {
            device.ops().LayerNormBackward({.dx = g.dx.t(),
                                            .y = to_y,
                                            .dweight = g.dweight.t(),
                                            .dbias = with_bias ? g.dbias.t() : Tensor(),
                                            .dy = g.dy.t(),
                                            .dresidual = g.dx.t(),
                                            .x = x.t(),
                                            .weight = weight.t(),
                                            .bias = bias,
                                            .mean = mean.t(),
                                            .rstd = rstd.t(),
                                            .residual_weight = true});
          } else {
            device.ops().RmsNormBackward({.dx = g.dx.t(),
                                          .y = to_y,
                                          .dweight = g.dweight.t(),
                                          .dbias = with_bias ? g.dbias.t() : Tensor(),
                                          .dy = g.dy.t(),
                                          .dresidual = g.dx.t(),
                                          .x = x.t(),
                                          .weight = weight.t(),
                                          .bias = bias,
                                          .rstd = rstd.t()});
          }
        };
        Gradients without = gradients(), beside = gradients(), in_place = gradients();
        backward(without, Tensor());
        backward(beside, beside.again.t());
        backward(in_place, in_place.dy.t());
        EXPECT_EQ(beside.again.Bits(), y.Bits());
        EXPECT_EQ(beside.dy.Bits(), without.dy.Bits());
        EXPECT_EQ(in_place.dy.Bits(), y.Bits());
        for (Gradients* g : {&beside, &in_place}) {
          EXPECT_EQ(g->dx.Bits(), without.dx.Bits());
          EXPECT_EQ(g->dweight.Bits(), without.dweight.Bits());
          EXPECT_EQ(g->dbias.Bits(), without.dbias.Bits());
        }
      }
    }
  });
}

TEST(FusedBits, TheBackwardOfAHeadNormGivesItsOutputOnceMore) {
  ForEachCase([](Device& device, DType compute, const Shape& s) {
    const int64_t NH = s.D < 1000 ? 3 : 1, width = NH * s.D;
    const DType wide = WideOf(compute);
    const auto operand = [&](uint64_t seed, double range) {
      return Operand(device, compute, {s.N, width}, s.shift, seed, -range, range);
    };
    const auto vector = [&](uint64_t seed) { return Operand(device, wide, {width}, s.shift, seed); };
    struct Options {
      bool gate, skip;
      OutputGate kind;
    };
    for (const Options& o :
         {Options{false, false, OutputGate::kSigmoid}, Options{false, true, OutputGate::kSilu},
          Options{true, false, OutputGate::kSigmoid}, Options{true, true, OutputGate::kSigmoid},
          Options{true, false, OutputGate::kSilu}, Options{true, true, OutputGate::kSilu}}) {
      if (s.D > 1000 && !(o.skip && o.kind == OutputGate::kSilu && o.gate))
        continue;  // long, and the same code
      const std::string gate = !o.gate ? "" : o.kind == OutputGate::kSilu ? "SiLU " : "sigmoid ";
      SCOPED_TRACE(gate + (o.skip ? "skip" : ""));
      const Operand h = operand(1, 3), weight = vector(2), skip_weight = vector(3), bias = vector(4);
      const auto if_skip = [&](const Tensor& t) { return o.skip ? t : Tensor(); };
      const auto if_gate = [&](const Tensor& t) { return o.gate ? t : Tensor(); };
      Operand y = operand(5, 1), mean(device, wide, {s.N, NH}, 0, 6), rstd(device, wide, {s.N, NH}, 0, 7);
      const Operand o_pre = operand(8, 8), skip = operand(9, 2);
      device.ops().HeadNormGateForward({.y = y.t(),
                                        .mean = mean.t(),
                                        .rstd = rstd.t(),
                                        .h = h.t(),
                                        .o_pre = if_gate(o_pre.t()),
                                        .weight = weight.t(),
                                        .bias = bias.t(),
                                        .skip = if_skip(skip.t()),
                                        .skip_weight = if_skip(skip_weight.t()),
                                        .NH = NH,
                                        .eps = 1e-5,
                                        .gate = o.kind,
                                        .residual_weight = true});
      struct Gradients {
        Operand dh, dy, again, do_pre, dskip, dweight, dbias, dskip_weight;
      };
      const auto gradients = [&] {
        return Gradients{operand(10, 1), operand(11, 1), operand(12, 1), operand(13, 1),
                         operand(14, 1), vector(15),     vector(16),     vector(17)};
      };
      const auto backward = [&](Gradients& g, Tensor to_y) {
        device.ops().HeadNormGateBackward({.dh = g.dh.t(),
                                           .y = to_y,
                                           .do_pre = if_gate(g.do_pre.t()),
                                           .dskip = if_skip(g.dskip.t()),
                                           .dweight = g.dweight.t(),
                                           .dbias = g.dbias.t(),
                                           .dskip_weight = if_skip(g.dskip_weight.t()),
                                           .dy = g.dy.t(),
                                           .h = h.t(),
                                           .o_pre = if_gate(o_pre.t()),
                                           .weight = weight.t(),
                                           .bias = bias.t(),
                                           .skip = if_skip(skip.t()),
                                           .skip_weight = if_skip(skip_weight.t()),
                                           .mean = mean.t(),
                                           .rstd = rstd.t(),
                                           .NH = NH,
                                           .gate = o.kind,
                                           .residual_weight = true});
      };
      Gradients without = gradients(), beside = gradients(), in_place = gradients();
      backward(without, Tensor());
      backward(beside, beside.again.t());
      backward(in_place, in_place.dy.t());
      EXPECT_EQ(beside.again.Bits(), y.Bits());
      EXPECT_EQ(beside.dy.Bits(), without.dy.Bits());
      EXPECT_EQ(in_place.dy.Bits(), y.Bits());
      for (Gradients* g : {&beside, &in_place}) {
        EXPECT_EQ(g->dh.Bits(), without.dh.Bits());
        EXPECT_EQ(g->do_pre.Bits(), without.do_pre.Bits());
        EXPECT_EQ(g->dskip.Bits(), without.dskip.Bits());
        EXPECT_EQ(g->dweight.Bits(), without.dweight.Bits());
        EXPECT_EQ(g->dbias.Bits(), without.dbias.Bits());
        EXPECT_EQ(g->dskip_weight.Bits(), without.dskip_weight.Bits());
      }
    }
  });
}

TEST(FusedBits, TheBackwardOfAGatedProductGivesTheProductOnceMore) {
  ForEachCase([](Device& device, DType compute, const Shape& s) {
    for (const GluActivation activation : {GluActivation::kSilu, GluActivation::kGelu}) {
      SCOPED_TRACE(activation == GluActivation::kSilu ? "SiLU" : "GELU");
      const auto operand = [&](uint64_t seed, double range) {
        return Operand(device, compute, {s.N, s.D}, s.shift, seed, -range, range);
      };
      Operand gate = operand(1, 20), up = operand(2, 2), y = operand(3, 1);
      device.ops().GluForward({.y = y.t(), .gate = gate.t(), .up = up.t(), .activation = activation});
      Operand dy = operand(4, 1), dgate = operand(5, 1), dup = operand(6, 1), again = operand(7, 1);
      const auto backward = [&](Tensor to_gate, Tensor to_up, Tensor to_y) {
        device.ops().GluBackward({.dgate = to_gate,
                                  .dup = to_up,
                                  .y = to_y,
                                  .dy = dy.t(),
                                  .gate = gate.t(),
                                  .up = up.t(),
                                  .activation = activation});
      };
      backward(dgate.t(), dup.t(), Tensor());
      const std::vector<std::byte> want_dgate = dgate.Bits(), want_dup = dup.Bits();
      backward(dgate.t(), dup.t(), again.t());
      EXPECT_EQ(again.Bits(), y.Bits());
      EXPECT_EQ(dgate.Bits(), want_dgate);
      EXPECT_EQ(dup.Bits(), want_dup);
      // every output in the place of an input
      backward(gate.t(), up.t(), dy.t());
      EXPECT_EQ(dy.Bits(), y.Bits());
      EXPECT_EQ(gate.Bits(), want_dgate);
      EXPECT_EQ(up.Bits(), want_dup);
    }
  });
}
}  // namespace
}  // namespace carousel::testing
