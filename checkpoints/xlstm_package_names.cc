#include "checkpoints/xlstm_package_names.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "core/base/check.h"

namespace carousel {
namespace {
constexpr int64_t kNumGates = 4;

// Cell slot g (i, f, z, o) here and the name of the package's module that feeds it.
struct Gate {
  const char* ours;
  const char* module;
};
constexpr Gate kGates[kNumGates] = {
    {"igate", "fgate"}, {"fgate", "igate"}, {"zgate", "zgate"}, {"ogate", "ogate"}};

int64_t Product(const std::vector<int64_t>& shape) {
  int64_t product = 1;
  for (const int64_t size : shape) product *= size;
  return product;
}

class TensorList {
 public:
  explicit TensorList(std::vector<PackageTensor>* tensors) : tensors_(tensors) {}

  void SetBlock(int64_t block) {
    theirs_ = absl::StrCat("xlstm_block_stack.blocks.", block, ".");
    ours_ = absl::StrCat("backbone.blocks.", block, ".");
  }
  void LeaveBlocks() { theirs_ = ours_ = ""; }

  PackageTensor& Add(const std::string& name, std::vector<int64_t> shape) {
    tensors_->push_back({.name = theirs_ + name, .shape = std::move(shape), .parts = {}});
    return tensors_->back();
  }
  PackagePart Part(const std::string& param, int64_t begin, int64_t a, int64_t stride_a, int64_t b,
                   int64_t stride_b, int64_t c, int64_t stride_c) const {
    return {.param = ours_ + param,
            .begin = begin,
            .sizes = {a, b, c},
            .strides = {stride_a, stride_b, stride_c}};
  }
  // A tensor that is one parameter in the same order of elements.
  PackageTensor& Same(const std::string& name, std::vector<int64_t> shape, const std::string& param) {
    const int64_t count = Product(shape);
    PackageTensor& tensor = Add(name, std::move(shape));
    tensor.parts.push_back(Part(param, 0, 1, 0, 1, 0, count, 1));
    return tensor;
  }
  // Two parameters of equal size, one below the other.
  void Stacked(const std::string& name, std::vector<int64_t> shape, const std::string& upper,
               const std::string& lower) {
    const int64_t half = Product(shape) / 2;
    PackageTensor& tensor = Add(name, std::move(shape));
    tensor.parts.push_back(Part(upper, 0, 1, 0, 1, 0, half, 1));
    tensor.parts.push_back(Part(lower, half, 1, 0, 1, 0, half, 1));
  }

