// `carousel export`: weights for other programs.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "checkpoints/file_system.h"
#include "checkpoints/hf_export.h"
#include "checkpoints/xlstm_package_config.h"
#include "checkpoints/xlstm_package_export.h"
#include "core/base/status_macros.h"
#include "core/text/hf_tokenizer_files.h"
#include "launcher/command_device.h"
#include "launcher/commands.h"
#include "launcher/model_card.h"
#include "launcher/model_source.h"

namespace carousel {
namespace {
constexpr int64_t kCheckTokens = 150;  // more than two chunks of 64
constexpr double kMaxDeltaLogit = 1e-4;
constexpr int64_t kDefaultContextLength = 2048;

struct Options {
  std::string format, model, out, dtype = "f32", slstm_backend;
  double max_shard_bytes = 5e9;
  bool force = false;
  int64_t threads = 0, context_length = 0;
};

// Weights as a bf16 file holds them.
class RoundedWeights final : public WeightSource {
 public:
  explicit RoundedWeights(const WeightSource& source) : source_(source) {}
  const std::vector<Param>& params() const override { return source_.params(); }
  absl::Status Read(const std::string& name, int64_t begin, int64_t count, DType dtype,
                    void* data) const override {
    std::vector<bfloat16> rounded(static_cast<size_t>(count));
    CAROUSEL_RETURN_IF_ERROR(source_.Read(name, begin, count, DType::kBF16, rounded.data()));
    ConvertElems(dtype, data, DType::kBF16, rounded.data(), count);
    return absl::OkStatus();
  }

