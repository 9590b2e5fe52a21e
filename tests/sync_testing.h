// What the tests of ShardedSync share: a small store with parameters of every placement, gradients that tell
// orders of summation apart, and a rank that goes through steps as a model does, with a fake in its place.
#pragma once
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/base/random.h"
#include "core/device_memory.h"
#include "kernels/make_device.h"
#include "parallel/sharded_sync.h"
#include "tests/mesh_testing.h"

namespace carousel::testing {

// Element `element` of the gradient of parameter `param` that `leaf` gives in `step`, of part `part` of it
// (0: whole, else tokens of a sequence or tensor rank): magnitudes over six decades.
inline double LeafGradient(int64_t step, int64_t leaf, int64_t part, int64_t param, int64_t element) {
  const uint64_t stream = static_cast<uint64_t>(((step * 64 + leaf) * 16 + part) * 16 + param);
  const uint64_t bits = RandomUint64(3, stream, static_cast<uint64_t>(element));
  const double unit = std::ldexp(static_cast<double>(bits >> 11), -52) - 1;  // [-1, 1)
  return std::ldexp(unit, static_cast<int>(bits % 21) - 10);
}

// The value of the tree's root by its definition.
template <class T>
T TreeSum(int64_t num_leaves, int64_t level, int64_t index, const std::vector<T>& leaves) {
  if (level == 0) return leaves[static_cast<size_t>(index)];
  const T left = TreeSum(num_leaves, level - 1, 2 * index, leaves);
  if (((2 * index + 1) << (level - 1)) >= num_leaves) return left;
  return left + TreeSum(num_leaves, level - 1, 2 * index + 1, leaves);
}
template <class T>
T TreeSum(const std::vector<T>& leaves) {
  int64_t level = 0;
  while ((int64_t{1} << level) < static_cast<int64_t>(leaves.size())) ++level;
  return TreeSum(static_cast<int64_t>(leaves.size()), level, 0, leaves);
}

// Five groups as a model of three blocks has them: the first has no vectors, the last no matrices. Rows and
// columns that the tensor axis splits, replicated vectors that need its sum, and one that does not. The
// blocks differ in size.
constexpr int kNumBlocks = 3;
inline void RegisterSyncParams(ParamStore& store) {
  const auto add = [&](const std::string& name, std::vector<int64_t> shape, int group, Placement tensor,
                       Placement activation = kByTokens) {
    store.Register({.name = name,
                    .shape = std::move(shape),
                    .init = {.rule = InitRule::kNormal, .a = 1},
                    .group = group,
                    .tensor = tensor,
                    .tensor_activation = activation});
  };
  add("embedding", {50, 40}, 0, Sharded(0));
  for (int l = 0; l < kNumBlocks; ++l) {
    const std::string block = "block" + std::to_string(l);
    add(block + ".rows", {100 + 100 * l, 20}, l + 1, Sharded(0));
    add(block + ".norm", {20}, l + 1, Replicated());
    add(block + ".columns", {50, 20}, l + 1, Sharded(1), kByFeatures);
    add(block + ".shared", {24}, l + 1, Replicated(), Replicated());
  }
  add("out_norm", {2000}, kNumBlocks + 1, Replicated());
}

// Which parts of a leaf's gradient a rank sees of a parameter: by sequence index and, where the parameter's
// gradient is partial on it, tensor index.
inline bool PartialOnTensor(const Param& param) {
  return MustReduce(param.tensor, GradientPlacement(param.tensor, param.tensor_activation));
}
inline int64_t PartOf(const Param& param, int64_t sequence, int64_t tensor) {
  return sequence * 4 + (PartialOnTensor(param) ? tensor : 0);
}

// The calls of one micro-batch, forward and backward, in a model's order. use(group, what): here the group's
// weights are read; gradients(group): here its gradients are added. tied: the head reads and writes group 0
// as well.
template <class Use, class Gradients>
void CallAsAModel(ParamSync& sync, int64_t leaf, bool tied, const Use& use, const Gradients& gradients) {
  const int head = kNumBlocks + 1;
  sync.BeginMicroBatch(leaf);
  sync.Prefetch(0);
  sync.Prefetch(1);
  sync.Acquire(0);
  use(0, "embedding");
  sync.Release(0);
  for (int group = 1; group < head; ++group) {
    sync.Prefetch(group + 1);
    sync.Acquire(group);
    use(group, "forward " + std::to_string(group));
    sync.Release(group);
  }
  if (tied) sync.Prefetch(0);
  sync.Acquire(head);
  if (tied) sync.Acquire(0);
  sync.Prefetch(head - 1);
  sync.BeginGradients(head);
  if (tied) sync.BeginGradients(0);
  use(head, "head");
  if (tied) use(0, "head with the embedding");
  if (tied) sync.Release(0);
  sync.Release(head);
  gradients(head);
  sync.GradReady(head);
  for (int group = head - 1; group >= 1; --group) {
    if (group > 1) sync.Prefetch(group - 1);
    sync.Acquire(group);
    sync.BeginGradients(group);
    use(group, "backward " + std::to_string(group));
    sync.Release(group);
    gradients(group);
    sync.GradReady(group);
  }
  if (!tied) sync.BeginGradients(0);
  gradients(0);
  sync.GradReady(0);
}

struct RankOptions {
  DType compute = DType::kF32;
  int64_t micro_batches = 1;
  SyncOptions sync = {};
  bool tied = false;  // CallAsAModel
};

// One rank with its own store and memory.
class SyncRank {
 public:
  // device: one of its own on the CPU if null. enqueue: puts work on the device's compute stream; null: runs
  // it. `prepare` may change the store's parameters before anything is bound.
  SyncRank(const Mesh& mesh, const RankOptions& options, Device* device = nullptr,
           std::function<void(std::function<void()>)> enqueue = nullptr,
           const std::function<void(ParamStore&)>& prepare = nullptr)
      : mesh_(mesh),
        options_(options),
        enqueue_(std::move(enqueue)),
        store(options.compute, PartitionOf(mesh)),
        factory_(options.sync) {
    if (device == nullptr) {
      std::string error;
      own_device_ = MakeDevice("cpu", 1, &error);
      CAROUSEL_CHECK_MSG(own_device_ != nullptr, error);
    }
    this->device = device == nullptr ? own_device_.get() : device;
    RegisterSyncParams(store);
    if (prepare) prepare(store);
    sync_ = factory_.Make(store, *this->device, mesh, options.micro_batches);
    memory_ = std::make_unique<DeviceMemory>(*this->device, [&](Arena& arena) {
      store.Bind(arena, true);
      factory_.Bind(*sync_, arena);
    });
    store.Initialize(*this->device, kSeed);
  }

