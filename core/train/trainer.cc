#include "core/train/trainer.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "core/base/int_math.h"
#include "core/device_memory.h"
#include "core/train/gate_meter.h"
#include "core/train/pass_runner.h"
#include "core/train/replica_audit.h"
#include "core/train/step_sums.h"

namespace carousel {

struct Trainer::Impl {
  Impl(const TrainSpec& train_spec, Device& device_in, const Mesh& mesh_in, ParamSyncFactory& factory)
      : spec(train_spec),
        device(device_in),
        mesh(mesh_in),
        sync_factory(factory),
        params(spec.compute, PartitionOf(mesh)),
        model(spec.model, params, spec.decay_embedding, AxesOf(mesh, spec.sequence_mode)),
        sync(factory.Make(params, device, mesh, spec.micro_batches_per_step)),
        passes(spec, device, mesh, params, model, *sync) {
    CAROUSEL_CHECK(spec.micro_batch > 0 && spec.T > 0 && spec.micro_batches_per_step > 0);
    CAROUSEL_CHECK_MSG(device.host_accessible() || mesh.world.size == 1 || mesh.world.control != nullptr,
                       "ranks on a device whose memory the host cannot read need mesh.world.control");
  }

  // The only place that asks for memory.
  void Bind(Arena& arena) {
    params.Bind(arena, /*train=*/true);
    sync_factory.Bind(*sync, arena);
    passes.Bind(arena);
    sums.Bind(arena, spec.digests);
    if (spec.gate_stats) gates.Bind(arena, model);
    const int64_t S = mesh.sequence.size;
    evaluator.Bind(arena, DivExact(MaxEvalTokens(), S), AxesOf(mesh));
    model.Bind(arena, device.ops(), spec.micro_batch, DivExact(spec.T, S), /*train=*/true,
               DivExact(spec.longest_eval_T, S), passes.num_slots(), spec.gate_stats);
  }

  // All passes of a step and its sums over all ranks.
  struct Ran {
    StepSums::Totals totals;
    std::optional<GateStats> gates;
  };
  Ran Run(int64_t step, BatchSource& source, const std::function<void(std::vector<int64_t>*)>& contribute,
          bool measure_gates);
  Rerun Compare(const StepSums::Digests& first, const StepSums::Digests& second) const;
  int64_t MaxEvalTokens() const { return std::max(spec.micro_batch * spec.T, spec.longest_eval_T); }
  void Allocate() {
    memory = std::make_unique<DeviceMemory>(device, [this](Arena& arena) { Bind(arena); });
  }

  // fn(group, segment, kind, shard) for every shard of state that is not empty; kind: 0 master, 1 m, 2 v.
  template <class Fn>
  void ForEachShard(const Fn& fn) {
    for (int g = 0; g < params.num_groups(); ++g) {
      for (int s = 0; s < ParamStore::kNumSegments; ++s) {
        const ParamStore::Segment& segment = params.segment(g, s);
        if (segment.size == 0) continue;
        fn(g, s, 0, segment.master);
        fn(g, s, 1, segment.m);
        fn(g, s, 2, segment.v);
      }
    }
  }

  const TrainSpec spec;
  Device& device;
  const Mesh mesh;
  ParamSyncFactory& sync_factory;
  ParamStore params;
  LanguageModel model;
  std::unique_ptr<ParamSync> sync;
  StepSums sums;
  GateMeter gates;
  Evaluator evaluator;
  std::unique_ptr<DeviceMemory> memory;
  PassRunner passes;  // its recordings are destroyed before the memory they read

  // Copies of master, m and v for a device whose memory the host cannot touch: [group][segment][kind].
  struct HostShard {
    std::vector<std::byte> bytes[3];
  };
  std::vector<HostShard> host_shards;
};

namespace {

constexpr StateKind kKinds[] = {StateKind::kWeight, StateKind::kAdamM, StateKind::kAdamV};

// Copies on a stream of their own.
class SideStreamCopier final : public StateCopier {
 public:
  explicit SideStreamCopier(Device& device)
      : device_(device),
        compute_(device.ComputeStream()),
        side_(device.MakeStream()),
        updated_(device.MakeEvent()) {}
  void* Allocate(int64_t bytes) override { return device_.AllocateHost(bytes); }
  void Free(void* memory) override { device_.FreeHost(memory); }
  void Begin() override {
    compute_->Record(*updated_);
    side_->Wait(*updated_);
  }
  void Copy(void* host, const void* state, int64_t bytes) override { side_->CopyToHost(host, state, bytes); }
  void Wait() override { side_->Synchronize(); }

