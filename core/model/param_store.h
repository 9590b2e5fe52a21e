// ParamStore: every parameter of a model, its place, and this rank's shard of it.
//
// Layers register parameters when they are constructed. A group is what is gathered and reduced together: 0
// the embedding, 1..L the blocks, L+1 the final norm and head. A group has two segments, each one flat
// buffer:
//   kMatrix: parameters of rank >= 2, weights in the compute dtype;   kVector: rank 1, weights in the wide
//   dtype.
// Within a segment parameters lie in the order of registration without gaps, so that consecutively registered
// matrices of equal row length (q, k, v, o) are also one fused matrix. Each segment is padded with zeros at
// its end so that it splits into num_shards shards of equal size, a multiple of kSquaredNormBlock elements. A
// parameter's offset does not depend on num_shards.
//
// With a tensor axis each rank registers the same parameters and holds its part of those that are split
// (Param::tensor): sizes and offsets here are those of the local parts, which are equal on all its ranks.
//
// Master weights and Adam moments exist for this rank's shard only. Gradients are f32 (f64) for the whole
// segment. Weights exist for the whole segment, or (weight_shards > 1) for a group of shards, the weight
// shard, and as a whole only while a ParamSync shows them.
#pragma once
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/arena.h"
#include "core/comm/placement.h"
#include "core/device.h"
#include "core/model/param_layout.h"

namespace carousel {

enum class InitRule : uint8_t { kZero, kOne, kConstant, kNormal, kUniform, kLinspace, kForgetPowerLaw };

struct ParamInit {
  InitRule rule = InitRule::kZero;
  // kConstant: the value; kNormal: the standard deviation; kUniform: the bound, values lie in [-a, a);
  // kLinspace: the first value; kForgetPowerLaw: the exponent e of 5 - 12 (j / (period-1))^e
  double a = 0;
  double b = 0;        // kLinspace: the last value (one element: a); kNormal: the mean
  int64_t period = 0;  // kLinspace, kForgetPowerLaw: elements until the values repeat, j = element mod
                       // period; 0: the whole parameter
};

struct Param {
  std::string name;            // global, layout-free: "backbone.blocks.0.mlstm_layer.q.weight"
  std::vector<int64_t> shape;  // 1 or 2 dims, row-major [out, in]
  bool decay = false;          // weight decay applies
  ParamInit init = {};
  int group = 0;
  // On the tensor axis: how the parameter lies, and how the activation lies that it meets: the stream's rows
  // are split by tokens, a head's columns by features.
  Placement tensor = Replicated();
  Placement tensor_activation = kByTokens;
  // The layer's Backward makes the gradient with one product, which writes it where nothing is there yet
  // (ParamStore::AddsToGradient). Other gradients begin at zero and are added to.
  bool written = false;
  // Set by registration:
  int segment = 0;        // kMatrix or kVector
  int64_t offset = 0;     // elements from the segment's start
  int64_t num_elems = 0;  // of the whole parameter
  ParamPart part = {};    // what this rank holds
  int64_t local_elems = 0;
  // The axes over whose ranks the gradient must be summed, a bit 1 << MeshAxis each: those on which the
  // parameter is replicated and its gradient partial.
  uint32_t reduce_axes = 0;
  bool reduces_over(MeshAxis axis) const { return (reduce_axes >> static_cast<int>(axis) & 1u) != 0; }
};

// How a store's parameters are spread over ranks.
struct ParamPartition {
  int64_t num_shards = 1, shard_index = 0;  // of the optimizer's state: equal parts of every flat segment
  int64_t weight_shards = 1;                // weights are kept in so many parts; divides num_shards
  int64_t tensor_size = 1, tensor_index = 0;
  int64_t shards_per_weight_shard() const { return num_shards / weight_shards; }
  int64_t weight_shard_index() const { return shard_index / shards_per_weight_shard(); }
};

class ParamStore {
 public:
  static constexpr int kMatrix = 0, kVector = 1, kNumSegments = 2;

  ParamStore(DType compute, int64_t num_shards, int64_t shard_index);
  ParamStore(DType compute, const ParamPartition& partition);

  // Registration. Returns the index by which a layer asks for its tensors. The name is new, group >= 0, dims
  // are positive, the dim that is split divides (CHECKs).
  int Register(Param param);

  int num_groups() const { return static_cast<int>(groups_.size()); }
  const std::vector<Param>& params() const { return params_; }
  const Param& param(int index) const { return params_[static_cast<size_t>(index)]; }
  int Find(const std::string& name) const;  // -1 if there is none
  int64_t num_parameters() const;           // elements of the whole model (of the parameters registered here)
  const ParamPartition& partition() const { return partition_; }
  int64_t num_shards() const { return partition_.num_shards; }
  int64_t shard_index() const { return partition_.shard_index; }
  int64_t tensor_size() const { return partition_.tensor_size; }
  int64_t tensor_index() const { return partition_.tensor_index; }
  // Changes which sums the gradient of a parameter gets: for tests, which must see a missing one.
  void set_reduce_axes(int index, uint32_t axes) { params_[static_cast<size_t>(index)].reduce_axes = axes; }
  DType compute() const { return compute_; }
  DType wide() const { return WideOf(compute_); }

