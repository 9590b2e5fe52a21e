// config.yaml of other programs: what is read, what is refused, and that no text can do harm.
#include "checkpoints/yaml_fields.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <regex>
#include <sstream>

#include "checkpoints/hf_config.h"
#include "tests/hf_testing.h"

namespace carousel {
namespace {
using testing::Contains;
using testing::ExportableSpec;
using Json = nlohmann::json;

Json MustParse(const std::string& text) {
  const auto object = ParseYamlObject(text, "c.yaml");
  EXPECT_TRUE(object.ok()) << object.status() << "\n" << text;
  return object.value_or(Json());
}
// The message, which must begin with the file's name.
std::string Refusal(const std::string& text) {
  const auto object = ParseYamlObject(text, "c.yaml");
  EXPECT_EQ(object.status().code(), absl::StatusCode::kInvalidArgument) << text;
  EXPECT_EQ(object.status().message().substr(0, 6), "c.yaml") << object.status();
  return std::string(object.status().message());
}

TEST(YamlFields, PlainScalarsAreWhatPythonReadersMakeOfThem) {
  const Json object = MustParse(R"(
a: 12   # a comment
b: -7
c: 1e-6
d: 2.6667
e: .5
f: 3.
g: +1.5E+3
h: true
i: Off
j: YES
k: null
l: ~
m:
n: native_sequence__native
"o": "12"
p: 'it''s'
q: 1e5
r: 123456789012345678901234567890
)");
  EXPECT_EQ(object, Json({{"a", 12},
                          {"b", -7},
                          {"c", 1e-6},
                          {"d", 2.6667},
                          {"e", 0.5},
                          {"f", 3.0},
                          {"g", 1500.0},
                          {"h", true},
                          {"i", false},
                          {"j", true},
                          {"k", nullptr},
                          {"l", nullptr},
                          {"m", nullptr},
                          {"n", "native_sequence__native"},
                          {"o", "12"},
                          {"p", "it's"},
                          {"q", 1e5},
                          {"r", 123456789012345678901234567890.0}}));
  EXPECT_TRUE(object["a"].is_number_integer() && object["q"].is_number_float());
}

TEST(YamlFields, WhatReadersDisagreeAboutStaysText) {
  for (const char* text : {"010", "0x10", "1_000", "1:30", ".inf", "-.Inf", ".nan", "1e", "e5", ".", "+",
                           "--1", "1.2.3", "tRue", "nULL", "0o17", "1e+", "-"}) {
    const Json object = MustParse(std::string("a: ") + (std::string(text) == "-" ? "'-'" : text));
    EXPECT_EQ(object["a"], Json(text)) << text;
  }
}

TEST(YamlFields, ReadsNestedMappingsAndListsOfBothStyles) {
  EXPECT_EQ(MustParse("a:\n  b: [1, 2.5, x]\n  c:\n  - 3\n  - {d: 4}\n"),
            Json::parse(R"({"a": {"b": [1, 2.5, "x"], "c": [3, {"d": 4}]}})"));
  EXPECT_EQ(MustParse("{\"a\": {\"b\": [1, null, true]}, \"c\": \"\xc3\xa9\"}"),
            Json::parse(R"({"a": {"b": [1, null, true]}, "c": "\u00e9"})"));
  EXPECT_EQ(MustParse("%YAML 1.1\n---\na: 1\n...\n"), Json({{"a", 1}}));
}

TEST(YamlFields, RefusesWithFileLineAndReason) {
  const std::pair<const char*, const char*> cases[] = {
      {"a: 1\nb: [1, 2\n", "not valid YAML"},
      {"a: 1\n  b: 2\n", "c.yaml:2"},
      {"a: 1\na: 2\n", "c.yaml:2:1: \"a\" is there twice"},
      {"a: &x 1\n", "anchors"},
      {"a: &x [1]\nb: *x\n", "anchors"},
      {"a: *x\n", "anchors"},
      {"a: !!python/object/apply:os.system ['true']\n", "tags"},
      {"a: !!int 3\n", "tags"},
      {"&x a: 3\n", "anchors"},
      {"a: 1\n---\nb: 2\n", "second document"},
      {"", "empty"},
      {"# nothing\n", "empty"},
      {"- 1\n- 2\n", "not a mapping"},
      {"just text", "not a mapping"},
      {"? [1, 2]\n: 3\n", "key"},
      {"a: \xff\xfe\n", "not valid YAML"},
      {"a: 1\tb: 2\n\t- 3\n", "not valid YAML"},
  };
  for (const auto& [text, reason] : cases) {
    EXPECT_NE(Refusal(text).find(reason), std::string::npos) << text << "\n" << Refusal(text);
  }
}

TEST(YamlFields, BoundsSizeDepthAndNumber) {
  EXPECT_NE(Refusal("a: " + std::string(kMaxYamlBytes, 'x')).find("bytes"), std::string::npos);
  for (const char* open : {"[", "{a: "}) {
    std::string deep = "a: ";
    for (int i = 0; i < 20'000; ++i) deep += open;
    EXPECT_NE(Refusal(deep).find("nested deeper"), std::string::npos);
  }
  std::string fits = "a: ";
  for (int i = 0; i < kMaxYamlDepth - 2; ++i) fits += "[";
  fits += "1" + std::string(static_cast<size_t>(kMaxYamlDepth - 2), ']');
  EXPECT_TRUE(ParseYamlObject(fits, "c.yaml").ok());
  std::string many = "a: [";
  for (int i = 0; i <= kMaxYamlValues; ++i) many += "1,";
  EXPECT_NE(Refusal(many + "]").find("more than"), std::string::npos);
}

TEST(YamlFields, WhatIsWrittenReadsBackBitForBit) {
  std::mt19937_64 random(1);
  nlohmann::ordered_json object;
  for (int i = 0; i < 2000; ++i) {
    double value = std::bit_cast<double>(random());
    if (!std::isfinite(value)) continue;
    object["n" + std::to_string(i)] = value;
  }
  for (const double value : {1e-6, 1e300, 5e-324, 1.0, -0.0, 2.6666666666666665, 1e22, 123456789.0}) {
    object["v" + std::to_string(object.size())] = value;
  }
  object["max"] = std::numeric_limits<int64_t>::max();
  object["min"] = std::numeric_limits<int64_t>::min() + 1;
  object["yes_"] = true;
  object["none"] = nullptr;
  object["text"] = "chunkwise--native_autograd";
  const std::string text = YamlText(object);
  EXPECT_EQ(MustParse(text), Json(object));
  // Readers of YAML 1.1 take a number without a point or with a bare exponent for text.
  EXPECT_NE(text.find(": 1.0e-06\n"), std::string::npos);
  EXPECT_NE(text.find(": 1.0e+300\n"), std::string::npos);
  const std::regex float_of_yaml_1_1("[nv][0-9]+: -?[0-9]+\\.[0-9]+(e[-+][0-9]+)?");
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    const bool is_float = (line[0] == 'n' || line[0] == 'v') && line != "none: null";
    EXPECT_TRUE(!is_float || std::regex_match(line, float_of_yaml_1_1)) << line;
  }
}

TEST(YamlFuzz, ChangedConfigsAreRefusedOrMakeAModel) {
  const std::string good = ReferenceConfigYaml(ExportableSpec());
  const char pieces[][12] = {"\n",    ": ",           "- ",  "[",   "{",     "&a ",   "*a",  "!!x ", "|\n",
                             ">\n",   "\"",           "'",   "? ",  "%YAML", "---\n", "...", "\t",   "\xc3",
                             "\xff",  "1e999",        "-0",  "nan", "null",  "#",     "@",   "`",    ",",
                             "\\x00", "\xef\xbb\xbf", "<<: "};
  std::mt19937_64 random(7);
  int accepted = 0;
  for (int round = 0; round < 20'000; ++round) {
    std::string text = good;
    for (int change = 1 + static_cast<int>(random() % 4); change > 0; --change) {
      const size_t at = random() % text.size();
      switch (random() % 4) {
        case 0:
          text[at] = static_cast<char>(random());
          break;
        case 1:
          text.erase(at, random() % 20);
          break;
        case 2:
          text.insert(at, pieces[random() % std::size(pieces)]);
          break;
        default:
          text.insert(at, text.substr(random() % text.size(), random() % 40));
      }
      if (text.empty()) text = "x";
    }
    const auto config = ParseReferenceYaml(text, "c.yaml");
    if (config.ok()) {
      ++accepted;
      ASSERT_GT(config->spec.embedding_dim, 0) << text;
      ASSERT_EQ(config->spec.qk_dim % config->spec.num_heads, 0) << text;
    } else {
      ASSERT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument) << config.status() << "\n"
                                                                            << text;
    }
  }
  EXPECT_GT(accepted, 200);  // else nothing behind the parser was reached
}

TEST(YamlFuzz, RandomBytesAreRefused) {
  std::mt19937_64 random(11);
  for (int round = 0; round < 20'000; ++round) {
    std::string text(random() % 200, '\0');
    // All bytes, or those with a meaning.
    const std::string alphabet = "a1 \n\t:-[]{}&*!|>'\"%@`#,?.~<=\\";
    for (char& c : text)
      c = round % 2 == 0 ? static_cast<char>(random()) : alphabet[random() % alphabet.size()];
    const auto object = ParseYamlObject(text, "c.yaml");
    EXPECT_TRUE(object.ok() || absl::IsInvalidArgument(object.status())) << object.status();
    ASSERT_FALSE(ParseReferenceYaml(text, "c.yaml").ok());
  }
}
}  // namespace
}  // namespace carousel
