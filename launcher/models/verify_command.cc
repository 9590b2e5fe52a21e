// `carousel verify FILE.safetensors`
#include <cstdio>
#include <memory>

#include "core/base/status_macros.h"
#include "launcher/command_device.h"
#include "launcher/commands.h"
#include "launcher/models/verify.h"

namespace carousel {
namespace {
struct Options {
  std::string file, device = "cpu", dtype;
  int64_t chunk_length = 0;
  int64_t threads = 0;
};

DType ParseDType(const std::string& name) {
  return name == "f64" ? DType::kF64 : name == "f32" ? DType::kF32 : DType::kBF16;
}

// True if everything is within its bound.
absl::StatusOr<bool> RunVerify(const Options& options) {
  CAROUSEL_ASSIGN_OR_RETURN(const ReferenceDump dump, ReferenceDump::Open(options.file));
  VerifyOptions verify;
  verify.chunk_length = options.chunk_length;
  if (options.dtype.empty()) {
    CAROUSEL_ASSIGN_OR_RETURN(verify.dtype, DefaultDType(dump));
  } else {
    verify.dtype = ParseDType(options.dtype);
  }
  CAROUSEL_ASSIGN_OR_RETURN(const CommandDevice on, MakeCommandDevice(options.device, options.threads));
  CAROUSEL_ASSIGN_OR_RETURN(const DumpReport report, Verify(dump, verify, *on.device));
  std::fputs(report.ToText().c_str(), stdout);
  return report.ok();
}
}  // namespace

CLI::App* AddVerifyCommand(CLI::App& app, std::function<int()>* run) {
  CLI::App* command = app.add_subcommand("verify", "Compare with the numbers of the public implementation");
  const auto options = std::make_shared<Options>();
  command
      ->add_option("file", options->file,
                   "Reference dump: a cell (mLSTM, sLSTM), a model or a training curve")
      ->required()
      ->type_name("FILE.safetensors");
  AddDeviceOption(*command, &options->device, "--device,--backend");
  command
      ->add_option("--dtype", options->dtype,
                   "f64, f32 or bf16; default: as the dump was computed; curves: f64")
      ->check(CLI::IsMember({"f64", "f32", "bf16"}));
  command
      ->add_option("--chunk_length", options->chunk_length,
                   "L of the mLSTM; default: as the dump says, or 64")
      ->check(CLI::Range(int64_t{1}, int64_t{4096}));
  command->add_option("--threads", options->threads, "CPU threads; 0: all cores")
      ->capture_default_str()
      ->type_name("N")
      ->check(CLI::Range(int64_t{0}, int64_t{4096}));
  command->footer(
      "Prints the relative L2 error of every tensor with its bound and what the bound allows for; exits 0\n"
      "only if all are within theirs. Bounds depend on the kind of dump and on dtypes, never on the "
      "results.\n"
      "Examples:\n"
      "  carousel verify tests/golden/large_a.safetensors\n"
      "  carousel verify tests/golden/v1_mixed.safetensors\n"
      "  carousel verify --device simt tests/golden/slstm_zero_state.safetensors\n"
      "  carousel verify --dtype bf16 --chunk_length 32 tests/golden/mlstm_with_state.safetensors");
  command->callback([options, run] {
    *run = [options]() -> int {
      const absl::StatusOr<bool> ok = RunVerify(*options);
      if (!ok.ok()) return ReportError(ok.status());
      return *ok ? kExitOk : kExitFailure;
    };
  });
  return command;
}
}  // namespace carousel
