#include "core/data/task.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/base/check.h"
#include "core/data/label_file.h"
#include "core/data/task_ids.h"

namespace carousel {
namespace {

absl::Status CheckRange(const char* what, int64_t value, int64_t min, int64_t max, int64_t example) {
  if (value >= min && value <= max) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(what, " ", value, " is not between ", min, " and ", max,
                                                 "; for example ", std::clamp(example, min, max)));
}

absl::Status CheckLengths(const TaskSpec& task, int64_t min) {
  if (task.min_length > task.max_length) {
    return absl::InvalidArgumentError(absl::StrCat("the shortest length ", task.min_length,
                                                   " is above the longest ", task.max_length,
                                                   "; write lengths as SHORTEST:LONGEST, for example 3:40"));
  }
  if (task.min_length < min || task.max_length > kMaxLabel) {
    return absl::InvalidArgumentError(absl::StrCat("lengths ", task.min_length, " to ", task.max_length,
                                                   " are not between ", min, " and ", kMaxLabel,
                                                   "; for example 3:40"));
  }
  return absl::OkStatus();
}
}  // namespace

const char* NameOf(TaskKind kind) {
  switch (kind) {
    case TaskKind::kParity:
      return "parity";
    case TaskKind::kEvenPairs:
      return "even_pairs";
    case TaskKind::kCycleNavigation:
      return "cycle_navigation";
    case TaskKind::kModularArithmetic:
      return "modular_arithmetic";
    case TaskKind::kMajority:
      return "majority";
    case TaskKind::kMqar:
      return "mqar";
  }
  CheckFailed(__FILE__, __LINE__, "not a TaskKind");
}

absl::Status CheckTask(const TaskSpec& task) {
  constexpr int64_t kMaxModulus = 4096, kMaxSymbols = 4096, kMaxVocabulary = 1 << 24;
  absl::Status status = absl::OkStatus();
  switch (task.kind) {
    case TaskKind::kParity:
    case TaskKind::kEvenPairs:
      return CheckLengths(task, 1);
    case TaskKind::kCycleNavigation:
      status = CheckRange("a modulus of", task.modulus, 2, kMaxModulus, 5);
      return status.ok() ? CheckLengths(task, 1) : status;
    case TaskKind::kModularArithmetic:
      status = CheckRange("a modulus of", task.modulus, 2, kMaxModulus, 5);
      if (status.ok()) status = CheckLengths(task, 1);
      if (status.ok() && !task.brackets && task.min_length == task.max_length && task.min_length % 2 == 0) {
        status = absl::InvalidArgumentError(
            absl::StrCat("an expression without brackets has an odd number of tokens, so none has ",
                         task.min_length, "; use the length ", task.min_length + 1));
      }
      return status;
    case TaskKind::kMajority:
      status = CheckRange("a number of symbols of", task.num_symbols, 2, kMaxSymbols, 63);
      return status.ok() ? CheckLengths(task, 1) : status;
    case TaskKind::kMqar:
      status = CheckRange("a vocabulary of", task.vocab_size, 4, kMaxVocabulary, 8192);
      if (status.ok()) {
        status = CheckRange("a number of pairs of", task.num_pairs, 1, task.vocab_size / 2 - 1, 4);
      }
      if (!status.ok()) return status;
      // The begin, the pairs and each of them once more.
      return CheckRange("a context of", task.max_length, 1 + 4 * task.num_pairs, kMaxLabel, 64);
  }
  CheckFailed(__FILE__, __LINE__, "not a TaskKind");
}

int64_t TaskVocabulary(const TaskSpec& task) {
  switch (task.kind) {
    case TaskKind::kParity:
    case TaskKind::kEvenPairs:
      return kFirstBit + 2;
    case TaskKind::kCycleNavigation:
      return kFirstPlace + task.modulus;
    case TaskKind::kModularArithmetic:
      return FirstNumber(task) + task.modulus;
    case TaskKind::kMajority:
      return kFirstSymbol + task.num_symbols;
    case TaskKind::kMqar:
      return task.vocab_size;
  }
  CheckFailed(__FILE__, __LINE__, "not a TaskKind");
}

int64_t LongestProblem(const TaskSpec& task) {
  if (task.kind == TaskKind::kMqar) return task.max_length;
  const int64_t equals = task.kind == TaskKind::kModularArithmetic;
  return 1 + task.max_length + equals + 1;
}

std::string TaskSymbol(const TaskSpec& task, int32_t id) {
  if (id == kTaskBegin) return "<begin>";
  switch (task.kind) {
    case TaskKind::kParity:
    case TaskKind::kEvenPairs:
      return absl::StrCat(id - kFirstBit);
    case TaskKind::kCycleNavigation:
      if (id >= kFirstPlace) return absl::StrCat("place", id - kFirstPlace);
      return id == kStay ? "stay" : id == kForward ? "+1" : "-1";
    case TaskKind::kModularArithmetic:
      if (id >= FirstNumber(task)) return absl::StrCat(id - FirstNumber(task));
      return std::string(1, "+-*=()"[id - kPlus]);
    case TaskKind::kMajority:
      return absl::StrCat("s", id - kFirstSymbol);
    case TaskKind::kMqar:
      return absl::StrCat(id < task.vocab_size / 2 ? "k" : "v", id);
  }
  CheckFailed(__FILE__, __LINE__, "not a TaskKind");
}

std::string FormatProblem(const TaskSpec& task, const TaskProblem& problem) {
  std::vector<std::string> words;
  for (size_t i = 1; i < problem.ids.size(); ++i) {
    const std::string symbol = TaskSymbol(task, problem.ids[i]);
    words.push_back(problem.labels[i] > 0 ? absl::StrCat("[", symbol, "]") : symbol);
  }
  return absl::StrJoin(words, " ");
}
}  // namespace carousel
