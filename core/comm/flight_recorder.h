// FlightRecorder: the last collectives of one communicator on this rank, so that a hang can be explained: the
// rank whose sequence is behind, or differs, is the one to look at.
#pragma once
#include <array>
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "core/comm/call_site.h"
#include "core/comm/collective_call.h"

namespace carousel {

// "AllToAll(4096 x f32) on 'replicas' at parallel/sharded_sync.cc:120"; without a name no "on".
std::string DescribeAt(const CollectiveCall& call, const std::string& name, const CallSite& site);

class FlightRecorder {
 public:
  static constexpr int64_t kNumKept = 512;
  struct Entry {
    int64_t sequence = 0;  // of this communicator's calls, from 0
    int64_t step = -1;     // of training, -1 outside of it
    CollectiveCall call;
    CallSite site;
    double start_seconds = 0;  // of a clock that only goes forward
    double end_seconds = 0;    // 0: in progress. On a device: when the call was enqueued
    bool in_progress() const { return end_seconds == 0; }
    int64_t bytes() const { return call.num_elems * SizeOf(call.dtype); }
  };

  void set_name(const std::string& name);
  std::string name() const;
  void Begin(const CollectiveCall& call, const CallSite& site);
  void End();  // of the last one begun
  int64_t num_calls() const;
  std::vector<Entry> Entries() const;  // oldest first, at most kNumKept
  // One line per entry, newest last, at most max_entries:
  //   "tensor #120 step 12 AllGather(4096 x bf16) 8192 B core/model/ffn.cc:31 0.813 ms"
  std::string Dump(int64_t max_entries = kNumKept) const;

 private:
  mutable std::mutex mutex_;
  std::string name_;
  int64_t num_calls_ = 0;
  std::array<Entry, kNumKept> entries_;  // number i in place i mod kNumKept
};
}  // namespace carousel
