// A thread that does jobs in order, survives what they throw, and can be left behind.
#include "checkpoints/worker.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <new>
#include <stdexcept>
#include <system_error>
#include <vector>

namespace carousel {
namespace {

constexpr double kLong = 60;  // seconds

TEST(Worker, DoesJobsInTheOrderInWhichTheyWereGiven) {
  Worker worker;
  EXPECT_TRUE(worker.Done(0));
  std::vector<int> done;  // read when the worker is idle
  Worker::Ticket last = 0;
  for (int i = 0; i < 100; ++i) {
    const Worker::Ticket ticket = worker.Run([&done, i] { done.push_back(i); });
    EXPECT_GT(ticket, last);
    last = ticket;
  }
  EXPECT_TRUE(worker.WaitDone(last, kLong));
  EXPECT_TRUE(worker.WaitIdle(0));
  ASSERT_EQ(done.size(), 100u);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(done[static_cast<size_t>(i)], i);
}

TEST(Worker, ATicketIsDoneBeforeLaterJobsAre) {
  Worker worker;
  std::atomic<bool> open = false;
  const Worker::Ticket first = worker.Run([] {});
  const Worker::Ticket second = worker.Run([&] {
    while (!open) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  });
  EXPECT_TRUE(worker.WaitDone(first, kLong));
  EXPECT_FALSE(worker.Done(second));
  EXPECT_FALSE(worker.WaitIdle(0.01));
  open = true;
  EXPECT_TRUE(worker.WaitDone(second, kLong));
}

TEST(Worker, WhatAJobOwnsIsGoneWhenItIsDone) {
  Worker worker;
  auto owned = std::make_shared<int>(1);
  const std::weak_ptr<int> seen = owned;
  EXPECT_TRUE(worker.WaitDone(worker.Run([owned = std::move(owned)] {}), kLong));
  EXPECT_TRUE(seen.expired());
}

TEST(Worker, GoesOnAfterAJobThatThrew) {
  Worker worker;
  worker.Run([] { throw std::bad_alloc(); });
  bool done = false;
  EXPECT_TRUE(worker.WaitDone(worker.Run([&] { done = true; }), kLong));
  EXPECT_TRUE(done);
}

TEST(Worker, IsLeftBehindByItsOwnerWhenAJobHangs) {
  // The thread looks at it later than the test ends.
  static std::atomic<bool>& open = *new std::atomic<bool>(false);
  static std::atomic<int>& ended = *new std::atomic<int>(0);
  const auto start = std::chrono::steady_clock::now();
  {
    Worker worker;
    worker.Run([] {
      while (!open) std::this_thread::sleep_for(std::chrono::milliseconds(1));
      ++ended;
    });
    worker.Run([] { ended += 100; });  // never begun
  }
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(30));
  open = true;
  while (ended == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_EQ(ended, 1);
}

TEST(WithoutThrowing, SaysWhatWasThrown) {
  const auto of = [](auto thrower) {
    return WithoutThrowing([&]() -> absl::Status {
      thrower();
      return absl::OkStatus();
    });
  };
  EXPECT_TRUE(of([] {}).ok());
  EXPECT_EQ(WithoutThrowing([] { return absl::DataLossError("x"); }).code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(of([] { throw std::bad_alloc(); }).code(), absl::StatusCode::kResourceExhausted);
  const absl::Status no_thread =
      of([] { throw std::system_error(std::make_error_code(std::errc::resource_unavailable_try_again)); });
  EXPECT_EQ(no_thread.code(), absl::StatusCode::kResourceExhausted);
  const absl::Status other = of([] { throw std::runtime_error("broken"); });
  EXPECT_EQ(other.code(), absl::StatusCode::kInternal);
  EXPECT_NE(other.message().find("broken"), std::string::npos);
  EXPECT_EQ(of([] { throw 3; }).code(), absl::StatusCode::kInternal);
}
}  // namespace
}  // namespace carousel
