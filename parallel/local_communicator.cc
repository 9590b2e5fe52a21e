#include "parallel/local_communicator.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "parallel/local_meeting.h"

namespace carousel {
namespace {
using Half = LocalMeeting::Half;

std::byte* Block(Tensor x, int64_t block, int64_t block_bytes) {
  return static_cast<std::byte*>(x.data) + block * block_bytes;
}
// memmove: a block that is already in place is allowed.
void Copy(void* out, const void* in, int64_t bytes) {
  if (bytes > 0 && out != in) std::memmove(out, in, static_cast<size_t>(bytes));
}

[[noreturn]] void EndProcess(int exit_code) {
  std::fflush(nullptr);
  std::_Exit(exit_code);
}

class LocalCommunicator final : public Communicator {
 public:
  LocalCommunicator(LocalMeeting& meeting, LocalMeeting::Group& group, int rank)
      : meeting_(meeting), group_(group), rank_(rank), world_rank_(group.members[static_cast<size_t>(rank)]) {}
  ~LocalCommunicator() override {
    if (&group_ != &meeting_.world()) meeting_.ReleasePart(group_);
  }

  int rank() const override { return rank_; }
  int size() const override { return group_.size(); }
  int WorldRank(int rank) const override { return group_.members[static_cast<size_t>(rank)]; }
  [[noreturn]] void Abort(int exit_code) override { EndProcess(exit_code); }

 private:
  // Rank r sums slice r of all tensors and writes the result into all of them.
  void DoAllReduceSum(Tensor x) override {
    Join(x, x);
    const int64_t begin = x.num_elems() * rank_ / size(), end = x.num_elems() * (rank_ + 1) / size();
    const int64_t offset = begin * SizeOf(x.dtype), bytes = (end - begin) * SizeOf(x.dtype);
    if (bytes > 0) {
      slices_.clear();
      for (int r = 0; r < size(); ++r) slices_.push_back(Block(meeting_.in(group_, r), 1, offset));
      void* sum = Block(x, 1, offset);
      SumInRankOrder(sum, slices_.data(), size(), end - begin, x.dtype);
      for (int r = 0; r < size(); ++r) Copy(Block(meeting_.out(group_, r), 1, offset), sum, bytes);
    }
    meeting_.Leave(world_rank_);
  }

  void DoAllGather(Tensor all, Tensor mine) override {
    Join(mine, all);
    for (int r = 0; r < size(); ++r) {
      Copy(Block(all, r, mine.num_bytes()), meeting_.in(group_, r).data, mine.num_bytes());
    }
    meeting_.Leave(world_rank_);
  }

  // Block r of everybody's `all` is read by rank r only, so it may also be its result.
  void DoReduceScatterSum(Tensor mine, Tensor all) override {
    Join(all, mine);
    if (mine.num_elems() > 0) {
      slices_.clear();
      for (int r = 0; r < size(); ++r) {
        slices_.push_back(Block(meeting_.in(group_, r), rank_, mine.num_bytes()));
      }
      SumInRankOrder(mine.data, slices_.data(), size(), mine.num_elems(), all.dtype);
    }
    meeting_.Leave(world_rank_);
  }

  void DoAllToAll(Tensor out, Tensor in) override {
    Join(in, out);
    const int64_t block_bytes = in.num_bytes() / size();
    for (int r = 0; r < size(); ++r) {
      Copy(Block(out, r, block_bytes), Block(meeting_.in(group_, r), rank_, block_bytes), block_bytes);
    }
    meeting_.Leave(world_rank_);
  }

  void DoBroadcast(Tensor x, int root) override {
    Join(x, x);
    Copy(x.data, meeting_.in(group_, root).data, x.num_bytes());
    meeting_.Leave(world_rank_);
  }

  void DoSend(Tensor x, int destination) override {
    meeting_.Exchange(world_rank_, group_, Shown(), Half::With(WorldRank(destination), x), {});
  }
  void DoRecv(Tensor x, int source) override {
    meeting_.Exchange(world_rank_, group_, Shown(), {}, Half::With(WorldRank(source), x));
  }
  void DoSendRecv(Tensor out, int destination, Tensor in, int source) override {
    meeting_.Exchange(world_rank_, group_, Shown(), Half::With(WorldRank(destination), out),
                      Half::With(WorldRank(source), in));
  }

  void DoBarrier() override { meeting_.Join(world_rank_, group_, call(), Shown(), {}, {}, /*stays=*/false); }

