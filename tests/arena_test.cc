#include "core/arena.h"

#include <set>

#include "core/device_memory.h"
#include "tests/model_testing.h"

namespace carousel {
namespace {

int64_t OffsetOf(const Tensor& t, const void* base) {
  return static_cast<const std::byte*>(t.data) - static_cast<const std::byte*>(base);
}

// A bit of everything that Bind code does.
struct Placed {
  Tensor weights, saved_a, saved_b, shared_a, shared_b, scratch_a, scratch_b, scratch_c;
};
Placed BindSome(Arena& arena) {
  Placed p;
  p.weights = arena.Persistent("weights", DType::kF32, {3, 5});
  p.saved_a = arena.Saved(DType::kBF16, {7});
  {
    const ScratchScope scope(arena);
    p.scratch_a = arena.Scratch(DType::kF32, {100});
    arena.BeginSharedSaved("region");
    p.shared_a = arena.Saved(DType::kF64, {40});
    arena.EndSharedSaved();
    const ScratchScope inner(arena);
    p.scratch_b = arena.Scratch(DType::kF32, {200});
  }
  {
    const ScratchScope scope(arena);
    p.scratch_c = arena.Scratch(DType::kF32, {10});
    arena.BeginSharedSaved("region");
    p.shared_b = arena.Saved(DType::kF64, {40});
    arena.EndSharedSaved();
  }
  p.saved_b = arena.Saved(DType::kU8, {1});
  return p;
}

TEST(Arena, CountingPlacesNothingAndAddsUp) {
  Arena count;
  const Placed p = BindSome(count);
  EXPECT_TRUE(count.counting());
  EXPECT_EQ(p.weights.data, nullptr);
  EXPECT_TRUE(p.weights.HasShape({3, 5}));
  EXPECT_EQ(p.saved_a.dtype, DType::kBF16);
  EXPECT_EQ(count.grow_bytes(), 256 + 256 + 512 + 256);  // the shared region counts once
  EXPECT_EQ(count.peak_scratch_bytes(), 512 + 1024);     // the larger of the two scopes
  EXPECT_EQ(count.total_bytes(), count.grow_bytes() + count.peak_scratch_bytes());
  EXPECT_EQ(count.bytes_by_category().at("weights"), 256);
  EXPECT_EQ(count.bytes_by_category().at("saved"), 256 + 512 + 256);
}

TEST(Arena, TheSecondPassPlacesWhatTheFirstCounted) {
  Arena count;
  BindSome(count);
  std::vector<std::byte> memory(static_cast<size_t>(count.total_bytes()));
  Arena arena(memory.data(), count);
  const Placed p = BindSome(arena);
  EXPECT_EQ(arena.total_bytes(), count.total_bytes());
  EXPECT_EQ(arena.bytes_by_category(), count.bytes_by_category());

  // Aligned, inside, and disjoint except where sharing is wanted.
  const Tensor growing[] = {p.weights, p.saved_a, p.saved_b, p.shared_a};
  int64_t end = 0;
  for (const Tensor& t : growing) {
    EXPECT_EQ(OffsetOf(t, memory.data()) % Arena::kAlignBytes, 0);
    EXPECT_GE(OffsetOf(t, memory.data()), end);
    end = OffsetOf(t, memory.data()) + t.num_bytes();
  }
  EXPECT_LE(end, count.grow_bytes());
  EXPECT_EQ(p.shared_a.data, p.shared_b.data);
  EXPECT_EQ(OffsetOf(p.scratch_a, memory.data()), count.grow_bytes());
  EXPECT_GE(OffsetOf(p.scratch_b, p.scratch_a.data), p.scratch_a.num_bytes());
  EXPECT_EQ(p.scratch_c.data, p.scratch_a.data);  // the place is used again
  EXPECT_LE(OffsetOf(p.scratch_b, memory.data()) + p.scratch_b.num_bytes(), count.total_bytes());
}

TEST(ArenaDeathTest, BindingMoreThanPlannedIsAnError) {
  std::vector<std::byte> memory(4096);
  Arena count;
  count.Persistent("weights", DType::kF32, {64});
  Arena arena(memory.data(), count);
  arena.Persistent("weights", DType::kF32, {64});
  EXPECT_DEATH(arena.Persistent("weights", DType::kF32, {1}), "more memory bound than planned");
  EXPECT_DEATH(arena.Persistent("weights", DType::kF64, {int64_t{1} << 40, int64_t{1} << 40}), "too large");
}

// Binds users of one region, of the sizes given in units of 256 bytes, then something of its own.
std::vector<Tensor> BindUsers(Arena& arena, const std::vector<int64_t>& sizes) {
  std::vector<Tensor> result;
  for (const int64_t size : sizes) {
    arena.BeginSharedSaved("region");
    result.push_back(arena.Saved(DType::kF32, {64 * size}));
    arena.EndSharedSaved();
  }
  result.push_back(arena.Saved(DType::kF32, {64}));
  return result;
}

TEST(Arena, ASharedRegionIsAsLargeAsItsLargestUser) {
  for (const std::vector<int64_t>& sizes : {std::vector<int64_t>{1, 3, 2}, {3, 1}, {2}}) {
    const int64_t largest = *std::max_element(sizes.begin(), sizes.end());
    Arena count;
    BindUsers(count, sizes);
    EXPECT_EQ(count.grow_bytes(), 256 * (largest + 1));
    EXPECT_EQ(count.bytes_by_category().at("saved"), 256 * (largest + 1));
    std::vector<std::byte> memory(static_cast<size_t>(count.total_bytes()));
    Arena arena(memory.data(), count);
    const std::vector<Tensor> bound = BindUsers(arena, sizes);
    EXPECT_EQ(arena.total_bytes(), count.total_bytes());
    EXPECT_EQ(arena.bytes_by_category(), count.bytes_by_category());
    for (size_t j = 0; j < sizes.size(); ++j) {
      EXPECT_EQ(bound[j].data, bound[0].data);
      EXPECT_LE(OffsetOf(bound[j], memory.data()) + bound[j].num_bytes(), count.total_bytes());
    }
    EXPECT_TRUE(OffsetOf(bound.back(), memory.data()) + 256 <= OffsetOf(bound[0], memory.data()) ||
                OffsetOf(bound.back(), memory.data()) >= OffsetOf(bound[0], memory.data()) + 256 * largest);
  }
}

TEST(ArenaDeathTest, ASharedRegionIsNotLargerThanPlanned) {
  Arena count;
  BindUsers(count, {1});
  std::vector<std::byte> memory(static_cast<size_t>(count.total_bytes()));
  Arena arena(memory.data(), count);
  arena.BeginSharedSaved("region");
  EXPECT_DEATH(arena.BeginSharedSaved("another"), "do not nest");
  arena.Saved(DType::kF32, {64});
  EXPECT_DEATH(arena.Saved(DType::kF32, {1}), "more memory bound than planned");
  arena.EndSharedSaved();
  EXPECT_DEATH(arena.BeginSharedSaved("another"), "more memory bound than planned");
}

TEST(DeviceMemory, BindsForRealInOneAllocation) {
  const auto device = testing::CpuDevice();
  Placed p;
  int num_runs = 0;
  const DeviceMemory memory(*device, [&](Arena& arena) {
    p = BindSome(arena);
    ++num_runs;
  });
  EXPECT_TRUE(memory.ok());
  EXPECT_EQ(num_runs, 2);
  EXPECT_EQ(memory.needed_bytes(), memory.arena().total_bytes());
  ASSERT_NE(p.scratch_b.data, nullptr);
  device->ops().Fill({.y = p.scratch_b, .value = 2});
  EXPECT_EQ(p.scratch_b.as<float>()[199], 2);
}

TEST(DeviceMemory, NothingAskedForIsNothingAllocated) {
  const auto device = testing::CpuDevice();
  const DeviceMemory memory(*device, [](Arena&) {});
  EXPECT_TRUE(memory.ok());
  EXPECT_EQ(memory.needed_bytes(), 0);
}

TEST(DeviceMemory, ADeviceWithoutRoomIsReported) {
  const auto device = testing::CpuDevice();
  const DeviceMemory memory(*device, [](Arena& arena) {
    arena.Persistent("weights", DType::kU8, {int64_t{1} << 50});  // more than any address space in use
  });
  EXPECT_FALSE(memory.ok());
  EXPECT_EQ(memory.needed_bytes(), int64_t{1} << 50);
}
}  // namespace
}  // namespace carousel
