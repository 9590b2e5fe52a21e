#include "core/base/log.h"

#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <memory>

#include "core/base/check.h"
#include "core/base/terminal_text.h"

namespace carousel {
namespace {
spdlog::logger& Logger() {
  // Constructed on first use and never destroyed, so that late lines of other static objects still print.
  static spdlog::logger& logger =
      *new spdlog::logger("carousel", std::make_shared<spdlog::sinks::stderr_color_sink_mt>());
  return logger;
}
}  // namespace

void SetMinLogLevel(LogLevel level) {
  Logger().set_level(level == LogLevel::INFO      ? spdlog::level::info
                     : level == LogLevel::WARNING ? spdlog::level::warn
                                                  : spdlog::level::err);
}

LogLine::~LogLine() {
  const std::string text = EscapeControls(stream_.str());
  const spdlog::level::level_enum level = level_ == LogLevel::INFO      ? spdlog::level::info
                                          : level_ == LogLevel::WARNING ? spdlog::level::warn
                                                                        : spdlog::level::err;
  const int rank = ProcessRank();
  Logger().set_pattern("[%H:%M:%S %^%L%$] %v");
  if (rank > 0) {
    Logger().log(level, "[rank {}] {}", rank, text);
  } else {
    Logger().log(level, "{}", text);
  }
}
}  // namespace carousel