  std::unique_ptr<Communicator> DoSplit(int color) override {
    std::vector<int64_t> colors(static_cast<size_t>(size()));
    const int64_t mine = color;
    Exchange(colors.data(), &mine, sizeof mine);
    const int64_t number = num_splits_++;
    if (color < 0) return nullptr;
    int part_rank = 0;
    std::vector<int> members;
    for (int r = 0; r < size(); ++r) {
      if (colors[static_cast<size_t>(r)] != mine) continue;
      if (r == rank_) part_rank = static_cast<int>(members.size());
      members.push_back(WorldRank(r));
    }
    return std::make_unique<LocalCommunicator>(meeting_, meeting_.MakePart(group_, number, color, members),
                                               part_rank);
  }

  void DoExchangeForVerify(void* all, const void* mine, int64_t bytes) override {
    Exchange(all, mine, bytes);
  }

  LocalMeeting::Shown Shown() { return {.call = call(), .site = site(), .recorder = &recorder()}; }
  void Join(Tensor in, Tensor out) { meeting_.Join(world_rank_, group_, call(), Shown(), in, out); }
  // An AllGather under the call in progress, whatever that is.
  void Exchange(void* all, const void* mine, int64_t bytes) {
    const Tensor part(const_cast<void*>(mine), DType::kU8, {bytes});
    meeting_.Join(world_rank_, group_,
                  {.op = CollectiveOp::kAllGather, .dtype = DType::kU8, .num_elems = bytes * size()}, Shown(),
                  part, part);
    for (int r = 0; r < size(); ++r) {
      Copy(static_cast<std::byte*>(all) + r * bytes, meeting_.in(group_, r).data, bytes);
    }
    meeting_.Leave(world_rank_);
  }

  LocalMeeting& meeting_;
  LocalMeeting::Group& group_;
  const int rank_, world_rank_;
  int64_t num_splits_ = 0;
  std::vector<const void*> slices_;
};

class SelfCommunicator final : public Communicator {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  [[noreturn]] void Abort(int exit_code) override { EndProcess(exit_code); }

 private:
  void DoAllReduceSum(Tensor) override {}
  void DoAllGather(Tensor all, Tensor mine) override { Copy(all.data, mine.data, mine.num_bytes()); }
  void DoReduceScatterSum(Tensor mine, Tensor all) override { Copy(mine.data, all.data, mine.num_bytes()); }
  void DoAllToAll(Tensor out, Tensor in) override { Copy(out.data, in.data, in.num_bytes()); }
  void DoBroadcast(Tensor, int) override {}
  // There is no other rank: the checks of these never pass.
  void DoSend(Tensor, int) override {}
  void DoRecv(Tensor, int) override {}
  void DoSendRecv(Tensor, int, Tensor, int) override {}
  void DoBarrier() override {}
  std::unique_ptr<Communicator> DoSplit(int color) override {
    return color < 0 ? nullptr : MakeSelfCommunicator();
  }
  void DoExchangeForVerify(void* all, const void* mine, int64_t bytes) override { Copy(all, mine, bytes); }
};
}  // namespace

struct LocalWorld::Impl {
  explicit Impl(int size) : meeting(size) {
    for (int r = 0; r < size; ++r) {
      communicators.push_back(std::make_unique<LocalCommunicator>(meeting, meeting.world(), r));
    }
  }
  LocalMeeting meeting;
  std::vector<std::unique_ptr<Communicator>> communicators;
};

LocalWorld::LocalWorld(int size) : impl_(std::make_unique<Impl>(size)) {}
LocalWorld::~LocalWorld() = default;

int LocalWorld::size() const { return impl_->meeting.size(); }

Communicator& LocalWorld::communicator(int rank) {
  CAROUSEL_CHECK(rank >= 0 && rank < size());
  return *impl_->communicators[static_cast<size_t>(rank)];
}

void LocalWorld::Leave(int rank) { impl_->meeting.Finish(rank); }

void RunLocalRanks(int size, const std::function<void(Communicator&)>& body) {
  LocalWorld world(size);
  std::vector<std::thread> threads;
  for (int r = 0; r < size; ++r) {
    threads.emplace_back([&world, &body, r] {
      body(world.communicator(r));
      world.Leave(r);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

std::unique_ptr<Communicator> MakeSelfCommunicator() { return std::make_unique<SelfCommunicator>(); }
}  // namespace carousel
