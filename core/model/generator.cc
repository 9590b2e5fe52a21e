#include "core/model/generator.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "core/base/random.h"

namespace carousel {

int32_t SampleToken(const std::vector<double>& logits, const SamplingSpec& spec, int64_t position) {
  const int64_t V = static_cast<int64_t>(logits.size());
  const int64_t allowed = spec.num_allowed_ids > 0 ? std::min(spec.num_allowed_ids, V) : V;
  CAROUSEL_CHECK(allowed > 0);
  // A logit that is not a number counts as impossible, so that the order below is one.
  const auto at = [&](int32_t id) {
    const double z = logits[static_cast<size_t>(id)];
    return std::isnan(z) ? -std::numeric_limits<double>::infinity() : z;
  };
  int32_t best = 0;
  for (int32_t id = 1; id < allowed; ++id) {
    if (at(id) > at(best)) best = id;
  }
  if (spec.temperature <= 0 || !std::isfinite(at(best))) return best;

  // Candidates from the most to the least likely.
  std::vector<int32_t> ids(static_cast<size_t>(allowed));
  std::iota(ids.begin(), ids.end(), 0);
  const int64_t kept = spec.top_k > 0 ? std::min(spec.top_k, allowed) : allowed;
  std::partial_sort(ids.begin(), ids.begin() + kept, ids.end(),
                    [&](int32_t a, int32_t b) { return at(a) != at(b) ? at(a) > at(b) : a < b; });
  ids.resize(static_cast<size_t>(kept));

  // Their probabilities, up to a common factor.
  std::vector<double> weights;
  for (const int32_t id : ids) weights.push_back(std::exp((at(id) - at(ids[0])) / spec.temperature));
  double total = std::accumulate(weights.begin(), weights.end(), 0.0);
  if (spec.top_p < 1) {
    double sum = 0;
    size_t n = 0;
    while (n < weights.size() && (n == 0 || sum < spec.top_p * total)) sum += weights[n++];
    weights.resize(n);
    total = sum;
  }

  // The first candidate at which the running sum exceeds a uniform share of the total.
  const uint64_t stream = StreamOf("sample");
  const double draw = RandomUniform(spec.seed, stream, static_cast<uint64_t>(position)) * total;
  double sum = 0;
  for (size_t j = 0; j < weights.size(); ++j) {
    sum += weights[j];
    if (draw < sum) return ids[j];
  }
  return ids[weights.size() - 1];
}

Generator::Generator(LanguageModel& model, Device& device)
    : model_(model), device_(device), piece_tokens_(std::min(kPrefillTokens, model.bound_T())) {
  CAROUSEL_CHECK_MSG(piece_tokens_ > 0, "the model is not bound");
  memory_ = std::make_unique<DeviceMemory>(device, [&](Arena& arena) {
    states_ = model_.BindStates(arena, /*B=*/1);
    ids_ = arena.Persistent("batch", DType::kI32, {piece_tokens_});
    resets_ = arena.Persistent("batch", DType::kU8, {piece_tokens_});
    logits_ = arena.Persistent("batch", states_[0].Tensors()[0].dtype, {1, model_.spec().vocab_size});
  });
  if (!memory_->ok()) CheckFailed(__FILE__, __LINE__, memory_->NotEnough("generation of one sequence"));
}

void Generator::Reset() {
  for (const LayerState& state : states_) {
    for (const Tensor& t : state.Tensors()) device_.ops().Fill({.y = t, .value = 0});
  }
}

std::vector<double> Generator::Feed(const std::vector<int32_t>& ids, int32_t reset_id) {
  CAROUSEL_CHECK_MSG(!ids.empty(), "nothing to read");
  const int64_t total = static_cast<int64_t>(ids.size());
  for (int64_t begin = 0; begin < total; begin += piece_tokens_) {
    const int64_t n = std::min(piece_tokens_, total - begin);
    const int32_t* piece = ids.data() + begin;
    std::vector<uint8_t> resets(static_cast<size_t>(n), 0);
    bool any_reset = false;
    for (int64_t t = 0; t < n; ++t) {
      if (piece[t] != reset_id) continue;
      resets[static_cast<size_t>(t)] = 1;
      any_reset = true;
    }
    LanguageModel::Input input;
    input.B = 1;
    input.T = n;
    input.ids = ids_.Rows(0, n);
    device_.CopyToDevice(ids_.data, piece, input.ids.num_bytes());
    if (any_reset) {
      input.resets = resets_.Rows(0, n);
      device_.CopyToDevice(resets_.data, resets.data(), input.resets.num_bytes());
    }
    model_.ForwardStep(device_.ops(), input, states_, logits_);
  }
  std::vector<double> result(static_cast<size_t>(logits_.num_elems()));
  DispatchFloat(logits_.dtype, [&]<class W>() {
    std::vector<W> host(result.size());
    device_.CopyToHost(host.data(), logits_.data, logits_.num_bytes());
    for (size_t j = 0; j < host.size(); ++j) result[j] = static_cast<double>(static_cast<Wide<W>>(host[j]));
  });
  return result;
}

std::vector<int32_t> Generator::Generate(const GenerateArgs& args,
                                         const std::function<bool(int32_t)>& on_token) {
  Reset();
  std::vector<int32_t> result;
  if (args.max_new_tokens <= 0) return result;
  std::vector<double> logits = Feed(args.prompt, args.reset_id);
  int64_t position = static_cast<int64_t>(args.prompt.size());
  while (true) {
    const int32_t id = SampleToken(logits, args.sampling, position++);
    if (std::find(args.stop_ids.begin(), args.stop_ids.end(), id) != args.stop_ids.end()) break;
    result.push_back(id);
    if (on_token && !on_token(id)) break;
    if (static_cast<int64_t>(result.size()) >= args.max_new_tokens) break;
    logits = Feed({id}, args.reset_id);
  }
  return result;
}
}  // namespace carousel
