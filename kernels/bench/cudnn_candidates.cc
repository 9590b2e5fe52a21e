#include "kernels/bench/cudnn_candidates.h"

#include <utility>

namespace carousel {
namespace {
using Id = CudnnGraph::Id;
using Dims = CudnnGraph::Dims;

constexpr double kEpsilon = 1e-6;

std::string Text(int64_t value) { return std::to_string(value); }

std::vector<std::unique_ptr<CudnnGraph>> One(std::unique_ptr<CudnnGraph> graph) {
  std::vector<std::unique_ptr<CudnnGraph>> graphs;
  graphs.push_back(std::move(graph));
  return graphs;
}

// ---- norms. cuDNN normalises each of N "images" over its channels: rows of a (N, D) tensor are (N, D, 1,
// 1).
Id AddRows(CudnnGraph& graph, const Tensor& t) {  // (N, D)
  const int64_t D = t.dim[1];
  return graph.AddTensor(t.dtype, {t.dim[0], D, 1, 1}, {t.row_stride, 1, D, D}, t.data);
}
Id AddChannels(CudnnGraph& graph, const Tensor& t) {  // (D)
  const int64_t D = t.dim[0];
  return graph.AddTensor(t.dtype, {1, D, 1, 1}, {D, 1, D, D}, t.data);
}
Id AddStatistic(CudnnGraph& graph, const Tensor& t) {  // (N)
  return graph.AddTensor(t.dtype, {t.dim[0], 1, 1, 1}, {1, 1, 1, 1}, t.data);
}

// What a norm computes: of ours and of cuDNN's.
struct NormOutputs {
  Tensor y, mean, rstd, sum;  // (N, D) bf16; (N); (N); (N, D)
  Tensor dx, dweight, dbias;  // (N, D), (D), (D)
};
struct NormInputs {
  Tensor x, delta, dy, dresidual, weight, bias;  // (N, D) f32, bf16, bf16, f32; (D); (D)
};

class Norms {
 public:
  Norms(CudnnBench& bench, bool layer_norm, int64_t N, int64_t D)
      : bench_(bench), layer_norm_(layer_norm), N_(N), D_(D) {
    x16_ = bench.Values(DType::kBF16, N, D);
    in_.x = bench.Empty(DType::kF32, {N, D});
    if (bench.runs()) bench.device().ops().Cast({.y = in_.x, .x = x16_});
    in_.delta = bench.Values(DType::kBF16, N, D);
    in_.dy = bench.Values(DType::kBF16, N, D);
    in_.dresidual = bench.Values(DType::kF32, N, D);
    in_.weight = bench.Values(DType::kF32, 1, D).Flatten();
    in_.bias = bench.Values(DType::kF32, 1, D).Flatten();
    for (NormOutputs* out : {&ours_, &cudnn_}) {
      out->y = bench.Empty(DType::kBF16, {N, D});
      out->sum = bench.Empty(DType::kF32, {N, D});
      out->dx = bench.Empty(DType::kF32, {N, D});
      out->mean = bench.Empty(DType::kF32, {N});
      out->rstd = bench.Empty(DType::kF32, {N});
    }
    dx16_ = bench.Empty(DType::kBF16, {N, D});
    // the gradients' inputs: the statistics of x
    mean_ = bench.Empty(DType::kF32, {N});
    rstd_ = bench.Empty(DType::kF32, {N});
    if (!bench.runs()) return;
    NormOutputs statistics = ours_;
    statistics.mean = mean_;
    statistics.rstd = rstd_;
    Forward(statistics, /*residual=*/false);
  }

  CudnnCandidate ForwardCandidate(bool residual, bool bf16_stream) {
    CudnnCandidate c = Named(residual ? " with residual" : "", bf16_stream);
    c.ours = [norms = *this, residual] { norms.Forward(norms.ours_, residual); };
    Tensor x = bf16_stream ? x16_ : in_.x;
    if (residual) {
      c.steps.push_back({.name = "add (ours)", .graphs = {}, .op = [norms = *this] {
                           norms.ops().Add({.y = norms.cudnn_.sum, .a = norms.in_.x, .b = norms.in_.delta});
                         }});
      c.outputs.push_back({"sum", ours_.sum, cudnn_.sum});
      x = cudnn_.sum;
    }
    c.steps.push_back({.name = "norm", .graphs = One(ForwardGraph(x)), .op = {}});
    c.outputs.push_back({"y", ours_.y, cudnn_.y});
    c.outputs.push_back({"rstd", ours_.rstd, cudnn_.rstd});
    if (layer_norm_) c.outputs.push_back({"mean", ours_.mean, cudnn_.mean});
    return c;
  }

