#include "checkpoints/xlstm_package_export.h"

#include <algorithm>

#include "checkpoints/model_digests.h"
#include "checkpoints/xlstm_package_import.h"
#include "core/base/check.h"
#include "core/base/status_macros.h"

namespace carousel {
namespace {
// The tensor's first dim if every part has it too, as its slowest: then the tensor is that many slabs, one
// behind the other. Otherwise 1.
int64_t NumSlabs(const PackageTensor& tensor) {
  const int64_t count = tensor.shape.empty() ? 1 : tensor.shape[0];
  const bool all = std::all_of(tensor.parts.begin(), tensor.parts.end(), [&](const PackagePart& part) {
    return part.sizes[0] == count && part.strides[0] == tensor.num_elems() / count;
  });
  return all ? count : 1;
}

absl::Status WriteTensor(const PackageTensor& tensor, const WeightSource& weights, DType dtype,
                         const AppendElems& append) {
  const bool in_order = std::all_of(tensor.parts.begin(), tensor.parts.end(),
                                    [](const PackagePart& part) { return part.contiguous(); });
  std::vector<std::byte> values;
  if (in_order) {  // one parameter after the other
    for (const PackagePart& part : tensor.parts) {
      for (int64_t begin = 0; begin < part.num_elems(); begin += kWeightPieceElems) {
        const int64_t count = std::min(kWeightPieceElems, part.num_elems() - begin);
        values.resize(static_cast<size_t>(count * SizeOf(dtype)));
        CAROUSEL_RETURN_IF_ERROR(weights.Read(part.param, begin, count, dtype, values.data()));
        CAROUSEL_RETURN_IF_ERROR(append(values.data(), count));
      }
    }
    return absl::OkStatus();
  }
  const int64_t num_slabs = NumSlabs(tensor), slab_elems = tensor.num_elems() / num_slabs;
  std::vector<std::byte> slab(static_cast<size_t>(slab_elems * SizeOf(dtype)));
  for (int64_t s = 0; s < num_slabs; ++s) {
    for (PackagePart part : tensor.parts) {  // the part of the slab, as if there were no other
      const int64_t count = part.num_elems() / num_slabs;
      part.sizes[0] /= num_slabs;
      values.resize(static_cast<size_t>(count * SizeOf(dtype)));
      CAROUSEL_RETURN_IF_ERROR(weights.Read(part.param, s * count, count, dtype, values.data()));
      WritePackagePart(part, SizeOf(dtype), values.data(), 0, count, slab.data());
    }
    CAROUSEL_RETURN_IF_ERROR(append(slab.data(), slab_elems));
  }
  return absl::OkStatus();
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
                           .shard_names = ShardNames::kNumberedFromOne,
                           .max_shard_bytes = options.max_shard_bytes,
                           .metadata = {{"format", "pt"}, {"family", "xlstm_v1"}},
                           .tensors = {},
                           .write = {},
                           .files = {},
                           .check = {},
                           .progress = options.progress};
  if (!config.spec.slstm_at.empty()) directory.metadata["slstm_backend"] = NameOf(config.backend);
  for (const PackageTensor& tensor : tensors) directory.tensors.push_back({tensor.name, tensor.shape});
  directory.write = [&](size_t index, const AppendElems& append) {
    return WriteTensor(tensors[index], weights, options.dtype, append);
  };
  directory.check = [&](const std::string& dir,
                        const std::function<void(int64_t)>& progress) -> absl::StatusOr<int64_t> {
    CAROUSEL_ASSIGN_OR_RETURN(const std::unique_ptr<PackageModel> written, PackageModel::Open(dir, &files));
    CAROUSEL_ASSIGN_OR_RETURN(const int64_t num_compared,
                              CompareDigests({.expected = &weights,
                                              .expected_name = options.source_name,
                                              .written = written.get(),
                                              .written_name = options.out_dir,
                                              .dtype = options.dtype,
                                              .progress = progress}));
    if (options.accept) CAROUSEL_RETURN_IF_ERROR(options.accept(dir));
    return num_compared;
  };
  directory.files = {{"config.json", PackageConfigJson(config)}};
  directory.files.insert(directory.files.end(), options.extra_files.begin(), options.extra_files.end());
  return WriteModelDirectory(directory, files);
}
}  // namespace carousel
