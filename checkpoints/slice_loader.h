// Fills the slices of the ranks of one machine from the files of a checkpoint. Internal to this folder.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "checkpoints/file_system.h"
#include "checkpoints/load_plan.h"
#include "checkpoints/manifest.pb.h"
#include "core/comm/communicator.h"
#include "core/train/state_visitor.h"

namespace carousel {

class SliceLoader {
 public:
  // `plan` is that of `members`, ranks of the communicator (null: there is one rank), of which members[me] is
  // this one. References must outlive the loader.
  SliceLoader(FileSystem& files, const std::string& dir, const checkpoint::Manifest& manifest,
              const LoadPlan& plan, const std::vector<int>& members, int me, Communicator* communicator);

  // Called by all members. Reads this rank's blocks, puts what it wants of them into its slices, passes on
  // what others want. A rank that cannot read goes on to take part in the exchange until all members know, so
  // that none waits for it; the status is this rank's own. Memory: reader_threads blocks and, where something
  // is passed on, two more. progress(done, total), if given: bytes that the machine has read.
  absl::Status Fill(const std::vector<StateSlice>& slices, int reader_threads,
                    const std::function<void(int64_t done, int64_t total)>& progress);

 private:
  // Copies a member's elements of a block into a buffer, one after the other.
  void Pack(const LoadBlock& block, int member, const char* data, std::vector<char>* out) const;
  // Copies what this rank wants of a block: from the block itself, or from what Pack made of it.
  void Place(const LoadBlock& block, const char* data, bool packed,
             const std::vector<StateSlice>& slices) const;
  // One round of exchange; false if some member failed. `data`: this rank's block; null: none, or it failed.
  bool Exchange(int64_t round, const char* data, bool failed, const std::vector<StateSlice>& slices);

  FileSystem& files_;
  const std::string dir_;
  const checkpoint::Manifest& manifest_;
  const LoadPlan& plan_;
  const std::vector<int>& members_;
  const int me_;
  Communicator* const communicator_;
  std::vector<char> out_, in_;
};
}  // namespace carousel
