// MakeProblem: the generators of core/data/task.h.
#include <algorithm>
#include <set>

#include "core/base/check.h"
#include "core/base/random.h"
#include "core/data/permutation.h"
#include "core/data/task.h"
#include "core/data/task_ids.h"

namespace carousel {
namespace {

// The random numbers of one problem.
class Draws {
 public:
  explicit Draws(uint64_t key) : key_(key) {}
  uint64_t Bits() { return RandomUint64(key_, stream_, counter_++); }
  // Uniform in [0, n), to within n / 2^64. REQUIRES: n >= 1.
  int64_t Below(int64_t n) {
    return static_cast<int64_t>(static_cast<unsigned __int128>(Bits()) * static_cast<uint64_t>(n) >> 64);
  }
  int32_t IdBelow(int64_t n) { return static_cast<int32_t>(Below(n)); }

 private:
  const uint64_t stream_ = StreamOf("task draw");
  uint64_t key_, counter_ = 0;
};

// Adds ids with their labels.
class Builder {
 public:
  explicit Builder(int64_t length) {
    problem_.length = length;
    Add(kTaskBegin);
  }
  void Add(int32_t id) { Add(id, 0); }
  void AddAnswer(int32_t id) { Add(id, static_cast<uint16_t>(problem_.length)); }
  TaskProblem Take() { return std::move(problem_); }

