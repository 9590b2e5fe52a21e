// Byte tokenizer and UTF-8 stream.
#include "core/text/tokenizer.h"

#include <gtest/gtest.h>

#include "core/text/utf8.h"
#include "tests/data_testing.h"

namespace carousel {
namespace {

std::vector<int32_t> Encode(const Tokenizer& tokenizer, const std::string& text) {
  std::vector<int32_t> ids;
  tokenizer.Encode(text, &ids);
  return ids;
}

TEST(ByteTokenizer, HasTheSizesAndSpecialIdsThatFilesAndExportsRelyOn) {
  const ByteTokenizer tokenizer;
  EXPECT_EQ(tokenizer.name(), "bytes");
  EXPECT_EQ(tokenizer.size(), 258);
  EXPECT_EQ(tokenizer.padded_size(), 320);
  EXPECT_EQ(tokenizer.eod_id(), 256);
  EXPECT_EQ(tokenizer.pad_id(), 257);
}

TEST(ByteTokenizer, EncodesEachByteAsItsValue) {
  EXPECT_EQ(Encode(ByteTokenizer(), std::string("A\0\xC3\xA9\xFF", 5)),
            (std::vector<int32_t>{65, 0, 0xC3, 0xA9, 0xFF}));
}

TEST(ByteTokenizer, EncodeAppends) {
  const ByteTokenizer tokenizer;
  std::vector<int32_t> ids = {7};
  tokenizer.Encode("ab", &ids);
  tokenizer.Encode("", &ids);
  tokenizer.Encode("c", &ids);
  EXPECT_EQ(ids, (std::vector<int32_t>{7, 97, 98, 99}));
}

TEST(ByteTokenizer, DecodesEverythingItEncodes) {
  const ByteTokenizer tokenizer;
  const std::string text = RandomBytes(10000, 1);
  EXPECT_EQ(tokenizer.Decode(Encode(tokenizer, text)), text);
}

TEST(ByteTokenizer, DecodesPiecesToTheSameBytesAsTheWhole) {
  const ByteTokenizer tokenizer;
  const std::string text = "na\xC3\xAFve \xF0\x9F\x98\x80";
  const std::vector<int32_t> ids = Encode(tokenizer, text);
  std::string out;
  for (const int32_t id : ids) out += tokenizer.Decode(std::span<const int32_t>(&id, 1));
  EXPECT_EQ(out, text);
}

TEST(ByteTokenizer, DecodesSpecialAndUnknownIdsToNothing) {
  EXPECT_EQ(ByteTokenizer().Decode(std::vector<int32_t>{256, 'x', 257, 300, -1, 'y', INT32_MAX}), "xy");
}

TEST(ByteTokenizer, NamesTokensForPeople) {
  const ByteTokenizer t;
  EXPECT_EQ(t.TokenName('a'), "'a'");
  EXPECT_EQ(t.TokenName('\n'), "0x0a");
  EXPECT_EQ(t.TokenName(255), "0xff");
  EXPECT_EQ(t.TokenName(256), "<eod>");
  EXPECT_EQ(t.TokenName(257), "<pad>");
  EXPECT_EQ(t.TokenName(300), "<unused 300>");
  EXPECT_EQ(t.TokenName(-1), "<unused -1>");
}

TEST(MakeTokenizer, KnowsItsNamesAndListsThemOtherwise) {
  const auto bytes = MakeTokenizer("bytes");
  ASSERT_TRUE(bytes.ok());
  EXPECT_EQ((*bytes)->name(), "bytes");
  ExpectError(MakeTokenizer("bpe").status(), absl::StatusCode::kInvalidArgument, {"\"bpe\"", "bytes"});
}

std::string PushAll(const std::string& bytes, size_t piece) {
  Utf8Stream stream;
  std::string out;
  for (size_t i = 0; i < bytes.size(); i += piece) out += stream.Push(bytes.substr(i, piece));
  return out + stream.Finish();
}

TEST(Utf8Stream, GivesWellFormedTextUnchangedWhateverThePieces) {
  const std::string text = "a\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80z\xED\x9F\xBF\xF4\x8F\xBF\xBF\n";
  for (size_t piece = 1; piece <= text.size(); ++piece) EXPECT_EQ(PushAll(text, piece), text) << piece;
}

TEST(Utf8Stream, HoldsAnUnfinishedCharacterBack) {
  Utf8Stream stream;
  EXPECT_EQ(stream.Push("x\xF0\x9F"), "x");
  EXPECT_EQ(stream.Push("\x98"), "");
  EXPECT_EQ(stream.Push("\x80y"), "\xF0\x9F\x98\x80y");
  EXPECT_EQ(stream.Push("\xE2\x82"), "");
  EXPECT_EQ(stream.Finish(), "\xEF\xBF\xBD");
  EXPECT_EQ(stream.Finish(), "");
}

// The example of the Unicode standard, section 3.9, table 3-8 and others like it.
TEST(Utf8Stream, ReplacesEachMaximalSubpartOnce) {
  const std::string r = "\xEF\xBF\xBD";
  const std::pair<std::string, std::string> cases[] = {
      {"\x61\xF1\x80\x80\xE1\x80\xC2\x62\x80\x63\x80\xBF\x64", "a" + r + r + r + "b" + r + "c" + r + r + "d"},
      {"\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41", r + r + r + r + r + r + r + r + "A"},
      {"\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41", r + r + r + r + r + r + r + r + "A"},
      {"\xF4\x91\x92\x93\xFF\x41\x80\xBF\x42", r + r + r + r + r + "A" + r + r + "B"},
      {"\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41", r + r + r + r + "A"},
  };
  for (const auto& [bytes, expected] : cases) {
    for (size_t piece = 1; piece <= bytes.size(); ++piece)
      EXPECT_EQ(PushAll(bytes, piece), expected) << piece;
  }
}
}  // namespace
}  // namespace carousel
