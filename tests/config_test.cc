// Configs: what is accepted, what is refused and with which words, and that the resolved text is the run.
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "configs/load.h"
#include "configs/suggest.h"

namespace carousel {
namespace {

constexpr char kSmall[] = R"(model { embedding_dim: 256 num_blocks: 2 num_heads: 4 }
data {
  train { path: "a" }
  train { path: "b" weight: 3 }
  validation { path: "v" }
}
train { steps: 1000 global_batch: 16 }
)";

absl::StatusOr<RunSpec> Load(const std::string& text, const std::vector<std::string>& sets = {}) {
  return LoadRunFromText(text, "test.textproto", {.sets = sets});
}
// The error of a text (with --sets) that must be refused.
std::string ErrorOf(const std::string& text, const std::vector<std::string>& sets = {}) {
  const absl::StatusOr<RunSpec> run = Load(text, sets);
  EXPECT_FALSE(run.ok()) << "accepted: " << text;
  if (run.ok()) return "";
  EXPECT_TRUE(absl::IsInvalidArgument(run.status()));
  return std::string(run.status().message());
}
std::string SetError(const std::string& set) { return ErrorOf(kSmall, {set}); }
bool Says(const std::string& message, const std::string& part) {
  if (message.find(part) != std::string::npos) return true;
  ADD_FAILURE() << "\"" << part << "\" is not in:\n" << message;
  return false;
}

TEST(Config, DefaultsAreDerivedFromWhatIsGiven) {
  const absl::StatusOr<RunSpec> run = Load(kSmall);
  ASSERT_TRUE(run.ok()) << run.status();
  EXPECT_EQ(run->model.vocab_size, 320);  // 258 ids, padded
  EXPECT_EQ(run->model.qk_dim, 128);
  EXPECT_EQ(run->model.v_dim, 256);
  EXPECT_EQ(run->model.ffn_dim, 704);  // 64 * ceil(256 * 2.667 / 64)
  EXPECT_EQ(run->micro_batch, 8);
  EXPECT_EQ(run->micro_batches_per_step(), 2);
  EXPECT_EQ(run->schedule.warmup_steps, 100);
  EXPECT_EQ(run->schedule.total_steps, 1000);
  EXPECT_EQ(run->eval_every_steps, 100);
  EXPECT_EQ(run->run_dir, "");
  EXPECT_EQ(run->compute, DType::kBF16);
  ASSERT_EQ(run->train_data.size(), 2u);
  EXPECT_EQ(run->train_data[1].path, "b");
  EXPECT_EQ(run->train_data[1].weight, 3);

  const absl::StatusOr<RunSpec> small =
      Load("model { embedding_dim: 64 num_blocks: 1 num_heads: 2 } train { steps: 30 global_batch: 6 }");
  ASSERT_TRUE(small.ok()) << small.status();
  EXPECT_EQ(small->micro_batch, 6);
  EXPECT_EQ(small->schedule.warmup_steps, 3);
  EXPECT_EQ(small->eval_every_steps, 0);  // there is no validation data
}

TEST(Config, AGivenVocabularyIsKeptAndOnlyTheDefaultIsPadded) {
  const absl::StatusOr<RunSpec> run = Load(kSmall, {"model.vocab_size=259"});
  ASSERT_TRUE(run.ok()) << run.status();
  EXPECT_EQ(run->model.vocab_size, 259);
  Says(SetError("model.vocab_size=257"),
       "model.vocab_size=257 is below the 258 ids of data.tokenizer=BYTES; use 320");
  EXPECT_TRUE(Load(kSmall, {"data.tokenizer=NONE", "model.vocab_size=2"}).ok());
  Says(SetError("data.tokenizer=NONE"), "model.vocab_size is required with data.tokenizer=NONE");
}

TEST(Config, ARunDirectoryMustBeAbleToBeShown) {
  EXPECT_EQ(Load(kSmall, {"run_dir=runs/\xc3\xa4 \xff"})->run_dir, "runs/\xc3\xa4 \xff");
  for (const char* name : {"runs/\033[2J", "a\rb", "a\nb", "\xc2\x9b"}) {
    const std::string error = ErrorOf(kSmall, {absl::StrCat("run_dir=", name)});
    Says(error, "holds control characters");
    Says(error, "use a name without them");
    EXPECT_EQ(error.find(name), std::string::npos) << absl::CEscape(error);
  }
  Says(absl::StrCat(LoadRunFromText(kSmall, "t", {.run_dir = "a\033"}).status().message()),
       "--run_dir: run_dir=\"a\\033\" holds control characters");
}

TEST(Config, ATaskNamesItsVocabularyAndHasNoText) {
  const absl::StatusOr<RunSpec> run = Load(kSmall, {"data.tokenizer=TASK", "model.vocab_size=3"});
  ASSERT_TRUE(run.ok()) << run.status();
  EXPECT_EQ(run->tokenizer, TokenizerKind::kTask);
  EXPECT_EQ(run->model.vocab_size, 3);
  Says(SetError("data.tokenizer=TASK"), "model.vocab_size is required with data.tokenizer=TASK");
  Says(ErrorOf(kSmall, {"data.tokenizer=TASK", "model.vocab_size=3", "sample.every_steps=5"}),
       "sample.every_steps needs a tokenizer");
  Says(SetError("data.tokenizer=TASKS"), "did you mean TASK?");
}

TEST(Config, ValidationWindowsMayHaveALengthOfTheirOwn) {
  EXPECT_EQ(Load(kSmall)->eval_sequence_length, 256);
  EXPECT_EQ(Load(kSmall, {"data.sequence_length=64"})->eval_sequence_length, 64);
  const absl::StatusOr<RunSpec> run = Load(kSmall, {"eval.sequence_length=4096"});
  ASSERT_TRUE(run.ok()) << run.status();
  EXPECT_EQ(run->eval_sequence_length, 4096);
  EXPECT_EQ(run->sequence_length, 256);
  EXPECT_EQ(Load(run->resolved_text)->eval_sequence_length, 4096);
  Says(SetError("eval.sequence_length=0"), "eval.sequence_length=0 is not between 1 and");
}

TEST(Config, AGivenFfnDimWinsOverTheDefaultFactor) {
  const absl::StatusOr<RunSpec> run = Load(kSmall, {"model.ffn_dim=100"});
  ASSERT_TRUE(run.ok()) << run.status();
  EXPECT_EQ(run->model.ffn_dim, 100);
  const absl::StatusOr<RunSpec> again = Load(run->resolved_text);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->model.ffn_dim, 100);
  EXPECT_EQ(again->resolved_text, run->resolved_text);
  // But not over a factor that was given too: one of them could not be honoured.
  Says(ErrorOf(kSmall, {"model.ffn_dim=100", "model.ffn_proj_factor=2"}),
       "model.ffn_dim=100 contradicts model.ffn_proj_factor=2, which gives 512");
  EXPECT_TRUE(Load(kSmall, {"model.ffn_dim=512", "model.ffn_proj_factor=2"}).ok());
}

