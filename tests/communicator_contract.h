// What every Communicator that moves data must do, as checks that all ranks of one communicator run together.
// Expected values are computed by each rank alone, from formulas for every rank's data.
#pragma once
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "core/comm/communicator.h"

namespace carousel {

// Element i of rank r's data. Magnitudes spread over six decades, so that floating-point sums depend on
// order.
template <class T>
T ContractValue(int64_t rank, int64_t i) {
  const uint64_t h = (static_cast<uint64_t>(rank) * 1000003u + static_cast<uint64_t>(i) * 7919u + 12345u) *
                     0x9E3779B97F4A7C15ull;
  if constexpr (std::is_floating_point_v<T>) {
    const double scale[] = {1e-3, 1e-1, 1.0, 1e3};
    return static_cast<T>((static_cast<double>(h >> 11) * 0x1.0p-52 - 1.0) * scale[h & 3]);
  } else {
    return static_cast<T>(h >> 38) - static_cast<T>(1 << 20);
  }
}

template <class T>
struct ContractBuffer {
  explicit ContractBuffer(int64_t n, T value = T()) : values(static_cast<size_t>(n), value) {}
  static ContractBuffer OfRank(int64_t rank, int64_t n) {
    ContractBuffer b(n);
    for (int64_t i = 0; i < n; ++i) b.values[static_cast<size_t>(i)] = ContractValue<T>(rank, i);
    return b;
  }
  Tensor tensor() { return Tensor(values.data(), DTypeOf<T>::value, {static_cast<int64_t>(values.size())}); }
  Tensor block(int64_t index, int64_t size) { return tensor().Rows(index * size, size); }
  bool SameBits(const std::vector<T>& other) const {
    return values.size() == other.size() &&
           (values.empty() || std::memcmp(values.data(), other.data(), values.size() * sizeof(T)) == 0);
  }
  std::vector<T> values;
};

// ((x_0 + x_1) + ...) + x_{P-1}, element i.
template <class T>
T RankOrderSum(int num_ranks, int64_t i) {
  T sum = ContractValue<T>(0, i);
  for (int r = 1; r < num_ranks; ++r) sum = static_cast<T>(sum + ContractValue<T>(r, i));
  return sum;
}

template <class T>
void CheckSums(Communicator& c, int64_t n) {
  const std::string where = std::string(NameOf(DTypeOf<T>::value)) + ", " + std::to_string(n) + " elements";
  const int P = c.size(), rank = c.rank();

  auto x = ContractBuffer<T>::OfRank(rank, n);
  c.AllReduceSum(x.tensor());
  std::vector<T> sum;
  for (int64_t i = 0; i < n; ++i) sum.push_back(RankOrderSum<T>(P, i));
  EXPECT_TRUE(x.SameBits(sum)) << "AllReduceSum, " << where;

  const auto all_data = ContractBuffer<T>::OfRank(rank, n * P);
  std::vector<T> own_sum;
  for (int64_t i = 0; i < n; ++i) own_sum.push_back(RankOrderSum<T>(P, rank * n + i));
  auto all = all_data;
  ContractBuffer<T> mine(n);
  c.ReduceScatterSum(mine.tensor(), all.tensor());
  EXPECT_TRUE(mine.SameBits(own_sum)) << "ReduceScatterSum, " << where;
  EXPECT_TRUE(all.SameBits(all_data.values)) << "ReduceScatterSum must not change its input, " << where;
  c.ReduceScatterSum(all.block(rank, n), all.tensor());
  for (int64_t i = 0; i < n * P; ++i) {
    const T expected = i / n == rank ? own_sum[static_cast<size_t>(i % n)] : ContractValue<T>(rank, i);
    ASSERT_EQ(all.values[static_cast<size_t>(i)], expected) << "ReduceScatterSum in place, " << where;
  }
}

template <class T>
void CheckMoves(Communicator& c, int64_t n) {
  const std::string where = std::string(NameOf(DTypeOf<T>::value)) + ", " + std::to_string(n) + " elements";
  const int P = c.size(), rank = c.rank();
  std::vector<T> gathered;
  for (int r = 0; r < P; ++r) {
    for (int64_t i = 0; i < n; ++i) gathered.push_back(ContractValue<T>(r, i));
  }
  auto mine = ContractBuffer<T>::OfRank(rank, n);
  ContractBuffer<T> all(n * P);
  c.AllGather(all.tensor(), mine.tensor());
  EXPECT_TRUE(all.SameBits(gathered)) << "AllGather, " << where;
  ContractBuffer<T> in_place(n * P);
  for (int64_t i = 0; i < n; ++i)
    in_place.values[static_cast<size_t>(rank * n + i)] = ContractValue<T>(rank, i);
  c.AllGather(in_place.tensor(), in_place.block(rank, n));
  EXPECT_TRUE(in_place.SameBits(gathered)) << "AllGather in place, " << where;

  auto to_all = ContractBuffer<T>::OfRank(rank, n * P);
  ContractBuffer<T> from_all(n * P);
  c.AllToAll(from_all.tensor(), to_all.tensor());
  std::vector<T> exchanged;
  for (int r = 0; r < P; ++r) {
    for (int64_t i = 0; i < n; ++i) exchanged.push_back(ContractValue<T>(r, rank * n + i));
  }
  EXPECT_TRUE(from_all.SameBits(exchanged)) << "AllToAll, " << where;

  for (int root = 0; root < P; ++root) {
    auto x = ContractBuffer<T>::OfRank(rank, n);
    c.Broadcast(x.tensor(), root);
    EXPECT_TRUE(x.SameBits(ContractBuffer<T>::OfRank(root, n).values))
        << "Broadcast from " << root << ", " << where;
  }

  // A ring, one link after the other: the order in which Sends need no buffering.
  if (P > 1) {
    ContractBuffer<T> received(n);
    const int next = (rank + 1) % P, previous = (rank + P - 1) % P;
    if (rank == 0) c.Send(mine.tensor(), next);
    c.Recv(received.tensor(), previous);
    if (rank != 0) c.Send(mine.tensor(), next);
    EXPECT_TRUE(received.SameBits(ContractBuffer<T>::OfRank(previous, n).values)) << "Send, Recv, " << where;
  }
}

// Everything, for tensors of about n elements per rank.
inline void CheckCommunicatorContract(Communicator& c, int64_t n) {
  CheckSums<float>(c, n);
  CheckSums<double>(c, n);
  CheckSums<int32_t>(c, n);
  CheckSums<int64_t>(c, n);
  CheckMoves<float>(c, n);
  CheckMoves<int64_t>(c, n);
  CheckMoves<uint8_t>(c, n);
  c.Barrier();

  const std::string mine(static_cast<size_t>(3 * c.rank() + (n > 0)), static_cast<char>('a' + c.rank()));
  const std::vector<std::string> texts = AllGatherBytes(c, mine);
  ASSERT_EQ(static_cast<int>(texts.size()), c.size());
  for (int r = 0; r < c.size(); ++r) {
    EXPECT_EQ(texts[static_cast<size_t>(r)],
              std::string(static_cast<size_t>(3 * r + (n > 0)), static_cast<char>('a' + r)));
  }
  const int last = c.size() - 1;
  EXPECT_EQ(BroadcastBytes(c, c.rank() == last ? "from the last" : "", last), "from the last");
}
}  // namespace carousel
