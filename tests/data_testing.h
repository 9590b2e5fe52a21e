// What the tests of text and data share: a folder that disappears, whole files, a small Megatron index made
// by hand (not by our writer).
#pragma once
#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "core/data/token_file.h"
#include "core/data/token_writer.h"
#include "core/text/tokenizer.h"

namespace carousel {

// In memory where the system has such a place: thousands of small files and syncs are slow on a disk.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    for (const std::filesystem::path& parent :
         {std::filesystem::path("/dev/shm"), std::filesystem::temp_directory_path()}) {
      std::string name = (parent / "carousel_data_XXXXXX").string();
      if (mkdtemp(name.data()) == nullptr) continue;
      path_ = name;
      return;
    }
    ADD_FAILURE() << "no folder for temporary files";
  }
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }
  std::string operator/(const std::string& name) const { return (path_ / name).string(); }
  int64_t NumFiles() const {
    int64_t n = 0;
    for (const auto& entry : std::filesystem::directory_iterator(path_)) n += entry.is_regular_file();
    return n;
  }

 private:
  std::filesystem::path path_;
};

inline void WriteFile(const std::string& path, const std::string& bytes) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  ASSERT_TRUE(out.flush()) << path;
}

inline std::string ReadFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  EXPECT_TRUE(in) << path;
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

template <class T>
void AppendBytes(std::string* bytes, T value) {
  char raw[sizeof(T)];
  std::memcpy(raw, &value, sizeof(T));
  bytes->append(raw, sizeof(T));
}

// The index of sequences of these lengths, one document each, byte by byte as Megatron's
// IndexedDatasetBuilder writes it.
inline std::string MegatronIndex(int dtype_code, int64_t token_bytes, const std::vector<int32_t>& lengths) {
  std::string idx("MMIDIDX\0\0", 9);
  AppendBytes<uint64_t>(&idx, 1);
  AppendBytes<uint8_t>(&idx, static_cast<uint8_t>(dtype_code));
  AppendBytes<uint64_t>(&idx, lengths.size());
  AppendBytes<uint64_t>(&idx, lengths.size() + 1);
  for (const int32_t length : lengths) AppendBytes<int32_t>(&idx, length);
  int64_t pointer = 0;
  for (const int32_t length : lengths) {
    AppendBytes<int64_t>(&idx, pointer);
    pointer += length * token_bytes;
  }
  for (size_t d = 0; d <= lengths.size(); ++d) AppendBytes<int64_t>(&idx, static_cast<int64_t>(d));
  return idx;
}

// Writes documents with our writer and commits.
inline void WriteDocuments(const std::string& prefix, const std::vector<std::string>& documents) {
  const ByteTokenizer tokenizer;
  auto writer = TokenFileWriter::Create(prefix, tokenizer, {});
  ASSERT_TRUE(writer.ok()) << writer.status();
  for (const std::string& document : documents) {
    std::vector<int32_t> ids;
    tokenizer.Encode(document, &ids);
    ASSERT_TRUE((*writer)->Append(ids, static_cast<int64_t>(document.size())).ok());
    ASSERT_TRUE((*writer)->EndDocument().ok());
  }
  const absl::Status status = (*writer)->Commit();
  ASSERT_TRUE(status.ok()) << status;
}

inline std::vector<int32_t> AllTokens(const TokenFile& file) {
  std::vector<int32_t> ids(static_cast<size_t>(file.num_tokens()));
  file.Read(0, ids);
  return ids;
}

inline std::unique_ptr<TokenFile> MustOpen(const std::string& prefix) {
  auto file = TokenFile::Open(prefix);
  EXPECT_TRUE(file.ok()) << file.status();
  return file.ok() ? std::move(file).value() : nullptr;
}

// Every byte of `num_bytes` from a fixed seed.
inline std::string RandomBytes(size_t num_bytes, uint32_t seed) {
  std::mt19937 engine(seed);
  std::string bytes(num_bytes, '\0');
  for (char& c : bytes) c = static_cast<char>(engine());
  return bytes;
}

// A status whose message holds all of `parts`.
inline void ExpectError(const absl::Status& status, absl::StatusCode code,
                        const std::vector<std::string>& parts) {
  EXPECT_EQ(status.code(), code) << status;
  for (const std::string& part : parts) {
    EXPECT_NE(std::string(status.message()).find(part), std::string::npos)
        << "no \"" << part << "\" in: " << status.message();
  }
}
}  // namespace carousel
