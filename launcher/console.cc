#include "launcher/console.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "core/base/terminal_text.h"

namespace carousel {
namespace {
constexpr double kSmoothing = 0.1;  // weight of the newest step in the mean of seconds per step
constexpr int64_t kMinColumns = 20;

int64_t ColumnsOf(int fd) {
  winsize size{};
  if (ioctl(fd, TIOCGWINSZ, &size) != 0 || size.ws_col < kMinColumns) return 80;
  return size.ws_col;
}

std::string FormatBytes(int64_t bytes) {
  const double mib = static_cast<double>(bytes) / (1 << 20);
  return mib < 9999.5 ? absl::StrFormat("%4.0f MiB", mib) : absl::StrFormat("%4.0f GiB", mib / 1024);
}

// Text for people must not move the cursor or change the terminal: control characters become '?'.
std::string Printable(const std::string& text) {
  std::string result = text;
  for (size_t i = 0; i < text.size();) {
    const size_t length = ControlLength(text, i);
    result.replace(i, length, length, '?');
    i += std::max<size_t>(length, 1);
  }
  return result;
}

// How unusual the step is, last on its line; nothing while that is not known.
std::string Scores(const Console::StepLine& s) {
  if (std::isnan(s.loss_z) && std::isnan(s.grad_norm_z)) return "";
  return absl::StrFormat("  loss_z %+5.1f  norm_z %+5.1f", s.loss_z, s.grad_norm_z);
}

// Where the time goes, between memory and the time that is left.
std::string RatesText(const std::optional<Console::Rates>& rates) {
  if (!rates.has_value()) return "";
  const std::string speed = std::isfinite(rates->mfu)
                                ? absl::StrFormat("  mfu %5.1f%%", 100 * rates->mfu)
                                : absl::StrFormat("  TFLOP/s %7.4g", rates->flops_per_second / 1e12);
  return absl::StrFormat("%s  data %4.1f%%  ckpt %4.1f%%  comm %4.1f%%", speed, rates->data_percent,
                         rates->checkpoint_percent, rates->communication_percent);
}

std::string Fields(const Console::StepLine& s, const std::optional<Console::Rates>& rates,
                   double tokens_per_second, double seconds_left) {
  const int width = static_cast<int>(std::to_string(s.total_steps).size());
  return absl::StrFormat("step %*d/%d  loss %7.4f  grad_norm %7.3f  lr %8.2e  tok/s %7.0f  mem %s%s  eta %s",
                         width, s.step, s.total_steps, s.loss, s.grad_norm, s.lr, tokens_per_second,
                         FormatBytes(ResidentBytes()), RatesText(rates), FormatDuration(seconds_left)) +
         Scores(s);
}
std::string JsonFields(const Console::StepLine& s, const std::optional<Console::Rates>& rates,
                       double tokens_per_second, double seconds_left) {
  // What is not finite becomes null.
  nlohmann::ordered_json json = {{"step", s.step},
                                 {"total_steps", s.total_steps},
                                 {"loss", s.loss},
                                 {"grad_norm", s.grad_norm},
                                 {"lr", s.lr},
                                 {"tokens_per_second", tokens_per_second},
                                 {"memory_bytes", ResidentBytes()},
                                 {"eta_seconds", seconds_left},
                                 {"loss_z", s.loss_z},
                                 {"grad_norm_z", s.grad_norm_z}};
  if (rates.has_value()) {
    json["flops_per_second"] = rates->flops_per_second;
    json["mfu"] = rates->mfu;
    json["data_percent"] = rates->data_percent;
    json["checkpoint_percent"] = rates->checkpoint_percent;
    json["communication_percent"] = rates->communication_percent;
  }
  return json.dump();
}
// The same for a narrow terminal: at most 79 columns for runs of up to a million steps.
std::string CompactFields(const Console::StepLine& s, double tokens_per_second, double seconds_left) {
  const std::string rate = tokens_per_second < 99999.5 ? absl::StrFormat("%.0f", tokens_per_second)
                                                       : absl::StrFormat("%.0fk", tokens_per_second / 1000);
  const double mib = static_cast<double>(ResidentBytes()) / (1 << 20);
  const std::string memory =
      mib < 999.5 ? absl::StrFormat("%.0f MiB", mib) : absl::StrFormat("%.3g GiB", mib / 1024);
  return absl::StrFormat("%d/%d loss %.3f norm %.3g lr %.1e %s tok/s %s eta %s", s.step, s.total_steps,
                         s.loss, s.grad_norm, s.lr, rate, memory, FormatDuration(seconds_left));
}
}  // namespace

Terminal FindTerminal() {
  if (isatty(STDOUT_FILENO) == 0) return {};
  if (isatty(STDERR_FILENO) != 0) return {.live = true, .columns = ColumnsOf(STDOUT_FILENO)};
  // Output is a terminal but errors are not: either somebody redirected the errors, or mpirun gave this rank
  // a pseudo terminal for its output alone. What the parent process writes to tells.
  const int parent =
      open(absl::StrCat("/proc/", getppid(), "/fd/1").c_str(), O_WRONLY | O_NOCTTY | O_CLOEXEC);
  if (parent < 0) return {};
  Terminal terminal;
  terminal.live = isatty(parent) != 0;
  if (terminal.live) terminal.columns = ColumnsOf(parent);
  close(parent);
  return terminal;
}

std::string FormatDuration(double seconds) {
  if (!std::isfinite(seconds) || seconds < 0 || seconds > 1e12) return "-";
  const int64_t s = std::llround(seconds);
  const int64_t days = s / 86400;
  if (days >= 2) {
    return absl::StrFormat("%dd %02d:%02d:%02d", days, s / 3600 % 24, s / 60 % 60, s % 60);
  }
  return absl::StrFormat("%d:%02d:%02d", s / 3600, s / 60 % 60, s % 60);
}

int64_t ResidentBytes() {
  // Linux: the second number is resident pages.
  std::ifstream in("/proc/self/statm");
  int64_t size_pages = 0, resident_pages = 0;
  if (!(in >> size_pages >> resident_pages)) return 0;
  return resident_pages * sysconf(_SC_PAGESIZE);
}

Console::Console(std::ostream& out, const ConsoleOptions& options) : out_(out), options_(options) {
  options_.log_every_steps = std::max<int64_t>(options_.log_every_steps, 1);
  options_.terminal.columns = std::max(options_.terminal.columns, kMinColumns);
  if (options_.json) options_.terminal.live = false;
}

Console::~Console() {
  if (!live_.empty()) out_ << "\n" << std::flush;
}

void Console::Step(const StepLine& line) {
  interval_tokens_ += line.tokens;
  interval_seconds_ += line.seconds;
  // The first step of a process also makes kernels and meets cold caches, at the beginning of a run and after
  // every resume: it says nothing about those to come. The plain mean of the next few, then the smoothed one.
  if (!first_) {
    const double weight = std::max(kSmoothing, 1.0 / static_cast<double>(++num_timed_));
    mean_step_seconds_ += weight * (line.seconds - mean_step_seconds_);
  }

  const bool last = line.step >= line.total_steps;
  const bool due = line.step % options_.log_every_steps == 0 || first_ || last;
  first_ = false;
  const double seconds_left = num_timed_ > 0 || last
                                  ? mean_step_seconds_ * static_cast<double>(line.total_steps - line.step)
                                  : std::nan("");  // not known yet
  if (options_.terminal.live) {
    const double seconds = num_timed_ > 0 ? mean_step_seconds_ : line.seconds;
    const double rate = seconds > 0 ? static_cast<double>(line.tokens) / seconds : 0;
    EraseLive();
    live_ = Fields(line, rates_, rate, seconds_left);
    if (static_cast<int64_t>(live_.size()) >= options_.terminal.columns) {
      live_ = Fields(line, std::nullopt, rate, seconds_left);
    }
    if (static_cast<int64_t>(live_.size()) >= options_.terminal.columns) {
      live_ = CompactFields(line, rate, seconds_left);
    }
    DrawLive();
    return;
  }
  if (!due) return;
  const double rate = interval_seconds_ > 0 ? static_cast<double>(interval_tokens_) / interval_seconds_ : 0;
  out_ << (options_.json ? JsonFields(line, rates_, rate, seconds_left)
                         : Fields(line, rates_, rate, seconds_left))
       << "\n"
       << std::flush;
  interval_tokens_ = 0;
  interval_seconds_ = 0;
}

void Console::Message(const std::string& text) {
  if (options_.json) {
    // All of ASCII, so that nothing can command a terminal.
    const nlohmann::ordered_json json = {{"message", text}};
    out_ << json.dump(-1, ' ', /*ensure_ascii=*/true, nlohmann::ordered_json::error_handler_t::replace)
         << "\n"
         << std::flush;
    return;
  }
  EraseLive();
  out_ << Printable(text) << "\n";
  DrawLive();
  out_ << std::flush;
}

// The cursor waits at the beginning of the live line, so that a log line written by others goes over it and
// not behind it. "\033[K" erases to the end of the line.
void Console::EraseLive() {
  if (!live_.empty()) out_ << "\r\033[K";
}

void Console::DrawLive() {
  if (live_.empty()) return;
  out_ << live_.substr(0, static_cast<size_t>(options_.terminal.columns - 1)) << "\r" << std::flush;
}
}  // namespace carousel
