// The ops of a training step, one group after another; each group's tensors are freed before the next.
#include <algorithm>
#include <functional>
#include <string>

#include "core/base/exact_sum.h"
#include "kernels/bench/op_timer.h"

namespace carousel {
namespace {

class StepOps {
 public:
  StepOps(Device& device, const OpBenchShape& shape, int64_t repeats)
      : timer_(device, shape, repeats),
        compute_(timer_.compute()),
        wide_(timer_.wide()),
        N_(shape.B * shape.T),
        D_(shape.D),
        NH_(shape.NH),
        F_(shape.F),
        V_(shape.V),
        norms_(shape.paper ? 0 : 2 * shape.num_blocks + 1),
        mlstm_(shape.paper ? 0 : shape.num_blocks - shape.num_slstm_blocks),
        ffn_(shape.paper ? 0 : shape.num_blocks),
        slstm_(shape.num_slstm_blocks),
        paper_mlstm_(shape.paper ? shape.num_blocks - shape.num_slstm_blocks : 0),
        paper_slstm_(shape.paper ? shape.num_slstm_blocks : 0),
        logit_rows_(shape.logit_rows > 0 ? std::min(shape.logit_rows, N_) : N_),
        num_parameters_(shape.num_parameters > 0
                            ? shape.num_parameters
                            : shape.num_blocks * D_ * (4 * D_ + 3 * F_ + 2 * NH_) + 2 * V_ * D_) {}

  std::vector<OpTiming> Run() {
    const auto group = [this](void (StepOps::*ops)()) {
      (this->*ops)();
      timer_.FreeAll();
    };
    group(&StepOps::Matmuls);
    group(&StepOps::Norms);
    group(&StepOps::Activations);
    group(&StepOps::PaperNorms);
    group(&StepOps::PaperOps);
    group(&StepOps::Ends);
    group(&StepOps::Optimizer);
    return timer_.Take();
  }

 private:
  // one before each mixer, one before each feed-forward (of sLSTM blocks), one at the end
  int64_t paper_norms() const {
    return paper_mlstm_ + paper_slstm_ > 0 ? paper_mlstm_ + 2 * paper_slstm_ + 1 : 0;
  }
  void Time(const std::string& name, int64_t calls, double flops, double bytes,
            const std::function<void()>& call) {
    timer_.Time(name, {.calls = calls, .flops = flops, .bytes = bytes, .is_matmul = flops > 0}, call);
  }

  // y (N, O) = x (N, I) W^T, its gradient of x, its gradient of W.
  void Projection(const std::string& name, int64_t calls, int64_t I, int64_t O, DType y_type) {
    ProjectionOf(name, calls, N_, I, O, y_type);
    timer_.FreeAll();
  }
  void ProjectionOf(const std::string& name, int64_t calls, int64_t N, int64_t I, int64_t O, DType y_type) {
    const Tensor x = timer_.Random(compute_, {N, I}), w = timer_.Random(compute_, {O, I}),
                 y = timer_.Empty(y_type, {N, O}), dy = timer_.Random(compute_, {N, O}),
                 dx = timer_.Empty(compute_, {N, I}), dw = timer_.Random(wide_, {O, I});
    const double flops = 2.0 * static_cast<double>(N) * static_cast<double>(I) * static_cast<double>(O);
    const auto bytes = [](std::initializer_list<Tensor> tensors) {
      double sum = 0;
      for (const Tensor& t : tensors) sum += static_cast<double>(t.num_bytes());
      return sum;
    };
    Time(name + " y", calls, flops, bytes({x, w, y}),
         [&] { timer_.ops().Matmul({.c = y, .a = x, .b = w, .transpose_b = true}); });
    Time(name + " dx", calls, flops, bytes({dy, w, dx}),
         [&] { timer_.ops().Matmul({.c = dx, .a = dy, .b = w}); });
    Time(name + " dW", calls, flops, bytes({dy, x, dw, dw}),
         [&] { timer_.ops().Matmul({.c = dw, .a = dy, .b = x, .transpose_a = true, .accumulate = true}); });
  }
  void Matmuls() {
    Projection("q k v o", mlstm_, D_, 3 * D_, compute_);
    Projection("gates", mlstm_, D_, 2 * NH_, wide_);
    Projection("out", mlstm_, D_, D_, compute_);
    Projection("gate up", ffn_, D_, 2 * F_, compute_);
    Projection("down", ffn_, F_, D_, compute_);
    ProjectionOf("head", (N_ + logit_rows_ - 1) / logit_rows_, logit_rows_, D_, V_, wide_);
  }

