#include "core/comm/flight_recorder.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>

#include "core/base/check.h"

namespace carousel {
namespace {
double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}
}  // namespace

std::string CallSite::ToString() const {
  // __FILE__ is the path that the compiler was given: cut it where one of the project's folders begins.
  std::string path = file;
  size_t begin = std::string::npos;
  for (const char* folder :
       {"core/", "kernels/", "parallel/", "configs/", "checkpoints/", "launcher/", "tests/"}) {
    const size_t found = path.rfind(folder);
    if (found != std::string::npos && (found == 0 || path[found - 1] == '/')) {
      begin = begin == std::string::npos ? found : std::min(begin, found);
    }
  }
  if (begin != std::string::npos) path = path.substr(begin);
  return path + ":" + std::to_string(line);
}

std::string DescribeAt(const CollectiveCall& call, const std::string& name, const CallSite& site) {
  return Describe(call) + (name.empty() ? "" : " on '" + name + "'") + " at " + site.ToString();
}

void FlightRecorder::set_name(const std::string& name) {
  const std::lock_guard<std::mutex> lock(mutex_);
  name_ = name;
}

std::string FlightRecorder::name() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return name_;
}

void FlightRecorder::Begin(const CollectiveCall& call, const CallSite& site) {
  const std::lock_guard<std::mutex> lock(mutex_);
  entries_[static_cast<size_t>(num_calls_ % kNumKept)] = {.sequence = num_calls_,
                                                          .step = ProcessStep(),
                                                          .call = call,
                                                          .site = site,
                                                          .start_seconds = Now(),
                                                          .end_seconds = 0};
  ++num_calls_;
}

void FlightRecorder::End() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (num_calls_ > 0) entries_[static_cast<size_t>((num_calls_ - 1) % kNumKept)].end_seconds = Now();
}

int64_t FlightRecorder::num_calls() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return num_calls_;
}

std::vector<FlightRecorder::Entry> FlightRecorder::Entries() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::vector<Entry> entries;
  for (int64_t i = std::max<int64_t>(0, num_calls_ - kNumKept); i < num_calls_; ++i) {
    entries.push_back(entries_[static_cast<size_t>(i % kNumKept)]);
  }
  return entries;
}

std::string FlightRecorder::Dump(int64_t max_entries) const {
  const std::string label = name();
  std::string text;
  const std::vector<Entry> entries = Entries();
  const int64_t count = static_cast<int64_t>(entries.size());
  for (int64_t i = std::max<int64_t>(0, count - max_entries); i < count; ++i) {
    const Entry& entry = entries[static_cast<size_t>(i)];
    char time[64];
    if (entry.in_progress()) {
      std::snprintf(time, sizeof time, "in progress for %.1f s", Now() - entry.start_seconds);
    } else {
      std::snprintf(time, sizeof time, "%.3f ms", 1e3 * (entry.end_seconds - entry.start_seconds));
    }
    text += label + (label.empty() ? "#" : " #") + std::to_string(entry.sequence) +
            (entry.step >= 0 ? " step " + std::to_string(entry.step) : "") + " " + Describe(entry.call) +
            " " + std::to_string(entry.bytes()) + " B " + entry.site.ToString() + " " + time + "\n";
  }
  return text;
}
}  // namespace carousel