  CudnnCandidate BackwardCandidate(bool residual, bool bf16_stream) {
    CudnnCandidate c = Named(residual ? " gradient with residual" : " gradient", bf16_stream);
    // ours adds to these: zeros of its own for every candidate
    for (NormOutputs* out : {&ours_, &cudnn_}) {
      out->dweight = bench_.Empty(DType::kF32, {D_});
      out->dbias = bench_.Empty(DType::kF32, {D_});
    }
    c.ours = [norms = *this, residual] { norms.Backward(residual); };
    const Tensor x = bf16_stream ? x16_ : in_.x, dx = bf16_stream ? dx16_ : cudnn_.dx;
    c.steps.push_back({.name = "norm", .graphs = One(BackwardGraph(dx, x)), .op = {}});
    if (residual) {
      c.steps.push_back({.name = "add (ours)", .graphs = {}, .op = [norms = *this] {
                           norms.ops().Add(
                               {.y = norms.cudnn_.dx, .a = norms.cudnn_.dx, .b = norms.in_.dresidual});
                         }});
    }
    c.outputs.push_back({"dx", ours_.dx, dx});
    c.outputs.push_back({"dweight", ours_.dweight, cudnn_.dweight});
    if (layer_norm_) c.outputs.push_back({"dbias", ours_.dbias, cudnn_.dbias});
    return c;
  }

 private:
  Ops& ops() const { return bench_.device().ops(); }
  cudnnBackendNormMode_t mode() const { return layer_norm_ ? CUDNN_LAYER_NORM : CUDNN_RMS_NORM; }
  CudnnCandidate Named(const std::string& what, bool bf16_stream) const {
    CudnnCandidate c;
    c.op = std::string(layer_norm_ ? "layer norm" : "RMS norm") + what;
    c.shape = Text(N_) + " x " + Text(D_);
    if (bf16_stream) {
      c.op += ", cuDNN's with x in bf16";
      c.obstacle = "x and dx are f32 in the contract";
    }
    return c;
  }

  void Forward(const NormOutputs& out, bool residual) const {
    const Tensor sum = residual ? out.sum : Tensor(), delta = residual ? in_.delta : Tensor();
    if (layer_norm_) {
      ops().LayerNormForward({.y = out.y,
                              .mean = out.mean,
                              .rstd = out.rstd,
                              .sum = sum,
                              .x = in_.x,
                              .delta = delta,
                              .weight = in_.weight,
                              .bias = in_.bias,
                              .eps = kEpsilon});
    } else {
      ops().RmsNormForward({.y = out.y,
                            .rstd = out.rstd,
                            .sum = sum,
                            .x = in_.x,
                            .delta = delta,
                            .weight = in_.weight,
                            .eps = kEpsilon});
    }
  }
  void Backward(bool residual) const {
    const Tensor dresidual = residual ? in_.dresidual : Tensor();
    if (layer_norm_) {
      ops().LayerNormBackward({.dx = ours_.dx,
                               .dweight = ours_.dweight,
                               .dbias = ours_.dbias,
                               .dy = in_.dy,
                               .dresidual = dresidual,
                               .x = in_.x,
                               .weight = in_.weight,
                               .mean = mean_,
                               .rstd = rstd_});
    } else {
      ops().RmsNormBackward({.dx = ours_.dx,
                             .dweight = ours_.dweight,
                             .dy = in_.dy,
                             .dresidual = dresidual,
                             .x = in_.x,
                             .weight = in_.weight,
                             .rstd = rstd_});
    }
  }

  std::unique_ptr<CudnnGraph> ForwardGraph(const Tensor& x) const {
    auto g = std::make_unique<CudnnGraph>(bench_.target());
    g->Add(CudnnGraph::NormForward{.mode = mode(),
                                   .y = AddRows(*g, cudnn_.y),
                                   .mean = layer_norm_ ? AddStatistic(*g, cudnn_.mean) : 0,
                                   .rstd = AddStatistic(*g, cudnn_.rstd),
                                   .x = AddRows(*g, x),
                                   .scale = AddChannels(*g, in_.weight),
                                   .bias = layer_norm_ ? AddChannels(*g, in_.bias) : 0,
                                   .epsilon = g->AddScalar(static_cast<float>(kEpsilon))});
    return g;
  }
  std::unique_ptr<CudnnGraph> BackwardGraph(const Tensor& dx, const Tensor& x) const {
    auto g = std::make_unique<CudnnGraph>(bench_.target());
    g->Add(CudnnGraph::NormBackward{.mode = mode(),
                                    .dx = AddRows(*g, dx),
                                    .dscale = AddChannels(*g, cudnn_.dweight),
                                    .dbias = layer_norm_ ? AddChannels(*g, cudnn_.dbias) : 0,
                                    .dy = AddRows(*g, in_.dy),
                                    .x = AddRows(*g, x),
                                    .scale = AddChannels(*g, in_.weight),
                                    .mean = layer_norm_ ? AddStatistic(*g, mean_) : 0,
                                    .rstd = AddStatistic(*g, rstd_)});
    return g;
  }