TEST(Config, EveryRecipeLoadsAndItsResolvedTextLoadsToTheSameRun) {
  int recipes = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(CAROUSEL_SOURCE_DIR "/configs")) {
    if (entry.path().extension() != ".textproto") continue;
    ++recipes;
    const absl::StatusOr<RunSpec> run = LoadRun(entry.path().string(), {});
    ASSERT_TRUE(run.ok()) << run.status();
    // The resolved text holds every field, so equal texts are equal runs.
    const absl::StatusOr<RunSpec> again = LoadRunFromText(run->resolved_text, "resolved", {});
    ASSERT_TRUE(again.ok()) << entry.path() << "\n" << again.status();
    EXPECT_EQ(again->resolved_text, run->resolved_text) << entry.path();
  }
  EXPECT_GE(recipes, 19);
}

TEST(Config, LargeRecipesHaveThePublishedSizes) {
  const struct {
    const char* recipe;
    int64_t ffn_dim, num_parameters;
  } kSizes[] = {{"165m", 2112, 164110224}, {"400m", 2752, 406856896}, {"830m", 4160, 841496256},
                {"1b4", 5504, 1420839104}, {"2b7", 6848, 2780449600}, {"7b", 10944, 6865424896}};
  for (const auto& size : kSizes) {
    const std::string path = std::string(CAROUSEL_SOURCE_DIR "/configs/xlstm_") + size.recipe + ".textproto";
    // The width that was written is the one that would be derived.
    for (const std::vector<std::string>& sets : {std::vector<std::string>{}, {"model.ffn_dim="}}) {
      const absl::StatusOr<RunSpec> run = LoadRun(path, {.sets = sets});
      ASSERT_TRUE(run.ok()) << run.status();
      EXPECT_EQ(run->model.ffn_dim, size.ffn_dim) << path;
      EXPECT_EQ(NumParameters(run->model), size.num_parameters) << path;
    }
  }
}

