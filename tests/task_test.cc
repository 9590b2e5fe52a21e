// The generators of tasks against solvers that share nothing with them.
#include "core/data/task.h"

#include <gtest/gtest.h>

#include <map>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "core/data/crc32c.h"
#include "tests/data_testing.h"

namespace carousel {
namespace {

TaskSpec Spec(TaskKind kind, int64_t min_length, int64_t max_length) {
  return {.kind = kind, .min_length = min_length, .max_length = max_length};
}

// The symbols between the begin and the answer, and the answer, as people read them.
struct Readable {
  std::vector<std::string> question;
  std::string answer;
};
Readable Read(const TaskSpec& task, const TaskProblem& problem) {
  EXPECT_EQ(problem.ids.size(), problem.labels.size());
  EXPECT_EQ(problem.ids.front(), kTaskBegin);
  for (size_t i = 0; i + 1 < problem.labels.size(); ++i) EXPECT_EQ(problem.labels[i], 0);
  EXPECT_EQ(problem.labels.back(), problem.length);
  Readable result;
  for (size_t i = 1; i + 1 < problem.ids.size(); ++i)
    result.question.push_back(TaskSymbol(task, problem.ids[i]));
  result.answer = TaskSymbol(task, problem.ids.back());
  return result;
}

// Calls check(question, answer) on many problems, and sees that every length of the range occurs, no other,
// and at least `min_answers` different answers.
template <class Check>
void ForProblems(const TaskSpec& task, int64_t step, size_t min_answers, const Check& check) {
  ASSERT_TRUE(CheckTask(task).ok()) << CheckTask(task);
  std::set<int64_t> lengths;
  std::set<std::string> answers;
  for (int64_t i = 0; i < 2000; ++i) {
    const TaskProblem problem = MakeProblem(task, 7, "train", i);
    for (const int32_t id : problem.ids) ASSERT_TRUE(id >= 0 && id < TaskVocabulary(task));
    ASSERT_LE(static_cast<int64_t>(problem.ids.size()), LongestProblem(task));
    const Readable r = Read(task, problem);
    lengths.insert(problem.length);
    answers.insert(r.answer);
    check(problem.length, r.question, r.answer);
    if (testing::Test::HasFailure()) return;
  }
  std::set<int64_t> expected;
  for (int64_t n = task.min_length; n <= task.max_length; n += step) expected.insert(n);
  EXPECT_EQ(lengths, expected);
  EXPECT_GE(answers.size(), min_answers);
}

TEST(Task, ParityIsTheSumOfTheBits) {
  const TaskSpec task = Spec(TaskKind::kParity, 3, 40);
  EXPECT_EQ(TaskVocabulary(task), 3);
  ForProblems(task, 1, 2, [](int64_t length, const auto& bits, const std::string& answer) {
    ASSERT_EQ(static_cast<int64_t>(bits.size()), length);
    int sum = 0;
    for (const std::string& bit : bits) sum += bit == "1";
    EXPECT_EQ(answer, absl::StrCat(sum % 2));
  });
}

TEST(Task, EvenPairsCountsTheChanges) {
  const TaskSpec task = Spec(TaskKind::kEvenPairs, 1, 30);
  EXPECT_EQ(TaskVocabulary(task), 3);
  ForProblems(task, 1, 2, [](int64_t length, const auto& bits, const std::string& answer) {
    ASSERT_EQ(static_cast<int64_t>(bits.size()), length);
    int changes = 0;
    for (size_t i = 1; i < bits.size(); ++i) changes += bits[i] != bits[i - 1];
    EXPECT_EQ(answer, changes % 2 == 0 ? "1" : "0");
  });
}

TEST(Task, CycleNavigationWalksRound) {
  TaskSpec task = Spec(TaskKind::kCycleNavigation, 2, 50);
  EXPECT_EQ(TaskVocabulary(task), 9);
  task.modulus = 7;
  ForProblems(task, 1, 7, [](int64_t length, const auto& moves, const std::string& answer) {
    ASSERT_EQ(static_cast<int64_t>(moves.size()), length);
    int place = 0;
    for (const std::string& move : moves) {
      ASSERT_TRUE(move == "stay" || move == "+1" || move == "-1") << move;
      place += move == "+1" ? 1 : move == "-1" ? -1 : 0;
    }
    EXPECT_EQ(answer, absl::StrCat("place", ((place % 7) + 7) % 7));
  });
}

// Recursive descent: expression = term {(+|-) term}, term = factor {* factor}, factor = number | -factor |
// (expression). Integers without modulus would overflow, so it reduces as it goes.
class Calculator {
 public:
  Calculator(const std::vector<std::string>& words, int64_t modulus) : words_(words), modulus_(modulus) {}
  int64_t Value() {
    const int64_t value = Expression();
    EXPECT_EQ(at_, words_.size());
    return value;
  }

