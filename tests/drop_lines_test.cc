// Lines leave a file without a second copy of it where that can be, and no crash on the way costs one that
// stays.
#include "launcher/train/drop_lines.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <fstream>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "launcher/report/metrics_file.h"
#include "tests/temp_dir.h"

namespace carousel {
namespace {

std::string Contents(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}
void Write(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}
ino_t Inode(const std::string& path) {
  struct stat info {};
  EXPECT_EQ(stat(path.c_str(), &info), 0);
  return info.st_ino;
}

TEST(DropLines, AnEndThatGoesIsCutOffTheFileItself) {
  const TempDir dir;
  const std::string path = dir.path() + "/f";
  for (const std::string kept : {"", "one\n", "one\ntwo\n"}) {
    Write(path, "one\ntwo\nthree\n");
    const ino_t before = Inode(path);
    ASSERT_TRUE(DropLines(path, "one\ntwo\nthree\n", kept).ok());
    EXPECT_EQ(Contents(path), kept);
    EXPECT_EQ(Inode(path), before) << "no new file was needed";
  }
}

TEST(DropLines, LinesInTheMiddleGoWithANewFile) {
  const TempDir dir;
  const std::string path = dir.path() + "/f";
  Write(path, "one\ntwo\nthree\nfour\n");
  ASSERT_TRUE(DropLines(path, "one\ntwo\nthree\nfour\n", "one\nthree\n").ok());
  EXPECT_EQ(Contents(path), "one\nthree\n");
  Write(path, "one");
  ASSERT_TRUE(DropLines(path, "one", "one\n").ok());
  EXPECT_EQ(Contents(path), "one\n");
  EXPECT_FALSE(DropLines(dir.path() + "/none/f", "one\n", "").ok());
}

// What a crash leaves while lines are moved up in the file: any part of them is in its new place.
TEST(DropLines, ACrashWhileLinesAreMovedUpIsMendedByTheNextReader) {
  std::string stay, go;
  for (int step = 1; step <= 3; ++step) absl::StrAppend(&stay, "{\"step\":", step, ",\"loss\":2.5}\n");
  for (int step = 4; step <= 20; ++step) absl::StrAppend(&go, "{\"step\":", step, ",\"loss\":1.25}\n");
  const std::string first = "{\"checkpoint\":{\"step\":3,\"outcome\":\"saved\"}}\n";
  const std::string second = "{\"evaluation\":{\"step\":3,\"loss\":1.5}}\n";
  const std::string old = absl::StrCat(stay, go, first, "{\"step\":21,\"loss\":1}\n", second);
  const std::string kept = absl::StrCat(stay, first, second);
  const TempDir dir;
  const std::string path = dir.path() + "/metrics.jsonl";
  // First line feeds take the place, then the lines.
  const std::string cleared = stay + std::string(kept.size() - stay.size(), '\n') + old.substr(kept.size());
  for (size_t k = 0; k <= 2 * (kept.size() - stay.size()); ++k) {
    const size_t length = kept.size() - stay.size(), written = stay.size() + k % (length + 1);
    Write(path, k <= length ? cleared.substr(0, written) + old.substr(written)
                            : kept.substr(0, written) + cleared.substr(written));
    const auto file = MetricsFile::Open(path, 3);
    ASSERT_TRUE(file.ok()) << file.status();
    // Both lines once; where the first was moved but not the second, in either order.
    const std::string now = Contents(path);
    EXPECT_TRUE(now == kept || now == absl::StrCat(stay, second, first)) << written << ": " << now;
    EXPECT_EQ((*file)->last_saved_step(), 3);
  }
}
}  // namespace
}  // namespace carousel