TEST(Config, ResolvedTextKeepsNumbersAndStringsExactly) {
  const std::string prompt = "quote \" backslash \\ tab \t line\n umlaut \xc3\xa4 broken \xff\xfe ?";
  const absl::StatusOr<RunSpec> run =
      Load(kSmall, {"sample.prompt=" + prompt, "train.seed=18446744073709551615",
                    "schedule.peak_lr=0.0010000000000000002", "optimizer.beta2=0.99999999999999989",
                    "model.igate_bias_init=-0", "schedule.final_factor=1e-300"});
  ASSERT_TRUE(run.ok()) << run.status();
  const absl::StatusOr<RunSpec> again = Load(run->resolved_text);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->sample.prompt, prompt);
  EXPECT_EQ(again->seed, 18446744073709551615u);
  EXPECT_EQ(again->adamw.beta2, 0.99999999999999989);
  EXPECT_EQ(again->schedule.final_factor, 1e-300);
  EXPECT_TRUE(std::signbit(again->model.igate_bias_init));
  EXPECT_EQ(again->schedule.peak_lr, std::nextafter(1e-3, 1.0));
}

TEST(ConfigErrors, UnknownFieldsHaveAPlaceAndTheNearestName) {
  const std::string error = ErrorOf("model {\n  embedding_dim: 256\n  num_hed: 4\n}\nnum_heads: 3\nlr: 1\n");
  Says(error, "test.textproto:3:3: model has no field \"num_hed\"; did you mean \"num_heads\"?");
  Says(error, "test.textproto:5:1: the config has no field \"num_heads\"; did you mean model.num_heads?");
  Says(error, "test.textproto:6:1: the config has no field \"lr\"; did you mean schedule.peak_lr?");
  Says(error, "3 problems");
  // What was misspelt is not also called missing.
  EXPECT_EQ(error.find("required"), std::string::npos) << error;
}

TEST(ConfigErrors, WordsThatDoNotFitTheirFieldAreAllFound) {
  const std::string error = ErrorOf(
      "model {\n\tinput_gate: SIGMOD\n  use_bias: maybe num_blocks: 0.5\n  num_heads: "
      "99999999999999999999\n}\n"
      "train {\n  compute:\n    FP8\n  steps: \"x\"\n}\n");
  Says(error,
       "test.textproto:2:14: input_gate has no value SIGMOD; did you mean SIGMOID? (EXPONENTIAL, SIGMOID)");
  Says(error, "test.textproto:3:13: use_bias is true or false, not maybe");
  Says(error, "test.textproto:3:31: Expected integer, got: 0.5");
  Says(error, "test.textproto:4:14: the integer 99999999999999999999 has more than 63 bits");
  Says(error, "test.textproto:8:5: compute has no value FP8 (F32, BF16, F64)");
  Says(error, "test.textproto:9:10: Expected integer, got: \"x\"");
  Says(error, "6 problems");
}

TEST(ConfigErrors, BrokenSyntaxHasAPlace) {
  Says(ErrorOf("model { embedding_dim: 3 "),
       "test.textproto:1:26: the text ends here, but a \"}\" is missing");
  Says(ErrorOf("model { } }"), "test.textproto:1:11: this \"}\" closes nothing");
  Says(ErrorOf("model { num_heads: 1\nnum_heads: 2 }"),
       "Non-repeated field \"num_heads\" is specified multiple times");
  Says(ErrorOf(std::string(2 << 20, ' ')), "too many for a config");
  Says(ErrorOf("run_dir: runs/a"), "test.textproto:1:10: Expected string, got: runs; write it in quotes");
  Says(ErrorOf("model { use_bias: \"yes\" }"), "only text stands in quotes: numbers, true, false");
  Says(ErrorOf("{\"model\": {\"num_heads\": 4}}"), "no JSON or YAML: model { num_blocks: 2 }");
  Says(ErrorOf("model:\n  num_heads: 4\n"), "no JSON or YAML: model { num_blocks: 2 }");
  Says(ErrorOf("\xef\xbb\xbfmodel { num_heads: 1 }"), "save the file as UTF-8 without a byte order mark");
}