  // Places weights; with `train` also the shards of master, m and v. Gradient buffers belong to the
  // ParamSync, which sets them with SetGradBuffer. Categories: "weights", "optimizer".
  void Bind(Arena& arena, bool train);

  // Views for layers.
  Tensor Weight(int index) const;  // shape of this rank's part
  Tensor Grad(int index) const;    // wide; the current gradient buffer
  // `count` consecutively registered parameters of one group and segment and of equal row length as one
  // tensor: rows are concatenated (rank-1 parameters: elements are).
  Tensor FusedWeight(int first, int count) const;
  Tensor FusedGrad(int first, int count) const;

  // The flat buffers of one segment.
  struct Segment {
    int64_t size = 0;         // elements used by parameters
    int64_t padded_size = 0;  // multiple of num_shards * kSquaredNormBlock
    Tensor weights;           // (padded_size) compute or wide; of several weight shards: set by the ParamSync
    Tensor weight_shard;      // (padded_size / weight_shards) the part that is kept: all of `weights` if 1
    Tensor grads;             // (padded_size) wide; set by SetGradBuffer
    Tensor master, m, v;      // (padded_size / num_shards) wide: this rank's shard
    bool begun = false;       // nothing has been added to `grads` (BeginGradients)
    // Elements between parameters with Param::written, to the end of the padding: [begin, end) of each run.
    std::vector<std::pair<int64_t, int64_t>> unwritten;
    int64_t shard_size(int64_t num_shards) const { return padded_size / num_shards; }
  };
  const Segment& segment(int group, int segment) const {
    return groups_[static_cast<size_t>(group)].segments[segment];
  }
  // Places one gradient buffer per segment (category "gradients") and sets it, for a single rank: it is also
  // the shard's gradient. A ParamSync that needs more calls SetGradBuffer and SetShardGrad itself.
  // REQUIRES: num_shards == 1.
  void BindGradients(Arena& arena);
  // Sets all gradients to zero; every Backward adds to them.
  void ZeroGradients(Ops& ops);
  // A pass begins in the segment's gradient buffer, whatever is in it: sets to zero what no layer writes.
  void BeginGradients(Ops& ops, int group, int segment);
  // Further passes add to what the one after BeginGradients has left.
  void KeepGradients();
  // For a parameter with Param::written: whether Backward adds to its gradient, or writes it.
  bool AddsToGradient(int index) const;
  // Sets the tensor that Weight and FusedWeight view: (padded_size) compute or wide; undefined: none. Only
  // with several weight shards.
  void SetWeightBuffer(int group, int segment, Tensor weights);
  // Sets the tensor that Grad and FusedGrad view: (padded_size) wide. Backward adds to what is in it.
  void SetGradBuffer(int group, int segment, Tensor grads);
  // This rank's shard of the current gradient buffer after ParamSync::FinishStep: (shard size) wide; set by
  // the ParamSync.
  void SetShardGrad(int group, int segment, Tensor grad);
  Tensor ShardGrad(int group, int segment) const;

  // One contiguous piece of one parameter that lies in this rank's shard.
  struct ShardPiece {
    int param = 0;
    int64_t param_begin = 0;  // first element within the local part, row-major
    int64_t shard_begin = 0;  // first element within the shard's tensors
    int64_t count = 0;
  };
  // All pieces of this rank's shard of a segment, in order.
  std::vector<ShardPiece> ShardPieces(int group, int segment) const;

  // Sets master (this rank's shard) and weights (all that are kept) to the initial values: f(seed, name,
  // element) only. m and v are zeroed.
  void Initialize(Device& device, uint64_t seed);
  // How often Initialize has set the weights. Who keeps copies of others' parts compares it.
  int64_t weights_version() const { return weights_version_; }
  // Weights of this rank's shard := master cast (after a load); the caller gathers the others' shards.
  void CastMasterToWeights(Ops& ops);
  // Tensor of the weights that belong to this rank's shard.
  Tensor WeightShard(int group, int segment) const;

 private:
  struct Group {
    Segment segments[kNumSegments];
    Tensor shard_grads[kNumSegments];
  };
  // The part of a flat buffer that `count` consecutive parameters cover, as one tensor.
  Tensor View(int first, int count, bool gradient) const;
  Group& group_at(int group) { return groups_[static_cast<size_t>(group)]; }
  const Group& group_at(int group) const { return groups_[static_cast<size_t>(group)]; }

  DType compute_;
  ParamPartition partition_;
  std::vector<Param> params_;
  std::unordered_map<std::string, int> index_of_name_;
  std::vector<Group> groups_;
  int64_t weights_version_ = 0;
};

// Element values of a parameter's initialisation: out[j] = value of element begin + j. Same for every mesh
// (init.cc).
void InitialValues(const Param& param, uint64_t seed, int64_t begin, int64_t count, double* out);
}  // namespace carousel
