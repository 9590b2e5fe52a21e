// HealthPolicy: what is to be made of a step, by its loss and gradient norm and by those before it, and what
// config::HealthConfig says of such a step. Every rank has one; they see the same numbers and decide alike.
//
//   HealthPolicy policy(run.health, state);
//   options.judge = [&](const StepResult& r) { return policy.Judge(r); };
//   result = trainer.Step(..., options);
//   policy.Remember(result, &state);             // unless the run goes back
//   policy.finding() says what was found, policy.action() what remains to be done
#pragma once
#include <string>

#include "checkpoints/checkpoint.h"
#include "configs/run_spec.h"
#include "core/train/spike_score.h"
#include "core/train/trainer.h"

namespace carousel {

class HealthPolicy {
 public:
  enum class Finding : uint8_t { kFine, kSpike, kNotFinite };

  // Goes on with the windows of `state`.
  explicit HealthPolicy(const HealthSpec& spec = {}, const TrainState& state = {});

  // For StepOptions::judge.
  StepVerdict Judge(const StepResult& result);

  // Of the step that was judged last.
  Finding finding() const { return finding_; }
  double loss_z() const { return loss_z_; }            // NaN: not known
  double grad_norm_z() const { return grad_norm_z_; }  // likewise
  // kNote for a fine step. A step without targets was not judged: call Forget before Trainer::Step.
  HealthAction action() const { return action_; }
  void Forget();
  // "the loss 9.81 is 7.2 deviations above the median 2.31 of the last 64 steps"; empty for a fine step.
  std::string Describe(const StepResult& result) const;

  // The step stands: it becomes part of the windows if it was fine, in `state` too. So does what counts
  // skipped steps. state->step counts this step already.
  void Remember(const StepResult& result, TrainState* state);

 private:
  HealthSpec spec_;
  SpikeScore losses_, grad_norms_;
  Finding finding_ = Finding::kFine;
  HealthAction action_ = HealthAction::kNote;
  bool loss_spiked_ = false;
  double loss_z_, grad_norm_z_;
};
}  // namespace carousel
