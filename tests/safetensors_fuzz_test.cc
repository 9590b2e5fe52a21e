// Random damage to safetensors headers: refused or consistent, never a crash, never a large allocation.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "checkpoints/safetensors.h"

namespace carousel {
namespace {

std::string ValidFile() {
  const auto layout = PlanSafetensors({{"backbone.blocks.0.q.weight", SafetensorsDType::kF32, {4, 6}},
                                       {"b", SafetensorsDType::kBF16, {3}},
                                       {"scalar", SafetensorsDType::kF64, {}},
                                       {"empty", SafetensorsDType::kI32, {0, 7}}},
                                      {{"format", "pt"}, {"config", "{\"a\": [1, 2]}"}});
  std::string file = layout->prefix;
  file.resize(static_cast<size_t>(layout->file_bytes), '\x5a');
  return file;
}

// Whatever was accepted must be consistent: this is what all other code relies on.
void CheckConsistent(const SafetensorsHeader& header, const std::string& file) {
  int64_t position = 0;
  for (const SafetensorsEntry& t : header.tensors) {
    ASSERT_EQ(t.begin, position);
    int64_t elems = 1;
    for (const int64_t d : t.shape) {
      ASSERT_GE(d, 0);
      elems *= d;
    }
    ASSERT_EQ(elems, t.num_elems());
    ASSERT_EQ(elems * BitsOf(t.dtype), 8 * t.num_bytes());
    position = t.end;
  }
  ASSERT_EQ(header.data_begin + position, static_cast<int64_t>(file.size()));
  ASSERT_EQ(header.index.size(), header.tensors.size());
}

// True if the file was accepted.
bool ParseOnce(const std::string& file) {
  const int64_t size = static_cast<int64_t>(file.size());
  if (file.size() < 8) return false;
  const auto header_bytes = SafetensorsHeaderBytes(file.data(), size, "f");
  if (!header_bytes.ok()) return false;
  EXPECT_LE(*header_bytes, size);
  const auto header = ParseSafetensorsHeader(file.substr(0, static_cast<size_t>(*header_bytes)), size, "f");
  if (header.ok()) CheckConsistent(*header, file);
  return header.ok();
}

TEST(SafetensorsFuzz, RandomBytesInTheHeaderAreRefusedOrConsistent) {
  std::mt19937_64 random(1);
  const std::string valid = ValidFile();
  ASSERT_TRUE(ParseOnce(valid));
  const size_t header_bytes = static_cast<size_t>(valid.find('\x5a'));
  int accepted = 0;
  for (int i = 0; i < 60000; ++i) {
    std::string file = valid;
    const int num_changes = 1 + static_cast<int>(random() % 4);
    for (int c = 0; c < num_changes; ++c) {
      const size_t at = random() % header_bytes;
      switch (random() % 4) {
        case 0:
          file[at] = static_cast<char>(random());
          break;
        case 1:
          file[at] = static_cast<char>(file[at] ^ (1 << (random() % 8)));
          break;
        case 2:
          file[at] = "0123456789\"{}[],:-.eE"[random() % 21];
          break;
        default:
          std::swap(file[at], file[random() % header_bytes]);
      }
    }
    accepted += ParseOnce(file);
  }
  // Letters of a name or of the metadata may change freely: some of the files must have been accepted.
  EXPECT_GT(accepted, 1000);
  EXPECT_LT(accepted, 50000);
}

TEST(SafetensorsFuzz, CutAndRepeatedPiecesAreRefusedOrConsistent) {
  std::mt19937_64 random(2);
  const std::string valid = ValidFile();
  for (size_t n = 0; n < valid.size(); ++n) EXPECT_FALSE(ParseOnce(valid.substr(0, n))) << n;
  for (int i = 0; i < 20000; ++i) {
    std::string file = valid;
    const size_t at = 8 + random() % (valid.size() - 8);
    const size_t length = std::min<size_t>(1 + random() % 60, valid.size() - at);
    if (random() % 2 == 0) {
      file.erase(at, length);
    } else {
      file.insert(8 + random() % (valid.size() - 8), valid.substr(at, length));
    }
    // A header length that fits what is left, so that the JSON is looked at.
    const size_t end = file.find('\x5a');
    const uint64_t header_length = end == std::string::npos ? file.size() - 8 : end - 8;
    std::copy_n(reinterpret_cast<const char*>(&header_length), 8, file.begin());
    ParseOnce(file);
  }
}

TEST(SafetensorsFuzz, RandomStructureIsRefusedOrConsistent) {
  // Sentences of the right alphabet: reaches further into the parser than random bytes.
  const char* const words[] = {"{",
                               "}",
                               "[",
                               "]",
                               ",",
                               ":",
                               "\"a\"",
                               "\"b\"",
                               "0",
                               "8",
                               "4",
                               "-1",
                               "1e9",
                               "\"dtype\"",
                               "\"F32\"",
                               "\"shape\"",
                               "\"data_offsets\"",
                               "\"__metadata__\"",
                               "null",
                               "true",
                               "99999999999999999999"};
  std::mt19937_64 random(3);
  for (int i = 0; i < 60000; ++i) {
    std::string json = "{";
    const int n = static_cast<int>(random() % 30);
    for (int w = 0; w < n; ++w) json += words[random() % std::size(words)];
    json += "}";
    const uint64_t length = json.size();
    ParseOnce(std::string(reinterpret_cast<const char*>(&length), 8) + json + std::string(random() % 9, 'x'));
  }
}

TEST(SafetensorsFuzz, DeepNestingDoesNotExhaustTheStack) {
  for (const char* const open : {"[", "{\"a\":"}) {
    std::string json = "{\"a\":";
    for (int i = 0; i < 300000; ++i) json += open;
    const uint64_t length = json.size();
    EXPECT_FALSE(ParseOnce(std::string(reinterpret_cast<const char*>(&length), 8) + json));
  }
}
}  // namespace
}  // namespace carousel
