// How long a thread of this process has been inside of collective calls: waiting for others, and sending.
// What remains of a step is what this rank took by itself.
#pragma once

namespace carousel {

// Of the calling thread, since it began. A call inside of another counts once. Where a call only enqueues
// (NCCL), this is the time that enqueueing took.
double ThreadCollectiveSeconds();

// One call, from its beginning to its end.
class CollectiveTimer {
 public:
  CollectiveTimer();
  ~CollectiveTimer();
  CollectiveTimer(const CollectiveTimer&) = delete;
  CollectiveTimer& operator=(const CollectiveTimer&) = delete;
};
}  // namespace carousel
