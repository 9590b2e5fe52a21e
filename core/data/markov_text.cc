#include "core/data/markov_text.h"

#include <algorithm>
#include <cmath>
#include <memory>

#include "absl/strings/str_cat.h"
#include "core/base/check.h"
#include "core/base/random.h"
#include "core/base/status_macros.h"
#include "core/data/permutation.h"
#include "core/data/token_writer.h"

namespace carousel {
namespace {
// Weight of letter k: kScale / (k + 1)^2, in integers so that every machine writes the same text.
constexpr uint64_t kScale = uint64_t{1} << 40;

uint64_t WeightOf(int64_t k) { return kScale / static_cast<uint64_t>((k + 1) * (k + 1)); }
}  // namespace

absl::Status MarkovText::Check(const MarkovSpec& spec) {
  if (spec.num_letters < 2 || spec.num_letters > kMaxLetters) {
    return absl::InvalidArgumentError(absl::StrCat("an alphabet of ", spec.num_letters,
                                                   " letters is not between 2 and ", kMaxLetters,
                                                   "; for example 16"));
  }
  int64_t contexts = 1, max_order = 0;
  for (; contexts <= kMaxContexts / spec.num_letters; ++max_order) contexts *= spec.num_letters;
  if (spec.order >= 0 && spec.order <= max_order) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("an order of ", spec.order, " with ", spec.num_letters,
                                                 " letters is not between 0 and ", max_order, ": at most ",
                                                 kMaxContexts, " contexts"));
}

MarkovText::MarkovText(const MarkovSpec& spec, const std::string& split)
    : spec_(spec), stream_(StreamOf("markov text " + split)) {
  CAROUSEL_CHECK(Check(spec).ok());
  for (int64_t i = 0; i < spec.order; ++i) num_contexts_ *= spec.num_letters;
  const uint64_t order_stream = StreamOf("markov successors");
  for (int64_t c = 0; c < num_contexts_; ++c) {
    const Permutation order(spec.num_letters,
                            RandomUint64(spec.seed, order_stream, static_cast<uint64_t>(c)));
    for (int64_t k = 0; k < spec.num_letters; ++k) successors_.push_back(static_cast<uint8_t>(order(k)));
  }
  uint64_t total = 0;
  for (int64_t k = 0; k < spec.num_letters; ++k) cumulative_.push_back(total += WeightOf(k));
  for (int64_t k = 0; k < spec.num_letters; ++k) {
    const double p = static_cast<double>(WeightOf(k)) / static_cast<double>(total);
    nats_.push_back(-std::log(p));
    entropy_nats_ += p * nats_.back();
  }
}

void MarkovText::Generate(int64_t num_letters, std::string* text) {
  CAROUSEL_CHECK_GE(num_letters, int64_t{0});
  const uint64_t total = cumulative_.back();
  for (int64_t i = 0; i < num_letters; ++i) {
    const uint64_t bits = RandomUint64(spec_.seed, stream_, static_cast<uint64_t>(num_generated_++));
    const uint64_t x = static_cast<uint64_t>(static_cast<unsigned __int128>(bits) * total >> 64);
    size_t k = 0;
    while (x >= cumulative_[k]) ++k;
    information_nats_ += nats_[k];
    const int64_t letter = successors_[static_cast<size_t>(context_ * spec_.num_letters) + k];
    context_ = (context_ * spec_.num_letters + letter) % num_contexts_;
    text->push_back(static_cast<char>('a' + letter));
  }
}

absl::StatusOr<std::vector<MarkovFileResult>> WriteMarkovFiles(const std::vector<MarkovFileSpec>& files,
                                                               bool overwrite) {
  constexpr int64_t kPieceLetters = 1 << 20;
  const ByteTokenizer tokenizer;
  std::vector<std::unique_ptr<TokenFileWriter>> writers;
  for (const MarkovFileSpec& spec : files) {
    CAROUSEL_RETURN_IF_ERROR(MarkovText::Check(spec.source));
    if (spec.num_letters < 1) {
      return absl::InvalidArgumentError(
          absl::StrCat("a text of ", spec.num_letters, " letters; use for example 1000000"));
    }
    CAROUSEL_ASSIGN_OR_RETURN(std::unique_ptr<TokenFileWriter> writer,
                              TokenFileWriter::Create(spec.prefix, tokenizer, {.overwrite = overwrite}));
    writers.push_back(std::move(writer));
  }
  std::vector<MarkovFileResult> results;
  for (size_t i = 0; i < files.size(); ++i) {
    const MarkovFileSpec& spec = files[i];
    TokenFileWriter& writer = *writers[i];
    MarkovText source(spec.source, spec.split);
    for (int64_t done = 0; done < spec.num_letters; done += kPieceLetters) {
      std::string text;
      std::vector<int32_t> ids;
      source.Generate(std::min(kPieceLetters, spec.num_letters - done), &text);
      tokenizer.Encode(text, &ids);
      CAROUSEL_RETURN_IF_ERROR(writer.Append(ids, static_cast<int64_t>(text.size())));
    }
    CAROUSEL_RETURN_IF_ERROR(writer.EndDocument());
    writer.SetTask(
        {.name = "markov", .parameters = spec.parameters, .entropy_nats_per_token = source.entropy_nats()});
    results.push_back(
        {.num_tokens = writer.num_tokens(),
         .entropy_nats = source.entropy_nats(),
         .information_nats = source.information_nats() / static_cast<double>(spec.num_letters)});
  }
  for (const auto& writer : writers) CAROUSEL_RETURN_IF_ERROR(writer->Commit());
  return results;
}
}  // namespace carousel
