#include "checkpoints/worker.h"

#include <chrono>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <new>
#include <string>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "core/base/log.h"

namespace carousel {

struct Worker::Shared {
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<std::function<void()>> jobs;  // not begun
  Ticket given = 0, done = 0;
  bool end = false;
};

Worker::Worker() : shared_(std::make_shared<Shared>()), thread_([shared = shared_] { Loop(shared); }) {}

Worker::~Worker() {
  const bool idle = WaitIdle(kMaxEndSeconds);
  {
    const std::lock_guard<std::mutex> lock(shared_->mutex);
    shared_->end = true;
    shared_->jobs.clear();
    shared_->changed.notify_all();
  }
  if (idle) {
    thread_.join();
  } else {
    thread_.detach();
  }
}

void Worker::Loop(const std::shared_ptr<Shared>& shared) {
  std::unique_lock<std::mutex> lock(shared->mutex);
  while (true) {
    shared->changed.wait(lock, [&] { return !shared->jobs.empty() || shared->end; });
    if (shared->end) return;
    std::function<void()> job = std::move(shared->jobs.front());
    shared->jobs.pop_front();
    lock.unlock();
    const absl::Status status = WithoutThrowing([&] {
      job();
      return absl::OkStatus();
    });
    // Jobs that can fail say so themselves.
    if (!status.ok()) CAROUSEL_LOG(ERROR) << "a job in the background ended early: " << status.message();
    // What the job owns goes before anybody sees that it is done.
    job = nullptr;
    lock.lock();
    ++shared->done;
    shared->changed.notify_all();
  }
}

Worker::Ticket Worker::Run(std::function<void()> job) {
  const std::lock_guard<std::mutex> lock(shared_->mutex);
  shared_->jobs.push_back(std::move(job));
  shared_->changed.notify_all();
  return ++shared_->given;
}

bool Worker::WaitDone(Ticket ticket, double seconds) const {
  std::unique_lock<std::mutex> lock(shared_->mutex);
  return shared_->changed.wait_for(lock, std::chrono::duration<double>(seconds),
                                   [&] { return shared_->done >= ticket; });
}

bool Worker::WaitIdle(double seconds) const {
  std::unique_lock<std::mutex> lock(shared_->mutex);
  return shared_->changed.wait_for(lock, std::chrono::duration<double>(seconds),
                                   [this] { return shared_->done == shared_->given; });
}

absl::Status StatusOfException() noexcept {
  absl::StatusCode code = absl::StatusCode::kInternal;
  try {
    try {
      throw;
    } catch (const std::bad_alloc&) {
      code = absl::StatusCode::kResourceExhausted;
      return absl::ResourceExhaustedError("there is no host memory left (std::bad_alloc)");
    } catch (const std::system_error& error) {
      code = absl::StatusCode::kResourceExhausted;
      return absl::ResourceExhaustedError(error.what());
    } catch (const std::exception& error) {
      return absl::InternalError(absl::StrCat("an exception: ", error.what()));
    } catch (...) {
      return absl::InternalError("an exception of an unknown kind");
    }
  } catch (...) {
    return absl::Status(code, "");
  }
}
}  // namespace carousel
