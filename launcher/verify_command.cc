// `carousel verify FILE.safetensors`
#include <cstdio>
#include <memory>

#include "absl/strings/str_cat.h"
#include "kernels/make_device.h"
#include "launcher/commands.h"
#include "launcher/environment.h"
#include "launcher/verify.h"

namespace carousel {
namespace {
struct Options {
  std::string file, backend = "cpu", dtype;
  int64_t chunk_length = 0;
  int threads = 0;
};

absl::StatusOr<bool> RunVerify(const Options& options) {
  absl::StatusOr<ReferenceDump> dump = ReferenceDump::Open(options.file);
  if (!dump.ok()) return dump.status();
  VerifyOptions verify;
  verify.chunk_length = options.chunk_length;
  if (options.dtype.empty()) {
    const absl::StatusOr<DType> dtype = DTypeOfDump(*dump);
    if (!dtype.ok()) return dtype.status();
    verify.dtype = *dtype;
  } else {
    verify.dtype = options.dtype == "f64" ? DType::kF64 : options.dtype == "f32" ? DType::kF32 : DType::kBF16;
  }
  std::string error;
  const std::unique_ptr<Device> device = MakeDevice(options.backend, options.threads, &error);
  if (device == nullptr)
    return absl::InvalidArgumentError(absl::StrCat("--backend ", options.backend, ": ", error));
  const absl::StatusOr<DumpReport> report = Verify(*dump, verify, *device);
  if (!report.ok()) return report.status();
  std::fputs(report->ToText().c_str(), stdout);
  return report->ok();
}
}  // namespace

CLI::App* AddVerifyCommand(CLI::App& app, std::function<int()>* run) {
  CLI::App* command = app.add_subcommand("verify", "Compare with the numbers of the public implementation");
  auto options = std::make_shared<Options>();
  command->add_option("file", options->file, "Reference dump: an mLSTM cell, a model or a training curve")
      ->required()
      ->type_name("FILE.safetensors");
  command->add_option("--backend", options->backend, "Where to compute: cpu, or cuda:N")
      ->capture_default_str();
  command->add_option("--dtype", options->dtype, "f64, f32 or bf16; default: as the dump was computed")
      ->check(CLI::IsMember({"f64", "f32", "bf16"}));
  command
      ->add_option("--chunk_length", options->chunk_length,
                   "L of the mLSTM; default: as the dump says, or 64")
      ->check(CLI::Range(int64_t{1}, int64_t{4096}));
  command->add_option("--threads", options->threads, "CPU threads; 0: all cores")
      ->check(CLI::NonNegativeNumber);
  command->footer(
      "Prints the relative L2 error of every tensor with its bound; exits 0 only if all are within theirs.\n"
      "Examples:\n"
      "  carousel verify tests/golden/large_a.safetensors\n"
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