 private:
  const WeightSource& source_;
};

// Token ids that visit the vocabulary.
std::vector<int32_t> CheckPrompt(int64_t vocab_size) {
  std::vector<int32_t> ids;
  const int64_t limit = std::min<int64_t>(vocab_size, 256);
  for (int64_t t = 0; t < kCheckTokens; ++t)
    ids.push_back(static_cast<int32_t>((7 + 31 * t + 3 * t * t) % limit));
  return ids;
}

absl::StatusOr<std::vector<float>> CheckLogits(const ModelSpec& spec, const WeightSource& weights,
                                               Device& device) {
  BoundModel model(spec, {.compute = DType::kF32, .B = 1, .T = kCheckTokens}, device);
  if (!model.ok()) {
    return absl::ResourceExhaustedError(
        absl::StrCat("comparing logits needs ", model.needed_bytes(), " bytes of memory"));
  }
  CAROUSEL_RETURN_IF_ERROR(LoadWeights(weights, model));
  return Logits(model, CheckPrompt(spec.vocab_size));
}

double MaxDelta(const std::vector<float>& a, const std::vector<float>& b) {
  double delta = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double d = std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
    if (!(d <= delta)) delta = d;  // also if it is not a number
  }
  return delta;
}

// Reads back what was written and compares logits, one model in memory at a time.
absl::Status CompareLogits(const ModelSource& source, const Options& options, DType dtype) {
  CAROUSEL_ASSIGN_OR_RETURN(const CommandDevice on, MakeCommandDevice("cpu", options.threads));
  CAROUSEL_ASSIGN_OR_RETURN(const ModelSource exported, OpenModel(options.out));
  CAROUSEL_ASSIGN_OR_RETURN(const std::vector<float> theirs,
                            CheckLogits(exported.spec, *exported.weights, *on.device));
  CAROUSEL_ASSIGN_OR_RETURN(const std::vector<float> ours,
                            CheckLogits(source.spec, *source.weights, *on.device));
  double delta = MaxDelta(theirs, ours);
  std::printf("max |delta logit| = %.3g against the training model (%lld tokens, f32 arithmetic)\n", delta,
              static_cast<long long>(kCheckTokens));
  if (dtype == DType::kBF16) {
    CAROUSEL_ASSIGN_OR_RETURN(const std::vector<float> rounded,
                              CheckLogits(source.spec, RoundedWeights(*source.weights), *on.device));
    delta = MaxDelta(theirs, rounded);
    std::printf("max |delta logit| = %.3g against the training model with its weights rounded to bf16\n",
                delta);
  }
  if (delta <= kMaxDeltaLogit) return absl::OkStatus();
  return absl::DataLossError(
      absl::StrFormat("%s does not compute what %s computes: max |delta logit| is %.3g, above %g",
                      options.out, source.description, delta, kMaxDeltaLogit));
}

// What was asked for, or what the family can be written as.
absl::StatusOr<ExportFormat> FormatOf(const Options& options, const ModelSpec& spec) {
  const bool paper = spec.family == Family::kPaper;
  if (!paper && !spec.slstm_at.empty()) {
    return absl::FailedPreconditionError(
        "a model of XLSTM_LARGE with sLSTM blocks exists in no other program: Hugging Face Transformers has "
        "no "
        "sLSTM, and the package xlstm has no sLSTM in blocks of this family. Models of XLSTM_LARGE with "
        "mLSTM "
        "blocks alone (--format hf) and all of XLSTM_PAPER (--format xlstm) can be exported; `carousel "
        "generate` and checkpoint.initial_weights take the run as it is");
  }
  const bool package = options.format.empty() ? paper : options.format == "xlstm";
  if (!package && (!options.slstm_backend.empty() || options.context_length > 0)) {
    return absl::InvalidArgumentError("--slstm_backend and --context_length belong to --format xlstm");
  }
  return package ? ExportFormat::kPackage : ExportFormat::kTransformers;
}

absl::StatusOr<ModelDirectoryResult> WriteTransformers(const ModelSource& source, const Options& options,
                                                       DType dtype, std::vector<ModelDirectoryFile> extra) {
  PosixFileSystem files;
  return ExportHf(source.spec, *source.weights,
                  {.out_dir = options.out,
                   .dtype = dtype,
                   .max_shard_bytes = static_cast<int64_t>(options.max_shard_bytes),
                   .overwrite = options.force,
                   .tokens = source.tokens,
                   .extra_files = std::move(extra)},
                  files);
}

absl::StatusOr<ModelDirectoryResult> WritePackage(const ModelSource& source, const Options& options,
                                                  const ModelCardOptions& card,
                                                  std::vector<ModelDirectoryFile> extra) {
  PosixFileSystem files;
  return ExportPackage({.spec = source.spec,
                        .backend = card.slstm_backend,
                        .context_length = card.context_length,
                        .decay_embedding = source.hints.decay_embedding},
                       *source.weights,
                       {.out_dir = options.out,
                        .dtype = card.dtype,
                        .max_shard_bytes = static_cast<int64_t>(options.max_shard_bytes),
                        .overwrite = options.force,
                        .extra_files = std::move(extra)},
                       files);
}

absl::Status Export(const Options& options) {
  CAROUSEL_ASSIGN_OR_RETURN(const ModelSource source, OpenModel(options.model));
  const std::filesystem::path out(options.out);
  ModelCardOptions card;
  card.name = (out.filename().empty() ? out.parent_path() : out).filename().string();
  CAROUSEL_ASSIGN_OR_RETURN(card.format, FormatOf(options, source.spec));
  card.dtype = options.dtype == "bf16" ? DType::kBF16 : DType::kF32;
  const bool package = card.format == ExportFormat::kPackage;
  if (!options.slstm_backend.empty()) card.slstm_backend = *SlstmBackendFromName(options.slstm_backend);
  card.context_length = options.context_length > 0         ? options.context_length
                        : source.hints.sequence_length > 0 ? source.hints.sequence_length
                                                           : kDefaultContextLength;
  std::vector<ModelDirectoryFile> extra;
  if (source.text_is_bytes.ok()) {
    for (auto& [name, content] : ByteTokenizerFiles()) extra.push_back({name, std::move(content)});
  }
  extra.push_back({"README.md", ModelCard(source, card)});

  CAROUSEL_ASSIGN_OR_RETURN(const ModelDirectoryResult result,
                            package ? WritePackage(source, options, card, std::move(extra))
                                    : WriteTransformers(source, options, card.dtype, std::move(extra)));
  std::printf("%s -> %s: %lld parameters, %lld bytes of %s weights for %s\n", source.description.c_str(),
              options.out.c_str(), static_cast<long long>(NumParameters(source.spec)),
              static_cast<long long>(result.total_bytes), NameOf(card.dtype),
              package ? "the package xlstm" : "Hugging Face Transformers");
  if (package && !source.spec.slstm_at.empty()) {
    std::printf("sLSTM weights in the layout of the backend %s\n", NameOf(card.slstm_backend));
  }
  if (package) {
    for (const std::string& setting : SettingsThePackageLacks(source.spec)) {
      std::printf("not in config.json, of use in training only: %s\n", setting.c_str());
    }
  }
  for (const std::string& file : result.files) std::printf("  %s\n", file.c_str());
  if (!source.text_is_bytes.ok()) {
    std::printf("no tokenizer files: %s\n", std::string(source.text_is_bytes.message()).c_str());
  }
  return CompareLogits(source, options, card.dtype);
}
}  // namespace

