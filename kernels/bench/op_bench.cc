// Times every op of a training step on the CPU backend, except the mLSTM cell, at the shapes of one model,
// and adds them up: where does the time of a step go that is not the cell?
//
//   op_bench [dtype=bf16] [threads=2] [tokens=2048] [width=256] [heads=4] [ffn=704] [vocab=256] [blocks=6]
//            [repeats=20] [batch=8]
// batch: sequences of the sLSTM cell, each of tokens / batch tokens.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "core/base/exact_sum.h"
#include "core/base/random.h"
#include "kernels/cpu/cpu_device.h"

namespace carousel {
namespace {

struct Options {
  std::map<std::string, int64_t> numbers = {{"threads", 2}, {"tokens", 2048}, {"width", 256},
                                            {"heads", 4},   {"ffn", 704},     {"vocab", 256},
                                            {"blocks", 6},  {"repeats", 20},  {"batch", 8}};
  DType dtype = DType::kBF16;
};

bool Parse(int argc, char** argv, Options* options) {
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    const size_t equals = arg.find('=');
    const std::string name = arg.substr(0, equals),
                      value = equals == std::string::npos ? "" : arg.substr(equals + 1);
    if (name == "dtype" && (value == "bf16" || value == "f32" || value == "f64")) {
      options->dtype = value == "bf16" ? DType::kBF16 : value == "f32" ? DType::kF32 : DType::kF64;
      continue;
    }
    char* end = nullptr;
    const long long number = std::strtoll(value.c_str(), &end, 10);
    if (options->numbers.count(name) == 0 || value.empty() || *end != '\0' || number < 1) {
      std::fprintf(stderr, "op_bench: cannot use '%s'; write dtype=bf16|f32|f64 or one of", arg.c_str());
      for (const auto& [known, unused] : options->numbers) std::fprintf(stderr, " %s=N", known.c_str());
      std::fprintf(stderr, "\n");
      return false;
    }
    options->numbers[name] = number;
  }
  return true;
}

// One row of the table.
struct Timing {
  std::string name;
  int64_t calls;  // per training step
  double ms;      // one call, the fastest of the repeats
  double flops;   // one call; 0 if not a matmul
  double bytes;   // one call: every operand once
};

class Bench {
 public:
  explicit Bench(const Options& options)
      : device_({.num_threads = static_cast<int>(options.numbers.at("threads"))}),
        compute_(options.dtype),
        wide_(WideOf(options.dtype)),
        N_(options.numbers.at("tokens")),
        D_(options.numbers.at("width")),
        NH_(options.numbers.at("heads")),
        F_(options.numbers.at("ffn")),
        V_(options.numbers.at("vocab")),
        blocks_(options.numbers.at("blocks")),
        repeats_(options.numbers.at("repeats")),
        batch_(options.numbers.at("batch")) {}

  void Run() {
    Matmuls();
    Norms();
    Activations();
    PaperNorms();
    PaperOps();
    Slstm();
    Ends();
    Optimizer();
    Print();
  }

 private:
  // A tensor of normal random values.
  Tensor New(DType dtype, std::initializer_list<int64_t> dims) {
    Tensor t(nullptr, dtype, dims);
    t.data = device_.Allocate(t.num_bytes());
    CAROUSEL_CHECK_MSG(t.data != nullptr, "out of memory");
    Tensor f(device_.Allocate(t.num_elems() * 4), DType::kF32, {t.num_elems()});
    for (int64_t i = 0; i < f.dim[0]; ++i) {
      f.as<float>()[i] = static_cast<float>(RandomNormal(1, ++streams_, static_cast<uint64_t>(i)));
    }
    device_.ops().Cast({.y = t.Flatten(), .x = f});
    device_.Free(f.data);
    return t;
  }
  Tensor Ids(int64_t count, int64_t limit) {
    Tensor t(device_.Allocate(count * 4), DType::kI32, {count});
    for (int64_t i = 0; i < count; ++i) {
      t.as<int32_t>()[i] =
          static_cast<int32_t>(RandomUint64(2, 0, static_cast<uint64_t>(i)) % static_cast<uint64_t>(limit));
    }
    return t;
  }

