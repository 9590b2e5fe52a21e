// config.json of an `xLSTMLMModel` (Python package `xlstm` 2.0.5), from and to a ModelSpec of the paper
// family: the fields of its dataclass xLSTMLMModelConfig, nested as dataclasses.asdict gives them. A field
// that is missing has the package's default; what the package itself overwrites (fields that begin with "_",
// the inner embedding_dim, context_length, ...) is not read.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "checkpoints/xlstm_package_names.h"
#include "core/model/spec.h"

namespace carousel {

// The version these files are written for and were checked with.
constexpr const char* kPackageVersion = "2.0.5";
// What the package always has and no field of its config says.
constexpr double kPackageNormEps = 1e-5, kPackageCellEps = 1e-6;
constexpr double kPackageIgateBiasStd = 0.1;
// Its defaults for the widths of the mLSTM and of the feed-forward, in units of embedding_dim.
constexpr double kPackageProjFactor = 2.0, kPackageFfnFactor = 1.3;

struct PackageConfig {
  ModelSpec spec;  // family kPaper
  SlstmBackend backend = SlstmBackend::kCuda;
  // Longest input of the package's model, because of a mask it allocates; this program has no such limit.
  // <= 0: none was stated.
  int64_t context_length = 0;
  bool decay_embedding = false;  // weight_decay_on_embedding
};

// True if a config.json with this text is one of these: it has no "model_type", and "mlstm_block" or
// "slstm_block".
bool IsPackageConfig(const std::string& json_text);

// Reads a config. `name` stands for the file in messages. InvalidArgument lists every problem at once: what
// is not known, has another type, or asks for what this program cannot do.
absl::StatusOr<PackageConfig> ParsePackageConfig(const std::string& json_text, const std::string& name);

// OK if the package's model computes what a model of this architecture computes; otherwise FailedPrecondition
// that names every setting it has not.
absl::Status CheckExpressibleInPackage(const ModelSpec& spec);

// Settings of training that config.json cannot express, each as a line "model.<field> = <value>: <what it
// says instead>". They do not change what a trained model computes; whoever exports tells the user.
std::vector<std::string> SettingsThePackageLacks(const ModelSpec& spec);

// The text of config.json: what dacite.from_dict(xLSTMLMModelConfig, ...) reads. REQUIRES:
// CheckExpressibleInPackage(config.spec).ok().
std::string PackageConfigJson(const PackageConfig& config);
}  // namespace carousel