 private:
  Device& device_;
  std::unique_ptr<Stream> compute_, side_;
  std::unique_ptr<Event> updated_;
};

// What makes a plan smaller, by what takes the most of it.
std::string WhatToReduce(const Arena& plan, const TrainSpec& spec, const Mesh& mesh) {
  int64_t of_parameters = 0;
  for (const char* category : {"weights", "gathered weights", "optimizer", "gradients", "comm"}) {
    const auto found = plan.bytes_by_category().find(category);
    if (found != plan.bytes_by_category().end()) of_parameters += found->second;
  }
  std::vector<std::string> activations;
  if (spec.micro_batch > 1) activations.push_back("train.micro_batch");
  activations.push_back("data.sequence_length");
  std::string batch = "reduce " + activations[0];
  if (activations.size() > 1) batch += " or " + activations[1];
  if (spec.model.recompute == Recompute::kSave) batch += ", or set model.recompute: RECOMPUTE";
  std::string parameters = "use a smaller model (model.num_blocks, model.embedding_dim)";
  if (mesh.data_size() < spec.micro_batches_per_step)
    parameters += " or more ranks, which share the optimizer";
  const bool batch_first = 2 * of_parameters < plan.total_bytes();
  return (batch_first ? batch + "; or " + parameters : parameters + "; or " + batch) +
         " (`carousel plan` shows where the memory goes)";
}
}  // namespace

ParamPartition PartitionOf(const Mesh& mesh) {
  return {.num_shards = mesh.shard.size * mesh.replicas.size,
          .shard_index = mesh.shard.index * mesh.replicas.size + mesh.replicas.index,
          .weight_shards = mesh.shard.size,
          .tensor_size = mesh.tensor.size,
          .tensor_index = mesh.tensor.index};
}

Trainer::Trainer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Trainer::~Trainer() = default;

Trainer::Trainer(const TrainSpec& spec, Device& device, const Mesh& mesh, ParamSyncFactory& sync_factory)
    : impl_(std::make_unique<Impl>(spec, device, mesh, sync_factory)) {
  impl_->Allocate();
  CAROUSEL_CHECK_MSG(impl_->memory->ok(), "the device has not enough memory");
}

absl::StatusOr<std::unique_ptr<Trainer>> Trainer::Create(const TrainSpec& spec, Device& device,
                                                         const Mesh& mesh, ParamSyncFactory& sync_factory) {
  auto impl = std::make_unique<Impl>(spec, device, mesh, sync_factory);
  impl->Allocate();
  if (!impl->memory->ok()) {
    return absl::ResourceExhaustedError(absl::StrCat(impl->memory->NotEnough("training"), "; ",
                                                     WhatToReduce(impl->memory->arena(), spec, mesh)));
  }
  return std::unique_ptr<Trainer>(new Trainer(std::move(impl)));
}

Arena Trainer::Plan(const TrainSpec& spec, Device& device, const Mesh& mesh, ParamSyncFactory& sync_factory) {
  Impl impl(spec, device, mesh, sync_factory);
  Arena count;
  impl.Bind(count);
  return count;
}

void Trainer::Initialize(uint64_t seed) {
  impl_->host_shards = {};  // of States() that nothing was loaded into
  impl_->params.Initialize(impl_->device, seed);
}

Trainer::Impl::Ran Trainer::Impl::Run(int64_t step, BatchSource& source,
                                      const std::function<void(std::vector<int64_t>*)>& contribute,
                                      bool measure_gates) {
  CAROUSEL_CHECK_MSG(!measure_gates || gates.bound(), "gates are measured with TrainSpec::gate_stats");
  Ops& ops = device.ops();
  sums.Clear(ops);
  if (measure_gates) gates.Clear(ops);
  sync->SetDigest(sums.gradient_digest());

  const int64_t num_targets = passes.Run(step, source, sums.loss(), measure_gates ? gates.sums() : Tensor());
  {
    const OpsRange range(ops, "sum of gradients");
    sync->FinishStep();
    AddSquaredNorm(params, ops, sums.squared_norm());
  }

  // The one reduction of scalars. Every rank gets the same totals and so decides alike.
  std::vector<int64_t> contribution;
  if (contribute) contribute(&contribution);
  Ran ran = {
      .totals = sums.Reduce(device, mesh.world, mesh.speaks_for_data() ? num_targets : 0, contribution),
      .gates = {}};
  if (measure_gates) {
    ran.gates = gates.Collect(device, mesh);
    ran.gates->step = step + 1;
  }
  return ran;
}

// Collective.
Rerun Trainer::Impl::Compare(const StepSums::Digests& first, const StepSums::Digests& second) const {
  const uint8_t mine[] = {first.loss != second.loss, first.gradient != second.gradient,
                          first.norm != second.norm};
  constexpr int64_t kParts = 3;
  std::vector<uint8_t> all(mine, mine + kParts);
  if (mesh.world.size > 1) {
    all.resize(static_cast<size_t>(mesh.world.size * kParts));
    std::vector<uint8_t> own(mine, mine + kParts);
    mesh.world.host()->AllGather(Tensor(all.data(), DType::kU8, {static_cast<int64_t>(all.size())}),
                                 Tensor(own.data(), DType::kU8, {kParts}));
  }
  bool computed_alike = true;  // what every rank gave to the sums
  for (size_t at = 0; at < all.size(); at += kParts) computed_alike &= all[at] + all[at + 1] == 0;
  Rerun rerun;
  for (size_t at = 0; at < all.size(); at += kParts) {
    const Rerun::Difference difference = {.rank = static_cast<int>(at / kParts),
                                          .loss = all[at] != 0,
                                          .gradient = all[at + 1] != 0,
                                          .sum = computed_alike && all[at + 2] != 0};
    if (difference.loss || difference.gradient || difference.sum) rerun.differences.push_back(difference);
  }
  return rerun;
}

StepResult Trainer::Step(int64_t step, BatchSource& source, const StepOptions& options) {
  CAROUSEL_CHECK(options.num_skipped >= 0 && options.num_skipped <= step);
  Impl& t = *impl_;
  Ops& ops = t.device.ops();
  SetProcessStep(step + 1);
  Impl::Ran ran = t.Run(step, source, options.contribute, options.measure_gates);
  const StepSums::Totals& totals = ran.totals;
  StepResult result;
  result.gates = std::move(ran.gates);
  result.lr = options.lr.has_value() ? *options.lr : LearningRate(t.spec.schedule, step);
  result.num_targets = totals.num_targets;
  result.num_non_finite = totals.num_non_finite;
  result.contributed = totals.contributed;
  if (totals.num_targets == 0) {
    result.skipped = true;
    return result;
  }
  const double mean = 1 / static_cast<double>(totals.num_targets);
  result.loss = totals.loss * mean;
  result.grad_norm = std::sqrt(totals.squared_norm) * mean;
  const auto judge = [&] {
    const StepVerdict verdict = options.judge     ? options.judge(result)
                                : result.finite() ? StepVerdict::kUpdate
                                                  : StepVerdict::kSkip;
    CAROUSEL_CHECK_MSG(verdict != StepVerdict::kUpdate || result.finite(), "an update that is not finite");
    return verdict;
  };
  StepVerdict verdict = judge();
  if (verdict == StepVerdict::kRerun) {
    CAROUSEL_CHECK_MSG(t.spec.digests, "a second run needs TrainSpec::digests");
    // Weights, batches and the keys of dropout are the same, so every bit is.
    const Impl::Ran again = t.Run(step, source, {}, /*measure_gates=*/false);
    result.rerun = t.Compare(totals.mine, again.totals.mine);
    verdict = result.rerun->differences.empty() ? judge() : StepVerdict::kSkip;
    CAROUSEL_CHECK_MSG(verdict != StepVerdict::kRerun, "a step is run twice at most");
  }
  if (verdict == StepVerdict::kSkip) {
    result.skipped = true;
    return result;
  }

  // Gradients are sums over targets: divided once, by the global number, and clipped in the same factor.
  const double clip = t.spec.adamw.clip_norm;
  const double clip_scale = clip > 0 ? clip / std::max(clip, result.grad_norm) : 1;
  if (options.before_update) options.before_update();
  const OpsRange range(ops, "AdamW");
  for (int group = 0; group < t.params.num_groups(); ++group) {
    UpdateShards(t.params, ops, group, t.spec.adamw, result.lr, mean * clip_scale,
                 step + 1 - options.num_skipped);
    t.sync->WeightsUpdated(group);
  }
  return result;
}

EvaluationResult Trainer::Evaluate(BatchSource& source, int64_t num_batches,
                                   const std::function<bool()>& should_stop) {
  Impl& t = *impl_;
  return t.evaluator.Evaluate(t.model, t.device, t.sync.get(), t.mesh, source, num_batches, should_stop);
}

int64_t Trainer::max_eval_tokens() const { return impl_->MaxEvalTokens(); }

std::vector<StateSlice> Trainer::States() {
  Impl& t = *impl_;
  t.device.Synchronize();
  if (t.device.host_accessible()) return StatesInPlace();
  t.host_shards.assign(static_cast<size_t>(t.params.num_groups() * ParamStore::kNumSegments), {});
  std::vector<StateSlice> slices;
  t.ForEachShard([&](int group, int segment, int kind, Tensor shard) {
    auto& bytes = t.host_shards[static_cast<size_t>(group * ParamStore::kNumSegments + segment)].bytes[kind];
    bytes.resize(static_cast<size_t>(shard.num_bytes()));
    t.device.CopyToHost(bytes.data(), shard.data, shard.num_bytes());
    shard.data = bytes.data();
    AppendSlices(t.params, group, segment, kKinds[kind], shard, &slices);
  });
  return slices;
}

std::vector<StateSlice> Trainer::StatesInPlace() {
  std::vector<StateSlice> slices;
  impl_->ForEachShard([&](int group, int segment, int kind, const Tensor& shard) {
    AppendSlices(impl_->params, group, segment, kKinds[kind], shard, &slices);
  });
  return slices;
}

std::unique_ptr<StateCopier> Trainer::MakeStateCopier() {
  if (impl_->device.host_accessible()) return nullptr;
  return std::make_unique<SideStreamCopier>(impl_->device);
}

void Trainer::LoadedStates() {
  Impl& t = *impl_;
  if (!t.host_shards.empty()) {
    t.ForEachShard([&](int group, int segment, int kind, const Tensor& shard) {
      const auto& host = t.host_shards[static_cast<size_t>(group * ParamStore::kNumSegments + segment)];
      t.device.CopyToDevice(shard.data, host.bytes[kind].data(), shard.num_bytes());
    });
    t.host_shards = {};
  }
  t.params.CastMasterToWeights(t.device.ops());
  for (int group = 0; group < t.params.num_groups(); ++group) t.sync->WeightsUpdated(group);
}

void Trainer::WaitForWeights() {
  Impl& t = *impl_;
  CAROUSEL_CHECK_MSG(t.mesh.shard.size == 1, "this rank has a part of the weights only");
  for (int group = 0; group < t.params.num_groups(); ++group) {
    t.sync->Acquire(group);
    t.sync->Release(group);
  }
}

absl::Status Trainer::AuditReplicas() {
  return carousel::AuditReplicas(impl_->params, impl_->device, impl_->sync.get(), impl_->mesh);
}

ParamStore& Trainer::params() { return impl_->params; }
LanguageModel& Trainer::model() { return impl_->model; }
const Arena& Trainer::arena() const { return impl_->memory->arena(); }
}  // namespace carousel