  CudnnBench& bench_;
  const bool layer_norm_;
  const int64_t N_, D_;
  NormInputs in_;
  NormOutputs ours_, cudnn_;
  Tensor x16_, dx16_, mean_, rstd_;
};

// ---- the convolution. Token-major activations are cuDNN's NHWC with tokens along one of the spatial dims.
enum class Tokens { kAlongHeight, kAlongWidth };

Dims Spatial(Tokens tokens, int64_t value, int64_t other) {
  return tokens == Tokens::kAlongHeight ? Dims{value, other} : Dims{other, value};
}

class Convolutions {
 public:
  using Of = CudnnGraph::Convolution::Of;
  Convolutions(CudnnTarget* target, const CausalConvShape& shape) : target_(target), shape_(shape) {}

  // x, w and y, or their gradients; with `silu` the output is y = silu(sums), the sums are not stored
  CudnnStep Step(const char* name, Of result, const Tensor& x, const Tensor& w, const Tensor& y,
                 bool silu = false) const {
    CudnnStep step{.name = name, .graphs = {}, .op = {}};
    for (const Tokens tokens : {Tokens::kAlongWidth, Tokens::kAlongHeight}) {
      const Dims taps = Spatial(tokens, shape_.K, 1);
      auto g = std::make_unique<CudnnGraph>(target_);
      const Id id_y = AddTokens(*g, tokens, y);
      const Id sums = silu ? g->AddVirtual(DType::kF32, DimsOf(tokens), StridesOf(tokens)) : id_y;
      g->Add(CudnnGraph::Convolution{
          .result = result,
          .x = AddTokens(*g, tokens, x),
          .w = g->AddTensor(w.dtype, {shape_.C, 1, taps[0], taps[1]}, {shape_.K, 1, taps[1], 1}, w.data),
          .y = sums,
          .pre = Spatial(tokens, shape_.K - 1, 0),
          .post = {0, 0}});
      if (silu) g->AddSwish(id_y, sums);
      step.graphs.push_back(std::move(g));
    }
    return step;
  }
  CudnnStep SiluStep(const Tensor& y, const Tensor& sums) const {
    auto g = std::make_unique<CudnnGraph>(target_);
    const Id id_y = AddTokens(*g, Tokens::kAlongWidth, y);
    g->AddSwish(id_y, AddTokens(*g, Tokens::kAlongWidth, sums));
    return {.name = "SiLU", .graphs = One(std::move(g)), .op = {}};
  }

 private:
  Dims DimsOf(Tokens tokens) const {
    const Dims size = Spatial(tokens, shape_.T, 1);
    return {shape_.B, shape_.C, size[0], size[1]};
  }
  Dims StridesOf(Tokens tokens) const {
    return {shape_.T * shape_.C, 1, Spatial(tokens, shape_.T, 1)[1] * shape_.C, shape_.C};
  }
  Id AddTokens(CudnnGraph& graph, Tokens tokens, const Tensor& t) const {  // (B*T, C)
    return graph.AddTensor(t.dtype, DimsOf(tokens), StridesOf(tokens), t.data);
  }

