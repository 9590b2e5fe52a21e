// `carousel data task NAME`: problems with a known answer, and text of known entropy, as token files for
// training and validation.
#include <memory>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "core/base/status_macros.h"
#include "core/data/markov_text.h"
#include "core/data/task_writer.h"
#include "launcher/data/data_command.h"

namespace carousel {
namespace {

constexpr char kTrain[] = "train", kValid[] = "valid";

struct TaskOptions {
  TaskSpec task;
  std::string output;
  std::string lengths = "3:40", test_lengths = "40:256";
  int64_t problems = 100000, test_problems = 2000;
  int64_t row_tokens = 0, test_row_tokens = 0;
  int64_t context = 64, pairs = 4, test_context = 0, test_pairs = 0;  // mqar
  uint64_t seed = 0;
  bool overwrite = false;
};

// "3:40" -> 3, 40; "7" -> 7, 7.
absl::Status ParseLengths(const char* option, const std::string& text, TaskSpec* task) {
  const std::vector<std::string> parts = absl::StrSplit(text, ':');
  if (parts.size() <= 2 && absl::SimpleAtoi(parts.front(), &task->min_length) &&
      absl::SimpleAtoi(parts.back(), &task->max_length)) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat(option, " ", text, " is not SHORTEST:LONGEST; write for example 3:40, or one length"));
}

// What the problems of a file were made with.
std::string Describe(const TaskSpec& task, int64_t problems, uint64_t seed) {
  std::string text = task.kind == TaskKind::kMqar
                         ? absl::StrCat("--context ", task.min_length, " --pairs ", task.num_pairs,
                                        " --vocab ", task.vocab_size)
                         : absl::StrCat("--lengths ", task.min_length, ":", task.max_length);
  if (task.kind == TaskKind::kModularArithmetic || task.kind == TaskKind::kCycleNavigation) {
    absl::StrAppend(&text, " --modulus ", task.modulus);
  }
  if (task.brackets) absl::StrAppend(&text, " --brackets");
  if (task.kind == TaskKind::kMajority) absl::StrAppend(&text, " --symbols ", task.num_symbols);
  return absl::StrCat(text, " --problems ", problems, " --seed ", seed);
}

void PrintFile(const TaskFileSpec& file, const TaskFileResult& result) {
  const double filled = static_cast<double>(result.filled_tokens) / static_cast<double>(result.num_tokens);
  absl::PrintF(
      "%s.{bin,idx,meta,labels}: %s problems of lengths %d to %d, %s answers, %s rows of %d tokens "
      "(%.1f %% empty)\n",
      file.prefix, Grouped(result.num_problems), file.task.min_length, file.task.max_length,
      Grouped(result.num_answers), Grouped(result.num_rows), result.row_tokens, 100 * filled);
}

absl::Status RunTask(const TaskOptions& options) {
  TaskSpec train = options.task, valid = options.task;
  if (options.task.kind == TaskKind::kMqar) {
    train.min_length = train.max_length = options.context;
    train.num_pairs = options.pairs;
    valid.min_length = valid.max_length = options.test_context > 0 ? options.test_context : options.context;
    valid.num_pairs = options.test_pairs > 0 ? options.test_pairs : options.pairs;
  } else {
    CAROUSEL_RETURN_IF_ERROR(ParseLengths("--lengths", options.lengths, &train));
    CAROUSEL_RETURN_IF_ERROR(ParseLengths("--test_lengths", options.test_lengths, &valid));
  }
  const std::vector<TaskFileSpec> files = {
      {.prefix = absl::StrCat(options.output, "_", kTrain),
       .task = train,
       .seed = options.seed,
       .split = kTrain,
       .num_problems = options.problems,
       .row_tokens = options.row_tokens,
       .parameters = Describe(train, options.problems, options.seed)},
      {.prefix = absl::StrCat(options.output, "_", kValid),
       .task = valid,
       .seed = options.seed,
       .split = kValid,
       .num_problems = options.test_problems,
       .row_tokens = options.test_row_tokens,
       .parameters = Describe(valid, options.test_problems, options.seed)}};
  CAROUSEL_ASSIGN_OR_RETURN(const std::vector<TaskFileResult> results,
                            WriteTaskFiles(files, options.overwrite));
  for (size_t i = 0; i < files.size(); ++i) PrintFile(files[i], results[i]);
  absl::PrintF("always the most frequent answer: %.4f right in training, %.4f in validation\n",
               results[0].chance, results[1].chance);
  absl::PrintF("the first problem, its answers in brackets: %s\n",
               FormatProblem(train, MakeProblem(train, options.seed, kTrain, 0)));
  absl::PrintF(
      "for the config: model { vocab_size: %d } data { tokenizer: TASK train { path: \"%s\" } validation { "
      "path: \"%s\" } sequence_length: %d } eval { sequence_length: %d }\n",
      TaskVocabulary(train), files[0].prefix, files[1].prefix, results[0].row_tokens, results[1].row_tokens);
  return absl::OkStatus();
}

struct MarkovOptions {
  MarkovSpec source;
  std::string output;
  int64_t letters = 2000000, test_letters = 262144;
  bool overwrite = false;
};

absl::Status RunMarkov(const MarkovOptions& options) {
  const auto describe = [&](int64_t letters) {
    return absl::StrCat("--alphabet ", options.source.num_letters, " --order ", options.source.order,
                        " --letters ", letters, " --seed ", options.source.seed);
  };
  const std::vector<MarkovFileSpec> files = {{.prefix = absl::StrCat(options.output, "_", kTrain),
                                              .source = options.source,
                                              .split = kTrain,
                                              .num_letters = options.letters,
                                              .parameters = describe(options.letters)},
                                             {.prefix = absl::StrCat(options.output, "_", kValid),
                                              .source = options.source,
                                              .split = kValid,
                                              .num_letters = options.test_letters,
                                              .parameters = describe(options.test_letters)}};
  CAROUSEL_ASSIGN_OR_RETURN(const std::vector<MarkovFileResult> results,
                            WriteMarkovFiles(files, options.overwrite));
  for (size_t i = 0; i < files.size(); ++i) {
    absl::PrintF(
        "%s.{bin,idx,meta}: %s tokens; a model that knows the source pays %.6f nats per letter of "
        "this text\n",
        files[i].prefix, Grouped(results[i].num_tokens), results[i].information_nats);
  }
  absl::PrintF(
      "entropy of the source: %.6f nats per letter, the least mean loss of any model over many texts\n",
      results[0].entropy_nats);
  absl::PrintF(
      "for the config: data { tokenizer: BYTES train { path: \"%s\" } validation { path: \"%s\" } }\n",
      files[0].prefix, files[1].prefix);
  return absl::OkStatus();
}

constexpr char kSeedHelp[] = "Which problems; the same seed gives the same files everywhere";

// The command of one task with the options that all have.
CLI::App* AddTask(CLI::App& parent, TaskKind kind, const std::string& description,
                  const std::shared_ptr<TaskOptions>& options, std::function<int()>* run) {
  options->task.kind = kind;
  CLI::App* const command = parent.add_subcommand(NameOf(kind), description);
  command
      ->add_option("--output,--out", options->output,
                   "Writes PREFIX_train and PREFIX_valid; folders are made")
      ->required()
      ->type_name("PREFIX");
  if (kind != TaskKind::kMqar) {
    command->add_option("--lengths", options->lengths, "Lengths of the training problems")
        ->capture_default_str()
        ->type_name("SHORTEST:LONGEST");
    command->add_option("--test_lengths", options->test_lengths, "Lengths of the validation problems")
        ->capture_default_str()
        ->type_name("SHORTEST:LONGEST");
  }
  command->add_option("--problems", options->problems, "Training problems")
      ->check(CLI::PositiveNumber)
      ->capture_default_str()
      ->type_name("N");
  command->add_option("--test_problems", options->test_problems, "Validation problems")
      ->check(CLI::PositiveNumber)
      ->capture_default_str()
      ->type_name("N");
  command->add_option("--seed", options->seed, kSeedHelp)->capture_default_str()->type_name("N");
  command
      ->add_option("--row_tokens", options->row_tokens,
                   "Training problems are laid into rows of so many tokens; data.sequence_length must be a "
                   "multiple of it (default: the longest problem rounded up to a multiple of 64)")
      ->check(CLI::PositiveNumber)
      ->type_name("N");
  command
      ->add_option("--test_row_tokens", options->test_row_tokens,
                   "The same for validation and eval.sequence_length")
      ->check(CLI::PositiveNumber)
      ->type_name("N");
  command->add_flag("--force", options->overwrite, "Replace existing files");
  RunWhenChosen(command, options, RunTask, run);
  return command;
}

void AddModulus(CLI::App* command, const std::shared_ptr<TaskOptions>& options, const std::string& help) {
  command->add_option("--modulus", options->task.modulus, help)->capture_default_str()->type_name("M");
}

void AddFormalLanguages(CLI::App& task, std::function<int()>* run) {
  auto options = std::make_shared<TaskOptions>();
  AddTask(task, TaskKind::kParity, "Bits; the answer is their sum mod 2", options, run)
      ->footer(
          "Vocabulary 3. No model whose memory decays without changing sign can do it at lengths it was not\n"
          "trained on; an sLSTM can.\n"
          "Example:\n"
          "  carousel data task parity --output data/parity --lengths 3:40 --test_lengths 40:256\n"
          "  -> 1 0 1 1 [1]");

  options = std::make_shared<TaskOptions>();
  AddTask(task, TaskKind::kEvenPairs,
          "Bits; the answer is 1 if they change an even number of times (first = last), else 0", options, run)
      ->footer(
          "Vocabulary 3.\n"
          "Example:\n"
          "  carousel data task even_pairs --output data/even_pairs\n"
          "  -> 0 1 1 0 [1]");

  options = std::make_shared<TaskOptions>();
  CLI::App* command = AddTask(task, TaskKind::kCycleNavigation,
                              "Moves on a cycle: stay, +1, -1; the answer is the last place", options, run);
  AddModulus(command, options, "Places of the cycle");
  command->footer(
      "Vocabulary 4 + M: the begin, three moves, M places.\n"
      "Example:\n"
      "  carousel data task cycle_navigation --output data/cycle_navigation\n"
      "  -> +1 +1 stay -1 +1 [place2]");

  options = std::make_shared<TaskOptions>();
  command = AddTask(task, TaskKind::kModularArithmetic,
                    "An expression of numbers, +, - and *; the answer is its value mod M", options, run);
  AddModulus(command, options, "Numbers are 0 to M - 1");
  command->add_flag("--brackets", options->task.brackets,
                    "Nested: every sum, difference and product stands in brackets");
  command->footer(
      "The length counts the tokens before the equals sign. Without brackets it is odd, and * binds more\n"
      "strongly than + and -. Vocabulary 5 + M, with brackets 7 + M.\n"
      "Examples:\n"
      "  carousel data task modular_arithmetic --output data/modular_arithmetic\n"
      "  -> 3 + 4 * 2 = [1]\n"
      "  carousel data task modular_arithmetic --brackets --output data/modular_arithmetic_brackets\n"
      "  -> ( ( 3 + 4 ) * ( - 2 ) ) = [1]");

  options = std::make_shared<TaskOptions>();
  command = AddTask(task, TaskKind::kMajority, "Symbols; the answer is the one that occurs most often",
                    options, run);
  command->add_option("--symbols", options->task.num_symbols, "How many different symbols")
      ->capture_default_str()
      ->type_name("K");
  command->footer(
      "Vocabulary 1 + K. Sequences in which two symbols are equally frequent do not occur.\n"
      "Example:\n"
      "  carousel data task majority --output data/majority\n"
      "  -> s7 s41 s7 s3 [s7]");
}

void AddMqar(CLI::App& task, std::function<int()>* run) {
  const auto options = std::make_shared<TaskOptions>();
  CLI::App* const command =
      AddTask(task, TaskKind::kMqar,
              "Multi-query associative recall: pairs of key and value; later each key is asked for again",
              options, run);
  command->add_option("--context", options->context, "Tokens of a problem, the begin included")
      ->capture_default_str()
      ->type_name("N");
  command->add_option("--pairs", options->pairs, "Pairs of a problem")->capture_default_str()->type_name("N");
  command->add_option("--test_context", options->test_context, "For validation (default: as --context)")
      ->check(CLI::PositiveNumber)
      ->type_name("N");
  command->add_option("--test_pairs", options->test_pairs, "For validation (default: as --pairs)")
      ->check(CLI::PositiveNumber)
      ->type_name("N");
  command
      ->add_option("--vocab", options->task.vocab_size,
                   "Ids: keys are those below the half, values those from it on")
      ->capture_default_str()
      ->type_name("V");
  command->footer(
      "Between the queries stand random tokens; most queries come soon after the pairs.\n"
      "Examples:\n"
      "  carousel data task mqar --output data/mqar --context 64 --pairs 4\n"
      "  carousel data task mqar --output data/mqar_256 --context 256 --pairs 16\n"
      "  -> k17 v4711 k102 v6000 ... k102 [v6000] ... k17 [v4711] ...");
}

void AddMarkov(CLI::App& task, std::function<int()>* run) {
  const auto options = std::make_shared<MarkovOptions>();
  CLI::App* const command =
      task.add_subcommand("markov", "Text of letters from a Markov source whose entropy is exactly known");
  command
      ->add_option("--output,--out", options->output,
                   "Writes PREFIX_train and PREFIX_valid; folders are made")
      ->required()
      ->type_name("PREFIX");
  command->add_option("--letters", options->letters, "Letters of the training text")
      ->check(CLI::PositiveNumber)
      ->capture_default_str()
      ->type_name("N");
  command->add_option("--test_letters", options->test_letters, "Letters of the validation text")
      ->check(CLI::PositiveNumber)
      ->capture_default_str()
      ->type_name("N");
  command->add_option("--alphabet", options->source.num_letters, "Different letters, from a on")
      ->capture_default_str()
      ->type_name("N");
  command->add_option("--order", options->source.order, "How many letters the next one depends on")
      ->capture_default_str()
      ->type_name("N");
  command->add_option("--seed", options->source.seed, "Which source and which texts")
      ->capture_default_str()
      ->type_name("N");
  command->add_flag("--force", options->overwrite, "Replace existing files");
  command->footer(
      "The next letter is one of the alphabet with probabilities proportional to 1, 1/4, 1/9, ..., in an\n"
      "order of its own for every context, so the entropy is one closed sum. Tokens are bytes; training\n"
      "shows the validation loss beside the entropy.\n"
      "Example:\n"
      "  carousel data task markov --output data/markov --alphabet 16 --order 2");
  RunWhenChosen(command, options, RunMarkov, run);
}
}  // namespace

void AddDataTask(CLI::App& data, std::function<int()>* run) {
  CLI::App* const task = data.add_subcommand(
      "task", "Make problems with a known answer, or text of known entropy, for training and validation");
  task->require_subcommand(1);
  task->footer(
      "Only answers count as targets; training shows how many are right by the length of the problem. Ready\n"
      "configs: configs/tasks/*.textproto; one command that makes the data and trains: launcher/task.sh "
      "NAME.\n"
      "Examples:\n"
      "  carousel data task parity --output data/parity --lengths 3:40 --test_lengths 40:256\n"
      "  carousel data task mqar --output data/mqar --context 64 --pairs 4\n"
      "  carousel data task markov --help");
  AddFormalLanguages(*task, run);
  AddMqar(*task, run);
  AddMarkov(*task, run);
}
}  // namespace carousel