 private:
  bool Take(const std::string& word) {
    if (at_ >= words_.size() || words_[at_] != word) return false;
    ++at_;
    return true;
  }
  int64_t Expression() {
    int64_t value = Term();
    while (true) {
      if (Take("+")) {
        value = (value + Term()) % modulus_;
      } else if (Take("-")) {
        value = (value - Term() + modulus_) % modulus_;
      } else {
        return value;
      }
    }
  }
  int64_t Term() {
    int64_t value = Factor();
    while (Take("*")) value = value * Factor() % modulus_;
    return value;
  }
  int64_t Factor() {
    if (Take("-")) return (modulus_ - Factor()) % modulus_;
    if (Take("(")) {
      const int64_t value = Expression();
      EXPECT_TRUE(Take(")"));
      return value;
    }
    EXPECT_LT(at_, words_.size());
    return at_ < words_.size() ? std::stoll(words_[at_++]) : 0;
  }
  const std::vector<std::string>& words_;
  const int64_t modulus_;
  size_t at_ = 0;
};

TEST(Task, ModularArithmeticIsTheValueOfTheExpression) {
  for (const bool brackets : {false, true}) {
    TaskSpec task = Spec(TaskKind::kModularArithmetic, 1, 41);
    task.brackets = brackets;
    EXPECT_EQ(TaskVocabulary(task), brackets ? 12 : 10);
    bool precedence_matters = false;
    ForProblems(task, brackets ? 1 : 2, 5,
                [&](int64_t length, std::vector<std::string> words, const std::string& answer) {
                  ASSERT_EQ(words.back(), "=");
                  words.pop_back();
                  ASSERT_EQ(static_cast<int64_t>(words.size()), length);
                  EXPECT_EQ(answer, absl::StrCat(Calculator(words, 5).Value()));
                  // From left to right without precedence.
                  int64_t flat = 0;
                  for (size_t i = 0; !brackets && i < words.size(); i += 2) {
                    const int64_t number = std::stoll(words[i]);
                    const std::string op = i == 0 ? "+" : words[i - 1];
                    flat = (op == "+" ? flat + number : op == "-" ? flat + 5 - number : flat * number) % 5;
                  }
                  precedence_matters |= answer != absl::StrCat(flat);
                });
    EXPECT_TRUE(precedence_matters);
  }
}

TEST(Task, MajorityIsTheOneMostFrequentSymbol) {
  TaskSpec task = Spec(TaskKind::kMajority, 1, 40);
  EXPECT_EQ(TaskVocabulary(task), 64);
  for (const int64_t num_symbols : {2, 63}) {
    task.num_symbols = num_symbols;
    ForProblems(task, 1, static_cast<size_t>(num_symbols),
                [&](int64_t length, const auto& symbols, const std::string& answer) {
                  ASSERT_EQ(static_cast<int64_t>(symbols.size()), length);
                  std::map<std::string, int> counts;
                  for (const std::string& symbol : symbols) ++counts[symbol];
                  for (const auto& [symbol, count] : counts) {
                    EXPECT_TRUE(symbol == answer || count < counts[answer]);
                  }
                });
  }
}

TEST(Task, MqarAsksForEachKeyOnce) {
  for (const int64_t context : {17, 64, 65, 256}) {
    TaskSpec task = Spec(TaskKind::kMqar, context, context);
    task.num_pairs = context / 16;
    task.vocab_size = 128;
    ASSERT_TRUE(CheckTask(task).ok()) << CheckTask(task);
    EXPECT_EQ(LongestProblem(task), context);
    double sum_of_slots = 0;
    for (int64_t i = 0; i < 500; ++i) {
      const TaskProblem p = MakeProblem(task, 3, "valid", i);
      ASSERT_EQ(static_cast<int64_t>(p.ids.size()), context);
      std::map<int32_t, int32_t> pairs;
      for (size_t j = 0; j < static_cast<size_t>(task.num_pairs); ++j) {
        const int32_t key = p.ids[1 + 2 * j], value = p.ids[2 + 2 * j];
        ASSERT_TRUE(key >= 1 && key < 64 && value >= 64 && value < 128);
        ASSERT_TRUE(pairs.emplace(key, value).second) << "the key " << key << " twice";
      }
      std::set<int32_t> asked;
      for (size_t t = 0; t < p.ids.size(); ++t) {
        const bool behind = static_cast<int64_t>(t) > 2 * task.num_pairs;
        ASSERT_TRUE(p.labels[t] == 0 || p.labels[t] == context);
        if (behind && pairs.count(p.ids[t]) > 0) {
          ASSERT_TRUE(asked.insert(p.ids[t]).second);
          ASSERT_GT(p.labels[t + 1], 0);
          EXPECT_EQ(p.ids[t + 1], pairs[p.ids[t]]);
          sum_of_slots += (static_cast<double>(t) - 1 - 2 * static_cast<double>(task.num_pairs)) / 2;
        } else if (p.labels[t] > 0) {
          ASSERT_EQ(pairs.count(p.ids[t - 1]), size_t{1});
        }
      }
      EXPECT_EQ(asked.size(), pairs.size());
    }
    if (context != 256) continue;
    // Queries come soon after the pairs: with weights 1/(g+1) in 111 slots the mean of one draw is
    // 111 / H(111) - 1 = 20.1, that of 16 draws without replacement is higher; uniform would be 55.
    const double mean = sum_of_slots / (500.0 * 16);
    EXPECT_GT(mean, 20);
    EXPECT_LT(mean, 40);
  }
}

TEST(Task, AProblemDependsOnSeedSplitAndIndexAlone) {
  const TaskSpec task = Spec(TaskKind::kParity, 40, 40);
  const auto ids = [&](uint64_t seed, const std::string& split, int64_t index) {
    return MakeProblem(task, seed, split, index).ids;
  };
  EXPECT_EQ(ids(1, "train", 5), ids(1, "train", 5));
  EXPECT_NE(ids(1, "train", 5), ids(2, "train", 5));
  EXPECT_NE(ids(1, "train", 5), ids(1, "valid", 5));
  EXPECT_NE(ids(1, "train", 5), ids(1, "train", 6));
  // The same on every machine and in every later version: files can be made again.
  uint32_t crc = 0;
  for (const TaskKind kind : {TaskKind::kParity, TaskKind::kEvenPairs, TaskKind::kCycleNavigation,
                              TaskKind::kModularArithmetic, TaskKind::kMajority, TaskKind::kMqar}) {
    TaskSpec spec = Spec(kind, 20, 64);
    spec.brackets = true;
    for (int64_t i = 0; i < 20; ++i) {
      const TaskProblem p = MakeProblem(spec, 0, "train", i);
      crc = ExtendCrc32c(crc, p.ids.data(), static_cast<int64_t>(4 * p.ids.size()));
      crc = ExtendCrc32c(crc, p.labels.data(), static_cast<int64_t>(2 * p.labels.size()));
    }
  }
  EXPECT_EQ(crc, 3792207585u);
}

TEST(Task, LongNestedExpressionsWork) {
  TaskSpec task = Spec(TaskKind::kModularArithmetic, 65535, 65535);
  task.brackets = true;
  Readable r = Read(task, MakeProblem(task, 1, "train", 0));
  r.question.pop_back();
  EXPECT_EQ(static_cast<int64_t>(r.question.size()), 65535);
  EXPECT_EQ(r.answer, absl::StrCat(Calculator(r.question, 5).Value()));
}

TEST(Task, FormatsProblemsForPeople) {
  TaskSpec task = Spec(TaskKind::kModularArithmetic, 3, 3);
  const std::vector<std::string> words =
      absl::StrSplit(FormatProblem(task, MakeProblem(task, 1, "train", 0)), ' ');
  ASSERT_EQ(words.size(), 5u);
  EXPECT_EQ(words[3], "=");
  EXPECT_EQ(words[4], absl::StrCat("[", Calculator({words[0], words[1], words[2]}, 5).Value(), "]"));
  EXPECT_EQ(TaskSymbol(task, kTaskBegin), "<begin>");
}

TEST(Task, RefusesWhatDoesNotExist) {
  const auto refuse = [](TaskSpec task, const std::vector<std::string>& parts) {
    ExpectError(CheckTask(task), absl::StatusCode::kInvalidArgument, parts);
  };
  refuse(Spec(TaskKind::kParity, 0, 4), {"0 to 4", "between 1 and 65535"});
  refuse(Spec(TaskKind::kParity, 5, 4), {"the shortest length 5 is above the longest 4", "3:40"});
  refuse(Spec(TaskKind::kEvenPairs, 5, 65536), {"5 to 65536"});
  refuse(Spec(TaskKind::kModularArithmetic, 4, 4), {"odd", "use the length 5"});
  EXPECT_TRUE(CheckTask(Spec(TaskKind::kModularArithmetic, 4, 5)).ok());
  TaskSpec task = Spec(TaskKind::kCycleNavigation, 3, 40);
  task.modulus = 1;
  refuse(task, {"a modulus of 1", "for example 5"});
  task = Spec(TaskKind::kMajority, 3, 40);
  task.num_symbols = 1;
  refuse(task, {"symbols of 1"});
  task = Spec(TaskKind::kMqar, 16, 16);
  refuse(task, {"a context of 16", "between 17", "for example 64"});
  task.num_pairs = 4096;
  refuse(task, {"pairs of 4096", "between 1 and 4095"});
  task.vocab_size = 3;
  refuse(task, {"a vocabulary of 3"});
}
}  // namespace
}  // namespace carousel
