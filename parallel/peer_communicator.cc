#include "parallel/peer_communicator.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace carousel {
namespace {
// A sum of at most so many bytes exchanges whole tensors: one round of messages instead of two.
constexpr int64_t kSmallSumBytes = int64_t{16} << 10;
// After being told to end.
constexpr auto kTellAfter = std::chrono::milliseconds(500);
constexpr auto kEndAfter = std::chrono::seconds(5);
constexpr auto kWaitingTold = std::chrono::seconds(1);
constexpr int64_t kNumCallsShown = 4;

std::byte* At(Tensor x, int64_t offset_bytes) { return static_cast<std::byte*>(x.data) + offset_bytes; }
void Copy(void* out, const void* in, int64_t bytes) {
  if (bytes > 0 && out != in) std::memmove(out, in, static_cast<size_t>(bytes));
}

struct Block {
  std::byte* data;
  int64_t bytes;
};
}  // namespace

std::string RankList(const std::vector<int>& ranks) {
  std::string text = ranks.size() == 1 ? "rank " : "ranks ";
  for (size_t i = 0; i < ranks.size(); ++i) {
    if (i > 0) text += i + 1 < ranks.size() ? ", " : " and ";
    absl::StrAppend(&text, ranks[i]);
  }
  return text;
}

void PeerCommunicator::Fail(const std::string& problem, int exit_code) {
  std::fprintf(stderr, "[rank %d] %s failed: %s\nthe last calls on this communicator:\n%s", WorldRank(rank()),
               DescribeCurrent().c_str(), problem.c_str(), recorder().Dump(kNumCallsShown).c_str());
  EndJob(exit_code);
  std::abort();  // not reached
}

PeerCommunicator::WaitLimits::~WaitLimits() {
  if (waits_) communicator_.options_.waiting("", {});
}

void PeerCommunicator::WaitLimits::Check(const std::function<std::vector<int>()>& missing) {
  const PeerOptions& options = communicator_.options_;
  const Clock::time_point now = Clock::now();
  if (now > communicator_.end_time_) communicator_.EndJob(communicator_.end_code_);
  if (now - start_ > std::chrono::duration<double>(options.timeout_seconds)) {
    communicator_.Fail(absl::StrFormat("waited for %s for %.4g s, which is the limit", RankList(missing()),
                                       options.timeout_seconds));
  }
  if (options.waiting != nullptr && now - told_waiting_ > kWaitingTold) {
    told_waiting_ = now;
    waits_ = true;
    options.waiting(communicator_.DescribeCurrent(), missing());
  }
  if (!interrupted_ && options.interrupted != nullptr && options.interrupted()) {
    interrupted_ = true;
    interrupted_since_ = now;
  }
  if (!interrupted_) return;
  if (const size_t num_missing = missing().size(); num_missing < num_missing_) {
    num_missing_ = num_missing;
    last_message_ = now;
  }
  const Clock::duration idle = now - std::max(last_message_, interrupted_since_);
  if (!told_ && idle > kTellAfter) {
    told_ = true;
    std::fprintf(stderr,
                 "[rank %d] told to end, while %s waits for %s: did one of them die? Its own message or the "
                 "launcher's says why\n",
                 communicator_.WorldRank(communicator_.rank()), communicator_.DescribeCurrent().c_str(),
                 RankList(missing()).c_str());
    std::fflush(stderr);
  }
  if (idle > kEndAfter) {
    communicator_.Fail(absl::StrCat("told to end, and nothing came from ", RankList(missing())),
                       kExitTerminated);
  }
}

void PeerCommunicator::BarrierOrEnd(Clock::duration limit, int exit_code) {
  end_time_ = Clock::now() + limit;
  end_code_ = exit_code;
  Barrier();
  end_time_ = Clock::time_point::max();
}

template <class In, class Out>
void PeerCommunicator::StartExchange(const In& in, const Out& out) {
  for (int k = 1; k < size(); ++k) {
    const int to = (rank() + k) % size(), from = (rank() + size() - k) % size();
    const Block received = out(from), sent = in(to);
    Receive(received.data, received.bytes, from, Kind::kCollective);
    Post(sent.data, sent.bytes, to, Kind::kCollective);
  }
}

std::byte* PeerCommunicator::Staging(int64_t bytes) {
  if (static_cast<int64_t>(staging_.size()) < bytes) staging_.resize(static_cast<size_t>(bytes));
  return staging_.data();
}

// out = sum in rank order over the staged slices, with `own` in this rank's place.
void PeerCommunicator::SumStaged(void* out, const void* own, int64_t slice_bytes, int64_t count,
                                 DType dtype) {
  if (count == 0) return;
  slices_.clear();
  for (int r = 0; r < size(); ++r) {
    slices_.push_back(r == rank() ? own : staging_.data() + r * slice_bytes);
  }
  SumInRankOrder(out, slices_.data(), size(), count, dtype);
}

