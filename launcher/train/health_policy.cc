#include "launcher/train/health_policy.h"

#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace carousel {
namespace {
constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();
}

HealthPolicy::HealthPolicy(const HealthSpec& spec, const TrainState& state)
    : spec_(spec),
      losses_(state.loss_window),
      grad_norms_(state.grad_norm_window),
      loss_z_(kUnknown),
      grad_norm_z_(kUnknown) {}

void HealthPolicy::Forget() {
  finding_ = Finding::kFine;
  action_ = HealthAction::kNote;
  loss_spiked_ = false;
  loss_z_ = grad_norm_z_ = kUnknown;
}

StepVerdict HealthPolicy::Judge(const StepResult& result) {
  Forget();
  loss_z_ = losses_.Of(result.loss);
  grad_norm_z_ = grad_norms_.Of(result.grad_norm);
  // A score that is not known is no spike: comparisons with NaN are false.
  loss_spiked_ = spec_.spike_z > 0 && loss_z_ > spec_.spike_z &&
                 result.loss - losses_.median() > spec_.spike_percent / 100 * std::abs(losses_.median());
  const bool norm_spiked = spec_.spike_norm_z > 0 && grad_norm_z_ > spec_.spike_norm_z;
  if (!result.finite()) {
    finding_ = Finding::kNotFinite;
    action_ = spec_.on_non_finite;
  } else if (loss_spiked_ || norm_spiked) {
    finding_ = Finding::kSpike;
    action_ = spec_.on_spike;
  } else {
    return StepVerdict::kUpdate;
  }
  if (spec_.rerun && !result.rerun.has_value()) return StepVerdict::kRerun;
  return action_ == HealthAction::kNote ? StepVerdict::kUpdate : StepVerdict::kSkip;
}

std::string HealthPolicy::Describe(const StepResult& result) const {
  const auto above = [](const char* what, double value, double z, const SpikeScore& score) {
    return absl::StrFormat("the %s %.4g is %.1f deviations above %.4g, the median of %d steps", what, value,
                           z, score.median(), score.window().size());
  };
  switch (finding_) {
    case Finding::kFine:
      return "";
    case Finding::kNotFinite:
      return absl::StrCat(result.num_non_finite, " losses or parts of the gradient were not finite");
    case Finding::kSpike:
      break;
  }
  return loss_spiked_ ? above("loss", result.loss, loss_z_, losses_)
                      : above("gradient norm", result.grad_norm, grad_norm_z_, grad_norms_);
}

void HealthPolicy::Remember(const StepResult& result, TrainState* state) {
  if (finding_ == Finding::kFine && !result.skipped) {
    losses_.Add(result.loss);
    grad_norms_.Add(result.grad_norm);
  }
  state->loss_window = losses_.window();
  state->grad_norm_window = grad_norms_.window();
  state->skipped_steps += result.skipped;
  state->skipped_in_row = result.skipped ? state->skipped_in_row + 1 : 0;
  if (result.skipped) state->last_skipped_step = state->step;
}
}  // namespace carousel
