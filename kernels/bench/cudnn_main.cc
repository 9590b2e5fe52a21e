// cudnn_candidates: cuDNN's norms and its depthwise convolution beside ours: the same bf16 inputs, the same
// clock, results compared. Prints a Markdown table.
//   cudnn_candidates [--device N] [--tokens N] [--repeats N]
//   cudnn_candidates --plan_for FILE    makes cuDNN's plans for a GPU that need not be here: FILE holds
//   cuDNN's
//                                       description of it in JSON (CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION)
// An op of several steps in cuDNN's way counts them all; each step runs on the fastest plan of those that
// cuDNN's heuristics offer, of engines whose bits are the same in every run. Exit code 0 if every result that
// there is agrees with ours, 1 if one does not or nothing could be measured, 2 for a wrong command line.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>

#include "kernels/bench/cudnn_candidates.h"
#include "kernels/cuda/make_cuda_device.h"

namespace carousel {
namespace {
constexpr int64_t kWidths[] = {1024, 2048, 4096};
constexpr int64_t kSequences = 8, kConvolutionWidth = 2048, kTaps = 4;
constexpr int64_t kMaxWorkspaceBytes = int64_t{8} << 30;
constexpr int64_t kSlabElems = 4 << 20;
// Two roundings of results to bf16 are 2^-9 apart at most; sums in another order add little to that.
constexpr double kMaxError = 1e-2;
constexpr double kUnwritten = 1e4;
constexpr double kTie = 0.97;  // within 3 %: the clock's own spread

struct Options {
  int device = 0;
  int64_t tokens = 65536, repeats = 11;
  std::string plan_for;
};

struct Row {
  double ours_ms = 0, cudnn_ms = 0, error = 0;
  std::string worst_output;  // the one with that error
  std::string how;           // the plans and their times
  std::string refusal;       // why there are no times of cuDNN
};

double TimeCall(OpTimer& timer, const std::function<void()>& call) {
  timer.Time("", {}, call);
  return timer.Take().back().ms;
}

std::vector<float> ToHost(Device& device, const Tensor& t) {  // (n)
  const auto n = static_cast<size_t>(t.num_elems());
  std::vector<float> values(n);
  if (t.dtype == DType::kF32) {
    device.CopyToHost(values.data(), t.data, t.num_bytes());
    return values;
  }
  std::vector<bfloat16> rounded(n);
  CAROUSEL_CHECK(t.dtype == DType::kBF16);
  device.CopyToHost(rounded.data(), t.data, t.num_bytes());
  std::transform(rounded.begin(), rounded.end(), values.begin(),
                 [](bfloat16 v) { return static_cast<float>(v); });
  return values;
}

// |a - b| / |a| in the Euclidean norm; not a number where one of them is not.
double RelativeError(Device& device, const Tensor& a, const Tensor& b) {
  const Tensor flat_a = a.Flatten(), flat_b = b.Flatten();
  CAROUSEL_CHECK_EQ(flat_a.dim[0], flat_b.dim[0]);
  double difference = 0, size = 0;
  for (int64_t begin = 0; begin < flat_a.dim[0]; begin += kSlabElems) {
    const int64_t count = std::min(kSlabElems, flat_a.dim[0] - begin);
    const std::vector<float> values_a = ToHost(device, flat_a.Rows(begin, count)),
                             values_b = ToHost(device, flat_b.Rows(begin, count));
    for (size_t i = 0; i < values_a.size(); ++i) {
      const double va = values_a[i], d = va - static_cast<double>(values_b[i]);
      difference += d * d;
      size += va * va;
    }
  }
  return std::sqrt(difference / size);
}

// A plan of a step that runs, and its time; or why there is none.
struct Choice {
  CudnnGraph* graph = nullptr;
  CudnnPlan plan;
  void* workspace = nullptr;
  double ms = std::numeric_limits<double>::infinity();
  std::string refusal;
};

Choice Choose(CudnnBench& bench, CudnnStep& step) {
  Choice best;
  for (std::unique_ptr<CudnnGraph>& graph : step.graphs) {
    CudnnPlans offer = graph->MakePlans();
    if (best.refusal.empty()) best.refusal = offer.refusal;
    for (CudnnPlan& plan : offer.plans) {
      if (!bench.runs()) {
        return {.graph = graph.get(), .plan = std::move(plan), .workspace = nullptr, .ms = 0, .refusal = {}};
      }
      if (plan.workspace_bytes > kMaxWorkspaceBytes) {
        best.refusal =
            plan.name + " wants " + std::to_string(plan.workspace_bytes >> 20) + " MiB of workspace";
        continue;
      }
      void* workspace = bench.Empty(DType::kU8, {plan.workspace_bytes}).data;
      std::string error;
      if (!graph->Run(plan, workspace, &error)) {
        best.refusal = plan.name + ": " + error;
        continue;
      }
      const double ms = TimeCall(bench.timer(), [&] {
        if (error.empty()) graph->Run(plan, workspace, &error);
      });
      if (!error.empty()) {
        best.refusal = plan.name + ": " + error;
      } else if (ms < best.ms) {
        best.graph = graph.get();
        best.plan = std::move(plan);
        best.workspace = workspace;
        best.ms = ms;
      }
    }
  }
  return best;
}

Row Measure(CudnnBench& bench, CudnnCandidate& candidate) {
  Row row;
  std::vector<Choice> choices;
  for (CudnnStep& step : candidate.steps) {
    if (!row.how.empty()) row.how += ", ";
    if (step.graphs.empty()) {
      choices.emplace_back();
      row.how += step.name;
      continue;
    }
    choices.push_back(Choose(bench, step));
    const Choice& choice = choices.back();
    if (choice.graph == nullptr) {
      row.refusal = step.name + ": " + choice.refusal;
      break;
    }
    char ms[32] = "";
    if (bench.runs()) std::snprintf(ms, sizeof ms, " %.4f ms", choice.ms);
    row.how += step.name + " by " + choice.plan.name + ms;
  }
  if (!bench.runs()) return row;

  if (row.refusal.empty()) {
    std::string error;
    const auto cudnn = [&] {
      for (size_t i = 0; i < choices.size(); ++i) {
        Choice& choice = choices[i];
        if (choice.graph == nullptr) {
          candidate.steps[i].op();
        } else if (error.empty()) {
          choice.graph->Run(choice.plan, choice.workspace, &error);
        }
      }
    };
    // once each, before ours adds more to the weights' gradients; what cuDNN leaves as it is shall be seen
    for (const CudnnCandidate::Output& out : candidate.outputs) {
      bench.device().ops().Fill({.y = out.cudnn, .value = kUnwritten});
    }
    candidate.ours();
    cudnn();
    for (const CudnnCandidate::Output& out : candidate.outputs) {
      const double e = RelativeError(bench.device(), out.ours, out.cudnn);
      if (row.worst_output.empty() || !(e <= row.error)) {
        row.error = e;
        row.worst_output = out.name;
      }
      if (std::isnan(e)) break;
    }
    row.cudnn_ms = TimeCall(bench.timer(), cudnn);
    row.refusal = error;
  }
  row.ours_ms = TimeCall(bench.timer(), candidate.ours);
  return row;
}

// Prints the row; false if cuDNN's result is not ours.
bool Print(const CudnnCandidate& c, const Row& row, bool runs) {
  const char *op = c.op.c_str(), *shape = c.shape.c_str();
  if (!runs) {
    std::printf("| %s | %s | %s |\n", op, shape, (row.refusal.empty() ? row.how : row.refusal).c_str());
    return true;
  }
  if (!row.refusal.empty()) {
    std::printf("| %s | %s | %.4f | | | | ours: cuDNN has no plan. %s |\n", op, shape, row.ours_ms,
                row.refusal.c_str());
    return true;
  }
  const double ratio = row.ours_ms / row.cudnn_ms;
  const bool agrees = row.error <= kMaxError;
  std::string verdict = !agrees            ? "RESULTS DIFFER"
                        : ratio < kTie     ? "ours"
                        : ratio < 1 / kTie ? "tie"
                                           : "cuDNN";
  if (agrees && ratio >= kTie && !c.obstacle.empty()) verdict += ", but " + c.obstacle;
  std::printf("| %s | %s | %.4f | %.4f | %.2f | %.1e (%s) | %s; %s |\n", op, shape, row.ours_ms, row.cudnn_ms,
              ratio, row.error, row.worst_output.c_str(), verdict.c_str(), row.how.c_str());
  return agrees;
}

bool ParseInt(const char* text, int64_t low, int64_t high, int64_t* value) {
  const char* end = text + std::strlen(text);
  const auto [stop, status] = std::from_chars(text, end, *value);
  return status == std::errc() && stop == end && *value >= low && *value <= high;
}

bool ParseOptions(int argc, char** argv, Options* options) {
  for (int i = 1; i < argc; i += 2) {
    if (i + 1 == argc) return false;
    const std::string name = argv[i];
    int64_t value = 0;
    if (name == "--plan_for") {
      options->plan_for = argv[i + 1];
    } else if (name == "--device" && ParseInt(argv[i + 1], 0, 1023, &value)) {
      options->device = static_cast<int>(value);
    } else if (name == "--tokens" && ParseInt(argv[i + 1], kSequences, int64_t{1} << 24, &value) &&
               value % kSequences == 0) {
      options->tokens = value;
    } else if (name == "--repeats" && ParseInt(argv[i + 1], 1, 10000, &value)) {
      options->repeats = value;
    } else {
      return false;
    }
  }
  return true;
}

int Run(const Options& options) {
  std::string error;
  std::unique_ptr<Device> device;
  std::unique_ptr<CudnnTarget> target;
  if (options.plan_for.empty()) {
    device = cuda::MakeCudaDevice(options.device, &error);
    if (device != nullptr) target = CudnnTarget::OnStream(device->native_stream(), &error);
  } else {
    std::ifstream file(options.plan_for, std::ios::binary);
    const std::string json((std::istreambuf_iterator<char>(file)), {});
    if (json.empty()) {
      error = "cannot read '" + options.plan_for + "'";
    } else {
      target = CudnnTarget::Described(json, &error);
    }
  }
  if (target == nullptr) {
    std::fprintf(stderr, "cudnn_candidates: %s\n", error.c_str());
    return 1;
  }

  const size_t version = cudnnGetVersion();
  std::printf(
      "cuDNN %zu.%zu.%zu, bf16; ratio = ours / cuDNN's, error = largest relative difference of a result.\n\n",
      version / 10000, version / 100 % 100, version % 100);
  std::printf(
      "%s",
      device != nullptr
          ? "| op | shape | ours ms | cuDNN ms | ratio | error | faster |\n|---|---|---|---|---|---|---|\n"
          : "| op | shape | cuDNN's plan |\n|---|---|---|\n");
  CudnnBench bench(device.get(), target.get(), options.repeats);
  bool agree = true;
  const auto measure = [&](std::vector<CudnnCandidate> candidates) {
    for (CudnnCandidate& candidate : candidates) {
      agree &= Print(candidate, Measure(bench, candidate), bench.runs());
      std::fflush(stdout);
    }
    candidates.clear();  // the graphs point into the tensors
    bench.FreeAll();
  };
  for (const int64_t D : kWidths) {
    for (const bool layer_norm : {false, true}) {
      measure(CudnnNormCandidates(bench, layer_norm, options.tokens, D));
    }
  }
  measure(CudnnConvolutionCandidates(
      bench, {.B = kSequences, .T = options.tokens / kSequences, .C = kConvolutionWidth, .K = kTaps}));
  if (device == nullptr) {
    std::printf(
        "\nPlans only, made without the GPU. cuDNN compiles its norms when it plans and loads them through "
        "the "
        "driver: without libcuda.so.1 it offers no engine for them.\n");
  }
  if (!agree) std::printf("\nFAIL: a result of cuDNN's is not ours (error above %.0e).\n", kMaxError);
  return agree ? 0 : 1;
}
}  // namespace
}  // namespace carousel

int main(int argc, char** argv) {
  carousel::Options options;
  if (!carousel::ParseOptions(argc, argv, &options)) {
    std::fprintf(stderr,
                 "usage: cudnn_candidates [--device N] [--tokens N] [--repeats N]\n"
                 "       cudnn_candidates --plan_for FILE\n"
                 "--tokens must be a multiple of %lld\n",
                 static_cast<long long>(carousel::kSequences));
    return 2;
  }
  return carousel::Run(options);
}
