// A directory for the time of one test.
#pragma once
#include <stdlib.h>

#include <filesystem>
#include <string>

#include "core/base/check.h"

namespace carousel {

class TempDir {
 public:
  TempDir() {
    std::string pattern = (std::filesystem::temp_directory_path() / "carousel_test_XXXXXX").string();
    CAROUSEL_CHECK(mkdtemp(pattern.data()) != nullptr);
    path_ = pattern;
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  ~TempDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};
}  // namespace carousel