void PeerCommunicator::DoAllReduceSum(Tensor x) {
  if (size() == 1 || x.num_elems() == 0) return;
  if (x.num_bytes() <= kSmallSumBytes) {
    const int64_t bytes = x.num_bytes();
    std::byte* staging = Staging(bytes * size());
    StartExchange(
        [&](int) {
          return Block{At(x, 0), bytes};
        },
        [&](int from) {
          return Block{staging + from * bytes, bytes};
        });
    Wait();
    SumStaged(x.data, x.data, bytes, x.num_elems(), x.dtype);
    return;
  }
  // In chunks that fit into the staging memory: slice r of a chunk is summed by rank r, then sent to all.
  const int64_t elem_bytes = SizeOf(x.dtype);
  const int64_t chunk_elems = std::max<int64_t>(options_.staging_bytes / elem_bytes, size());
  for (int64_t begin = 0; begin < x.num_elems(); begin += chunk_elems) {
    const int64_t n = std::min(chunk_elems, x.num_elems() - begin);
    const auto slice = [&](int r) {
      const int64_t first = n * r / size(), end = n * (r + 1) / size();
      return Block{At(x, (begin + first) * elem_bytes), (end - first) * elem_bytes};
    };
    const Block own = slice(rank());
    std::byte* staging = Staging(own.bytes * size());
    StartExchange(slice, [&](int from) { return Block{staging + from * own.bytes, own.bytes}; });
    Wait();
    SumStaged(own.data, own.data, own.bytes, own.bytes / elem_bytes, x.dtype);
    StartExchange([&](int) { return own; }, slice);
    Wait();
  }
}

void PeerCommunicator::DoAllGather(Tensor all, Tensor mine) {
  const int64_t bytes = mine.num_bytes();
  StartExchange(
      [&](int) {
        return Block{At(mine, 0), bytes};
      },
      [&](int from) {
        return Block{At(all, from * bytes), bytes};
      });
  Copy(At(all, rank() * bytes), mine.data, bytes);
  Wait();
}

void PeerCommunicator::DoReduceScatterSum(Tensor mine, Tensor all) {
  const int64_t elem_bytes = SizeOf(all.dtype), block_bytes = mine.num_bytes();
  const int64_t piece_bytes =
      std::max<int64_t>(options_.staging_bytes / (elem_bytes * size()), 1) * elem_bytes;
  for (int64_t begin = 0; begin < block_bytes; begin += piece_bytes) {
    const int64_t bytes = std::min(piece_bytes, block_bytes - begin);
    std::byte* staging = Staging(bytes * size());
    StartExchange(
        [&](int to) {
          return Block{At(all, to * block_bytes + begin), bytes};
        },
        [&](int from) {
          return Block{staging + from * bytes, bytes};
        });
    Wait();
    SumStaged(At(mine, begin), At(all, rank() * block_bytes + begin), bytes, bytes / elem_bytes, all.dtype);
  }
}

void PeerCommunicator::DoAllToAll(Tensor out, Tensor in) {
  const int64_t bytes = in.num_bytes() / size();
  StartExchange(
      [&](int to) {
        return Block{At(in, to * bytes), bytes};
      },
      [&](int from) {
        return Block{At(out, from * bytes), bytes};
      });
  Copy(At(out, rank() * bytes), At(in, rank() * bytes), bytes);
  Wait();
}

// A binomial tree: in round k the ranks below 2^k (counted from the root) send to those 2^k further on.
void PeerCommunicator::DoBroadcast(Tensor x, int root) {
  const int place = (rank() + size() - root) % size();
  for (int distance = 1; distance < size(); distance *= 2) {
    if (place < distance && place + distance < size()) {
      Post(x.data, x.num_bytes(), (rank() + distance) % size(), Kind::kCollective);
    } else if (place >= distance && place < 2 * distance) {
      Receive(x.data, x.num_bytes(), (rank() + size() - distance) % size(), Kind::kCollective);
    }
    Wait();
  }
}

void PeerCommunicator::DoSend(Tensor x, int destination) {
  Post(x.data, x.num_bytes(), destination, Kind::kPair);
  Wait();
}

void PeerCommunicator::DoRecv(Tensor x, int source) {
  Receive(x.data, x.num_bytes(), source, Kind::kPair);
  Wait();
}

void PeerCommunicator::DoSendRecv(Tensor out, int destination, Tensor in, int source) {
  Receive(in.data, in.num_bytes(), source, Kind::kPair);
  Post(out.data, out.num_bytes(), destination, Kind::kPair);
  Wait();
}

// In round k every rank tells the one 2^k further on that it and the 2^k - 1 before it are here.
void PeerCommunicator::DoBarrier() {
  std::byte sent{1}, received{0};
  for (int distance = 1; distance < size(); distance *= 2) {
    Receive(&received, 1, (rank() + size() - distance) % size(), Kind::kCollective);
    Post(&sent, 1, (rank() + distance) % size(), Kind::kCollective);
    Wait();
  }
}

void PeerCommunicator::DoExchangeForVerify(void* all, const void* mine, int64_t bytes) {
  const Tensor gathered(all, DType::kU8, {bytes * size()});
  PeerCommunicator::DoAllGather(gathered, Tensor(const_cast<void*>(mine), DType::kU8, {bytes}));
}
}  // namespace carousel