  ShardedSync& sync() { return static_cast<ShardedSync&>(*sync_); }
  const Arena& arena() const { return memory_->arena(); }
  Leaves leaves() const { return LeavesOf(mesh_, options_.micro_batches); }

  // Forward and backward of one micro-batch.
  template <class T>
  void MicroBatch(int64_t step, int64_t leaf) {
    CallAsAModel(
        *sync_, leaf, options_.tied, [&](int group, const std::string& what) { Use(step, group, what); },
        [&](int group) { Gradients<T>(step, leaf, group); });
  }
  // All micro-batches of a step; afterwards ShardGrad is complete on the compute stream.
  template <class T>
  void Step(int64_t step) {
    for (int64_t j = 0; j < leaves().count; ++j) MicroBatch<T>(step, leaves().at(j));
    sync_->FinishStep();
  }
  // As the optimizer: sets this rank's shard of the weights to those of step + 1.
  void Update(int64_t step) {
    for (int group = 0; group < store.num_groups(); ++group) {
      for (int s = 0; s < ParamStore::kNumSegments; ++s) {
        if (store.segment(group, s).size == 0) continue;
        for (const ParamStore::ShardPiece& piece : store.ShardPieces(group, s)) {
          const Tensor weights = store.WeightShard(group, s).Rows(piece.shard_begin, piece.count);
          Do([this, weights, piece, step] { SetWeights(weights, piece.param, piece.param_begin, step + 1); });
        }
      }
      sync_->WeightsUpdated(group);
    }
  }

