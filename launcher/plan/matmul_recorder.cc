#include "launcher/plan/matmul_recorder.h"

#include "launcher/plan/forwarding_ops.h"

namespace carousel {

class MatmulRecorder::RecordingOps final : public ForwardingOps {
 public:
  using ForwardingOps::ForwardingOps;

  void Matmul(const MatmulArgs& a) override {
    if (recording) calls.push_back(a);
    ops_.Matmul(a);
  }
  void Replay() {
    for (const MatmulArgs& a : calls) ops_.Matmul(a);
  }

  bool recording = false;
  std::vector<MatmulArgs> calls;
};

class MatmulRecorder::WatchedRecording final : public Recording {
 public:
  WatchedRecording(Device& device, const RecordingOps& ops) : recording_(device.MakeRecording()), ops_(ops) {}
  void Run(const std::function<void()>& enqueue) override {
    if (ops_.recording) {
      enqueue();
    } else {
      recording_->Run(enqueue);
    }
  }

 private:
  std::unique_ptr<Recording> recording_;
  const RecordingOps& ops_;
};

MatmulRecorder::MatmulRecorder(Device& device)
    : device_(device), ops_(std::make_unique<RecordingOps>(device.ops())) {}
MatmulRecorder::~MatmulRecorder() = default;

Ops& MatmulRecorder::ops() { return *ops_; }
std::unique_ptr<Recording> MatmulRecorder::MakeRecording() {
  return std::make_unique<WatchedRecording>(device_, *ops_);
}
void MatmulRecorder::Record(bool on) { ops_->recording = on; }
const std::vector<MatmulArgs>& MatmulRecorder::calls() const { return ops_->calls; }

double MatmulRecorder::flops() const {
  double flops = 0;
  for (const MatmulArgs& a : ops_->calls) {
    const int64_t K = a.transpose_a ? a.a.dim[0] : a.a.dim[1];
    flops += 2.0 * static_cast<double>(a.c.dim[0]) * static_cast<double>(a.c.dim[1]) * static_cast<double>(K);
  }
  return flops;
}

void MatmulRecorder::Replay() { ops_->Replay(); }
}  // namespace carousel
