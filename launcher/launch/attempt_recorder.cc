#include "launcher/launch/attempt_recorder.h"

#include <unistd.h>

#include <chrono>

#include "core/base/log.h"

namespace carousel {

double UnixSeconds() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

AttemptRecorder::AttemptRecorder(std::string attempt_dir, int64_t rank)
    : attempt_dir_(std::move(attempt_dir)) {
  end_.rank = rank;
  char host[256] = {};
  if (gethostname(host, sizeof(host) - 1) == 0) end_.host = host;
  end_.pid = getpid();
  end_.began = UnixSeconds();
}

void AttemptRecorder::SetRank(int64_t rank, const std::string& host) {
  const std::lock_guard<std::mutex> lock(mutex_);
  end_.rank = rank;
  end_.host = host;
}

void AttemptRecorder::SetGpu(const std::string& gpu) {
  const std::lock_guard<std::mutex> lock(mutex_);
  end_.gpu = gpu;
}

void AttemptRecorder::Ending(int exit_code, const std::string& reason,
                             const std::vector<std::string>& suspect_hosts) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (attempt_dir_.empty() || written_ || end_.rank < 0) return;
  written_ = true;
  end_.exit_code = exit_code;
  end_.reason = reason;
  end_.suspect_hosts = suspect_hosts;
  end_.step = step();
  end_.ended = UnixSeconds();
  // The process ends anyway; who watches over it records at least its exit code.
  const absl::Status written = WriteRankEnd(attempt_dir_, end_);
  if (!written.ok()) CAROUSEL_LOG(WARNING) << "the end of this rank is not recorded: " << written.message();
}
}  // namespace carousel
