#include "parallel/local_communicator.h"

#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <thread>
#include <utility>

#include "core/comm/collective_call.h"

namespace carousel {
namespace {
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
}  // namespace

// All that ranks know of each other, under one mutex. A rank computes, or waits with the call that it posted,
// or is inside a call whose partners have all come, or is gone. Tensors of a posted call are read by other
// ranks only between Enter and Exit, both of which lock the mutex, so every access is ordered.
struct LocalWorld::Impl {
  enum class State : uint8_t { kComputing, kWaiting, kInside, kGone };
  struct Rank {
    State state = State::kComputing;
    CollectiveCall call;
    Tensor in, out;  // of the posted call
  };

  explicit Impl(int size) : ranks(static_cast<size_t>(size)) {}

  Rank& at(int rank) { return ranks[static_cast<size_t>(rank)]; }

  [[noreturn]] void Report(const std::string& problem) {
    std::string text = problem + ":";
    for (size_t r = 0; r < ranks.size(); ++r) {
      text += "\n  rank " + std::to_string(r);
      text += ranks[r].state == State::kGone ? " has finished" : " waits in " + Describe(ranks[r].call);
    }
    CheckFailed(__FILE__, __LINE__, text);
  }

  static bool IsPair(const CollectiveCall& call) {
    return call.op == CollectiveOp::kSend || call.op == CollectiveOp::kRecv;
  }

  // True if the call that `rank` posted has all its partners. REQUIRES: mutex held.
  bool IsComplete(int rank) {
    const Rank& me = at(rank);
    if (IsPair(me.call)) {
      const Rank& other = at(me.call.peer);
      CollectiveCall opposite = me.call;
      opposite.op = me.call.op == CollectiveOp::kSend ? CollectiveOp::kRecv : CollectiveOp::kSend;
      opposite.peer = rank;
      return other.state == State::kWaiting && other.call == opposite;
    }
    for (const Rank& other : ranks) {
      if (other.state != State::kWaiting || !(other.call == me.call)) return false;
    }
    return true;
  }

  // Aborts if nobody is left who could move the waiting ranks on. REQUIRES: mutex held. A complete call never
  // waits: the last of its partners takes all of them inside.
  void CheckProgress() {
    bool anybody_waits = false;
    for (const Rank& rank : ranks) {
      if (rank.state == State::kComputing || rank.state == State::kInside) return;
      anybody_waits |= rank.state == State::kWaiting;
    }
    if (anybody_waits) Report("no rank can go on, their calls do not match");
  }

  // Posts a call and waits for its partners, whose posted tensors may be read until Exit.
  void Enter(int rank, const CollectiveCall& call, Tensor in, Tensor out) {
    std::unique_lock<std::mutex> lock(mutex);
    Rank& me = at(rank);
    CAROUSEL_CHECK_MSG(me.state == State::kComputing, "one thread at a time may use a communicator");
    me = {.state = State::kWaiting, .call = call, .in = in, .out = out};
    if (!IsComplete(rank)) {
      CheckProgress();
      changed.wait(lock, [&] { return me.state != State::kWaiting; });
      return;
    }
    if (IsPair(call)) {
      me.state = at(call.peer).state = State::kInside;
    } else {
      for (Rank& other : ranks) other.state = State::kInside;
      num_inside = static_cast<int>(ranks.size());
    }
    changed.notify_all();
  }

  // Ends this rank's part; returns when nobody reads its tensors any more.
  void Exit(int rank) {
    std::unique_lock<std::mutex> lock(mutex);
    Rank& me = at(rank);
    if (me.call.op == CollectiveOp::kRecv) {
      me.state = at(me.call.peer).state = State::kComputing;  // the sender waits for this
      changed.notify_all();
    } else if (me.call.op == CollectiveOp::kSend || --num_inside > 0) {
      changed.wait(lock, [&] { return me.state != State::kInside; });
    } else {
      for (Rank& other : ranks) other.state = State::kComputing;
      changed.notify_all();
    }
  }

