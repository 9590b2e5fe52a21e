// The tensors of `xLSTMLMModel` (Python package `xlstm` 2.0.5): the state dict of the paper family, and where
// in it every parameter of ours lies. Elements are copied, never changed: norm weights are stored as scale
// minus 1 on both sides.
//
//   token_embedding.weight (V, D)   lm_head.weight (V, D)   xlstm_block_stack.post_blocks_norm.weight (D)
//   and for block l, after "xlstm_block_stack.blocks.<l>.", W the width of the mLSTM, Dh = D / heads:
//   xlstm_norm.weight (D)
//   mLSTM  xlstm.proj_up.weight (2W, D)     xlstm.{q,k,v}_proj.weight (W/block, block, block)
//          xlstm.conv1d.conv.weight (W, 1, K), .bias (W)     xlstm.mlstm_cell.{igate,fgate}.weight (NH, 3W),
//          .bias (NH)     xlstm.mlstm_cell.outnorm.weight (W)     xlstm.learnable_skip (W)
//          xlstm.proj_down.weight (D, W);   with bias also xlstm.{proj_up,{q,k,v}_proj,proj_down}.bias
//   sLSTM  xlstm.conv1d.conv.weight (D, 1, K), .bias (D)     xlstm.{fgate,igate,zgate,ogate}.weight (heads,
//          Dh, Dh): the module called fgate feeds the cell's INPUT gate and igate its FORGET gate, for these
//          four alone     xlstm.slstm_cell._recurrent_kernel_ and ._bias_: see SlstmBackend
//          xlstm.group_norm.weight (D)
//          ffn_norm.weight (D)     ffn.proj_up.weight (2F, D) = [gate; up]     ffn.proj_down.weight (D, F)
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "core/model/spec.h"

namespace carousel {

// The package stores the sLSTM's recurrent weights and biases in an order that depends on its backend; gates
// are in the order i, f, z, o, rows of "out" are added to by columns of "in":
//   kVanilla  _recurrent_kernel_ (heads, 4*Dh, Dh) = [head][gate][out][in];  _bias_ (4*D) = [gate][head][out]
//   kCuda     _recurrent_kernel_ (heads, Dh, 4*Dh) = [head][in][gate][out];  _bias_ (4*D) = [head][gate][out]
enum class SlstmBackend : uint8_t { kVanilla, kCuda };
const char* NameOf(SlstmBackend backend);  // "vanilla", "cuda", as the package's configs
std::optional<SlstmBackend> SlstmBackendFromName(const std::string& name);

// One parameter's place within a tensor of the package. The parameter's elements in row-major order are seen
// as an array of sizes[0] x sizes[1] x sizes[2]; its element (a, b, c) is element
// begin + a strides[0] + b strides[1] + c strides[2] of the tensor.
struct PackagePart {
  std::string param;  // canonical name
  int64_t begin = 0;
  int64_t sizes[3] = {1, 1, 1};
  int64_t strides[3] = {0, 0, 1};
  int64_t num_elems() const { return sizes[0] * sizes[1] * sizes[2]; }
  bool contiguous() const { return sizes[0] == 1 && sizes[1] == 1 && strides[2] == 1; }
};

// One tensor of the package. Its parts cover it without overlap.
struct PackageTensor {
  std::string name;
  std::vector<int64_t> shape;  // row-major
  std::vector<PackagePart> parts;
  // The same values as another tensor (lm_head.weight with tied embeddings): writers write it, as the state
  // dict has it; readers accept that it is missing, and else check that it is equal.
  bool duplicate = false;
  int64_t num_elems() const;
};

// All tensors of the state dict, in its order, each parameter of the model in exactly one part of those that
// are no duplicates. Without sLSTM blocks `backend` does not matter. REQUIRES: spec.family == kPaper.
std::vector<PackageTensor> PackageTensors(const ModelSpec& spec, SlstmBackend backend);

// Copies elements [first, first + count) of the parameter out of / into the whole tensor `external`;
// elements have elem_bytes bytes and need not be aligned. REQUIRES: 0 <= first, first + count <= num_elems().
void ReadPackagePart(const PackagePart& part, int64_t elem_bytes, const void* external, int64_t first,
                     int64_t count, void* values);
void WritePackagePart(const PackagePart& part, int64_t elem_bytes, const void* values, int64_t first,
                      int64_t count, void* external);

// A whole tensor from the parameters that it holds: `find` gives the elements of a canonical parameter.
void GatherPackageTensor(const PackageTensor& tensor, int64_t elem_bytes,
                         const std::function<const void*(const std::string& param)>& find, void* external);
// And the reverse: every parameter it holds, into the memory that `find` gives.
void ScatterPackageTensor(const PackageTensor& tensor, int64_t elem_bytes, const void* external,
                          const std::function<void*(const std::string& param)>& find);
}  // namespace carousel
