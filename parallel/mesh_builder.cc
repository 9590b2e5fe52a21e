#include "parallel/mesh_builder.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/base/int_math.h"

namespace carousel {
namespace {
// The multiple of `unit` that is nearest to value, at least one unit.
int64_t NearestMultiple(int64_t value, int64_t unit) {
  const int64_t below = value / unit * unit;
  const int64_t nearest = value - below <= unit - (value - below) ? below : below + unit;
  return std::max(nearest, unit);
}

// The divisor of n that is nearest to value (the smaller of two).
int64_t NearestDivisor(int64_t n, int64_t value) {
  int64_t best = 1;
  for (const int64_t d : WorldSizesThatFit(n)) {
    if (std::abs(d - value) < std::abs(best - value)) best = d;
  }
  return best;
}
std::string FieldOf(MeshAxis axis) { return absl::StrCat("parallel.", NameOf(axis)); }

// "parallel.shard=2 x parallel.tensor=4", of the axes that are not 1.
std::string Product(const MeshSizes& sizes) {
  std::vector<std::string> factors;
  for (const MeshAxis axis :
       {MeshAxis::kPipe, MeshAxis::kReplicate, MeshAxis::kShard, MeshAxis::kSequence, MeshAxis::kTensor}) {
    if (sizes.of(axis) > 1) factors.push_back(absl::StrCat(FieldOf(axis), "=", sizes.of(axis)));
  }
  return factors.empty() ? "parallel.replicate=1" : absl::StrJoin(factors, " x ");
}

std::string Ranks(int64_t n) { return absl::StrCat(n, n == 1 ? " rank" : " ranks"); }

// "set parallel.pipe to 8 or parallel.shard to 4": single axes whose nearest such value makes the product
// divide the world. Empty: there is none.
std::string ChangesThatFit(const MeshSizes& sizes, int64_t product, int64_t world) {
  std::vector<std::string> changes;
  for (const MeshAxis axis : {MeshAxis::kPipe, MeshAxis::kShard, MeshAxis::kSequence, MeshAxis::kTensor}) {
    const int64_t size = sizes.of(axis), others = product / size;
    if (size == 1 || world % others != 0) continue;
    changes.push_back(absl::StrCat(FieldOf(axis), " to ", NearestDivisor(world / others, size)));
  }
  return changes.empty() ? "" : absl::StrCat("set ", absl::StrJoin(changes, " or "));
}

// The ranks that were started must be the mesh, or a multiple of it if replicate is what is left.
void CheckWorld(const MeshSpec& spec, std::vector<std::string>* violations) {
  MeshSizes sizes = spec.sizes;
  const bool fill = sizes.replicate == 0;
  if (fill) sizes.replicate = 1;
  const int64_t asked = sizes.world();
  if (fill ? spec.world % asked == 0 : spec.world == asked) return;
  const std::string was = spec.world == 1 ? " was started; start " : " were started; start ";
  if (fill) {
    const std::string changes = ChangesThatFit(sizes, asked, spec.world);
    violations->push_back(absl::StrCat(
        Product(sizes), " takes ", Ranks(asked), " and does not fit the ", Ranks(spec.world), " that", was,
        NearestMultiple(spec.world, asked), " (mpirun -np ", NearestMultiple(spec.world, asked), "), or ",
        changes.empty() ? absl::StrCat("change these to a product that divides ", spec.world) : changes));
    return;
  }
  const int64_t others = asked / sizes.replicate;
  violations->push_back(absl::StrCat(
      Product(sizes), " asks for ", Ranks(asked), " but ", spec.world, was, asked, " (mpirun -np ", asked,
      ")",
      spec.world % others == 0
          ? absl::StrCat(" or set parallel.replicate to ", spec.world / others, " or 0 (what is left)")
          : absl::StrCat(" or set parallel.replicate to 0 and start a multiple of ", others)));
}

// Data-parallel ranks share the micro-batches of a step.
void CheckBatch(const MeshSpec& spec, bool sizes_are_good, std::vector<std::string>* violations) {
  for (const auto& [name, value] : {std::pair<const char*, int64_t>{"train.global_batch", spec.global_batch},
                                    std::pair<const char*, int64_t>{"train.micro_batch", spec.micro_batch}}) {
    if (value < 1) violations->push_back(absl::StrCat(name, "=", value, " must be at least 1"));
  }
  if (spec.global_batch < 1 || spec.micro_batch < 1) return;
  if (spec.global_batch % spec.micro_batch != 0) {
    violations->push_back(absl::StrCat(
        "train.micro_batch=", spec.micro_batch, " does not divide train.global_batch=", spec.global_batch,
        "; set train.micro_batch to ", NearestDivisor(spec.global_batch, spec.micro_batch),
        " or train.global_batch to ", NearestMultiple(spec.global_batch, spec.micro_batch)));
    return;
  }
  if (!sizes_are_good || spec.world < 1) return;
  const MeshSizes& sizes = spec.sizes;
  const int64_t others =
      MeshSizes{.pipe = sizes.pipe, .sequence = sizes.sequence, .tensor = sizes.tensor}.world();
  // If the axes do not fit the world: of the world that CheckWorld proposes.
  const int64_t whole =
      MeshSizes{.pipe = sizes.pipe, .shard = sizes.shard, .sequence = sizes.sequence, .tensor = sizes.tensor}
          .world();
  const int64_t ranks = sizes.replicate > 0
                            ? MeshSizes{.replicate = sizes.replicate, .shard = sizes.shard}.world()
                            : NearestMultiple(spec.world, whole) / others;
  const int64_t micro_batches = spec.global_batch / spec.micro_batch;
  if (ranks < 1 || ranks > (int64_t{1} << 30) || micro_batches % ranks == 0) return;
  std::string fix = absl::StrCat(
      "the numbers of ranks that fit are ", absl::StrJoin(WorldSizesThatFit(micro_batches), ", "),
      others > 1 ? absl::StrCat(" (times ", others, " of the other axes)") : "",
      "; or set train.global_batch to ", NearestMultiple(spec.global_batch, spec.micro_batch * ranks));
  // A smaller micro-batch also makes more of them.
  if (spec.global_batch % ranks == 0) {
    const int64_t per_rank = spec.global_batch / ranks;
    int64_t micro_batch = std::min(spec.micro_batch, per_rank);
    while (per_rank % micro_batch != 0) --micro_batch;
    absl::StrAppend(&fix, "; or set train.micro_batch to ", micro_batch,
                    " (which changes how sums are rounded)");
  }
  violations->push_back(absl::StrCat(others > 1 ? "replicate x shard = " : "", ranks,
                                     " ranks cannot share the ", micro_batches,
                                     " micro-batches of a step (train.global_batch=", spec.global_batch,
                                     " / train.micro_batch=", spec.micro_batch, ") evenly; ", fix));
}

// "2 or 4": the divisors of n next to size, below and above.
std::string Nearest(int64_t n, int64_t size) {
  std::vector<int64_t> near;
  for (const int64_t d : WorldSizesThatFit(n)) {
    if (d > size) {
      near.push_back(d);
      break;
    }
    near.assign(1, d);
  }
  return absl::StrJoin(near, " or ");
}

// One number of the model that an axis must divide.
struct Divides {
  const char* field;
  int64_t value;
};
// "parallel.tensor=3 does not divide model.num_heads=4, model.ffn_dim=704; use 2 or 4".
void CheckDivides(const std::string& what, int64_t size, const std::vector<Divides>& numbers,
                  const std::string& otherwise, std::vector<std::string>* violations) {
  std::vector<std::string> wrong;
  int64_t common = 0;
  for (const Divides& number : numbers) {
    common = std::gcd(common, number.value);
    if (number.value % size != 0) wrong.push_back(absl::StrCat(number.field, "=", number.value));
  }
  if (wrong.empty()) return;
  violations->push_back(absl::StrCat(what, "=", size, " does not divide ", absl::StrJoin(wrong, ", "),
                                     "; use ", Nearest(common, size), otherwise));
}

bool HasMlstm(const ModelSpec& m) { return static_cast<int64_t>(m.slstm_at.size()) < m.num_blocks; }
bool HasSlstm(const ModelSpec& m) { return !m.slstm_at.empty(); }

void CheckTensor(const MeshSpec& spec, std::vector<std::string>* violations) {
  const int64_t t = spec.sizes.tensor;
  if (t == 1) return;
  const ModelSpec& m = *spec.model;
  std::vector<Divides> numbers = {{"model.vocab_size", m.vocab_size}};
  if (HasMlstm(m)) numbers.push_back({"model.num_heads", m.num_heads});
  if (HasSlstm(m)) numbers.push_back({"model.slstm_num_heads", m.slstm_num_heads});
  if (m.ffn_dim > 0 && (m.family == Family::kLarge || HasSlstm(m)))
    numbers.push_back({"model.ffn_dim", m.ffn_dim});
  if (m.family == Family::kPaper && HasMlstm(m)) {
    numbers.push_back({"model.inner_dim / model.qkv_block_size", m.qk_dim / m.qkv_block_size});
  }
  CheckDivides("parallel.tensor", t, numbers, "", violations);
}

void CheckSequence(const MeshSpec& spec, std::vector<std::string>* violations) {
  const int64_t S = spec.sizes.sequence, t = spec.sizes.tensor;
  if (S * t == 1) return;
  const ModelSpec& m = *spec.model;
  const auto length = [&](const char* field, int64_t T) {
    if (T % (S * t) == 0) return;
    violations->push_back(
        absl::StrCat(field, "=", T, " is not a multiple of parallel.sequence x parallel.tensor = ", S * t,
                     ", whose ranks share the tokens; use ", NearestMultiple(T, S * t),
                     S > 1 && T % t == 0 ? absl::StrCat(", or parallel.sequence=", Nearest(T / t, S)) : ""));
  };
  length("data.sequence_length", spec.sequence_length);
  if (spec.eval_sequence_length > 0 && spec.eval_sequence_length != spec.sequence_length) {
    length("eval.sequence_length", spec.eval_sequence_length);
  }
  if (S == 1) return;
  if (HasSlstm(m)) {
    CheckDivides("parallel.sequence x parallel.tensor", S * t, {{"model.slstm_num_heads", m.slstm_num_heads}},
                 ": sLSTM blocks exchange tokens for heads, since their recurrence needs every token",
                 violations);
  }
  if (HasMlstm(m) && spec.sequence_mode == SequenceMode::kHeads) {
    CheckDivides("parallel.sequence x parallel.tensor", S * t, {{"model.num_heads", m.num_heads}},
                 ", or parallel.sequence_mode=STATE", violations);
  }
  if (m.family != Family::kPaper || !HasMlstm(m)) return;
  int64_t shortest = spec.sequence_length;
  if (spec.eval_sequence_length > 0) shortest = std::min(shortest, spec.eval_sequence_length);
  if (shortest / S < m.conv_kernel - 1) {
    violations->push_back(absl::StrCat("parallel.sequence=", S, " leaves each rank ", shortest / S, " of ",
                                       shortest, " tokens, fewer than the ", m.conv_kernel - 1,
                                       " that model.conv_kernel=", m.conv_kernel, " looks back; use at most ",
                                       std::max<int64_t>(1, shortest / (m.conv_kernel - 1))));
  }
}

void CheckPipe(const MeshSpec& spec, std::vector<std::string>* violations) {
  const int64_t p = spec.sizes.pipe;
  if (p == 1) return;
  if (p > spec.model->num_blocks) {
    violations->push_back(
        absl::StrCat("parallel.pipe=", p, " is more than model.num_blocks=", spec.model->num_blocks,
                     "; a stage is at least one block: use at most ", spec.model->num_blocks));
  }
  if (spec.model->tie_embeddings) {
    violations->push_back(
        absl::StrCat("parallel.pipe=", p,
                     " cannot cut a model with model.tie_embeddings=true, whose first and last "
                     "stage would share a matrix; use parallel.pipe=1"));
  }
}
}  // namespace

std::vector<int64_t> WorldSizesThatFit(int64_t micro_batches) {
  std::vector<int64_t> small, large;
  for (int64_t d = 1; d * d <= micro_batches; ++d) {
    if (micro_batches % d != 0) continue;
    small.push_back(d);
    if (d * d != micro_batches) large.push_back(micro_batches / d);
  }
  small.insert(small.end(), large.rbegin(), large.rend());
  return small;
}

int64_t MeshSizes::world() const {
  int64_t product = 1;
  for (const int64_t size : {pipe, replicate, shard, sequence, tensor}) {
    if (__builtin_mul_overflow(product, size, &product)) return std::numeric_limits<int64_t>::max();
  }
  return product;
}

int64_t MeshSizes::of(MeshAxis axis) const {
  switch (axis) {
    case MeshAxis::kPipe:
      return pipe;
    case MeshAxis::kReplicate:
      return replicate;
    case MeshAxis::kShard:
      return shard;
    case MeshAxis::kSequence:
      return sequence;
    case MeshAxis::kTensor:
      return tensor;
  }
  return 0;
}

int64_t MeshPlace::of(MeshAxis axis) const {
  return MeshSizes{
      .pipe = pipe, .replicate = replicate, .shard = shard, .sequence = sequence, .tensor = tensor}
      .of(axis);
}

MeshPlace PlaceOf(const MeshSizes& sizes, int64_t rank) {
  CAROUSEL_CHECK(rank >= 0 && rank < sizes.world());
  MeshPlace place;
  const auto take = [&rank](int64_t size) {
    const int64_t index = rank % size;
    rank /= size;
    return index;
  };
  place.tensor = take(sizes.tensor);
  place.sequence = take(sizes.sequence);
  place.shard = take(sizes.shard);
  place.replicate = take(sizes.replicate);
  place.pipe = take(sizes.pipe);
  return place;
}

int64_t RankOf(const MeshSizes& s, const MeshPlace& p) {
  return (((p.pipe * s.replicate + p.replicate) * s.shard + p.shard) * s.sequence + p.sequence) * s.tensor +
         p.tensor;
}

MeshSizes ResolveSizes(const MeshSpec& spec) {
  MeshSizes sizes = spec.sizes;
  if (sizes.replicate == 0) {
    sizes.replicate = DivExact(spec.world, sizes.pipe * sizes.shard * sizes.sequence * sizes.tensor);
  }
  CAROUSEL_CHECK_EQ(sizes.world(), spec.world);
  return sizes;
}

std::unique_ptr<BuiltMesh> BuildMesh(const MeshSizes& sizes, Communicator& world) {
  CAROUSEL_CHECK_EQ(static_cast<int64_t>(world.size()), sizes.world());
  auto built = std::make_unique<BuiltMesh>();
  Mesh& mesh = built->mesh_;
  const MeshPlace place = PlaceOf(sizes, world.rank());
  mesh.world = {
      .size = world.size(), .index = world.rank(), .communicator = world.size() > 1 ? &world : nullptr};
  // The ranks of an axis are those whose places differ in nothing else: equal numbers of the first of them.
  const auto make = [&](Axis* axis, const char* name, int64_t size, int64_t index, const MeshPlace& first) {
    *axis = {.size = size, .index = index};
    if (size == 1) return;
    if (size == sizes.world()) {
      axis->communicator = &world;
      return;
    }
    built->communicators_.push_back(world.Split(static_cast<int>(RankOf(sizes, first))));
    axis->communicator = built->communicators_.back().get();
    axis->communicator->set_name(name);
    CAROUSEL_CHECK_EQ(static_cast<int64_t>(axis->communicator->size()), size);
    CAROUSEL_CHECK_EQ(static_cast<int64_t>(axis->communicator->rank()), index);
  };
  const auto without = [&place](std::initializer_list<int64_t MeshPlace::*> members) {
    MeshPlace first = place;
    for (const auto member : members) first.*member = 0;
    return first;
  };
  make(&mesh.pipe, "pipe", sizes.pipe, place.pipe, without({&MeshPlace::pipe}));
  make(&mesh.replicas, "replicas", sizes.replicate * sizes.sequence,
       place.replicate * sizes.sequence + place.sequence,
       without({&MeshPlace::replicate, &MeshPlace::sequence}));
  make(&mesh.replicate, "replicate", sizes.replicate, place.replicate, without({&MeshPlace::replicate}));
  make(&mesh.shard, "shard", sizes.shard, place.shard, without({&MeshPlace::shard}));
  make(&mesh.sequence, "sequence", sizes.sequence, place.sequence, without({&MeshPlace::sequence}));
  make(&mesh.tensor, "tensor", sizes.tensor, place.tensor, without({&MeshPlace::tensor}));
  return built;
}

std::vector<std::string> MeshViolations(const MeshSpec& spec) {
  std::vector<std::string> violations;
  bool sizes_are_good = true;
  for (const MeshAxis axis :
       {MeshAxis::kPipe, MeshAxis::kReplicate, MeshAxis::kShard, MeshAxis::kSequence, MeshAxis::kTensor}) {
    const int64_t least = axis == MeshAxis::kReplicate ? 0 : 1;  // 0: what is left
    if (spec.sizes.of(axis) >= least) continue;
    violations.push_back(absl::StrCat(FieldOf(axis), "=", spec.sizes.of(axis), " must be at least ", least));
    sizes_are_good = false;
  }
  if (spec.world < 1) {
    violations.push_back(absl::StrCat("world=", spec.world, ": at least one rank is needed"));
  }
  if (sizes_are_good && spec.world >= 1) CheckWorld(spec, &violations);
  CheckBatch(spec, sizes_are_good, &violations);
  if (sizes_are_good && spec.model != nullptr) {
    CheckTensor(spec, &violations);
    CheckSequence(spec, &violations);
    CheckPipe(spec, &violations);
  }
  return violations;
}

absl::Status ValidateMesh(const MeshSpec& spec) {
  const std::vector<std::string> violations = MeshViolations(spec);
  if (violations.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrJoin(violations, "\n"));
}

absl::StatusOr<std::unique_ptr<BuiltMesh>> BuildMesh(const MeshSpec& spec, Communicator& world) {
  CAROUSEL_CHECK_EQ(static_cast<int64_t>(world.size()), spec.world);
  if (absl::Status status = ValidateMesh(spec); !status.ok()) return status;
  return BuildMesh(ResolveSizes(spec), world);
}
}  // namespace carousel
