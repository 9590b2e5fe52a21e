// Arena: all memory of a run, planned by running the same Bind code twice.
//
//   Arena count;  model.Bind(count);                                        // pass 1: adds up, no data
//   Arena arena(device.Allocate(count.total_bytes()), count);  model.Bind(arena);  // pass 2: the same code
//                                                                                  // places for real
//
// Three kinds of placement. Persistent and Saved memory only grow. Scratch lives inside a ScratchScope and
// its place is used again after the scope ends, so that scratch costs the maximum over layers. A shared
// region is used by several in turn and is as large as the largest of them. Pass 1 finds all sizes; pass 2
// puts the shared regions behind what grows and scratch behind them.
#pragma once
#include <map>
#include <string>

#include "core/tensor.h"

namespace carousel {

class Arena {
 public:
  static constexpr int64_t kAlignBytes = 256;

  Arena() = default;                        // counts
  Arena(void* base, const Arena& counted);  // places in counted.total_bytes() bytes at base; base != nullptr

  // Memory that lives as long as the arena. `category` is a row of the plan ("weights", "optimizer", "saved",
  // ...).
  Tensor Persistent(const std::string& category, DType dtype, std::initializer_list<int64_t> dims);
  // What backward needs from forward: category "saved" (or the category set by SharedRegion).
  Tensor Saved(DType dtype, std::initializer_list<int64_t> dims);
  // Memory of the current scratch scope.
  Tensor Scratch(DType dtype, std::initializer_list<int64_t> dims);

  // Scratch taken between Begin and End is reusable after End. Scopes nest.
  int64_t BeginScratch() const { return scratch_bytes_; }
  void EndScratch(int64_t mark) { scratch_bytes_ = mark; }

  // Shared regions: several users bind their Saved tensors to the same memory, one at a time (recomputed
  // blocks). After BeginSharedSaved(region) every Saved call is placed in that region from its start; its
  // size is the largest user's.
  void BeginSharedSaved(const std::string& region);
  void EndSharedSaved();

  bool counting() const { return base_ == nullptr; }
  int64_t grow_bytes() const;  // Persistent + Saved + shared regions so far
  int64_t total_bytes() const { return grow_bytes() + peak_scratch_bytes_; }  // what to allocate
  int64_t peak_scratch_bytes() const { return peak_scratch_bytes_; }
  const std::map<std::string, int64_t>& bytes_by_category() const { return bytes_by_category_; }

 private:
  Tensor Place(int64_t offset, DType dtype, std::initializer_list<int64_t> dims) const;
  static int64_t AlignedBytes(DType dtype, std::initializer_list<int64_t> dims);

  std::byte* base_ = nullptr;
  int64_t planned_own_bytes_ = 0;  // real pass: where shared regions begin
  int64_t scratch_begin_ = 0;      // real pass
  int64_t own_bytes_ = 0;          // Persistent + Saved outside shared regions
  int64_t scratch_bytes_ = 0;
  int64_t peak_scratch_bytes_ = 0;
  std::map<std::string, int64_t> bytes_by_category_;
  struct Region {
    int64_t offset = 0, planned_bytes = 0;  // real pass
    int64_t size_bytes = 0;                 // of the largest user so far
  };
  std::map<std::string, Region> regions_;
  std::string active_region_;
  int64_t region_cursor_ = 0;
};

// Frees scratch at the end of a C++ scope.
class ScratchScope {
 public:
  explicit ScratchScope(Arena& arena) : arena_(arena), mark_(arena.BeginScratch()) {}
  ~ScratchScope() { arena_.EndScratch(mark_); }
  ScratchScope(const ScratchScope&) = delete;
  ScratchScope& operator=(const ScratchScope&) = delete;

 private:
  Arena& arena_;
  int64_t mark_;
};
}  // namespace carousel
