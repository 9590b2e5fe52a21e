// Random damage to configs and --set arguments: refused with a message, or accepted and consistent; never a
// crash.
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "configs/load.h"

namespace carousel {
namespace {

// One config of each family.
std::vector<std::string> ValidTexts() {
  std::vector<std::string> texts;
  for (const char* recipe : {"demo_bytes", "demo_paper"}) {
    const absl::StatusOr<RunSpec> run =
        LoadRun(std::string(CAROUSEL_SOURCE_DIR "/configs/") + recipe + ".textproto", {});
    EXPECT_TRUE(run.ok()) << run.status();
    texts.push_back(run.ok() ? run->resolved_text : "");
  }
  return texts;
}

// What all other code relies on when a run was accepted.
void ExpectConsistent(const RunSpec& run) {
  ASSERT_GT(run.model.num_heads, 0);
  ASSERT_GT(run.model.qk_dim, 0);
  ASSERT_GT(run.model.v_dim, 0);
  ASSERT_EQ(run.model.qk_dim % run.model.num_heads, 0);
  ASSERT_EQ(run.model.v_dim % run.model.num_heads, 0);
  ASSERT_GE(run.model.ffn_dim, run.model.family == Family::kLarge ? 1 : 0);
  const ModelSpec& model = run.model;
  for (size_t j = 0; j < model.slstm_at.size(); ++j) {
    ASSERT_GE(model.slstm_at[j], j == 0 ? 0 : model.slstm_at[j - 1] + 1);
    ASSERT_LT(model.slstm_at[j], model.num_blocks);
  }
  if (!model.slstm_at.empty()) {
    ASSERT_GT(model.slstm_num_heads, 0);
    ASSERT_EQ(model.embedding_dim % model.slstm_num_heads, 0);
    ASSERT_GE(model.slstm_conv_kernel, 0);
  }
  if (model.family == Family::kPaper) {
    ASSERT_EQ(model.qk_dim, model.v_dim);
    ASSERT_GE(model.conv_kernel, 1);
    const bool any_mlstm = static_cast<int64_t>(model.slstm_at.size()) < model.num_blocks;
    if (any_mlstm) {
      ASSERT_EQ(model.qk_dim % model.qkv_block_size, 0);
    }
  }
  for (const double rate : {model.dropout, model.ffn_dropout, model.embedding_dropout}) {
    ASSERT_GE(rate, 0);
    ASSERT_LT(rate, 1);
  }
  ASSERT_TRUE(std::isfinite(TrainFlopsPerToken(model, run.sequence_length)));
  ASSERT_GT(run.micro_batch, 0);
  ASSERT_EQ(run.global_batch % run.micro_batch, 0);
  ASSERT_LE(run.micro_batch * run.sequence_length, int64_t{2147483647});
  ASSERT_LE(run.schedule.warmup_steps + run.schedule.cooldown_steps, run.steps);
  ASSERT_GT(NumParameters(run.model), 0);
  const absl::StatusOr<RunSpec> again = LoadRunFromText(run.resolved_text, "again", {});
  ASSERT_TRUE(again.ok()) << again.status() << "\n" << run.resolved_text;
  ASSERT_EQ(again->resolved_text, run.resolved_text);
}

// 1 if the text was accepted.
int LoadOnce(const std::string& text, const std::vector<std::string>& sets) {
  const absl::StatusOr<RunSpec> run = LoadRunFromText(text, "fuzz", {.sets = sets});
  if (run.ok()) {
    ExpectConsistent(*run);
  } else {
    EXPECT_FALSE(run.status().message().empty());
  }
  return run.ok();
}

// Pieces that mean something to the parser.
const std::vector<std::string>& Pieces() {
  static const auto& pieces =
      *new std::vector<std::string>{"{",         "}",           ":",
                                    "\"",        "'",           "#",
                                    "\n",        "<",           ">",
                                    "[",         "]",           ",",
                                    ";",         "-",           "0",
                                    "1",         "-1",          "nan",
                                    "inf",       "1e308",       "true",
                                    "model",     "train",       "BF16",
                                    "\\",        "\\x",         "\xff\xfe",
                                    "\t",        "path: \"x\"", "num_heads: 4",
                                    "0x",        "1.5f",        "1e",
                                    "[a.b/c]",   "data",        "seed",
                                    "[[[[[[[[[", "a{a{a{a{a{",  "99999999999999999999"};
  return pieces;
}

std::string Damage(std::string text, std::mt19937_64& random) {
  const auto below = [&](size_t n) { return static_cast<size_t>(random() % std::max<size_t>(n, 1)); };
  for (size_t edits = 1 + below(3); edits > 0; --edits) {
    const size_t at = below(text.size() + 1);
    switch (below(6)) {
      case 0:
        if (at < text.size()) text[at] = static_cast<char>(random());
        break;
      case 1:
        text.erase(at, below(12));
        break;
      case 2:
        text.insert(at, Pieces()[below(Pieces().size())]);
        break;
      case 3:
        text.resize(at);
        break;
      case 4:
        text.insert(at, text.substr(below(text.size()), below(200)));
        break;
      default: {
        // A number grows, shrinks or changes its sign.
        const size_t digit = text.find_first_of("0123456789", at);
        if (digit != std::string::npos) text.insert(digit, below(2) ? "-" : std::to_string(random()));
      }
    }
  }
  return text;
}

TEST(ConfigFuzz, DamagedTextIsRefusedOrConsistent) {
  std::mt19937_64 random(1);
  const std::vector<std::string> valid = ValidTexts();
  int accepted = 0;
  constexpr int kTries = 6000;
  for (size_t i = 0; i < kTries; ++i) accepted += LoadOnce(Damage(valid[i % valid.size()], random), {});
  // Both outcomes must occur, or the test looks at one half of the code only.
  EXPECT_GT(accepted, kTries / 50);
  EXPECT_LT(accepted, kTries / 2);
}

TEST(ConfigFuzz, RandomBytesAndPiecesAreRefused) {
  std::mt19937_64 random(2);
  for (int i = 0; i < 3000; ++i) {
    std::string text;
    for (size_t n = random() % 40; n > 0; --n) {
      if (random() % 2 == 0) {
        text += Pieces()[random() % Pieces().size()];
      } else {
        text += static_cast<char>(random());
      }
    }
    LoadOnce(text, {});
  }
}

TEST(ConfigFuzz, DeepNestingIsRefused) {
  for (const char* opening : {"a{", "model{", "a:[", "a<", "a{b:[{", "data{train{"}) {
    std::string text;
    for (int i = 0; i < 100000; ++i) text += opening;
    EXPECT_EQ(LoadOnce(text, {}), 0);
  }
}

TEST(ConfigFuzz, DamagedSetArgumentsAreRefusedOrConsistent) {
  std::mt19937_64 random(3);
  const std::vector<std::string> sets = {
      "model.num_heads=4",        "data.train[0].path=\"x\"", "train.compute=BF16", "schedule.peak_lr=1e-3",
      "data.train[1].weight=0.5", "sample.prompt='a\\n'",     "model.ffn_dim=",     "train.seed=1",
      "model.slstm_at=[0, 2]",    "model.slstm_at[0]=1",      "model.slstm_at="};
  const std::vector<std::string> valid = ValidTexts();
  int accepted = 0;
  constexpr int kTries = 3000;
  for (size_t i = 0; i < kTries; ++i) {
    accepted += LoadOnce(valid[i % valid.size()],
                         {Damage(sets[random() % sets.size()], random), sets[random() % sets.size()]});
  }
  EXPECT_GT(accepted, kTries / 50);
  EXPECT_LT(accepted, kTries / 2);
}

TEST(ConfigFuzz, ExtremeNumbersInEveryFieldAreRefusedOrConsistent) {
  const std::vector<std::string> values = {
      "0",   "1",    "-1",   "3",    "2147483647", "2147483648", "1048576",
      "1e9", "1e-9", "1e18", "-1e9", "nan",        "-inf",       "9223372036854775807"};
  for (const std::string& valid : ValidTexts()) {
    int fields = 0;
    for (size_t colon = valid.find(": "); colon != std::string::npos; colon = valid.find(": ", colon + 1)) {
      const size_t end = valid.find_first_of(" ,]\n", colon + 2);
      const std::string old = valid.substr(colon + 2, end - colon - 2);
      if (old.find_first_not_of("[0123456789.e-+") != std::string::npos) continue;
      ++fields;
      const std::string bracket = old.front() == '[' ? "[" : "";
      for (const std::string& value : values) {
        LoadOnce(valid.substr(0, colon + 2) + bracket + value + valid.substr(end), {});
      }
    }
    EXPECT_GT(fields, 40);
  }
}
}  // namespace
}  // namespace carousel
