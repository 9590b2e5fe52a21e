#include "core/train/no_sync.h"

namespace carousel {
namespace {

class NoSync final : public ParamSync {
 public:
  NoSync(ParamStore& params, Ops& ops) : params_(params), ops_(ops) {}

  void Bind(Arena& arena) { params_.BindGradients(arena); }

  void BeginMicroBatch(int64_t) override {
    // Micro-batches accumulate: only the first one's gradients begin.
    if (!step_begins_) return params_.KeepGradients();
    for (int group = 0; group < params_.num_groups(); ++group) {
      for (int s = 0; s < ParamStore::kNumSegments; ++s) params_.BeginGradients(ops_, group, s);
    }
    step_begins_ = false;
  }
  void Prefetch(int) override {}
  void Acquire(int) override {}
  void Release(int) override {}
  void GradReady(int) override {}
  void FinishStep() override {
    step_begins_ = true;
    if (!digest_.defined()) return;
    for (int group = 0; group < params_.num_groups(); ++group) {
      for (int s = 0; s < ParamStore::kNumSegments; ++s) {
        const Tensor gradients = params_.segment(group, s).grads;
        if (gradients.num_elems() == 0) continue;
        ops_.Digest({.digest = digest_,
                     .x = gradients,
                     .salt = static_cast<uint64_t>(group * ParamStore::kNumSegments + s) << 48});
      }
    }
  }
  void SetDigest(Tensor digest) override { digest_ = digest; }
  void BeginGradients(int) override {}
  void WeightsUpdated(int) override {}
  bool allows_recording(int64_t) const override { return true; }

 private:
  ParamStore& params_;
  Ops& ops_;
  bool step_begins_ = true;
  Tensor digest_;
};
}  // namespace

std::unique_ptr<ParamSync> NoSyncFactory::Make(ParamStore& params, Device& device, const Mesh& mesh,
                                               int64_t) {
  CAROUSEL_CHECK_MSG(mesh.world.size == 1 && params.num_shards() == 1, "NoSync is for one rank");
  return std::make_unique<NoSync>(params, device.ops());
}

void NoSyncFactory::Bind(ParamSync& sync, Arena& arena) { static_cast<NoSync&>(sync).Bind(arena); }
}  // namespace carousel
