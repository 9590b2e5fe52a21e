#include "checkpoints/xlstm_package_import.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "checkpoints/file_system.h"
#include "checkpoints/hf_names.h"
#include "checkpoints/model_files.h"
#include "checkpoints/yaml_fields.h"
#include "core/base/status_macros.h"

namespace carousel {
namespace {
constexpr int64_t kMaxJsonBytes = int64_t{64} << 20;
constexpr int64_t kPieceElems = int64_t{1} << 20;
constexpr const char* kKernelSuffix = ".xlstm.slstm_cell._recurrent_kernel_";

struct ConfigText {
  std::string path, json;
};
// config.json, or config.yaml as JSON.
absl::StatusOr<ConfigText> ReadConfig(FileSystem& files, const std::string& dir) {
  ConfigText config{.path = JoinPath(dir, "config.json"), .json = {}};
  CAROUSEL_ASSIGN_OR_RETURN(const FileInfo json, files.Stat(config.path));
  const std::string yaml_path = JoinPath(dir, "config.yaml");
  CAROUSEL_ASSIGN_OR_RETURN(const FileInfo yaml, files.Stat(yaml_path));
  if (json.exists || !yaml.exists) {
    CAROUSEL_ASSIGN_OR_RETURN(config.json, ReadFile(files, config.path, kMaxJsonBytes));
    return config;
  }
  config.path = yaml_path;
  CAROUSEL_ASSIGN_OR_RETURN(const std::string text, ReadFile(files, yaml_path, kMaxJsonBytes));
  CAROUSEL_ASSIGN_OR_RETURN(const nlohmann::json object, ParseYamlObject(text, yaml_path));
  config.json = object.dump();
  return config;
}

class PackageModelImpl final : public PackageModel {
 public:
  explicit PackageModelImpl(FileSystem* files) : file_system_(files != nullptr ? *files : posix_) {}
  absl::Status Load(const std::string& dir);

  const PackageConfig& config() const override { return config_; }
  const std::vector<Param>& params() const override { return params_; }
  absl::Status Read(const std::string& name, int64_t begin, int64_t count, DType dtype,
                    void* data) const override;

 private:
  // Where a parameter's elements are.
  struct Place {
    const ModelFiles::Tensor* tensor = nullptr;
    PackagePart part;
  };
  absl::Status FindBackend();
  absl::Status PlaceParams();
  // The tensor holds the same values as the parameter's own.
  absl::Status CheckDuplicate(const PackageTensor& duplicate) const;

