// Safetensors files: what is read, what is refused, what is written.
#include "checkpoints/safetensors.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>

#include "tests/temp_dir.h"

namespace carousel {
namespace {

std::string FileOf(const std::string& json, const std::string& data) {
  const uint64_t length = json.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + json + data;
}
absl::StatusOr<SafetensorsHeader> Parse(const std::string& file) {
  if (file.size() >= 8) {
    const auto bytes = SafetensorsHeaderBytes(file.data(), static_cast<int64_t>(file.size()), "f");
    if (!bytes.ok()) return bytes.status();
  }
  return ParseSafetensorsHeader(file, static_cast<int64_t>(file.size()), "f");
}
absl::StatusOr<SafetensorsHeader> Parse(const std::string& json, int64_t data_bytes) {
  return Parse(FileOf(json, std::string(static_cast<size_t>(data_bytes), 'x')));
}
std::string GoldenPath(const std::string& name) {
  return std::string(CAROUSEL_SOURCE_DIR) + "/tests/golden/" + name;
}
void WriteBytes(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

TEST(SafetensorsHeader, ReadsTensorsMetadataScalarsAndEmptyTensorsInFileOrder) {
  const auto header =
      Parse(R"({"b":{"dtype":"F32","shape":[],"data_offsets":[6,10]},"__metadata__":{"k":"v","":""},)"
            R"("a":{"dtype":"BF16","shape":[3,1],"data_offsets":[0,6]},"e":{"dtype":"I64",)"
            R"("shape":[4,0],"data_offsets":[10,10]}}  )",
            10);
  ASSERT_TRUE(header.ok()) << header.status();
  ASSERT_EQ(header->tensors.size(), 3u);
  EXPECT_EQ(header->tensors[0].name, "a");
  EXPECT_EQ(header->tensors[0].shape, (std::vector<int64_t>{3, 1}));
  EXPECT_EQ(header->tensors[1].name, "b");
  EXPECT_EQ(header->tensors[1].num_elems(), 1);
  EXPECT_EQ(header->tensors[2].num_elems(), 0);
  EXPECT_EQ(header->metadata.at("k"), "v");
  EXPECT_EQ(header->Find("b")->begin, 6);
  EXPECT_EQ(header->Find("c"), nullptr);
}

TEST(SafetensorsHeader, AcceptsAFileWithoutTensors) {
  EXPECT_TRUE(Parse("{}", 0).ok());
  EXPECT_TRUE(Parse(R"({"__metadata__":{"format":"pt"}})", 0).ok());
}

struct BadHeader {
  const char* why;  // what the message must say
  std::string json;
  int64_t data_bytes;
};
TEST(SafetensorsHeader, RefusesEveryInconsistencyWithItsReason) {
  const std::string t = R"("dtype":"F32","shape":[2],"data_offsets":[0,8])";
  const BadHeader cases[] = {
      {"NUL", std::string("{}\0x", 4), 0},
      {"begin with {", " {}", 0},
      {"begin with {", "[]", 0},
      {"JSON", "{", 0},
      {"JSON", "{} {}", 0},
      {"JSON", R"({"a":{)" + t + "}", 8},
      {"JSON", "{\"\xff\":{" + t + "}}", 8},
      {"twice", R"({"a":{)" + t + R"(},"a":{)" + t + "}}", 8},
      {"twice", R"({"a":{)" + t + R"(,"shape":[2]}})", 8},
      {"twice", R"({"__metadata__":{"a":"1","a":"2"}})", 0},
      {"unknown field", R"({"a":{)" + t + R"(,"x":1}})", 8},
      {"unknown dtype", R"({"a":{"dtype":"f32","shape":[2],"data_offsets":[0,8]}})", 8},
      {"must have dtype", R"({"a":{"dtype":"F32","shape":[2]}})", 8},
      {"must have dtype", R"({"a":{}})", 0},
      {"two data_offsets", R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8,8]}})", 8},
      {"negative", R"({"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}})", 8},
      {"fraction", R"({"a":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}})", 8},
      {"too large", R"({"a":{"dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,8]}})", 8},
      {"impossible shape", R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}})",
       8},
      {"impossible shape", R"({"a":{"dtype":"F32","shape":[2305843009213693952],"data_offsets":[0,8]}})", 8},
      {"impossible shape", R"({"a":{"dtype":"F4","shape":[3],"data_offsets":[0,2]}})", 2},
      {"needs 8 bytes", R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,7]}})", 7},
      {"needs 8 bytes", R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,12]}})", 12},
      {"begins at byte 4", R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})", 12},
      {"begins at byte 4", R"({"a":{)" + t + R"(},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", 8},
      {"begins at byte 12", R"({"a":{)" + t + R"(},"b":{"dtype":"F32","shape":[1],"data_offsets":[12,16]}})",
       16},
      {"offsets 8 to 0", R"({"z":{)" + t + R"(},"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}})", 8},
      {"need 8 bytes", R"({"a":{)" + t + "}}", 9},
      {"need 8 bytes", R"({"a":{)" + t + "}}", 7},
      {"a number", R"({"__metadata__":{"a":1}})", 0},
      {"an object", R"({"__metadata__":{"a":{}}})", 0},
      {"an array", R"({"__metadata__":[]})", 0},
      {"a string", R"({"__metadata__":"x"})", 0},
      {"null", R"({"a":null})", 0},
      {"an array", R"({"a":[1]})", 0},
      {"an array", R"({"a":{"dtype":"F32","shape":[[2]],"data_offsets":[0,8]}})", 8},
      {"a string", R"({"a":{"dtype":"F32","shape":"2","data_offsets":[0,8]}})", 8},
      {"an array", R"({"a":{"dtype":["F32"],"shape":[2],"data_offsets":[0,8]}})", 8},
  };
  for (const BadHeader& c : cases) {
    const auto header = Parse(c.json, c.data_bytes);
    EXPECT_EQ(header.status().code(), absl::StatusCode::kInvalidArgument) << c.json;
    EXPECT_NE(std::string(header.status().message()).find(c.why), std::string::npos)
        << c.json << ": " << header.status();
  }
}

