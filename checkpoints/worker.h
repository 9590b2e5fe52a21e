// A thread that does jobs in the order in which they were given, and can be left behind: a call to a dead
// network disk may never return, and nobody should have to wait for it.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <utility>

#include "absl/status/status.h"

namespace carousel {

class Worker {
 public:
  // Names a job; later jobs have larger ones. Job 0 has always been done.
  using Ticket = uint64_t;

  Worker();
  // Waits for the jobs, but not longer than this; after that the thread is left to itself, and what it has
  // not begun is dropped. It may touch what the job under way owns at any later time.
  static constexpr double kMaxEndSeconds = 2;
  ~Worker();
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  // The job owns all it touches. What it throws is logged and ends that job alone. All methods: any thread.
  Ticket Run(std::function<void()> job);
  // Whether the job has ended (in time), and with it all that were given before. What it wrote may be read
  // afterwards; what it owned is gone.
  bool Done(Ticket ticket) const { return WaitDone(ticket, 0); }
  bool WaitDone(Ticket ticket, double seconds) const;
  // All jobs that were given.
  bool WaitIdle(double seconds) const;

 private:
  // Shared with the thread, which may live longer than the Worker.
  struct Shared;
  static void Loop(const std::shared_ptr<Shared>& shared);

  std::shared_ptr<Shared> shared_;
  std::thread thread_;
};

// Of the exception that is being handled: ResourceExhausted for std::bad_alloc and std::system_error (no
// thread could be made), else Internal. Throws nothing; where there is no memory for it, without a message.
absl::Status StatusOfException() noexcept;
// What `work` returns, or throws.
template <class Work>
absl::Status WithoutThrowing(Work&& work) {
  try {
    return std::forward<Work>(work)();
  } catch (...) {
    return StatusOfException();
  }
}
}  // namespace carousel
