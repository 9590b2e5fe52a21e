#include "kernels/cpu/thread_pool.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <atomic>
#include <numeric>
#include <thread>
#include <vector>

namespace carousel::cpu {
namespace {

TEST(ThreadPool, RunsEveryTaskOnce) {
  for (const int threads : {1, 2, 3, 5}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.num_threads(), threads);
    for (const int64_t n : {0, 1, 2, 3, 7, 100, 1000}) {
      std::vector<int> runs(static_cast<size_t>(n));
      pool.ParallelFor(n, [&](int64_t task) { ++runs[static_cast<size_t>(task)]; });
      EXPECT_EQ(runs, std::vector<int>(static_cast<size_t>(n), 1))
          << threads << " threads, " << n << " tasks";
    }
  }
}

TEST(ThreadPool, NeverRunsTwoTasksOfOneWorkerAtOnce) {
  ThreadPool pool(4);
  std::vector<std::atomic<int>> busy(4);
  pool.ParallelFor(2000, [&](int64_t, int worker) {
    ASSERT_GE(worker, 0);
    ASSERT_LT(worker, 4);
    ASSERT_EQ(busy[static_cast<size_t>(worker)].exchange(1), 0);
    busy[static_cast<size_t>(worker)].store(0);
  });
}

TEST(ThreadPool, MakesWritesOfTasksVisibleToTheCaller) {
  ThreadPool pool(3);
  std::vector<int64_t> values(64);
  int64_t total = 0;
  for (int64_t loop = 0; loop < 20000; ++loop) {
    pool.ParallelFor(loop % 9, [&](int64_t task) { values[static_cast<size_t>(task)] = loop + task; });
    for (int64_t task = 0; task < loop % 9; ++task) {
      ASSERT_EQ(values[static_cast<size_t>(task)], loop + task);
      total += task;
    }
  }
  EXPECT_GT(total, 0);
}

TEST(ThreadPool, WorksAfterItsWorkersWentToSleep) {
  ThreadPool pool(2);
  for (int i = 0; i < 5; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(3));
    std::atomic<int64_t> sum = 0;
    pool.ParallelFor(10, [&](int64_t task) { sum += task; });
    EXPECT_EQ(sum, 45);
  }
}

TEST(ThreadPool, CutsARangeIntoBlocksThatCoverIt) {
  ThreadPool pool(2);
  std::vector<int> runs(103);
  pool.ParallelForBlocks(103, 10, [&](int64_t begin, int64_t end) {
    EXPECT_EQ(begin % 10, 0);
    EXPECT_LE(end - begin, 10);
    for (int64_t i = begin; i < end; ++i) ++runs[static_cast<size_t>(i)];
  });
  EXPECT_EQ(runs, std::vector<int>(103, 1));
}

TEST(ThreadPool, GivesOpenMpInsideOfTasksOneThreadAndRestoresIt) {
  omp_set_num_threads(3);
  ThreadPool pool(2);
  std::atomic<int> largest = 0;
  pool.ParallelFor(50, [&](int64_t) {
    const int threads = omp_get_max_threads();
    if (threads > largest) largest = threads;
  });
  EXPECT_EQ(largest, 1);
  EXPECT_EQ(omp_get_max_threads(), 3);
}

TEST(ThreadPool, OfManyMoreThreadsThanCoresStillFinishes) {
  std::vector<std::thread> ranks;
  std::atomic<int64_t> tasks = 0;
  for (int rank = 0; rank < 4; ++rank) {
    ranks.emplace_back([&] {
      ThreadPool pool(4);
      for (int loop = 0; loop < 200; ++loop) pool.ParallelFor(16, [&](int64_t) { ++tasks; });
    });
  }
  for (std::thread& rank : ranks) rank.join();
  EXPECT_EQ(tasks, 4 * 200 * 16);
}

TEST(ThreadPool, MayEndBeforeItsThreadsHaveBegun) {
  // A thread that looked whether to stop before what to wait for slept through this, within a few pools.
  for (int i = 0; i < 5000; ++i) {
    ThreadPool pool(4);
    if (i % 2 == 1) pool.ParallelFor(3, [](int64_t) {});
  }
}
TEST(ThreadPoolDeathTest, RefusesALoopWithinALoop) {
  EXPECT_DEATH(
      {
        ThreadPool pool(1);
        pool.ParallelFor(1, [&](int64_t) { pool.ParallelFor(1, [](int64_t) {}); });
      },
      "ParallelFor within ParallelFor");
}

TEST(ThreadPoolDeathTest, NeedsAThread) { EXPECT_DEATH(ThreadPool(0), "num_threads >= 1"); }
}  // namespace
}  // namespace carousel::cpu
