// RunMesh: the ranks of a run along the axes of its mesh, with communicators for the memory of its device.
//   tensors in host memory        the environment's world, split along the axes
//   on GPUs, one rank each        NCCL, split in the same way: once ordered with the compute stream, and once
//                                 with a stream of its own, for what runs beside the computation
//   on GPUs or emulated ones      through host memory and the host's communicators (staged): where the
//                                 program has no NCCL, or where ranks share a GPU
#pragma once
#include <memory>

#include "absl/status/statusor.h"
#include "core/comm/mesh.h"
#include "core/device.h"
#include "parallel/mesh_builder.h"

namespace carousel {

class RunMesh {
 public:
  enum class Transport : uint8_t { kAuto, kNccl, kStaged };  // kAuto: NCCL where the program has it
  // Collective over `world`; the same status on every rank. world and device must outlive the result. A call
  // of NCCL that takes longer than `call_seconds` ends the job. REQUIRES: sizes.world() == world.size().
  static absl::StatusOr<std::unique_ptr<RunMesh>> Connect(const MeshSizes& sizes, Transport transport,
                                                          Communicator& world, Device& device,
                                                          double call_seconds = 1800);
  const Mesh& mesh() const { return mesh_; }

 private:
  RunMesh() = default;
  // Destroyed from the last to the first.
  std::unique_ptr<BuiltMesh> host_;
  std::unique_ptr<Stream> side_stream_;
  std::unique_ptr<Communicator> device_world_, side_world_;
  std::unique_ptr<BuiltMesh> device_, side_;
  Mesh mesh_;
};
}  // namespace carousel
