// TensorBoard event files: the published bytes, and files read back by a reader that shares no code with the
// writer.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "launcher/report/tensorboard_events.h"
#include "launcher/report/tensorboard_sink.h"
#include "tests/temp_dir.h"

namespace carousel {
namespace {

std::string Hex(const std::string& bytes) {
  std::string text;
  for (const char c : bytes) {
    char digits[3];
    std::snprintf(digits, sizeof digits, "%02x", static_cast<unsigned char>(c));
    text += digits;
  }
  return text;
}

// ---- a reader of its own: CRC bit by bit, Protobuf's wire format by hand
uint32_t SlowCrc32c(const std::string& bytes) {
  uint32_t crc = 0xffffffffu;
  for (const char c : bytes) {
    crc ^= static_cast<unsigned char>(c);
    for (int bit = 0; bit < 8; ++bit) crc = crc & 1 ? crc >> 1 ^ 0x82f63b78u : crc >> 1;
  }
  return ~crc;
}
uint32_t Unmasked(uint32_t masked) {
  const uint32_t rotated = masked - 0xa282ead8u;
  return rotated >> 17 | rotated << 15;
}
uint64_t LittleEndian(const std::string& bytes, size_t at, int size) {
  uint64_t value = 0;
  for (int i = 0; i < size; ++i)
    value |= uint64_t{static_cast<unsigned char>(bytes[at + static_cast<size_t>(i)])} << (8 * i);
  return value;
}

// The fields of a message: number -> contents, of numbers their value.
struct Field {
  uint64_t number = 0;
  std::string bytes;
};
using Fields = std::multimap<int, Field>;
Fields Parse(const std::string& message) {
  Fields fields;
  size_t at = 0;
  const auto varint = [&] {
    uint64_t value = 0;
    for (int shift = 0; at < message.size(); shift += 7) {
      const unsigned char c = static_cast<unsigned char>(message[at++]);
      value |= uint64_t{c & 0x7fu} << shift;
      if (c < 128) break;
    }
    return value;
  };
  while (at < message.size()) {
    const uint64_t tag = varint();
    Field field;
    switch (tag & 7) {
      case 0:
        field.number = varint();
        break;
      case 1:
        field.number = LittleEndian(message, at, 8);
        at += 8;
        break;
      case 2: {
        const size_t size = varint();
        field.bytes = message.substr(at, size);
        at += size;
        break;
      }
      case 5:
        field.number = LittleEndian(message, at, 4);
        at += 4;
        break;
      default:
        ADD_FAILURE() << "wire type " << (tag & 7);
        return fields;
    }
    fields.emplace(static_cast<int>(tag >> 3), field);
  }
  EXPECT_EQ(at, message.size());
  return fields;
}
uint64_t NumberOf(const Fields& fields, int number) {
  const auto found = fields.find(number);
  return found == fields.end() ? 0 : found->second.number;
}
std::string BytesOf(const Fields& fields, int number) {
  const auto found = fields.find(number);
  return found == fields.end() ? "" : found->second.bytes;
}

struct FoundEvent {
  double wall_time = 0;
  int64_t step = 0;
  std::string version;
  int session_status = 0;
  std::map<std::string, float> scalars;
  std::map<std::string, std::string> texts;
  std::map<std::string, std::string> plugins;  // contents by tag
};
std::vector<FoundEvent> ReadEvents(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream stream;
  stream << in.rdbuf();
  const std::string file = stream.str();
  std::vector<FoundEvent> events;
  for (size_t at = 0; at < file.size();) {
    if (file.size() < at + 16) {
      ADD_FAILURE() << "a record is cut short at byte " << at;
      break;
    }
    const uint64_t size = LittleEndian(file, at, 8);
    EXPECT_EQ(SlowCrc32c(file.substr(at, 8)), Unmasked(static_cast<uint32_t>(LittleEndian(file, at + 8, 4))));
    const std::string data = file.substr(at + 12, size);
    EXPECT_EQ(SlowCrc32c(data), Unmasked(static_cast<uint32_t>(LittleEndian(file, at + 12 + size, 4))));
    at += 16 + size;
    const Fields fields = Parse(data);
    FoundEvent event;
    const uint64_t bits = NumberOf(fields, 1);
    std::memcpy(&event.wall_time, &bits, 8);
    event.step = static_cast<int64_t>(NumberOf(fields, 2));
    event.version = BytesOf(fields, 3);
    event.session_status = static_cast<int>(NumberOf(Parse(BytesOf(fields, 7)), 1));
    const Fields summary = Parse(BytesOf(fields, 5));
    for (auto [value, end] = summary.equal_range(1); value != end; ++value) {
      const Fields v = Parse(value->second.bytes);
      const std::string tag = BytesOf(v, 1);
      const Fields plugin = Parse(BytesOf(Parse(BytesOf(v, 9)), 1));
      if (v.count(2) > 0) {
        const auto float_bits = static_cast<uint32_t>(NumberOf(v, 2));
        std::memcpy(&event.scalars[tag], &float_bits, 4);
      } else if (BytesOf(plugin, 1) == "text") {
        const Fields tensor = Parse(BytesOf(v, 8));
        EXPECT_EQ(NumberOf(tensor, 1), 7u);  // DT_STRING
        event.texts[tag] = BytesOf(tensor, 8);
      } else {
        event.plugins[tag] = BytesOf(plugin, 2);
      }
    }
    events.push_back(std::move(event));
  }
  return events;
}
std::vector<std::string> FilesIn(const std::string& dir) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(dir)) names.push_back(entry.path());
  std::sort(names.begin(), names.end());
  return names;
}

