// Damaged files at random, from fixed seeds: opening, checking and reading them either works or gives an
// error, and never touches memory outside the files (run it under -fsanitize=address,undefined).
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "core/data/dataset.h"
#include "core/data/loader.h"
#include "core/data/task_writer.h"
#include "core/data/token_file.h"
#include "tests/data_testing.h"

namespace carousel {
namespace {

// Everything a program does with a file that it opened.
void Use(const std::string& prefix) {
  const auto opened = TokenFile::Open(prefix);
  if (!opened.ok()) {
    EXPECT_FALSE(opened.status().message().empty());
    return;
  }
  const TokenFile& file = **opened;
  EXPECT_EQ(static_cast<int64_t>(AllTokens(file).size()), file.num_tokens());
  int64_t sum = 0;
  for (int64_t d = 0; d < file.num_documents(); ++d) {
    EXPECT_EQ(file.DocumentBegin(d), sum);
    sum += file.DocumentLength(d);
  }
  EXPECT_EQ(sum, file.num_tokens());
  file.CheckTokenIds(258, 2).IgnoreError();
  file.VerifyChecksums().IgnoreError();
  file.CheckTokenizer("bytes").IgnoreError();
  file.CheckTokenizer("task").IgnoreError();
  file.CheckRows(64, "data.sequence_length").IgnoreError();
  if (file.labels() != nullptr) {
    std::vector<uint16_t> labels(static_cast<size_t>(file.num_tokens()));
    file.labels()->Read(0, labels);
  }
  // What a run takes: masked batches of every window.
  const auto dataset =
      Dataset::Open({{prefix, 1}}, {.tokenizer = "task", .vocab_size = 3, .sequence_length = 32});
  if (!dataset.ok()) return;
  auto source = EvaluationSource::Create(*dataset, {.B = 2, .T = 32, .eod_id = kTaskBegin}, 1000);
  if (!source.ok()) return;
  Batch batch;
  for (int64_t i = 0; i < source->num_batches(); ++i) source->Get(0, i, &batch);
}

class TokenFileFuzz : public testing::Test {
 protected:
  void SetUp() override {
    std::vector<std::string> documents;
    for (uint32_t d = 0; d < 20; ++d) documents.push_back(RandomBytes(d * 7 % 31, d));
    WriteDocuments(prefix_, documents);
    for (const char* suffix : {".idx", ".bin", ".meta"}) originals_.push_back(ReadFile(prefix_ + suffix));
  }
  void Write(size_t which, const std::string& bytes) {
    constexpr const char* kSuffixes[] = {".idx", ".bin", ".meta"};
    WriteFile(prefix_ + kSuffixes[which], bytes);
  }
  const TemporaryFolder folder_;
  const std::string prefix_ = folder_ / "a";
  std::vector<std::string> originals_;  // .idx, .bin, .meta
};

// A file of a task, with its labels.
class TaskFileFuzz : public testing::Test {
 protected:
  static constexpr const char* kSuffixes[] = {".idx", ".bin", ".meta", ".labels"};
  void SetUp() override {
    const auto results = WriteTaskFiles({{.prefix = prefix_,
                                          .task = {.min_length = 3, .max_length = 12},
                                          .split = "train",
                                          .num_problems = 30,
                                          .row_tokens = 16}},
                                        /*overwrite=*/false);
    ASSERT_TRUE(results.ok()) << results.status();
    for (const char* suffix : kSuffixes) originals_.push_back(ReadFile(prefix_ + suffix));
  }
  const TemporaryFolder folder_;
  const std::string prefix_ = folder_ / "t";
  std::vector<std::string> originals_;
};

TEST_F(TaskFileFuzz, SurvivesFlippedBitsAnywhere) {
  std::mt19937 engine(4);
  for (int trial = 0; trial < 6000; ++trial) {
    // Mostly the sidecar, which says how the others are read.
    const size_t which = trial % 8 < 2 ? 0 : trial % 8 == 2 ? 1 : trial % 8 == 3 ? 3 : 2;
    std::string bytes = originals_[which];
    const int num_flips = 1 + static_cast<int>(engine() % 3);
    for (int i = 0; i < num_flips; ++i)
      bytes[engine() % bytes.size()] ^= static_cast<char>(1 << (engine() % 8));
    WriteFile(prefix_ + kSuffixes[which], bytes);
    Use(prefix_);
    WriteFile(prefix_ + kSuffixes[which], originals_[which]);
  }
  EXPECT_NE(MustOpen(prefix_), nullptr);
}

TEST_F(TaskFileFuzz, SurvivesOtherNumbersInTheSidecar) {
  const std::string& meta = originals_[2];
  for (const char* number : {"0",
                             "1",
                             "15",
                             "17",
                             "65536",
                             "1073741824",
                             "1073741825",
                             "9223372036854775807",
                             "18446744073709551615",
                             "18446744073709551616",
                             "-1",
                             "1e308",
                             "1e999",
                             "0.5",
                             "null",
                             "[]",
                             "{}",
                             "\"\"",
                             "\"00000000\"",
                             "true"}) {
    // Every value in its turn.
    for (size_t colon = meta.find(": "); colon != std::string::npos; colon = meta.find(": ", colon + 2)) {
      const size_t end = meta.find_first_of(",\n", colon);
      WriteFile(prefix_ + ".meta", meta.substr(0, colon + 2) + number + meta.substr(end));
      Use(prefix_);
    }
  }
  WriteFile(prefix_ + ".meta", meta);
  EXPECT_NE(MustOpen(prefix_), nullptr);
}

TEST_F(TaskFileFuzz, SurvivesCutsOfEveryFile) {
  for (size_t which = 0; which < 4; ++which) {
    for (size_t size = 0; size <= originals_[which].size(); ++size) {
      WriteFile(prefix_ + kSuffixes[which], originals_[which].substr(0, size));
      Use(prefix_);
    }
    WriteFile(prefix_ + kSuffixes[which], originals_[which]);
  }
  EXPECT_NE(MustOpen(prefix_), nullptr);
}

TEST_F(TokenFileFuzz, SurvivesFlippedBitsAnywhere) {
  std::mt19937 engine(1);
  for (int trial = 0; trial < 6000; ++trial) {
    // Mostly the index, where the structure is.
    const size_t which = trial % 8 == 0 ? 1 : trial % 8 == 1 ? 2 : 0;
    std::string bytes = originals_[which];
    const int num_flips = 1 + static_cast<int>(engine() % 4);
    for (int i = 0; i < num_flips; ++i) {
      // Half of them in the first 64 bytes: header, counts, lengths.
      const size_t range = engine() % 2 ? bytes.size() : std::min<size_t>(bytes.size(), 64);
      bytes[engine() % range] ^= static_cast<char>(1 << (engine() % 8));
    }
    Write(which, bytes);
    Use(prefix_);
    Write(which, originals_[which]);
  }
  EXPECT_NE(MustOpen(prefix_), nullptr);
}

TEST_F(TokenFileFuzz, SurvivesHostileNumbersInEveryField) {
  const std::string& idx = originals_[0];
  for (const uint64_t number : {uint64_t{0}, uint64_t{1}, uint64_t{0x7FFFFFFF}, uint64_t{0x80000000},
                                uint64_t{1} << 59, uint64_t{1} << 60, uint64_t{1} << 61, uint64_t{1} << 62,
                                uint64_t{1} << 63, ~uint64_t{0}, ~uint64_t{0} - 7, uint64_t{0} - 34}) {
    for (size_t offset = 9; offset + 8 <= idx.size(); ++offset) {
      std::string bytes = idx;
      std::memcpy(bytes.data() + offset, &number, 8);
      Write(0, bytes);
      Use(prefix_);
    }
  }
}

TEST_F(TokenFileFuzz, SurvivesCutsOfEveryFile) {
  for (size_t which = 0; which < 3; ++which) {
    for (size_t size = 0; size <= originals_[which].size(); ++size) {
      Write(which, originals_[which].substr(0, size));
      Use(prefix_);
    }
    Write(which, originals_[which]);
  }
}

TEST_F(TokenFileFuzz, SurvivesNoise) {
  std::mt19937 engine(2);
  for (int trial = 0; trial < 2000; ++trial) {
    std::string bytes = RandomBytes(engine() % 400, static_cast<uint32_t>(trial));
    // With a right header half of the time, or nothing would get past it.
    if (trial % 2 == 0) bytes = originals_[0].substr(0, 18) + bytes;
    Write(0, bytes);
    Use(prefix_);
    Write(0, originals_[0]);
    Write(2, trial % 2 == 0 ? bytes : "{" + bytes + "}");
    Use(prefix_);
    Write(2, originals_[2]);
  }
}
}  // namespace
}  // namespace carousel
