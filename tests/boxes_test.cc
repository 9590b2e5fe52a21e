// Flat ranges as boxes, and boxes back to runs of elements.
#include "checkpoints/boxes.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <random>

namespace carousel {
namespace {
using Shape = std::vector<int64_t>;

// Flat indices of a box's elements in row-major order, one by one.
std::vector<int64_t> ElemsOf(const Shape& shape, const Box& box) {
  std::vector<int64_t> elems;
  const int64_t n = NumElems(shape);
  for (int64_t e = 0; e < n; ++e) {
    int64_t rest = e;
    bool inside = true;
    for (size_t d = shape.size(); d-- > 0;) {
      const int64_t index = rest % shape[d];
      rest /= shape[d];
      inside &= index >= box.offset[d] && index < box.offset[d] + box.size[d];
    }
    if (inside) elems.push_back(e);
  }
  return elems;
}

TEST(Boxes, EveryRangeOfEverySmallShapeIsItsBoxesInOrder) {
  const std::vector<Shape> shapes = {{1},    {7},       {1, 1},    {3, 4},      {5, 1},
                                     {1, 6}, {2, 3, 4}, {3, 1, 2}, {2, 2, 3, 2}};
  for (const Shape& shape : shapes) {
    const int64_t n = NumElems(shape);
    const size_t most = std::max<size_t>(1, 2 * shape.size() - 1);
    for (int64_t begin = 0; begin <= n; ++begin) {
      for (int64_t count = 0; begin + count <= n; ++count) {
        const std::vector<Box> boxes = BoxesOfRange(shape, begin, count);
        ASSERT_LE(boxes.size(), most);
        int64_t next = begin;
        for (const Box& box : boxes) {
          ASSERT_TRUE(BoxFits(shape, box));
          ASSERT_EQ(FirstElem(shape, box), next);
          for (const int64_t e : ElemsOf(shape, box)) ASSERT_EQ(e, next++);
        }
        ASSERT_EQ(next, begin + count);
      }
    }
  }
}

TEST(Boxes, AScalarIsOneBoxWithoutDims) {
  const std::vector<Box> boxes = BoxesOfRange({}, 0, 1);
  ASSERT_EQ(boxes.size(), 1u);
  EXPECT_EQ(boxes[0].num_elems(), 1);
  EXPECT_TRUE(BoxesTile({}, boxes));
  EXPECT_FALSE(BoxesTile({}, {}));
  EXPECT_FALSE(BoxesTile({}, {Box{}, Box{}}));
  int calls = 0;
  ForEachRun({}, boxes[0], boxes[0], [&](int64_t elem, int64_t box_elem, int64_t count) {
    EXPECT_EQ(elem, 0);
    EXPECT_EQ(box_elem, 0);
    EXPECT_EQ(count, 1);
    ++calls;
  });
  EXPECT_EQ(calls, 1);
}

TEST(Boxes, RunsOfAPartAreItsElementsInBothOrders) {
  std::mt19937_64 random(1);
  const auto below = [&](int64_t n) { return static_cast<int64_t>(random() % static_cast<uint64_t>(n)); };
  for (int trial = 0; trial < 3000; ++trial) {
    Shape shape(1 + random() % 4);
    Box box, part;
    for (int64_t& d : shape) {
      d = 1 + below(5);
      box.offset.push_back(below(d));
      box.size.push_back(1 + below(d - box.offset.back()));
      part.offset.push_back(box.offset.back() + below(box.size.back()));
      part.size.push_back(1 + below(box.offset.back() + box.size.back() - part.offset.back()));
    }
    const std::vector<int64_t> box_elems = ElemsOf(shape, box);
    std::vector<int64_t> seen;
    int64_t last = -1;
    ForEachRun(shape, box, part, [&](int64_t elem, int64_t box_elem, int64_t count) {
      ASSERT_GT(box_elem, last);
      last = box_elem + count - 1;
      for (int64_t j = 0; j < count; ++j) {
        ASSERT_EQ(box_elems[static_cast<size_t>(box_elem + j)], elem + j);
        seen.push_back(elem + j);
      }
    });
    ASSERT_EQ(seen, ElemsOf(shape, part));
    // A part that is contiguous is one run.
    if (seen.back() - seen.front() + 1 == static_cast<int64_t>(seen.size()) && part == box) {
      int64_t runs = 0;
      ForEachRun(shape, box, part, [&](int64_t, int64_t, int64_t) { ++runs; });
      bool leading_ones = true;  // contiguous by shape alone: ones, one partial dim, whole dims
      size_t d = 0;
      while (d < shape.size() && part.size[d] == 1) ++d;
      for (size_t e = d + 1; e < shape.size(); ++e) leading_ones &= part.size[e] == shape[e];
      if (leading_ones) {
        ASSERT_EQ(runs, 1);
      }
    }
  }
}

TEST(Boxes, IntersectionHasTheCommonElements) {
  std::mt19937_64 random(2);
  const Shape shape = {5, 4, 3};
  const auto random_box = [&] {
    Box box;
    for (const int64_t d : shape) {
      box.offset.push_back(static_cast<int64_t>(random() % static_cast<uint64_t>(d)));
      box.size.push_back(1 + static_cast<int64_t>(random() % static_cast<uint64_t>(d - box.offset.back())));
    }
    return box;
  };
  int meet = 0;
  for (int trial = 0; trial < 2000; ++trial) {
    const Box a = random_box(), b = random_box();
    const std::vector<int64_t> in_a = ElemsOf(shape, a), in_b = ElemsOf(shape, b);
    std::vector<int64_t> both;
    std::set_intersection(in_a.begin(), in_a.end(), in_b.begin(), in_b.end(), std::back_inserter(both));
    Box common;
    ASSERT_EQ(Intersect(a, b, &common), !both.empty());
    if (!both.empty()) {
      ASSERT_EQ(ElemsOf(shape, common), both);
      ++meet;
    }
  }
  EXPECT_GT(meet, 200);
}

TEST(Boxes, TilingIsExactlyOnceEach) {
  const Shape shape = {4, 6};
  const Box left = {{0, 0}, {4, 3}}, right = {{0, 3}, {4, 3}};
  EXPECT_TRUE(BoxesTile(shape, {left, right}));
  EXPECT_TRUE(BoxesTile(shape, {right, {{2, 0}, {2, 3}}, {{0, 0}, {2, 3}}}));
  EXPECT_FALSE(BoxesTile(shape, {left}));
  EXPECT_FALSE(BoxesTile(shape, {left, left}));  // as many elements as needed, but the wrong ones
  EXPECT_FALSE(BoxesTile(shape, {left, right, {{0, 0}, {1, 1}}}));
  EXPECT_FALSE(BoxesTile(shape, {left, {{0, 2}, {4, 3}}}));
  EXPECT_TRUE(BoxesTile({0, 5}, {}));
  for (int64_t cut = 0; cut <= 24; ++cut) {
    std::vector<Box> boxes = BoxesOfRange(shape, 0, cut);
    for (const Box& box : BoxesOfRange(shape, cut, 24 - cut)) boxes.push_back(box);
    EXPECT_TRUE(BoxesTile(shape, boxes)) << cut;
  }
}

TEST(Boxes, TilingsThatNoStraightCutSplitsAreFound) {
  const std::vector<Box> pinwheel = {
      {{0, 0}, {1, 2}}, {{0, 2}, {2, 1}}, {{2, 1}, {1, 2}}, {{1, 0}, {2, 1}}, {{1, 1}, {1, 1}}};
  EXPECT_TRUE(BoxesTile({3, 3}, pinwheel));
  for (size_t skip = 0; skip < pinwheel.size(); ++skip) {
    std::vector<Box> boxes = pinwheel;
    boxes.erase(boxes.begin() + static_cast<std::ptrdiff_t>(skip));
    EXPECT_FALSE(BoxesTile({3, 3}, boxes)) << skip;
    boxes.push_back(pinwheel[(skip + 1) % pinwheel.size()]);
    EXPECT_FALSE(BoxesTile({3, 3}, boxes)) << skip;
  }
}

// Random cuts of random shapes, then one box is moved, doubled, dropped or changed in size: counting every
// element decides what is right.
TEST(Boxes, TilingAgreesWithCountingElements) {
  std::mt19937_64 random(3);
  const auto below = [&](int64_t n) { return static_cast<int64_t>(random() % static_cast<uint64_t>(n)); };
  int tilings = 0, others = 0;
  for (int trial = 0; trial < 4000; ++trial) {
    Shape shape(1 + random() % 4);
    for (int64_t& d : shape) d = 1 + below(4);
    std::vector<Box> boxes = {{Shape(shape.size(), 0), shape}};
    for (int64_t cuts = below(8); cuts > 0; --cuts) {
      Box& first = boxes[random() % boxes.size()];
      const size_t d = random() % shape.size();
      if (first.size[d] == 1) continue;
      Box second = first;
      first.size[d] = 1 + below(first.size[d] - 1);
      second.offset[d] += first.size[d];
      second.size[d] -= first.size[d];
      boxes.push_back(second);
    }
    std::shuffle(boxes.begin(), boxes.end(), random);
    Box& changed = boxes[random() % boxes.size()];
    const size_t d = random() % shape.size();
    switch (below(6)) {
      case 0:
        changed.offset[d] = below(shape[d] - changed.size[d] + 1);
        break;
      case 1:
        changed.size[d] = 1 + below(shape[d] - changed.offset[d]);
        break;
      case 2:
        changed = Box(boxes[random() % boxes.size()]);
        break;
      case 3:
        boxes.pop_back();
        break;
      default:
        break;
    }
    std::vector<int> count(static_cast<size_t>(NumElems(shape)), 0);
    for (const Box& box : boxes) {
      ASSERT_TRUE(BoxFits(shape, box));
      for (const int64_t e : ElemsOf(shape, box)) ++count[static_cast<size_t>(e)];
    }
    const bool once = std::all_of(count.begin(), count.end(), [](int c) { return c == 1; });
    ASSERT_EQ(BoxesTile(shape, boxes), once) << trial;
    (once ? tilings : others) += 1;
  }
  EXPECT_GT(tilings, 500);
  EXPECT_GT(others, 500);
}

// A file may hold any boxes: no arrangement may take time of the order of their number squared.
TEST(Boxes, TilingOfManyBoxesIsFastWhereverTheyLie) {
  constexpr int64_t kBoxes = 200000;
  for (const size_t dim : {0u, 1u, 2u}) {
    Shape shape = {1, 1, 1};
    shape[dim] = kBoxes;
    std::vector<Box> boxes;
    for (int64_t i = 0; i < kBoxes; ++i) {
      boxes.push_back({{0, 0, 0}, {1, 1, 1}});
      boxes.back().offset[dim] = i * 7919 % kBoxes;  // in no order
    }
    const auto start = std::chrono::steady_clock::now();
    EXPECT_TRUE(BoxesTile(shape, boxes));
    const std::vector<Box> hole(boxes.begin() + 1, boxes.end());
    EXPECT_FALSE(BoxesTile(shape, hole));
    boxes[kBoxes / 2] = boxes[kBoxes / 3];  // the right number of elements, but one twice and one never
    EXPECT_FALSE(BoxesTile(shape, boxes));
    boxes[kBoxes / 2] = {{0, 0, 0}, shape};
    EXPECT_FALSE(BoxesTile(shape, boxes));
    // The square of the number would take minutes.
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(8));
  }
}

TEST(Boxes, FitRefusesWhatLiesOutsideOrOverflows) {
  const Shape shape = {4, 6};
  EXPECT_TRUE(BoxFits(shape, {{3, 5}, {1, 1}}));
  EXPECT_FALSE(BoxFits(shape, {{3, 5}, {2, 1}}));
  EXPECT_FALSE(BoxFits(shape, {{-1, 0}, {1, 1}}));
  EXPECT_FALSE(BoxFits(shape, {{0, 0}, {0, 1}}));
  EXPECT_FALSE(BoxFits(shape, {{0}, {1}}));
  EXPECT_FALSE(BoxFits(shape, {{0, 0}, {1, INT64_MAX}}));
  EXPECT_FALSE(BoxFits(shape, {{0, INT64_MAX}, {1, 1}}));
  EXPECT_EQ(NumElems({INT64_MAX, 2}), -1);
  EXPECT_EQ(NumElems({INT64_MAX, 2, 0}), 0);
  EXPECT_EQ(NumElems({3, -1}), -1);
}
}  // namespace
}  // namespace carousel
