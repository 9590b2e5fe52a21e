// `carousel export`: weights for other programs.
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "checkpoints/file_system.h"
#include "checkpoints/hf_export.h"
#include "checkpoints/xlstm_package_config.h"
#include "checkpoints/xlstm_package_export.h"
#include "core/base/status_macros.h"
#include "core/device_memory.h"
#include "core/text/hf_tokenizer_files.h"
#include "launcher/command_line.h"
#include "launcher/commands.h"
#include "launcher/models/export_check.h"
#include "launcher/models/model_card.h"
#include "launcher/models/model_source.h"
#include "launcher/progress_bar.h"

namespace carousel {
namespace {
constexpr int64_t kDefaultContextLength = 2048;
constexpr std::pair<const char*, ExportFormat> kFormats[] = {
    {"hf", ExportFormat::kTransformers}, {"nxai", ExportFormat::kNxai}, {"xlstm", ExportFormat::kPackage}};

struct Options {
  std::string format, model, out, dtype = "f32", slstm_backend, check = "auto";
  double max_shard_bytes = 5e9;
  bool force = false;
  int64_t threads = 0, context_length = 0;
};

// What was asked for, or what the family can be written as.
absl::StatusOr<ExportFormat> FormatOf(const Options& options, const ModelSpec& spec) {
  const bool paper = spec.family == Family::kPaper;
  if (!paper && !spec.slstm_at.empty()) {
    return absl::FailedPreconditionError(
        "a model of XLSTM_LARGE with sLSTM blocks exists in no other program: Hugging Face Transformers has "
        "no sLSTM, and the package xlstm has no sLSTM in blocks of this family. Models of XLSTM_LARGE with "
        "mLSTM blocks alone (--format hf, --format nxai) and all of XLSTM_PAPER (--format xlstm) can be "
        "exported; `carousel generate` and checkpoint.initial_weights take the run as it is");
  }
  ExportFormat format = paper ? ExportFormat::kPackage : ExportFormat::kTransformers;
  for (const auto& [name, value] : kFormats) {
    if (options.format == name) format = value;
  }
  if (format != ExportFormat::kPackage && (!options.slstm_backend.empty() || options.context_length > 0)) {
    return absl::InvalidArgumentError("--slstm_backend and --context_length belong to --format xlstm");
  }
  return format;
}

const char* ProgramOf(ExportFormat format) {
  switch (format) {
    case ExportFormat::kTransformers:
      return "Hugging Face Transformers";
    case ExportFormat::kNxai:
      return "xLSTMLarge of the package xlstm";
    case ExportFormat::kPackage:
      return "xLSTMLMModel of the package xlstm";
  }
  CheckFailed(__FILE__, __LINE__, "an ExportFormat that is none");
}

// Whether logits are compared, and if not, why.
struct LogitCheck {
  bool wanted = true;
  std::string why_not;
};
LogitCheck LogitCheckOf(const Options& options, const ModelSpec& spec) {
  if (options.check == "logits") return {};
  if (options.check == "digests") return {.wanted = false, .why_not = "--check digests"};
  const int64_t needed = LogitCheckBytes(spec), available = AvailableHostBytes();
  if (available == 0 || needed <= available / 2) return {};
  return {.wanted = false,
          .why_not = absl::StrCat("the model would take ", BinaryBytes(needed), " and ",
                                  BinaryBytes(available), " of memory are free; --check logits insists")};
}

absl::StatusOr<ModelDirectoryResult> Write(const ModelSource& source, const Options& options,
                                           const ModelCardOptions& card,
                                           std::vector<ModelDirectoryFile> extra,
                                           std::function<absl::Status(const std::string& dir)> accept) {
  PosixFileSystem files;
  ProgressBar bar("export");
  const ExportProgress progress = [&bar](int64_t done, int64_t total) { bar.Show(done, total); };
  const int64_t max_shard_bytes = static_cast<int64_t>(options.max_shard_bytes);
  if (card.format == ExportFormat::kPackage) {
    return ExportPackage({.spec = source.spec,
                          .backend = card.slstm_backend,
                          .context_length = card.context_length,
                          .decay_embedding = source.hints.decay_embedding},
                         *source.weights,
                         {.out_dir = options.out,
                          .dtype = card.dtype,
                          .max_shard_bytes = max_shard_bytes,
                          .overwrite = options.force,
                          .source_name = source.description,
                          .extra_files = std::move(extra),
                          .progress = progress,
                          .accept = std::move(accept)},
                         files);
  }
  return ExportHf(source.spec, *source.weights,
                  {.dialect = card.format == ExportFormat::kNxai ? ConfigDialect::kReference
                                                                 : ConfigDialect::kTransformers,
                   .out_dir = options.out,
                   .source_name = source.description,
                   .dtype = card.dtype,
                   .max_shard_bytes = max_shard_bytes,
                   .overwrite = options.force,
                   .tokens = source.tokens,
                   .extra_files = std::move(extra),
                   .progress = progress,
                   .accept = std::move(accept)},
                  files);
}

// What --force replaces must not hold the model that is read.
absl::Status CheckNotWithin(const std::string& model, const std::string& out) {
  std::error_code unknown;
  const std::filesystem::path inner = std::filesystem::weakly_canonical(model, unknown);
  const std::filesystem::path outer = std::filesystem::weakly_canonical(out, unknown);
  if (unknown || inner == outer) return absl::OkStatus();
  const auto [end_of_outer, rest] = std::mismatch(outer.begin(), outer.end(), inner.begin(), inner.end());
  if (end_of_outer != outer.end()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "--force would remove ", model, ", which is to be exported, with ", out, "; give another --out"));
}

absl::Status CheckNoDanglingLink(const std::string& out) {
  std::error_code unknown;
  if (!std::filesystem::is_symlink(out, unknown) || std::filesystem::exists(out, unknown)) {
    return absl::OkStatus();
  }
  return absl::AlreadyExistsError(absl::StrCat(out, " is a link that leads nowhere; remove it"));
}

absl::Status Export(const Options& options) {
  CAROUSEL_ASSIGN_OR_RETURN(const ModelSource source, OpenModel(options.model));
  CAROUSEL_RETURN_IF_ERROR(CheckNoDanglingLink(options.out));
  if (options.force) CAROUSEL_RETURN_IF_ERROR(CheckNotWithin(source.path, options.out));
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

  const LogitCheck logit_check = LogitCheckOf(options, source.spec);
  std::string logit_report = absl::StrCat("logits not compared: ", logit_check.why_not, "\n");
  const auto accept = [&](const std::string& dir) -> absl::Status {
    if (!logit_check.wanted) return absl::OkStatus();
    CAROUSEL_ASSIGN_OR_RETURN(logit_report, CompareLogits(source, dir, card.dtype, options.threads));
    return absl::OkStatus();
  };
  CAROUSEL_ASSIGN_OR_RETURN(const ModelDirectoryResult result,
                            Write(source, options, card, std::move(extra), accept));

  std::printf("%s -> %s: %lld parameters, %lld bytes of %s weights for %s\n", source.description.c_str(),
              options.out.c_str(), static_cast<long long>(NumParameters(source.spec)),
              static_cast<long long>(result.total_bytes), NameOf(card.dtype), ProgramOf(card.format));
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
  std::printf("read back: the digests of all %lld tensors are those of the %s%s\n",
              static_cast<long long>(result.num_compared),
              source.kind == ModelSource::Kind::kRun ? "checkpoint" : "model",
              card.dtype == DType::kBF16 ? ", rounded to bf16" : "");
  std::printf("%s", logit_report.c_str());
  return absl::OkStatus();
}
}  // namespace