  // The gradient that this rank's shard should have. sums_over(param, axis): whether the axis is summed over
  // for the parameter, or the rank keeps its own part.
  template <class T, class SumsOver>
  T Expected(int64_t step, int param, int64_t local_element, const SumsOver& sums_over) const {
    const Param& p = store.param(param);
    const int64_t element = WholeElement(p, local_element), M = options_.micro_batches;
    const auto own_or = [&](MeshAxis axis, int64_t index, int64_t own) {
      return sums_over(param, axis) || index == own;
    };
    T sum = 0;
    bool first_tensor = true;
    const int64_t t = PartialOnTensor(p) ? mesh_.tensor.size : 1;
    for (int64_t tensor = 0; tensor < t; ++tensor) {
      if (t > 1 && !own_or(MeshAxis::kTensor, tensor, mesh_.tensor.index)) continue;
      T of_tensor = 0;
      for (int64_t sequence = 0; sequence < mesh_.sequence.size; ++sequence) {
        std::vector<T> values;
        for (int64_t leaf = 0; leaf < M; ++leaf) {
          const int64_t replicate = leaf / (M / mesh_.replicate.size);
          const int64_t shard = leaf % (M / mesh_.replicate.size) % mesh_.shard.size;
          const bool counts = own_or(MeshAxis::kReplicate, replicate, mesh_.replicate.index) &&
                              own_or(MeshAxis::kShard, shard, mesh_.shard.index) &&
                              own_or(MeshAxis::kSequence, sequence, mesh_.sequence.index);
          const int64_t part = PartOf(p, sequence, tensor);
          values.push_back(counts ? static_cast<T>(LeafGradient(step, leaf, part, param, element)) : T(0));
        }
        const T tree = TreeSum(values);
        of_tensor = sequence == 0 ? tree : of_tensor + tree;
      }
      sum = first_tensor ? of_tensor : sum + of_tensor;
      first_tensor = false;
    }
    return sum;
  }
  static bool All(int, MeshAxis) { return true; }

  // Calls fn(param, local element, index in the shard, the shard's gradient) for everything in this rank's
  // shard. Waits for the device.
  template <class Fn>
  void ForEachShardElement(const Fn& fn) {
    device->Synchronize();
    for (int group = 0; group < store.num_groups(); ++group) {
      for (int s = 0; s < ParamStore::kNumSegments; ++s) {
        for (const ParamStore::ShardPiece& piece : store.ShardPieces(group, s)) {
          for (int64_t j = 0; j < piece.count; ++j) {
            fn(piece.param, piece.param_begin + j, piece.shard_begin + j, store.ShardGrad(group, s));
          }
        }
      }
    }
  }
  // This rank's shard holds the expected bits, and zero in the padding. Returns how many elements it has.
  template <class T>
  int64_t CheckShards(int64_t step, const std::string& where) {
    int64_t num_checked = 0, num_nonzero = 0;
    ForEachShardElement([&](int param, int64_t element, int64_t at, Tensor shard) {
      const T expected = Expected<T>(step, param, element, All);
      EXPECT_EQ(shard.as<T>()[at], expected) << where << " " << store.param(param).name << " " << element;
      ++num_checked;
    });
    for (int group = 0; group < store.num_groups(); ++group) {
      for (int s = 0; s < ParamStore::kNumSegments; ++s) {
        const Tensor shard = store.ShardGrad(group, s);
        int64_t used = 0;
        for (const ParamStore::ShardPiece& piece : store.ShardPieces(group, s)) used += piece.count;
        for (int64_t i = used; i < shard.num_elems(); ++i) num_nonzero += shard.as<T>()[i] != 0;
      }
    }
    EXPECT_EQ(num_nonzero, 0) << where << " in the padding";
    return num_checked;
  }
  int64_t num_weights_checked() const { return num_weights_checked_; }

 private:
  static constexpr uint64_t kSeed = 5;
  void Do(std::function<void()> work) { enqueue_ ? enqueue_(std::move(work)) : work(); }
  static int64_t WholeElement(const Param& p, int64_t local) {
    if (p.part.ranks == 1) return local;
    int64_t whole = -1;
    ForEachLocalRun(p.part, local, 1, [&](int64_t elem, int64_t, int64_t) { whole = elem; });
    return whole;
  }

