// BoundModel: a language model on one device with memory of its own: for generation, evaluation of exported
// weights, comparison with reference numbers, tests. Training on ranks is core/train/trainer.h.
#pragma once
#include <memory>
#include <string>

#include "core/device_memory.h"
#include "core/model/language_model.h"

namespace carousel {

class BoundModel {
 public:
  struct Options {
    DType compute = DType::kF32;
    int64_t B = 1, T = 256;  // at most B*T tokens in sequences of at most T
    bool gradients = false;  // also bind what ForwardBackward needs, and gradient buffers
  };
  // Weights are zero. ok() is false if the device has not enough memory: nothing else may be called then.
  BoundModel(const ModelSpec& spec, const Options& options, Device& device);

  bool ok() const { return memory_->ok(); }
  int64_t needed_bytes() const { return memory_->needed_bytes(); }
  std::string NotEnough(const std::string& what) const { return memory_->NotEnough(what); }
  ParamStore& params() { return params_; }
  LanguageModel& model() { return model_; }
  Device& device() { return device_; }

  void Initialize(uint64_t seed) { params_.Initialize(device_, seed); }
  void ZeroGradients() { params_.ZeroGradients(device_.ops()); }
  // Copies between a parameter and host memory. `host` is any float dtype with the parameter's element count;
  // values are converted, rounding to nearest even.
  void SetWeight(int param, Tensor host);
  void GetWeight(int param, Tensor host) const;
  void GetGrad(int param, Tensor host) const;

 private:
  Device& device_;
  ParamStore params_;
  LanguageModel model_;
  std::unique_ptr<DeviceMemory> memory_;
};
}  // namespace carousel