TEST(ConfigErrors, AllProblemsAreReportedAtOnceEachWithAValidValue) {
  const std::string error = ErrorOf(R"(model { embedding_dim: 256 num_blocks: 2
  num_heads: 3 vocab_size: 100 }
train { global_batch: 12 micro_batch: 8 steps: 100 }
schedule { warmup_steps: 90 cooldown_steps: 20 kind: EXPONENTIAL final_factor: 0 }
sample { every_steps: 5 }
parallel { data: 0 }
)");
  Says(error,
       "test.textproto:2:3: model.num_heads=3 does not divide both the query-key width 128 and the value "
       "width");
  Says(error, "use 2 or 4");
  Says(error, "test.textproto:2:16: model.vocab_size=100 is below the 258 ids");
  Says(error, "test.textproto:3:26: train.micro_batch=8 does not divide train.global_batch=12; use 6 or 12");
  Says(error,
       "schedule.warmup_steps=90 and schedule.cooldown_steps=20 do not fit into train.steps=100; use a "
       "warmup_steps of at most 80");
  Says(error, "schedule.final_factor=0 cannot be reached by schedule.kind=EXPONENTIAL; for example 0.1");
  Says(error, "5 problems");
}

TEST(ConfigErrors, ValuesOutOfRangeDoNotHideOtherProblems) {
  const std::string error = ErrorOf(kSmall, {"train.steps=0", "model.num_heads=7", "train.micro_batch=-2",
                                             "schedule.warmup_steps=99999", "optimizer.eps=nan"});
  Says(error, "train.steps=0 is not between");
  Says(error, "train.micro_batch=-2 is not between");
  Says(error, "optimizer.eps=nan");
  Says(error, "model.num_heads=7 does not divide");
  Says(error, "4 problems");  // nothing is said about relations of the wrong values
}

TEST(ConfigErrors, EveryNumberHasARange) {
  Says(SetError("model.num_blocks=0"), "model.num_blocks=0 is not between 1 and 65536; for example 6");
  Says(SetError("train.steps=-1"), "train.steps=-1 is not between 1 and");
  Says(SetError("schedule.peak_lr=nan"), "schedule.peak_lr=nan must be at least 0");
  Says(SetError("schedule.peak_lr=inf"), "schedule.peak_lr=inf must be at least 0");
  Says(SetError("schedule.peak_lr=1e999"), "schedule.peak_lr=inf must be");
  Says(SetError("optimizer.beta1=1"), "optimizer.beta1=1 must be at least 0 and below 1; for example 0.9");
  Says(SetError("model.norm_eps=0"), "model.norm_eps=0 must be above 0");
  Says(SetError("data.train[1].weight=0"), "data.train[1].weight=0 must be above 0");
  Says(SetError("data.train[1].path="), "data.train[1].path is missing");
  Says(ErrorOf(kSmall, {"model.ffn_proj_factor=1000", "model.embedding_dim=8192"}),
       "gives a width of 8192000, above 4194304");
  Says(SetError("sample.top_p=0"), "sample.top_p=0 must be above 0 and at most 1");
}

TEST(ConfigErrors, SizesThatDoNotFitNameTheNearestOnesThatDo) {
  Says(SetError("model.num_heads=7"), "use 4 or 8");
  Says(SetError("model.num_heads=1000"), "use 128");
  Says(SetError("model.qk_dim_factor=0.3"), "is 76.8, not a whole width; use 0.30078125 for a width of 77");
  Says(SetError("train.micro_batch=5"), "use 4 or 8");
  Says(SetError("parallel.data=3"), "parallel.data=3 does not divide the 2 micro-batches of a step");
  Says(SetError("parallel.shard=3"), "parallel.replicate x shard = 3 does not divide the 2 micro-batches");
  Says(ErrorOf(kSmall, {"parallel.data=2", "parallel.replicate=2", "parallel.shard=2"}),
       "parallel.data=2 is not parallel.replicate=2 x parallel.shard=2; use 4, or 0");
  EXPECT_TRUE(Load(kSmall, {"model.qk_dim_factor=0.50000000000001"}).ok());
}

TEST(ConfigErrors, SettingsOfTheMeshThatCannotBeHonouredAreRefused) {
  Says(SetError("parallel.tensor=0"), "parallel.tensor=0 is not between 1 and");
  Says(SetError("parallel.gradient_wire=BF16"), "use parallel.reduction=UNORDERED");
  EXPECT_TRUE(Load(kSmall, {"parallel.gradient_wire=BF16", "parallel.reduction=UNORDERED"}).ok());
  Says(ErrorOf(kSmall, {"sample.every_steps=10", "parallel.tensor=2"}),
       "sample.every_steps=10 needs all weights on one rank");
  Says(SetError("parallel.sequence_mode=HEAD"), "did you mean HEADS?");
}

