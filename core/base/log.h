// One log line to stderr with time and rank, through spdlog (hidden in log.cc); control characters escaped.
//   CAROUSEL_LOG(INFO) << "read " << n << " tokens";
#pragma once
#include <sstream>

namespace carousel {
enum class LogLevel { INFO, WARNING, ERROR };

// Collects one line and writes it when it goes out of scope.
class LogLine {
 public:
  explicit LogLine(LogLevel level) : level_(level) {}
  ~LogLine();
  std::ostream& stream() { return stream_; }

 private:
  LogLevel level_;
  std::ostringstream stream_;
};

// Lines below this level are dropped. Default INFO.
void SetMinLogLevel(LogLevel level);
}  // namespace carousel

#define CAROUSEL_LOG(level) ::carousel::LogLine(::carousel::LogLevel::level).stream()
