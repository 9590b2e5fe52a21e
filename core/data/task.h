// clang-format off
// Tasks with a known answer: short problems over a few symbols, of which a program knows the answer. A model
// is trained on some lengths and tested on others; what it can and cannot learn shows what its memory can do.
//
//   task                 problem of length n                                     answer
//   parity               n bits                                                  their sum mod 2
//   even_pairs           n bits                                                  1 if they change an even
//                                                                                number of times, else 0
//   cycle_navigation     n moves: stay, +1, -1                                   the place on a cycle of
//                                                                                `modulus` places, from 0
//   modular_arithmetic   n tokens: numbers, + - * and, if wanted, brackets,      its value mod `modulus`
//                        then "="
//   majority             n symbols of `num_symbols`, one of them most frequent   that symbol
//   mqar                 n - 1 tokens: pairs of key and value, then each key     the value of each key, where
//                        once more at some distance, random tokens between       it is asked
//
// The first five follow Deletang et al. 2022 (arXiv:2207.02098) and the appendix of the xLSTM paper
// (arXiv:2405.04517; vocabularies of 3, 3, 9, 10 or 12, and 64 ids by default). mqar, multi-query associative
// recall, follows Arora et al. 2023 (arXiv:2312.04927), except that the value stands in the text after its
// key, where the model is asked for it, as everywhere in this program.
//
// A problem is a pure function of (task, seed, split, index).
// clang-format on
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace carousel {

enum class TaskKind : uint8_t { kParity, kEvenPairs, kCycleNavigation, kModularArithmetic, kMajority, kMqar };

struct TaskSpec {
  TaskKind kind = TaskKind::kParity;
  int64_t min_length = 3, max_length = 40;  // drawn uniformly from those in between that the task has
  int64_t modulus = 5;                      // cycle_navigation, modular_arithmetic
  bool brackets = false;                    // modular_arithmetic
  int64_t num_symbols = 63;                 // majority
  int64_t vocab_size = 8192;                // mqar: keys are ids below the half, values those from it on
  int64_t num_pairs = 4;                    // mqar
};

struct TaskProblem {
  int64_t length = 0;
  std::vector<int32_t> ids;      // begins with kTaskBegin, ends with an answer (mqar: with any token)
  std::vector<uint16_t> labels;  // of each id: 0, or `length` if it is an answer
};

// Begins every problem, and fills what is left of a row.
inline constexpr int32_t kTaskBegin = 0;

const char* NameOf(TaskKind kind);  // "parity"
// InvalidArgument naming the value that the task cannot have, and one that it can.
absl::Status CheckTask(const TaskSpec& task);
// The functions below REQUIRE a task that CheckTask accepts.
int64_t TaskVocabulary(const TaskSpec& task);  // number of ids
// Tokens of the longest problem, the begin and the answer included.
int64_t LongestProblem(const TaskSpec& task);
TaskProblem MakeProblem(const TaskSpec& task, uint64_t seed, const std::string& split, int64_t index);
// For people: "+", "3", "<begin>".
std::string TaskSymbol(const TaskSpec& task, int32_t id);
// The problem as text with every answer in brackets: "1 0 1 1 [1]".
std::string FormatProblem(const TaskSpec& task, const TaskProblem& problem);
}  // namespace carousel
