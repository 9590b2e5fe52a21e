// Task files: rows, labels, what loaders make of them, and what is refused.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "core/data/loader.h"
#include "core/data/markov_text.h"
#include "core/data/task_writer.h"
#include "tests/data_testing.h"

namespace carousel {
namespace {

TaskFileSpec Parity(const std::string& prefix, int64_t num_problems = 200, int64_t row_tokens = 0) {
  return {.prefix = prefix,
          .task = {.kind = TaskKind::kParity, .min_length = 3, .max_length = 12},
          .seed = 5,
          .split = "train",
          .num_problems = num_problems,
          .row_tokens = row_tokens,
          .parameters = "--lengths 3:12"};
}

TaskFileResult Write(const TaskFileSpec& spec) {
  const auto results = WriteTaskFiles({spec}, /*overwrite=*/true);
  EXPECT_TRUE(results.ok()) << results.status();
  return results.ok() ? results->front() : TaskFileResult{};
}

std::vector<uint16_t> AllLabels(const TokenFile& file) {
  std::vector<uint16_t> labels(static_cast<size_t>(file.num_tokens()));
  file.labels()->Read(0, labels);
  return labels;
}

TEST(TaskFile, HoldsEveryProblemWholeInItsRow) {
  const TemporaryFolder folder;
  for (const int64_t row_tokens : {0, 14, 15, 40}) {
    const TaskFileSpec spec = Parity(folder / "p", 300, row_tokens);
    const TaskFileResult result = Write(spec);
    const auto file = MustOpen(spec.prefix);
    ASSERT_NE(file, nullptr);
    ASSERT_NE(file->task(), nullptr);
    const int64_t R = file->task()->row_tokens;
    EXPECT_EQ(R, row_tokens == 0 ? 64 : row_tokens);
    EXPECT_EQ(file->num_tokens(), R * result.num_rows + 1);
    EXPECT_EQ(file->num_documents(), 301);  // and the last begin
    const std::vector<int32_t> ids = AllTokens(*file);
    const std::vector<uint16_t> labels = AllLabels(*file);
    // Every problem once, whole, in any order.
    std::multiset<std::vector<int32_t>> expected, found;
    for (int64_t i = 0; i < 300; ++i) {
      expected.insert(MakeProblem(spec.task, spec.seed, spec.split, i).ids);
    }
    int64_t filled = 0;
    for (int64_t d = 0; d < 300; ++d) {
      const int64_t begin = file->DocumentBegin(d), end = begin + file->DocumentLength(d);
      const auto answer = std::find_if(labels.begin() + begin, labels.begin() + end,
                                       [](uint16_t label) { return label > 0; });
      const int64_t size = answer - labels.begin() - begin + 1;
      ASSERT_LE(begin + size, end);
      ASSERT_EQ(begin / R, (begin + size - 1) / R) << "document " << d << " is cut";
      EXPECT_EQ(*answer, size - 2);  // without the begin and the answer
      found.insert(std::vector<int32_t>(ids.begin() + begin, ids.begin() + begin + size));
      for (int64_t t = begin + size; t < end; ++t, ++filled) {
        ASSERT_EQ(ids[static_cast<size_t>(t)], kTaskBegin);
        ASSERT_EQ(labels[static_cast<size_t>(t)], 0);
      }
    }
    EXPECT_EQ(found, expected);
    EXPECT_EQ(result.filled_tokens, filled);
    EXPECT_EQ(result.num_answers, 300);
    EXPECT_EQ(ids.back(), kTaskBegin);
    // Windows of whole rows: the target after a row is no answer.
    for (int64_t t = 0; t < file->num_tokens(); t += R) EXPECT_EQ(labels[static_cast<size_t>(t)], 0);
    EXPECT_TRUE(file->VerifyChecksums().ok());
  }
}

TEST(TaskFile, KnowsWhatTheMostFrequentAnswerIsWorth) {
  const TemporaryFolder folder;
  const TaskFileSpec spec = Parity(folder / "p", 500);
  const double chance = Write(spec).chance;
  int64_t odd = 0;
  for (int64_t i = 0; i < 500; ++i) odd += MakeProblem(spec.task, 5, "train", i).ids.back() == 2;
  EXPECT_EQ(chance, static_cast<double>(std::max(odd, 500 - odd)) / 500);
  EXPECT_NEAR(chance, 0.5, 0.1);
  EXPECT_EQ(MustOpen(spec.prefix)->task()->chance, chance);
}

TEST(TaskFile, TheSidecarSurvivesWritingAndReading) {
  TokenMeta meta{.tokenizer = "task", .vocab_size = 3, .num_tokens = 129, .num_documents = 4};
  meta.task = {.name = "parity",
               .parameters = "--lengths 3:40",
               .num_problems = 3,
               .row_tokens = 64,
               .chance = 1.0 / 3,
               .entropy_nats_per_token = 0.1,
               .labels_crc32c = 0xdeadbeef};
  const auto parsed = ParseTokenMeta(FormatTokenMeta(meta), "x.meta");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->task, meta.task);
  meta.task->labels_crc32c.reset();
  EXPECT_EQ(ParseTokenMeta(FormatTokenMeta(meta), "x.meta")->task, meta.task);
  meta.tokenizer = "bytes";
  meta.task.reset();
  EXPECT_FALSE(ParseTokenMeta(FormatTokenMeta(meta), "x.meta")->task.has_value());
  EXPECT_EQ(FormatTokenMeta(meta).find("task"), std::string::npos);
}

TEST(TaskFile, ADamagedSidecarIsRefused) {
  const TemporaryFolder folder;
  const TaskFileSpec spec = Parity(folder / "p");
  Write(spec);
  const std::string good = ReadFile(folder / "p.meta");
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string text = good;
    const size_t at = text.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    WriteFile(folder / "p.meta", text.replace(at, from.size(), to));
    return TokenFile::Open(spec.prefix).status();
  };
  const auto bad = absl::StatusCode::kDataLoss;
  ExpectError(with("\"row_tokens\": 64", "\"row_tokens\": 63"), bad, {"row_tokens is 63", "whole rows"});
  ExpectError(with("\"row_tokens\": 64", "\"row_tokens\": 9223372036854775807"), bad, {"\"row_tokens\""});
  ExpectError(with("\"row_tokens\": 64", "\"row_tokens\": -1"), bad, {"\"row_tokens\""});
  ExpectError(with("\"version\": 2", "\"version\": 1"), bad, {"\"task\"", "absent in version 1"});
  ExpectError(with("\"version\": 2", "\"version\": 3"), absl::StatusCode::kUnimplemented, {"version 3"});
  ExpectError(with("\"name\": \"parity\"", "\"name\": 4"), bad, {"\"name\"", "a string"});
  ExpectError(with("\"chance\": ", "\"chance\": 7"), bad, {"\"chance\"", "from 0 to 1"});
  ExpectError(with("\"labels_crc32c\": \"", "\"labels_crc32c\": \"z"), bad, {"\"labels_crc32c\""});
  ExpectError(with("\"labels_crc32c\"", "\"x\""), bad, {"p.labels exists", "does not name it"});
}

