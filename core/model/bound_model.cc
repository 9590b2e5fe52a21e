#include "core/model/bound_model.h"

#include <vector>

namespace carousel {
namespace {

// y := x for host tensors of float dtypes and equal element count.
void ConvertHost(Tensor y, Tensor x) {
  CAROUSEL_CHECK_EQ(y.num_elems(), x.num_elems());
  CAROUSEL_CHECK(y.contiguous() && x.contiguous());
  DispatchFloat(x.dtype, [&]<class X>() {
    DispatchFloat(y.dtype, [&]<class Y>() {
      const X* from = x.as<X>();
      Y* to = y.as<Y>();
      for (int64_t j = 0; j < y.num_elems(); ++j) {
        to[j] = static_cast<Y>(static_cast<Wide<Y>>(static_cast<Wide<X>>(from[j])));
      }
    });
  });
}

void CopyOut(Device& device, Tensor host, Tensor from) {
  std::vector<std::byte> bytes(static_cast<size_t>(from.num_bytes()));
  device.CopyToHost(bytes.data(), from.data, from.num_bytes());
  ConvertHost(host, Tensor(bytes.data(), from.dtype, {from.num_elems()}));
}
}  // namespace

BoundModel::BoundModel(const ModelSpec& spec, const Options& options, Device& device)
    : device_(device),
      params_(options.compute, /*num_shards=*/1, /*shard_index=*/0),
      model_(spec, params_, /*decay_embedding=*/false) {
  memory_ = std::make_unique<DeviceMemory>(device, [&](Arena& arena) {
    params_.Bind(arena, /*train=*/false);
    if (options.gradients) params_.BindGradients(arena);
    model_.Bind(arena, device.ops(), options.B, options.T, options.gradients);
  });
}

void BoundModel::SetWeight(int param, Tensor host) {
  const Tensor weight = params_.Weight(param);
  std::vector<std::byte> bytes(static_cast<size_t>(weight.num_bytes()));
  ConvertHost(Tensor(bytes.data(), weight.dtype, {weight.num_elems()}), host);
  device_.CopyToDevice(weight.data, bytes.data(), weight.num_bytes());
}

void BoundModel::GetWeight(int param, Tensor host) const { CopyOut(device_, host, params_.Weight(param)); }
void BoundModel::GetGrad(int param, Tensor host) const { CopyOut(device_, host, params_.Grad(param)); }
}  // namespace carousel
