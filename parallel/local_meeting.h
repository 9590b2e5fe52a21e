// LocalMeeting: what the threads of a LocalWorld and of all groups split off it know of each other, under one
// mutex. Part of local_communicator.
//
// A rank is one thread: it computes, or waits in one call of one group, or is inside a call whose partners
// have come, or is gone. So when none computes or is inside and some wait, nobody can ever go on: the process
// aborts with every rank's call. A rank that joins a collective of its group with another call than those who
// wait there is reported at once.
#pragma once
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>
#include <vector>

#include "core/comm/call_site.h"
#include "core/comm/collective_call.h"
#include "core/comm/flight_recorder.h"

namespace carousel {

class LocalMeeting {
 public:
  // Ranks that have a communicator in common.
  struct Group {
    int64_t number = 0;
    std::vector<int> members;  // ranks of the world, in the group's order
    // Of the collective that some have joined.
    CollectiveCall call;
    int num_joined = 0;
    int num_inside = 0;         // members that have not finished their part of it
    int num_communicators = 0;  // still to be destroyed
    int size() const { return static_cast<int>(members.size()); }
  };
  // A call as a report shows it.
  struct Shown {
    CollectiveCall call;
    CallSite site;
    const FlightRecorder* recorder = nullptr;  // for the name
  };
  // One direction of an exchange between two ranks.
  struct Half {
    enum class State : uint8_t { kNone, kOpen, kCopying };
    State state = State::kNone;
    int peer = -1;  // rank of the world
    Tensor x;
    static Half With(int peer, Tensor x) { return {.state = State::kOpen, .peer = peer, .x = x}; }
  };

  explicit LocalMeeting(int size);
  LocalMeeting(const LocalMeeting&) = delete;
  LocalMeeting& operator=(const LocalMeeting&) = delete;

  int size() const { return static_cast<int>(ranks_.size()); }
  Group& world() { return *world_; }

  // Joins the group's collective `call` and waits for all members. Then every member's `in` and `out` may be
  // used until Leave, at which each must arrive; with stays = false there is no Leave.
  void Join(int rank, Group& group, const CollectiveCall& call, const Shown& shown, Tensor in, Tensor out,
            bool stays = true);
  void Leave(int rank);
  // What a member passed to Join. REQUIRES: between Join and Leave.
  Tensor in(const Group& group, int group_rank) const { return at(group, group_rank).in; }
  Tensor out(const Group& group, int group_rank) const { return at(group, group_rank).out; }

  // Both directions of an exchange within the group, either may be missing. Returns when both are done.
  void Exchange(int rank, Group& group, const Shown& shown, Half send, Half receive);

  // The part of `parent` with these members; all of them must ask for it. Each result ends with ReleasePart.
  Group& MakePart(const Group& parent, int64_t split, int color, const std::vector<int>& members);
  void ReleasePart(Group& part);

  // This rank makes no further calls.
  void Finish(int rank);

 private:
  enum class State : uint8_t { kComputing, kWaiting, kInside, kGone };
  struct Rank {
    State state = State::kComputing;
    Group* group = nullptr;  // of the call
    Shown shown;
    Tensor in, out;
    Half send, receive;
    std::condition_variable wake;
  };
  using PartKey = std::tuple<int64_t, int64_t, int>;  // parent's number, split, color

  Rank& at(int rank) { return *ranks_[static_cast<size_t>(rank)]; }
  const Rank& at(const Group& group, int group_rank) const {
    return *ranks_[static_cast<size_t>(group.members[static_cast<size_t>(group_rank)])];
  }

  // These REQUIRE the mutex.
  Rank& Post(int rank, Group& group, const Shown& shown);
  void Wait(std::unique_lock<std::mutex>& lock, Rank& me);
  void Wake(Rank& rank, State state);
  bool Meets(const Rank& other, const Group& group, const Half& half, const Half& others, int rank);
  void EndHalf(Half& half, Rank& owner);
  [[noreturn]] void Report(const std::string& problem);

  std::mutex mutex_;
  std::vector<std::unique_ptr<Rank>> ranks_;
  int num_active_;  // ranks that compute or are inside
  std::unique_ptr<Group> world_;
  std::map<PartKey, std::unique_ptr<Group>> parts_;
  int64_t num_groups_ = 1;
};
}  // namespace carousel