TEST(SafetensorsHeader, RefusesFilesTooShortForTheirHeader) {
  for (const std::string& file :
       {std::string(), std::string(7, '\0'), FileOf("{}", "").substr(0, 9), std::string(8, '\xff')}) {
    EXPECT_EQ(Parse(file).status().code(), absl::StatusCode::kInvalidArgument) << file.size();
  }
}

TEST(SafetensorsPlan, IsByteForByteWhatTheReferenceLibraryWrites) {
  const auto layout = PlanSafetensors({{"a", SafetensorsDType::kF32, {2}}}, {{"format", "pt"}});
  ASSERT_TRUE(layout.ok());
  EXPECT_EQ(layout->prefix.substr(8),
            R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}   )");
  EXPECT_EQ(layout->prefix.size(), 96u);
  EXPECT_EQ(layout->file_bytes, 104);
}

TEST(SafetensorsPlan, OrdersByFallingTypeThenName) {
  const auto layout = PlanSafetensors({{"u", SafetensorsDType::kU8, {3}},
                                       {"z", SafetensorsDType::kF32, {1}},
                                       {"b", SafetensorsDType::kBF16, {1}},
                                       {"y", SafetensorsDType::kF32, {0}},
                                       {"i", SafetensorsDType::kI64, {2, 2}}},
                                      {}, 4096);
  ASSERT_TRUE(layout.ok());
  std::string order;
  for (const SafetensorsEntry& t : layout->tensors) order += t.name;
  EXPECT_EQ(order, "iyzbu");
  EXPECT_EQ(layout->data_begin(), 4096);
  EXPECT_EQ(layout->file_bytes, 4096 + 32 + 4 + 2 + 3);
  // What we write, we accept.
  std::string file = layout->prefix;
  file.resize(static_cast<size_t>(layout->file_bytes));
  EXPECT_TRUE(Parse(file).ok());
}

TEST(SafetensorsPlan, EscapesNamesAndRefusesBadOnes) {
  const std::string odd = "a\"\\\n\x01\xc3\xa9";
  const auto layout = PlanSafetensors({{odd, SafetensorsDType::kU8, {1}}}, {{odd, odd}});
  ASSERT_TRUE(layout.ok());
  const auto header = Parse(layout->prefix + "x");
  ASSERT_TRUE(header.ok()) << header.status();
  EXPECT_EQ(header->tensors[0].name, odd);
  EXPECT_EQ(header->metadata.at(odd), odd);

  const auto u8 = SafetensorsDType::kU8;
  EXPECT_FALSE(PlanSafetensors({{"\xff", u8, {1}}}, {}).ok());
  EXPECT_FALSE(PlanSafetensors({{"a", u8, {1}}, {"a", SafetensorsDType::kF32, {1}}}, {}).ok());
  EXPECT_FALSE(PlanSafetensors({{"__metadata__", u8, {1}}}, {}).ok());
  EXPECT_FALSE(PlanSafetensors({{"a", u8, {INT64_MAX, 2}}}, {}).ok());
  EXPECT_FALSE(PlanSafetensors({{"a", u8, {-1}}}, {}).ok());
}

