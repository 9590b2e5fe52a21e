#include "parallel/weight_gather.h"

#include <algorithm>
#include <cstdlib>

namespace carousel {

WeightGather::WeightGather(ParamStore& params, CommLane& lane, const Axis& shard, int distance)
    : params_(params), lane_(lane), shard_(shard), distance_(distance) {
  CAROUSEL_CHECK(shard.size > 1 && shard.communicator != nullptr);
  CAROUSEL_CHECK_MSG(distance >= 1, "a gather is prefetched: the distance is at least 1");
  places_.resize(static_cast<size_t>(distance) + 2);
  for (Place& place : places_) {
    place.gathered = lane.MakeMark();
    place.released = lane.MakeMark();
  }
}

void WeightGather::Bind(Arena& arena) {
  int64_t largest[2][ParamStore::kNumSegments] = {};  // [alone or not][segment]
  DType dtypes[ParamStore::kNumSegments] = {params_.compute(), params_.wide()};
  for (int group = 0; group < params_.num_groups(); ++group) {
    for (int s = 0; s < ParamStore::kNumSegments; ++s) {
      int64_t& size = largest[alone(group) ? 0 : 1][s];
      size = std::max(size, params_.segment(group, s).padded_size);
    }
  }
  for (size_t i = 0; i < places_.size(); ++i) {
    Place& place = places_[i];
    for (int s = 0; s < ParamStore::kNumSegments; ++s) {
      place.segments[s] = arena.Persistent("gathered weights", dtypes[s], {largest[i == 0 ? 0 : 1][s]});
    }
    place.group = -1;
    place.num_acquired = 0;
    place.wanted = false;
  }
  waiting_.clear();
  last_prefetched_ = -1;
}

bool WeightGather::Knows(int group) const {
  if (group < 0 || group >= params_.num_groups()) return false;
  for (int s = 0; s < ParamStore::kNumSegments; ++s) {
    if (params_.segment(group, s).padded_size > 0) return true;
  }
  return false;
}

WeightGather::Place* WeightGather::Find(int group) {
  for (Place& place : places_) {
    if (place.group == group) return &place;
  }
  return nullptr;
}

// Of the free places the one used longest ago, but rather one that no pass that begins with `group` finds in
// place than one that it does: the next 1 + distance groups in either direction can all be in place at once.
WeightGather::Place* WeightGather::FindFree(int group) {
  const auto is_worse = [&](const Place& found, const Place& place) {
    const int found_steps = std::abs(found.group - group), steps = std::abs(place.group - group);
    const bool found_is_near = found.group >= 0 && found_steps <= distance_;
    const bool is_near = place.group >= 0 && steps <= distance_;
    if (found_is_near != is_near) return found_is_near;
    if (is_near && found_steps != steps) return found_steps < steps;
    return place.used < found.used;
  };
  Place* found = nullptr;
  for (size_t i = 0; i < places_.size(); ++i) {
    Place& place = places_[i];
    if (alone(group) != (i == 0) || !place.free()) continue;
    if (found == nullptr || is_worse(*found, place)) found = &place;
  }
  return found;
}

// Weights that were set anew as a whole are not those in the places.
void WeightGather::ForgetIfReplaced() {
  if (weights_version_ == params_.weights_version()) return;
  weights_version_ = params_.weights_version();
  lane_.FollowCompute();
  for (Place& place : places_) {
    CAROUSEL_CHECK_MSG(place.num_acquired == 0, "weights were replaced while they are in use");
    place.group = -1;
    place.wanted = false;
  }
}

Tensor WeightGather::View(const Place& place, int group, int segment) const {
  return place.segments[segment].Rows(0, params_.segment(group, segment).padded_size);
}

void WeightGather::Gather(Place& place, int group) {
  lane_.WaitHere(place.released);
  for (int s = 0; s < ParamStore::kNumSegments; ++s) {
    const ParamStore::Segment& segment = params_.segment(group, s);
    if (segment.padded_size > 0) lane_.of(shard_).AllGather(View(place, group, s), segment.weight_shard);
  }
  lane_.SetHere(place.gathered);
  place.group = group;
}

// False if there is no place now.
bool WeightGather::Begin(int group) {
  Place* place = Find(group);
  if (place == nullptr) {
    place = FindFree(group);
    if (place == nullptr) return false;
    Gather(*place, group);
  }
  place->wanted = true;
  place->used = ++clock_;
  return true;
}

void WeightGather::Prefetch(int group) {
  if (!Knows(group)) return;
  ForgetIfReplaced();
  const auto begin = [this](int g) {
    if (!Begin(g) && std::find(waiting_.begin(), waiting_.end(), g) == waiting_.end()) waiting_.push_back(g);
  };
  begin(group);
  if (alone(group)) return;
  const int step = last_prefetched_ < 0 ? 0 : (group > last_prefetched_) - (group < last_prefetched_);
  last_prefetched_ = group;
  for (int ahead = 1; step != 0 && ahead < distance_; ++ahead) {
    const int next = group + ahead * step;
    if (!Knows(next) || alone(next)) break;
    begin(next);
  }
}

// Every place is in use or wanted: of those not in use, what was wanted first must come again later.
void WeightGather::GiveUpOne(int group) {
  Place* oldest = nullptr;
  for (size_t i = 1; i < places_.size(); ++i) {
    Place& place = places_[i];
    if (place.num_acquired == 0 && (oldest == nullptr || place.used < oldest->used)) oldest = &place;
  }
  CAROUSEL_CHECK_MSG(oldest != nullptr,
                     "group " + std::to_string(group) + " is acquired while too many other groups are");
  oldest->wanted = false;
}

void WeightGather::Acquire(int group) {
  if (!Knows(group)) return;
  ForgetIfReplaced();
  Place* place = Find(group);
  if (place == nullptr) {
    ++num_late_;
    waiting_.erase(std::remove(waiting_.begin(), waiting_.end(), group), waiting_.end());
    if (!Begin(group)) {
      GiveUpOne(group);
      CAROUSEL_CHECK(Begin(group));
    }
    place = Find(group);
  }
  if (place->num_acquired++ == 0) {
    lane_.WaitInCompute(place->gathered);
    for (int s = 0; s < ParamStore::kNumSegments; ++s)
      params_.SetWeightBuffer(group, s, View(*place, group, s));
  }
  place->wanted = false;
}

void WeightGather::Release(int group) {
  if (!Knows(group)) return;
  Place* place = Find(group);
  CAROUSEL_CHECK_MSG(place != nullptr && place->num_acquired > 0,
                     "Release of group " + std::to_string(group) + ", which is not acquired");
  if (--place->num_acquired > 0) return;
  place->used = ++clock_;
  lane_.SetInCompute(place->released);
  for (int s = 0; s < ParamStore::kNumSegments; ++s) params_.SetWeightBuffer(group, s, Tensor());
  while (!waiting_.empty() && Begin(waiting_.front())) waiting_.erase(waiting_.begin());
}

void WeightGather::WeightsUpdated(int group) {
  if (!Knows(group)) return;
  Place* place = Find(group);
  if (place == nullptr) return;
  CAROUSEL_CHECK_MSG(place->num_acquired == 0,
                     "the weights of group " + std::to_string(group) + " are updated while in use");
  place->group = -1;
  place->wanted = false;
}
}  // namespace carousel
