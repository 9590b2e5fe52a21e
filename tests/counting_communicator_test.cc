#include "parallel/counting_communicator.h"

#include <gtest/gtest.h>

namespace carousel {
namespace {

TEST(CountingCommunicator, RecordsCallsOfTensorsWithoutData) {
  CountingCommunicator c(1, 4);
  EXPECT_EQ(c.rank(), 1);
  EXPECT_EQ(c.size(), 4);
  c.SetTag("first");
  c.AllGather(Tensor(nullptr, DType::kBF16, {400}), Tensor(nullptr, DType::kBF16, {100}));
  c.SetTag("second");
  c.AllToAll(Tensor(nullptr, DType::kF32, {8}), Tensor(nullptr, DType::kF32, {8}));

  ASSERT_EQ(c.calls().size(), 2u);
  EXPECT_EQ(Describe(c.calls()[0].call), "AllGather(400 x bf16)");
  EXPECT_EQ(c.calls()[0].tag, "first");
  EXPECT_EQ(Describe(c.calls()[1].call), "AllToAll(8 x f32)");
  EXPECT_EQ(c.calls()[1].tag, "second");
}

TEST(CountingCommunicator, CountsTheLeastBytesThatEachOperationNeeds) {
  CountingCommunicator c(1, 4);
  const auto bytes_of_last = [&] { return c.calls().back().wire_bytes; };
  c.AllReduceSum(Tensor(nullptr, DType::kF32, {100}));
  EXPECT_EQ(bytes_of_last(), 2 * 3 * 400 / 4);
  c.AllGather(Tensor(nullptr, DType::kF32, {100}), Tensor(nullptr, DType::kF32, {25}));
  EXPECT_EQ(bytes_of_last(), 3 * 100);
  c.ReduceScatterSum(Tensor(nullptr, DType::kF64, {25}), Tensor(nullptr, DType::kF64, {100}));
  EXPECT_EQ(bytes_of_last(), 3 * 200);
  c.AllToAll(Tensor(nullptr, DType::kU8, {8}), Tensor(nullptr, DType::kU8, {8}));
  EXPECT_EQ(bytes_of_last(), 3 * 2);
  c.Broadcast(Tensor(nullptr, DType::kI64, {10}), 1);
  EXPECT_EQ(bytes_of_last(), 3 * 80);
  c.Broadcast(Tensor(nullptr, DType::kI64, {10}), 0);
  EXPECT_EQ(bytes_of_last(), 0);
  c.Send(Tensor(nullptr, DType::kI32, {10}), 2);
  EXPECT_EQ(bytes_of_last(), 40);
  c.Recv(Tensor(nullptr, DType::kI32, {10}), 2);
  EXPECT_EQ(bytes_of_last(), 0);
  c.Barrier();
  EXPECT_EQ(bytes_of_last(), 0);
  c.AllReduceSum(Tensor(nullptr, DType::kF32, {1}));  // 2 * 3/4 * 4 bytes
  EXPECT_EQ(bytes_of_last(), 6);
}

TEST(CountingCommunicator, AllRanksOfABroadcastTogetherSendWhatTheTreeSends) {
  int64_t sum = 0;
  for (int rank = 0; rank < 5; ++rank) {
    CountingCommunicator c(rank, 5);
    c.Broadcast(Tensor(nullptr, DType::kF32, {25}), 3);
    sum += c.Totals().total.wire_bytes;
  }
  EXPECT_EQ(sum, 4 * 100);
}

TEST(CountingCommunicator, TotalsAddUpByOperationAndTag) {
  CountingCommunicator c(0, 2);
  const Tensor ten(nullptr, DType::kF32, {10});
  c.SetTag("a");
  c.AllReduceSum(ten);
  c.AllReduceSum(ten);
  c.SetTag("b");
  c.AllReduceSum(ten);
  c.Barrier();
  const CommTotals totals = c.Totals();
  EXPECT_EQ(totals.by_op.at("AllReduceSum").num_calls, 3);
  EXPECT_EQ(totals.by_op.at("AllReduceSum").wire_bytes, 120);
  EXPECT_EQ(totals.by_op.at("Barrier").num_calls, 1);
  EXPECT_EQ(totals.by_tag.at("a").wire_bytes, 80);
  EXPECT_EQ(totals.by_tag.at("b").wire_bytes, 40);
  EXPECT_EQ(totals.total.num_calls, 4);
  EXPECT_EQ(totals.total.wire_bytes, 120);
  c.Clear();
  EXPECT_EQ(c.Totals().total.num_calls, 0);
}

TEST(CountingCommunicator, DoesNotTouchMemory) {
  CountingCommunicator c(0, 2);
  float x[4] = {1, 2, 3, 4};
  c.AllReduceSum(Tensor(x, DType::kF32, {4}));
  c.AllGather(Tensor(x, DType::kF32, {4}), Tensor(x, DType::kF32, {2}));
  for (int i = 0; i < 4; ++i) EXPECT_EQ(x[i], static_cast<float>(i + 1));
}

TEST(CountingCommunicatorDeathTest, ChecksTheContract) {
  CountingCommunicator c(0, 2);
  EXPECT_DEATH(c.AllGather(Tensor(nullptr, DType::kF32, {5}), Tensor(nullptr, DType::kF32, {2})),
               "5 elements, which is not 2 ranks x 2");
  EXPECT_DEATH(c.Send(Tensor(nullptr, DType::kF32, {1}), 2), "destination is rank 2 of 2");
}
}  // namespace
}  // namespace carousel