  PosixFileSystem posix_;
  FileSystem& file_system_;
  std::string dir_;
  PackageConfig config_;
  std::vector<Param> params_;
  std::unique_ptr<ModelFiles> files_;
  std::map<std::string, Place> places_;
};

absl::Status PackageModelImpl::Load(const std::string& dir) {
  dir_ = dir;
  CAROUSEL_ASSIGN_OR_RETURN(const ConfigText config, ReadConfig(file_system_, dir));
  CAROUSEL_ASSIGN_OR_RETURN(config_, ParsePackageConfig(config.json, config.path));
  params_ = ModelParams(config_.spec);
  CAROUSEL_ASSIGN_OR_RETURN(files_, ModelFiles::Open(dir, ShardNames::kNumberedFromOne, file_system_));
  CAROUSEL_RETURN_IF_ERROR(FindBackend());
  return PlaceParams();
}

absl::Status PackageModelImpl::FindBackend() {
  const std::vector<NamedShape> shapes = files_->shapes();
  const auto kernel = std::find_if(shapes.begin(), shapes.end(), [](const NamedShape& tensor) {
    return absl::EndsWith(tensor.name, kKernelSuffix);
  });
  if (kernel == shapes.end() || config_.spec.slstm_at.empty()) return absl::OkStatus();
  // A shape that fits neither is reported with all others.
  const std::vector<int64_t>& shape = kernel->shape;
  if (shape.size() == 3 && shape[1] > shape[2]) config_.backend = SlstmBackend::kVanilla;
  if (shape.size() == 3 && shape[1] < shape[2]) config_.backend = SlstmBackend::kCuda;
  for (const std::string& stated : files_->Metadata("slstm_backend")) {
    if (stated == NameOf(config_.backend)) continue;
    return absl::FailedPreconditionError(absl::StrCat(
        dir_, ": metadata \"slstm_backend\" is \"", stated, "\", but \"", kernel->name, "\" has shape ",
        ShapeText(shape), ", the layout of the backend ", NameOf(config_.backend),
        "; with it the order of the biases changes, so one of the two must be put right"));
  }
  return absl::OkStatus();
}

absl::Status PackageModelImpl::PlaceParams() {
  const std::vector<PackageTensor> tensors = PackageTensors(config_.spec, config_.backend);
  std::vector<FileTensor> expected;
  for (const PackageTensor& tensor : tensors) {
    if (tensor.duplicate && files_->Find(tensor.name) == nullptr) continue;
    expected.push_back({tensor.name, tensor.shape, {}});
  }
  CAROUSEL_RETURN_IF_ERROR(CheckFileTensors(expected, files_->shapes(), dir_));
  for (const PackageTensor& tensor : tensors) {
    if (tensor.duplicate) continue;
    for (const PackagePart& part : tensor.parts)
      places_[part.param] = {.tensor = files_->Find(tensor.name), .part = part};
  }
  for (const PackageTensor& tensor : tensors) {
    if (tensor.duplicate && files_->Find(tensor.name) != nullptr) {
      CAROUSEL_RETURN_IF_ERROR(CheckDuplicate(tensor));
    }
  }
  return absl::OkStatus();
}

absl::Status PackageModelImpl::CheckDuplicate(const PackageTensor& duplicate) const {
  const ModelFiles::Tensor& tensor = *files_->Find(duplicate.name);
  std::vector<double> a, b;
  for (const PackagePart& part : duplicate.parts) {
    for (int64_t begin = 0; begin < part.num_elems(); begin += kPieceElems) {
      const int64_t count = std::min(kPieceElems, part.num_elems() - begin);
      a.resize(static_cast<size_t>(count));
      b.resize(static_cast<size_t>(count));
      CAROUSEL_RETURN_IF_ERROR(Read(part.param, begin, count, DType::kF64, a.data()));
      CAROUSEL_RETURN_IF_ERROR(files_->Read(tensor, begin, count, DType::kF64, b.data()));
      if (std::memcmp(a.data(), b.data(), a.size() * sizeof(double)) == 0) continue;
      return absl::FailedPreconditionError(
          absl::StrCat(dir_, ": \"", duplicate.name,
                       "\" is not equal to \"token_embedding.weight\", but the config has \"tie_weights\": "
                       "true; the model has one matrix for both"));
    }
  }
  return absl::OkStatus();
}

absl::Status PackageModelImpl::Read(const std::string& name, int64_t begin, int64_t count, DType dtype,
                                    void* data) const {
  const auto found = places_.find(name);
  if (found == places_.end()) {
    return absl::NotFoundError(absl::StrCat(dir_, " has no parameter \"", name, "\""));
  }
  const auto& [tensor, part] = found->second;
  if (begin < 0 || count < 0 || count > part.num_elems() - begin) {
    return absl::OutOfRangeError(absl::StrCat("elements [", begin, ", ", begin, " + ", count, ") of \"", name,
                                              "\", which has ", part.num_elems()));
  }
  if (part.contiguous()) return files_->Read(*tensor, part.begin + begin, count, dtype, data);
  // Slab by slab of the parameter's slowest dim, each from the bytes of the tensor that it spans.
  const int64_t elem_bytes = tensor->elem_bytes(), slab_elems = part.sizes[1] * part.sizes[2];
  const int64_t span = 1 + (part.sizes[1] - 1) * part.strides[1] + (part.sizes[2] - 1) * part.strides[2];
  const PackagePart within{.param = part.param,
                           .begin = 0,
                           .sizes = {1, part.sizes[1], part.sizes[2]},
                           .strides = {0, part.strides[1], part.strides[2]}};
  std::vector<std::byte> bytes(static_cast<size_t>(span * elem_bytes)), stored;
  for (int64_t done = 0; done < count;) {
    const int64_t slab = (begin + done) / slab_elems, first = (begin + done) % slab_elems;
    const int64_t n = std::min(count - done, slab_elems - first);
    CAROUSEL_RETURN_IF_ERROR(
        files_->ReadStored(*tensor, part.begin + slab * part.strides[0], span, bytes.data()));
    stored.resize(static_cast<size_t>(n * elem_bytes));
    ReadPackagePart(within, elem_bytes, bytes.data(), first, n, stored.data());
    ConvertStored(dtype, static_cast<std::byte*>(data) + done * SizeOf(dtype), tensor->entry->dtype,
                  stored.data(), n);
    done += n;
  }
  return absl::OkStatus();
}
}  // namespace

bool IsPackageDirectory(const std::string& dir) {
  PosixFileSystem files;
  const absl::StatusOr<ConfigText> config = ReadConfig(files, dir);
  return config.ok() && IsPackageConfig(config->json);
}

absl::StatusOr<std::unique_ptr<PackageModel>> PackageModel::Open(const std::string& dir, FileSystem* files) {
  auto model = std::make_unique<PackageModelImpl>(files);
  CAROUSEL_RETURN_IF_ERROR(model->Load(dir));
  return std::unique_ptr<PackageModel>(std::move(model));
}
}  // namespace carousel
