// Which tensor of a model file holds which parameter. Parameters have the names of the package `xlstm`
// ("embedding.weight", "backbone.blocks.0.mlstm_layer.q.weight", ...); a file may name the embedding
// differently, and with fused weights one tensor holds several parameters, one below the other:
//   mlstm_layer.qkv_opreact = [q; k; v; ogate_preact]    mlstm_layer.ifgate_preact = [igate; fgate]
//   ffn.proj_up_gate_z = [proj_up_gate; proj_up]
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "checkpoints/hf_config.h"
#include "core/model/param_store.h"

namespace carousel {

// One tensor of a file: its name, its shape and the parameters it holds, concatenated along dim 0.
struct FileTensor {
  std::string name;
  std::vector<int64_t> shape;  // row-major
  struct Part {
    std::string param;
    int64_t begin = 0;  // first element within the tensor
    int64_t count = 0;
  };
  std::vector<Part> parts;
};

// The parameters of a model with this architecture, as LanguageModel registers them.
std::vector<Param> ModelParams(const ModelSpec& spec);

// The tensors of a file for these parameters, in their order. Neither dialect ties embeddings: with tied ones
// the embedding is there twice. kTransformers has no bias on the final norm: that parameter is in no tensor
// of the result.
std::vector<FileTensor> FileTensors(const std::vector<Param>& params, ConfigDialect dialect, bool fused);

// The parameter that Transformers does not have.
constexpr const char* kOutNormBias = "backbone.out_norm.bias";

// "(2, 128)", for messages.
std::string ShapeText(const std::vector<int64_t>& shape);

// Compares what a file must hold with what it holds: FailedPrecondition lists every missing, unexpected and
// misshapen tensor (at most 20 of them), each missing one with the nearest name that the file has instead.
struct NamedShape {
  std::string name;
  std::vector<int64_t> shape;
};
absl::Status CheckFileTensors(const std::vector<FileTensor>& expected, const std::vector<NamedShape>& present,
                              const std::string& file);
}  // namespace carousel
