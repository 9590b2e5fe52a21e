// `carousel generate`: continue a text.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <iostream>
#include <iterator>
#include <memory>

#include "absl/strings/str_cat.h"
#include "checkpoints/file_system.h"
#include "checkpoints/safetensors.h"
#include "core/base/status_macros.h"
#include "core/model/generator.h"
#include "core/text/tokenizer.h"
#include "core/text/utf8.h"
#include "launcher/command_device.h"
#include "launcher/command_line.h"
#include "launcher/commands.h"
#include "launcher/models/model_source.h"

namespace carousel {
namespace {
struct Options {
  std::string model, prompt, prompt_logits, dtype = "f32", device = "cpu";
  int64_t max_tokens = 256, threads = 0;
  double temperature = 0.8, top_p = 1;
  int64_t top_k = 0;
  uint64_t seed = 0;
  bool no_echo = false;
};

double SecondsSince(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

absl::StatusOr<std::string> ReadPrompt(const std::string& prompt) {
  if (prompt != "-") return prompt;
  std::string text((std::istreambuf_iterator<char>(std::cin)), std::istreambuf_iterator<char>());
  if (std::cin.bad()) return absl::UnavailableError("cannot read the prompt from standard input");
  return text;
}

// The prompt as training saw texts: behind the token that starts a document.
absl::StatusOr<std::vector<int32_t>> PromptIds(const ModelSource& source, const std::string& prompt) {
  CAROUSEL_RETURN_IF_ERROR(source.text_is_bytes);
  std::vector<int32_t> ids;
  if (source.tokens.bos >= 0) ids.push_back(static_cast<int32_t>(source.tokens.bos));
  ByteTokenizer().Encode(prompt, &ids);
  if (ids.empty()) {
    return absl::InvalidArgumentError("the prompt is empty and the model has no token that starts a text");
  }
  return ids;
}

// Logits of every token of the prompt as a safetensors file: input_ids (T) and logits (T, V), for comparison
// with other programs.
absl::Status WriteLogits(const std::string& path, const std::vector<int32_t>& ids, int64_t vocab_size,
                         const std::vector<float>& logits) {
  PosixFileSystem files;
  const int64_t T = static_cast<int64_t>(ids.size());
  CAROUSEL_ASSIGN_OR_RETURN(const FileInfo info, files.Stat(path));
  if (info.exists) {
    return absl::AlreadyExistsError(absl::StrCat(path, " exists"));
  }
  CAROUSEL_ASSIGN_OR_RETURN(const SafetensorsLayout layout,
                            PlanSafetensors({{"input_ids", SafetensorsDType::kI32, {T}},
                                             {"logits", SafetensorsDType::kF32, {T, vocab_size}}},
                                            {{"format", "pt"}}));
  CAROUSEL_ASSIGN_OR_RETURN(const std::unique_ptr<SafetensorsWriter> writer,
                            SafetensorsWriter::Create(path, layout, files));
  for (const SafetensorsEntry& entry : layout.tensors) {
    const void* data = entry.name == "logits" ? static_cast<const void*>(logits.data()) : ids.data();
    CAROUSEL_RETURN_IF_ERROR(writer->Append(entry.name, data, entry.num_bytes()));
  }
  return writer->Finish();
}

absl::Status Generate(const Options& options) {
  CAROUSEL_ASSIGN_OR_RETURN(const ModelSource source, OpenModel(options.model));
  CAROUSEL_ASSIGN_OR_RETURN(const std::string prompt, ReadPrompt(options.prompt));
  CAROUSEL_ASSIGN_OR_RETURN(const std::vector<int32_t> ids, PromptIds(source, prompt));
  CAROUSEL_ASSIGN_OR_RETURN(const CommandDevice on, MakeCommandDevice(options.device, options.threads));
  const DType compute = options.dtype == "bf16" ? DType::kBF16 : DType::kF32;
  CAROUSEL_ASSIGN_OR_RETURN(
      const std::unique_ptr<BoundModel> model,
      LoadModel(source, *on.device, compute, 1,
                options.prompt_logits.empty()
                    ? Generator::kPrefillTokens
                    : std::max(Generator::kPrefillTokens, static_cast<int64_t>(ids.size()))));
  if (!options.prompt_logits.empty()) {
    const absl::Status written =
        WriteLogits(options.prompt_logits, ids, source.spec.vocab_size, Logits(*model, ids));
    if (!written.ok()) {
      return absl::Status(written.code(),
                          absl::StrCat(written.message(),
                                       "; --prompt_logits must name a new file where there is room for it"));
    }
  }

  GenerateArgs args = {.prompt = ids,
                       .max_new_tokens = options.max_tokens,
                       .sampling = {.temperature = options.temperature,
                                    .top_k = options.top_k,
                                    .top_p = options.top_p,
                                    .seed = options.seed}};
  // Ids without text are never drawn. The most likely id is taken as it is, as other programs do.
  if (options.temperature > 0) args.sampling.num_allowed_ids = ByteTokenizer::kSize;
  for (const int64_t eos : source.tokens.eos) args.stop_ids.push_back(static_cast<int32_t>(eos));

  const ByteTokenizer tokenizer;
  Utf8Stream text;
  const auto show = [](const std::string& piece) {
    std::fwrite(piece.data(), 1, piece.size(), stdout);
    std::fflush(stdout);
    return std::ferror(stdout) == 0;
  };
  if (!options.no_echo) show(text.Push(prompt));
  Generator generator(model->model(), *on.device);
  const auto start = std::chrono::steady_clock::now();
  double prompt_seconds = 0;  // until the first new token
  int64_t num_tokens = 0;
  bool written = true;
  generator.Generate(args, [&](int32_t id) {
    if (num_tokens++ == 0) prompt_seconds = SecondsSince(start);
    written = show(text.Push(tokenizer.Decode({&id, 1})));
    return written;
  });
  const double seconds = SecondsSince(start) - prompt_seconds;
  show(text.Finish() + "\n");
  if (!written) return absl::UnavailableError("cannot write to standard output");
  // The first token came out of the prompt; the others took one step each.
  if (num_tokens > 1) {
    std::fprintf(stderr, "%s: prompt of %zu tokens in %.3f s, then %.1f tokens/s (%lld tokens)\n",
                 source.description.c_str(), ids.size(), prompt_seconds,
                 static_cast<double>(num_tokens - 1) / seconds, static_cast<long long>(num_tokens));
  } else {
    std::fprintf(stderr, "%s: %lld tokens after a prompt of %zu\n", source.description.c_str(),
                 static_cast<long long>(num_tokens), ids.size());
  }
  return absl::OkStatus();
}
}  // namespace

CLI::App* AddGenerateCommand(CLI::App& app, std::function<int()>* run) {
  CLI::App* command = app.add_subcommand("generate", "Continue a text with a trained model");
  const auto options = std::make_shared<Options>();
  command
      ->add_option("--model", options->model,
                   "Run directory, checkpoint, Hugging Face directory or directory of the package xlstm")
      ->required()
      ->type_name("DIR");
  command
      ->add_option("--prompt", options->prompt,
                   "Text to continue; - reads it from standard input; default: none")
      ->type_name("TEXT");
  command->add_option("--max_tokens", options->max_tokens, "How many tokens to write at most")
      ->capture_default_str()
      ->type_name("N")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 40));
  command
      ->add_option("--temperature", options->temperature,
                   "0 takes the most likely token; 1 samples as the model says")
      ->capture_default_str()
      ->type_name("X")
      ->check(NumberFrom(0.0, 1e6));
  command->add_option("--top_k", options->top_k, "Sample among the K most likely tokens; 0: all")
      ->capture_default_str()
      ->type_name("K")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 31));
  command
      ->add_option("--top_p", options->top_p,
                   "Sample among the fewest tokens that have this probability together")
      ->capture_default_str()
      ->type_name("P")
      ->check(NumberFrom(1e-9, 1.0));
  command->add_option("--seed", options->seed, "Another seed, another text")
      ->capture_default_str()
      ->type_name("N");
  command->add_option("--dtype", options->dtype, "Arithmetic: f32 or bf16")
      ->capture_default_str()
      ->check(CLI::IsMember({"f32", "bf16"}));
  AddDeviceOption(*command, &options->device, "--device,--backend");
  command->add_option("--threads", options->threads, "CPU threads; 0: all cores")
      ->capture_default_str()
      ->type_name("N")
      ->check(CLI::Range(int64_t{0}, int64_t{4096}));
  command
      ->add_option(
          "--prompt_logits", options->prompt_logits,
          "Also write the logits of every token of the prompt, in f32, for comparison with other programs")
      ->type_name("FILE.safetensors");
  command->add_flag("--no_echo", options->no_echo, "Do not print the prompt before its continuation");
  command->footer(
      R"(The text goes to standard output as it is made, the speed to standard error. Memory does not grow with
the length of the text: the prompt is read in pieces, then every token is one step of the recurrence.

Examples:
  carousel generate --model runs/demo --prompt "It is a truth"
  carousel generate --model runs/demo/export --prompt "Emma" --temperature 0 --max_tokens 100
  carousel generate --model runs/demo --prompt - --seed 7 < chapter.txt)");
  command->callback([options, run] {
    *run = [options]() -> int {
      const absl::Status status = Generate(*options);
      return status.ok() ? kExitOk : ReportError(status);
    };
  });
  return command;
}
}  // namespace carousel
