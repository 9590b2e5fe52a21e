// ThreadPool: the threads of one rank. A parallel loop has a fixed number of tasks, chosen by the caller as a
// pure function of the shape; threads take tasks as they become free. Which thread runs a task must not
// influence its result: that is how every op gives the same bits for every number of threads.
#pragma once
#include <atomic>
#include <cstdint>
#include <thread>
#include <type_traits>
#include <vector>

#include "core/base/check.h"

namespace carousel::cpu {

class ThreadPool {
 public:
  // num_threads >= 1 counts the calling thread: ThreadPool(1) starts no thread at all.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Runs fn(task) or fn(task, worker) once for every task in [0, num_tasks), 0 <= worker < num_threads(), and
  // returns when all have finished. Tasks start in ascending order; no two tasks of equal `worker` overlap,
  // so scratch memory may be indexed by it. fn must not throw and must not call ParallelFor of the same pool.
  // REQUIRES: one caller at a time; num_tasks < 2^31.
  // While fn runs, OpenMP regions of the libraries it calls (oneDNN) have one thread.
  template <class Fn>
  void ParallelFor(int64_t num_tasks, Fn&& fn) {
    using Body = std::remove_reference_t<Fn>;
    Run(
        num_tasks,
        [](void* body, int64_t task, int worker) {
          if constexpr (std::is_invocable_v<Body&, int64_t, int>) {
            (*static_cast<Body*>(body))(task, worker);
          } else {
            (*static_cast<Body*>(body))(task);
          }
        },
        const_cast<void*>(static_cast<const void*>(&fn)));
  }

  // Splits [0, n) into blocks of block_size (the last may be short) and runs fn(begin, end) for each.
  template <class Fn>
  void ParallelForBlocks(int64_t n, int64_t block_size, Fn&& fn) {
    CAROUSEL_CHECK_GT(block_size, 0);
    ParallelFor((n + block_size - 1) / block_size, [&](int64_t block) {
      const int64_t begin = block * block_size;
      fn(begin, begin + block_size < n ? begin + block_size : n);
    });
  }

 private:
  using TaskFunction = void (*)(void* body, int64_t task, int worker);
  void Run(int64_t num_tasks, TaskFunction function, void* body);
  // Takes tasks of the current loop until none is left to start.
  void Work(int worker);
  void WorkerMain(int worker);

  // (loop number << 32) | tasks not yet started. A thread that takes a task by compare-exchange holds the
  // loop open, so the fields below it are stable until the task is counted in num_done_.
  alignas(64) std::atomic<uint64_t> ticket_{0};
  int64_t num_tasks_ = 0;
  TaskFunction function_ = nullptr;
  void* body_ = nullptr;
  alignas(64) std::atomic<uint32_t> num_done_{0};
  alignas(64) std::atomic<uint32_t> wake_{
      0};  // changes when a loop starts or the pool stops; workers sleep on it
  std::atomic<bool> busy_{false};
  std::atomic<bool> stop_{false};
  std::vector<std::thread> workers_;
};
}  // namespace carousel::cpu
