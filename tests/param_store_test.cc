#include "core/model/param_store.h"

#include <map>

#include "tests/model_testing.h"

namespace carousel {
namespace {
using testing::CpuDevice;
using testing::TinySpec;

// A store with a few parameters of every kind and odd sizes.
void RegisterSome(ParamStore& store) {
  const ParamInit normal = {.rule = InitRule::kNormal, .a = 0.5};
  store.Register({.name = "a.weight", .shape = {37, 30}, .decay = true, .init = normal, .group = 0});
  store.Register({.name = "b.weight", .shape = {5, 30}, .decay = true, .init = normal, .group = 1});
  store.Register({.name = "c.weight", .shape = {70, 30}, .decay = true, .init = normal, .group = 1});
  store.Register({.name = "b.bias", .shape = {5}, .init = {.rule = InitRule::kOne}, .group = 1});
  store.Register(
      {.name = "c.bias", .shape = {70}, .init = {.rule = InitRule::kLinspace, .a = 3, .b = 6}, .group = 1});
  store.Register({.name = "d.weight", .shape = {7, 11}, .init = normal, .group = 1});
}

TEST(ParamStore, PlacesParametersWithoutGapsInTheOrderOfRegistration) {
  ParamStore store(DType::kBF16, 1, 0);
  RegisterSome(store);
  EXPECT_EQ(store.num_groups(), 2);
  EXPECT_EQ(store.num_parameters(), 37 * 30 + 75 * 30 + 75 + 77);
  EXPECT_EQ(store.param(store.Find("c.weight")).offset, 150);
  EXPECT_EQ(store.param(store.Find("d.weight")).offset, 75 * 30);
  EXPECT_EQ(store.param(store.Find("c.bias")).offset, 5);
  EXPECT_EQ(store.Find("e.weight"), -1);
  EXPECT_EQ(store.segment(1, ParamStore::kMatrix).size, 75 * 30 + 77);
  EXPECT_EQ(store.segment(0, ParamStore::kVector).size, 0);
}

TEST(ParamStore, OffsetsDoNotDependOnTheNumberOfShardsAndShardsAreWholeBlocks) {
  ParamStore one(DType::kF32, 1, 0);
  RegisterSome(one);
  for (const int64_t num_shards : {2, 3, 8}) {
    ParamStore store(DType::kF32, num_shards, num_shards - 1);
    RegisterSome(store);
    for (int i = 0; i < 6; ++i) EXPECT_EQ(store.param(i).offset, one.param(i).offset);
    for (int g = 0; g < 2; ++g) {
      for (int s = 0; s < ParamStore::kNumSegments; ++s) {
        const ParamStore::Segment& segment = store.segment(g, s);
        EXPECT_EQ(segment.padded_size % (num_shards * kSquaredNormBlock), 0);
        EXPECT_GE(segment.padded_size, segment.size);
        EXPECT_LT(segment.padded_size - segment.size, num_shards * kSquaredNormBlock);
      }
    }
  }
}

TEST(ParamStore, WeightsAreInTheComputeTypeAndVectorsWide) {
  const auto device = CpuDevice();
  ParamStore store(DType::kBF16, 1, 0);
  RegisterSome(store);
  const DeviceMemory memory(*device, [&](Arena& arena) {
    store.Bind(arena, /*train=*/true);
    store.BindGradients(arena);
  });
  EXPECT_EQ(store.Weight(0).dtype, DType::kBF16);
  EXPECT_TRUE(store.Weight(0).HasShape({37, 30}));
  EXPECT_EQ(store.Weight(3).dtype, DType::kF32);
  EXPECT_TRUE(store.Weight(3).HasShape({5}));
  EXPECT_EQ(store.Grad(0).dtype, DType::kF32);
  EXPECT_EQ(store.segment(0, ParamStore::kMatrix).master.dtype, DType::kF32);
  const auto& bytes = memory.arena().bytes_by_category();
  EXPECT_EQ(bytes.at("weights"), 2 * (2048 + 3072) + 4 * 1024);  // bf16 matrices, f32 vectors, padded
  EXPECT_EQ(bytes.at("optimizer"), 3 * 4 * (2048 + 3072 + 1024));
  EXPECT_EQ(bytes.at("gradients"), 4 * (2048 + 3072 + 1024));
}

TEST(ParamStore, ConsecutiveParametersAreOneFusedTensor) {
  const auto device = CpuDevice();
  ParamStore store(DType::kF32, 1, 0);
  RegisterSome(store);
  const DeviceMemory memory(*device, [&](Arena& arena) {
    store.Bind(arena, /*train=*/false);
    store.BindGradients(arena);
  });
  const Tensor fused = store.FusedWeight(store.Find("b.weight"), 2);
  EXPECT_TRUE(fused.HasShape({75, 30}));
  EXPECT_EQ(fused.data, store.Weight(store.Find("b.weight")).data);
  EXPECT_EQ(fused.Rows(5, 70).data, store.Weight(store.Find("c.weight")).data);
  EXPECT_TRUE(store.FusedWeight(store.Find("b.bias"), 2).HasShape({75}));
  EXPECT_EQ(store.FusedGrad(store.Find("b.bias"), 2).Rows(5, 70).data, store.Grad(store.Find("c.bias")).data);
}

TEST(ParamStoreDeathTest, WhatDoesNotLieTogetherCannotBeFused) {
  const auto device = CpuDevice(1);
  ParamStore store(DType::kF32, 1, 0);
  RegisterSome(store);
  EXPECT_DEATH(store.Weight(0), "not bound");
  const DeviceMemory memory(*device, [&](Arena& arena) { store.Bind(arena, /*train=*/false); });
  EXPECT_DEATH(store.FusedWeight(0, 2), "does not continue");                       // another group
  EXPECT_DEATH(store.FusedWeight(store.Find("c.weight"), 2), "does not continue");  // another segment
  EXPECT_DEATH(store.Grad(0), "no gradient buffer");
  EXPECT_DEATH(store.Register({.name = "a.weight", .shape = {1}}), "registered twice");
  EXPECT_DEATH(store.Register({.name = "z", .shape = {0}}), "must be positive");
  EXPECT_DEATH(store.Register({.name = "z", .shape = {1, 1, 1}}), "rank");
}

TEST(ParamStore, ShardPiecesOfAllRanksTileEveryParameterOnce) {
  for (const int64_t num_shards : {1, 2, 3, 4, 7}) {
    std::map<int, std::vector<int>> covered;  // parameter -> times each element is held
    for (int64_t rank = 0; rank < num_shards; ++rank) {
      ParamStore store(DType::kF32, num_shards, rank);
      RegisterSome(store);
      for (int g = 0; g < store.num_groups(); ++g) {
        for (int s = 0; s < ParamStore::kNumSegments; ++s) {
          const int64_t shard_size = store.segment(g, s).shard_size(num_shards);
          int64_t end = 0;
          for (const ParamStore::ShardPiece& piece : store.ShardPieces(g, s)) {
            const Param& p = store.param(piece.param);
            auto& times = covered[piece.param];
            times.resize(static_cast<size_t>(p.num_elems));
            for (int64_t j = 0; j < piece.count; ++j) ++times[static_cast<size_t>(piece.param_begin + j)];
            // In order, inside the shard, at the place that the flat layout says.
            EXPECT_GE(piece.shard_begin, end);
            end = piece.shard_begin + piece.count;
            EXPECT_EQ(p.offset + piece.param_begin, rank * shard_size + piece.shard_begin);
          }
          EXPECT_LE(end, shard_size);
        }
      }
    }
    EXPECT_EQ(covered.size(), 6u);
    for (const auto& [param, times] : covered) {
      for (const int t : times) ASSERT_EQ(t, 1) << "parameter " << param << " of " << num_shards;
    }
  }
}

TEST(ParamStore, EveryRankStartsFromTheSameBits) {
  const auto device = CpuDevice();
  for (const DType compute : {DType::kBF16, DType::kF32}) {
    ParamStore one(compute, 1, 0);
    RegisterSome(one);
    const DeviceMemory memory(*device, [&](Arena& arena) { one.Bind(arena, true); });
    one.Initialize(*device, 42);
    for (const int64_t num_shards : {2, 3}) {
      for (int64_t rank = 0; rank < num_shards; ++rank) {
        ParamStore store(compute, num_shards, rank);
        RegisterSome(store);
        const DeviceMemory own(*device, [&](Arena& arena) { store.Bind(arena, true); });
        store.Initialize(*device, 42);
        for (int i = 0; i < 6; ++i) {
          EXPECT_EQ(std::memcmp(store.Weight(i).data, one.Weight(i).data,
                                static_cast<size_t>(one.Weight(i).num_bytes())),
                    0);
        }
        for (int g = 0; g < 2; ++g) {
          for (int s = 0; s < ParamStore::kNumSegments; ++s) {
            const Tensor whole = one.segment(g, s).master;
            for (const ParamStore::ShardPiece& piece : store.ShardPieces(g, s)) {
              const int64_t flat = store.param(piece.param).offset + piece.param_begin;
              EXPECT_EQ(std::memcmp(store.segment(g, s).master.Rows(piece.shard_begin, piece.count).data,
                                    whole.Rows(flat, piece.count).data, static_cast<size_t>(4 * piece.count)),
                        0);
            }
          }
        }
      }
    }
  }
}

TEST(ParamStore, WeightsAreTheRoundedMaster) {
  const auto device = CpuDevice();
  ParamStore store(DType::kBF16, 2, 1);
  RegisterSome(store);
  const DeviceMemory memory(*device, [&](Arena& arena) { store.Bind(arena, true); });
  store.Initialize(*device, 7);
  const Tensor shard = store.WeightShard(1, ParamStore::kMatrix);
  const Tensor master = store.segment(1, ParamStore::kMatrix).master;
  std::vector<bfloat16> before(shard.as<bfloat16>(), shard.as<bfloat16>() + shard.num_elems());
  bool any = false;
  for (int64_t j = 0; j < shard.num_elems(); ++j) {
    EXPECT_EQ(before[static_cast<size_t>(j)].bits, bfloat16(master.as<float>()[j]).bits);
    any |= master.as<float>()[j] != 0;
  }
  EXPECT_TRUE(any);
  device->ops().Fill({.y = shard, .value = 0});
  store.CastMasterToWeights(device->ops());
  EXPECT_EQ(std::memcmp(shard.data, before.data(), static_cast<size_t>(shard.num_bytes())), 0);
}
}  // namespace
}  // namespace carousel
