// The optimizer on shards: decay groups, the norm, independence of the number of shards.
#include "core/optim/adamw.h"

#include "tests/model_testing.h"

namespace carousel {
namespace {
using testing::CpuDevice;

// Parameters with and without decay that begin and end anywhere in blocks and shards.
void RegisterSome(ParamStore& store) {
  const ParamInit normal = {.rule = InitRule::kNormal, .a = 1};
  const struct {
    const char* name;
    std::vector<int64_t> shape;
    bool decay;
  } params[] = {{"a", {37, 50}, true}, {"b", {11, 50}, false}, {"c", {30, 50}, true},
                {"d", {7, 50}, true},  {"e", {700}, false},    {"f", {2000}, false}};
  for (const auto& p : params) {
    store.Register({.name = p.name, .shape = p.shape, .decay = p.decay, .init = normal, .group = 0});
  }
}

// The gradient of element j of a parameter.
double GradientOf(const Param& param, int64_t j) { return testing::Unit("gradient of " + param.name, j); }

// One rank's store with gradients set, updated num_steps times.
struct Rank {
  Rank(Device& device, DType compute, int64_t num_shards, int64_t index) : store(compute, num_shards, index) {
    RegisterSome(store);
    memory = std::make_unique<DeviceMemory>(device, [&](Arena& arena) {
      store.Bind(arena, true);
      for (int s = 0; s < ParamStore::kNumSegments; ++s) {
        store.SetShardGrad(
            0, s, arena.Persistent("gradients", store.wide(), {store.segment(0, s).shard_size(num_shards)}));
      }
      sum = arena.Persistent("sum", DType::kI64, {kExactSumElems});
    });
    store.Initialize(device, 1);
    for (int s = 0; s < ParamStore::kNumSegments; ++s) {
      for (const ParamStore::ShardPiece& piece : store.ShardPieces(0, s)) {
        const Tensor g = store.ShardGrad(0, s).Rows(piece.shard_begin, piece.count);
        DispatchFloat(g.dtype, [&]<class W>() {
          for (int64_t j = 0; j < piece.count; ++j) {
            g.as<W>()[j] = static_cast<W>(
                static_cast<Wide<W>>(GradientOf(store.param(piece.param), piece.param_begin + j)));
          }
        });
      }
    }
  }
  ParamStore store;
  Tensor sum;
  std::unique_ptr<DeviceMemory> memory;
};

constexpr AdamWSpec kSpec = {.beta1 = 0.8, .beta2 = 0.9, .eps = 1e-6, .weight_decay = 0.3, .clip_norm = 1};

TEST(UpdateShards, FollowsTheFormulaWithDecayWhereItIsWanted) {
  const auto device = CpuDevice();
  Rank rank(*device, DType::kF64, 1, 0);
  std::vector<std::vector<double>> initial;
  for (const Param& p : rank.store.params()) {
    initial.emplace_back(static_cast<size_t>(p.num_elems));
    InitialValues(p, 1, 0, p.num_elems, initial.back().data());
  }
  const double lr = 0.02, grad_scale = 0.5;
  for (int64_t step = 1; step <= 3; ++step) {
    UpdateShards(rank.store, device->ops(), kSpec, lr, grad_scale, step);
  }
  for (int i = 0; i < static_cast<int>(initial.size()); ++i) {
    const Param& p = rank.store.param(i);
    for (int64_t j = 0; j < p.num_elems; ++j) {
      double w = initial[static_cast<size_t>(i)][static_cast<size_t>(j)], m = 0, v = 0;
      const double g = grad_scale * GradientOf(p, j);
      for (int step = 1; step <= 3; ++step) {
        m = kSpec.beta1 * m + (1 - kSpec.beta1) * g;
        v = kSpec.beta2 * v + (1 - kSpec.beta2) * g * g;
        const double m_hat = m / (1 - std::pow(kSpec.beta1, step));
        const double v_hat = v / (1 - std::pow(kSpec.beta2, step));
        w -= lr * (m_hat / (std::sqrt(v_hat) + kSpec.eps) + (p.decay ? kSpec.weight_decay : 0) * w);
      }
      ASSERT_NEAR(rank.store.Weight(i).Flatten().as<double>()[j], w, 1e-13) << p.name << " " << j;
    }
  }
}

TEST(UpdateShards, ShardsTogetherDoExactlyWhatOneRankDoes) {
  const auto device = CpuDevice();
  for (const DType compute : {DType::kF32, DType::kBF16}) {
    Rank one(*device, compute, 1, 0);
    for (int64_t step = 1; step <= 2; ++step) {
      UpdateShards(one.store, device->ops(), kSpec, 0.01, 0.25, step);
    }
    for (const int64_t num_shards : {2, 3, 5}) {
      for (int64_t index = 0; index < num_shards; ++index) {
        Rank rank(*device, compute, num_shards, index);
        for (int64_t step = 1; step <= 2; ++step) {
          UpdateShards(rank.store, device->ops(), kSpec, 0.01, 0.25, step);
        }
        for (int s = 0; s < ParamStore::kNumSegments; ++s) {
          for (const ParamStore::ShardPiece& piece : rank.store.ShardPieces(0, s)) {
            const int64_t flat = rank.store.param(piece.param).offset + piece.param_begin;
            const ParamStore::Segment &a = rank.store.segment(0, s), &b = one.store.segment(0, s);
            const auto same = [&](Tensor x, Tensor y) {
              const Tensor part = x.Rows(piece.shard_begin, piece.count), whole = y.Rows(flat, piece.count);
              return std::memcmp(part.data, whole.data, static_cast<size_t>(part.num_bytes())) == 0;
            };
            EXPECT_TRUE(same(a.master, b.master) && same(a.m, b.m) && same(a.v, b.v));
            EXPECT_TRUE(same(rank.store.WeightShard(0, s), b.weights));
          }
        }
      }
    }
  }
}

TEST(UpdateShards, PaddingStaysZero) {
  const auto device = CpuDevice();
  Rank rank(*device, DType::kF32, 1, 0);
  UpdateShards(rank.store, device->ops(), kSpec, 0.01, 1, 1);
  for (int s = 0; s < ParamStore::kNumSegments; ++s) {
    const ParamStore::Segment& segment = rank.store.segment(0, s);
    ASSERT_GT(segment.padded_size, segment.size);
    for (int64_t j = segment.size; j < segment.padded_size; ++j) {
      ASSERT_EQ(segment.master.as<float>()[j], 0);
      ASSERT_EQ(segment.m.as<float>()[j], 0);
      ASSERT_EQ(segment.weights.as<float>()[j], 0);
    }
  }
}

TEST(AddSquaredNorm, HasTheSameBitsForEveryNumberOfShards) {
  const auto device = CpuDevice();
  double expected = 0;
  Rank one(*device, DType::kF32, 1, 0);
  for (const Param& p : one.store.params()) {
    for (int64_t j = 0; j < p.num_elems; ++j) {
      const double g = static_cast<float>(GradientOf(p, j));
      expected += g * g;
    }
  }
  AddSquaredNorm(one.store, device->ops(), one.sum);
  const double norm = reinterpret_cast<const ExactSum*>(one.sum.data)->ToDouble();
  EXPECT_NEAR(norm / expected, 1, 1e-13);
  for (const int64_t num_shards : {2, 3, 5}) {
    ExactSum total;
    for (int64_t index = 0; index < num_shards; ++index) {
      Rank rank(*device, DType::kF32, num_shards, index);
      AddSquaredNorm(rank.store, device->ops(), rank.sum);
      total.Add(*reinterpret_cast<const ExactSum*>(rank.sum.data));
    }
    EXPECT_EQ(total.ToDouble(), norm);
  }
}

TEST(AddSquaredNorm, CountsWhatEveryTensorRankHasOnce) {
  const auto device = CpuDevice();
  // Runs of parameters that are split and of whole ones, which end within blocks and shards.
  const auto add_all = [](ParamStore& store) {
    const Placement placements[] = {Sharded(0), Replicated(), Sharded(1), Sharded(0), Replicated()};
    for (int i = 0; i < 5; ++i) {
      store.Register({.name = std::string(1, static_cast<char>('a' + i)),
                      .shape = {70 + 20 * i, 50},
                      .decay = i == 2,
                      .group = 0,
                      .tensor = placements[i]});
    }
  };
  ExactSum expected, of_second[3];
  {
    ParamStore whole(DType::kF32, 1, 0);
    add_all(whole);
    for (const Param& p : whole.params()) {
      for (int64_t j = 0; j < p.num_elems; ++j) {
        const double g = static_cast<float>(GradientOf(p, j));
        expected.Add(g * g);
      }
    }
  }
  const int64_t shard_counts[] = {1, 2, 3};
  for (size_t k = 0; k < 3; ++k) {
    const int64_t num_shards = shard_counts[k];
    ExactSum total;
    for (int64_t tensor = 0; tensor < 2; ++tensor) {
      for (int64_t index = 0; index < num_shards; ++index) {
        ParamStore store(
            DType::kF32,
            {.num_shards = num_shards, .shard_index = index, .tensor_size = 2, .tensor_index = tensor});
        add_all(store);
        Tensor sum;
        DeviceMemory memory(*device, [&](Arena& arena) {
          store.Bind(arena, true);
          const int64_t shard = store.segment(0, 0).shard_size(num_shards);
          store.SetShardGrad(0, 0, arena.Persistent("gradients", DType::kF32, {shard}));
          store.SetShardGrad(0, 1, Tensor(nullptr, DType::kF32, {0}));
          sum = arena.Persistent("sum", DType::kI64, {kExactSumElems});
        });
        for (const ParamStore::ShardPiece& piece : store.ShardPieces(0, 0)) {
          const Param& p = store.param(piece.param);
          float* grad = store.ShardGrad(0, 0).as<float>() + piece.shard_begin - piece.param_begin;
          ForEachLocalRun(p.part, piece.param_begin, piece.count,
                          [&](int64_t elem, int64_t local, int64_t n) {
                            for (int64_t j = 0; j < n; ++j)
                              grad[local + j] = static_cast<float>(GradientOf(p, elem + j));
                          });
        }
        AddSquaredNorm(store, device->ops(), sum);
        total.Add(*reinterpret_cast<const ExactSum*>(sum.data));
        if (tensor == 1) of_second[k].Add(*reinterpret_cast<const ExactSum*>(sum.data));
      }
    }
    EXPECT_NEAR(total.ToDouble() / expected.ToDouble(), 1, 1e-13) << num_shards;
    EXPECT_EQ(of_second[k].ToDouble(), of_second[0].ToDouble()) << num_shards;
  }
}
}  // namespace
}  // namespace carousel
