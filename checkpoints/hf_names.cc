#include "checkpoints/hf_names.h"

#include <algorithm>
#include <map>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/model/language_model.h"

namespace carousel {

namespace {
constexpr int kMaxReported = 20;

// A tensor of fused weights: the parameters it concatenates. "X" stands for "weight" or "bias".
struct Fusion {
  const char* tensor;
  std::vector<const char*> parts;
};
const std::vector<Fusion>& Fusions() {
  static const auto& fusions = *new std::vector<Fusion>{
      {"mlstm_layer.qkv_opreact",
       {"mlstm_layer.q", "mlstm_layer.k", "mlstm_layer.v", "mlstm_layer.ogate_preact"}},
      {"mlstm_layer.ifgate_preact", {"mlstm_layer.igate_preact", "mlstm_layer.fgate_preact"}},
      {"ffn.proj_up_gate_z", {"ffn.proj_up_gate", "ffn.proj_up"}}};
  return fusions;
}

// "backbone.blocks.3." + "mlstm_layer.q" + ".weight"; false if the name is not of this form.
bool SplitBlockName(const std::string& name, std::string* block, std::string* layer, std::string* kind) {
  if (!absl::StartsWith(name, "backbone.blocks.")) return false;
  const size_t dot = name.find('.', sizeof("backbone.blocks.") - 1), last = name.rfind('.');
  if (dot == std::string::npos || last <= dot) return false;
  *block = name.substr(0, dot + 1);
  *layer = name.substr(dot + 1, last - dot - 1);
  *kind = name.substr(last);
  return true;
}

int64_t EditDistance(const std::string& a, const std::string& b) {
  std::vector<int64_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = static_cast<int64_t>(j);
  for (size_t i = 1; i <= a.size(); ++i) {
    int64_t diagonal = row[0];
    row[0] = static_cast<int64_t>(i);
    for (size_t j = 1; j <= b.size(); ++j) {
      const int64_t replaced = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = row[j];
      row[j] = std::min({replaced, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row[b.size()];
}

// The name among `names` that `name` was most likely meant to be; empty if none is near.
std::string Nearest(const std::string& name, const std::vector<std::string>& names) {
  std::string best;
  int64_t best_distance = std::max<int64_t>(3, static_cast<int64_t>(name.size()) / 3);
  for (const std::string& candidate : names) {
    if (candidate.size() > 300) continue;
    const int64_t distance = EditDistance(name, candidate);
    if (distance < best_distance) best = candidate, best_distance = distance;
  }
  return best;
}
}  // namespace

std::vector<Param> ModelParams(const ModelSpec& spec) {
  ParamStore store(DType::kF32, /*num_shards=*/1, /*shard_index=*/0);
  const LanguageModel model(spec, store, /*decay_embedding=*/false);
  return store.params();
}

std::vector<FileTensor> FileTensors(const std::vector<Param>& params, ConfigDialect dialect, bool fused) {
  std::map<std::string, const Param*> by_name;
  for (const Param& param : params) by_name[param.name] = &param;
  std::vector<FileTensor> tensors;
  std::set<std::string> placed;  // parameters that a fused tensor took
  for (const Param& param : params) {
    if (placed.count(param.name)) continue;
    if (dialect == ConfigDialect::kTransformers && param.name == kOutNormBias) continue;
    FileTensor tensor;
    tensor.name = param.name;
    if (dialect == ConfigDialect::kTransformers && param.name == "embedding.weight") {
      tensor.name = "backbone.embeddings.weight";
    }
    std::vector<const Param*> parts = {&param};
    std::string block, layer, kind;
    if (fused && SplitBlockName(param.name, &block, &layer, &kind)) {
      for (const Fusion& fusion : Fusions()) {
        if (std::find(fusion.parts.begin(), fusion.parts.end(), layer) == fusion.parts.end()) continue;
        tensor.name = block + fusion.tensor + kind;
        parts.clear();
        for (const char* part : fusion.parts) parts.push_back(by_name.at(block + part + kind));
      }
    }
    tensor.shape = parts[0]->shape;
    tensor.shape[0] = 0;
    int64_t begin = 0;
    for (const Param* part : parts) {
      tensor.shape[0] += part->shape[0];
      tensor.parts.push_back({part->name, begin, part->num_elems});
      begin += part->num_elems;
      placed.insert(part->name);
    }
    tensors.push_back(std::move(tensor));
  }
  // A config that says nothing of tied embeddings needs a head: the embedding once more.
  const auto embedding = by_name.find("embedding.weight");
  if (by_name.count("lm_head.weight") == 0 && embedding != by_name.end()) {
    const Param& param = *embedding->second;
    tensors.push_back({"lm_head.weight", param.shape, {{param.name, 0, param.num_elems}}});
  }
  return tensors;
}

std::string ShapeText(const std::vector<int64_t>& shape) {
  return absl::StrCat("(", absl::StrJoin(shape, ", "), ")");
}

absl::Status CheckFileTensors(const std::vector<FileTensor>& expected, const std::vector<NamedShape>& present,
                              const std::string& file) {
  std::map<std::string, const std::vector<int64_t>*> shapes;
  for (const NamedShape& tensor : present) shapes[tensor.name] = &tensor.shape;
  std::set<std::string> wanted;
  for (const FileTensor& tensor : expected) wanted.insert(tensor.name);
  std::vector<std::string> spare;
  for (const NamedShape& tensor : present) {
    if (wanted.count(tensor.name) == 0) spare.push_back(tensor.name);
  }

  std::vector<std::string> problems;
  for (const FileTensor& tensor : expected) {
    const auto found = shapes.find(tensor.name);
    if (found == shapes.end()) {
      std::string problem =
          absl::StrCat("tensor \"", tensor.name, "\" ", ShapeText(tensor.shape), " is missing");
      // Comparing names is quadratic: only for those that will be shown.
      if (static_cast<int>(problems.size()) < kMaxReported) {
        const std::string nearest = Nearest(tensor.name, spare);
        if (!nearest.empty()) absl::StrAppend(&problem, "; the nearest is \"", nearest, "\"");
      }
      problems.push_back(problem);
    } else if (*found->second != tensor.shape) {
      problems.push_back(absl::StrCat("tensor \"", tensor.name, "\" has shape ", ShapeText(*found->second),
                                      "; the config makes it ", ShapeText(tensor.shape)));
    }
  }
  for (const std::string& name : spare) {
    problems.push_back(absl::StrCat("tensor \"", name, "\" does not belong to this model"));
  }
  if (problems.empty()) return absl::OkStatus();
  const size_t total = problems.size();
  if (total > kMaxReported) {
    problems.resize(kMaxReported);
    problems.push_back(absl::StrCat("... ", total - kMaxReported, " more"));
  }
  return absl::FailedPreconditionError(
      absl::StrCat(file, ": the tensors do not fit the config\n  ", absl::StrJoin(problems, "\n  ")));
}
}  // namespace carousel