  CudnnTarget* const target_;
  const CausalConvShape shape_;
};
}  // namespace

// ---- tensors
CudnnBench::CudnnBench(Device* device, CudnnTarget* target, int64_t repeats)
    : device_(device), target_(target) {
  if (device != nullptr) timer_ = std::make_unique<OpTimer>(*device, OpBenchShape{}, repeats);
}
Tensor CudnnBench::Empty(DType dtype, std::initializer_list<int64_t> dims) {
  return runs() ? timer_->Empty(dtype, dims) : Tensor(nullptr, dtype, dims);
}
Tensor CudnnBench::Values(DType dtype, int64_t rows, int64_t columns) {
  if (!runs()) return Tensor(nullptr, dtype, {rows, columns});
  // OpTimer's values are always the same: each call skips another number of rows
  const int64_t skipped = num_values_++;
  const Tensor all = timer_->Random(DType::kBF16, {skipped + rows, columns});
  const Tensor values = all.Rows(skipped, rows);
  if (dtype == DType::kBF16) return values;
  const Tensor converted = timer_->Empty(dtype, {rows, columns});
  device_->ops().Cast({.y = converted, .x = values});
  return converted;
}
void CudnnBench::FreeAll() {
  if (runs()) timer_->FreeAll();
  num_values_ = 0;
}

std::vector<CudnnCandidate> CudnnNormCandidates(CudnnBench& bench, bool layer_norm, int64_t N, int64_t D) {
  Norms norms(bench, layer_norm, N, D);
  std::vector<CudnnCandidate> candidates;
  candidates.push_back(norms.ForwardCandidate(/*residual=*/false, /*bf16_stream=*/false));
  candidates.push_back(norms.ForwardCandidate(/*residual=*/true, /*bf16_stream=*/false));
  candidates.push_back(norms.ForwardCandidate(/*residual=*/false, /*bf16_stream=*/true));
  candidates.push_back(norms.BackwardCandidate(/*residual=*/false, /*bf16_stream=*/false));
  candidates.push_back(norms.BackwardCandidate(/*residual=*/true, /*bf16_stream=*/false));
  candidates.push_back(norms.BackwardCandidate(/*residual=*/false, /*bf16_stream=*/true));
  return candidates;
}

std::vector<CudnnCandidate> CudnnConvolutionCandidates(CudnnBench& bench, const CausalConvShape& shape) {
  using Of = CudnnGraph::Convolution::Of;
  const int64_t N = shape.B * shape.T, C = shape.C, K = shape.K;
  const DType bf16 = DType::kBF16;
  const Tensor x = bench.Values(bf16, N, C), dy = bench.Values(bf16, N, C), weight = bench.Values(bf16, C, K);
  const Tensor y = bench.Empty(bf16, {N, C}), dx = bench.Empty(bf16, {N, C}),
               dweight = bench.Empty(DType::kF32, {C, K});
  const Tensor cudnn_sums = bench.Empty(bf16, {N, C}), cudnn_y = bench.Empty(bf16, {N, C}),
               cudnn_dx = bench.Empty(bf16, {N, C}), cudnn_dweight = bench.Empty(bf16, {C, K});
  const Convolutions cudnn(bench.target(), shape);
  const auto forward = [=, &bench](bool silu) {
    return [=, &bench] {
      bench.device().ops().CausalConvForward(
          {.y = y, .x = x, .weight = weight, .shape = shape, .silu = silu});
    };
  };
  const std::string size = Text(shape.B) + " x " + Text(shape.T) + " x " + Text(C) + ", " + Text(K) + " taps";
  const std::string no_documents = "without documents and state";

  std::vector<CudnnCandidate> candidates(4);
  for (CudnnCandidate& c : candidates) c.shape = size;
  {
    CudnnCandidate& c = candidates[0];
    c.op = "convolution with SiLU, cuDNN's in one graph";
    c.ours = forward(true);
    c.steps.push_back(cudnn.Step("convolution", Of::kOutput, x, weight, cudnn_y, /*silu=*/true));
    c.outputs.push_back({"y", y, cudnn_y});
    c.obstacle = no_documents;
  }
  {
    CudnnCandidate& c = candidates[1];
    c.op = "convolution with SiLU, cuDNN's in two";
    c.ours = forward(true);
    c.steps.push_back(cudnn.Step("convolution", Of::kOutput, x, weight, cudnn_sums));
    c.steps.push_back(cudnn.SiluStep(cudnn_y, cudnn_sums));
    c.outputs.push_back({"y", y, cudnn_y});
    c.obstacle = no_documents;
  }
  {
    CudnnCandidate& c = candidates[2];
    c.op = "convolution";
    c.ours = forward(false);
    c.steps.push_back(cudnn.Step("convolution", Of::kOutput, x, weight, cudnn_y));
    c.outputs.push_back({"y", y, cudnn_y});
    c.obstacle = no_documents;
  }
  {
    CudnnCandidate& c = candidates[3];
    c.op = "convolution gradient";
    c.ours = [=, &bench] {
      bench.device().ops().CausalConvBackward(
          {.dx = dx, .dweight = dweight, .dy = dy, .x = x, .weight = weight, .shape = shape, .silu = false});
    };
    c.steps.push_back(cudnn.Step("data", Of::kData, cudnn_dx, weight, dy));
    c.steps.push_back(cudnn.Step("weights", Of::kWeights, x, cudnn_dweight, dy));
    c.outputs.push_back({"dx", dx, cudnn_dx});
    c.outputs.push_back({"dweight", dweight, cudnn_dweight});
    c.obstacle = no_documents + ", dweight in bf16";
  }
  return candidates;
}
}  // namespace carousel