TEST(ConfigErrors, SizesWhoseProductOverflowsAreRefused) {
  Says(ErrorOf(kSmall, {"train.micro_batch=16777216", "train.global_batch=16777216"}),
       "is above 2147483647 tokens; use a micro_batch of at most 8388607");
  Says(ErrorOf(kSmall, {"model.embedding_dim=1048576", "model.num_blocks=65536", "model.qk_dim_factor=64",
                        "model.v_dim_factor=64", "model.ffn_dim=4194304"}),
       "the model and one micro-batch need more than");
  Says(ErrorOf(kSmall, {"train.steps=1099511627776", "train.global_batch=2147483647", "train.micro_batch=1"}),
       "use fewer steps");
  // Sizes at the ends of their ranges come through the whole resolution without a crash.
  for (const char* set :
       {"model.vocab_size=2147483647", "model.embedding_dim=1048576", "model.chunk_length=65536",
        "data.sequence_length=2147483647", "train.global_batch=2147483647"}) {
    const absl::StatusOr<RunSpec> run = Load(kSmall, {set});
    if (!run.ok()) continue;
    EXPECT_EQ(Load(run->resolved_text)->resolved_text, run->resolved_text) << set;
  }
}

TEST(ConfigSet, ChangesFieldsOfEveryType) {
  const absl::StatusOr<RunSpec> run =
      Load(kSmall, {"train.steps=20", "schedule.peak_lr=1e-2", "model.use_bias=true", "train.compute=F64",
                    "sample.prompt=\"a\\tb = c\"", "data.train.path=x", "data.train[1].path=y",
                    "data.train[2].path=z", "data.validation=", "model.input_gate=SIGMOID", "train.seed=7",
                    "train.steps=30"});
  ASSERT_TRUE(run.ok()) << run.status();
  EXPECT_EQ(run->steps, 30);  // the later one wins
  EXPECT_EQ(run->schedule.peak_lr, 1e-2);
  EXPECT_TRUE(run->model.use_bias);
  EXPECT_EQ(run->compute, DType::kF64);
  EXPECT_EQ(run->sample.prompt, "a\tb = c");
  ASSERT_EQ(run->train_data.size(), 3u);
  EXPECT_EQ(run->train_data[0].path, "x");
  EXPECT_EQ(run->train_data[1].path, "y");
  EXPECT_EQ(run->train_data[1].weight, 3);
  EXPECT_EQ(run->train_data[2].path, "z");
  EXPECT_TRUE(run->validation_data.empty());
  EXPECT_EQ(run->model.input_gate, InputGate::kSigmoid);
  EXPECT_EQ(run->seed, 7u);
}

TEST(ConfigSet, ErrorsNameTheFieldAndWhatItTakes) {
  Says(SetError("model.num_heads"), "expected PATH=VALUE");
  Says(SetError("=4"), "expected PATH=VALUE");
  Says(SetError("model.num_heds=4"), "model has no field \"num_heds\"; did you mean \"num_heads\"?");
  Says(SetError("num_heads=4"), "did you mean model.num_heads?");
  Says(SetError("zzzz=4"), "valid: model, data, optimizer");
  Says(SetError("model.num_heads=four"), "model.num_heads is an integer");
  Says(SetError("train.steps=1e3"), "train.steps is an integer");
  Says(SetError("train.seed=-1"), "train.seed is a non-negative integer");
  Says(SetError("schedule.peak_lr=fast"), "schedule.peak_lr is a number");
  Says(SetError("model.use_bias=yes"), "model.use_bias is true or false");
  Says(SetError("schedule.kind=COSIN"),
       "did you mean COSINE? (CONSTANT, COSINE, EXPONENTIAL, WARMUP_STABLE_DECAY)");
  Says(SetError("model=3"), "model is a group of fields");
  Says(SetError("model.num_heads.x=3"), "model.num_heads is a single value");
  Says(SetError("train.steps[0]=3"), "train.steps is not a list");
  Says(SetError("data.train[3].path=x"), "the next index is [2], not [3]");
  Says(SetError("data.train[x].path=x"), "must be a name and an index");
  Says(SetError("data.train[-1].path=x"), "must be a name and an index");
  Says(SetError("model..num_heads=3"), "model has no field \"\"");
  // Problems of the file and of --set come together.
  const std::string error = ErrorOf("model { embedding_dim: 64 num_blocks: 1 num_hed: 1 }", {"train.stps=1"});
  Says(error, "\"num_hed\"");
  Says(error, "--set train.stps=1: train has no field \"stps\"; did you mean \"steps\"?");
}

