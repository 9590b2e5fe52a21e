#include "checkpoints/hf_export.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "checkpoints/hf_import.h"
#include "checkpoints/hf_names.h"
#include "checkpoints/model_digests.h"
#include "core/base/status_macros.h"

namespace carousel {
namespace {
// The final norm of Transformers has no bias: ours must do nothing.
absl::Status CheckOutNormBiasIsZero(const WeightSource& weights) {
  for (const Param& param : weights.params()) {
    if (param.name != kOutNormBias) continue;
    const int64_t count = param.shape[0];
    std::vector<float> bias(static_cast<size_t>(count));
    CAROUSEL_RETURN_IF_ERROR(weights.Read(param.name, 0, count, DType::kF32, bias.data()));
    if (std::all_of(bias.begin(), bias.end(), [](float b) { return b == 0; })) continue;
    return absl::FailedPreconditionError(absl::StrCat(
        "Hugging Face Transformers cannot express this model:\n  use_bias = true: its final norm "
        "has no bias, and \"",
        kOutNormBias, "\" is not zero"));
  }
  return absl::OkStatus();
}

absl::Status WriteTensor(const FileTensor& tensor, const WeightSource& weights, DType dtype,
                         const AppendElems& append) {
  int64_t longest = 0;
  for (const FileTensor::Part& part : tensor.parts) longest = std::max(longest, part.count);
  std::vector<std::byte> piece(static_cast<size_t>(std::min(kWeightPieceElems, longest) * SizeOf(dtype)));
  for (const FileTensor::Part& part : tensor.parts) {
    for (int64_t begin = 0; begin < part.count; begin += kWeightPieceElems) {
      const int64_t count = std::min(kWeightPieceElems, part.count - begin);
      CAROUSEL_RETURN_IF_ERROR(weights.Read(part.param, begin, count, dtype, piece.data()));
      CAROUSEL_RETURN_IF_ERROR(append(piece.data(), count));
    }
  }
  return absl::OkStatus();
}
}  // namespace

absl::StatusOr<ModelDirectoryResult> ExportHf(const ModelSpec& spec, const WeightSource& weights,
                                              const HfExportOptions& options, FileSystem& files) {
  CAROUSEL_CHECK(options.dtype == DType::kF32 || options.dtype == DType::kBF16);
  const ConfigDialect dialect = options.dialect;
  const bool transformers = dialect == ConfigDialect::kTransformers;
  if (transformers) {
    CAROUSEL_RETURN_IF_ERROR(CheckExpressibleInTransformers(spec));
    CAROUSEL_RETURN_IF_ERROR(CheckOutNormBiasIsZero(weights));
  } else {
    CAROUSEL_RETURN_IF_ERROR(CheckExpressibleInReference(spec));
  }
  const std::vector<FileTensor> tensors = FileTensors(ModelParams(spec), dialect, /*fused=*/false);
  ModelDirectory directory{
      .out_dir = options.out_dir,
      .overwrite = options.overwrite,
      .dtype = options.dtype,
      .shard_names = transformers ? ShardNames::kNumberedFromOne : ShardNames::kNumberedFromZero,
      .max_shard_bytes = options.max_shard_bytes,
      .metadata = {{"format", "pt"}},
      .tensors = {},
      .write = {},
      .files = {},
      .check = {},
      .progress = options.progress};
  for (const FileTensor& tensor : tensors) directory.tensors.push_back({tensor.name, tensor.shape});
  directory.write = [&](size_t index, const AppendElems& append) {
    return WriteTensor(tensors[index], weights, options.dtype, append);
  };
  directory.check = [&](const std::string& dir,
                        const std::function<void(int64_t)>& progress) -> absl::StatusOr<int64_t> {
    CAROUSEL_ASSIGN_OR_RETURN(const std::unique_ptr<HfModel> written, HfModel::Open(dir, &files, dialect));
    DigestComparison comparison{.expected = &weights,
                                .expected_name = options.source_name,
                                .written = written.get(),
                                .written_name = options.out_dir,
                                .dtype = options.dtype,
                                .progress = progress};
    if (transformers) comparison.skip.insert(kOutNormBias);  // it is zero and not in the files
    if (spec.tie_embeddings) comparison.copies["lm_head.weight"] = "embedding.weight";
    CAROUSEL_ASSIGN_OR_RETURN(const int64_t num_compared, CompareDigests(comparison));
    if (options.accept) CAROUSEL_RETURN_IF_ERROR(options.accept(dir));
    return num_compared;
  };
  if (transformers) {
    directory.files = {{"config.json", TransformersConfigJson(spec, options.tokens, options.dtype)},
                       {"generation_config.json", TransformersGenerationConfigJson(options.tokens)}};
  } else {
    directory.files = {{"config.yaml", ReferenceConfigYaml(spec)}};
  }
  directory.files.insert(directory.files.end(), options.extra_files.begin(), options.extra_files.end());
  return WriteModelDirectory(directory, files);
}
}  // namespace carousel