TEST(TaskFile, LabelsMustBelongToTheTokens) {
  const TemporaryFolder folder;
  const TaskFileSpec spec = Parity(folder / "p");
  Write(spec);
  const std::string good = ReadFile(folder / "p.labels");
  const auto open = [&] { return TokenFile::Open(spec.prefix).status(); };
  const auto bad = absl::StatusCode::kDataLoss;
  for (const size_t size : {size_t{0}, good.size() - 1, good.size() - 2}) {
    WriteFile(folder / "p.labels", good.substr(0, size));
    ExpectError(open(), bad, {"p.labels holds", "expected 2 for each", "data task"});
  }
  WriteFile(folder / "p.labels", good + "xx");
  ExpectError(open(), bad, {"p.labels holds"});
  std::string first = good;
  first[128] = 3;  // the first token of the second row of 64
  WriteFile(folder / "p.labels", first);
  ExpectError(open(), bad, {"token 64, the first of a row of 64, has label 3"});
  std::string flipped = good;
  flipped[2] ^= 1;  // inside a row: only the checksum can tell
  WriteFile(folder / "p.labels", flipped);
  ASSERT_TRUE(open().ok());
  ExpectError(MustOpen(spec.prefix)->VerifyChecksums(), bad, {"p.labels has CRC-32C", "damaged"});
  std::filesystem::remove(folder / "p.labels");
  ExpectError(open(), bad, {"p.labels", "p.meta names it"});
  // A file of text does not inherit labels: writing it over the task removes them.
  WriteFile(folder / "p.labels", good);
  const ByteTokenizer bytes;
  auto writer = TokenFileWriter::Create(spec.prefix, bytes, {.overwrite = true});
  ASSERT_TRUE(writer.ok() && (*writer)->Append(std::vector<int32_t>{65}, 1).ok());
  ASSERT_TRUE((*writer)->EndDocument().ok() && (*writer)->Commit().ok());
  EXPECT_EQ(MustOpen(spec.prefix)->labels(), nullptr);
  EXPECT_FALSE(std::filesystem::exists(folder / "p.labels"));
}