TEST(SafetensorsWriter, WritesWhatTheReaderReads) {
  const TempDir dir;
  const std::vector<float> a = {1.5f, -2, 3};
  const std::vector<int32_t> b = {7, -8};
  const auto layout = PlanSafetensors({{"b", SafetensorsDType::kI32, {2}},
                                       {"a", SafetensorsDType::kF32, {3, 1}},
                                       {"none", SafetensorsDType::kF32, {0, 5}}},
                                      {{"format", "pt"}});
  ASSERT_TRUE(layout.ok());
  PosixFileSystem files;
  auto writer = SafetensorsWriter::Create(dir.path() + "/x.safetensors", *layout, files);
  ASSERT_TRUE(writer.ok()) << writer.status();
  ASSERT_TRUE((*writer)->Append("a", a.data(), 8).ok());
  ASSERT_TRUE((*writer)->Append("a", a.data() + 2, 4).ok());
  ASSERT_TRUE((*writer)->Append("b", b.data(), 8).ok());
  ASSERT_TRUE((*writer)->Finish().ok());
  EXPECT_EQ(SafetensorsWriter::Create(dir.path() + "/x.safetensors", *layout, files).status().code(),
            absl::StatusCode::kAlreadyExists);

  const auto reader = SafetensorsReader::Open(dir.path() + "/x.safetensors");
  ASSERT_TRUE(reader.ok()) << reader.status();
  EXPECT_EQ(*reader->ReadAsFloat("a"), a);
  EXPECT_EQ(*reader->ReadAsInt64("b"), (std::vector<int64_t>{7, -8}));
  EXPECT_TRUE(reader->ReadAsDouble("none")->empty());
  EXPECT_EQ(reader->metadata().at("format"), "pt");
}

TEST(SafetensorsReader, ReadsDumpsOfOtherPrograms) {
  const auto reader = SafetensorsReader::Open(GoldenPath("large_a.safetensors"));
  ASSERT_TRUE(reader.ok()) << reader.status();
  EXPECT_EQ(reader->metadata().at("family"), "xlstm_large");
  const auto ids = reader->ReadAsInt64("input_ids");
  ASSERT_TRUE(ids.ok());
  ASSERT_EQ(ids->size(), 256u);
  for (const int64_t id : *ids) EXPECT_TRUE(id >= 0 && id < 96);
  EXPECT_GT((*reader->ReadAsDouble("loss"))[0], 1);
}

TEST(SafetensorsReader, NamesTheClosestTensorsWhenOneIsMissing) {
  const auto reader = SafetensorsReader::Open(GoldenPath("large_a.safetensors"));
  ASSERT_TRUE(reader.ok());
  const auto missing = reader->ReadAsFloat("param.embeding.weight");
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kNotFound);
  EXPECT_NE(std::string(missing.status().message()).find("param.embedding.weight"), std::string::npos);
}