  std::mutex mutex;
  std::condition_variable changed;
  std::vector<Rank> ranks;
  int num_inside = 0;  // ranks that have not finished their part of the collective
  // Worlds of ranks that were split off, by the number of the split and the color.
  std::map<std::pair<int64_t, int>, std::shared_ptr<LocalWorld>> parts;
  std::vector<std::unique_ptr<Communicator>> communicators;
};

namespace {
// One rank of a world that was split off another one.
class PartCommunicator final : public Communicator {
 public:
  PartCommunicator(std::shared_ptr<LocalWorld> world, int rank)
      : world_(std::move(world)), communicator_(world_->communicator(rank)) {}
  int rank() const override { return communicator_.rank(); }
  int size() const override { return communicator_.size(); }
  void DoAllReduceSum(Tensor x) override { communicator_.AllReduceSum(x); }
  void DoAllGather(Tensor all, Tensor mine) override { communicator_.AllGather(all, mine); }
  void DoReduceScatterSum(Tensor mine, Tensor all) override { communicator_.ReduceScatterSum(mine, all); }
  void DoAllToAll(Tensor out, Tensor in) override { communicator_.AllToAll(out, in); }
  void DoBroadcast(Tensor x, int root) override { communicator_.Broadcast(x, root); }
  void DoSend(Tensor x, int destination) override { communicator_.Send(x, destination); }
  void DoRecv(Tensor x, int source) override { communicator_.Recv(x, source); }
  void DoSendRecv(Tensor out, int destination, Tensor in, int source) override {
    // Nobody waits for a receive here that its partner makes only after its own send: in the order of ranks.
    if (rank() % 2 == 0) {
      communicator_.Send(out, destination);
      communicator_.Recv(in, source);
    } else {
      communicator_.Recv(in, source);
      communicator_.Send(out, destination);
    }
  }
  void DoBarrier() override { communicator_.Barrier(); }
  std::unique_ptr<Communicator> DoSplit(int color) override { return communicator_.Split(color); }
  [[noreturn]] void Abort(int exit_code) override {
    communicator_.Abort(exit_code);
    std::abort();
  }

 private:
  std::shared_ptr<LocalWorld> world_;
  Communicator& communicator_;
};

class SelfCommunicator final : public Communicator {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  void DoAllReduceSum(Tensor x) override { CheckAllReduceSum(x); }
  void DoAllGather(Tensor all, Tensor mine) override {
    CheckAllGather(all, mine, 0, 1);
    Copy(all.data, mine.data, mine.num_bytes());
  }
  void DoReduceScatterSum(Tensor mine, Tensor all) override {
    CheckReduceScatterSum(mine, all, 0, 1);
    Copy(mine.data, all.data, mine.num_bytes());
  }
  void DoAllToAll(Tensor out, Tensor in) override {
    CheckAllToAll(out, in, 1);
    Copy(out.data, in.data, in.num_bytes());
  }
  void DoBroadcast(Tensor x, int root) override { CheckBroadcast(x, root, 1); }
  void DoSend(Tensor x, int destination) override { CheckSend(x, destination, 0, 1); }
  void DoRecv(Tensor x, int source) override { CheckRecv(x, source, 0, 1); }
  void DoBarrier() override {}
  [[noreturn]] void Abort(int exit_code) override { EndProcess(exit_code); }
};
}  // namespace

class LocalCommunicator final : public Communicator {
 public:
  LocalCommunicator(LocalWorld::Impl& world, int rank) : world_(world), rank_(rank) {}

  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(world_.ranks.size()); }

  // Rank r sums slice r of all tensors and writes the result into all of them.
  void DoAllReduceSum(Tensor x) override {
    world_.Enter(rank_, CheckAllReduceSum(x), x, x);
    const int64_t begin = x.num_elems() * rank_ / size(), end = x.num_elems() * (rank_ + 1) / size();
    const int64_t offset = begin * SizeOf(x.dtype), bytes = (end - begin) * SizeOf(x.dtype);
    std::vector<const void*> slices;
    for (int r = 0; r < size(); ++r) slices.push_back(Block(world_.at(r).in, 1, offset));
    void* sum = Block(x, 1, offset);
    if (bytes > 0) SumInRankOrder(sum, slices.data(), size(), end - begin, x.dtype);
    for (int r = 0; r < size(); ++r) Copy(Block(world_.at(r).out, 1, offset), sum, bytes);
    world_.Exit(rank_);
  }

