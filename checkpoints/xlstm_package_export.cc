#include "checkpoints/xlstm_package_export.h"

#include <algorithm>

#include "core/base/check.h"
#include "core/base/status_macros.h"

namespace carousel {
namespace {
constexpr int64_t kPieceElems = int64_t{1} << 20;  // read, converted and written at once

absl::Status WriteTensor(const PackageTensor& tensor, const WeightSource& weights, DType dtype,
                         const AppendElems& append) {
  const bool in_order = std::all_of(tensor.parts.begin(), tensor.parts.end(),
                                    [](const PackagePart& part) { return part.contiguous(); });
  std::vector<std::byte> values;
  if (in_order) {  // one parameter after the other
    for (const PackagePart& part : tensor.parts) {
      for (int64_t begin = 0; begin < part.num_elems(); begin += kPieceElems) {
        const int64_t count = std::min(kPieceElems, part.num_elems() - begin);
        values.resize(static_cast<size_t>(count * SizeOf(dtype)));
        CAROUSEL_RETURN_IF_ERROR(weights.Read(part.param, begin, count, dtype, values.data()));
        CAROUSEL_RETURN_IF_ERROR(append(values.data(), count));
      }
    }
    return absl::OkStatus();
  }
  std::vector<std::byte> whole(static_cast<size_t>(tensor.num_elems() * SizeOf(dtype)));
  for (const PackagePart& part : tensor.parts) {
    values.resize(static_cast<size_t>(part.num_elems() * SizeOf(dtype)));
    CAROUSEL_RETURN_IF_ERROR(weights.Read(part.param, 0, part.num_elems(), dtype, values.data()));
    WritePackagePart(part, SizeOf(dtype), values.data(), 0, part.num_elems(), whole.data());
  }
  return append(whole.data(), tensor.num_elems());
}
}  // namespace

absl::StatusOr<ModelDirectoryResult> ExportPackage(const PackageConfig& config, const WeightSource& weights,
                                                   const PackageExportOptions& options, FileSystem& files) {
  CAROUSEL_CHECK(options.dtype == DType::kF32 || options.dtype == DType::kBF16);
  CAROUSEL_RETURN_IF_ERROR(CheckExpressibleInPackage(config.spec));
  const std::vector<PackageTensor> tensors = PackageTensors(config.spec, config.backend);
  ModelDirectory directory{.out_dir = options.out_dir,
                           .overwrite = options.overwrite,
                           .dtype = options.dtype,
                           .max_shard_bytes = options.max_shard_bytes,
                           .metadata = {{"format", "pt"}, {"family", "xlstm_v1"}},
                           .tensors = {},
                           .write = {},
                           .files = {}};
  if (!config.spec.slstm_at.empty()) directory.metadata["slstm_backend"] = NameOf(config.backend);
  for (const PackageTensor& tensor : tensors) directory.tensors.push_back({tensor.name, tensor.shape});
  directory.write = [&](size_t index, const AppendElems& append) {
    return WriteTensor(tensors[index], weights, options.dtype, append);
  };
  directory.files = {{"config.json", PackageConfigJson(config)}};
  directory.files.insert(directory.files.end(), options.extra_files.begin(), options.extra_files.end());
  return WriteModelDirectory(directory, files);
}
}  // namespace carousel
