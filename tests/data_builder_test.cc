// From text to token files.
#include "core/data/builder.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cmath>
#include <map>
#include <thread>

#include "core/data/json_lines.h"
#include "core/data/synthetic_text.h"
#include "tests/data_testing.h"

namespace carousel {
namespace {
constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;

// The documents of a file as text, without their EOD.
std::vector<std::string> Documents(const std::string& prefix) {
  const auto file = MustOpen(prefix);
  std::vector<std::string> documents;
  if (file == nullptr) return documents;
  for (int64_t d = 0; d < file->num_documents(); ++d) {
    std::vector<int32_t> ids(static_cast<size_t>(file->DocumentLength(d)));
    file->Read(file->DocumentBegin(d), ids);
    EXPECT_EQ(ids.back(), 256);
    ids.pop_back();
    for (const int32_t id : ids) EXPECT_LT(id, 256);
    documents.push_back(ByteTokenizer().Decode(ids));
  }
  EXPECT_TRUE(file->VerifyChecksums().ok());
  return documents;
}

class Build : public testing::Test {
 protected:
  std::string Input(const std::string& name, const std::string& bytes) {
    WriteFile(folder_ / name, bytes);
    return folder_ / name;
  }
  absl::Status Run(const BuildSpec& spec) {
    auto result = BuildTokenFiles(spec, ByteTokenizer());
    if (result.ok()) result_ = *result;
    return result.status();
  }
  const TemporaryFolder folder_;
  const std::string out_ = folder_ / "out";
  BuildResult result_;
};

TEST_F(Build, MakesEachTextFileOneDocumentInOrder) {
  const std::string first = RandomBytes(700'000, 1);  // several pieces
  ASSERT_TRUE(Run({.inputs = {Input("b.txt", first), Input("a.TXT", "second"), Input("c.md", "third\n")},
                   .output = out_})
                  .ok());
  EXPECT_EQ(Documents(out_), (std::vector<std::string>{first, "second", "third\n"}));
  ASSERT_EQ(result_.files.size(), 1u);
  EXPECT_EQ(result_.files[0].num_tokens, 700'015);
  EXPECT_EQ(result_.files[0].text_bytes, 700'012);
  EXPECT_EQ(result_.files[0].num_documents, 3);
  EXPECT_EQ(result_.input_bytes, 700'012);
}

TEST_F(Build, CutsValidationExactlyOffPlainText) {
  const std::string a = RandomBytes(600'000, 1), b = RandomBytes(300'000, 2);
  std::string ascii = a + b;
  for (char& c : ascii) c = static_cast<char>(c & 0x7F);
  const std::string first = ascii.substr(0, 600'000), second = ascii.substr(600'000);
  for (const double fraction : {0.1, 0.25, 1.0 / 3, 0.5, 0.999, 1e-5}) {
    ASSERT_TRUE(Run({.inputs = {Input("a.txt", first), Input("b.txt", second)},
                     .output = out_,
                     .validation_fraction = fraction,
                     .overwrite = true})
                    .ok());
    std::string train, valid;
    for (const std::string& d : Documents(out_ + "_train")) train += d;
    for (const std::string& d : Documents(out_ + "_valid")) valid += d;
    EXPECT_EQ(train.size(), static_cast<size_t>(900'000 * (1 - fraction))) << fraction;
    EXPECT_EQ(train + valid, ascii);
  }
}

TEST_F(Build, NeverCutsACharacterInTwo) {
  const std::string euro = "\xE2\x82\xAC";
  std::string text;
  for (int i = 0; i < 100; ++i) text += euro;
  for (int percent = 1; percent < 100; ++percent) {
    ASSERT_TRUE(Run({.inputs = {Input("a.txt", text)},
                     .output = out_,
                     .validation_fraction = percent / 100.0,
                     .overwrite = true})
                    .ok());
    const auto train = Documents(out_ + "_train"), valid = Documents(out_ + "_valid");
    ASSERT_EQ(train.size(), 1u);
    ASSERT_EQ(valid.size(), 1u);
    EXPECT_EQ(train[0].size() % 3, 0u) << percent;
    EXPECT_EQ(train[0] + valid[0], text);
  }
}

TEST_F(Build, SplitsAtASeparatorWhereverItFallsInThePieces) {
  // The separator straddles the boundary of read pieces (2^18 bytes) at every offset.
  for (int shift = 0; shift <= 6; ++shift) {
    const std::string first = std::string((1 << 18) - shift, 'x');
    ASSERT_TRUE(Run({.inputs = {Input("a.txt", first + "<SEP>" + "<SE<SEP>P>" + "<SEP><SEP>end<SEP>")},
                     .output = out_,
                     .document_separator = "<SEP>",
                     .overwrite = true})
                    .ok());
    EXPECT_EQ(Documents(out_), (std::vector<std::string>{first, "<SE", "P>", "end"}));
    EXPECT_EQ(result_.num_empty_documents, 1);
  }
}

TEST_F(Build, SeparatesDocumentsWithoutJoiningFiles) {
  ASSERT_TRUE(Run({.inputs = {Input("a.txt", "1\f2"), Input("b.txt", "3\f\f4\f")},
                   .output = out_,
                   .document_separator = "\f"})
                  .ok());
  EXPECT_EQ(Documents(out_), (std::vector<std::string>{"1", "2", "3", "4"}));
}

TEST_F(Build, CutsValidationBetweenSeparatedDocuments) {
  std::string text;
  std::vector<std::string> documents;
  for (int d = 0; d < 100; ++d) {
    documents.push_back(std::string(99, static_cast<char>('a' + d % 26)));
    text += documents.back() + "\f";
  }
  ASSERT_TRUE(Run({.inputs = {Input("a.txt", text)},
                   .output = out_,
                   .document_separator = "\f",
                   .validation_fraction = 0.095})
                  .ok());  // byte 9050: inside document 90
  EXPECT_EQ(Documents(out_ + "_train"), std::vector<std::string>(documents.begin(), documents.begin() + 91));
  EXPECT_EQ(Documents(out_ + "_valid"), std::vector<std::string>(documents.begin() + 91, documents.end()));
}

TEST_F(Build, ReadsJsonLines) {
  const std::string lines =
      "\xEF\xBB\xBF{\"text\": \"plain\"}\n"  // byte order mark
      "\n"
      "  \t\r\n"
      "{\"id\": 7, \"meta\": {\"text\": \"not this\", \"a\": [1, {\"text\": 2}]}, \"text\": \"after\"}\r\n"
      "{\"text\": \"tab\\t newline\\n quote\\\" slash\\/ \\u0041 \\u00e9 \\u20ac \\ud83d\\ude00 \\u0000.\"}\n"
      "{\"text\": \"na\xC3\xAFve \xF0\x9F\x98\x80\", \"extra\": null, \"more\": [[]], \"x\": -1.5e3, \"y\": "
      "true}\n"
      "{\"text\": \"\"}\n"
      "{\"text\": \"one\", \"text\": \"two\"}\n"
      "{\"\\u0074ext\": \"escaped name\"}\n"
      "{\"text\": \"no newline at the end\"}";
  ASSERT_TRUE(Run({.inputs = {Input("a.jsonl", lines)}, .output = out_}).ok());
  EXPECT_EQ(Documents(out_),
            (std::vector<std::string>{
                "plain", "after",
                std::string("tab\t newline\n quote\" slash/ A \xC3\xA9 \xE2\x82\xAC \xF0\x9F\x98\x80 ") +
                    '\0' + ".",
                "na\xC3\xAFve \xF0\x9F\x98\x80", "two", "escaped name", "no newline at the end"}));
  EXPECT_EQ(result_.num_empty_documents, 1);
}

TEST_F(Build, ReadsLinesLongerThanItsPieces) {
  std::vector<std::string> documents;
  std::string lines;
  for (const size_t size : {1'000'000, 3, 262'144, 262'143, 700'000}) {
    documents.push_back(std::string(size, static_cast<char>('a' + documents.size())));
    lines += "{\"content\": \"" + documents.back() + "\"}\n";
  }
  ASSERT_TRUE(Run({.inputs = {Input("a.ndjson", lines)}, .output = out_, .text_field = "content"}).ok());
  EXPECT_EQ(Documents(out_), documents);
}

TEST_F(Build, CutsValidationBetweenLines) {
  std::string lines;
  for (int d = 0; d < 1000; ++d)
    lines += "{\"text\": \"" + std::to_string(1000 + d) + "\"}\n";  // 17 bytes each
  ASSERT_TRUE(Run({.inputs = {Input("a.jsonl", lines)}, .output = out_, .validation_fraction = 0.2}).ok());
  const auto train = Documents(out_ + "_train"), valid = Documents(out_ + "_valid");
  ASSERT_EQ(train.size(), 800u);
  ASSERT_EQ(valid.size(), 200u);
  EXPECT_EQ(train.back(), "1799");
  EXPECT_EQ(valid.front(), "1800");
}

TEST_F(Build, NamesFileAndLineOfBadJson) {
  const std::string good = "{\"text\": \"x\"}\n";
  const auto error_of = [&](const std::string& line, const std::vector<std::string>& parts) {
    const std::string path = Input("bad.jsonl", good + "\n" + line + "\n" + good);
    std::vector<std::string> all = parts;
    all.push_back(path + ":3: ");
    ExpectError(Run({.inputs = {path}, .output = out_}), kInvalid, all);
    EXPECT_EQ(folder_.NumFiles(), 1);  // the input
  };
  error_of("{\"text\": \"x\"", {"not valid JSON"});
  error_of("{\"text\": \"x\"} trailing", {"not valid JSON at column 17"});
  error_of("hello", {"not valid JSON at column 1"});
  error_of("{\"text\": \"\xFF\"}", {"not valid JSON"});
  error_of("{\"text\": \"\\ud800\"}", {"not valid JSON"});
  error_of("[{\"text\": \"x\"}]", {"not a JSON object"});
  error_of("\"text\"", {"not a JSON object"});
  error_of("{\"body\": \"x\", \"id\": 1}", {"no field \"text\"", "\"body\", \"id\"", "--text_field"});
  error_of("{\"inner\": {\"text\": \"x\"}}", {"no field \"text\"", "\"inner\""});
  error_of("{}", {"no field \"text\"", "empty"});
  error_of("{\"text\": 5}", {"\"text\" is a number"});
  error_of("{\"text\": null}", {"\"text\" is null"});
  error_of("{\"text\": [\"x\"]}", {"\"text\" is an array"});
  error_of("{\"text\": {\"text\": \"x\"}}", {"\"text\" is an object"});
  error_of(std::string("{\"text\": \"a\0b\"}", 14), {"not valid JSON"});
}

TEST(ReadJsonTextField, SurvivesDeepNesting) {
  std::string text,
      line = "{\"a\": " + std::string(200'000, '[') + std::string(200'000, ']') + ", \"text\": \"x\"}";
  ASSERT_TRUE(ReadJsonTextField(line, "text", &text).ok());
  EXPECT_EQ(text, "x");
}

TEST_F(Build, RefusesWhatItCannotRead) {
  ExpectError(Run({.inputs = {}, .output = out_}), kInvalid, {"no input"});
  ExpectError(Run({.inputs = {folder_ / "gone.txt", folder_ / "lost.txt"}, .output = out_}),
              absl::StatusCode::kNotFound, {"gone.txt", "lost.txt"});
  ExpectError(Run({.inputs = {folder_ / ""}, .output = out_}), kInvalid, {"is a folder"});
  ExpectError(Run({.inputs = {Input("a.jsonl.gz", "x")}, .output = out_}), kInvalid,
              {"a.jsonl.gz", "--format", "zcat"});
  ExpectError(Run({.inputs = {Input("a.txt", "x")}, .output = out_, .validation_fraction = 1}), kInvalid,
              {"validation_fraction 1", "[0, 1)"});
  ExpectError(Run({.inputs = {Input("a.jsonl", "{}")}, .output = out_, .document_separator = "x"}), kInvalid,
              {"document separator"});
}

TEST_F(Build, RefusesInputWithoutText) {
  ExpectError(Run({.inputs = {Input("a.txt", ""), Input("b.txt", "")}, .output = out_}), kInvalid,
              {"no text", "a.txt", "b.txt"});
  ExpectError(Run({.inputs = {Input("a.jsonl", "\n{\"text\": \"\"}\n")}, .output = out_}), kInvalid,
              {"no text"});
  ExpectError(Run({.inputs = {Input("c.txt", "one document")},
                   .output = out_,
                   .document_separator = "\f",
                   .validation_fraction = 0.5}),
              kInvalid, {"validation part"});
  ExpectError(Run({.inputs = {Input("d.txt", "x")}, .output = out_, .validation_fraction = 0.5}), kInvalid,
              {"training part", "1 bytes"});
}

TEST_F(Build, ReplacesFilesOnlyWhenAsked) {
  const std::string old_input = Input("a.txt", "old"), new_input = Input("b.txt", "new");
  ASSERT_TRUE(Run({.inputs = {old_input}, .output = out_}).ok());
  ExpectError(Run({.inputs = {new_input}, .output = out_}), absl::StatusCode::kAlreadyExists,
              {out_, "--force"});
  EXPECT_EQ(Documents(out_), std::vector<std::string>{"old"});
  // A build that fails leaves the old files.
  EXPECT_FALSE(Run({.inputs = {Input("bad.jsonl", "{")}, .output = out_, .overwrite = true}).ok());
  EXPECT_EQ(Documents(out_), std::vector<std::string>{"old"});
  ASSERT_TRUE(Run({.inputs = {new_input}, .output = out_, .overwrite = true}).ok());
  EXPECT_EQ(Documents(out_), std::vector<std::string>{"new"});
  EXPECT_EQ(folder_.NumFiles(), 3 + 3);  // inputs and .bin, .idx, .meta
}

TEST_F(Build, ReadsAPipe) {
  const std::string pipe = folder_ / "pipe";
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  const std::string text = RandomBytes(1'000'000, 5);
  std::thread writer([&] { std::ofstream(pipe, std::ios::binary).write(text.data(), 1'000'000); });
  const absl::Status status = Run({.inputs = {pipe}, .output = out_, .format = TextFormat::kPlain});
  writer.join();
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(Documents(out_), std::vector<std::string>{text});
  ExpectError(Run({.inputs = {pipe},
                   .output = out_,
                   .format = TextFormat::kPlain,
                   .validation_fraction = 0.1,
                   .overwrite = true}),
              kInvalid, {"not a regular file"});
}

TEST_F(Build, ReportsProgressUpToTheEnd) {
  BuildSpec spec = {.inputs = {Input("a.txt", RandomBytes(1'000'000, 1))}, .output = out_};
  int64_t last = 0, calls = 0;
  spec.progress = [&](int64_t done, int64_t total) {
    EXPECT_GE(done, last);
    EXPECT_EQ(total, 1'000'000);
    last = done;
    ++calls;
  };
  ASSERT_TRUE(Run(spec).ok());
  EXPECT_EQ(last, 1'000'000);
  EXPECT_GT(calls, 2);
}

// A tokenizer that needs whole documents: the id of a document is its length.
class LengthTokenizer final : public Tokenizer {
 public:
  std::string name() const override { return "length"; }
  int64_t size() const override { return 10'000'000; }
  int32_t eod_id() const override { return 0; }
  int32_t pad_id() const override { return 1; }
  void Encode(absl::string_view text, std::vector<int32_t>* ids) const override {
    ids->push_back(static_cast<int32_t>(text.size()));
  }
  bool EncodesPieces() const override { return false; }
  std::string Decode(std::span<const int32_t>) const override { return ""; }
  std::string TokenName(int32_t) const override { return ""; }
};

TEST_F(Build, GivesWholeDocumentsToATokenizerThatNeedsThem) {
  const std::string text = std::string(900'000, 'x') + "\f" + std::string(20, 'y');
  ASSERT_TRUE(BuildTokenFiles({.inputs = {Input("a.txt", text)}, .output = out_, .document_separator = "\f"},
                              LengthTokenizer())
                  .ok());
  const auto file = MustOpen(out_);
  ASSERT_NE(file, nullptr);
  EXPECT_EQ(file->dtype(), TokenDType::kI32);  // too many ids for u16
  EXPECT_EQ(AllTokens(*file), (std::vector<int32_t>{900'000, 0, 20, 0}));
}

TEST(SyntheticText, DependsOnTheSeedAloneNotOnThePieces) {
  SyntheticText whole(1), pieces(1), other(2);
  std::string a, b, c;
  whole.Generate(100'000, &a);
  while (b.size() < 100'000) pieces.Generate(777, &b);
  other.Generate(100'000, &c);
  EXPECT_EQ(a, b.substr(0, a.size()));
  EXPECT_NE(a.substr(0, 1000), c.substr(0, 1000));
  EXPECT_LT(a.size(), 100'016u);
}

// A text of n words carries n H +- sigma sqrt(n) bits; with 5 million bytes, about a million words, and a
// standard deviation of about 2 bits a word, the mean per byte is within 0.1 % of the entropy.
TEST(SyntheticText, CarriesItsEntropy) {
  SyntheticText source(3);
  std::string text;
  source.Generate(5'000'000, &text);
  const double carried = source.information_bits() / static_cast<double>(text.size());
  EXPECT_NEAR(carried, source.entropy_bits_per_byte(), 0.003 * source.entropy_bits_per_byte());
  EXPECT_GT(source.entropy_bits_per_byte(), 0.5);
  EXPECT_LT(source.entropy_bits_per_byte(), 2.5);
  EXPECT_NE(text.find('\n'), std::string::npos);
}

// The entropy again, from the text alone: count words and followers, with no use of the source's tables.
TEST(SyntheticText, HasTheEntropyThatCountingFinds) {
  SyntheticText source(4);
  std::string text;
  source.Generate(5'000'000, &text);
  std::map<std::string, std::map<std::string, int64_t>> followers;
  std::string last, word;
  int64_t num_words = 0;
  for (const char c : text) {
    word.push_back(c);
    if (c != ' ' && c != '\n') continue;
    if (!last.empty()) {
      ++followers[last][word];
      ++num_words;
    }
    last = word;
    word.clear();
  }
  EXPECT_EQ(static_cast<int64_t>(followers.size()), SyntheticText::kWords);
  double bits = 0;
  for (const auto& [from, row] : followers) {
    EXPECT_LE(static_cast<int64_t>(row.size()), SyntheticText::kSuccessors);
    double total = 0;
    for (const auto& [to, count] : row) total += static_cast<double>(count);
    for (const auto& [to, count] : row) bits -= static_cast<double>(count) * std::log2(count / total);
  }
  // Counting overfits: it finds about (kWords kSuccessors / 2 ln 2) bits too few in all (Miller and Madow
  // 1955).
  bits += static_cast<double>(SyntheticText::kWords * SyntheticText::kSuccessors) / (2 * std::log(2.0));
  const double per_byte = bits / static_cast<double>(text.size());
  EXPECT_NEAR(per_byte, source.entropy_bits_per_byte(), 0.005 * source.entropy_bits_per_byte());
}
}  // namespace
}  // namespace carousel
