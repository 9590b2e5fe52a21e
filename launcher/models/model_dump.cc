#include "launcher/models/model_dump.h"

#include <algorithm>
#include <map>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "checkpoints/hf_names.h"
#include "checkpoints/xlstm_package_config.h"
#include "core/base/status_macros.h"

namespace carousel {
namespace {

// Which metadata a model dump may have.
absl::Status CheckMetadata(const ReferenceDump& dump) {
  static const auto& known =
      *new std::set<std::string>{"family", "config", "optimizer", "reference", "note", "format", "seed"};
  for (const auto& [name, value] : dump.metadata()) {
    if (known.count(name) == 0) {
      return dump.Invalid(absl::StrCat("metadata field \"", name, "\" is \"", value,
                                       "\"; this field is not known and cannot be honoured"));
    }
  }
  if (dump.Field("config", "").empty()) return dump.Invalid("metadata field \"config\" is missing");
  return absl::OkStatus();
}

std::string Counted(int64_t count, const char* what) {
  return absl::StrCat(count, " ", what, count == 1 ? "" : "s");
}

absl::Status ReadLarge(const ReferenceDump& dump, const std::string& name, ModelDump* model) {
  CAROUSEL_ASSIGN_OR_RETURN(const ModelFileConfig config,
                            ParseModelConfig(ConfigDialect::kReference, dump.Field("config", ""), name));
  CAROUSEL_ASSIGN_OR_RETURN(const DType stored, DTypeOfDump(dump));
  if (!config.force_float32_norms && stored == DType::kBF16) {
    return dump.Invalid(
        "config field \"norm_reduction_force_float32\" is false for a bf16 model; norms are always computed "
        "in f32 here, it must be true");
  }
  const ModelSpec& spec = model->spec = config.spec;
  model->params = ModelParams(spec);
  for (const FileTensor& tensor :
       FileTensors(model->params, ConfigDialect::kReference, config.fused_weights)) {
    PackageTensor& same = model->tensors.emplace_back();
    same.name = tensor.name;
    same.shape = tensor.shape;
    for (const FileTensor::Part& part : tensor.parts) {
      same.parts.push_back({.param = part.param, .begin = part.begin, .sizes = {1, 1, part.count}});
    }
  }
  model->description = absl::StrCat(
      Counted(spec.num_blocks, "block"), " of ", spec.embedding_dim, ", ", Counted(spec.num_heads, "head"),
      ", vocabulary ", spec.vocab_size, config.fused_weights ? ", fused weights" : "",
      spec.use_bias ? ", biases" : "", spec.add_out_norm ? "" : ", no out norm");
  return absl::OkStatus();
}

absl::Status ReadPaper(const ReferenceDump& dump, const std::string& name, ModelDump* model) {
  CAROUSEL_ASSIGN_OR_RETURN(const PackageConfig config, ParsePackageConfig(dump.Field("config", ""), name));
  ModelSpec& spec = model->spec = config.spec;
  // Without a CUDA device the package computes with its vanilla cell, which knows neither a limit on the
  // recurrent gradient nor its removal, whatever the config says.
  if (config.backend == SlstmBackend::kVanilla) spec.slstm_gradient_clip = 0, spec.slstm_gradient_cut = false;
  model->params = ModelParams(spec);
  model->tensors = PackageTensors(spec, config.backend);
  const int64_t num_slstm = static_cast<int64_t>(spec.slstm_at.size());
  model->description = absl::StrCat(Counted(spec.num_blocks, "block"), " of ", spec.embedding_dim);
  std::string& text = model->description;
  if (model->has_mlstm()) {
    absl::StrAppend(&text, ", mLSTM ", Counted(spec.num_heads, "head"), " on ", spec.qk_dim);
  }
  if (num_slstm > 0) {
    absl::StrAppend(&text, ", sLSTM at ", absl::StrJoin(spec.slstm_at, " "), ", ",
                    Counted(spec.slstm_num_heads, "head"), ", ", NameOf(config.backend), " layout");
  }
  absl::StrAppend(&text, ", vocabulary ", spec.vocab_size, spec.use_bias ? ", biases" : "",
                  spec.tie_embeddings ? ", tied embeddings" : "", spec.add_out_norm ? "" : ", no out norm");
  return absl::OkStatus();
}
}  // namespace

int ModelDump::IndexOf(const std::string& param) const {
  for (size_t i = 0; i < params.size(); ++i) {
    if (params[i].name == param) return static_cast<int>(i);
  }
  CAROUSEL_CHECK_MSG(false, "no parameter " + param);
  return -1;
}

bool ModelDump::has_mlstm() const {
  for (int64_t block = 0; block < spec.num_blocks; ++block) {
    if (!spec.is_slstm(block)) return true;
  }
  return false;
}

std::vector<const PackageTensor*> ModelDump::Originals() const {
  std::vector<const PackageTensor*> originals;
  for (const PackageTensor& tensor : tensors) {
    if (!tensor.duplicate) originals.push_back(&tensor);
  }
  return originals;
}

absl::StatusOr<ModelDump> ReadModelDump(const ReferenceDump& dump, const VerifyOptions& options) {
  CAROUSEL_RETURN_IF_ERROR(CheckMetadata(dump));
  const std::string name = absl::StrCat(dump.path(), ": metadata field \"config\"");
  ModelDump model;
  if (dump.Field("family", "") == "xlstm_v1") {
    CAROUSEL_RETURN_IF_ERROR(ReadPaper(dump, name, &model));
  } else {
    CAROUSEL_RETURN_IF_ERROR(ReadLarge(dump, name, &model));
  }
  if (options.chunk_length > 0) model.spec.chunk_length = options.chunk_length;
  return model;
}

absl::Status CheckModelDumpTensors(const ReferenceDump& dump, const ModelDump& model,
                                   const std::vector<std::string>& prefixes,
                                   const std::vector<std::string>& others) {
  std::vector<FileTensor> expected;
  std::map<std::string, std::string> duplicates;  // and what each is the same as
  for (const std::string& prefix : prefixes) {
    for (const PackageTensor& tensor : model.tensors) {
      if (!tensor.duplicate) {
        expected.push_back({.name = prefix + tensor.name, .shape = tensor.shape, .parts = {}});
        continue;
      }
      for (const PackageTensor* original : model.Originals()) {
        if (original->parts[0].param != tensor.parts[0].param) continue;
        duplicates[prefix + tensor.name] = prefix + original->name;
      }
    }
  }
  std::vector<NamedShape> present;
  for (const SafetensorsEntry& entry : dump.tensors()) {
    const bool other = std::find(others.begin(), others.end(), entry.name) != others.end();
    if (!other && duplicates.count(entry.name) == 0) present.push_back({entry.name, entry.shape});
  }
  CAROUSEL_RETURN_IF_ERROR(CheckFileTensors(expected, present, dump.path()));
  for (const auto& [name, original] : duplicates) {
    if (!dump.Has(name)) continue;
    CAROUSEL_ASSIGN_OR_RETURN(const std::vector<int64_t> shape, dump.Shape(original));
    CAROUSEL_ASSIGN_OR_RETURN(const std::vector<double> values, dump.Doubles(original, shape));
    CAROUSEL_ASSIGN_OR_RETURN(const std::vector<double> same, dump.Doubles(name, shape));
    if (values != same) {
      return dump.Invalid(absl::StrCat("tensor \"", name, "\" differs from \"", original,
                                       "\", which is the same tensor of this model"));
    }
  }
  return absl::OkStatus();
}

absl::Status ForEachParamValue(const ReferenceDump& dump, const ModelDump& model, const std::string& prefix,
                               const std::function<void(int, const std::vector<double>&)>& set) {
  for (const PackageTensor* tensor : model.Originals()) {
    CAROUSEL_ASSIGN_OR_RETURN(const std::vector<double> values,
                              dump.Doubles(prefix + tensor->name, tensor->shape));
    for (const PackagePart& part : tensor->parts) {
      std::vector<double> param(static_cast<size_t>(part.num_elems()));
      ReadPackagePart(part, sizeof(double), values.data(), 0, part.num_elems(), param.data());
      set(model.IndexOf(part.param), param);
    }
  }
  return absl::OkStatus();
}

std::vector<double> TensorValues(const ModelDump& model, const PackageTensor& tensor,
                                 const std::function<std::vector<double>(int)>& get) {
  std::vector<double> values(static_cast<size_t>(tensor.num_elems()));
  for (const PackagePart& part : tensor.parts) {
    const std::vector<double> param = get(model.IndexOf(part.param));
    WritePackagePart(part, sizeof(double), param.data(), 0, part.num_elems(), values.data());
  }
  return values;
}

void ChangeSlightly(double relative, std::vector<double>* values) {
  // The signs have no pattern that a sum could cancel.
  for (size_t j = 0; j < values->size(); ++j) (*values)[j] *= 1 + (j * j % 7 < 3 ? relative : -relative);
}
}  // namespace carousel