  // Of element `elem` of the whole parameter. Small integers: exact in every dtype.
  static double WeightOf(int param, int64_t elem, int64_t step) {
    return static_cast<double>((elem * 31 + param * 7 + step * 13) % 251);
  }
  void SetWeights(Tensor weights, int param, int64_t begin, int64_t step) const {
    DispatchFloat(weights.dtype, [&]<class W>() {
      for (int64_t j = 0; j < weights.num_elems(); ++j) {
        weights.as<W>()[j] = static_cast<W>(
            static_cast<Wide<W>>(WeightOf(param, WholeElement(store.param(param), begin + j), step)));
      }
    });
  }
  // Compute reads the group's weights: they must be those of this step. In step 0 they are the initial ones.
  void Use(int64_t step, int group, const std::string& what) {
    if (on_use) Do([this, what] { on_use(what); });
    for (int i = 0; i < static_cast<int>(store.params().size()); ++i) {
      if (store.param(i).group != group) continue;
      const Tensor weight = store.Weight(i).Flatten();
      Do([this, weight, i, step] { CheckWeights(weight, i, step); });
    }
  }
  void CheckWeights(Tensor weight, int i, int64_t step) {
    const Param& p = store.param(i);
    int64_t num_wrong = 0;
    std::vector<double> initial(static_cast<size_t>(p.num_elems));
    if (step == 0) InitialValues(p, kSeed, 0, p.num_elems, initial.data());
    DispatchFloat(weight.dtype, [&]<class W>() {
      DispatchFloat(store.wide(), [&]<class Master>() {
        ForEachLocalRun(p.part, 0, p.local_elems, [&](int64_t elem, int64_t local, int64_t n) {
          for (int64_t j = 0; j < n; ++j) {
            const double value =
                step == 0 ? initial[static_cast<size_t>(elem + j)] : WeightOf(i, elem + j, step);
            const W expected = static_cast<W>(static_cast<Wide<W>>(static_cast<Wide<Master>>(value)));
            num_wrong += !(static_cast<Wide<W>>(weight.as<W>()[local + j]) == static_cast<Wide<W>>(expected));
          }
        });
      });
    });
    EXPECT_EQ(num_wrong, 0) << p.name << " in step " << step;
    ++num_weights_checked_;
  }

  // Gradients must read zero (of the first micro-batch where they accumulate), then get the leaf's values.
  template <class T>
  void Gradients(int64_t step, int64_t leaf, int group) {
    const bool zero = options_.sync.reduction == SyncOptions::Reduction::kOrdered || mesh_.shard.size > 1 ||
                      leaf == leaves().first;
    for (int i = 0; i < static_cast<int>(store.params().size()); ++i) {
      if (store.param(i).group != group) continue;
      const Tensor grad = store.Grad(i).Flatten();
      Do([this, grad, i, step, leaf, zero] {
        const Param& p = store.param(i);
        const int64_t part = PartOf(p, mesh_.sequence.index, mesh_.tensor.index);
        int64_t num_nonzero = 0;
        ForEachLocalRun(p.part, 0, p.local_elems, [&](int64_t elem, int64_t local, int64_t n) {
          for (int64_t j = 0; j < n; ++j) {
            T& value = grad.as<T>()[local + j];
            num_nonzero += value != T(0);
            value += static_cast<T>(LeafGradient(step, leaf, part, i, elem + j));
          }
        });
        EXPECT_TRUE(!zero || num_nonzero == 0) << p.name << " leaf " << leaf;
      });
    }
  }

  const Mesh mesh_;
  const RankOptions options_;
  std::function<void(std::function<void()>)> enqueue_;
  std::unique_ptr<Device> own_device_;

 public:
  Device* device = nullptr;
  ParamStore store;
  std::function<void(const std::string&)> on_use;  // told when compute uses a group

 private:
  ShardedSyncFactory factory_;
  std::unique_ptr<ParamSync> sync_;
  std::unique_ptr<DeviceMemory> memory_;
  int64_t num_weights_checked_ = 0;
};
}  // namespace carousel::testing
