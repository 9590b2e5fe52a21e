#include "launcher/command_device.h"

#include "absl/strings/str_cat.h"
#include "core/base/status_macros.h"
#include "kernels/make_device.h"

namespace carousel {

void AddDeviceOption(CLI::App& command, std::string* device, const std::string& names) {
  command
      .add_option(
          names, *device,
          "Where to compute: cpu; cuda, the GPU with this rank's number on its machine; cuda:N; or simt, "
          "the GPU's code emulated on the host, for checks")
      ->capture_default_str()
      ->type_name("NAME");
}

void AddGpuTransportOption(CLI::App& command, RunMesh::Transport* transport) {
  command
      .add_option_function<std::string>(
          "--gpu_transport",
          [transport](const std::string& name) {
            *transport = name == "nccl"     ? RunMesh::Transport::kNccl
                         : name == "staged" ? RunMesh::Transport::kStaged
                                            : RunMesh::Transport::kAuto;
          },
          "How tensors travel between GPUs: nccl; staged, through host memory and MPI, slow, also for "
          "ranks that share a GPU; auto, NCCL if the program has it")
      ->check(CLI::IsMember({"auto", "nccl", "staged"}))
      ->type_name("NAME");
}

absl::StatusOr<std::unique_ptr<Device>> MakeRankDevice(const std::string& name, int64_t threads,
                                                       const Environment& environment) {
  if (threads <= 0) threads = environment.default_threads();
  const std::string mine = name == "cuda" ? absl::StrCat("cuda:", environment.local_rank()) : name;
  std::string error;
  std::unique_ptr<Device> device = MakeDevice(mine, static_cast<int>(threads), &error);
  if (device != nullptr) return device;
  if (name == "cuda" && environment.local_rank() > 0) {
    absl::StrAppend(
        &error, "; with --device cuda each rank of a machine takes a GPU of its own (rank ",
        environment.local_rank(), " of ", environment.local_size(), " on ", environment.host(),
        "): start as many ranks as there are GPUs, or give cuda:0 if the launcher shows each rank only "
        "its own");
  }
  return absl::InvalidArgumentError(absl::StrCat("--device ", name, ": ", error));
}

absl::StatusOr<CommandDevice> MakeCommandDevice(const std::string& name, int64_t threads) {
  CommandDevice result;
  CAROUSEL_ASSIGN_OR_RETURN(result.environment, Environment::Start());
  if (result.environment->size() > 1) {
    return absl::InvalidArgumentError(absl::StrCat("this command runs alone, not as one of ",
                                                   result.environment->size(),
                                                   " ranks; start it without mpirun"));
  }
  CAROUSEL_ASSIGN_OR_RETURN(result.device, MakeRankDevice(name, threads, *result.environment));
  return result;
}
}  // namespace carousel