TEST(ConfigSet, RunDirOfTheCommandLineWins) {
  const absl::StatusOr<RunSpec> run = LoadRunFromText(kSmall, "t", {.sets = {"run_dir=a"}, .run_dir = "b"});
  ASSERT_TRUE(run.ok()) << run.status();
  EXPECT_EQ(run->run_dir, "b");
}

TEST(Config, TrainingNeedsDataAndAPlanDoesNot) {
  const std::string text = "model { embedding_dim: 64 num_blocks: 1 num_heads: 1 } eval { every_steps: 10 }";
  EXPECT_TRUE(LoadRunFromText(text, "t", {}).ok());
  const absl::StatusOr<RunSpec> run = LoadRunFromText(text, "t", {.for_training = true});
  ASSERT_FALSE(run.ok());
  Says(std::string(run.status().message()), "data.train is empty");
  Says(std::string(run.status().message()), "eval.every_steps=10 but data.validation is empty");
  EXPECT_TRUE(LoadRunFromText(kSmall, "t", {.for_training = true}).ok());
}

TEST(Config, KeepingTheBestNeedsAValidationLoss) {
  RunOverrides overrides{.sets = {"checkpoint.keep_best=2"}, .for_training = true};
  EXPECT_TRUE(LoadRunFromText(kSmall, "t", overrides).ok());
  overrides.sets.push_back("eval.every_steps=0");
  const absl::StatusOr<RunSpec> run = LoadRunFromText(kSmall, "t", overrides);
  ASSERT_FALSE(run.ok());
  Says(std::string(run.status().message()), "checkpoint.keep_best=2 goes by the validation loss");
}

TEST(Config, CheckpointsAreSavedInTheBackgroundUnlessAskedOtherwise) {
  EXPECT_TRUE(Load(kSmall)->checkpoint.asynchronous);
  const absl::StatusOr<RunSpec> run =
      Load(kSmall, {"checkpoint.asynchronous=false", "checkpoint.staging_mib=3",
                    "checkpoint.timeout_minutes=2", "checkpoint.max_failed_saves=5",
                    "checkpoint.keep_every_steps=700", "checkpoint.good_after_steps=9"});
  ASSERT_TRUE(run.ok()) << run.status();
  EXPECT_FALSE(run->checkpoint.asynchronous);
  EXPECT_EQ(run->checkpoint.staging_bytes, 3 << 20);
  EXPECT_EQ(run->checkpoint.timeout_seconds, 120);
  EXPECT_EQ(run->checkpoint.max_failed_saves, 5);
  EXPECT_EQ(run->checkpoint.keep_every_steps, 700);
  EXPECT_EQ(run->checkpoint.good_after_steps, 9);
  Says(SetError("checkpoint.max_failed_saves=0"), "checkpoint.max_failed_saves=0 is not between 1");
}

TEST(Config, FilesThatCannotBeReadAreNamed) {
  for (const std::string path : {"/nonexistent/x.textproto", "/", ""}) {
    const absl::StatusOr<RunSpec> run = LoadRun(path, {});
    ASSERT_FALSE(run.ok());
    Says(std::string(run.status().message()), path);
  }
}

TEST(Suggest, DistancesCountEditsAndSwaps) {
  EXPECT_EQ(EditDistance("num_heads", "num_heads"), 0);
  EXPECT_EQ(EditDistance("num_heads", "NUM-HEADS"), 0);
  EXPECT_EQ(EditDistance("num_haeds", "num_heads"), 1);  // a swap
  EXPECT_EQ(EditDistance("num_hads", "num_heads"), 1);
  EXPECT_EQ(EditDistance("", "abc"), 3);
  EXPECT_EQ(EditDistance("kitten", "sitting"), 3);
}

TEST(Suggest, OnlyNearNamesAreSuggested) {
  const std::vector<std::string> names = {"train", "plan", "generate", "warmup_steps"};
  EXPECT_EQ(Nearest("trian", names), "train");
  EXPECT_EQ(Nearest("gen", names), "generate");
  EXPECT_EQ(Nearest("warmup", names), "warmup_steps");
  EXPECT_EQ(Nearest("steps", names), "warmup_steps");
  EXPECT_EQ(Nearest("zebra", names), "");
  EXPECT_EQ(Nearest("", names), "");
}
}  // namespace
}  // namespace carousel