TEST(TaskFile, WritesAllFilesOrNone) {
  const TemporaryFolder folder;
  Write(Parity(folder / "b"));
  const auto exists = WriteTaskFiles({Parity(folder / "a"), Parity(folder / "b")}, /*overwrite=*/false);
  ExpectError(exists.status(), absl::StatusCode::kAlreadyExists, {"b.bin", "--force"});
  EXPECT_EQ(folder.NumFiles(), 4);
  ExpectError(WriteTaskFiles({Parity(folder / "a", 10, 13)}, false).status(),
              absl::StatusCode::kInvalidArgument, {"rows of 13", "14 tokens", "for example 64"});
  ExpectError(WriteTaskFiles({Parity(folder / "a", 0)}, false).status(), absl::StatusCode::kInvalidArgument,
              {"problems of 0"});
  EXPECT_EQ(folder.NumFiles(), 4);
}

// What a training run does with a prefix.
absl::Status Open(const std::string& prefix, const DatasetChecks& checks) {
  return Dataset::Open({{prefix, 1}}, checks).status();
}

TEST(TaskFile, TextAndTasksAreToldApart) {
  const TemporaryFolder folder;
  Write(Parity(folder / "task"));
  WriteDocuments(folder / "text", {"some text"});
  const auto bad = absl::StatusCode::kInvalidArgument;
  ExpectError(Open(folder / "task", {.tokenizer = "bytes", .vocab_size = 320}), bad,
              {"holds the task parity, not text", "\"bytes\"", "data.tokenizer: TASK"});
  ExpectError(Open(folder / "task", {.tokenizer = "none", .vocab_size = 320}), bad, {"data.tokenizer: TASK"});
  ExpectError(Open(folder / "text", {.tokenizer = "task", .vocab_size = 320}), bad,
              {"the tokenizer \"bytes\" and holds no task"});
  std::filesystem::remove(folder / "text.meta");
  ExpectError(Open(folder / "text", {.tokenizer = "task", .vocab_size = 320}), bad,
              {"text.meta does not exist", "data task"});
  EXPECT_TRUE(Open(folder / "text", {.tokenizer = "bytes", .vocab_size = 320}).ok());
}

TEST(TaskFile, WindowsMustHoldWholeRowsOfOneTask) {
  const TemporaryFolder folder;
  Write(Parity(folder / "p"));
  DatasetChecks checks{.tokenizer = "task", .vocab_size = 3, .sequence_length = 128};
  EXPECT_TRUE(Open(folder / "p", checks).ok());
  checks.sequence_length = 100;
  checks.sequence_length_field = "eval.sequence_length";
  const auto bad = absl::StatusCode::kInvalidArgument;
  ExpectError(
      Open(folder / "p", checks), bad,
      {"rows of 64 tokens", "eval.sequence_length=100", "multiple of 64", "eval.sequence_length=128"});
  checks.sequence_length = 64;
  checks.vocab_size = 2;
  ExpectError(Open(folder / "p", checks), bad, {"the task parity with 3 ids", "use model.vocab_size=3"});
  checks.vocab_size = 64;
  TaskFileSpec other = Parity(folder / "even");
  other.task.kind = TaskKind::kEvenPairs;
  Write(other);
  ExpectError(Dataset::Open({{folder / "p", 1}, {folder / "even", 1}}, checks).status(), bad,
              {"the task parity", "even_pairs", "the same task"});
  const auto a = Dataset::Open({{folder / "p", 1}}, checks),
             b = Dataset::Open({{folder / "even", 1}}, checks);
  EXPECT_TRUE(CheckSameTask(*a, *a).ok());
  ExpectError(CheckSameTask(*a, *b), bad, {"the same task"});
  ASSERT_NE(a->task_meta(), nullptr);
  EXPECT_EQ(a->task_meta()->vocab_size, 3);
}