  void Time(const std::string& name, int64_t calls, double flops, double bytes,
            const std::function<void()>& call) {
    double best = 1e30;
    for (int64_t r = 0; r < repeats_ + 1; ++r) {
      const auto start = std::chrono::steady_clock::now();
      call();
      best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    timings_.push_back({name, calls, best * 1e3, flops, bytes});
  }

  // y (N, O) = x (N, I) W^T, its gradient of x, its gradient of W.
  void Projection(const std::string& name, int64_t calls, int64_t I, int64_t O, DType y_type) {
    const Tensor x = New(compute_, {N_, I}), w = New(compute_, {O, I}), y = New(y_type, {N_, O}),
                 dy = New(compute_, {N_, O}), dx = New(compute_, {N_, I}), dw = New(wide_, {O, I});
    const double flops = 2.0 * static_cast<double>(N_) * static_cast<double>(I) * static_cast<double>(O);
    const auto bytes = [](std::initializer_list<Tensor> tensors) {
      double sum = 0;
      for (const Tensor& t : tensors) sum += static_cast<double>(t.num_bytes());
      return sum;
    };
    Time(name + " y", calls, flops, bytes({x, w, y}),
         [&] { device_.ops().Matmul({.c = y, .a = x, .b = w, .transpose_b = true}); });
    Time(name + " dx", calls, flops, bytes({dy, w, dx}),
         [&] { device_.ops().Matmul({.c = dx, .a = dy, .b = w}); });
    Time(name + " dW", calls, flops, bytes({dy, x, dw, dw}),
         [&] { device_.ops().Matmul({.c = dw, .a = dy, .b = x, .transpose_a = true, .accumulate = true}); });
  }
  void Matmuls() {
    Projection("q k v o", blocks_, D_, 3 * D_, compute_);
    Projection("gates", blocks_, D_, 2 * NH_, wide_);
    Projection("out", blocks_, D_, D_, compute_);
    Projection("gate up", blocks_, D_, 2 * F_, compute_);
    Projection("down", blocks_, F_, D_, compute_);
    Projection("head", 1, D_, V_, wide_);
  }

  double Rows(int64_t columns_wide, int64_t columns_compute) const {
    return static_cast<double>(N_) *
           static_cast<double>(columns_wide * SizeOf(wide_) + columns_compute * SizeOf(compute_));
  }

  void Norms() {
    const Tensor y = New(compute_, {N_, D_}), sum = New(wide_, {N_, D_}), x = New(wide_, {N_, D_}),
                 rstd = New(wide_, {N_}), delta = New(compute_, {N_, D_}), weight = New(wide_, {D_}),
                 dweight = New(wide_, {D_}), dx = New(wide_, {N_, D_});
    Time("rms norm", 2 * blocks_ + 1, 0, Rows(2 * D_, 2 * D_), [&] {
      device_.ops().RmsNormForward(
          {.y = y, .rstd = rstd, .sum = sum, .x = x, .delta = delta, .weight = weight, .eps = 1e-6});
    });
    Time("rms norm backward", 2 * blocks_ + 1, 0, Rows(3 * D_, D_), [&] {
      device_.ops().RmsNormBackward(
          {.dx = dx, .dweight = dweight, .dy = y, .dresidual = dx, .x = x, .weight = weight, .rstd = rstd});
    });
    const Tensor h = New(compute_, {N_, D_}), qkvo = New(compute_, {N_, 3 * D_}),
                 gated = New(compute_, {N_, D_}), mean = New(wide_, {N_, NH_}),
                 head_rstd = New(wide_, {N_, NH_}), dqkvo = New(compute_, {N_, 3 * D_});
    const Tensor o_pre = qkvo.Columns(2 * D_, D_), do_pre = dqkvo.Columns(2 * D_, D_);
    Time("head norm gate", blocks_, 0, Rows(0, 3 * D_), [&] {
      device_.ops().HeadNormGateForward({.y = gated,
                                         .mean = mean,
                                         .rstd = head_rstd,
                                         .h = h,
                                         .o_pre = o_pre,
                                         .weight = weight,
                                         .NH = NH_,
                                         .eps = 1e-6});
    });
    const Tensor dh = New(compute_, {N_, D_});
    Time("head norm gate backward", blocks_, 0, Rows(0, 5 * D_), [&] {
      device_.ops().HeadNormGateBackward({.dh = dh,
                                          .do_pre = do_pre,
                                          .dweight = dweight,
                                          .dy = gated,
                                          .h = h,
                                          .o_pre = o_pre,
                                          .weight = weight,
                                          .mean = mean,
                                          .rstd = head_rstd,
                                          .NH = NH_});
    });
  }

  void Activations() {
    const Tensor gate_up = New(compute_, {N_, 2 * F_}), act = New(compute_, {N_, F_});
    const Tensor gate = gate_up.Columns(0, F_), up = gate_up.Columns(F_, F_);
    Time("swiglu", blocks_, 0, Rows(0, 3 * F_),
         [&] { device_.ops().GluForward({.y = act, .gate = gate, .up = up}); });
    // not in place, so that repeats see the same values
    const Tensor dgate_up = New(compute_, {N_, 2 * F_});
    Time("swiglu backward", blocks_, 0, Rows(0, 5 * F_), [&] {
      device_.ops().GluBackward({.dgate = dgate_up.Columns(0, F_),
                                 .dup = dgate_up.Columns(F_, F_),
                                 .dy = act,
                                 .gate = gate,
                                 .up = up});
    });
    const Tensor gates = New(wide_, {N_, 2 * NH_}), dgates = New(wide_, {N_, 2 * NH_}),
                 bias = New(wide_, {2 * NH_}), dproj = New(compute_, {N_, 3 * D_ + 2 * NH_});
    Time("soft cap", blocks_, 0, Rows(4 * NH_, 0),
         [&] { device_.ops().SoftCapForward({.y = gates, .x = gates, .cap = 15}); });
    Time("soft cap backward", blocks_, 0, Rows(6 * NH_, 0),
         [&] { device_.ops().SoftCapBackward({.dx = dgates, .dy = dgates, .y = gates, .cap = 15}); });
    Time("column sum of gates", blocks_, 0, Rows(2 * NH_, 0),
         [&] { device_.ops().ColumnSum({.y = bias, .x = dgates}); });
    Time("cast of gates", blocks_, 0, Rows(2 * NH_, 2 * NH_),
         [&] { device_.ops().Cast({.y = dproj.Columns(3 * D_, 2 * NH_), .x = dgates}); });
    const Tensor dx = New(wide_, {N_, D_}), dy = New(compute_, {N_, D_});
    Time("cast of the residual", blocks_, 0, Rows(D_, D_), [&] { device_.ops().Cast({.y = dy, .x = dx}); });
  }

  // All options of the head norm, or its scale alone.
  void HeadNorm(const std::string& name, int64_t width, bool skip_and_gate) {
    const Tensor y = New(compute_, {N_, width}), h = New(compute_, {N_, width}),
                 o_pre = New(compute_, {N_, width}), skip = New(compute_, {N_, width}),
                 mean = New(wide_, {N_, NH_}), rstd = New(wide_, {N_, NH_}), weight = New(wide_, {width}),
                 skip_weight = New(wide_, {width}), dh = New(compute_, {N_, width}),
                 do_pre = New(compute_, {N_, width}), dskip = New(compute_, {N_, width}),
                 dweight = New(wide_, {width}), dskip_weight = New(wide_, {width});
    const auto option = [&](const Tensor& t) { return skip_and_gate ? t : Tensor(); };
    Time(name, 0, 0, Rows(0, (skip_and_gate ? 4 : 2) * width), [&] {
      device_.ops().HeadNormGateForward({.y = y,
                                         .mean = mean,
                                         .rstd = rstd,
                                         .h = h,
                                         .o_pre = option(o_pre),
                                         .weight = weight,
                                         .skip = option(skip),
                                         .skip_weight = option(skip_weight),
                                         .NH = NH_,
                                         .eps = 1e-5,
                                         .gate = OutputGate::kSilu,
                                         .residual_weight = true});
    });
    Time(name + " back", 0, 0, Rows(0, (skip_and_gate ? 7 : 3) * width), [&] {
      device_.ops().HeadNormGateBackward({.dh = dh,
                                          .do_pre = option(do_pre),
                                          .dskip = option(dskip),
                                          .dweight = dweight,
                                          .dskip_weight = option(dskip_weight),
                                          .dy = y,
                                          .h = h,
                                          .o_pre = option(o_pre),
                                          .weight = weight,
                                          .skip = option(skip),
                                          .skip_weight = option(skip_weight),
                                          .mean = mean,
                                          .rstd = rstd,
                                          .NH = NH_,
                                          .gate = OutputGate::kSilu,
                                          .residual_weight = true});
    });
  }
  // Norms and gates of the paper family: layer norm at the model's width, head norm with skip and SiLU gate
  // (the mLSTM's, inner width 2 * width) and without either (the sLSTM's), GELU. Not part of the step either.
  void PaperNorms() {
    const Tensor y = New(compute_, {N_, D_}), x = New(wide_, {N_, D_}), sum = New(wide_, {N_, D_}),
                 delta = New(compute_, {N_, D_}), mean = New(wide_, {N_}), rstd = New(wide_, {N_}),
                 weight = New(wide_, {D_}), dweight = New(wide_, {D_}), dx = New(wide_, {N_, D_});
    Time("layer norm", 0, 0, Rows(2 * D_, 2 * D_), [&] {
      device_.ops().LayerNormForward({.y = y,
                                      .mean = mean,
                                      .rstd = rstd,
                                      .sum = sum,
                                      .x = x,
                                      .delta = delta,
                                      .weight = weight,
                                      .residual_weight = true,
                                      .eps = 1e-5});
    });
    Time("layer norm backward", 0, 0, Rows(3 * D_, D_), [&] {
      device_.ops().LayerNormBackward({.dx = dx,
                                       .dweight = dweight,
                                       .dy = y,
                                       .dresidual = dx,
                                       .x = x,
                                       .weight = weight,
                                       .mean = mean,
                                       .rstd = rstd,
                                       .residual_weight = true});
    });
    HeadNorm("head norm", D_, false);
    HeadNorm("head norm skip gate", 2 * D_, true);
    const Tensor gate_up = New(compute_, {N_, 2 * F_}), act = New(compute_, {N_, F_}),
                 dgate_up = New(compute_, {N_, 2 * F_});
    Time("gelu", 0, 0, Rows(0, 3 * F_), [&] {
      device_.ops().GluForward({.y = act,
                                .gate = gate_up.Columns(0, F_),
                                .up = gate_up.Columns(F_, F_),
                                .activation = GluActivation::kGelu});
    });
    Time("gelu backward", 0, 0, Rows(0, 5 * F_), [&] {
      device_.ops().GluBackward({.dgate = dgate_up.Columns(0, F_),
                                 .dup = dgate_up.Columns(F_, F_),
                                 .dy = act,
                                 .gate = gate_up.Columns(0, F_),
                                 .up = gate_up.Columns(F_, F_),
                                 .activation = GluActivation::kGelu});
    });
  }
  // Ops of the paper family's blocks (inner width 2 * width), not part of the step that is added up; a copy
  // shows what memory allows.
  void PaperOps() {
    const int64_t W = 2 * D_, K = 4;
    const Tensor x = New(compute_, {N_, W}), y = New(compute_, {N_, W}), dy = New(compute_, {N_, W}),
                 dx = New(compute_, {N_, W}), bias = New(wide_, {W}), dbias = New(wide_, {W});
    Time("copy", 0, 0, Rows(0, 2 * W), [&] { device_.ops().Cast({.y = y, .x = x}); });
    const Tensor weight = New(compute_, {W, K}), dweight = New(wide_, {W, K});
    const CausalConvShape shape = {.B = 1, .T = N_, .C = W, .K = K};
    Time("convolution", 0, 0, Rows(0, 2 * W), [&] {
      device_.ops().CausalConvForward({.y = y, .x = x, .weight = weight, .bias = bias, .shape = shape});
    });
    Time("convolution backward", 0, 0, Rows(0, 3 * W), [&] {
      device_.ops().CausalConvBackward({.dx = dx,
                                        .dweight = dweight,
                                        .dbias = dbias,
                                        .dy = dy,
                                        .x = x,
                                        .weight = weight,
                                        .bias = bias,
                                        .shape = shape});
    });
    // blocks of q, k, v; head-wise blocks of the sLSTM gates
    BlockLinear("blocks of 4", x, y, dx, dy, 4);
    BlockLinear("blocks of a head", x.Columns(0, D_), y.Columns(0, D_), dx.Columns(0, D_), dy.Columns(0, D_),
                D_ / NH_);
    Time("dropout", 0, 0, Rows(0, 2 * W),
         [&] { device_.ops().Dropout({.y = y, .x = x, .rate = 0.1, .key = 1}); });
  }
  void BlockLinear(const std::string& name, Tensor x, Tensor y, Tensor dx, Tensor dy, int64_t block) {
    const int64_t W = x.dim[1], num_blocks = W / block;
    const Tensor weight = New(compute_, {num_blocks * block, block}),
                 dweight = New(wide_, {num_blocks * block, block});
    Time(name, 0, 0, Rows(0, 2 * W), [&] {
      device_.ops().BlockLinearForward({.y = y, .x = x, .weight = weight, .num_blocks = num_blocks});
    });
    Time(name + " backward", 0, 0, Rows(0, 3 * W), [&] {
      device_.ops().BlockLinearBackward(
          {.dx = dx, .dweight = dweight, .dy = dy, .x = x, .weight = weight, .num_blocks = num_blocks});
    });
  }

  // The sLSTM cell at the model's width and heads, not part of the step that is added up: over the tokens,
  // and one token of every sequence (generation).
  void Slstm() {
    const int64_t width = D_ / NH_ * NH_, head = D_ / NH_;
    const SlstmShape shapes[] = {{.B = batch_, .T = std::max<int64_t>(N_ / batch_, 1), .NH = NH_, .D = head},
                                 {.B = batch_, .T = 1, .NH = NH_, .D = head}};
    const Tensor R = New(compute_, {4 * width, head}), bias = New(wide_, {4 * width}),
                 dR = New(wide_, {4 * width, head}), dbias = New(wide_, {4 * width});
    device_.ops().Fill({.y = R, .value = 0.01});  // gradients neither grow nor vanish
    for (const SlstmShape& shape : shapes) {
      const int64_t rows = shape.B * shape.T;
      const Tensor y = New(compute_, {rows, width}), wx = New(wide_, {rows, 4 * width}),
                   gates = New(wide_, {rows, 4 * width}), c = New(wide_, {rows, width}),
                   n = New(wide_, {rows, width}), m = New(wide_, {rows, width}),
                   dy = New(compute_, {rows, width}), dwx = New(compute_, {rows, 4 * width});
      const SlstmState state = {New(wide_, {shape.B, width}), New(wide_, {shape.B, width}),
                                New(wide_, {shape.B, width}), New(wide_, {shape.B, width})};
      for (const Tensor& start : {state.c, state.n}) device_.ops().Fill({.y = start, .value = 0});
      const int64_t workspace_bytes = device_.ops().SlstmWorkspaceBytes(shape, compute_);
      const Tensor workspace(device_.Allocate(workspace_bytes), DType::kU8, {workspace_bytes});
      const double flops = 8.0 * static_cast<double>(rows * width * head);
      const double row_bytes = static_cast<double>(rows * width);
      const double R_bytes = static_cast<double>(R.num_bytes());
      const bool step = shape.T == 1;
      Time(step ? "slstm step" : "slstm", 0, flops,
           row_bytes * static_cast<double>(11 * SizeOf(wide_) + SizeOf(compute_)) + R_bytes, [&] {
             device_.ops().SlstmForward({.y = y,
                                         .gates = gates,
                                         .c = c,
                                         .n = n,
                                         .m = m,
                                         .last = step ? state : SlstmState(),
                                         .wx = wx,
                                         .recurrent = R,
                                         .bias = bias,
                                         .initial = step ? state : SlstmState(),
                                         .workspace = workspace,
                                         .shape = shape});
           });
      if (step) continue;
      Time("slstm backward", 0, 2 * flops,
           row_bytes * static_cast<double>(6 * SizeOf(wide_) + 7 * SizeOf(compute_)) + 2 * R_bytes, [&] {
             device_.ops().SlstmBackward({.dwx = dwx,
                                          .drecurrent = dR,
                                          .dbias = dbias,
                                          .dy = dy,
                                          .y = y,
                                          .gates = gates,
                                          .c = c,
                                          .n = n,
                                          .m = m,
                                          .recurrent = R,
                                          .workspace = workspace,
                                          .shape = shape});
           });
    }
  }

  void Ends() {
    const Tensor weight = New(compute_, {V_, D_}), dweight = New(wide_, {V_, D_}), y = New(wide_, {N_, D_}),
                 ids = Ids(N_, V_);
    Time("embedding", 1, 0, Rows(D_, D_),
         [&] { device_.ops().EmbeddingForward({.y = y, .weight = weight, .ids = ids}); });
    Time("embedding backward", 1, 0, Rows(3 * D_, 0),
         [&] { device_.ops().EmbeddingBackward({.dweight = dweight, .dy = y, .ids = ids}); });
    const Tensor logits = New(wide_, {N_, V_}), dlogits = New(compute_, {N_, V_}), loss = New(wide_, {N_});
    Time("cross entropy", 1, 0, Rows(V_, V_), [&] {
      device_.ops().CrossEntropy(
          {.loss = loss, .dlogits = dlogits, .logits = logits, .targets = ids, .soft_cap = 30});
    });
    Tensor sum(device_.Allocate(kExactSumElems * 8), DType::kI64, {kExactSumElems});
    Time("sum of losses", 1, 0, Rows(1, 0), [&] { device_.ops().SumExactly({.sum = sum, .x = loss}); });
  }

  void Optimizer() {
    const int64_t n = blocks_ * D_ * (4 * D_ + 3 * F_ + 2 * NH_) + 2 * V_ * D_;
    const Tensor master = New(wide_, {n}), m = New(wide_, {n}), v = New(wide_, {n}), grad = New(wide_, {n}),
                 weight = New(compute_, {n});
    device_.ops().Fill({.y = v, .value = 1});
    Tensor sum(device_.Allocate(kExactSumElems * 8), DType::kI64, {kExactSumElems});
    const double bytes = static_cast<double>(n);
    Time("zero gradients", 1, 0, bytes * static_cast<double>(SizeOf(wide_)),
         [&] { device_.ops().Fill({.y = m, .value = 0}); });
    Time("squared norm", 1, 0, bytes * static_cast<double>(SizeOf(wide_)),
         [&] { device_.ops().SquaredNorm({.sum = sum, .x = grad}); });
    Time("adamw", 1, 0, bytes * static_cast<double>(7 * SizeOf(wide_) + SizeOf(compute_)), [&] {
      device_.ops().AdamW({.master = master,
                           .m = m,
                           .v = v,
                           .weight = weight,
                           .grad = grad,
                           .lr = 1e-4,
                           .beta1 = 0.9,
                           .beta2 = 0.95,
                           .eps = 1e-8,
                           .weight_decay = 0.1,
                           .grad_scale = 1,
                           .step = 100});
    });
  }

  void Print() const {
    std::printf("%-26s %6s %9s %9s %9s %9s\n", "op", "calls", "ms/call", "ms/step", "GFLOP/s", "GB/s");
    double matmul_ms = 0, matmul_flops = 0, other_ms = 0;
    for (const Timing& t : timings_) {
      const double step_ms = t.ms * static_cast<double>(t.calls);
      std::printf("%-26s %6lld %9.3f %9.3f", t.name.c_str(), static_cast<long long>(t.calls), t.ms, step_ms);
      if (t.flops > 0) {
        std::printf(" %9.0f", t.flops / t.ms * 1e-6);
        matmul_ms += step_ms;
        matmul_flops += t.flops * static_cast<double>(t.calls);
      } else {
        std::printf(" %9s", "");
        other_ms += step_ms;
      }
      std::printf(" %9.1f\n", t.bytes / t.ms * 1e-6);
    }
    std::printf("matmuls %.2f ms per step at %.0f GFLOP/s; other ops %.2f ms; %s, instruction set %s\n",
                matmul_ms, matmul_flops / matmul_ms * 1e-6, other_ms, NameOf(compute_),
                cpu::NameOf(cpu::DetectSimdLevel()));
  }

  cpu::CpuDevice device_;
  const DType compute_, wide_;
  const int64_t N_, D_, NH_, F_, V_, blocks_, repeats_, batch_;
  uint64_t streams_ = 0;
  std::vector<Timing> timings_;
};
}  // namespace
}  // namespace carousel

int main(int argc, char** argv) {
  carousel::Options options;
  if (!carousel::Parse(argc, argv, &options)) return 1;
  carousel::Bench(options).Run();
  return 0;
}
