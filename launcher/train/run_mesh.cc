#include "launcher/train/run_mesh.h"

#include "core/base/status_macros.h"
#include "parallel/nccl_communicator.h"
#include "parallel/staged_communicator.h"

namespace carousel {
namespace {
constexpr Axis Mesh::*kAxes[] = {&Mesh::pipe,   &Mesh::replicate, &Mesh::shard, &Mesh::sequence,
                                 &Mesh::tensor, &Mesh::replicas,  &Mesh::world};
}  // namespace

absl::StatusOr<std::unique_ptr<RunMesh>> RunMesh::Connect(const MeshSizes& sizes, Transport transport,
                                                          Communicator& world, Device& device,
                                                          double call_seconds) {
  std::unique_ptr<RunMesh> self(new RunMesh());
  self->host_ = BuildMesh(sizes, world);
  self->mesh_ = self->host_->mesh();
  if (device.host_accessible() || world.size() == 1) return self;

  if (transport == Transport::kNccl || (transport == Transport::kAuto && HasNccl())) {
    self->side_stream_ = device.MakeStream();
    const NcclOptions options{.timeout_seconds = call_seconds};
    CAROUSEL_ASSIGN_OR_RETURN(self->device_world_, MakeNcclCommunicator(world, device, options));
    NcclOptions beside = options;
    beside.stream = self->side_stream_.get();
    CAROUSEL_ASSIGN_OR_RETURN(self->side_world_, MakeNcclCommunicator(world, device, beside));
    self->device_world_->set_name("world");
    self->side_world_->set_name("world");
    self->side_ = BuildMesh(sizes, *self->side_world_);
    self->mesh_.side = self->side_stream_.get();
  } else {
    self->device_world_ = std::make_unique<StagedCommunicator>(world, device);
  }
  self->device_ = BuildMesh(sizes, *self->device_world_);
  for (const auto axis : kAxes) {
    Axis& joined = self->mesh_.*axis;
    joined.control = joined.communicator;
    joined.communicator = (self->device_->mesh().*axis).communicator;
    if (self->side_ != nullptr) joined.background = (self->side_->mesh().*axis).communicator;
  }
  return self;
}
}  // namespace carousel
