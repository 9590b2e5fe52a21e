// Dataset: the token files of a run, opened and checked.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/data/sampler.h"
#include "core/data/token_file.h"
#include "core/text/tokenizer.h"

namespace carousel {

struct DatasetSource {
  std::string path;  // PREFIX of .bin and .idx
  double weight = 1;
};

struct DatasetChecks {
  std::string tokenizer = {};  // Tokenizer::name() or kTaskTokenizer: a file of another tokenizer is refused
  int64_t vocab_size = 0;      // every id must be below
  bool scan_token_ids = true;  // read all ids now; false where another rank of the node does
  int num_threads = 1;         // for the scan
  // > 0: windows of so many inputs must hold whole rows of a task (TokenFile::CheckRows).
  int64_t sequence_length = 0;
  std::string sequence_length_field = "data.sequence_length";  // the setting that it comes from
};

// Owns the files. Immutable: may be read from several threads.
class Dataset {
 public:
  // All problems of all sources are reported at once. Sources that hold different tasks are refused.
  static absl::StatusOr<Dataset> Open(const std::vector<DatasetSource>& sources, const DatasetChecks& checks);

  int64_t num_sources() const { return static_cast<int64_t>(files_.size()); }
  const TokenFile& file(int64_t source) const { return *files_[static_cast<size_t>(source)]; }
  int64_t num_tokens() const;
  // Sidecar of the first source if the sources hold the symbols of a task: all have the same name, number of
  // ids and begin of a problem. Null for text.
  const TokenMeta* task_meta() const;
  // The entropy of the source that all tokens come from, nats per token; 0 if it is not known.
  double entropy_nats_per_token() const;
  // What Sampler::Create and SpreadWindows take.
  std::vector<SamplerSource> SamplerSources() const;
  // Equal if the sources are, in order: sizes, dtypes, sidecar checksums (labels included) and ids. Of the
  // ids it reads 64 blocks per source, spread evenly, so it is fast; it tells whether two nodes, or a run and
  // its resumption, have the same files.
  uint64_t Fingerprint() const;

 private:
  std::vector<std::unique_ptr<TokenFile>> files_;
  std::vector<double> weights_;
};

// InvalidArgument unless both hold text, or both the same task.
absl::Status CheckSameTask(const Dataset& a, const Dataset& b);
}  // namespace carousel
