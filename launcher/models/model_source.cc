#include "launcher/models/model_source.h"

#include <algorithm>
#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "checkpoints/checkpoint.h"
#include "checkpoints/checkpoint_tensors.h"
#include "checkpoints/file_system.h"
#include "checkpoints/hf_import.h"
#include "checkpoints/hf_names.h"
#include "checkpoints/xlstm_package_import.h"
#include "configs/load.h"
#include "core/base/status_macros.h"
#include "core/device_memory.h"
#include "core/text/hf_tokenizer_files.h"
#include "core/text/tokenizer.h"

namespace carousel {
namespace {
constexpr int64_t kMaxTokenizerBytes = int64_t{256} << 20;

bool HasFile(const std::string& dir, const std::string& name) {
  PosixFileSystem files;
  const absl::StatusOr<FileInfo> info = files.Stat(JoinPath(dir, name));
  return info.ok() && info->exists && !info->is_directory;
}

// Whether the text of a model that others can load is bytes.
absl::Status CheckTokenizer(const std::string& dir, int64_t vocab_size) {
  PosixFileSystem files;
  const std::string path = JoinPath(dir, "tokenizer.json");
  CAROUSEL_ASSIGN_OR_RETURN(const FileInfo info, files.Stat(path));
  if (info.exists) {
    CAROUSEL_ASSIGN_OR_RETURN(const std::string text, ReadFile(files, path, kMaxTokenizerBytes));
    const absl::Status status = CheckIsByteTokenizer(text);
    if (!status.ok()) return absl::Status(status.code(), absl::StrCat(path, ": ", status.message()));
  }
  if (vocab_size < ByteTokenizer::kSize) {
    return absl::FailedPreconditionError(absl::StrCat(dir, ": a vocabulary of ", vocab_size,
                                                      " is too small for the byte tokenizer, the only one of "
                                                      "this version; it has ",
                                                      ByteTokenizer::kSize, " ids"));
  }
  return absl::OkStatus();
}

absl::StatusOr<ModelSource> OpenHuggingFace(const std::string& path) {
  CAROUSEL_ASSIGN_OR_RETURN(std::unique_ptr<HfModel> model, HfModel::Open(path));
  ModelSource source;
  source.kind = ModelSource::Kind::kHuggingFace;
  source.path = path;
  source.description = absl::StrCat("Hugging Face directory ", path);
  source.spec = model->config().spec;
  source.tokens = model->config().tokens;
  source.text_is_bytes = CheckTokenizer(path, source.spec.vocab_size);
  source.weights = std::move(model);
  return source;
}

// For formats that say nothing of text: only a tokenizer.json beside the weights can.
void FindText(ModelSource* source) {
  if (HasFile(source->path, "tokenizer.json")) {
    source->text_is_bytes = CheckTokenizer(source->path, source->spec.vocab_size);
  } else {
    source->text_is_bytes = absl::FailedPreconditionError(
        absl::StrCat(source->path,
                     " has no tokenizer.json, so it is not known what its token ids mean; if they are bytes, "
                     "import it with --set data.tokenizer=BYTES and use the run"));
  }
  if (!source->text_is_bytes.ok()) source->tokens = {.bos = -1, .eos = {}, .pad = -1};
}

absl::StatusOr<ModelSource> OpenNxai(const std::string& path) {
  CAROUSEL_ASSIGN_OR_RETURN(std::unique_ptr<HfModel> model,
                            HfModel::Open(path, nullptr, ConfigDialect::kReference));
  ModelSource source;
  source.kind = ModelSource::Kind::kNxai;
  source.path = path;
  source.description = absl::StrCat("NX-AI directory ", path);
  source.spec = model->config().spec;
  FindText(&source);
  source.weights = std::move(model);
  return source;
}

absl::StatusOr<ModelSource> OpenPackage(const std::string& path) {
  CAROUSEL_ASSIGN_OR_RETURN(std::unique_ptr<PackageModel> model, PackageModel::Open(path));
  ModelSource source;
  source.kind = ModelSource::Kind::kPackage;
  source.path = path;
  source.spec = model->config().spec;
  source.description = absl::StrCat("directory of the package xlstm ", path);
  if (!source.spec.slstm_at.empty()) {
    absl::StrAppend(&source.description, " (sLSTM backend ", NameOf(model->config().backend), ")");
  }
  source.hints = {.sequence_length = std::max<int64_t>(model->config().context_length, 0),
                  .decay_embedding = model->config().decay_embedding};
  FindText(&source);
  source.weights = std::move(model);
  return source;
}

absl::StatusOr<ModelSource> OpenRun(const std::string& path) {
  CAROUSEL_ASSIGN_OR_RETURN(const std::string dir, FindCheckpoint(path));
  const absl::StatusOr<CheckpointInfo> opened = OpenCheckpoint(dir);
  if (!opened.ok()) {
    return absl::Status(
        opened.status().code(),
        absl::StrCat(opened.status().message(),
                     "; put a copy of it back, or name another checkpoint (`carousel checkpoint ls "
                     "RUN_DIR` lists them)"));
  }
  const CheckpointInfo& info = *opened;
  CAROUSEL_ASSIGN_OR_RETURN(const std::string config, ReadCheckpointConfig(dir));
  CAROUSEL_ASSIGN_OR_RETURN(const RunSpec run,
                            LoadRunFromText(config, JoinPath(dir, "config.textproto"), {}));
  ModelSource source;
  source.kind = ModelSource::Kind::kRun;
  source.path = dir;
  source.description = absl::StrCat("checkpoint ", dir, " of step ", info.state.step);
  source.spec = run.model;
  source.run_dir = ParentPath(ParentPath(dir));  // <run_dir>/checkpoints/<checkpoint>
  source.run = run;
  source.hints = {.sequence_length = run.sequence_length, .decay_embedding = run.decay_embedding};
  source.checkpoint = info;
  if (run.tokenizer != TokenizerKind::kBytes) {
    const char* const kind = run.tokenizer == TokenizerKind::kTask ? "TASK" : "NONE";
    source.text_is_bytes = absl::FailedPreconditionError(
        absl::StrCat(dir, ": the run has data.tokenizer: ", kind, ", so its token ids have no text"));
    source.tokens = {.bos = -1, .eos = {}, .pad = -1};
  }
  CAROUSEL_ASSIGN_OR_RETURN(source.weights, OpenCheckpointWeights(dir));
  return source;
}
}  // namespace

absl::StatusOr<ModelSource> OpenModel(const std::string& path) {
  PosixFileSystem files;
  CAROUSEL_ASSIGN_OR_RETURN(const FileInfo info, files.Stat(path));
  if (!info.exists)
    return absl::NotFoundError(absl::StrCat(
        path,
        " does not exist; a model is a run directory, a checkpoint directory, a Hugging Face directory or a "
        "directory of the package xlstm"));
  if (!info.is_directory) {
    return absl::InvalidArgumentError(absl::StrCat(
        path,
        " is a file; a model is a run directory, a checkpoint directory, a Hugging Face directory or a ",
        "directory of the package xlstm",
        HasFile(ParentPath(path), "config.json") || HasFile(ParentPath(path), "config.yaml")
            ? absl::StrCat(": give ", ParentPath(path))
            : ""));
  }
  if (IsPackageDirectory(path)) return OpenPackage(path);
  if (IsHfDirectory(path)) return OpenHuggingFace(path);
  if (IsNxaiDirectory(path)) return OpenNxai(path);
  absl::StatusOr<ModelSource> run = OpenRun(path);
  if (absl::IsNotFound(run.status())) {
    return absl::NotFoundError(
        absl::StrCat(path,
                     " holds no model: it has no config.json (a Hugging Face directory or one of the package "
                     "xlstm), no config.yaml (one of its xLSTMLarge) and no checkpoint of a run: ",
                     run.status().message()));
  }
  return run;
}

absl::Status LoadWeights(const WeightSource& weights, BoundModel& model) {
  std::map<std::string, const Param*> given;
  for (const Param& param : weights.params()) given[param.name] = &param;
  std::vector<std::string> problems;
  for (const Param& param : model.params().params()) {
    const auto found = given.find(param.name);
    if (found == given.end()) {
      problems.push_back(absl::StrCat("\"", param.name, "\" ", ShapeText(param.shape), " is missing"));
    } else if (found->second->shape != param.shape) {
      problems.push_back(absl::StrCat("\"", param.name, "\" has shape ", ShapeText(found->second->shape),
                                      "; the config makes it ", ShapeText(param.shape)));
    }
  }
  if (!problems.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("the weights do not fit the model's config\n  ", absl::StrJoin(problems, "\n  ")));
  }
  for (int i = 0; i < static_cast<int>(model.params().params().size()); ++i) {
    const Param& param = model.params().param(i);
    const DType dtype = model.params().Weight(i).dtype;
    std::vector<std::byte> values(static_cast<size_t>(param.num_elems * SizeOf(dtype)));
    CAROUSEL_RETURN_IF_ERROR(weights.Read(param.name, 0, param.num_elems, dtype, values.data()));
    model.SetWeight(i, Tensor(values.data(), dtype, {param.num_elems}));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<BoundModel>> LoadModel(const ModelSource& source, Device& device,
                                                      DType compute, int64_t B, int64_t T) {
  auto model = std::make_unique<BoundModel>(source.spec,
                                            BoundModel::Options{.compute = compute, .B = B, .T = T}, device);
  if (!model->ok()) {
    return absl::ResourceExhaustedError(model->NotEnough("the model"));
  }
  CAROUSEL_RETURN_IF_ERROR(LoadWeights(*source.weights, *model));
  return model;
}

std::vector<float> Logits(BoundModel& model, const std::vector<int32_t>& ids) {
  Device& device = model.device();
  const int64_t T = static_cast<int64_t>(ids.size()), V = model.model().spec().vocab_size;
  Tensor device_ids, logits;
  const DeviceMemory memory(device, [&](Arena& arena) {
    device_ids = arena.Persistent("logits", DType::kI32, {T});
    logits = arena.Persistent("logits", model.params().wide(), {T, V});
  });
  CAROUSEL_CHECK(memory.ok());
  device.CopyToDevice(device_ids.data, ids.data(), device_ids.num_bytes());
  model.model().ForwardLogits(device.ops(), {.ids = device_ids, .B = 1, .T = T}, logits);
  std::vector<std::byte> bytes(static_cast<size_t>(logits.num_bytes()));
  device.CopyToHost(bytes.data(), logits.data, logits.num_bytes());
  std::vector<float> result(static_cast<size_t>(T * V));
  ConvertElems(DType::kF32, result.data(), logits.dtype, bytes.data(), T * V);
  return result;
}
}  // namespace carousel
