#include "parallel/local_meeting.h"

#include <cstring>
#include <numeric>
#include <utility>

#include "core/base/check.h"

namespace carousel {

LocalMeeting::LocalMeeting(int size) : num_active_(size), world_(std::make_unique<Group>()) {
  CAROUSEL_CHECK_GE(size, 1);
  for (int r = 0; r < size; ++r) ranks_.push_back(std::make_unique<Rank>());
  world_->members.resize(static_cast<size_t>(size));
  std::iota(world_->members.begin(), world_->members.end(), 0);
}

LocalMeeting::Rank& LocalMeeting::Post(int rank, Group& group, const Shown& shown) {
  Rank& me = at(rank);
  CAROUSEL_CHECK_MSG(me.state == State::kComputing, "one thread at a time may use a rank's communicators");
  me.group = &group;
  me.shown = shown;
  return me;
}

// The rank's state is set by whoever lets it go on.
void LocalMeeting::Wait(std::unique_lock<std::mutex>& lock, Rank& me) {
  me.state = State::kWaiting;
  if (--num_active_ == 0) Report("no rank can go on, their calls do not match");
  me.wake.wait(lock, [&] { return me.state != State::kWaiting; });
}

void LocalMeeting::Wake(Rank& rank, State state) {
  if (rank.state == State::kWaiting) ++num_active_;
  rank.state = state;
  rank.wake.notify_one();
}

void LocalMeeting::Join(int rank, Group& group, const CollectiveCall& call, const Shown& shown, Tensor in,
                        Tensor out, bool stays) {
  std::unique_lock<std::mutex> lock(mutex_);
  Rank& me = Post(rank, group, shown);
  me.in = in;
  me.out = out;
  if (group.num_joined++ == 0) {
    group.call = call;
  } else if (!(group.call == call)) {
    me.state = State::kWaiting;
    Report("these ranks have one communicator, but their calls do not match");
  }
  if (group.num_joined < group.size()) return Wait(lock, me);
  group.num_joined = 0;
  group.num_inside = stays ? group.size() : 0;
  for (const int member : group.members) {
    if (member != rank) Wake(at(member), stays ? State::kInside : State::kComputing);
  }
  if (stays) me.state = State::kInside;
}

void LocalMeeting::Leave(int rank) {
  std::unique_lock<std::mutex> lock(mutex_);
  Rank& me = at(rank);
  Group& group = *me.group;
  if (--group.num_inside > 0) {
    me.wake.wait(lock, [&] { return me.state != State::kInside; });
    return;
  }
  for (const int member : group.members) {
    if (member != rank) Wake(at(member), State::kComputing);
  }
  me.state = State::kComputing;
}

// True if `other` holds the opposite of my half.
bool LocalMeeting::Meets(const Rank& other, const Group& group, const Half& half, const Half& others,
                         int rank) {
  if (half.state != Half::State::kOpen || others.state != Half::State::kOpen) return false;
  if (other.group != &group || others.peer != rank) return false;
  if (half.x.dtype != others.x.dtype || half.x.num_elems() != others.x.num_elems()) {
    at(rank).state = State::kWaiting;
    Report("a send and its receive do not match");
  }
  return true;
}

void LocalMeeting::EndHalf(Half& half, Rank& owner) {
  half.state = Half::State::kNone;
  if (owner.state == State::kWaiting && owner.send.state == Half::State::kNone &&
      owner.receive.state == Half::State::kNone) {
    Wake(owner, State::kComputing);
  }
}

// Whoever comes second copies. Meanwhile the partner cannot go on, so its tensor stays.
void LocalMeeting::Exchange(int rank, Group& group, const Shown& shown, Half send, Half receive) {
  std::unique_lock<std::mutex> lock(mutex_);
  Rank& me = Post(rank, group, shown);
  me.send = send;
  me.receive = receive;
  Rank* taker = send.state == Half::State::kOpen ? &at(send.peer) : nullptr;
  if (taker != nullptr && !Meets(*taker, group, me.send, taker->receive, rank)) taker = nullptr;
  Rank* giver = receive.state == Half::State::kOpen ? &at(receive.peer) : nullptr;
  if (giver != nullptr && !Meets(*giver, group, me.receive, giver->send, rank)) giver = nullptr;
  if (taker != nullptr || giver != nullptr) {
    me.state = State::kInside;
    if (taker != nullptr) me.send.state = taker->receive.state = Half::State::kCopying;
    if (giver != nullptr) me.receive.state = giver->send.state = Half::State::kCopying;
    lock.unlock();
    const auto copy = [](Tensor to, Tensor from) {
      if (from.num_bytes() > 0) std::memcpy(to.data, from.data, static_cast<size_t>(from.num_bytes()));
    };
    if (taker != nullptr) copy(taker->receive.x, send.x);
    if (giver != nullptr) copy(receive.x, giver->send.x);
    lock.lock();
    if (taker != nullptr) {
      EndHalf(taker->receive, *taker);
      EndHalf(me.send, me);
    }
    if (giver != nullptr) {
      EndHalf(giver->send, *giver);
      EndHalf(me.receive, me);
    }
  }
  if (me.send.state == Half::State::kNone && me.receive.state == Half::State::kNone) {
    me.state = State::kComputing;
  } else {
    Wait(lock, me);
  }
}

LocalMeeting::Group& LocalMeeting::MakePart(const Group& parent, int64_t split, int color,
                                            const std::vector<int>& members) {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::unique_ptr<Group>& part = parts_[PartKey(parent.number, split, color)];
  if (part == nullptr) {
    part = std::make_unique<Group>();
    part->number = num_groups_++;
    part->members = members;
    part->num_communicators = part->size();
  }
  return *part;
}

void LocalMeeting::ReleasePart(Group& part) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (--part.num_communicators > 0) return;
  for (auto entry = parts_.begin(); entry != parts_.end(); ++entry) {
    if (entry->second.get() != &part) continue;
    parts_.erase(entry);
    return;
  }
}

void LocalMeeting::Finish(int rank) {
  const std::lock_guard<std::mutex> lock(mutex_);
  CAROUSEL_CHECK(at(rank).state == State::kComputing);
  at(rank).state = State::kGone;
  --num_active_;
  for (const std::unique_ptr<Rank>& other : ranks_) {
    if (num_active_ == 0 && other->state == State::kWaiting) {
      Report("no rank can go on, their calls do not match");
    }
  }
}

void LocalMeeting::Report(const std::string& problem) {
  std::string text = problem + ":";
  for (size_t r = 0; r < ranks_.size(); ++r) {
    const Rank& rank = *ranks_[r];
    text += "\n  rank " + std::to_string(r);
    if (rank.state == State::kGone) {
      text += " has finished";
    } else if (rank.state == State::kComputing) {
      text += " computes";
    } else {
      text += rank.state == State::kWaiting ? " waits in " : " is in ";
      text += DescribeAt(rank.shown.call, rank.shown.recorder->name(), rank.shown.site);
      if (rank.group == world_.get()) continue;
      text += ", a group of the ranks";
      for (const int member : rank.group->members) text += " " + std::to_string(member);
    }
  }
  CheckFailed(__FILE__, __LINE__, text);
}
}  // namespace carousel
