// What the ranks of one machine read of a checkpoint, which of them reads it, and who gets what of it: every
// block that any of them wants elements of is read by one, which passes on what the others want. A pure
// function of the manifest and of what all ranks want, so that each of them has the same plan without a word.
// Internal to this folder.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "checkpoints/boxes.h"
#include "checkpoints/manifest.pb.h"

namespace carousel {

// The elements that a slice and a saved box have in common.
struct LoadPart {
  int member = 0;  // whose slice: index among the machine's ranks
  int slice = 0;   // index among that rank's slices
  int saved = 0;   // number of the box in the plan
  Box box;         // in the tensor
};

// One block of a file (of kBlockBytes).
struct LoadBlock {
  int64_t file = 0, number = 0;
  int64_t num_bytes = 0;              // of the block; the last one of a file is shorter
  int reader = 0;                     // member
  std::vector<int> parts;             // that have elements in it: indices, by member
  std::vector<int64_t> bytes_wanted;  // by member
};

class LoadPlan {
 public:
  // `members`: the machine's ranks, indices of `ranks`. The manifest must outlive the plan and have every
  // tensor of their slices, with its shape and dtype (CompareTensors).
  LoadPlan(const checkpoint::Manifest& manifest, const std::vector<checkpoint::RankSlices>& ranks,
           const std::vector<int>& members);

  int num_members() const { return static_cast<int>(queues_.size()); }
  // In round r every member reads the r-th block of its queue, and all pass on what the others want of it.
  int64_t num_rounds() const { return num_rounds_; }
  // Null if the member has nothing to read in this round.
  const LoadBlock* BlockOf(int member, int64_t round) const;
  // The blocks that a member reads, by round.
  std::vector<const LoadBlock*> Queue(int member) const;
  // Whether anything is passed on in this round.
  bool Exchanges(int64_t round) const;
  int64_t num_bytes() const { return num_bytes_; }                // of all blocks
  int64_t num_bytes_wanted() const { return num_bytes_wanted_; }  // by anybody; what several want counts once
  const LoadPart& part(int index) const { return parts_[static_cast<size_t>(index)]; }

  int64_t elem_bytes(const LoadPart& part) const {
    return saved_[static_cast<size_t>(part.saved)].elem_bytes;
  }

  // Calls fn(offset, elem, count) for runs of the part's elements in the block: `count` elements from flat
  // index `elem` of the tensor on lie at byte `offset` of the block. In rising order of offset.
  using RunFn = std::function<void(int64_t offset, int64_t elem, int64_t count)>;
  void ForEachRunIn(const LoadBlock& block, const LoadPart& part, const RunFn& fn) const;

 private:
  struct SavedBox {
    std::vector<int64_t> shape;  // of the tensor
    Box box;
    int64_t file = 0, byte_offset = 0, elem_bytes = 0;
  };
  void AddSlice(const checkpoint::TensorEntry& tensor, int first_saved, int member, int slice,
                const Box& wanted);
  // Calls fn for boxes that hold the elements of `part` in bytes [begin, end) of its file, in their order.
  void ForEachBoxIn(int64_t begin, int64_t end, const LoadPart& part,
                    const std::function<void(const Box&)>& fn) const;
  void CollectBlocks(const checkpoint::Manifest& manifest, int num_members);
  void ChooseReaders(size_t num_members);

  std::vector<SavedBox> saved_;
  std::vector<LoadPart> parts_;
  std::vector<LoadBlock> blocks_;         // by file and number
  std::vector<std::vector<int>> queues_;  // by member: indices of blocks_
  int64_t num_rounds_ = 0, num_bytes_ = 0, num_bytes_wanted_ = 0;
};
}  // namespace carousel
