#include "launcher/large_dump.h"

#include <algorithm>
#include <functional>
#include <set>

#include "absl/strings/str_cat.h"
#include "core/base/status_macros.h"

namespace carousel {
namespace {
int IndexOf(const std::vector<Param>& params, const std::string& name) {
  for (size_t i = 0; i < params.size(); ++i) {
    if (params[i].name == name) return static_cast<int>(i);
  }
  CAROUSEL_CHECK_MSG(false, "no parameter " + name);
  return -1;
}

// Which metadata a model dump may have.
absl::Status CheckLargeMetadata(const ReferenceDump& dump) {
  static const auto& known =
      *new std::set<std::string>{"family", "config", "optimizer", "reference", "note", "format"};
  for (const auto& [name, value] : dump.metadata()) {
    if (known.count(name) == 0) {
      return dump.Invalid(absl::StrCat("metadata field \"", name, "\" is \"", value,
                                       "\"; this field is not known and cannot be honoured"));
    }
  }
  return absl::OkStatus();
}
}  // namespace

absl::StatusOr<LargeDump> ReadLargeDump(const ReferenceDump& dump, const VerifyOptions& options) {
  CAROUSEL_RETURN_IF_ERROR(CheckLargeMetadata(dump));
  if (dump.Field("config", "").empty()) return dump.Invalid("metadata field \"config\" is missing");
  LargeDump large;
  CAROUSEL_ASSIGN_OR_RETURN(large.config,
                            ParseModelConfig(ConfigDialect::kReference, dump.Field("config", ""),
                                             absl::StrCat(dump.path(), ": metadata field \"config\"")));
  CAROUSEL_ASSIGN_OR_RETURN(const DType stored, DTypeOfDump(dump));
  if (!large.config.force_float32_norms && stored == DType::kBF16) {
    return dump.Invalid(
        "config field \"norm_reduction_force_float32\" is false for a bf16 model; norms are always computed "
        "in "
        "f32 here, it must be true");
  }
  ModelSpec& spec = large.config.spec;
  if (options.chunk_length > 0) spec.chunk_length = options.chunk_length;
  large.params = ModelParams(spec);
  large.tensors = FileTensors(large.params, ConfigDialect::kReference, large.config.fused_weights);
  large.description =
      absl::StrCat(spec.num_blocks, spec.num_blocks == 1 ? " block of " : " blocks of ", spec.embedding_dim,
                   ", ", spec.num_heads, spec.num_heads == 1 ? " head, " : " heads, ", "vocabulary ",
                   spec.vocab_size, large.config.fused_weights ? ", fused weights" : "",
                   spec.use_bias ? ", biases" : "", spec.add_out_norm ? "" : ", no out norm");
  return large;
}

absl::Status CheckLargeDumpTensors(const ReferenceDump& dump, const LargeDump& large,
                                   const std::vector<std::string>& prefixes,
                                   const std::vector<std::string>& others) {
  std::vector<FileTensor> expected;
  for (const std::string& prefix : prefixes) {
    for (FileTensor tensor : large.tensors) {
      tensor.name = prefix + tensor.name;
      expected.push_back(std::move(tensor));
    }
  }
  std::vector<NamedShape> present;
  for (const SafetensorsEntry& entry : dump.tensors()) {
    if (std::find(others.begin(), others.end(), entry.name) == others.end()) {
      present.push_back({entry.name, entry.shape});
    }
  }
  return CheckFileTensors(expected, present, dump.path());
}

absl::Status ForEachParamValue(const ReferenceDump& dump, const LargeDump& large, const std::string& prefix,
                               const std::function<void(int, const std::vector<double>&)>& set) {
  for (const FileTensor& tensor : large.tensors) {
    CAROUSEL_ASSIGN_OR_RETURN(const std::vector<double> values,
                              dump.Doubles(prefix + tensor.name, tensor.shape));
    for (const FileTensor::Part& part : tensor.parts) {
      const auto begin = values.begin() + part.begin;
      set(IndexOf(large.params, part.param), std::vector<double>(begin, begin + part.count));
    }
  }
  return absl::OkStatus();
}

std::vector<double> TensorValues(const LargeDump& large, const FileTensor& tensor,
                                 const std::function<std::vector<double>(int)>& get) {
  std::vector<double> values;
  for (const FileTensor::Part& part : tensor.parts) {
    const std::vector<double> piece = get(IndexOf(large.params, part.param));
    values.insert(values.end(), piece.begin(), piece.end());
  }
  return values;
}
}  // namespace carousel
