#include "checkpoints/xlstm_package_import.h"

#include <algorithm>
#include <cstring>
#include <map>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "checkpoints/file_system.h"
#include "checkpoints/hf_names.h"
#include "checkpoints/model_files.h"
#include "core/base/status_macros.h"

namespace carousel {
namespace {
constexpr int64_t kMaxJsonBytes = int64_t{64} << 20;
constexpr int64_t kPieceElems = int64_t{1} << 20;
constexpr const char* kKernelSuffix = ".xlstm.slstm_cell._recurrent_kernel_";

class PackageModelImpl final : public PackageModel {
 public:
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

  std::string dir_;
  PackageConfig config_;
  std::vector<Param> params_;
  std::unique_ptr<ModelFiles> files_;
  std::map<std::string, Place> places_;
};

absl::Status PackageModelImpl::Load(const std::string& dir) {
  dir_ = dir;
  PosixFileSystem files;
  const std::string config_path = JoinPath(dir, "config.json");
  CAROUSEL_ASSIGN_OR_RETURN(const std::string config_text, ReadFile(files, config_path, kMaxJsonBytes));
  CAROUSEL_ASSIGN_OR_RETURN(config_, ParsePackageConfig(config_text, config_path));
  params_ = ModelParams(config_.spec);
  CAROUSEL_ASSIGN_OR_RETURN(files_, ModelFiles::Open(dir));
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
      const std::byte* source = static_cast<const std::byte*>(tensor.data) + begin * tensor.elem_bytes();
      ConvertStored(DType::kF64, b.data(), tensor.entry->dtype, source, count);
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
  const int64_t elem_bytes = tensor->elem_bytes();
  if (part.contiguous()) {
    const std::byte* source = static_cast<const std::byte*>(tensor->data) + (part.begin + begin) * elem_bytes;
    ConvertStored(dtype, data, tensor->entry->dtype, source, count);
    return absl::OkStatus();
  }
  std::vector<std::byte> stored(static_cast<size_t>(count * elem_bytes));
  ReadPackagePart(part, elem_bytes, tensor->data, begin, count, stored.data());
  ConvertStored(dtype, data, tensor->entry->dtype, stored.data(), count);
  return absl::OkStatus();
}
}  // namespace

bool IsPackageDirectory(const std::string& dir) {
  PosixFileSystem files;
  const absl::StatusOr<std::string> text = ReadFile(files, JoinPath(dir, "config.json"), kMaxJsonBytes);
  return text.ok() && IsPackageConfig(*text);
}

absl::StatusOr<std::unique_ptr<PackageModel>> PackageModel::Open(const std::string& dir) {
  auto model = std::make_unique<PackageModelImpl>();
  CAROUSEL_RETURN_IF_ERROR(model->Load(dir));
  return std::unique_ptr<PackageModel>(std::move(model));
}
}  // namespace carousel
