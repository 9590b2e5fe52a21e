// The stabiliser of the mLSTM as the public implementation has it, for comparisons with its numbers.
//
// The mLSTM's output is h_t = u_t / (N_t + eps) with u_t and N_t = max(|a_t|, exp(-m_t)) in units of
// exp(m_t): it depends on the choice of m_t through eps alone. Training here takes m_t = max(F_t + m_{t-1},
// i_t) from m_0 = 0, F_t = log sigmoid(f_t), and holds m constant in backward. The public implementation
// trains with the parallel form, where m_t = max_{j<=t} (F_{j+1} + ... + F_t + i_j): the same recurrence from
// m_0 = -infinity; and its gradients pass through m.
//
// How far apart outputs are: with h_t = U_t / (M_t + eps exp(m_t)) in true units, M_t = max(|A_t|, 1) >= 1,
// the two m_t are equal or the one here is F_1 + ... + F_t <= 0 and the larger one. So the h_t here is that
// of the reference times a factor in [1 - eps, 1], for every token and head.
#pragma once
#include <memory>
#include <vector>

#include "core/device.h"
#include "core/device_memory.h"
#include "core/model/spec.h"
#include "launcher/plan/forwarding_ops.h"

namespace carousel {

// The path through m of one head's T tokens, added to gradients that hold m constant:
// dL/dm_t = -(dh_t.h_t) eps / (N_t + eps), then back through m_t = max(F_t + m_{t-1}, i_t).
struct StabiliserPathArgs {
  double* di;  // (T) +=
  double* df;  // (T) +=
  const double* i;
  const double* f;
  const double* dh_h;         // (T): dh_t.h_t
  const double* denominator;  // (T): N_t, without eps
  int64_t T;
  double m0;  // m before the first token, may be -infinity
  double eps;
};
// Returns what is to be added to the gradient of m0.
double AddStabiliserPath(const StabiliserPathArgs& args);

// An Ops whose mLSTM, with the exponential input gate and from the zero state, is that of the parallel form:
// from m_0 = -infinity and with gradients through m. Everything else is passed on.
class ParallelFormOps final : public ForwardingOps {
 public:
  // For the mLSTM cells of this model on batches of B sequences of T tokens. Places the state and the outputs
  // of one cell on the device, which must outlive this; nothing if the model has no mLSTM. If there is no
  // room, ok() is false and nothing else may be called.
  ParallelFormOps(const ModelSpec& spec, DType compute, int64_t B, int64_t T, Device& device);
  bool ok() const { return memory_->ok(); }
  std::string NotEnough() const { return memory_->NotEnough("the parallel form"); }

  void MlstmForward(const MlstmForwardArgs& a) override;
  void MlstmBackward(const MlstmBackwardArgs& a) override;

  // From now on every MlstmForward also computes the form of training on the same inputs and keeps the
  // largest relative difference of the two h_t over all tokens and heads, one number per call.
  void CompareOutputs(bool on) { compare_ = on; }
  const std::vector<double>& output_differences() const { return output_differences_; }

 private:
  bool Applies(const MlstmShape& shape, const MlstmState& initial) const;

  Device& device_;
  MlstmState start_;  // C = 0, n = 0, m below everything
  Tensor h_, denominator_, m_;
  std::unique_ptr<DeviceMemory> memory_;
  bool compare_ = false;
  std::vector<double> output_differences_;
};
}  // namespace carousel