 private:
  std::vector<PackageTensor>* tensors_;
  std::string theirs_, ours_;
};

void AddMlstmLayer(const ModelSpec& spec, TensorList& list) {
  const int64_t D = spec.embedding_dim, W = spec.qk_dim, NH = spec.num_heads, block = spec.qkv_block_size;
  list.Same("xlstm.learnable_skip", {W}, "mlstm_layer.skip");
  list.Same("xlstm.proj_up.weight", {2 * W, D}, "mlstm_layer.proj_up.weight");
  if (spec.use_bias) list.Same("xlstm.proj_up.bias", {2 * W}, "mlstm_layer.proj_up.bias");
  for (const char* map : {"q", "k", "v"}) {
    const std::string theirs = absl::StrCat("xlstm.", map, "_proj."),
                      ours = absl::StrCat("mlstm_layer.", map);
    list.Same(theirs + "weight", {W / block, block, block}, ours + ".weight");
    if (spec.use_bias) list.Same(theirs + "bias", {W}, ours + ".bias");
  }
  list.Same("xlstm.conv1d.conv.weight", {W, 1, spec.conv_kernel}, "mlstm_layer.conv.weight");
  list.Same("xlstm.conv1d.conv.bias", {W}, "mlstm_layer.conv.bias");
  for (const char* gate : {"igate", "fgate"}) {
    const std::string theirs = absl::StrCat("xlstm.mlstm_cell.", gate),
                      ours = absl::StrCat("mlstm_layer.", gate, "_preact");
    list.Same(theirs + ".weight", {NH, 3 * W}, ours + ".weight");
    list.Same(theirs + ".bias", {NH}, ours + ".bias");
  }
  list.Same("xlstm.mlstm_cell.outnorm.weight", {W}, "mlstm_layer.multihead_norm.weight");
  list.Same("xlstm.proj_down.weight", {D, W}, "mlstm_layer.proj_down.weight");
  if (spec.use_bias) list.Same("xlstm.proj_down.bias", {D}, "mlstm_layer.proj_down.bias");
}

void AddSlstmLayer(const ModelSpec& spec, SlstmBackend backend, TensorList& list) {
  const int64_t D = spec.embedding_dim, NH = spec.slstm_num_heads, Dh = spec.slstm_head_dim();
  if (spec.slstm_conv_kernel > 0) {
    list.Same("xlstm.conv1d.conv.weight", {D, 1, spec.slstm_conv_kernel}, "slstm_layer.conv.weight");
    list.Same("xlstm.conv1d.conv.bias", {D}, "slstm_layer.conv.bias");
  }
  for (const Gate& gate : kGates) {
    list.Same(absl::StrCat("xlstm.", gate.module, ".weight"), {NH, Dh, Dh},
              absl::StrCat("slstm_layer.", gate.ours, ".weight"));
  }
  const bool vanilla = backend == SlstmBackend::kVanilla;
  const int64_t rows = vanilla ? kNumGates * Dh : Dh, columns = vanilla ? Dh : kNumGates * Dh;
  PackageTensor& kernel = list.Add("xlstm.slstm_cell._recurrent_kernel_", {NH, rows, columns});
  for (int64_t g = 0; g < kNumGates; ++g) {
    const std::string param = absl::StrCat("slstm_layer.", kGates[g].ours, ".recurrent_weight");
    const int64_t head = kNumGates * Dh * Dh;  // elements of one head
    kernel.parts.push_back(vanilla ? list.Part(param, g * Dh * Dh, NH, head, Dh, Dh, Dh, 1)
                                   : list.Part(param, g * Dh, NH, head, Dh, 1, Dh, kNumGates * Dh));
  }
  PackageTensor& bias = list.Add("xlstm.slstm_cell._bias_", {kNumGates * D});
  for (int64_t g = 0; g < kNumGates; ++g) {
    const std::string param = absl::StrCat("slstm_layer.", kGates[g].ours, ".bias");
    bias.parts.push_back(vanilla ? list.Part(param, g * D, 1, 0, NH, Dh, Dh, 1)
                                 : list.Part(param, g * Dh, 1, 0, NH, kNumGates * Dh, Dh, 1));
  }
  if (spec.slstm_norm_weight) list.Same("xlstm.group_norm.weight", {D}, "slstm_layer.multihead_norm.weight");
}

void AddFeedForward(const ModelSpec& spec, TensorList& list) {
  const int64_t D = spec.embedding_dim, F = spec.ffn_dim;
  list.Same("ffn_norm.weight", {D}, "norm_ffn.weight");
  list.Stacked("ffn.proj_up.weight", {2 * F, D}, "ffn.proj_up_gate.weight", "ffn.proj_up.weight");
  if (spec.ffn_bias) list.Stacked("ffn.proj_up.bias", {2 * F}, "ffn.proj_up_gate.bias", "ffn.proj_up.bias");
  list.Same("ffn.proj_down.weight", {D, F}, "ffn.proj_down.weight");
  if (spec.ffn_bias) list.Same("ffn.proj_down.bias", {D}, "ffn.proj_down.bias");
}

// Calls copy(element within the parameter, element within the tensor, number of elements, distance of
// consecutive ones in the tensor) for runs that cover elements [first, first + count) of the parameter.
template <class Fn>
void ForEachRun(const PackagePart& part, int64_t first, int64_t count, const Fn& copy) {
  CAROUSEL_CHECK(first >= 0 && count >= 0 && count <= part.num_elems() - first);
  const int64_t row = part.sizes[2];
  for (int64_t j = first; j < first + count;) {
    const int64_t c = j % row, b = j / row % part.sizes[1], a = j / row / part.sizes[1];
    const int64_t run = std::min(row - c, first + count - j);
    copy(j - first, part.begin + a * part.strides[0] + b * part.strides[1] + c * part.strides[2], run,
         part.strides[2]);
    j += run;
  }
}

void CopyElems(std::byte* to, int64_t to_stride, const std::byte* from, int64_t from_stride, int64_t count,
               int64_t elem_bytes) {
  if (to_stride == 1 && from_stride == 1) {
    std::memcpy(to, from, static_cast<size_t>(count * elem_bytes));
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    std::memcpy(to + i * to_stride * elem_bytes, from + i * from_stride * elem_bytes,
                static_cast<size_t>(elem_bytes));
  }
}
}  // namespace

const char* NameOf(SlstmBackend backend) { return backend == SlstmBackend::kVanilla ? "vanilla" : "cuda"; }

std::optional<SlstmBackend> SlstmBackendFromName(const std::string& name) {
  for (const SlstmBackend backend : {SlstmBackend::kVanilla, SlstmBackend::kCuda}) {
    if (name == NameOf(backend)) return backend;
  }
  return std::nullopt;
}

int64_t PackageTensor::num_elems() const { return Product(shape); }

std::vector<PackageTensor> PackageTensors(const ModelSpec& spec, SlstmBackend backend) {
  CAROUSEL_CHECK(spec.family == Family::kPaper);
  const int64_t V = spec.vocab_size, D = spec.embedding_dim;
  std::vector<PackageTensor> tensors;
  TensorList list(&tensors);
  for (int64_t block = 0; block < spec.num_blocks; ++block) {
    list.SetBlock(block);
    const bool slstm = spec.is_slstm(block);
    list.Same("xlstm_norm.weight", {D}, slstm ? "norm_slstm.weight" : "norm_mlstm.weight");
    if (slstm) {
      AddSlstmLayer(spec, backend, list);
    } else {
      AddMlstmLayer(spec, list);
    }
    if (spec.has_ffn(block)) AddFeedForward(spec, list);
  }
  list.LeaveBlocks();
  if (spec.add_out_norm)
    list.Same("xlstm_block_stack.post_blocks_norm.weight", {D}, "backbone.out_norm.weight");
  list.Same("token_embedding.weight", {V, D}, "embedding.weight");
  list.Same("lm_head.weight", {V, D}, spec.tie_embeddings ? "embedding.weight" : "lm_head.weight").duplicate =
      spec.tie_embeddings;
  return tensors;
}

void ReadPackagePart(const PackagePart& part, int64_t elem_bytes, const void* external, int64_t first,
                     int64_t count, void* values) {
  const std::byte* from = static_cast<const std::byte*>(external);
  std::byte* to = static_cast<std::byte*>(values);
  ForEachRun(part, first, count, [&](int64_t inner, int64_t outer, int64_t run, int64_t stride) {
    CopyElems(to + inner * elem_bytes, 1, from + outer * elem_bytes, stride, run, elem_bytes);
  });
}

void WritePackagePart(const PackagePart& part, int64_t elem_bytes, const void* values, int64_t first,
                      int64_t count, void* external) {
  const std::byte* from = static_cast<const std::byte*>(values);
  std::byte* to = static_cast<std::byte*>(external);
  ForEachRun(part, first, count, [&](int64_t inner, int64_t outer, int64_t run, int64_t stride) {
    CopyElems(to + outer * elem_bytes, stride, from + inner * elem_bytes, 1, run, elem_bytes);
  });
}

void GatherPackageTensor(const PackageTensor& tensor, int64_t elem_bytes,
                         const std::function<const void*(const std::string& param)>& find, void* external) {
  for (const PackagePart& part : tensor.parts)
    WritePackagePart(part, elem_bytes, find(part.param), 0, part.num_elems(), external);
}

void ScatterPackageTensor(const PackageTensor& tensor, int64_t elem_bytes, const void* external,
                          const std::function<void*(const std::string& param)>& find) {
  for (const PackagePart& part : tensor.parts)
    ReadPackagePart(part, elem_bytes, external, 0, part.num_elems(), find(part.param));
}
}  // namespace carousel