TEST(TensorboardEvents, TheChecksumIsMaskedCrc32c) {
  EXPECT_EQ(SlowCrc32c("123456789"), 0xe3069283u);
  EXPECT_EQ(MaskedCrc32c("123456789"), 0xc78ab0e5u);
}

TEST(TensorboardEvents, HaveThePublishedBytes) {
  EXPECT_EQ(Hex(FrameRecord(VersionEvent(1.0))),
            "1800000000000000a37f4b2209000000000000f03f1a0d627261696e2e4576656e743a3286bf577a");
  EXPECT_EQ(Hex(FrameRecord(ScalarEvent(2.0, 7, {{"loss", 3.5}}))),
            "1a00000000000000129bd82d09000000000000004010072a0d0a0b0a046c6f737315000060409df5e2d4");
}

RunStart StartAt(int64_t step) {
  return {.attempt = 1,
          .step = step,
          .total_steps = 100,
          .mesh = "one rank",
          .device = "cpu",
          .build = "build",
          .command = "carousel train",
          .config = "model {\n  num_blocks: 4\n  use_bias: true\n}\nrun_dir: \"a/b\\377\"\n"};
}

TEST(TensorboardSink, WritesWhatARunReports) {
  const TempDir dir;
  {
    TensorboardSink sink(dir.path() + "/deep/tensorboard", "node 7/..");
    ASSERT_TRUE(sink.Start(StartAt(0)).ok());
    ASSERT_TRUE(
        sink.Append({.step = 1, .tokens = 10, .loss = 3.5, .grad_norm = 2, .lr = 0.5, .seconds = 2}).ok());
    StepMetrics second = {.step = 2,
                          .tokens = 30,
                          .loss = std::numeric_limits<double>::quiet_NaN(),
                          .seconds = 2,
                          .skipped = true};
    second.logged = true;
    second.memory_bytes = 3 << 20;
    second.ranks = RankTimings{
        .num_ranks = 2, .min_seconds = 1, .median_seconds = 2, .max_seconds = 4, .worst = {}, .chronic = {}};
    ASSERT_TRUE(sink.Append(second).ok());
    ASSERT_TRUE(sink.AppendEvaluation({.step = 2, .loss = 3, .accuracy = 0.25, .source_entropy = 1.5}).ok());
    ASSERT_TRUE(sink.AppendSample(2, "a\nb<script>\xff\xe2\x82").ok());
    ASSERT_TRUE(sink.AppendCheckpoint({.step = 2, .outcome = "saved", .seconds = 1}).ok());
    GateStats gates;
    gates.step = 2;
    gates.layers.push_back({.block = 3,
                            .input_gate = {.count = 1, .mean = -9, .beyond = 0.5},
                            .forget_gate = {.count = 1, .mean = 4}});
    ASSERT_TRUE(sink.AppendGates(gates).ok());
    ASSERT_TRUE(sink.End(2, "finished").ok());
  }
  const std::vector<std::string> files = FilesIn(dir.path() + "/deep/tensorboard");
  ASSERT_EQ(files.size(), 1u);
  EXPECT_NE(files[0].find("/events.out.tfevents."), std::string::npos);
  EXPECT_NE(files[0].find(".node_7___."), std::string::npos) << files[0];
  const std::vector<FoundEvent> events = ReadEvents(files[0]);
  ASSERT_GE(events.size(), 8u);
  EXPECT_EQ(events[0].version, "brain.Event:2");
  EXPECT_EQ(events[1].session_status, 1);  // START
  EXPECT_EQ(events[1].step, 1);
  std::map<std::string, std::map<int64_t, float>> scalars;
  std::map<std::string, std::string> texts, plugins;
  for (const FoundEvent& event : events) {
    EXPECT_GT(event.wall_time, 1.6e9);
    for (const auto& [tag, value] : event.scalars) scalars[tag][event.step] = value;
    texts.insert(event.texts.begin(), event.texts.end());
    plugins.insert(event.plugins.begin(), event.plugins.end());
  }
  EXPECT_EQ(scalars["loss/train"][1], 3.5f);
  EXPECT_TRUE(std::isnan(scalars["loss/train"][2]));
  EXPECT_EQ(scalars["optimizer/skipped"][2], 1.0f);
  EXPECT_EQ(scalars["speed/tokens_per_second"][2], 10.0f);
  EXPECT_EQ(scalars["memory/resident_mib"][2], 3.0f);
  EXPECT_EQ(scalars["ranks/slowest_seconds"][2], 4.0f);
  EXPECT_EQ(scalars["loss/validation"][2], 3.0f);
  EXPECT_EQ(scalars["loss/source_entropy"][2], 1.5f);
  EXPECT_EQ(scalars["gates_input/block_03_mean"][2], -9.0f);
  EXPECT_EQ(scalars["gates_forget/block_03_mean"][2], 4.0f);
  EXPECT_EQ(scalars["checkpoint/seconds"][2], 1.0f);
  EXPECT_EQ(texts["sample"], "    a\n    b<script>\xef\xbf\xbd\xef\xbf\xbd\n");
  EXPECT_NE(texts["config"].find("num_blocks: 4"), std::string::npos);
  // hparams: a number, a truth value, a text.
  const Fields start = Parse(BytesOf(Parse(plugins["_hparams_/session_start_info"]), 3));
  std::map<std::string, Fields> hparams;
  for (auto [entry, end] = start.equal_range(1); entry != end; ++entry) {
    const Fields pair = Parse(entry->second.bytes);
    hparams[BytesOf(pair, 1)] = Parse(BytesOf(pair, 2));
  }
  double blocks = 0;
  const uint64_t bits = NumberOf(hparams["model.num_blocks"], 2);
  std::memcpy(&blocks, &bits, 8);
  EXPECT_EQ(blocks, 4.0);
  EXPECT_EQ(NumberOf(hparams["model.use_bias"], 4), 1u);
  EXPECT_EQ(BytesOf(hparams["run_dir"], 3), "a/b\xef\xbf\xbd");  // not UTF-8, which readers insist on
  EXPECT_EQ(NumberOf(Parse(BytesOf(Parse(plugins["_hparams_/session_end_info"]), 4)), 1), 1u);  // SUCCESS
}