TEST(TaskFile, OnlyAnswersAreTargets) {
  const TemporaryFolder folder;
  const TaskFileSpec spec = Parity(folder / "p", 400, 40);
  Write(spec);
  for (const int64_t T : {40, 80}) {
    auto dataset =
        Dataset::Open({{spec.prefix, 1}}, {.tokenizer = "task", .vocab_size = 3, .sequence_length = T});
    ASSERT_TRUE(dataset.ok()) << dataset.status();
    const BatchShape shape{.B = 3, .T = T, .eod_id = kTaskBegin};
    auto source = EvaluationSource::Create(*dataset, shape, 1000000);
    ASSERT_TRUE(source.ok());
    Batch batch;
    std::map<int64_t, int64_t> of_length;
    int64_t answers = 0;
    for (int64_t i = 0; i < source->num_batches(); ++i) {
      source->Get(0, i, &batch);
      ASSERT_EQ(batch.lengths.size(), batch.targets.size());
      ASSERT_EQ(batch.resets.size(), batch.targets.size());
      for (size_t j = 0; j < batch.targets.size(); ++j) {
        EXPECT_EQ(batch.resets[j], i * 3 + static_cast<int64_t>(j) / T < source->num_windows() &&
                                       batch.inputs[j] == kTaskBegin);
        ASSERT_EQ(batch.targets[j] >= 0, batch.lengths[j] > 0);
        if (batch.targets[j] < 0) continue;
        ++answers;
        ++of_length[batch.lengths[j]];
        // The bits before it, back to the begin, give the answer.
        int32_t sum = 0;
        int64_t length = 0;
        for (size_t k = j; batch.inputs[k] != kTaskBegin; --k, ++length) sum += batch.inputs[k] - 1;
        EXPECT_EQ(length, batch.lengths[j]);
        EXPECT_EQ(batch.targets[j], 1 + sum % 2);
      }
    }
    EXPECT_EQ(T == 40 ? answers : 400, 400);  // all rows; with two at a time an odd one may be left out
    EXPECT_EQ(of_length.size(), 10u);
  }
}

TEST(TaskFile, LabelsAreAPartOfTheFingerprintAndOfTheDigest) {
  const TemporaryFolder folder;
  Write(Parity(folder / "p"));
  const DatasetChecks checks{.tokenizer = "task", .vocab_size = 3};
  const uint64_t before = Dataset::Open({{folder / "p", 1}}, checks)->Fingerprint();
  EXPECT_EQ(before, Dataset::Open({{folder / "p", 1}}, checks)->Fingerprint());
  std::string meta = ReadFile(folder / "p.meta");
  const size_t at = meta.find("labels_crc32c") + 17;
  meta[at] = meta[at] == '0' ? '1' : '0';
  WriteFile(folder / "p.meta", meta);
  EXPECT_NE(before, Dataset::Open({{folder / "p", 1}}, checks)->Fingerprint());

  Batch batch{
      .B = 1, .T = 3, .inputs = {1, 2, 1}, .targets = {-1, -1, 2}, .resets = {}, .lengths = {0, 0, 2}};
  const uint64_t digest = BatchDigest(batch, 0);
  Batch other_input = batch;
  other_input.inputs[1] = 1;  // where no target shows it
  EXPECT_NE(BatchDigest(other_input, 0), digest);
  Batch other_mask = batch;
  other_mask.targets[0] = 2;
  EXPECT_NE(BatchDigest(other_mask, 0), digest);
}

