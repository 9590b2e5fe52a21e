#include "kernels/cpu/thread_pool.h"

#include <omp.h>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace carousel::cpu {
namespace {
// A thread that waits polls for about the time that waking it would take (tens of microseconds), then for
// about ten times as long offers its core to others between polls, then sleeps in the kernel. So threads stay
// awake from op to op of a training step, and cost little where ranks times threads exceeds the cores.
constexpr int kPolls = 500;
constexpr int kYields = 500;

inline void Pause() {
#if defined(__x86_64__) || defined(__i386__)
  _mm_pause();
#endif
}

// Polls condition() for a while. Whether it came true.
template <class Condition>
bool PollFor(Condition&& condition) {
  for (int poll = 0; poll < kPolls; ++poll) {
    if (condition()) return true;
    Pause();
  }
  for (int poll = 0; poll < kYields; ++poll) {
    if (condition()) return true;
    std::this_thread::yield();
  }
  return condition();
}

// OpenMP inside a task has one thread. The setting belongs to the calling thread; its old value comes back at
// the end.
class SingleThreadedOpenMp {
 public:
  SingleThreadedOpenMp() : previous_(omp_get_max_threads()) {
    if (previous_ != 1) omp_set_num_threads(1);
  }
  ~SingleThreadedOpenMp() {
    if (previous_ != 1) omp_set_num_threads(previous_);
  }

 private:
  const int previous_;
};
}  // namespace

ThreadPool::ThreadPool(int num_threads) {
  CAROUSEL_CHECK_GE(num_threads, 1);
  workers_.reserve(num_threads - 1);
  for (int worker = 1; worker < num_threads; ++worker) {
    workers_.emplace_back([this, worker] { WorkerMain(worker); });
  }
}

ThreadPool::~ThreadPool() {
  stop_.store(true);
  wake_.fetch_add(1);
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::Work(int worker) {
  uint64_t ticket = ticket_.load(std::memory_order_acquire);
  while (true) {
    const int64_t left = static_cast<int64_t>(ticket & 0xffffffffu);
    if (left == 0) return;
    if (!ticket_.compare_exchange_weak(ticket, ticket - 1, std::memory_order_acq_rel,
                                       std::memory_order_acquire)) {
      continue;
    }
    const uint32_t num_tasks = static_cast<uint32_t>(num_tasks_);
    function_(body_, num_tasks_ - left, worker);
    if (num_done_.fetch_add(1, std::memory_order_acq_rel) + 1 == num_tasks && worker != 0) {
      num_done_.notify_one();
    }
    ticket = ticket_.load(std::memory_order_acquire);
  }
}

void ThreadPool::Run(int64_t num_tasks, TaskFunction function, void* body) {
  CAROUSEL_CHECK(num_tasks >= 0 && num_tasks < (int64_t{1} << 31));
  CAROUSEL_CHECK_MSG(!busy_.exchange(true, std::memory_order_acquire), "ParallelFor within ParallelFor");
  const SingleThreadedOpenMp single_threaded;
  if (workers_.empty() || num_tasks <= 1) {
    for (int64_t task = 0; task < num_tasks; ++task) function(body, task, 0);
  } else {
    num_tasks_ = num_tasks;
    function_ = function;
    body_ = body;
    num_done_.store(0, std::memory_order_relaxed);
    const uint64_t loop = (ticket_.load(std::memory_order_relaxed) >> 32) + 1;
    ticket_.store(loop << 32 | static_cast<uint64_t>(num_tasks), std::memory_order_release);
    wake_.fetch_add(1);
    wake_.notify_all();
    Work(0);
    const uint32_t all = static_cast<uint32_t>(num_tasks);
    uint32_t done = 0;
    const auto all_done = [&] { return (done = num_done_.load(std::memory_order_acquire)) == all; };
    if (!PollFor(all_done)) {
      while (!all_done()) num_done_.wait(done, std::memory_order_acquire);
    }
  }
  busy_.store(false, std::memory_order_release);
}

void ThreadPool::WorkerMain(int worker) {
  omp_set_num_threads(1);
  while (true) {
    // First what to wait for, then whether to stop: a stop after the first has changed wake_, one before it is
    // seen by the second.
    const uint32_t seen = wake_.load();
    if (stop_.load()) return;
    Work(worker);
    if (!PollFor([&] { return wake_.load(std::memory_order_acquire) != seen; })) wake_.wait(seen);
  }
}
}  // namespace carousel::cpu