TEST(TensorboardSink, ARunThatGoesOnOpensAFileThatVoidsTheStepsItTakesAgain) {
  const TempDir dir;
  for (const int64_t finished : {0, 5}) {
    TensorboardSink sink(dir.path(), "host");
    ASSERT_TRUE(sink.Start(StartAt(finished)).ok());
    for (int64_t step = finished + 1; step <= finished + 7; ++step)
      ASSERT_TRUE(sink.Append({.step = step}).ok());
    if (finished == 5) {
      ASSERT_TRUE(sink.Rewind(10).ok());
    }
  }
  const std::vector<std::string> files = FilesIn(dir.path());
  ASSERT_EQ(files.size(), 3u);
  std::vector<int64_t> starts;
  for (const std::string& file : files) {
    const std::vector<FoundEvent> events = ReadEvents(file);
    ASSERT_GE(events.size(), 2u);
    EXPECT_EQ(events[1].session_status, 1);
    starts.push_back(events[1].step);
  }
  EXPECT_EQ(starts, (std::vector<int64_t>{1, 6, 11}));
}

TEST(TensorboardSink, ADirectoryThatCannotBeMadeIsAnErrorUntilItCan) {
  const TempDir dir;
  std::ofstream(dir.path() + "/file") << "x";
  TensorboardSink sink(dir.path() + "/file/tensorboard", "host");
  EXPECT_FALSE(sink.Start(StartAt(0)).ok());
  EXPECT_FALSE(sink.Append({.step = 1}).ok());
  std::filesystem::remove(dir.path() + "/file");
  std::filesystem::create_directory(dir.path() + "/file");
  EXPECT_TRUE(sink.Append({.step = 2}).ok());
}
}  // namespace
}  // namespace carousel
