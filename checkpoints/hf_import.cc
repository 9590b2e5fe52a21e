#include "checkpoints/hf_import.h"

#include <cstring>
#include <map>

#include "absl/strings/str_cat.h"
#include "checkpoints/file_system.h"
#include "checkpoints/hf_names.h"
#include "checkpoints/model_files.h"
#include "core/base/status_macros.h"

namespace carousel {
namespace {
constexpr int64_t kMaxJsonBytes = int64_t{64} << 20;

const char* ConfigFile(ConfigDialect dialect) {
  return dialect == ConfigDialect::kTransformers ? "config.json" : "config.yaml";
}

bool HasFile(const std::string& dir, const std::string& name) {
  PosixFileSystem files;
  const absl::StatusOr<FileInfo> info = files.Stat(JoinPath(dir, name));
  return info.ok() && info->exists && !info->is_directory;
}

class HfModelImpl final : public HfModel {
 public:
  explicit HfModelImpl(FileSystem* files) : file_system_(files != nullptr ? *files : posix_) {}
  absl::Status Load(const std::string& dir, ConfigDialect dialect);

  const ModelFileConfig& config() const override { return config_; }
  const std::vector<Param>& params() const override { return params_; }
  absl::Status Read(const std::string& name, int64_t begin, int64_t count, DType dtype,
                    void* data) const override;

 private:
  // Where a parameter's elements are.
  struct Place {
    int64_t num_elems = 0;
    const ModelFiles::Tensor* tensor = nullptr;  // null: it is not in the files and reads as zeros
    int64_t begin = 0;                           // its first element within the tensor
  };

  PosixFileSystem posix_;
  FileSystem& file_system_;
  std::string dir_;
  ModelFileConfig config_;
  std::vector<Param> params_;
  std::unique_ptr<ModelFiles> files_;
  std::map<std::string, Place> places_;
};

absl::Status HfModelImpl::Load(const std::string& dir, ConfigDialect dialect) {
  dir_ = dir;
  const bool transformers = dialect == ConfigDialect::kTransformers;
  const std::string config_path = JoinPath(dir, ConfigFile(dialect));
  CAROUSEL_ASSIGN_OR_RETURN(const FileInfo info, file_system_.Stat(config_path));
  if (!info.exists || info.is_directory) {
    return absl::NotFoundError(
        transformers ? absl::StrCat(dir, " is not a Hugging Face directory: it has no config.json")
                     : absl::StrCat(dir, " is not a directory of xLSTMLarge: it has no config.yaml"));
  }
  CAROUSEL_ASSIGN_OR_RETURN(const std::string config_text,
                            ReadFile(file_system_, config_path, kMaxJsonBytes));
  CAROUSEL_ASSIGN_OR_RETURN(config_, transformers ? ParseModelConfig(dialect, config_text, config_path)
                                                  : ParseReferenceYaml(config_text, config_path));
  params_ = ModelParams(config_.spec);
  const ShardNames names = transformers ? ShardNames::kNumberedFromOne : ShardNames::kNumberedFromZero;
  CAROUSEL_ASSIGN_OR_RETURN(files_, ModelFiles::Open(dir, names, file_system_));
  const std::vector<FileTensor> expected = FileTensors(params_, dialect, config_.fused_weights);
  CAROUSEL_RETURN_IF_ERROR(CheckFileTensors(expected, files_->shapes(), dir));
  for (const Param& param : params_) places_[param.name].num_elems = param.num_elems;
  for (const FileTensor& tensor : expected) {
    for (const FileTensor::Part& part : tensor.parts) {
      places_[part.param] = {
          .num_elems = part.count, .tensor = files_->Find(tensor.name), .begin = part.begin};
    }
  }
  return absl::OkStatus();
}

absl::Status HfModelImpl::Read(const std::string& name, int64_t begin, int64_t count, DType dtype,
                               void* data) const {
  const auto found = places_.find(name);
  if (found == places_.end()) {
    return absl::NotFoundError(absl::StrCat(dir_, " has no parameter \"", name, "\""));
  }
  const Place& place = found->second;
  if (begin < 0 || count < 0 || count > place.num_elems - begin) {
    return absl::OutOfRangeError(absl::StrCat("elements [", begin, ", ", begin, " + ", count, ") of \"", name,
                                              "\", which has ", place.num_elems));
  }
  if (place.tensor == nullptr) {
    std::memset(data, 0, static_cast<size_t>(count * SizeOf(dtype)));
    return absl::OkStatus();
  }
  return files_->Read(*place.tensor, place.begin + begin, count, dtype, data);
}
}  // namespace

bool IsHfDirectory(const std::string& dir) { return HasFile(dir, ConfigFile(ConfigDialect::kTransformers)); }
bool IsNxaiDirectory(const std::string& dir) {
  return !IsHfDirectory(dir) && HasFile(dir, ConfigFile(ConfigDialect::kReference));
}

absl::StatusOr<std::unique_ptr<HfModel>> HfModel::Open(const std::string& dir, FileSystem* files,
                                                       ConfigDialect dialect) {
  auto model = std::make_unique<HfModelImpl>(files);
  CAROUSEL_RETURN_IF_ERROR(model->Load(dir, dialect));
  return std::unique_ptr<HfModel>(std::move(model));
}
}  // namespace carousel
