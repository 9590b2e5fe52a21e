#include "core/train/pass_runner.h"

#include "core/base/int_math.h"
#include "core/base/random.h"

namespace carousel {
namespace {

std::vector<Action> ActionsOf(const TrainSpec& spec, const Mesh& mesh, int64_t micro_batches) {
  if (spec.actions) return spec.actions(mesh.pipe.size, mesh.pipe.index, micro_batches);
  CAROUSEL_CHECK_MSG(mesh.pipe.size == 1, "a pipe axis needs a schedule");
  return OneStageActions(micro_batches);
}
}  // namespace

PassRunner::PassRunner(const TrainSpec& spec, Device& device, const Mesh& mesh, ParamStore& params,
                       LanguageModel& model, ParamSync& sync)
    : spec_(spec),
      device_(device),
      params_(params),
      model_(model),
      sync_(sync),
      leaves_(LeavesOf(mesh, spec.micro_batches_per_step)),
      axes_(AxesOf(mesh, spec.sequence_mode)),
      link_(mesh.pipe),
      actions_(ActionsOf(spec, mesh, leaves_.count)) {
  slots_.resize(static_cast<size_t>(MaxInFlight(actions_)));
}

void PassRunner::Bind(Arena& arena) {
  for (Slot& slot : slots_) {
    slot.batch.Bind(arena, DivExact(spec_.micro_batch * spec_.T, axes_.sequence.size), axes_);
  }
}

const LanguageModel::Input& PassRunner::InputOf(int64_t micro) {
  Slot& slot = slots_[static_cast<size_t>(SlotOf(micro))];
  if (slot.micro == micro) return slot.input;
  CAROUSEL_CHECK_MSG(!slot.in_flight, "the schedule has more passes in flight than it has slots");
  const int64_t leaf = leaves_.at(micro);
  source_->Get(step_, leaf, &batch_);
  num_targets_ += batch_.num_targets();
  slot.micro = micro;
  slot.input = slot.batch.Load(device_, batch_);
  slot.input.gate_stats = gate_stats_;
  if (spec_.model.drops()) {
    slot.input.dropout_key = RandomUint64(spec_.dropout_seed, StreamOf("dropout"),
                                          static_cast<uint64_t>(step_ * spec_.micro_batches_per_step + leaf));
  }
  return slot.input;
}

bool PassRunner::MayRecord(const LanguageModel::Input& input, int64_t leaf) const {
  // The ops of every pass of this shape are the same: neither keys of dropout nor the rows of targets are
  // arguments of them, and nothing but ops happens.
  return spec_.graphs && device_.records() && sync_.allows_recording(leaf) && axes_.pipe.size == 1 &&
         axes_.tensor.size == 1 && axes_.sequence.size == 1 && !input.rows.defined() &&
         !input.dropout_key.has_value() && !input.gate_stats.defined() && input.B == spec_.micro_batch &&
         input.T == spec_.T;
}

PassRunner::PassKey PassRunner::KeyOf(const LanguageModel::Input& input) const {
  PassKey key = {.resets = input.resets.defined(), .gradients = {}};
  for (int g = 0; g < params_.num_groups(); ++g) {
    for (int s = 0; s < ParamStore::kNumSegments; ++s) {
      const ParamStore::Segment& segment = params_.segment(g, s);
      key.gradients.emplace_back(segment.grads.data, segment.begun);
    }
  }
  return key;
}

void PassRunner::ForwardBackward(int64_t micro) {
  const int64_t leaf = leaves_.at(micro), slot = SlotOf(micro);
  const LanguageModel::Input& input = InputOf(micro);
  const OpsRange range(device_.ops(), "micro-batch");
  sync_.BeginMicroBatch(leaf);
  if (!MayRecord(input, leaf)) {
    model_.ForwardBackward(device_.ops(), &sync_, input, loss_sum_, slot);
    return;
  }
  for (int group = 0; group < params_.num_groups(); ++group) {
    sync_.Acquire(group);
    sync_.BeginGradients(group);
  }
  std::unique_ptr<Recording>& pass = passes_[KeyOf(input)];
  if (pass == nullptr) pass = device_.MakeRecording();
  // The sync keeps books on the host: it is told after the pass.
  pass->Run([&] { model_.ForwardBackward(device_.ops(), nullptr, input, loss_sum_, slot); });
  for (int group = params_.num_groups(); group-- > 0;) sync_.GradReady(group);
}

// The weights of the next pass may come while this rank waits for its neighbour.
void PassRunner::PrefetchAfter(size_t index) {
  for (size_t i = index + 1; i < actions_.size(); ++i) {
    if (actions_[i].kind == Action::Kind::kForward) return model_.PrefetchForward(sync_);
    if (actions_[i].kind == Action::Kind::kBackward) return model_.PrefetchBackward(sync_);
  }
}

void PassRunner::Exchange(const Action& action) {
  // What is sent first: the input that is read for what is received may take its slot.
  Tensor out, in;
  if (action.kind == Action::Kind::kWithNext) {
    if (action.sends >= 0) out = model_.StreamOut(InputOf(action.sends));
    if (action.receives >= 0) in = model_.StreamGradient(InputOf(action.receives));
    link_.WithNext(out, in);
  } else {
    if (action.sends >= 0) out = model_.StreamGradient(InputOf(action.sends));
    if (action.receives >= 0) in = model_.StreamIn(InputOf(action.receives), SlotOf(action.receives));
    link_.WithPrevious(out, in);
  }
}

int64_t PassRunner::Run(int64_t step, BatchSource& source, Tensor loss_sum, Tensor gate_stats) {
  step_ = step;
  source_ = &source;
  loss_sum_ = loss_sum;
  gate_stats_ = gate_stats;
  num_targets_ = 0;
  for (Slot& slot : slots_) slot.micro = -1;

  for (size_t i = 0; i < actions_.size(); ++i) {
    const Action& action = actions_[i];
    if (action.kind != Action::Kind::kForward && action.kind != Action::Kind::kBackward) {
      PrefetchAfter(i);
      Exchange(action);
      continue;
    }
    const int64_t micro = action.micro;
    const bool forward = action.kind == Action::Kind::kForward;
    if (forward && i + 1 < actions_.size() && actions_[i + 1] == BackwardOf(micro)) {
      ForwardBackward(micro);
      ++i;
      continue;
    }
    const LanguageModel::Input& input = InputOf(micro);
    slots_[static_cast<size_t>(SlotOf(micro))].in_flight = forward;
    if (forward) {
      const OpsRange range(device_.ops(), "forward");
      model_.Forward(device_.ops(), &sync_, input, SlotOf(micro));
    } else {
      const OpsRange range(device_.ops(), "backward");
      sync_.BeginMicroBatch(leaves_.at(micro));
      model_.Backward(device_.ops(), &sync_, input, SlotOf(micro), loss_sum_);
    }
  }
  return num_targets_;
}
}  // namespace carousel