TEST(SafetensorsReader, RefusesATruncatedFileAndNamesIt) {
  const TempDir dir;
  std::ifstream in(GoldenPath("large_a.safetensors"), std::ios::binary);
  std::string bytes((std::istreambuf_iterator<char>(in)), {});
  const std::string path = dir.path() + "/cut.safetensors";
  WriteBytes(path, bytes.substr(0, bytes.size() - 1));
  const auto reader = SafetensorsReader::Open(path);
  EXPECT_EQ(reader.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(std::string(reader.status().message()).find("cut.safetensors"), std::string::npos);
  EXPECT_EQ(SafetensorsReader::Open(dir.path() + "/none").status().code(), absl::StatusCode::kNotFound);
  EXPECT_FALSE(SafetensorsReader::Open(dir.path()).ok());
}

TEST(SafetensorsReader, ConvertsEveryNumericTypeAtAnyAlignment) {
  const TempDir dir;
  // One odd byte first, so that nothing is aligned: the header need not pad.
  const std::string json =
      R"({"bool":{"dtype":"BOOL","shape":[1],"data_offsets":[0,1]},"f64":{"dtype":"F64",)"
      R"("shape":[1],"data_offsets":[1,9]},)"
      R"("bf16":{"dtype":"BF16","shape":[1],"data_offsets":[9,11]},"f16":{"dtype":"F16",)"
      R"("shape":[1],"data_offsets":[11,13]},)"
      R"("i16":{"dtype":"I16","shape":[1],"data_offsets":[13,15]},"u32":{"dtype":"U32",)"
      R"("shape":[1],"data_offsets":[15,19]},)"
      R"("u64":{"dtype":"U64","shape":[1],"data_offsets":[19,27]},"i8":{"dtype":"I8",)"
      R"("shape":[1],"data_offsets":[27,28]},)"
      R"("f8":{"dtype":"F8_E4M3","shape":[1],"data_offsets":[28,29]}})";
  std::string data(1, '\1');
  const auto append = [&](auto value) { data.append(reinterpret_cast<const char*>(&value), sizeof(value)); };
  append(0.1);
  append(uint16_t{0xbfc0});  // -1.5
  append(uint16_t{0x3e00});  // 1.5
  append(int16_t{-300});
  append(uint32_t{4000000000u});
  append(uint64_t{1} << 63);
  append(int8_t{-5});
  append(uint8_t{0});
  WriteBytes(dir.path() + "/t", FileOf(json, data));
  const auto reader = SafetensorsReader::Open(dir.path() + "/t");
  ASSERT_TRUE(reader.ok()) << reader.status();
  const auto value = [&](const char* name) { return (*reader->ReadAsDouble(name))[0]; };
  EXPECT_EQ(value("bool"), 1);
  EXPECT_EQ(value("f64"), 0.1);
  EXPECT_EQ(value("bf16"), -1.5);
  EXPECT_EQ(value("f16"), 1.5);
  EXPECT_EQ(value("i16"), -300);
  EXPECT_EQ(value("u32"), 4e9);
  EXPECT_EQ(value("u64"), 0x1p63);
  EXPECT_EQ(value("i8"), -5);
  EXPECT_EQ((*reader->ReadAsFloat("f64"))[0], 0.1f);
  EXPECT_EQ(reader->ReadAsInt64("u64").status().code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ((*reader->ReadAsInt64("u32"))[0], 4000000000);
  EXPECT_EQ(reader->ReadAsInt64("f16").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(reader->ReadAsDouble("f8").status().code(), absl::StatusCode::kUnimplemented);
}

TEST(Half, RoundTripsEveryBitPattern) {
  for (uint32_t h = 0; h < 65536; ++h) {
    const uint16_t half = static_cast<uint16_t>(h);
    const float value = HalfToFloat(half);
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(HalfToFloat(FloatToHalf(value))));
    } else {
      ASSERT_EQ(FloatToHalf(value), half) << value;
    }
  }
}

TEST(Half, RoundsToTheNearestAndTiesToEven) {
  // Between neighbours a < b: below the middle a, above it b, at the middle the even one.
  for (uint16_t h = 0; h < 0x7bff; ++h) {
    const double a = HalfToFloat(h), b = HalfToFloat(static_cast<uint16_t>(h + 1));
    const float middle = static_cast<float>((a + b) / 2);
    ASSERT_EQ(FloatToHalf(middle), h % 2 == 0 ? h : h + 1) << a;
    ASSERT_EQ(FloatToHalf(std::nextafter(middle, 0.0f)), h) << a;
    ASSERT_EQ(FloatToHalf(std::nextafter(middle, 1e9f)), h + 1) << a;
  }
  EXPECT_EQ(FloatToHalf(65504.0f), 0x7bff);
  EXPECT_EQ(FloatToHalf(65519.99f), 0x7bff);
  EXPECT_EQ(FloatToHalf(65520.0f), 0x7c00);
  EXPECT_EQ(FloatToHalf(1e30f), 0x7c00);
  EXPECT_EQ(FloatToHalf(-std::numeric_limits<float>::infinity()), 0xfc00);
  EXPECT_EQ(FloatToHalf(-1e-30f), 0x8000);
}
}  // namespace
}  // namespace carousel
