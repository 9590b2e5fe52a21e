// `carousel data inspect`: a look into token files.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <thread>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_format.h"
#include "core/base/random.h"
#include "core/base/status_macros.h"
#include "core/data/token_file.h"
#include "core/text/tokenizer.h"
#include "launcher/data/data_command.h"

namespace carousel {
namespace {

int HardwareThreads() { return std::max(1, static_cast<int>(std::thread::hardware_concurrency())); }

struct InspectOptions {
  std::string prefix, tokenizer;
  int64_t num_samples = 0, sample_tokens = 200, vocab_size = 0;
  uint64_t seed = 0;
  bool verify = false;
};

// Documents by length in powers of two, with a bar.
void PrintHistogram(const TokenFile& file) {
  std::vector<int64_t> counts;
  for (int64_t d = 0; d < file.num_documents(); ++d) {
    size_t bucket = 0;  // lengths in [2^(bucket-1), 2^bucket)
    for (int64_t length = file.DocumentLength(d); length > 0; length /= 2) ++bucket;
    if (counts.size() <= bucket) counts.resize(bucket + 1);
    ++counts[bucket];
  }
  if (counts.empty()) return;
  const int64_t most = *std::max_element(counts.begin(), counts.end());
  const auto first = std::find_if(counts.begin(), counts.end(), [](int64_t n) { return n > 0; });
  absl::PrintF("document lengths (tokens):\n");
  for (size_t b = static_cast<size_t>(first - counts.begin()); b < counts.size(); ++b) {
    const int64_t low = b == 0 ? 0 : int64_t{1} << (b - 1), high = b == 0 ? 0 : (int64_t{1} << b) - 1;
    const double share = static_cast<double>(counts[b]) / static_cast<double>(most);
    absl::PrintF("  %15s - %-15s %12s  %s\n", Grouped(low), Grouped(high), Grouped(counts[b]),
                 std::string(static_cast<size_t>(40 * share + (counts[b] > 0 ? 0.999 : 0)), '#'));
  }
}

// The ids, answers in brackets.
void PrintIds(const TokenFile& file, int64_t begin, const std::vector<int32_t>& ids) {
  std::vector<uint16_t> labels(ids.size(), 0);
  if (file.labels() != nullptr) file.labels()->Read(begin, labels);
  for (size_t i = 0; i < ids.size(); ++i) absl::PrintF(labels[i] > 0 ? "[%d] " : "%d ", ids[i]);
  absl::PrintF("\n");
}

void PrintSamples(const TokenFile& file, const InspectOptions& options, const Tokenizer* tokenizer) {
  for (int64_t i = 0; i < options.num_samples && file.num_documents() > 0; ++i) {
    const uint64_t r = RandomUint64(options.seed, StreamOf("inspect"), static_cast<uint64_t>(i));
    const int64_t d = static_cast<int64_t>(r % static_cast<uint64_t>(file.num_documents()));
    const int64_t length = std::min(file.DocumentLength(d), options.sample_tokens);
    std::vector<int32_t> ids(static_cast<size_t>(length));
    file.Read(file.DocumentBegin(d), ids);
    absl::PrintF("document %d, %s tokens, first %d:\n  ", d, Grouped(file.DocumentLength(d)), length);
    if (tokenizer != nullptr) {
      absl::PrintF("\"%s\"\n", absl::Utf8SafeCEscape(tokenizer->Decode(ids)));
    } else {
      PrintIds(file, file.DocumentBegin(d), ids);
    }
  }
}

void PrintTask(const TaskMeta& task) {
  absl::PrintF("  task       %s %s\n", task.name, task.parameters);
  if (task.num_problems > 0) {
    absl::PrintF("  problems   %s in rows of %s tokens; always the most frequent answer: %.4f right\n",
                 Grouped(task.num_problems), Grouped(task.row_tokens), task.chance);
  }
  if (task.entropy_nats_per_token > 0) {
    absl::PrintF("  entropy    %.6f nats per token, the least mean loss of any model over many texts\n",
                 task.entropy_nats_per_token);
  }
}

absl::Status RunInspect(const InspectOptions& options) {
  CAROUSEL_ASSIGN_OR_RETURN(const std::unique_ptr<TokenFile> file, TokenFile::Open(options.prefix));
  std::unique_ptr<Tokenizer> tokenizer;
  const std::string name = !options.tokenizer.empty() ? options.tokenizer
                           : file->meta().has_value() ? file->meta()->tokenizer
                                                      : "";
  // The symbols of a task have no text.
  if (!name.empty() && name != kTaskTokenizer) {
    CAROUSEL_ASSIGN_OR_RETURN(tokenizer, MakeTokenizer(name));
    CAROUSEL_RETURN_IF_ERROR(file->CheckTokenizer(name));
  }
  absl::PrintF("%s.bin, .idx: Megatron indexed dataset, version 1\n", options.prefix);
  absl::PrintF("  tokens     %s (%s, %s bytes)\n", Grouped(file->num_tokens()), NameOf(file->dtype()),
               Grouped(file->num_tokens() * BytesPerToken(file->dtype())));
  absl::PrintF("  documents  %s (%s sequence%s)\n", Grouped(file->num_documents()),
               Grouped(file->num_sequences()), file->num_sequences() == 1 ? "" : "s");
  if (file->meta().has_value()) {
    const TokenMeta& meta = *file->meta();
    absl::PrintF("  tokenizer  %s: %d ids, %s of document %d\n", meta.tokenizer, meta.vocab_size,
                 file->HoldsTaskSymbols() ? "begin" : "end", meta.eod_id);
    if (meta.task.has_value()) PrintTask(*meta.task);
    if (!file->HoldsTaskSymbols()) absl::PrintF("  text       %s bytes\n", Grouped(meta.text_bytes));
    absl::PrintF("  CRC-32C    %08x (.bin), %08x (.idx)", meta.bin_crc32c, meta.idx_crc32c);
    if (file->labels() != nullptr) absl::PrintF(", %08x (.labels)", *meta.task->labels_crc32c);
    absl::PrintF("\n");
  } else {
    absl::PrintF("  tokenizer  unknown: there is no %s.meta\n", options.prefix);
  }
  PrintHistogram(*file);
  PrintSamples(*file, options, tokenizer.get());
  std::fflush(stdout);

  const int64_t vocab_size = options.vocab_size > 0     ? options.vocab_size
                             : file->meta().has_value() ? file->meta()->vocab_size
                                                        : 0;
  if (vocab_size > 0) {
    CAROUSEL_RETURN_IF_ERROR(file->CheckTokenIds(vocab_size, HardwareThreads()));
    absl::PrintF("every token id is below %d\n", vocab_size);
  }
  if (options.verify) {
    CAROUSEL_RETURN_IF_ERROR(file->VerifyChecksums());
    absl::PrintF("the checksums of %s are right\n",
                 file->labels() != nullptr ? ".bin, .idx and .labels" : ".bin and .idx");
  }
  return absl::OkStatus();
}

}  // namespace

void AddDataInspect(CLI::App& data, std::function<int()>* run) {
  const auto options = std::make_shared<InspectOptions>();
  CLI::App* const inspect = data.add_subcommand("inspect", "Describe and check token files");
  inspect->add_option("prefix", options->prefix, "Prefix of .bin and .idx")->required()->type_name("PREFIX");
  inspect->add_option("--sample", options->num_samples, "Show the beginning of so many random documents")
      ->check(CLI::NonNegativeNumber)
      ->type_name("N");
  inspect->add_option("--sample_tokens", options->sample_tokens, "Tokens of each sample")
      ->check(CLI::PositiveNumber)
      ->capture_default_str()
      ->type_name("N");
  inspect->add_option("--seed", options->seed, "Which documents")->capture_default_str()->type_name("N");
  inspect
      ->add_option("--tokenizer", options->tokenizer,
                   "Tokenizer to decode with (default: as PREFIX.meta says)")
      ->type_name("NAME");
  inspect
      ->add_option("--vocab_size", options->vocab_size, "Check that every id is below (default: PREFIX.meta)")
      ->check(CLI::PositiveNumber)
      ->type_name("V");
  inspect->add_flag("--verify", options->verify, "Compare the files with the checksums in PREFIX.meta");
  inspect->footer(
      "Exit code 1 if anything is wrong with the files.\n"
      "Examples:\n"
      "  carousel data inspect data/novels_train --sample 3\n"
      "  carousel data inspect data/novels_train --verify\n"
      "  carousel data inspect megatron_text_document --vocab_size 50304");
  RunWhenChosen(inspect, options, RunInspect, run);
}
}  // namespace carousel
