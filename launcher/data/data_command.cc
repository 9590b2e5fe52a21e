// `carousel data` with its subcommands build, text into token files, and synth, text of known entropy.
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <memory>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "core/base/status_macros.h"
#include "core/data/builder.h"
#include "core/data/synthetic_text.h"
#include "core/data/token_file.h"
#include "launcher/commands.h"
#include "launcher/data/data_command.h"

namespace carousel {
namespace {

// One line on a terminal, rewritten a few times a second; nothing elsewhere.
class ProgressLine {
 public:
  void Update(int64_t done_bytes, int64_t total_bytes) {
    done_bytes_ = done_bytes;
    if (!terminal_ || Seconds() < next_) return;
    next_ = Seconds() + 0.2;
    shown_ = true;
    const std::string share =
        total_bytes > 0
            ? absl::StrFormat(" of %.1f MB (%.0f %%)", static_cast<double>(total_bytes) * 1e-6,
                              100.0 * static_cast<double>(done_bytes) / static_cast<double>(total_bytes))
            : " MB";
    absl::FPrintF(stderr, "\r\033[K%.1f%s, %.0f MB/s", static_cast<double>(done_bytes) * 1e-6, share,
                  MegabytesPerSecond());
  }
  void Clear() {
    if (shown_) absl::FPrintF(stderr, "\r\033[K");
    shown_ = false;
  }
  double MegabytesPerSecond() const {
    return static_cast<double>(done_bytes_) * 1e-6 / std::max(Seconds(), 1e-9);
  }
  double Seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  const bool terminal_ = isatty(STDERR_FILENO) != 0;
  bool shown_ = false;
  double next_ = 0;  // seconds after the start
  int64_t done_bytes_ = 0;
};

struct BuildOptions {
  BuildSpec spec;
  std::string format, separator, tokenizer = "bytes";
};

absl::Status RunBuild(BuildOptions options) {
  BuildSpec& spec = options.spec;
  if (options.format == "txt") spec.format = TextFormat::kPlain;
  if (options.format == "jsonl") spec.format = TextFormat::kJsonLines;
  std::string error;
  if (!absl::CUnescape(options.separator, &spec.document_separator, &error)) {
    return absl::InvalidArgumentError(absl::StrCat("--document_separator ", options.separator, ": ", error,
                                                   "; write e.g. '\\n\\n' or '\\f'"));
  }
  CAROUSEL_ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer, MakeTokenizer(options.tokenizer));
  ProgressLine progress;
  spec.progress = [&progress](int64_t done, int64_t total) { progress.Update(done, total); };
  const absl::StatusOr<BuildResult> result = BuildTokenFiles(spec, *tokenizer);
  progress.Clear();
  CAROUSEL_RETURN_IF_ERROR(result.status());
  for (const BuiltFile& file : result->files) {
    absl::PrintF("%s.{bin,idx,meta}: %s tokens (%s, tokenizer %s) in %s document%s, %s bytes of text\n",
                 file.prefix, Grouped(file.num_tokens), NameOf(TokenDTypeFor(tokenizer->size())),
                 tokenizer->name(), Grouped(file.num_documents), file.num_documents == 1 ? "" : "s",
                 Grouped(file.text_bytes));
  }
  if (result->num_empty_documents > 0) {
    absl::PrintF("skipped %s empty document%s\n", Grouped(result->num_empty_documents),
                 result->num_empty_documents == 1 ? "" : "s");
  }
  absl::PrintF("read %s bytes in %.2f s: %.0f MB/s\n", Grouped(result->input_bytes), progress.Seconds(),
               progress.MegabytesPerSecond());
  return absl::OkStatus();
}

struct SynthOptions {
  std::string output;
  int64_t num_bytes = 4000000;
  uint64_t seed = 0;
  bool overwrite = false;
};

absl::Status RunSynth(const SynthOptions& options) {
  if (!options.overwrite && access(options.output.c_str(), F_OK) == 0) {
    return absl::AlreadyExistsError(
        absl::StrCat(options.output, " exists already; give --force to replace it"));
  }
  SyntheticText source(options.seed);
  // Written beside and renamed, so that no partial text stands under the final name.
  const std::string temporary = absl::StrCat(options.output, ".tmp.", getpid());
  std::ofstream out(temporary, std::ios::binary | std::ios::trunc);
  int64_t written = 0;
  std::string piece;
  while (out && written < options.num_bytes) {
    piece.clear();
    source.Generate(std::min<int64_t>(options.num_bytes - written, 1 << 20), &piece);
    out.write(piece.data(), static_cast<std::streamsize>(piece.size()));
    written += static_cast<int64_t>(piece.size());
  }
  out.close();
  if (!out || std::rename(temporary.c_str(), options.output.c_str()) != 0) {
    const absl::Status status = absl::UnavailableError(absl::StrCat(
        "cannot write ", options.output, ": check that its folder exists, is writable and has free space"));
    std::remove(temporary.c_str());
    return status;
  }
  absl::PrintF("%s: %s bytes of text from a Markov chain over %d words (seed %d)\n", options.output,
               Grouped(written), SyntheticText::kWords, options.seed);
  absl::PrintF("entropy %.4f bits per byte, the floor of every model; this text carries %.4f\n",
               source.entropy_bits_per_byte(), source.information_bits() / static_cast<double>(written));
  return absl::OkStatus();
}

void AddBuild(CLI::App& data, std::function<int()>* run) {
  const auto options = std::make_shared<BuildOptions>();
  CLI::App* const build =
      data.add_subcommand("build", "Turn text files into token files (.bin, .idx, .meta)");
  build->add_option("--input", options->spec.inputs, "Text files, in order")->required()->type_name("FILE");
  build->add_option("--output", options->spec.output, "Prefix of the files written; folders are made")
      ->required()
      ->type_name("PREFIX");
  build
      ->add_option("--format", options->format,
                   "txt: a file is a document; jsonl: a line is (default: by name)")
      ->check(CLI::IsMember({"txt", "jsonl"}))
      ->type_name("txt|jsonl");
  build->add_option("--text_field", options->spec.text_field, "jsonl: the field that holds the text")
      ->capture_default_str()
      ->type_name("NAME");
  build
      ->add_option("--document_separator", options->separator,
                   "txt: what stands between documents, with C escapes, e.g. '\\n\\n' or '\\f'")
      ->type_name("STRING");
  build->add_option("--tokenizer", options->tokenizer, "bytes: 256 bytes and an end of document")
      ->capture_default_str()
      ->type_name("NAME");
  build
      ->add_option("--validation_fraction", options->spec.validation_fraction,
                   "Write the last part of the text to PREFIX_valid and the rest to PREFIX_train")
      ->type_name("0..1");
  build->add_flag("--force", options->spec.overwrite, "Replace existing files");
  build->footer(
      "Each document is followed by the end-of-document token. Empty documents are skipped.\n"
      "Examples:\n"
      "  carousel data build --input novels.txt --output data/novels --validation_fraction 0.1\n"
      "  carousel data build --input a.jsonl b.jsonl --output data/web --text_field content\n"
      "  zcat web.jsonl.gz | carousel data build --input /dev/stdin --format jsonl --output data/web");
  RunWhenChosen(build, options, RunBuild, run);
}

void AddSynth(CLI::App& data, std::function<int()>* run) {
  const auto options = std::make_shared<SynthOptions>();
  CLI::App* const synth =
      data.add_subcommand("synth", "Write text of known entropy, to train on without a corpus");
  synth->add_option("--output", options->output, "The text file to write")->required()->type_name("FILE.txt");
  synth->add_option("--bytes", options->num_bytes, "Its size; the last word is completed")
      ->check(CLI::PositiveNumber)
      ->capture_default_str()
      ->type_name("N");
  synth->add_option("--seed", options->seed, "Which source and which text")
      ->capture_default_str()
      ->type_name("N");
  synth->add_flag("--force", options->overwrite, "Replace an existing file");
  synth->footer(
      "Prints the entropy of the source in bits per byte: the best that any model can reach.\n"
      "Example:\n"
      "  carousel data synth --output synthetic.txt --bytes 4000000");
  RunWhenChosen(synth, options, RunSynth, run);
}
}  // namespace

std::string Grouped(int64_t number) {
  std::string text = absl::StrCat(number);
  for (int64_t i = static_cast<int64_t>(text.size()) - 3; i > (number < 0 ? 1 : 0); i -= 3) {
    text.insert(static_cast<size_t>(i), ",");
  }
  return text;
}

CLI::App* AddDataCommand(CLI::App& app, std::function<int()>* run) {
  CLI::App* const data = app.add_subcommand("data", "Make and inspect token files");
  data->require_subcommand(1);
  data->footer(
      "Examples:\n"
      "  carousel data build --input novels.txt --output data/novels --validation_fraction 0.1\n"
      "  carousel data inspect data/novels_train --sample 3\n"
      "  carousel data task parity --output data/parity");
  AddBuild(*data, run);
  AddDataInspect(*data, run);
  AddSynth(*data, run);
  AddDataTask(*data, run);
  return data;
}
}  // namespace carousel
