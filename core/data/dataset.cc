#include "core/data/dataset.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/base/random.h"
#include "core/data/crc32c.h"

namespace carousel {
namespace {

// The ids of a task are few and known: say at once how many the model needs.
absl::Status CheckVocabulary(const TokenFile& file, int64_t vocab_size) {
  if (!file.HoldsTaskSymbols() || file.meta()->vocab_size <= vocab_size) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      file.prefix(), " holds the task ", file.task()->name, " with ", file.meta()->vocab_size,
      " ids, more than model.vocab_size=", vocab_size, "; use model.vocab_size=", file.meta()->vocab_size));
}

// The same symbols must mean the same everywhere.
absl::Status CheckSameTask(const TokenFile& first, const TokenFile& file) {
  if (!first.HoldsTaskSymbols() && !file.HoldsTaskSymbols()) return absl::OkStatus();
  if (!first.HoldsTaskSymbols() || !file.HoldsTaskSymbols()) {
    return absl::InvalidArgumentError(
        absl::StrCat(first.prefix(), " and ", file.prefix(), ": one holds a task, the other one does not"));
  }
  const TokenMeta &a = *first.meta(), &b = *file.meta();
  if (a.task->name == b.task->name && a.vocab_size == b.vocab_size && a.eod_id == b.eod_id) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(
      first.prefix(), " holds the task ", a.task->name, " with ", a.vocab_size, " ids, ", file.prefix(),
      " holds ", b.task->name, " with ", b.vocab_size, "; all data of a run must hold the same task"));
}
}  // namespace

absl::StatusOr<Dataset> Dataset::Open(const std::vector<DatasetSource>& sources,
                                      const DatasetChecks& checks) {
  Dataset dataset;
  std::vector<std::string> problems;
  absl::StatusCode code = absl::StatusCode::kOk;
  for (const DatasetSource& source : sources) {
    absl::StatusOr<std::unique_ptr<TokenFile>> file = TokenFile::Open(source.path);
    absl::Status status = file.status();
    if (status.ok()) status = (*file)->CheckTokenizer(checks.tokenizer);
    if (status.ok() && checks.sequence_length > 0) {
      status = (*file)->CheckRows(checks.sequence_length, checks.sequence_length_field);
    }
    if (status.ok()) status = CheckVocabulary(**file, checks.vocab_size);
    if (status.ok() && checks.scan_token_ids) {
      status = (*file)->CheckTokenIds(checks.vocab_size, checks.num_threads);
    }
    if (!status.ok()) {
      problems.emplace_back(status.message());
      if (code == absl::StatusCode::kOk) code = status.code();
      continue;
    }
    dataset.files_.push_back(std::move(file).value());
    dataset.weights_.push_back(source.weight);
  }
  if (!problems.empty()) return absl::Status(code, absl::StrJoin(problems, "\n"));
  for (const auto& file : dataset.files_) {
    if (absl::Status status = CheckSameTask(*dataset.files_.front(), *file); !status.ok()) return status;
  }
  return dataset;
}

const TokenMeta* Dataset::task_meta() const {
  return files_.empty() || !files_.front()->HoldsTaskSymbols() ? nullptr : &*files_.front()->meta();
}

double Dataset::entropy_nats_per_token() const {
  double entropy = 0;
  for (const auto& file : files_) {
    const double of_file = file->task() != nullptr ? file->task()->entropy_nats_per_token : 0;
    if (of_file == 0 || (entropy != 0 && entropy != of_file)) return 0;
    entropy = of_file;
  }
  return entropy;
}

int64_t Dataset::num_tokens() const {
  int64_t sum = 0;
  for (const auto& file : files_) sum += file->num_tokens();
  return sum;
}

std::vector<SamplerSource> Dataset::SamplerSources() const {
  std::vector<SamplerSource> sources;
  for (size_t i = 0; i < files_.size(); ++i) {
    sources.push_back(
        {.name = files_[i]->prefix(), .num_tokens = files_[i]->num_tokens(), .weight = weights_[i]});
  }
  return sources;
}

absl::Status CheckSameTask(const Dataset& a, const Dataset& b) {
  if (a.num_sources() == 0 || b.num_sources() == 0) return absl::OkStatus();
  return CheckSameTask(a.file(0), b.file(0));
}

uint64_t Dataset::Fingerprint() const {
  constexpr int64_t kBlocks = 64, kBlockTokens = 1024;
  uint64_t hash = 0;
  const auto mix = [&hash](uint64_t value) { hash = RandomUint64(hash, StreamOf("fingerprint"), value); };
  for (const auto& file : files_) {
    mix(static_cast<uint64_t>(file->dtype()));
    mix(static_cast<uint64_t>(file->num_tokens()));
    mix(static_cast<uint64_t>(file->num_documents()));
    if (file->meta().has_value()) mix(uint64_t{file->meta()->bin_crc32c} << 32 | file->meta()->idx_crc32c);
    if (file->labels() != nullptr) mix(*file->task()->labels_crc32c);
    const int64_t length = std::min(kBlockTokens, file->num_tokens());
    std::vector<int32_t> ids(static_cast<size_t>(length));
    for (int64_t b = 0; b < kBlocks; ++b) {
      const double fraction = static_cast<double>(b) / (kBlocks - 1);
      file->Read(static_cast<int64_t>(fraction * static_cast<double>(file->num_tokens() - length)), ids);
      mix(ExtendCrc32c(0, ids.data(), length * 4));
    }
  }
  return hash;
}
}  // namespace carousel
