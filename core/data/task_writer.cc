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

absl::StatusOr<TaskFileResult> WriteProblems(const TaskFileSpec& spec, TokenFileWriter& writer) {
  TaskFileResult result;
  result.row_tokens =
      spec.row_tokens > 0 ? spec.row_tokens : RoundUp(LongestProblem(spec.task), kRowMultiple);
  std::map<int32_t, int64_t> answers;  // how often each was right
  int64_t left = 0;                    // of the row
  // Fills the row and closes the last problem's document, if there is one.
  const auto finish_row = [&]() -> absl::Status {
    result.filled_tokens += left;
    const std::vector<int32_t> ids(static_cast<size_t>(left), kTaskBegin);
    const std::vector<uint16_t> labels(static_cast<size_t>(left), 0);
    left = 0;
    return writer.AppendLabelled(ids, labels);
  };
  for (int64_t i = 0; i < spec.num_problems; ++i) {
    const TaskProblem problem = MakeProblem(spec.task, spec.seed, spec.split, i);
    const int64_t tokens = static_cast<int64_t>(problem.ids.size());
    if (tokens > left) {
      if (i > 0) CAROUSEL_RETURN_IF_ERROR(finish_row());
      left = result.row_tokens;
      ++result.num_rows;
    }
    if (i > 0) writer.CloseDocument();
    CAROUSEL_RETURN_IF_ERROR(writer.AppendLabelled(problem.ids, problem.labels));
    left -= tokens;
    for (size_t t = 0; t < problem.ids.size(); ++t) {
      if (problem.labels[t] == 0) continue;
      ++answers[problem.ids[t]];
      ++result.num_answers;
    }
  }
  CAROUSEL_RETURN_IF_ERROR(finish_row());
  writer.CloseDocument();
  const int32_t last_id = kTaskBegin;
  const uint16_t last_label = 0;
  CAROUSEL_RETURN_IF_ERROR(writer.AppendLabelled(std::span(&last_id, 1), std::span(&last_label, 1)));
  writer.CloseDocument();

  int64_t most_frequent = 0;
  for (const auto& [id, count] : answers) most_frequent = std::max(most_frequent, count);
  result.chance = static_cast<double>(most_frequent) / static_cast<double>(result.num_answers);
  result.num_problems = spec.num_problems;
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
