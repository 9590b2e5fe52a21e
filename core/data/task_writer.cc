#include "core/data/task_writer.h"

#include <algorithm>
#include <map>
#include <memory>

#include "absl/strings/str_cat.h"
#include "core/base/int_math.h"
#include "core/base/status_macros.h"
#include "core/data/token_writer.h"

namespace carousel {
namespace {
constexpr int64_t kRowMultiple = 64;
constexpr int64_t kMaxRowTokens = int64_t{1} << 24;
constexpr int64_t kMaxProblems = int64_t{1} << 40;

absl::Status CheckFile(const TaskFileSpec& spec) {
  CAROUSEL_RETURN_IF_ERROR(CheckTask(spec.task));
  if (spec.num_problems < 1 || spec.num_problems > kMaxProblems) {
    return absl::InvalidArgumentError(
        absl::StrCat("a number of problems of ", spec.num_problems, " is not between 1 and ", kMaxProblems));
  }
  const int64_t longest = LongestProblem(spec.task);
  if (spec.row_tokens == 0 || (spec.row_tokens >= longest && spec.row_tokens <= kMaxRowTokens)) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("rows of ", spec.row_tokens, " tokens do not hold the longest problem of ",
                   NameOf(spec.task.kind), ", ", longest, " tokens, or are above ", kMaxRowTokens,
                   "; use for example ", RoundUp(longest, kRowMultiple)));
}

// Lays problems into rows and writes those that are full enough.
class RowPacker {
 public:
  RowPacker(int64_t row_tokens, TokenFileWriter& writer) : row_tokens_(row_tokens), writer_(writer) {}

  // REQUIRES: the problem is not longer than a row.
  absl::Status Add(TaskProblem problem) {
    const int64_t tokens = static_cast<int64_t>(problem.ids.size());
    // The open row that it fills best.
    Row* best = nullptr;
    for (Row& row : open_) {
      if (row.left >= tokens && (best == nullptr || row.left < best->left)) best = &row;
    }
    if (best == nullptr) {
      if (open_.size() == kOpenRows) {
        const auto fullest = std::min_element(open_.begin(), open_.end(),
                                              [](const Row& a, const Row& b) { return a.left < b.left; });
        CAROUSEL_RETURN_IF_ERROR(Write(*fullest));
        open_.erase(fullest);
      }
      open_.push_back({.left = row_tokens_});
      best = &open_.back();
    }
    best->left -= tokens;
    best->problems.push_back(std::move(problem));
    return absl::OkStatus();
  }
  absl::Status Finish() {
    for (const Row& row : open_) CAROUSEL_RETURN_IF_ERROR(Write(row));
    open_.clear();
    return absl::OkStatus();
  }
  int64_t num_rows() const { return num_rows_; }
  int64_t filled_tokens() const { return filled_tokens_; }

 private:
  static constexpr size_t kOpenRows = 32;
  struct Row {
    int64_t left = 0;
    std::vector<TaskProblem> problems = {};
  };
  absl::Status Write(const Row& row) {
    ++num_rows_;
    filled_tokens_ += row.left;
    for (size_t i = 0; i < row.problems.size(); ++i) {
      const TaskProblem& problem = row.problems[i];
      CAROUSEL_RETURN_IF_ERROR(writer_.AppendLabelled(problem.ids, problem.labels));
      if (i + 1 < row.problems.size()) writer_.CloseDocument();
    }
    const std::vector<int32_t> ids(static_cast<size_t>(row.left), kTaskBegin);
    const std::vector<uint16_t> labels(static_cast<size_t>(row.left), 0);
    CAROUSEL_RETURN_IF_ERROR(writer_.AppendLabelled(ids, labels));
    writer_.CloseDocument();
    return absl::OkStatus();
  }

  const int64_t row_tokens_;
  TokenFileWriter& writer_;
  std::vector<Row> open_;
  int64_t num_rows_ = 0, filled_tokens_ = 0;
};

absl::StatusOr<TaskFileResult> WriteProblems(const TaskFileSpec& spec, TokenFileWriter& writer) {
  TaskFileResult result;
  result.row_tokens =
      spec.row_tokens > 0 ? spec.row_tokens : RoundUp(LongestProblem(spec.task), kRowMultiple);
  std::map<int32_t, int64_t> answers;  // how often each was right
  RowPacker rows(result.row_tokens, writer);
  for (int64_t i = 0; i < spec.num_problems; ++i) {
    TaskProblem problem = MakeProblem(spec.task, spec.seed, spec.split, i);
    for (size_t t = 0; t < problem.ids.size(); ++t) {
      if (problem.labels[t] == 0) continue;
      ++answers[problem.ids[t]];
      ++result.num_answers;
    }
    CAROUSEL_RETURN_IF_ERROR(rows.Add(std::move(problem)));
  }
  CAROUSEL_RETURN_IF_ERROR(rows.Finish());
  const int32_t last_id = kTaskBegin;
  const uint16_t last_label = 0;
  CAROUSEL_RETURN_IF_ERROR(writer.AppendLabelled(std::span(&last_id, 1), std::span(&last_label, 1)));
  writer.CloseDocument();

  int64_t most_frequent = 0;
  for (const auto& [id, count] : answers) most_frequent = std::max(most_frequent, count);
  result.chance = static_cast<double>(most_frequent) / static_cast<double>(result.num_answers);
  result.num_problems = spec.num_problems;
  result.num_rows = rows.num_rows();
  result.filled_tokens = rows.filled_tokens();
  result.num_tokens = writer.num_tokens();
  return result;
}
}  // namespace

absl::StatusOr<std::vector<TaskFileResult>> WriteTaskFiles(const std::vector<TaskFileSpec>& files,
                                                           bool overwrite) {
  for (const TaskFileSpec& spec : files) CAROUSEL_RETURN_IF_ERROR(CheckFile(spec));
  // All are begun before the first is written, and finished only when all are written.
  std::vector<std::unique_ptr<TokenFileWriter>> writers;
  for (const TaskFileSpec& spec : files) {
    CAROUSEL_ASSIGN_OR_RETURN(
        std::unique_ptr<TokenFileWriter> writer,
        TokenFileWriter::Create(
            spec.prefix,
            {.tokenizer = kTaskTokenizer, .vocab_size = TaskVocabulary(spec.task), .eod_id = kTaskBegin},
            {.overwrite = overwrite, .labels = true}));
    writers.push_back(std::move(writer));
  }
  std::vector<TaskFileResult> results;
  for (size_t i = 0; i < files.size(); ++i) {
    CAROUSEL_ASSIGN_OR_RETURN(const TaskFileResult result, WriteProblems(files[i], *writers[i]));
    writers[i]->SetTask({.name = NameOf(files[i].task.kind),
                         .parameters = files[i].parameters,
                         .num_problems = result.num_problems,
                         .row_tokens = result.row_tokens,
                         .chance = result.chance});
    results.push_back(result);
  }
  for (const auto& writer : writers) CAROUSEL_RETURN_IF_ERROR(writer->Commit());
  return results;
}
}  // namespace carousel
