// Ranks as threads of one process: the reference transport and the one of the unit tests.
//
// Every rank computes its part of a reduction straight from the other ranks' tensors, in rank order: no
// staging, no copy more than the operation needs. A Send waits until its Recv took the data (so that code
// which relies on buffering in the transport is found here). Mistakes do not hang: when no rank can go on
// (ranks wait in different collectives, or with other counts, or in different groups for each other, or for a
// rank that has finished), the process aborts with the list of what every rank waits for and where.
#pragma once
#include <functional>
#include <memory>
#include <vector>

#include "core/comm/communicator.h"

namespace carousel {

// `size` communicators that belong together. A rank is one thread: it uses its communicator of the world and
// those split off it one at a time. Those end before the world.
class LocalWorld {
 public:
  explicit LocalWorld(int size);
  ~LocalWorld();
  LocalWorld(const LocalWorld&) = delete;
  LocalWorld& operator=(const LocalWorld&) = delete;

  int size() const;
  Communicator& communicator(int rank);
  // Tells the others that this rank makes no further calls, so that waiting for it is an error and not a
  // hang.
  void Leave(int rank);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Runs `body` on `size` threads, each with its own communicator, and returns when all have returned.
void RunLocalRanks(int size, const std::function<void(Communicator&)>& body);

// The communicator of a world of one rank: every call is a copy or nothing. Abort ends the process.
std::unique_ptr<Communicator> MakeSelfCommunicator();
}  // namespace carousel
