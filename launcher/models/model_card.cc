#include "launcher/models/model_card.h"

#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "checkpoints/xlstm_package_config.h"
#include "launcher/train/run_directory.h"
#include "launcher/version.h"

namespace carousel {
namespace {
using Json = nlohmann::json;

struct Losses {
  std::optional<double> train, validation, bits_per_byte;
  int64_t train_step = 0, validation_step = 0;
};

// The last ones up to `step`.
Losses ReadLosses(const std::string& metrics_path, int64_t step) {
  Losses losses;
  std::ifstream in(metrics_path);
  const auto number = [](const Json& object, const char* name) -> std::optional<double> {
    if (!object.is_object() || !object.contains(name) || !object[name].is_number()) return std::nullopt;
    return object[name].get<double>();
  };
  for (std::string line; std::getline(in, line);) {
    const Json json = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!json.is_object()) continue;
    const bool evaluation = json.contains("evaluation");
    const Json& record = evaluation ? json["evaluation"] : json;
    const std::optional<double> at = number(record, "step"), loss = number(record, "loss");
    if (!at.has_value() || !loss.has_value() || *at > static_cast<double>(step)) continue;
    if (evaluation) {
      losses.validation = loss;
      losses.bits_per_byte = number(record, "bits_per_byte");
      losses.validation_step = static_cast<int64_t>(*at);
    } else {
      losses.train = loss;
      losses.train_step = static_cast<int64_t>(*at);
    }
  }
  return losses;
}

std::string TrainingSection(const ModelSource& source) {
  const RunSpec& run = source.run;
  std::string text = "## Training\n\n";
  for (const DataSourceSpec& data : run.train_data) {
    absl::StrAppendFormat(&text, "- data: `%s`, weight %g\n", data.path, data.weight);
  }
  absl::StrAppendFormat(&text, "- steps: %d, tokens: %d, %d sequences of %d tokens per step\n",
                        source.checkpoint.state.step, source.checkpoint.state.consumed_tokens,
                        run.global_batch, run.sequence_length);
  absl::StrAppendFormat(&text, "- AdamW: peak learning rate %g, betas %g and %g, weight decay %g, clip %g\n",
                        run.schedule.peak_lr, run.adamw.beta1, run.adamw.beta2, run.adamw.weight_decay,
                        run.adamw.clip_norm);
  absl::StrAppendFormat(&text, "- arithmetic: %s, master weights f32\n", NameOf(run.compute));
  const char* unit = run.tokenizer == TokenizerKind::kTask ? "answer" : "token";
  const Losses losses = ReadLosses(MetricsPath(source.run_dir), source.checkpoint.state.step);
  if (losses.train.has_value()) {
    absl::StrAppendFormat(&text, "- training loss at step %d: %.4f nats per %s\n", losses.train_step,
                          *losses.train, unit);
  }
  if (losses.validation.has_value()) {
    absl::StrAppendFormat(&text, "- validation loss at step %d: %.4f nats per %s", losses.validation_step,
                          *losses.validation, unit);
    if (losses.bits_per_byte.has_value())
      absl::StrAppendFormat(&text, ", %.4f bits per byte", *losses.bits_per_byte);
    text += "\n";
  }
  absl::StrAppend(&text, "- written by: ", source.checkpoint.writer, "\n\n");
  return text;
}

std::string Architecture(const ModelSource& source, const ModelCardOptions& options) {
  const ModelSpec& spec = source.spec;
  const char* dtype = options.dtype == DType::kBF16 ? "bfloat16" : "float32";
  if (options.format != ExportFormat::kPackage) {
    return absl::StrFormat(
        "An xLSTM language model (large family: mLSTM blocks with gated feed-forward layers), trained and "
        "exported with carousel.\n\n"
        "| parameters | width | blocks | heads | feed-forward | vocabulary | weights |\n"
        "|---|---|---|---|---|---|---|\n| %d | %d | %d | %d | %d | %d | %s |\n\n",
        NumParameters(spec), spec.embedding_dim, spec.num_blocks, spec.num_heads, spec.ffn_dim,
        spec.vocab_size, dtype);
  }
  const int64_t num_slstm = static_cast<int64_t>(spec.slstm_at.size());
  return absl::StrFormat(
      "An xLSTM language model (the blocks of arXiv:2405.04517), trained and exported with carousel.\n\n"
      "| parameters | width | mLSTM blocks | sLSTM blocks | vocabulary | weights |\n"
      "|---|---|---|---|---|---|\n| %d | %d | %d | %d | %d | %s |\n\n",
      NumParameters(spec), spec.embedding_dim, spec.num_blocks - num_slstm, num_slstm, spec.vocab_size,
      dtype);
}

std::string TransformersUse(const std::string& name) {
  std::string text =
      absl::StrCat("## Use\n\n```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n",
                   "model = AutoModelForCausalLM.from_pretrained(\"", name, "\")\n",
                   "tokenizer = AutoTokenizer.from_pretrained(\"", name, "\")\n",
                   "inputs = tokenizer(\"It is a truth\", return_tensors=\"pt\")\n",
                   "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=100)[0], "
                   "skip_special_tokens=True))\n```\n\n");
  absl::StrAppend(
      &text, "- Transformers ", kMinTransformersVersion, " or newer (checked with ", kTransformersVersion,
      "); older versions fail on prompts of 64 tokens and more unless the package `xlstm` is installed.\n",
      "- Batch only prompts of equal length: the model ignores attention masks, so padding enters its "
      "state.\n",
      "- Transformers keeps the recurrent state in the dtype of the weights: with bfloat16 weights its "
      "logits "
      "drift from those of an f32 state.\n");
  return text;
}

std::string NxaiUse(const ModelSource& source, const ModelCardOptions& options) {
  const std::string ids = source.text_is_bytes.ok() ? "[[256, *b\"It is a truth\"]]" : "[[0]]";
  std::string text = absl::StrCat(
      "## Use\n\n```python\nimport torch\n"
      "from xlstm.xlstm_large.from_pretrained import load_from_pretrained\n\n",
      "model = load_from_pretrained(\"", options.name, "\").eval()\n", "tokens = torch.tensor(", ids,
      ")\nlogits, state = model(tokens)\n");
  text += source.text_is_bytes.ok()
              ? "text, state = model.generate(tokens, max_length=100)\n"
                "print(bytes(t for t in text[0].tolist() if t < 256).decode(errors=\"replace\"))\n"
              : "text, state = model.generate(tokens, max_length=100)\n";
  absl::StrAppend(
      &text, "```\n\n- pip install xlstm==", kPackageVersion,
      " mlstm_kernels omegaconf safetensors; checked with that version.\n",
      "- config.yaml names kernels that run everywhere. On an NVIDIA GPU with Triton faster ones can "
      "be chosen: `chunkwise_kernel_name=\"chunkwise--triton_xl_chunk\", "
      "sequence_kernel_name=\"native_sequence__triton\", step_kernel_name=\"triton\"`.\n",
      "- Batch only prompts of equal length: padding would enter the state.\n");
  return text;
}

std::string PackageUse(const ModelSource& source, const ModelCardOptions& options) {
  const std::string ids = source.text_is_bytes.ok() ? "[[256, *b\"It is a truth\"]]" : "[[0]]";
  std::string text = absl::StrCat(
      "## Use\n\n```python\nimport glob, json, torch\nfrom dacite import from_dict\n"
      "from safetensors.torch import load_file\nfrom xlstm import xLSTMLMModel, xLSTMLMModelConfig\n\n",
      "path = \"", options.name, "\"\n",
      "with open(path + \"/config.json\") as file:\n"
      "    model = xLSTMLMModel(from_dict(xLSTMLMModelConfig, json.load(file)))\n"
      "state = {k: v for file in glob.glob(path + \"/*.safetensors\") for k, v in load_file(file).items()}\n"
      "model.load_state_dict(state)\n",
      "logits = model.eval()(torch.tensor(", ids, "))\n```\n\n");
  absl::StrAppend(&text, "- pip install xlstm==", kPackageVersion,
                  " dacite safetensors; checked with that version.\n", "- Inputs of at most ",
                  options.context_length,
                  " tokens, `context_length` in config.json: the package allocates a mask of that size. The "
                  "weights have no such limit; a larger number there is allowed.\n");
  for (const std::string& setting : SettingsThePackageLacks(source.spec)) {
    absl::StrAppend(&text, "- Not in config.json, of use in training only: ", setting, ".\n");
  }
  if (source.spec.slstm_at.empty()) return text;
  absl::StrAppend(&text, "- The sLSTM weights have the layout of the package's backend `",
                  NameOf(options.slstm_backend), "`, and config.json selects it. ");
  if (options.slstm_backend == SlstmBackend::kVanilla) {
    text +=
        "It runs everywhere. The backend `cuda` stores them in another order: export again with "
        "--slstm_backend cuda.\n";
  } else {
    text +=
        "It needs an NVIDIA GPU and compiles its kernels when it is first used. For other machines export "
        "again with --slstm_backend vanilla.\n";
  }
  return text;
}
}  // namespace

