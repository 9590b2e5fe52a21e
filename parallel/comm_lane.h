// CommLane: the queue in which a sync puts its exchanges: the mesh's side stream, so that they run beside the
// computation, or the compute stream. There everything is in order, and the waits below are nothing.
#pragma once
#include <memory>

#include "core/comm/mesh.h"
#include "core/device.h"

namespace carousel {

class CommLane {
 public:
  // The side stream is used if every axis of several ranks that shards of parameters cross (shard and
  // replicas) has a background communicator for it. device: null where nothing is enqueued (counting).
  CommLane(Device* device, const Mesh& mesh) {
    const auto side_ready = [](const Axis& axis) { return axis.size == 1 || axis.background != nullptr; };
    ops_ = device == nullptr ? nullptr : &device->ops();
    if (device == nullptr || mesh.side == nullptr) return;
    if (!side_ready(mesh.shard) || !side_ready(mesh.replicas)) return;
    device_ = device;
    side_ = mesh.side;
    ops_ = &side_->ops();
    compute_ = device->ComputeStream();
    computed_ = device->MakeEvent();
  }

  // Enqueues here; null without a device.
  Ops* ops() const { return ops_; }
  // The ranks of an axis, with calls ordered by this lane.
  Communicator& of(const Axis& axis) const { return side_ == nullptr ? *axis.communicator : *axis.side(); }
  bool beside_compute() const { return side_ != nullptr; }

  // What is put here from now on begins after all that the compute stream has now.
  void FollowCompute() {
    if (side_ == nullptr) return;
    compute_->Record(*computed_);
    side_->Wait(*computed_);
  }

  // A place in either queue for the other one to wait for. Null where there is only one.
  using Mark = std::unique_ptr<Event>;
  Mark MakeMark() const { return side_ == nullptr ? nullptr : device_->MakeEvent(); }
  void SetHere(const Mark& mark) {
    if (side_ != nullptr) side_->Record(*mark);
  }
  void SetInCompute(const Mark& mark) {
    if (side_ != nullptr) compute_->Record(*mark);
  }
  // Waiting for a mark that was never set is nothing.
  void WaitHere(const Mark& mark) {
    if (side_ != nullptr) side_->Wait(*mark);
  }
  void WaitInCompute(const Mark& mark) {
    if (side_ != nullptr) compute_->Wait(*mark);
  }

 private:
  Device* device_ = nullptr;
  Ops* ops_ = nullptr;
  Stream* side_ = nullptr;  // null: there is only the compute stream
  std::unique_ptr<Stream> compute_;
  std::unique_ptr<Event> computed_;
};
}  // namespace carousel
