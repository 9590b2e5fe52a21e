#include "core/train/no_sync.h"

namespace carousel {
namespace {

class NoSync final : public ParamSync {
 public:
  NoSync(ParamStore& params, Ops& ops) : params_(params), ops_(ops) {}

  void Bind(Arena& arena) { params_.BindGradients(arena); }

  void BeginMicroBatch(int64_t) override {
    if (step_begins_) params_.ZeroGradients(ops_);
    step_begins_ = false;
  }
  void Prefetch(int) override {}
  void Acquire(int) override {}
  void Release(int) override {}
  void GradReady(int) override {}
  void FinishStep() override { step_begins_ = true; }
  void GatherWeights() override {}
  bool allows_recording() const override { return true; }

 private:
  ParamStore& params_;
  Ops& ops_;
  bool step_begins_ = true;
};
}  // namespace

std::unique_ptr<ParamSync> NoSyncFactory::Make(ParamStore& params, Ops& ops, const Axis& data, int64_t) {
  CAROUSEL_CHECK_MSG(data.size == 1 && params.num_shards() == 1, "NoSync is for one rank");
  return std::make_unique<NoSync>(params, ops);
}

void NoSyncFactory::Bind(ParamSync& sync, Arena& arena) { static_cast<NoSync&>(sync).Bind(arena); }
}  // namespace carousel
