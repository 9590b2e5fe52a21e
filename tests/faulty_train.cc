// A training run in which one rank computes one wrong bit: `carousel train` with a device that fails.
//   faulty_train CONFIG RUN_DIR RANK CALL nan|bit|every [--set ...]
// CALL: which matmul that adds to a gradient of weights, counted from the start of the process.
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>

#include "configs/load.h"
#include "core/base/status_exit_code.h"
#include "launcher/environment.h"
#include "launcher/train/training_run.h"
#include "tests/faulty_device.h"

namespace carousel {
namespace {

int Train(int argc, char** argv) {
  const absl::StatusOr<std::unique_ptr<Environment>> environment = Environment::Start();
  if (!environment.ok()) return ExitCodeOf(environment.status());
  RunOverrides overrides = {.run_dir = argv[2], .for_training = true};
  for (int i = 6; i < argc; ++i) overrides.sets.emplace_back(argv[i]);
  const absl::StatusOr<RunSpec> run = LoadRun(argv[1], overrides);
  absl::Status status = run.status();
  if (run.ok()) {
    const std::string how = argv[5];
    const testing::FaultyDevice::Fault fault = {
        .call = std::atoll(argv[4]), .mask = 1u << 22, .nan = how == "nan", .every_time = how == "every"};
    const bool mine = (*environment)->rank() == std::atoi(argv[3]);
    TrainOptions options;
    options.wrap_device = [&](std::unique_ptr<Device> device) -> std::unique_ptr<Device> {
      if (!mine) return device;
      auto faulty = std::make_unique<testing::FaultyDevice>(std::move(device));
      faulty->Arm(fault);
      return faulty;
    };
    auto training = TrainingRun::Create(*run, options, **environment);
    status = training.status();
    if (training.ok()) status = (*training)->Train();
    if (!status.ok() && (*environment)->rank() == 0) {
      std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
    }
  }
  return (*environment)->Finish(ExitCodeOf(status));
}
}  // namespace
}  // namespace carousel

int main(int argc, char** argv) {
  if (argc < 6) {
    std::fprintf(stderr, "faulty_train CONFIG RUN_DIR RANK CALL nan|bit|every [FIELD=VALUE ...]\n");
    return 64;
  }
  return carousel::Train(argc, argv);
}