CLI::App* AddExportCommand(CLI::App& app, std::function<int()>* run) {
  CLI::App* command = app.add_subcommand("export", "Write a model for other programs");
  const auto options = std::make_shared<Options>();
  command
      ->add_option("--format", options->format,
                   "hf: a directory for Hugging Face Transformers (family XLSTM_LARGE); nxai: one for "
                   "xLSTMLarge of the Python package xlstm (the same family); xlstm: one for xLSTMLMModel of "
                   "that package (family XLSTM_PAPER). Default: hf or xlstm, by family")
      ->check(CLI::IsMember({"hf", "nxai", "xlstm"}));
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
      ->check(NumberFrom(1.0, 1e18));
  command->add_flag("--force", options->force, "Replace --out if it holds an exported model");
  command
      ->add_option(
          "--check", options->check,
          "How what was written is checked. digests: it is read back and every bit compared, with "
          "memory for a few tensor blocks; logits: the model is also run, with memory for all of it; "
          "auto: logits if half of the free memory is enough for that")
      ->capture_default_str()
      ->check(CLI::IsMember({"auto", "digests", "logits"}));
  command->add_option("--threads", options->threads, "CPU threads for comparing logits; 0: all cores")
      ->capture_default_str()
      ->type_name("N")
      ->check(CLI::Range(int64_t{0}, int64_t{4096}));
  command->footer(
      R"(Tensors stream from the checkpoint to the directory in blocks: memory does not grow with the model.
The directory is then read back; it gets its name only if every tensor has the digest of the checkpoint
(rounded, for bf16) and, see --check, the model computes the same logits. What is there after an error is what
was there before.

All formats are safetensors, which torch loads without running code from the file. With
safetensors.torch.load_file they are the state dict: load_state_dict(..., strict=True) of xLSTMLarge takes
that of nxai, xLSTMLMModel that of xlstm. Pickled files (.pt, .bin) are not written. The README.md in the
directory shows how to load it, and `carousel import`, `carousel generate` and checkpoint.initial_weights read
every format.

Transformers can express a model only if embedding_dim times qk_dim_factor and times v_dim_factor are
multiples of 64 and the other settings are those of the published architecture; nxai takes any widths, a model
without its final norm and one without soft caps.

Examples:
  carousel export --model runs/demo --out runs/demo/export
  carousel export --format nxai --model runs/demo --out demo-nxai
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
