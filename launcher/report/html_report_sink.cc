#include "launcher/report/html_report_sink.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>

#include "core/base/log.h"
#include "launcher/report/appended_file.h"
#include "launcher/report/html_report.h"
#include "launcher/report/run_starts.h"
#include "launcher/train/run_directory.h"

namespace carousel {
namespace {
double UnixNow() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}
}  // namespace

class HtmlReportSink::Drawer {
 public:
  Drawer(std::string run_dir, double seconds_between)
      : run_dir_(std::move(run_dir)), seconds_between_(seconds_between), tail_(MetricsPath(run_dir_)) {}

  absl::Status Draw(bool still_going) {
    absl::Status status = tail_.Read();
    ReportInput input = ReadReportInput(run_dir_, tail_.history());
    input.still_going = still_going;
    input.seconds_between = seconds_between_;
    const absl::Status written = ReplaceFileQuickly(ReportPath(run_dir_), RenderReport(input));
    return written.ok() ? status : written;
  }

 private:
  const std::string run_dir_;
  const double seconds_between_;
  MetricsTail tail_;
};

HtmlReportSink::HtmlReportSink(std::string run_dir, bool page, double seconds_between)
    : run_dir_(std::move(run_dir)), page_(page), seconds_between_(seconds_between) {}

HtmlReportSink::~HtmlReportSink() { StopThread(); }

void HtmlReportSink::StopThread() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  if (thread_.joinable()) thread_.join();
}

absl::Status HtmlReportSink::Start(const RunStart& start) {
  attempt_ = start.attempt;
  const absl::Status recorded = RecordRunStart(run_dir_, start);
  if (page_) {
    RemoveOldTemporaries(ReportPath(run_dir_));
    drawer_ = std::make_unique<Drawer>(run_dir_, seconds_between_);
    if (seconds_between_ > 0) {
      thread_ = std::thread([this] { Loop(); });
    }
  }
  return recorded;
}

void HtmlReportSink::Loop() {
  // On Linux a thread has a priority of its own: this one takes what training leaves.
  setpriority(PRIO_PROCESS, static_cast<id_t>(gettid()), 15);
  bool warned = false;
  double wait = std::min(1.0, seconds_between_);  // the first page comes soon
  std::unique_lock<std::mutex> lock(mutex_);
  while (!wake_.wait_for(lock, std::chrono::duration<double>(wait), [this] { return stop_; })) {
    lock.unlock();
    const absl::Status status = drawer_->Draw(/*still_going=*/true);
    if (!status.ok() && !warned) {
      CAROUSEL_LOG(WARNING) << name() << " is not up to date, training goes on: " << status.message();
    }
    warned = !status.ok();
    lock.lock();
    wait = std::min(2 * wait, seconds_between_);
  }
}

absl::Status HtmlReportSink::End(int64_t step, const std::string& why) {
  StopThread();
  absl::Status status = RecordRunEnd(run_dir_, attempt_, step, why, UnixNow());
  if (drawer_ != nullptr) {
    const absl::Status drawn = drawer_->Draw(/*still_going=*/false);
    if (status.ok()) status = drawn;
    drawer_.reset();
  }
  return status;
}
}  // namespace carousel