  void DoAllGather(Tensor all, Tensor mine) override {
    world_.Enter(rank_, CheckAllGather(all, mine, rank_, size()), mine, all);
    for (int r = 0; r < size(); ++r) {
      Copy(Block(all, r, mine.num_bytes()), world_.at(r).in.data, mine.num_bytes());
    }
    world_.Exit(rank_);
  }

  // Block r of everybody's `all` is read by rank r only, so it may also be its result.
  void DoReduceScatterSum(Tensor mine, Tensor all) override {
    world_.Enter(rank_, CheckReduceScatterSum(mine, all, rank_, size()), all, mine);
    std::vector<const void*> blocks;
    for (int r = 0; r < size(); ++r) blocks.push_back(Block(world_.at(r).in, rank_, mine.num_bytes()));
    if (mine.num_elems() > 0) {
      SumInRankOrder(mine.data, blocks.data(), size(), mine.num_elems(), all.dtype);
    }
    world_.Exit(rank_);
  }

  void DoAllToAll(Tensor out, Tensor in) override {
    world_.Enter(rank_, CheckAllToAll(out, in, size()), in, out);
    const int64_t block_bytes = in.num_bytes() / size();
    for (int r = 0; r < size(); ++r) {
      Copy(Block(out, r, block_bytes), Block(world_.at(r).in, rank_, block_bytes), block_bytes);
    }
    world_.Exit(rank_);
  }

  void DoBroadcast(Tensor x, int root) override {
    world_.Enter(rank_, CheckBroadcast(x, root, size()), x, x);
    Copy(x.data, world_.at(root).in.data, x.num_bytes());
    world_.Exit(rank_);
  }

  void DoSend(Tensor x, int destination) override {
    world_.Enter(rank_, CheckSend(x, destination, rank_, size()), x, x);
    world_.Exit(rank_);
  }

  void DoRecv(Tensor x, int source) override {
    world_.Enter(rank_, CheckRecv(x, source, rank_, size()), x, x);
    Copy(x.data, world_.at(source).in.data, x.num_bytes());
    world_.Exit(rank_);
  }

  void DoBarrier() override {
    world_.Enter(rank_, {.op = CollectiveOp::kBarrier}, {}, {});
    world_.Exit(rank_);
  }

  std::unique_ptr<Communicator> DoSplit(int color) override {
    std::vector<int64_t> colors(static_cast<size_t>(size()));
    int64_t mine = color;
    DoAllGather(Tensor(colors.data(), DType::kI64, {size()}), Tensor(&mine, DType::kI64, {1}));
    const int64_t number = num_splits_++;
    if (color < 0) return nullptr;
    int part_rank = 0, part_size = 0;
    for (int r = 0; r < size(); ++r) {
      if (colors[static_cast<size_t>(r)] != mine) continue;
      part_rank += r < rank_;
      ++part_size;
    }
    const std::lock_guard<std::mutex> lock(world_.mutex);
    std::shared_ptr<LocalWorld>& part = world_.parts[{number, color}];
    if (part == nullptr) part = std::make_shared<LocalWorld>(part_size);
    return std::make_unique<PartCommunicator>(part, part_rank);
  }
  [[noreturn]] void Abort(int exit_code) override { EndProcess(exit_code); }

 private:
  LocalWorld::Impl& world_;
  int rank_;
  int64_t num_splits_ = 0;
};

LocalWorld::LocalWorld(int size) {
  CAROUSEL_CHECK_GE(size, 1);
  impl_ = std::make_unique<Impl>(size);
  for (int r = 0; r < size; ++r) {
    impl_->communicators.push_back(std::make_unique<LocalCommunicator>(*impl_, r));
  }
}
LocalWorld::~LocalWorld() = default;

int LocalWorld::size() const { return static_cast<int>(impl_->ranks.size()); }

Communicator& LocalWorld::communicator(int rank) {
  CAROUSEL_CHECK(rank >= 0 && rank < size());
  return *impl_->communicators[static_cast<size_t>(rank)];
}

void LocalWorld::Leave(int rank) {
  const std::lock_guard<std::mutex> lock(impl_->mutex);
  impl_->at(rank).state = Impl::State::kGone;
  impl_->CheckProgress();
}

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