TEST(MarkovText, HasTheEntropyThatItSays) {
  const MarkovSpec spec{.num_letters = 5, .order = 2, .seed = 3};
  MarkovText source(spec, "train");
  double weights = 0, expected = 0;
  for (int k = 1; k <= 5; ++k) weights += 1.0 / (k * k);
  for (int k = 1; k <= 5; ++k) expected += std::log(weights * k * k) / (weights * k * k);
  EXPECT_NEAR(source.entropy_nats(), expected, 1e-9);
  // Counting what follows each context finds it again, and nothing better.
  std::string text;
  source.Generate(300000, &text);
  ASSERT_EQ(text.size(), 300000u);
  std::map<std::string, std::map<char, double>> counts;
  for (size_t i = 2; i < text.size(); ++i) ++counts[text.substr(i - 2, 2)][text[i]];
  EXPECT_EQ(counts.size(), 25u);
  double nats = 0;
  for (const auto& [context, row] : counts) {
    double total = 0;
    for (const auto& [letter, count] : row) total += count;
    for (const auto& [letter, count] : row) nats -= count * std::log(count / total);
  }
  EXPECT_NEAR(nats / 300000, expected, 0.01 * expected);
  EXPECT_NEAR(source.information_nats() / 300000, expected, 0.01 * expected);
  // The order matters: one letter of context tells clearly less.
  std::map<char, std::map<char, double>> shorter;
  for (size_t i = 1; i < text.size(); ++i) ++shorter[text[i - 1]][text[i]];
  double shorter_nats = 0;
  for (const auto& [context, row] : shorter) {
    double total = 0;
    for (const auto& [letter, count] : row) total += count;
    for (const auto& [letter, count] : row) shorter_nats -= count * std::log(count / total);
  }
  EXPECT_GT(shorter_nats / 300000, 1.1 * expected);
}

TEST(MarkovText, DependsOnSeedAndSplitAndNotOnThePieces) {
  const auto text = [](uint64_t seed, const std::string& split, const std::vector<int64_t>& pieces) {
    MarkovText source({.num_letters = 16, .order = 3, .seed = seed}, split);
    std::string result;
    for (const int64_t piece : pieces) source.Generate(piece, &result);
    return result;
  };
  const std::string whole = text(1, "train", {1000});
  EXPECT_EQ(text(1, "train", {1, 0, 600, 399}), whole);
  EXPECT_NE(text(2, "train", {1000}), whole);
  EXPECT_NE(text(1, "valid", {1000}), whole);
}

TEST(MarkovText, FilesAreBytesWithTheEntropyBeside) {
  const TemporaryFolder folder;
  const auto results =
      WriteMarkovFiles({{.prefix = folder / "m", .source = {}, .split = "train", .num_letters = 5000}},
                       /*overwrite=*/false);
  ASSERT_TRUE(results.ok()) << results.status();
  const auto file = MustOpen(folder / "m");
  EXPECT_EQ(file->num_tokens(), 5001);
  EXPECT_EQ(file->labels(), nullptr);
  EXPECT_FALSE(file->HoldsTaskSymbols());
  EXPECT_EQ(file->task()->name, "markov");
  EXPECT_EQ(file->task()->entropy_nats_per_token, MarkovText({}, "train").entropy_nats());
  const auto dataset = Dataset::Open({{folder / "m", 1}}, {.tokenizer = "bytes", .vocab_size = 258});
  ASSERT_TRUE(dataset.ok()) << dataset.status();
  EXPECT_EQ(dataset->entropy_nats_per_token(), file->task()->entropy_nats_per_token);
  WriteDocuments(folder / "text", {"text"});
  EXPECT_EQ(
      Dataset::Open({{folder / "m", 1}, {folder / "text", 1}}, {.tokenizer = "bytes", .vocab_size = 258})
          ->entropy_nats_per_token(),
      0);
}

TEST(MarkovText, RefusesWhatDoesNotExist) {
  const auto refuse = [](const MarkovSpec& spec, const std::vector<std::string>& parts) {
    ExpectError(MarkovText::Check(spec), absl::StatusCode::kInvalidArgument, parts);
  };
  refuse({.num_letters = 1}, {"1 letters", "between 2 and 26"});
  refuse({.num_letters = 27}, {"27 letters"});
  refuse({.num_letters = 16, .order = -1}, {"order of -1", "between 0 and 5"});
  refuse({.num_letters = 16, .order = 6}, {"order of 6", "between 0 and 5"});
  refuse({.num_letters = 2, .order = int64_t{1} << 62}, {"between 0 and 20"});
  EXPECT_TRUE(MarkovText::Check({.num_letters = 16, .order = 5}).ok());
  EXPECT_TRUE(MarkovText::Check({.num_letters = 2, .order = 0}).ok());
}
}  // namespace
}  // namespace carousel
