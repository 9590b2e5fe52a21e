#include "checkpoints/worker.h"

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <utility>

#include "core/base/check.h"

namespace carousel {

struct Worker::Shared {
  std::mutex mutex;
  std::condition_variable changed;
  std::function<void()> job;  // empty: idle
  bool end = false;
};

Worker::Worker() : shared_(std::make_shared<Shared>()), thread_([shared = shared_] { Loop(shared); }) {}

Worker::~Worker() {
  const bool idle = WaitIdle(kMaxEndSeconds);
  {
    const std::lock_guard<std::mutex> lock(shared_->mutex);
    shared_->end = true;
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
    shared->changed.wait(lock, [&] { return shared->job || shared->end; });
    if (!shared->job) return;
    lock.unlock();
    shared->job();
    lock.lock();
    // What the job owns goes before anybody sees that it is done.
    shared->job = nullptr;
    shared->changed.notify_all();
  }
}

void Worker::Run(std::function<void()> job) {
  const std::lock_guard<std::mutex> lock(shared_->mutex);
  CAROUSEL_CHECK_MSG(!shared_->job, "a worker does one job at a time");
  shared_->job = std::move(job);
  shared_->changed.notify_all();
}

bool Worker::idle() const { return WaitIdle(0); }

bool Worker::WaitIdle(double seconds) const {
  std::unique_lock<std::mutex> lock(shared_->mutex);
  return shared_->changed.wait_for(lock, std::chrono::duration<double>(seconds),
                                   [this] { return !shared_->job; });
}
}  // namespace carousel
