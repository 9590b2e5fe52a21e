#include "launcher/progress_bar.h"

#include <unistd.h>

#include <cstdio>
#include <utility>

#include "absl/strings/str_format.h"
#include "core/device_memory.h"

namespace carousel {
namespace {
constexpr int64_t kColumns = 30;
}  // namespace

ProgressBar::ProgressBar(std::string name) : name_(std::move(name)), live_(isatty(STDERR_FILENO) != 0) {}

ProgressBar::~ProgressBar() {
  if (drawn_) std::fputs("\r\033[K", stderr);
}

std::string ProgressBar::Line(const std::string& name, int64_t done_bytes, int64_t total_bytes) {
  const double share =
      total_bytes > 0 ? static_cast<double>(done_bytes) / static_cast<double>(total_bytes) : 1.0;
  const size_t filled = static_cast<size_t>(share * static_cast<double>(kColumns));
  return absl::StrFormat("%s  [%s%s] %3d %%  %s of %s", name, std::string(filled, '='),
                         std::string(static_cast<size_t>(kColumns) - filled, ' '),
                         static_cast<int>(share * 100), BinaryBytes(done_bytes), BinaryBytes(total_bytes));
}

void ProgressBar::Show(int64_t done_bytes, int64_t total_bytes) {
  const auto now = std::chrono::steady_clock::now();
  if (!live_ || (drawn_ && done_bytes < total_bytes && now - last_ < std::chrono::milliseconds(100))) return;
  last_ = now;
  drawn_ = true;
  absl::FPrintF(stderr, "\r%s\033[K", Line(name_, done_bytes, total_bytes));
  std::fflush(stderr);
}
}  // namespace carousel
