// Problems of a task into token files: what `carousel data task` does.
//
// Problems are laid into rows of `row_tokens` tokens, each into the row that it fills best of a few that are
// open; what stays empty is filled with kTaskBegin. Windows that hold whole rows (see TokenFile::CheckRows)
// so never cut a problem. A last kTaskBegin stands behind the last row, because a window is one token longer
// than its inputs. Each problem is a document that begins with kTaskBegin; what fills a row belongs to the
// problem before.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/data/task.h"

namespace carousel {

struct TaskFileSpec {
  std::string prefix;  // of .bin, .idx, .meta and .labels
  TaskSpec task;
  uint64_t seed = 0;
  std::string split;  // "train", "valid": other problems under the same seed
  int64_t num_problems = 0;
  int64_t row_tokens = 0;       // 0: the longest problem rounded up to a multiple of 64
  std::string parameters = {};  // TaskMeta::parameters
};

struct TaskFileResult {
  int64_t num_tokens = 0, num_problems = 0, num_answers = 0;
  int64_t row_tokens = 0, num_rows = 0;
  int64_t filled_tokens = 0;  // that only fill rows
  double chance = 0;          // share of the most frequent answer
};

// Every file is written in full under another name before the first one takes its place; an error up to then
// leaves nothing behind. InvalidArgument if a task is not one (CheckTask), there is no problem, or a
// row is shorter than the longest problem.
absl::StatusOr<std::vector<TaskFileResult>> WriteTaskFiles(const std::vector<TaskFileSpec>& files,
                                                           bool overwrite);
}  // namespace carousel
