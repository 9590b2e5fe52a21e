// What every Communicator that moves data must do, as checks that all ranks of one communicator run together.
// Expected values are computed by each rank alone, from formulas for every rank's data.
#pragma once
#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "core/base/bfloat16.h"
#include "core/comm/communicator.h"

namespace carousel {

// Element i of rank r's data. Magnitudes spread over six decades, so that floating-point sums depend on
// order.
template <class T>
T ContractValue(int64_t rank, int64_t i) {
  const uint64_t h = (static_cast<uint64_t>(rank) * 1000003u + static_cast<uint64_t>(i) * 7919u + 12345u) *
                     0x9E3779B97F4A7C15ull;
  if constexpr (std::is_same_v<T, bfloat16>) {
    return bfloat16(ContractValue<float>(rank, i));
  } else if constexpr (std::is_floating_point_v<T>) {
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

// ((x_0 + x_1) + ...) + x_{P-1}, element i; bf16 is added in f32 and rounded once.
template <class T>
T RankOrderSum(int num_ranks, int64_t i) {
  using Sum = std::conditional_t<std::is_same_v<T, bfloat16>, float, T>;
  Sum sum = static_cast<Sum>(ContractValue<T>(0, i));
  for (int r = 1; r < num_ranks; ++r) sum = static_cast<Sum>(sum + static_cast<Sum>(ContractValue<T>(r, i)));
  return static_cast<T>(sum);
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
  std::vector<T> in_place;
  for (int64_t i = 0; i < n * P; ++i) {
    in_place.push_back(i / n == rank ? own_sum[static_cast<size_t>(i % n)] : ContractValue<T>(rank, i));
  }
  EXPECT_TRUE(all.SameBits(in_place)) << "ReduceScatterSum in place, " << where;
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

// Exchanges that would wait for ever if each end first sent and then received.
template <class T>
void CheckSendRecv(Communicator& c, int64_t n) {
  const int P = c.size(), rank = c.rank();
  if (P == 1) return;
  auto mine = ContractBuffer<T>::OfRank(rank, n);
  const auto expect_from = [&](const ContractBuffer<T>& received, int source, const char* what) {
    EXPECT_TRUE(received.SameBits(ContractBuffer<T>::OfRank(source, n).values))
        << what << ", " << n << " elements, rank " << rank << " of " << P;
  };
  // Rings of every stride, odd ones included.
  for (int stride = 1; stride < P; ++stride) {
    ContractBuffer<T> received(n);
    const int to = (rank + stride) % P, from = (rank + P - stride) % P;
    c.SendRecv(mine.tensor(), to, received.tensor(), from);
    expect_from(received, from, "SendRecv around a ring");
  }
  // A chain: the first receives nothing, the last sends nothing; both ways.
  for (const int step : {1, -1}) {
    const int to = rank + step, from = rank - step;
    const bool sends = to >= 0 && to < P, receives = from >= 0 && from < P;
    ContractBuffer<T> received(n);
    c.SendRecv(sends ? mine.tensor() : Tensor(), sends ? to : -1, receives ? received.tensor() : Tensor(),
               receives ? from : -1);
    if (receives) expect_from(received, from, "SendRecv along a chain");
  }
  // A partner that uses Send and Recv.
  ContractBuffer<T> received(n);
  const int next = (rank + 1) % P, previous = (rank + P - 1) % P;
  if (rank == 0) {
    c.Send(mine.tensor(), next);
    c.Recv(received.tensor(), previous);
  } else {
    c.SendRecv(mine.tensor(), next, received.tensor(), previous);
  }
  expect_from(received, previous, "SendRecv with Send and Recv");
  // A swap of different sizes.
  const int partner = rank ^ 1;
  if (partner < P) {
    const auto length = [&](int r) { return n + 3 * (r % 2); };
    auto out = ContractBuffer<T>::OfRank(rank, length(rank));
    ContractBuffer<T> in(length(partner));
    c.SendRecv(out.tensor(), partner, in.tensor(), partner);
    EXPECT_TRUE(in.SameBits(ContractBuffer<T>::OfRank(partner, length(partner)).values)) << "SendRecv swap";
  }
}

// A sum over a group of which this rank is part, whose members' data are those of the given ranks.
inline void CheckGroupSum(Communicator& group, const std::vector<int>& ranks, int64_t seed) {
  ASSERT_EQ(group.size(), static_cast<int>(ranks.size()));
  float x = ContractValue<float>(ranks[static_cast<size_t>(group.rank())], seed);
  float sum = ContractValue<float>(ranks[0], seed);
  for (size_t r = 1; r < ranks.size(); ++r) sum += ContractValue<float>(ranks[r], seed);
  group.AllReduceSum(Tensor(&x, DType::kF32, {1}));
  EXPECT_EQ(x, sum);
}

// Groups: in the order of ranks, nested, left out, and used in turn.
inline void CheckSplits(Communicator& c) {
  const int P = c.size(), rank = c.rank();
  const auto ranks_where = [&](auto&& wanted) {
    std::vector<int> ranks;
    for (int r = 0; r < P; ++r) {
      if (wanted(r)) ranks.push_back(r);
    }
    return ranks;
  };
  const auto same_parity = ranks_where([&](int r) { return r % 2 == rank % 2; });
  const auto same_half = ranks_where([&](int r) { return 2 * r / P == 2 * rank / P; });
  // Colors need not be dense.
  const std::unique_ptr<Communicator> parity = c.Split(rank % 2 == 0 ? 7 : 1000000);
  const std::unique_ptr<Communicator> half = c.Split(2 * rank / P);
  ASSERT_NE(parity, nullptr);
  EXPECT_EQ(same_parity[static_cast<size_t>(parity->rank())], rank);
  parity->set_name("parity");
  half->set_name("half");
  // A rank that is left out.
  const std::unique_ptr<Communicator> without_first = c.Split(rank == 0 ? -1 : 0);
  EXPECT_EQ(without_first == nullptr, rank == 0);
  // A part of a part: without its last rank.
  const bool last = parity->rank() == parity->size() - 1;
  const std::unique_ptr<Communicator> nested = parity->Split(last ? -5 : 2);
  EXPECT_EQ(nested == nullptr, last);
  std::vector<int> nested_ranks = same_parity;
  nested_ranks.pop_back();

  for (int64_t round = 0; round < 20; ++round) {
    CheckGroupSum(*parity, same_parity, 5 * round);
    CheckGroupSum(*half, same_half, 5 * round + 1);
    if (without_first != nullptr) {
      CheckGroupSum(*without_first, ranks_where([](int r) { return r > 0; }), 5 * round + 2);
    }
    if (nested != nullptr) CheckGroupSum(*nested, nested_ranks, 5 * round + 3);
    CheckGroupSum(c, ranks_where([](int) { return true; }), 5 * round + 4);
  }
  // Everybody alone.
  const std::unique_ptr<Communicator> alone = c.Split(rank);
  EXPECT_EQ(alone->size(), 1);
  CheckGroupSum(*alone, {rank}, 1);
}

// Everything, for tensors of about n elements per rank.
inline void CheckCommunicatorContract(Communicator& c, int64_t n) {
  CheckSums<float>(c, n);
  CheckSums<bfloat16>(c, n);
  CheckSums<double>(c, n);
  CheckSums<int32_t>(c, n);
  CheckSums<int64_t>(c, n);
  CheckMoves<float>(c, n);
  CheckMoves<int64_t>(c, n);
  CheckMoves<bfloat16>(c, n);
  CheckMoves<uint8_t>(c, n);
  CheckSendRecv<float>(c, n);
  CheckSendRecv<uint8_t>(c, n);
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
