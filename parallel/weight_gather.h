// WeightGather: weights that exist in parts on the ranks of the shard axis (ZeRO-3, Rajbhandari et al. 2020,
// arXiv:1910.02054) as whole groups while they are used.
//
// Group 0, the embedding, has a place of its own and is gathered once per step; all other groups take turns
// in K = 1 + distance places, each as large as the largest of them. What is still in its place is not
// gathered again while the weights are the same. Where passes go over groups 1 .. n (blocks, and the head
// where there is one) forwards in rising, backwards in falling order, the last K of them are there after a
// forward pass, the first K after a backward pass, and what of these lies among the first K of the next pass
// stays. So in a step of m micro-batches, of which k = min(p - s - 1, m - 1) are forward passes that follow
// one another on stage s of p (and as many backward ones), group j is gathered
//   once                                               if n <= K, otherwise
//   1 + (m - 1 - k) [j > K] + (m - k) [j <= n - K] + 2 k [j > K or j <= n - K]   times,
// which is the least that so many places allow. Each time a rank sends its part to the F - 1 others: (F - 1)
// / F of the bytes, padding included, in one AllGather per segment.
#pragma once
#include <vector>

#include "core/comm/mesh.h"
#include "core/model/param_store.h"
#include "parallel/comm_lane.h"

namespace carousel {

class WeightGather {
 public:
  // shard: the axis; of several ranks. All references must outlive this. distance >= 1.
  WeightGather(ParamStore& params, CommLane& lane, const Axis& shard, int distance);

  void Bind(Arena& arena);  // category "gathered weights"

  // As ParamSync. A group without parameters is ignored. Acquire and Release nest. A Prefetch for which all
  // places are in use begins as soon as one is released. With distance d > 1 groups are gathered ahead in
  // the direction of the last two calls, so that d are on their way.
  void Prefetch(int group);
  void Acquire(int group);
  void Release(int group);
  // This rank's part of the group's weights is changed by what the lane has now. REQUIRES: not acquired.
  void WeightsUpdated(int group);

  // How many Acquires had to begin the gather themselves, because there was no Prefetch or no place for it:
  // computation waited for the whole of it.
  int64_t num_late() const { return num_late_; }

 private:
  struct Place {
    Tensor segments[ParamStore::kNumSegments];  // (largest padded size) compute, wide
    int group = -1;                             // whose weights are, or will be, here; -1: none
    int num_acquired = 0;
    bool wanted = false;  // prefetched for an Acquire to come
    int64_t used = 0;     // when, for choosing the one used longest ago
    CommLane::Mark gathered, released;
    bool free() const { return num_acquired == 0 && !wanted; }
  };
  bool Knows(int group) const;
  bool alone(int group) const { return group == 0; }
  Place* Find(int group);
  Place* FindFree(int group);
  void ForgetIfReplaced();
  bool Begin(int group);
  void GiveUpOne(int group);
  void Gather(Place& place, int group);
  Tensor View(const Place& place, int group, int segment) const;

  ParamStore& params_;
  CommLane& lane_;
  Axis shard_;
  int distance_;
  std::vector<Place> places_;  // the first is group 0's
  std::vector<int> waiting_;   // prefetched, but without a place yet
  int last_prefetched_ = -1;
  int64_t clock_ = 0, num_late_ = 0;
  int64_t weights_version_ = 0;
};
}  // namespace carousel
