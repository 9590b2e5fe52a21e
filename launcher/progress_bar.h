// A bar on the terminal while a command works through many bytes:
//
//   verify  [=========                     ]  31 %  1.2 GiB of 3.9 GiB
#pragma once
#include <chrono>
#include <cstdint>
#include <string>

namespace carousel {

// Draws on standard error if that is a terminal and nothing elsewhere, at most ten times a second; its line
// is erased when it is destroyed.
class ProgressBar {
 public:
  explicit ProgressBar(std::string name);
  ~ProgressBar();
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  void Show(int64_t done_bytes, int64_t total_bytes);

  // The line, without control characters. done <= total.
  static std::string Line(const std::string& name, int64_t done_bytes, int64_t total_bytes);

 private:
  const std::string name_;
  const bool live_;
  bool drawn_ = false;
  std::chrono::steady_clock::time_point last_;
};
}  // namespace carousel