CLI::App* AddExportCommand(CLI::App& app, std::function<int()>* run) {
  CLI::App* command = app.add_subcommand("export", "Write a model for other programs");
  const auto options = std::make_shared<Options>();
  command
      ->add_option("--format", options->format,
                   "hf: a directory for Hugging Face Transformers (family XLSTM_LARGE); xlstm: one for "
                   "xLSTMLMModel of the Python package xlstm (family XLSTM_PAPER). Default: by family")
      ->check(CLI::IsMember({"hf", "xlstm"}));
  command
      ->add_option(
          "--slstm_backend", options->slstm_backend,
          "xlstm: the backend whose layout sLSTM weights have. Default: vanilla, which runs everywhere")
      ->check(CLI::IsMember({"vanilla", "cuda"}));
  command
      ->add_option("--context_length", options->context_length,
                   "xlstm: longest input that the package shall take; its memory grows with the square. "
                   "Default: data.sequence_length")
      ->type_name("N")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 40));
  command
      ->add_option("--model", options->model,
                   "Run directory, checkpoint, Hugging Face directory or directory of the package xlstm")
      ->required()
      ->type_name("DIR");
  command->add_option("--out", options->out, "Directory to write; it appears when it is complete")
      ->required()
      ->type_name("DIR");
  command->add_option("--dtype", options->dtype, "Of the stored weights: f32 (exact) or bf16 (half the size)")
      ->capture_default_str()
      ->check(CLI::IsMember({"f32", "bf16"}));
  command
      ->add_option("--max_shard_bytes", options->max_shard_bytes,
                   "Split the weights into files of at most this size")
      ->capture_default_str()
      ->type_name("BYTES")
      ->check(CLI::Range(1.0, 1e18));
  command->add_flag("--force", options->force, "Replace --out if it holds an exported model");
  command->add_option("--threads", options->threads, "CPU threads for the comparison; 0: all cores")
      ->capture_default_str()
      ->type_name("N")
      ->check(CLI::Range(int64_t{0}, int64_t{4096}));
  command->footer(
      R"(Afterwards the directory is read back and its logits are compared with those of the training model; a
difference is an error. Transformers can express a model only if embedding_dim times qk_dim_factor and
times v_dim_factor are multiples of 64 and the other settings are those of the published architecture. For
the package xlstm the README.md in the directory shows how to load it; `carousel import` reads both formats.

Examples:
  carousel export --model runs/demo --out runs/demo/export
  carousel export --format xlstm --slstm_backend cuda --model runs/parity --out parity-cuda
  carousel export --format hf --model runs/demo --out demo-bf16 --dtype bf16 --max_shard_bytes 5e9)");
  command->callback([options, run] {
    *run = [options]() -> int {
      const absl::Status status = Export(*options);
      return status.ok() ? kExitOk : ReportError(status);
    };
  });
  return command;
}
}  // namespace carousel