  double Rows(int64_t columns_wide, int64_t columns_compute) const {
    return static_cast<double>(N_) *
           static_cast<double>(columns_wide * SizeOf(wide_) + columns_compute * SizeOf(compute_));
  }

  void Norms() {
    const Tensor y = timer_.Random(compute_, {N_, D_}), sum = timer_.Random(wide_, {N_, D_}),
                 x = timer_.Random(wide_, {N_, D_}), rstd = timer_.Random(wide_, {N_}),
                 delta = timer_.Random(compute_, {N_, D_}), weight = timer_.Random(wide_, {D_}),
                 dweight = timer_.Random(wide_, {D_}), dx = timer_.Random(wide_, {N_, D_});
    // rounded for the matmuls, where they take a narrower type
    const Tensor rounded = compute_ == wide_ ? Tensor() : timer_.Random(compute_, {N_, D_});
    const Tensor u = timer_.Random(compute_, {N_, D_});  // not in place of dy, so that repeats see the same
    Time("rms norm", norms_, 0, Rows(2 * D_, 2 * D_), [&] {
      timer_.ops().RmsNormForward(
          {.y = y, .rstd = rstd, .sum = sum, .x = x, .delta = delta, .weight = weight, .eps = 1e-6});
    });
    Time("rms norm backward", norms_, 0, Rows(3 * D_, rounded.defined() ? 3 * D_ : 2 * D_), [&] {
      timer_.ops().RmsNormBackward({.dx = dx,
                                    .dx_rounded = rounded,
                                    .y = u,
                                    .dweight = dweight,
                                    .dy = y,
                                    .dresidual = dx,
                                    .x = x,
                                    .weight = weight,
                                    .rstd = rstd});
    });
    const Tensor h = timer_.Random(compute_, {N_, D_}), qkvo = timer_.Random(compute_, {N_, 3 * D_}),
                 gated = timer_.Random(compute_, {N_, D_}), mean = timer_.Random(wide_, {N_, NH_}),
                 head_rstd = timer_.Random(wide_, {N_, NH_}), dqkvo = timer_.Random(compute_, {N_, 3 * D_});
    const Tensor o_pre = qkvo.Columns(2 * D_, D_), do_pre = dqkvo.Columns(2 * D_, D_);
    Time("head norm gate", mlstm_, 0, Rows(0, 3 * D_), [&] {
      timer_.ops().HeadNormGateForward({.y = gated,
                                        .mean = mean,
                                        .rstd = head_rstd,
                                        .h = h,
                                        .o_pre = o_pre,
                                        .weight = weight,
                                        .NH = NH_,
                                        .eps = 1e-6});
    });
    const Tensor dh = timer_.Random(compute_, {N_, D_});
    Time("head norm gate backward", mlstm_, 0, Rows(0, 6 * D_), [&] {
      timer_.ops().HeadNormGateBackward({.dh = dh,
                                         .y = u,
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
    const Tensor gate_up = timer_.Random(compute_, {N_, 2 * F_}), act = timer_.Random(compute_, {N_, F_});
    const Tensor gate = gate_up.Columns(0, F_), up = gate_up.Columns(F_, F_);
    Time("swiglu", ffn_, 0, Rows(0, 3 * F_),
         [&] { timer_.ops().GluForward({.y = act, .gate = gate, .up = up}); });
    // not in place, so that repeats see the same values
    const Tensor dgate_up = timer_.Random(compute_, {N_, 2 * F_}), dy = timer_.Random(compute_, {N_, F_});
    Time("swiglu backward", ffn_, 0, Rows(0, 6 * F_), [&] {
      timer_.ops().GluBackward({.dgate = dgate_up.Columns(0, F_),
                                .dup = dgate_up.Columns(F_, F_),
                                .y = act,
                                .dy = dy,
                                .gate = gate,
                                .up = up});
    });
    const Tensor gates = timer_.Random(wide_, {N_, 2 * NH_}), dgates = timer_.Random(wide_, {N_, 2 * NH_}),
                 bias = timer_.Random(wide_, {2 * NH_}),
                 dproj = timer_.Random(compute_, {N_, 3 * D_ + 2 * NH_});
    Time("soft cap", mlstm_, 0, Rows(4 * NH_, 0),
         [&] { timer_.ops().SoftCapForward({.y = gates, .x = gates, .cap = 15}); });
    Time("soft cap backward", mlstm_, 0, Rows(6 * NH_, 0),
         [&] { timer_.ops().SoftCapBackward({.dx = dgates, .dy = dgates, .y = gates, .cap = 15}); });
    Time("column sum of gates", mlstm_, 0, Rows(2 * NH_, 0),
         [&] { timer_.ops().ColumnSum({.y = bias, .x = dgates}); });
    Time("cast of gates", mlstm_, 0, Rows(2 * NH_, 2 * NH_),
         [&] { timer_.ops().Cast({.y = dproj.Columns(3 * D_, 2 * NH_), .x = dgates}); });
  }

  // All options of the head norm, or its scale alone.
  void HeadNorm(const std::string& name, int64_t calls, int64_t width, bool skip_and_gate) {
    const Tensor y = timer_.Random(compute_, {N_, width}), h = timer_.Random(compute_, {N_, width}),
                 o_pre = timer_.Random(compute_, {N_, width}), skip = timer_.Random(compute_, {N_, width}),
                 mean = timer_.Random(wide_, {N_, NH_}), rstd = timer_.Random(wide_, {N_, NH_}),
                 weight = timer_.Random(wide_, {width}), skip_weight = timer_.Random(wide_, {width}),
                 dh = timer_.Random(compute_, {N_, width}), do_pre = timer_.Random(compute_, {N_, width}),
                 dskip = timer_.Random(compute_, {N_, width}), dweight = timer_.Random(wide_, {width}),
                 dskip_weight = timer_.Random(wide_, {width}), u = timer_.Random(compute_, {N_, width});
    const auto option = [&](const Tensor& t) { return skip_and_gate ? t : Tensor(); };
    Time(name, calls, 0, Rows(0, (skip_and_gate ? 4 : 2) * width), [&] {
      timer_.ops().HeadNormGateForward({.y = y,
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
    Time(name + " back", calls, 0, Rows(0, (skip_and_gate ? 8 : 3) * width), [&] {
      timer_.ops().HeadNormGateBackward({.dh = dh,
                                         .y = option(u),
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
  // (the mLSTM's, inner width 2 * width) and without either (the sLSTM's), GELU. Not part of a large-family
  // step.
  void PaperNorms() {
    const Tensor y = timer_.Random(compute_, {N_, D_}), x = timer_.Random(wide_, {N_, D_}),
                 sum = timer_.Random(wide_, {N_, D_}), delta = timer_.Random(compute_, {N_, D_}),
                 mean = timer_.Random(wide_, {N_}), rstd = timer_.Random(wide_, {N_}),
                 weight = timer_.Random(wide_, {D_}), dweight = timer_.Random(wide_, {D_}),
                 dx = timer_.Random(wide_, {N_, D_}),
                 rounded = compute_ == wide_ ? Tensor() : timer_.Random(compute_, {N_, D_}),
                 u = timer_.Random(compute_, {N_, D_});
    Time("layer norm", paper_norms(), 0, Rows(2 * D_, 2 * D_), [&] {
      timer_.ops().LayerNormForward({.y = y,
                                     .mean = mean,
                                     .rstd = rstd,
                                     .sum = sum,
                                     .x = x,
                                     .delta = delta,
                                     .weight = weight,
                                     .residual_weight = true,
                                     .eps = 1e-5});
    });
    Time("layer norm backward", paper_norms(), 0, Rows(3 * D_, rounded.defined() ? 3 * D_ : 2 * D_), [&] {
      timer_.ops().LayerNormBackward({.dx = dx,
                                      .dx_rounded = rounded,
                                      .y = u,
                                      .dweight = dweight,
                                      .dy = y,
                                      .dresidual = dx,
                                      .x = x,
                                      .weight = weight,
                                      .mean = mean,
                                      .rstd = rstd,
                                      .residual_weight = true});
    });
    HeadNorm("head norm", slstm_, D_, false);
    HeadNorm("head norm skip gate", paper_mlstm_, 2 * D_, true);
    const Tensor gate_up = timer_.Random(compute_, {N_, 2 * F_}), act = timer_.Random(compute_, {N_, F_}),
                 dgate_up = timer_.Random(compute_, {N_, 2 * F_}), dy = timer_.Random(compute_, {N_, F_});
    Time("gelu", paper_slstm_, 0, Rows(0, 3 * F_), [&] {
      timer_.ops().GluForward({.y = act,
                               .gate = gate_up.Columns(0, F_),
                               .up = gate_up.Columns(F_, F_),
                               .activation = GluActivation::kGelu});
    });
    Time("gelu backward", paper_slstm_, 0, Rows(0, 6 * F_), [&] {
      timer_.ops().GluBackward({.dgate = dgate_up.Columns(0, F_),
                                .dup = dgate_up.Columns(F_, F_),
                                .y = act,
                                .dy = dy,
                                .gate = gate_up.Columns(0, F_),
                                .up = gate_up.Columns(F_, F_),
                                .activation = GluActivation::kGelu});
    });
  }
  // Ops of the paper family's blocks (inner width 2 * width), not part of the step that is added up; a copy
  // shows what memory allows.
  void PaperOps() {
    const int64_t W = 2 * D_, K = 4;
    const Tensor x = timer_.Random(compute_, {N_, W}), y = timer_.Random(compute_, {N_, W}),
                 dy = timer_.Random(compute_, {N_, W}), dx = timer_.Random(compute_, {N_, W}),
                 bias = timer_.Random(wide_, {W}), dbias = timer_.Random(wide_, {W});
    Time("copy", 0, 0, Rows(0, 2 * W), [&] { timer_.ops().Cast({.y = y, .x = x}); });
    const Tensor weight = timer_.Random(compute_, {W, K}), dweight = timer_.Random(wide_, {W, K});
    const CausalConvShape shape = {.B = 1, .T = N_, .C = W, .K = K};
    Time("convolution", paper_mlstm_, 0, Rows(0, 2 * W), [&] {
      timer_.ops().CausalConvForward({.y = y, .x = x, .weight = weight, .bias = bias, .shape = shape});
    });
    Time("convolution backward", paper_mlstm_, 0, Rows(0, 3 * W), [&] {
      timer_.ops().CausalConvBackward({.dx = dx,
                                       .dweight = dweight,
                                       .dbias = dbias,
                                       .dy = dy,
                                       .x = x,
                                       .weight = weight,
                                       .bias = bias,
                                       .shape = shape});
    });
    // blocks of q, k, v; head-wise blocks of the sLSTM gates
    BlockLinear("blocks of 4", 3 * paper_mlstm_, x, y, dx, dy, 4);
    BlockLinear("blocks of a head", 4 * slstm_, x.Columns(0, D_), y.Columns(0, D_), dx.Columns(0, D_),
                dy.Columns(0, D_), D_ / NH_);
    Time("dropout", 0, 0, Rows(0, 2 * W),
         [&] { timer_.ops().Dropout({.y = y, .x = x, .rate = 0.1, .key = 1}); });
  }
  void BlockLinear(const std::string& name, int64_t calls, Tensor x, Tensor y, Tensor dx, Tensor dy,
                   int64_t block) {
    const int64_t W = x.dim[1], num_blocks = W / block;
    const Tensor weight = timer_.Random(compute_, {num_blocks * block, block}),
                 dweight = timer_.Random(wide_, {num_blocks * block, block});
    Time(name, calls, 0, Rows(0, 2 * W), [&] {
      timer_.ops().BlockLinearForward({.y = y, .x = x, .weight = weight, .num_blocks = num_blocks});
    });
    Time(name + " backward", calls, 0, Rows(0, 3 * W), [&] {
      timer_.ops().BlockLinearBackward(
          {.dx = dx, .dweight = dweight, .dy = dy, .x = x, .weight = weight, .num_blocks = num_blocks});
    });
  }

  void Ends() {
    const Tensor weight = timer_.Random(compute_, {V_, D_}), dweight = timer_.Random(wide_, {V_, D_}),
                 y = timer_.Random(wide_, {N_, D_}), ids = timer_.Ids(N_, V_);
    Time("embedding", 1, 0, Rows(D_, D_),
         [&] { timer_.ops().EmbeddingForward({.y = y, .weight = weight, .ids = ids}); });
    Time("embedding backward", 1, 0, Rows(3 * D_, 0),
         [&] { timer_.ops().EmbeddingBackward({.dweight = dweight, .dy = y, .ids = ids}); });
    const int64_t R = logit_rows_;
    const Tensor logits = timer_.Random(wide_, {R, V_}), dlogits = timer_.Empty(compute_, {R, V_}),
                 loss = timer_.Empty(wide_, {R});
    const double logit_bytes =
        static_cast<double>(R * V_) * static_cast<double>(SizeOf(wide_) + SizeOf(compute_));
    Time("cross entropy", (N_ + R - 1) / R, 0, logit_bytes, [&] {
      timer_.ops().CrossEntropy(
          {.loss = loss, .dlogits = dlogits, .logits = logits, .targets = ids.Rows(0, R), .soft_cap = 30});
    });
    const Tensor sum = timer_.Empty(DType::kI64, {kExactSumElems});
    timer_.ops().Fill({.y = sum, .value = 0});
    Time("sum of losses", 1, 0, static_cast<double>(R * SizeOf(wide_)),
         [&] { timer_.ops().SumExactly({.sum = sum, .x = loss}); });
  }

  void Optimizer() {
    const int64_t n = num_parameters_;
    const Tensor master = timer_.Random(wide_, {n}), m = timer_.Random(wide_, {n}),
                 v = timer_.Random(wide_, {n}), grad = timer_.Random(wide_, {n}),
                 weight = timer_.Random(compute_, {n});
    timer_.ops().Fill({.y = v, .value = 1});
    const Tensor sum = timer_.Empty(DType::kI64, {kExactSumElems});
    timer_.ops().Fill({.y = sum, .value = 0});
    const double bytes = static_cast<double>(n);
    Time("zero gradients", 1, 0, bytes * static_cast<double>(SizeOf(wide_)),
         [&] { timer_.ops().Fill({.y = m, .value = 0}); });
    Time("squared norm", 1, 0, bytes * static_cast<double>(SizeOf(wide_)),
         [&] { timer_.ops().SquaredNorm({.sum = sum, .x = grad}); });
    Time("adamw", 1, 0, bytes * static_cast<double>(7 * SizeOf(wide_) + SizeOf(compute_)), [&] {
      timer_.ops().AdamW({.master = master,
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

  OpTimer timer_;
  const DType compute_, wide_;
  const int64_t N_, D_, NH_, F_, V_;
  // How often a step runs: norms, mLSTM mixers and feed-forwards of the large family; sLSTM mixers; mixers of
  // the paper family.
  const int64_t norms_, mlstm_, ffn_, slstm_, paper_mlstm_, paper_slstm_;
  const int64_t logit_rows_, num_parameters_;
};
}  // namespace

std::vector<OpTiming> TimeStepOps(Device& device, const OpBenchShape& shape, int64_t repeats) {
  return StepOps(device, shape, repeats).Run();
}
}  // namespace carousel