 private:
  void Add(int32_t id, uint16_t label) {
    problem_.ids.push_back(id);
    problem_.labels.push_back(label);
  }
  TaskProblem problem_;
};

TaskProblem Parity(int64_t length, Draws& draws) {
  Builder builder(length);
  int32_t parity = 0;
  for (int64_t i = 0; i < length; ++i) {
    const int32_t bit = draws.IdBelow(2);
    parity ^= bit;
    builder.Add(kFirstBit + bit);
  }
  builder.AddAnswer(kFirstBit + parity);
  return builder.Take();
}

TaskProblem EvenPairs(int64_t length, Draws& draws) {
  Builder builder(length);
  int32_t first = 0, last = 0;
  for (int64_t i = 0; i < length; ++i) {
    last = draws.IdBelow(2);
    if (i == 0) first = last;
    builder.Add(kFirstBit + last);
  }
  builder.AddAnswer(kFirstBit + (first == last));
  return builder.Take();
}

TaskProblem CycleNavigation(const TaskSpec& task, int64_t length, Draws& draws) {
  Builder builder(length);
  int64_t place = 0;
  for (int64_t i = 0; i < length; ++i) {
    const int32_t move = kStay + draws.IdBelow(3);
    place += move == kForward ? 1 : move == kBackward ? task.modulus - 1 : 0;
    place %= task.modulus;
    builder.Add(move);
  }
  builder.AddAnswer(kFirstPlace + static_cast<int32_t>(place));
  return builder.Take();
}

// a + b, a - b or a * b, mod modulus.
int64_t Apply(int32_t sign, int64_t a, int64_t b, int64_t modulus) {
  return sign == kPlus ? (a + b) % modulus : sign == kMinus ? (a + modulus - b) % modulus : a * b % modulus;
}

// Numbers and signs in turn; * binds more strongly than + and -.
int64_t AddChain(const TaskSpec& task, int64_t length, Draws& draws, Builder* builder) {
  int64_t sum = 0;       // of the terms that are complete
  int64_t term = 0;      // the product that is being read
  int32_t sign = kPlus;  // before that term
  for (int64_t k = 0; k < (length + 1) / 2; ++k) {
    const int32_t op = k == 0 ? kPlus : kPlus + draws.IdBelow(3);
    if (k > 0) builder->Add(op);
    const int64_t number = draws.Below(task.modulus);
    builder->Add(FirstNumber(task) + static_cast<int32_t>(number));
    if (op == kTimes) {
      term = Apply(kTimes, term, number, task.modulus);
    } else {
      sum = Apply(sign, sum, term, task.modulus);
      sign = op;
      term = number;
    }
  }
  return Apply(sign, sum, term, task.modulus);
}

// The grammar of Deletang et al., by length: 1: a number x; 2: -x; 3: (x); 4: (-x); more: (left op right),
// where the length of `left` is uniform over what leaves at least one token for `right`. Returns the value.
int64_t AddBracketed(const TaskSpec& task, int64_t length, Draws& draws, Builder* builder) {
  if (length >= 5) {
    const int64_t left_length = 1 + draws.Below(length - 4);
    builder->Add(kOpen);
    const int64_t left = AddBracketed(task, left_length, draws, builder);
    const int32_t op = kPlus + draws.IdBelow(3);
    builder->Add(op);
    const int64_t right = AddBracketed(task, length - 3 - left_length, draws, builder);
    builder->Add(kClose);
    return Apply(op, left, right, task.modulus);
  }
  const bool minus = length % 2 == 0, brackets = length >= 3;
  const int64_t number = draws.Below(task.modulus);
  if (brackets) builder->Add(kOpen);
  if (minus) builder->Add(kMinus);
  builder->Add(FirstNumber(task) + static_cast<int32_t>(number));
  if (brackets) builder->Add(kClose);
  return minus ? Apply(kMinus, 0, number, task.modulus) : number;
}

TaskProblem ModularArithmetic(const TaskSpec& task, int64_t length, Draws& draws) {
  Builder builder(length);
  const int64_t value =
      task.brackets ? AddBracketed(task, length, draws, &builder) : AddChain(task, length, draws, &builder);
  builder.Add(kEquals);
  builder.AddAnswer(FirstNumber(task) + static_cast<int32_t>(value));
  return builder.Take();
}

// Drawn again while two symbols are equally frequent.
TaskProblem Majority(const TaskSpec& task, int64_t length, Draws& draws) {
  std::vector<int32_t> symbols(static_cast<size_t>(length)), sorted;
  while (true) {
    for (int32_t& symbol : symbols) symbol = draws.IdBelow(task.num_symbols);
    // The longest run of equal symbols, and how many are as long.
    sorted = symbols;
    std::sort(sorted.begin(), sorted.end());
    int64_t most = 0, num_most = 0;
    int32_t winner = 0;
    for (auto run = sorted.begin(); run != sorted.end();) {
      const auto end = std::upper_bound(run, sorted.end(), *run);
      if (end - run > most) {
        most = end - run;
        num_most = 0;
        winner = *run;
      }
      num_most += end - run == most;
      run = end;
    }
    if (num_most > 1) continue;
    Builder builder(length);
    for (const int32_t symbol : symbols) builder.Add(kFirstSymbol + symbol);
    builder.AddAnswer(kFirstSymbol + winner);
    return builder.Take();
  }
}

// `count` of the slots [0, num_slots), one after the other without replacement, slot g with a probability
// proportional to 1 / (g + 1): most queries come soon, some late (zoology's power law in its limit).
std::vector<int64_t> DrawSlots(int64_t num_slots, int64_t count, Draws& draws) {
  constexpr int64_t kScale = int64_t{1} << 32;
  std::vector<int64_t> weights(static_cast<size_t>(num_slots));
  int64_t total = 0;
  for (size_t g = 0; g < weights.size(); ++g) total += weights[g] = kScale / static_cast<int64_t>(g + 1);
  std::vector<int64_t> slots;
  for (int64_t i = 0; i < count; ++i) {
    int64_t x = draws.Below(total);
    size_t g = 0;
    while (x >= weights[g]) x -= weights[g++];
    slots.push_back(static_cast<int64_t>(g));
    total -= weights[g];
    weights[g] = 0;
  }
  return slots;
}

TaskProblem Mqar(const TaskSpec& task, int64_t context, Draws& draws) {
  const int64_t half = task.vocab_size / 2, pairs = task.num_pairs;
  const Permutation key_order(half - 1, draws.Bits()), value_order(task.vocab_size - half, draws.Bits());
  std::vector<int32_t> keys, values;
  Builder builder(context);
  for (int64_t i = 0; i < pairs; ++i) {
    keys.push_back(static_cast<int32_t>(1 + key_order(i)));
    values.push_back(static_cast<int32_t>(half + value_order(i)));
    builder.Add(keys.back());
    builder.Add(values.back());
  }
  // Behind the pairs: slots of two tokens, and one token more if the rest is odd.
  const int64_t rest = context - 1 - 2 * pairs;
  const std::vector<int64_t> slots = DrawSlots(rest / 2, pairs, draws);
  std::vector<int64_t> asked(static_cast<size_t>(rest / 2 + 1), -1);  // by slot: which pair
  for (int64_t i = 0; i < pairs; ++i) asked[static_cast<size_t>(slots[static_cast<size_t>(i)])] = i;
  const std::set<int32_t> own_keys(keys.begin(), keys.end());
  for (int64_t position = 0; position < rest; ++position) {
    const int64_t pair = asked[static_cast<size_t>(position / 2)];
    if (pair >= 0 && position % 2 == 0) {
      builder.Add(keys[static_cast<size_t>(pair)]);
    } else if (pair >= 0) {
      builder.AddAnswer(values[static_cast<size_t>(pair)]);
    } else {
      // Any id that is no key of this problem.
      int32_t id = 1 + draws.IdBelow(task.vocab_size - 1);
      while (own_keys.count(id) > 0) id = 1 + draws.IdBelow(task.vocab_size - 1);
      builder.Add(id);
    }
  }
  return builder.Take();
}

int64_t DrawLength(const TaskSpec& task, Draws& draws) {
  if (task.kind != TaskKind::kModularArithmetic || task.brackets) {
    return task.min_length + draws.Below(task.max_length - task.min_length + 1);
  }
  const int64_t first = task.min_length / 2, last = (task.max_length - 1) / 2;  // of n = 2 k + 1
  return 2 * (first + draws.Below(last - first + 1)) + 1;
}
}  // namespace

TaskProblem MakeProblem(const TaskSpec& task, uint64_t seed, const std::string& split, int64_t index) {
  CAROUSEL_CHECK_GE(index, int64_t{0});
  const uint64_t stream = StreamOf(std::string("task ") + NameOf(task.kind) + " " + split);
  Draws draws(RandomUint64(seed, stream, static_cast<uint64_t>(index)));
  const int64_t length = DrawLength(task, draws);
  switch (task.kind) {
    case TaskKind::kParity:
      return Parity(length, draws);
    case TaskKind::kEvenPairs:
      return EvenPairs(length, draws);
    case TaskKind::kCycleNavigation:
      return CycleNavigation(task, length, draws);
    case TaskKind::kModularArithmetic:
      return ModularArithmetic(task, length, draws);
    case TaskKind::kMajority:
      return Majority(task, length, draws);
    case TaskKind::kMqar:
      return Mqar(task, length, draws);
  }
  CheckFailed(__FILE__, __LINE__, "not a TaskKind");
}
}  // namespace carousel
