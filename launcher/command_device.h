// Which device a command computes on: --device, with the same words everywhere.
#pragma once
#include <CLI/App.hpp>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "core/device.h"
#include "launcher/environment.h"
#include "launcher/train/run_mesh.h"

namespace carousel {

// What --device takes:
//   cpu      the host, with the threads of this rank
//   cuda     the GPU whose number is this rank's number on its machine
//   cuda:N   GPU N of this machine
//   simt     the code of the GPU, emulated on the host; for checks
// Adds the option; `names` can add older spellings ("--device,--backend").
void AddDeviceOption(CLI::App& command, std::string* device, const std::string& names = "--device");

// --gpu_transport: nccl, staged or auto.
void AddGpuTransportOption(CLI::App& command, RunMesh::Transport* transport);

// This rank's device. threads: for the CPU; 0 for all cores that this rank may use. InvalidArgument, with
// what to do about it, if there is no such device.
absl::StatusOr<std::unique_ptr<Device>> MakeRankDevice(const std::string& name, int64_t threads,
                                                       const Environment& environment);

// The device of a command that computes alone, without ranks.
struct CommandDevice {
  std::unique_ptr<Environment> environment;
  std::unique_ptr<Device> device;  // destroyed before the environment
};

// As MakeRankDevice. InvalidArgument also if the process is one of several ranks: they would all do the same.
absl::StatusOr<CommandDevice> MakeCommandDevice(const std::string& name, int64_t threads);
}  // namespace carousel