std::string ModelCard(const ModelSource& source, const ModelCardOptions& options) {
  const bool transformers = options.format == ExportFormat::kTransformers;
  const bool nxai = options.format == ExportFormat::kNxai;
  std::string text =
      absl::StrCat("---\nlibrary_name: ", transformers ? "transformers" : "xlstm",
                   "\npipeline_tag: text-generation\ntags:\n- xlstm\n---\n\n# ", options.name, "\n\n");
  text += Architecture(source, options);
  if (source.kind == ModelSource::Kind::kRun) {
    text += TrainingSection(source);
  } else {
    absl::StrAppend(&text, "## Training\n\nConverted from ", source.description, ".\n\n");
  }
  text += transformers ? TransformersUse(options.name)
          : nxai       ? NxaiUse(source, options)
                       : PackageUse(source, options);
  if (source.text_is_bytes.ok()) {
    absl::StrAppendFormat(&text,
                          "- The tokens are bytes; 256 starts every text and ends documents%s, 257 is "
                          "padding. Rows of the embedding from 258 on are unused.\n",
                          transformers ? " (the tokenizer adds it)" : "");
  }
  absl::StrAppend(&text, "\nExported by ", VersionLine(),
                  ".\n\n## Licence\n\nNot stated. Whoever publishes this model ",
                  "chooses one, with a view to the licence of the data.\n");
  return text;
}
}  // namespace carousel
