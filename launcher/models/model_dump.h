// What the dumps of whole models have in common, in both families: the config and the parameters, and where
// in the dump's tensors they lie.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "checkpoints/xlstm_package_names.h"
#include "core/model/param_store.h"
#include "launcher/models/reference_dump.h"
#include "launcher/models/verify.h"

namespace carousel {

struct ModelDump {
  ModelSpec spec;
  std::vector<Param> params;           // as LanguageModel registers them
  std::vector<PackageTensor> tensors;  // as the reference names them and lays them out
  std::string description;             // "3 blocks of 64 (sLSTM at 1), 4 heads, vocabulary 96"

  int IndexOf(const std::string& param) const;  // in params; a CHECK if there is none
  bool has_mlstm() const;
  // Those of `tensors` that are no duplicates: each parameter is in exactly one of them.
  std::vector<const PackageTensor*> Originals() const;
};

// Reads the metadata's config, of either family. options.chunk_length replaces its chunk length if it is > 0.
// A field that changes the result and cannot be honoured is an InvalidArgument that names it.
absl::StatusOr<ModelDump> ReadModelDump(const ReferenceDump& dump, const VerifyOptions& options);

// The dump must hold exactly: every tensor of the model under each of `prefixes` ("param."), and `others`
// with any shape. A tensor that is the same as another (the head's with tied embeddings) may be there, with
// equal values.
absl::Status CheckModelDumpTensors(const ReferenceDump& dump, const ModelDump& model,
                                   const std::vector<std::string>& prefixes,
                                   const std::vector<std::string>& others);

// Sets every parameter: set(index, values) from the tensors under `prefix`, in our order of elements.
absl::Status ForEachParamValue(const ReferenceDump& dump, const ModelDump& model, const std::string& prefix,
                               const std::function<void(int, const std::vector<double>&)>& set);

// The values of one tensor of the reference, in its order, from get(index) of its parameters.
std::vector<double> TensorValues(const ModelDump& model, const PackageTensor& tensor,
                                 const std::function<std::vector<double>(int)>& get);

// Multiplies every value by 1 + relative or 1 - relative: a change as small as one draw of rounding, to see
// what a dump makes of it.
void ChangeSlightly(double relative, std::vector<double>* values);
}  // namespace carousel
