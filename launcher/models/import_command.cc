// `carousel import`: a model of other programs into a run, to train it on.
#include <cstdio>
#include <memory>

#include "absl/strings/str_cat.h"
#include "configs/load.h"
#include "core/base/status_macros.h"
#include "launcher/commands.h"
#include "launcher/models/imported_run.h"
#include "launcher/models/model_source.h"
#include "launcher/progress_bar.h"
#include "launcher/version.h"

namespace carousel {
namespace {
struct Options {
  std::string model, out;
  ConfigOptions config;
};

absl::Status Import(const Options& options) {
  CAROUSEL_ASSIGN_OR_RETURN(const ModelSource source, OpenModel(options.model));
  if (source.kind == ModelSource::Kind::kRun) {
    return absl::InvalidArgumentError(
        absl::StrCat(options.model,
                     " is a run of ours; go on with `carousel train --run_dir`, or start another run "
                     "from its weights with checkpoint.initial_weights"));
  }
  const RunOverrides overrides{.sets = options.config.sets, .run_dir = options.out};
  const bool has_config = !options.config.config.empty();
  const std::string own_config = ConfigForModel(source.spec, source.text_is_bytes.ok(), source.hints);
  absl::StatusOr<RunSpec> run = has_config
                                    ? LoadRun(options.config.config, overrides)
                                    : LoadRunFromText(own_config, "the config of the model", overrides);
  if (!run.ok()) return run.status();
  // What the model does not say stays open in the file, so that it is derived from what is added to it.
  if (!has_config && options.config.sets.empty()) run->resolved_text = own_config;
  CAROUSEL_RETURN_IF_ERROR(CheckSameModel(source.spec, *run));
  std::unique_ptr<ProgressBar> bar;
  std::string bar_part;
  const auto progress = [&](const char* part, int64_t done, int64_t total) {
    if (bar == nullptr || bar_part != part) {
      bar.reset();  // erases its line
      bar = std::make_unique<ProgressBar>(bar_part = part);
    }
    bar->Show(done, total);
  };
  const absl::StatusOr<std::string> checkpoint = WriteImportedRun(
      *source.weights, *run, absl::StrCat(VersionLine(), " | import of ", options.model), progress);
  bar.reset();
  CAROUSEL_RETURN_IF_ERROR(checkpoint.status());
  std::printf("%s -> %s: %lld parameters; every byte read back, digests compared\n",
              source.description.c_str(), checkpoint->c_str(),
              static_cast<long long>(NumParameters(source.spec)));
  if (!source.text_is_bytes.ok() && run->tokenizer == TokenizerKind::kNone) {
    std::printf(
        "its text is not known to be bytes, so the run has data.tokenizer: NONE (token files made "
        "elsewhere): "
        "%s\n",
        std::string(source.text_is_bytes.message()).c_str());
  }
  const std::string config = absl::StrCat(options.out, "/config.textproto");
  if (!has_config) {
    std::printf(
        "next: copy %s, add data, schedule and steps, keep the model section, then\n"
        "  carousel train --config COPY --run_dir %s --accept_change\n",
        config.c_str(), options.out.c_str());
  } else {
    std::printf("next:\n  carousel train --config %s --run_dir %s\n", config.c_str(), options.out.c_str());
  }
  return absl::OkStatus();
}
}  // namespace

CLI::App* AddImportCommand(CLI::App& app, std::function<int()>* run) {
  CLI::App* command =
      app.add_subcommand("import", "Make a run from a model of another program, to train it on");
  const auto options = std::make_shared<Options>();
  command
      ->add_option("--model", options->model,
                   "Directory of Hugging Face Transformers or of the package xlstm: "
                   "config.json or config.yaml, and safetensors")
      ->required()
      ->type_name("DIR");
  command->add_option("--out", options->out, "Run directory to make")->required()->type_name("DIR");
  command
      ->add_option(
          "--config", options->config.config,
          "Config to train with; its model section must describe the model. Default: the model's own "
          "section, all else default")
      ->type_name("FILE");
  command
      ->add_option("--set", options->config.sets,
                   "Set a field of the config, e.g. train.steps=500; may be repeated")
      ->type_name("FIELD=VALUE")
      ->allow_extra_args(false);
  command->footer(
      R"(Writes a checkpoint of step 0 with the model's weights and zero optimizer moments. Training then goes on
from it as from any other checkpoint. Weights may be F32, BF16 or F16, in one file or several, separate or
fused; a setting of the model that this program cannot honour is an error.

Three kinds of directories are read, and told apart by their config:
  hf     Hugging Face Transformers (xLSTMForCausalLM): config.json; model.safetensors, or shards with an index
  nxai   xLSTMLarge of the Python package xlstm: config.yaml; model.safetensors, or model_0.safetensors,
         model_1.safetensors and so on
  xlstm  xLSTMLMModel of that package: config.json or config.yaml with the fields of
         dataclasses.asdict(config); the layout of sLSTM weights may be that of either backend

Tensors stream from the directory to the checkpoint in blocks: memory does not grow with the model. At the end
every byte is read back, and the digests of all tensors are compared with those of the directory.

To start from such a directory without copying it, set checkpoint.initial_weights in a config instead.

Examples:
  carousel import --model exported --out runs/continued --config configs/demo_bytes.textproto
  carousel import --model exported --out runs/continued)");
  command->callback([options, run] {
    *run = [options]() -> int {
      const absl::Status status = Import(*options);
      return status.ok() ? kExitOk : ReportError(status);
    };
  });
  return command;
}
}  // namespace carousel
