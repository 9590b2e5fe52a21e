// Token files: Megatron's bytes, the writer, and every error a damaged or wrong file must give.
#include "core/data/token_file.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <numeric>

#include "core/data/crc32c.h"
#include "core/data/dataset.h"
#include "tests/data_testing.h"

namespace carousel {
namespace {
constexpr auto kDataLoss = absl::StatusCode::kDataLoss;

// The check value of the CRC catalogue and RFC 3720, B.4.
TEST(Crc32c, MatchesPublishedValues) {
  EXPECT_EQ(ExtendCrc32c(0, "123456789", 9), 0xE3069283u);
  EXPECT_EQ(ExtendCrc32c(0, std::string(32, '\0').data(), 32), 0x8A9136AAu);
  EXPECT_EQ(ExtendCrc32c(0, std::string(32, '\xFF').data(), 32), 0x62A8AB43u);
}

TEST(Crc32c, ExtendsOverAnyCut) {
  const std::string bytes = RandomBytes(100, 1);
  const uint32_t whole = ExtendCrc32c(0, bytes.data(), 100);
  for (int64_t cut = 0; cut <= 100; ++cut) {
    EXPECT_EQ(ExtendCrc32c(ExtendCrc32c(0, bytes.data(), cut), bytes.data() + cut, 100 - cut), whole);
  }
}

TEST(TokenFile, ReadsWhatMegatronWritesForEveryIntegerType) {
  const TemporaryFolder folder;
  const std::vector<int32_t> ids = {0, 5, 127, 3, 9, 1};
  const std::vector<int32_t> lengths = {2, 0, 4};
  const auto write = [&]<class T>(int code, const char* name) {
    std::string bin;
    for (const int32_t id : ids) AppendBytes<T>(&bin, static_cast<T>(id));
    const std::string prefix = folder / name;
    WriteFile(prefix + ".bin", bin);
    WriteFile(prefix + ".idx", MegatronIndex(code, sizeof(T), lengths));
    const auto file = MustOpen(prefix);
    ASSERT_NE(file, nullptr);
    EXPECT_STREQ(NameOf(file->dtype()), name);
    EXPECT_EQ(BytesPerToken(file->dtype()), static_cast<int64_t>(sizeof(T)));
    EXPECT_EQ(file->num_sequences(), 3);
    EXPECT_EQ(file->num_documents(), 3);
    EXPECT_EQ(file->DocumentLength(1), 0);
    EXPECT_EQ(file->DocumentBegin(2), 2);
    EXPECT_EQ(file->DocumentLength(2), 4);
    EXPECT_FALSE(file->meta().has_value());
    EXPECT_EQ(AllTokens(*file), ids);
  };
  write.operator()<uint8_t>(1, "u8");
  write.operator()<int8_t>(2, "i8");
  write.operator()<int16_t>(3, "i16");
  write.operator()<int32_t>(4, "i32");
  write.operator()<int64_t>(5, "i64");
  write.operator()<uint16_t>(8, "u16");
}

TEST(TokenFile, ReadsAnIndexWithModes) {
  const TemporaryFolder folder;
  WriteFile(folder / "a.bin", std::string("\1\2\3", 3));
  WriteFile(folder / "a.idx", MegatronIndex(1, 1, {1, 2}) + std::string(2, '\0'));  // one i8 per sequence
  ASSERT_NE(MustOpen(folder / "a"), nullptr);
}

TEST(TokenFileWriter, WritesTheBytesOfMegatron) {
  const TemporaryFolder folder;
  WriteDocuments(folder / "a", {"hi", "\xFF"});
  std::string bin;
  for (const int id : {104, 105, 256, 0xFF, 256}) AppendBytes<uint16_t>(&bin, static_cast<uint16_t>(id));
  EXPECT_EQ(ReadFile(folder / "a.bin"), bin);
  EXPECT_EQ(ReadFile(folder / "a.idx"), MegatronIndex(8, 2, {3, 2}));
  EXPECT_EQ(folder.NumFiles(), 3);
}

TEST(TokenFileWriter, RoundTripsWithSidecar) {
  const TemporaryFolder folder;
  const std::string long_text = RandomBytes(3'000'000, 2);  // several buffers
  WriteDocuments(folder / "a", {"first", long_text, "last"});
  const auto file = MustOpen(folder / "a");
  ASSERT_NE(file, nullptr);
  const ByteTokenizer tokenizer;
  std::vector<int32_t> expected;
  for (const std::string& text : {std::string("first"), long_text, std::string("last")}) {
    tokenizer.Encode(text, &expected);
    expected.push_back(256);
  }
  EXPECT_EQ(AllTokens(*file), expected);
  EXPECT_EQ(file->num_documents(), 3);
  ASSERT_TRUE(file->meta().has_value());
  EXPECT_EQ(file->meta()->tokenizer, "bytes");
  EXPECT_EQ(file->meta()->vocab_size, 258);
  EXPECT_EQ(file->meta()->eod_id, 256);
  EXPECT_EQ(file->meta()->num_tokens, 3'000'012);
  EXPECT_EQ(file->meta()->text_bytes, 3'000'009);
  EXPECT_TRUE(file->VerifyChecksums().ok()) << file->VerifyChecksums();
  EXPECT_TRUE(file->CheckTokenIds(258, 2).ok());
  EXPECT_TRUE(file->CheckTokenizer("bytes").ok());
  // Across document boundaries, at both ends.
  std::vector<int32_t> part(8);
  file->Read(2, part);
  EXPECT_EQ(part, std::vector<int32_t>(expected.begin() + 2, expected.begin() + 10));
  file->Read(file->num_tokens() - 8, part);
  EXPECT_EQ(part, std::vector<int32_t>(expected.end() - 8, expected.end()));
}

TEST(TokenFileWriter, SplitsLongDocumentsIntoSequences) {
  const TemporaryFolder folder;
  const ByteTokenizer tokenizer;
  TokenFileWriter::Options options;
  options.max_sequence_tokens = 4;
  auto writer = TokenFileWriter::Create(folder / "a", tokenizer, options);
  ASSERT_TRUE(writer.ok());
  std::vector<int32_t> ids(11);
  std::iota(ids.begin(), ids.end(), 0);
  ASSERT_TRUE((*writer)->Append(std::span<const int32_t>(ids).first(5), 5).ok());
  ASSERT_TRUE((*writer)->Append(std::span<const int32_t>(ids).subspan(5), 6).ok());
  ASSERT_TRUE((*writer)->EndDocument().ok());
  ASSERT_TRUE((*writer)->Append(std::span<const int32_t>(ids).first(4), 4).ok());
  ASSERT_TRUE((*writer)->EndDocument().ok());
  ASSERT_TRUE((*writer)->Commit().ok());
  const auto file = MustOpen(folder / "a");
  ASSERT_NE(file, nullptr);
  EXPECT_EQ(file->num_sequences(), 3 + 2);
  EXPECT_EQ(file->num_documents(), 2);
  EXPECT_EQ(file->DocumentLength(0), 12);
  EXPECT_EQ(file->DocumentLength(1), 5);
  ids.insert(ids.end(), {256, 0, 1, 2, 3, 256});
  EXPECT_EQ(AllTokens(*file), ids);
}

TEST(TokenFileWriter, LeavesNothingWithoutCommit) {
  const TemporaryFolder folder;
  {
    auto writer = TokenFileWriter::Create(folder / "a", ByteTokenizer(), {});
    ASSERT_TRUE(writer.ok());
    ASSERT_TRUE((*writer)->Append(std::vector<int32_t>{1, 2}, 2).ok());
    EXPECT_EQ(TokenFile::Open(folder / "a").status().code(), absl::StatusCode::kNotFound);
  }
  EXPECT_EQ(folder.NumFiles(), 0);
}

TEST(TokenFileWriter, KeepsLabelsThatItWouldRemoveUnlessAsked) {
  const TemporaryFolder folder;
  std::ofstream(folder / "a.labels") << "precious";
  ExpectError(TokenFileWriter::Create(folder / "a", ByteTokenizer(), {}).status(),
              absl::StatusCode::kAlreadyExists, {folder / "a.labels", "--force"});
  EXPECT_TRUE(std::filesystem::exists(folder / "a.labels"));
}

TEST(TokenFileWriter, ReplacesOnlyWhenAsked) {
  const TemporaryFolder folder;
  WriteDocuments(folder / "a", {"old"});
  ExpectError(TokenFileWriter::Create(folder / "a", ByteTokenizer(), {}).status(),
              absl::StatusCode::kAlreadyExists, {folder / "a.bin", "--force"});
  TokenFileWriter::Options options;
  options.overwrite = true;
  {
    auto abandoned = TokenFileWriter::Create(folder / "a", ByteTokenizer(), options);
    ASSERT_TRUE(abandoned.ok());
    ASSERT_TRUE((*abandoned)->Append(std::vector<int32_t>{1}, 1).ok());
  }
  EXPECT_EQ(AllTokens(*MustOpen(folder / "a")), (std::vector<int32_t>{'o', 'l', 'd', 256}));
  auto writer = TokenFileWriter::Create(folder / "a", ByteTokenizer(), options);
  ASSERT_TRUE(writer.ok());
  ASSERT_TRUE((*writer)->Append(std::vector<int32_t>{'n'}, 1).ok());
  ASSERT_TRUE((*writer)->EndDocument().ok());
  ASSERT_TRUE((*writer)->Commit().ok());
  EXPECT_EQ(AllTokens(*MustOpen(folder / "a")), (std::vector<int32_t>{'n', 256}));
}

TEST(TokenFileWriter, ReportsADiskThatIsFull) {
  struct stat info;
  if (stat("/dev/full", &info) != 0) GTEST_SKIP() << "no /dev/full here";
  // The temporary name leads to a device that is always full.
  const TemporaryFolder folder;
  const std::string temporary = folder / "a.bin.tmp." + std::to_string(getpid());
  ASSERT_EQ(symlink("/dev/full", temporary.c_str()), 0);
  auto writer = TokenFileWriter::Create(folder / "a", ByteTokenizer(), {});
  ASSERT_TRUE(writer.ok()) << writer.status();
  ExpectError((*writer)->Append(std::vector<int32_t>(2'000'000, 1), 1), absl::StatusCode::kResourceExhausted,
              {folder / "a.bin", "No space left"});
}

TEST(TokenFileWriter, NamesAnUnusableOutput) {
  const TemporaryFolder folder;
  WriteFile(folder / "file", "x");
  EXPECT_FALSE(TokenFileWriter::Create(folder / "file/a", ByteTokenizer(), {}).ok());
  ExpectError(TokenFileWriter::Create(folder / "sub/", ByteTokenizer(), {}).status(),
              absl::StatusCode::kInvalidArgument, {"sub/", "PREFIX"});
  EXPECT_TRUE(TokenFileWriter::Create(folder / "new/deep/a", ByteTokenizer(), {}).ok());
}

TEST(TokenFile, SaysHowToNameAFileThatIsMissing) {
  const TemporaryFolder folder;
  ExpectError(TokenFile::Open(folder / "a").status(), absl::StatusCode::kNotFound,
              {folder / "a.idx", "PREFIX", "carousel data build"});
  WriteDocuments(folder / "a", {"x"});
  ExpectError(TokenFile::Open(folder / "a.bin").status(), absl::StatusCode::kNotFound,
              {"leave the suffix out", "\"" + (folder / "a") + "\""});
  std::filesystem::remove(folder / "a.bin");
  ExpectError(TokenFile::Open(folder / "a").status(), absl::StatusCode::kNotFound, {folder / "a.bin"});
  std::filesystem::create_directory(folder / "d.idx");
  ExpectError(TokenFile::Open(folder / "d").status(), absl::StatusCode::kFailedPrecondition,
              {"not a regular file", "give another path"});
}

// A file of two documents whose parts the tests below damage.
class DamagedTokenFile : public testing::Test {
 protected:
  void SetUp() override {
    WriteDocuments(prefix_, {"hello", "you"});  // 6 + 4 tokens, 20 bytes
    idx_ = ReadFile(prefix_ + ".idx");
    bin_ = ReadFile(prefix_ + ".bin");
    meta_ = ReadFile(prefix_ + ".meta");
  }
  absl::Status OpenWithIndex(const std::string& idx) {
    WriteFile(prefix_ + ".idx", idx);
    return TokenFile::Open(prefix_).status();
  }
  template <class T>
  absl::Status OpenWithPatch(size_t offset, T value) {
    std::string idx = idx_;
    std::memcpy(idx.data() + offset, &value, sizeof(T));
    return OpenWithIndex(idx);
  }
  absl::Status OpenWithMeta(const std::string& from, const std::string& to) {
    std::string meta = meta_;
    const size_t at = meta.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    WriteFile(prefix_ + ".meta", meta.replace(at, from.size(), to));
    return TokenFile::Open(prefix_).status();
  }
  const TemporaryFolder folder_;
  const std::string prefix_ = folder_ / "a";
  std::string idx_, bin_, meta_;
};

TEST_F(DamagedTokenFile, IsRefusedWhereverTheIndexIsCut) {
  for (size_t size = 0; size < idx_.size(); ++size) {
    const absl::Status status = OpenWithIndex(idx_.substr(0, size));
    EXPECT_EQ(status.code(), kDataLoss) << size << ": " << status;
    EXPECT_NE(std::string(status.message()).find(std::to_string(size) + " bytes"), std::string::npos)
        << status;
  }
  EXPECT_EQ(OpenWithIndex(idx_ + "x").code(), kDataLoss);
  EXPECT_TRUE(OpenWithIndex(idx_).ok());
}

TEST_F(DamagedTokenFile, IsRefusedWhereverTheTokensAreCut) {
  for (size_t size = 0; size < bin_.size(); ++size) {
    WriteFile(prefix_ + ".bin", bin_.substr(0, size));
    ExpectError(TokenFile::Open(prefix_).status(), kDataLoss,
                {prefix_ + ".bin holds " + std::to_string(size) + " bytes", prefix_ + ".idx", "cut off"});
  }
  WriteFile(prefix_ + ".bin", bin_ + "xy");
  ExpectError(TokenFile::Open(prefix_).status(), kDataLoss, {"holds 22 bytes", "describes 20"});
}

TEST_F(DamagedTokenFile, NamesWhatIsWrongInTheHeader) {
  ExpectError(OpenWithPatch<char>(0, 'X'), kDataLoss, {"MMIDIDX"});
  ExpectError(OpenWithPatch<uint64_t>(9, 2), absl::StatusCode::kUnimplemented, {"version 2", "version 1"});
  ExpectError(OpenWithPatch<uint8_t>(17, 7), absl::StatusCode::kUnimplemented, {"floating-point"});
  ExpectError(OpenWithPatch<uint8_t>(17, 6), absl::StatusCode::kUnimplemented, {"floating-point"});
  ExpectError(OpenWithPatch<uint8_t>(17, 0), kDataLoss, {"dtype code 0"});
  ExpectError(OpenWithPatch<uint8_t>(17, 9), kDataLoss, {"dtype code 9"});
  ExpectError(OpenWithPatch<uint8_t>(17, 4), kDataLoss, {"holds 20 bytes", "at least 24"});
  ExpectError(OpenWithPatch<uint8_t>(17, 1), kDataLoss, {"sequence 1", "byte 12", "byte 6"});
}

TEST_F(DamagedTokenFile, IsNotFooledByCountsThatOverflow) {
  for (const uint64_t count :
       {uint64_t{3}, uint64_t{1} << 32, uint64_t{1} << 61, uint64_t{1} << 63, ~uint64_t{0}, ~uint64_t{0} / 12,
        ~uint64_t{0} / 12 + 1, ~uint64_t{0} / 20 + 1}) {
    ExpectError(OpenWithPatch<uint64_t>(18, count), kDataLoss, {std::to_string(count) + " sequences"});
    if (count == 3) continue;  // the right number of document entries
    ExpectError(OpenWithPatch<uint64_t>(26, count), kDataLoss, {std::to_string(count) + " document entries"});
  }
}

TEST_F(DamagedTokenFile, NamesTheSequenceOrDocumentThatIsWrong) {
  // Lengths at 34 and 38, pointers at 42 and 50, documents at 58, 66, 74.
  ExpectError(OpenWithPatch<int32_t>(38, -1), kDataLoss, {"sequence 1 has -1 tokens"});
  ExpectError(OpenWithPatch<int32_t>(38, INT32_MAX), kDataLoss, {"holds 20 bytes", "at least 4294967306"});
  ExpectError(OpenWithPatch<int32_t>(34, 5), kDataLoss, {"sequence 1", "byte 12; expected", "byte 10"});
  ExpectError(OpenWithPatch<int64_t>(42, 2), kDataLoss, {"sequence 0"});
  ExpectError(OpenWithPatch<int64_t>(50, -12), kDataLoss, {"sequence 1"});
  ExpectError(OpenWithPatch<int64_t>(58, 1), kDataLoss, {"document entry 0"});
  ExpectError(OpenWithPatch<int64_t>(66, 3), kDataLoss, {"document entry 1"});
  ExpectError(OpenWithPatch<int64_t>(66, -1), kDataLoss, {"document entry 1"});
  ExpectError(OpenWithPatch<int64_t>(74, 1), kDataLoss, {"document entry 2"});
}

TEST_F(DamagedTokenFile, IsFoundByItsChecksums) {
  for (const char* suffix : {".bin", ".idx"}) {
    std::string bytes = suffix == std::string(".bin") ? bin_ : idx_;
    // A token, or the middle document entry (2 documents of 1 and 1 become 0 and 2 sequences): still
    // well-formed.
    bytes[suffix == std::string(".bin") ? 4 : 66] ^= 1;
    WriteFile(prefix_ + suffix, bytes);
    const auto file = MustOpen(prefix_);
    ASSERT_NE(file, nullptr);
    ExpectError(file->VerifyChecksums(), kDataLoss, {prefix_ + suffix, "CRC-32C"});
    WriteFile(prefix_ + ".bin", bin_);
    WriteFile(prefix_ + ".idx", idx_);
  }
}

TEST_F(DamagedTokenFile, IsRefusedIfTheSidecarDoesNotFit) {
  ExpectError(OpenWithMeta("\"num_tokens\": 10", "\"num_tokens\": 11"), kDataLoss,
              {prefix_ + ".meta", "11 tokens", "has 10"});
  ExpectError(OpenWithMeta("\"num_documents\": 2", "\"num_documents\": 3"), kDataLoss, {"3 documents"});
  ExpectError(OpenWithMeta("\"eod_id\": 256", "\"eod_id\": 258"), kDataLoss, {"eod_id 258"});
  ExpectError(OpenWithMeta("\"eod_id\": 256", "\"eod_id\": -1"), kDataLoss, {"\"eod_id\""});
  ExpectError(OpenWithMeta("\"version\": 1", "\"version\": 3"), absl::StatusCode::kUnimplemented,
              {"version 3"});
  ExpectError(OpenWithMeta("\"version\": 1", "\"version\": 1.5"), kDataLoss, {"\"version\""});
  ExpectError(OpenWithMeta("\"vocab_size\"", "\"vocab_sise\""), kDataLoss, {"\"vocab_size\""});
  ExpectError(OpenWithMeta("\"bin_crc32c\": \"", "\"bin_crc32c\": \"0"), kDataLoss, {"\"bin_crc32c\""});
  ExpectError(OpenWithMeta("\"tokenizer\": \"bytes\"", "\"tokenizer\": 5"), kDataLoss, {"\"tokenizer\""});
  ExpectError(OpenWithMeta("{", "["), kDataLoss, {"JSON object"});
  WriteFile(prefix_ + ".meta", std::string(2'000'000, ' '));
  ExpectError(TokenFile::Open(prefix_).status(), kDataLoss, {"2000000 bytes"});
}

TEST_F(DamagedTokenFile, OfAnotherTokenizerIsRefused) {
  ASSERT_TRUE(OpenWithMeta("\"bytes\"", "\"gpt2\"").ok());
  ExpectError(MustOpen(prefix_)->CheckTokenizer("bytes"), absl::StatusCode::kInvalidArgument,
              {prefix_, "\"gpt2\"", "\"bytes\""});
}

TEST_F(DamagedTokenFile, WithoutASidecarHasNoChecksumAndAnyTokenizer) {
  std::filesystem::remove(prefix_ + ".meta");
  const auto file = MustOpen(prefix_);
  ASSERT_NE(file, nullptr);
  EXPECT_TRUE(file->CheckTokenizer("gpt2").ok());
  ExpectError(file->VerifyChecksums(), absl::StatusCode::kFailedPrecondition, {prefix_ + ".meta"});
}

TEST(CheckTokenIds, FindsTheFirstIdOutsideTheVocabularyWithAnyNumberOfThreads) {
  const TemporaryFolder folder;
  const int64_t n = 100'000;
  for (const int64_t bad :
       {int64_t{0}, int64_t{1}, int64_t{16384}, int64_t{49'999}, int64_t{50'000}, n - 1}) {
    std::string bin;
    for (int64_t i = 0; i < n; ++i) AppendBytes<int32_t>(&bin, i == bad || i == n - 1 ? 258 : 257);
    WriteFile(folder / "a.bin", bin);
    WriteFile(folder / "a.idx", MegatronIndex(4, 4, {static_cast<int32_t>(n)}));
    const auto file = MustOpen(folder / "a");
    ASSERT_NE(file, nullptr);
    EXPECT_TRUE(file->CheckTokenIds(259, 3).ok());
    for (const int num_threads : {1, 2, 3, 16}) {
      ExpectError(file->CheckTokenIds(258, num_threads), absl::StatusCode::kOutOfRange,
                  {folder / "a.bin", "token id 258", "position " + std::to_string(bad) + " ",
                   ">= the vocabulary of 258"});
    }
  }
}

TEST(CheckTokenIds, RefusesNegativeAndHugeIds) {
  const TemporaryFolder folder;
  for (const int64_t id : {int64_t{-1}, int64_t{1} << 32, INT64_MIN}) {
    std::string bin;
    AppendBytes<int64_t>(&bin, 3);
    AppendBytes<int64_t>(&bin, id);
    WriteFile(folder / "a.bin", bin);
    WriteFile(folder / "a.idx", MegatronIndex(5, 8, {2}));
    ExpectError(MustOpen(folder / "a")->CheckTokenIds(258, 1), absl::StatusCode::kOutOfRange,
                {"token id " + std::to_string(id), "position 1 ", id < 0 ? "negative" : ">= the vocabulary"});
  }
}

TEST(Dataset, ReportsTheProblemsOfAllSources) {
  const TemporaryFolder folder;
  WriteDocuments(folder / "good", {"text"});
  WriteDocuments(folder / "eod", {"text"});
  ExpectError(Dataset::Open({{folder / "missing", 1}, {folder / "good", 1}, {folder / "gone", 1}},
                            {.tokenizer = "bytes", .vocab_size = 258})
                  .status(),
              absl::StatusCode::kNotFound, {"missing.idx", "gone.idx"});
  ExpectError(
      Dataset::Open({{folder / "good", 1}, {folder / "eod", 1}}, {.tokenizer = "bytes", .vocab_size = 256})
          .status(),
      absl::StatusCode::kOutOfRange, {"good.bin", "eod.bin", "token id 256 at position 4"});
  EXPECT_TRUE(Dataset::Open({{folder / "good", 1}},
                            {.tokenizer = "bytes", .vocab_size = 256, .scan_token_ids = false})
                  .ok());
}

TEST(Dataset, FingerprintsTheTokens) {
  const TemporaryFolder folder;
  WriteDocuments(folder / "a", {RandomBytes(5000, 1)});
  WriteDocuments(folder / "same", {RandomBytes(5000, 1)});
  WriteDocuments(folder / "other", {RandomBytes(5000, 2)});
  const auto fingerprint = [&](std::vector<DatasetSource> sources) {
    auto dataset = Dataset::Open(sources, {.tokenizer = "bytes", .vocab_size = 258});
    EXPECT_TRUE(dataset.ok()) << dataset.status();
    return dataset->Fingerprint();
  };
  EXPECT_EQ(fingerprint({{folder / "a", 1}}), fingerprint({{folder / "same", 1}}));
  EXPECT_NE(fingerprint({{folder / "a", 1}}), fingerprint({{folder / "other", 1}}));
  EXPECT_NE(fingerprint({{folder / "a", 1}, {folder / "other", 1}}),
            fingerprint({{folder / "other", 1}, {folder / "a", 1}}));
}
}  // namespace
}  // namespace carousel
