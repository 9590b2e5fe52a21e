// Boxes of tensors in memory with gaps, walked as runs, against one element at a time.
#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "checkpoints/digest.h"
#include "core/train/state_visitor.h"

namespace carousel {
namespace {

class RandomSlices {
 public:
  // A box of a random tensor of 0 to 4 dims; its elements are their index in the tensor, gaps are -1.
  StateSlice Next() {
    StateSlice slice = {.name = "x"};
    for (int64_t dims = Below(5); dims > 0; --dims) {
      const int64_t d = 1 + Below(5);
      slice.shape.push_back(d);
      const bool whole = Below(2) == 0;
      slice.offset.push_back(whole ? 0 : Below(d));
      slice.size.push_back(whole ? d : 1 + Below(d - slice.offset.back()));
    }
    if (Below(2) == 0) slice.row_stride = slice.row_elems() + Below(3);
    values_.assign(static_cast<size_t>(slice.num_elems() / slice.row_elems() * slice.stride()), -1);
    slice.data = values_.data();
    const std::vector<int64_t> elems = ElemsOf(slice);
    for (size_t i = 0; i < elems.size(); ++i) {
      values_[i / static_cast<size_t>(slice.row_elems()) * static_cast<size_t>(slice.stride()) +
              i % static_cast<size_t>(slice.row_elems())] = static_cast<float>(elems[i]);
    }
    return slice;
  }
  // Flat indices of the box's elements, row-major.
  static std::vector<int64_t> ElemsOf(const StateSlice& slice) {
    std::vector<int64_t> elems = {0};
    for (size_t d = 0; d < slice.shape.size(); ++d) {
      std::vector<int64_t> next;
      for (const int64_t e : elems) {
        for (int64_t i = 0; i < slice.size[d]; ++i) next.push_back(e * slice.shape[d] + slice.offset[d] + i);
      }
      elems = std::move(next);
    }
    return elems;
  }
  int64_t Below(int64_t n) { return static_cast<int64_t>(random_() % static_cast<uint64_t>(n)); }

 private:
  std::mt19937_64 random_{5};
  std::vector<float> values_;
};

TEST(StateSlice, RunsAreTheElementsOfTheBoxInOrder) {
  RandomSlices random;
  int64_t with_gaps = 0, merged = 0;
  for (int trial = 0; trial < 3000; ++trial) {
    const StateSlice slice = random.Next();
    std::vector<int64_t> seen;
    int64_t runs = 0;
    ForEachRun(slice, [&](int64_t elem, const char* data, int64_t count) {
      ++runs;
      for (int64_t j = 0; j < count; ++j) {
        seen.push_back(elem + j);
        ASSERT_EQ(reinterpret_cast<const float*>(data)[j], static_cast<float>(elem + j));
      }
    });
    ASSERT_EQ(seen, RandomSlices::ElemsOf(slice));
    with_gaps += slice.stride() > slice.row_elems();
    merged += runs * slice.row_elems() < slice.num_elems();
    // all of a tensor without gaps is one run
    if (slice.size == slice.shape && slice.stride() == slice.row_elems()) {
      ASSERT_EQ(runs, 1);
    }
  }
  EXPECT_GT(with_gaps, 300);
  EXPECT_GT(merged, 300);
}

TEST(StateSlice, AnEmptyBoxHasNoRuns) {
  const StateSlice slice = {.name = "x", .shape = {3, 4}, .offset = {1, 4}, .size = {2, 0}};
  ForEachRun(slice, [](int64_t, const char*, int64_t) { ADD_FAILURE(); });
  EXPECT_EQ(DigestSlice(slice), 0u);
}

TEST(StateSlice, DigestIsThatOfItsElementsWhereverTheyLie) {
  RandomSlices random;
  for (int trial = 0; trial < 500; ++trial) {
    const StateSlice slice = random.Next();
    uint64_t expected = 0;
    for (const int64_t e : RandomSlices::ElemsOf(slice)) {
      const float value = static_cast<float>(e);
      expected += DigestRange(&value, DType::kF32, e, 1);
    }
    ASSERT_EQ(DigestSlice(slice), expected);
  }
}
}  // namespace
}  // namespace carousel
