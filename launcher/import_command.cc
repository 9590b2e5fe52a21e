// `carousel import`: a model of other programs into a run, to train it on.
#include <cstdio>
#include <memory>

#include "absl/strings/str_cat.h"
#include "configs/load.h"
#include "core/base/status_macros.h"
#include "launcher/commands.h"
#include "launcher/imported_run.h"
#include "launcher/model_source.h"
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
  CAROUSEL_ASSIGN_OR_RETURN(
      const std::string checkpoint,
      WriteImportedRun(*source.weights, *run, absl::StrCat(VersionLine(), " | import of ", options.model)));
  std::printf("%s -> %s: %lld parameters; every byte read back and compared\n", source.description.c_str(),
              checkpoint.c_str(), static_cast<long long>(NumParameters(source.spec)));
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
                   "config.json and safetensors")
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

Two kinds of directories are read: that of Hugging Face Transformers (xLSTMForCausalLM), and config.json with
model.safetensors of an xLSTMLMModel of the Python package xlstm, whose config.json has the fields of
dataclasses.asdict(config) and whose sLSTM weights may have the layout of either backend.

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
