// A thread that does one job at a time and can be left behind: a call to a dead network disk may never
// return, and nobody should have to wait for it. Internal to this folder.
#pragma once
#include <functional>
#include <memory>
#include <thread>

namespace carousel {

class Worker {
 public:
  Worker();
  // Waits for the job, but not longer than this; after that the thread is left to itself. It may touch what
  // its job owns at any later time.
  static constexpr double kMaxEndSeconds = 2;
  ~Worker();
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  // REQUIRES: idle(). The job owns all it touches.
  void Run(std::function<void()> job);
  bool idle() const;
  // Whether it was idle in time. What the job wrote may be read afterwards.
  bool WaitIdle(double seconds) const;

 private:
  // Shared with the thread, which may live longer than the Worker.
  struct Shared;
  static void Loop(const std::shared_ptr<Shared>& shared);

  std::shared_ptr<Shared> shared_;
  std::thread thread_;
};
}  // namespace carousel
