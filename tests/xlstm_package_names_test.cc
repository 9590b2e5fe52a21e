// The mapping between the state dict of the Python package xlstm and our parameters.
#include "checkpoints/xlstm_package_names.h"

#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <set>

#include "tests/xlstm_package_testing.h"

namespace carousel {
namespace {
using testing::MixedPaperSpec;
using testing::PaperSpecs;

constexpr SlstmBackend kBackends[] = {SlstmBackend::kVanilla, SlstmBackend::kCuda};

const PackageTensor& Find(const std::vector<PackageTensor>& tensors, const std::string& name) {
  for (const PackageTensor& tensor : tensors) {
    if (tensor.name == name) return tensor;
  }
  CheckFailed(__FILE__, __LINE__, name);
}
const std::string kBlock1 = "xlstm_block_stack.blocks.1.";

// The parameter and the element of it that lie at each element of a tensor.
std::vector<std::pair<std::string, int64_t>> Contents(const PackageTensor& tensor) {
  std::vector<std::pair<std::string, int64_t>> contents(static_cast<size_t>(tensor.num_elems()));
  for (const PackagePart& part : tensor.parts) {
    std::vector<int64_t> elements(static_cast<size_t>(part.num_elems()));
    for (size_t j = 0; j < elements.size(); ++j) elements[j] = static_cast<int64_t>(j) + 1;
    std::vector<int64_t> external(contents.size(), 0);
    WritePackagePart(part, sizeof(int64_t), elements.data(), 0, part.num_elems(), external.data());
    for (size_t j = 0; j < external.size(); ++j) {
      if (external[j] == 0) continue;
      EXPECT_EQ(contents[j].first, "") << tensor.name << ": two parameters at element " << j;
      contents[j] = {part.param, external[j] - 1};
    }
  }
  return contents;
}

TEST(PackageTensors, HoldEveryElementOfEveryParameterOnce) {
  for (const auto& [name, spec] : PaperSpecs()) {
    for (const SlstmBackend backend : kBackends) {
      std::map<std::string, std::set<int64_t>> seen;
      std::set<std::string> names;
      for (const PackageTensor& tensor : PackageTensors(spec, backend)) {
        EXPECT_TRUE(names.insert(tensor.name).second) << tensor.name;
        for (const auto& [param, element] : Contents(tensor)) {
          ASSERT_NE(param, "") << name << ": " << tensor.name << " has an element that is no parameter";
          if (!tensor.duplicate) {
            EXPECT_TRUE(seen[param].insert(element).second) << param << " " << element;
          }
        }
      }
      std::map<std::string, std::set<int64_t>> expected;
      for (const Param& param : ModelParams(spec)) {
        for (int64_t j = 0; j < param.num_elems; ++j) expected[param.name].insert(j);
      }
      EXPECT_EQ(seen, expected) << name;
    }
  }
}

TEST(PackageTensors, HaveTheNamesAndShapesOfTheStateDict) {
  std::vector<std::pair<std::string, std::vector<int64_t>>> tensors;
  for (const PackageTensor& tensor : PackageTensors(MixedPaperSpec(), SlstmBackend::kVanilla)) {
    if (tensor.name.find("blocks.2.") == std::string::npos) tensors.emplace_back(tensor.name, tensor.shape);
  }
  const std::string b0 = "xlstm_block_stack.blocks.0.", b1 = kBlock1;
  const std::vector<std::pair<std::string, std::vector<int64_t>>> expected = {
      {b0 + "xlstm_norm.weight", {24}},
      {b0 + "xlstm.learnable_skip", {64}},
      {b0 + "xlstm.proj_up.weight", {128, 24}},
      {b0 + "xlstm.q_proj.weight", {8, 8, 8}},
      {b0 + "xlstm.k_proj.weight", {8, 8, 8}},
      {b0 + "xlstm.v_proj.weight", {8, 8, 8}},
      {b0 + "xlstm.conv1d.conv.weight", {64, 1, 3}},
      {b0 + "xlstm.conv1d.conv.bias", {64}},
      {b0 + "xlstm.mlstm_cell.igate.weight", {4, 192}},
      {b0 + "xlstm.mlstm_cell.igate.bias", {4}},
      {b0 + "xlstm.mlstm_cell.fgate.weight", {4, 192}},
      {b0 + "xlstm.mlstm_cell.fgate.bias", {4}},
      {b0 + "xlstm.mlstm_cell.outnorm.weight", {64}},
      {b0 + "xlstm.proj_down.weight", {24, 64}},
      {b1 + "xlstm_norm.weight", {24}},
      {b1 + "xlstm.conv1d.conv.weight", {24, 1, 5}},
      {b1 + "xlstm.conv1d.conv.bias", {24}},
      {b1 + "xlstm.fgate.weight", {2, 12, 12}},
      {b1 + "xlstm.igate.weight", {2, 12, 12}},
      {b1 + "xlstm.zgate.weight", {2, 12, 12}},
      {b1 + "xlstm.ogate.weight", {2, 12, 12}},
      {b1 + "xlstm.slstm_cell._recurrent_kernel_", {2, 48, 12}},
      {b1 + "xlstm.slstm_cell._bias_", {96}},
      {b1 + "xlstm.group_norm.weight", {24}},
      {b1 + "ffn_norm.weight", {24}},
      {b1 + "ffn.proj_up.weight", {80, 24}},
      {b1 + "ffn.proj_down.weight", {24, 40}},
      {"xlstm_block_stack.post_blocks_norm.weight", {24}},
      {"token_embedding.weight", {320, 24}},
      {"lm_head.weight", {320, 24}},
  };
  EXPECT_EQ(tensors, expected);
  const auto cuda = PackageTensors(MixedPaperSpec(), SlstmBackend::kCuda);
  EXPECT_EQ(Find(cuda, kBlock1 + "xlstm.slstm_cell._recurrent_kernel_").shape,
            (std::vector<int64_t>{2, 12, 48}));
}

TEST(PackageTensors, SwapTheNamesOfTheInputAndForgetGatesOfTheSlstmInputWeightsAlone) {
  const auto tensors = PackageTensors(MixedPaperSpec(), SlstmBackend::kVanilla);
  const auto only_param = [&](const std::string& name) {
    const PackageTensor& tensor = Find(tensors, name);
    EXPECT_EQ(tensor.parts.size(), 1u);
    return tensor.parts[0].param;
  };
  const std::string slstm = "backbone.blocks.1.slstm_layer.";
  EXPECT_EQ(only_param(kBlock1 + "xlstm.fgate.weight"), slstm + "igate.weight");
  EXPECT_EQ(only_param(kBlock1 + "xlstm.igate.weight"), slstm + "fgate.weight");
  EXPECT_EQ(only_param(kBlock1 + "xlstm.zgate.weight"), slstm + "zgate.weight");
  EXPECT_EQ(only_param(kBlock1 + "xlstm.ogate.weight"), slstm + "ogate.weight");
  EXPECT_EQ(only_param("xlstm_block_stack.blocks.0.xlstm.mlstm_cell.fgate.weight"),
            "backbone.blocks.0.mlstm_layer.fgate_preact.weight");
}

// Element by element, from the words of SlstmBackend.
TEST(PackageTensors, OrderTheRecurrentWeightsAsTheBackendDoes) {
  const ModelSpec spec = MixedPaperSpec();
  const int64_t heads = 2, Dh = 12;
  const char* const gates[] = {"igate", "fgate", "zgate", "ogate"};
  for (const SlstmBackend backend : kBackends) {
    const bool vanilla = backend == SlstmBackend::kVanilla;
    const auto tensors = PackageTensors(spec, backend);
    const auto kernel = Contents(Find(tensors, kBlock1 + "xlstm.slstm_cell._recurrent_kernel_"));
    const auto bias = Contents(Find(tensors, kBlock1 + "xlstm.slstm_cell._bias_"));
    for (int64_t head = 0; head < heads; ++head) {
      for (int64_t gate = 0; gate < 4; ++gate) {
        const std::string param = std::string("backbone.blocks.1.slstm_layer.") + gates[gate];
        for (int64_t out = 0; out < Dh; ++out) {
          const int64_t b = vanilla ? (gate * heads + head) * Dh + out : (head * 4 + gate) * Dh + out;
          EXPECT_EQ(bias[static_cast<size_t>(b)], std::pair(param + ".bias", head * Dh + out));
          for (int64_t in = 0; in < Dh; ++in) {
            const int64_t k =
                vanilla ? ((head * 4 + gate) * Dh + out) * Dh + in : ((head * Dh + in) * 4 + gate) * Dh + out;
            EXPECT_EQ(kernel[static_cast<size_t>(k)],
                      std::pair(param + ".recurrent_weight", (head * Dh + out) * Dh + in));
          }
        }
      }
    }
  }
}

TEST(PackageTensors, WriteTheEmbeddingTwiceIfItIsTied) {
  ModelSpec spec = MixedPaperSpec();
  EXPECT_FALSE(Find(PackageTensors(spec, SlstmBackend::kVanilla), "lm_head.weight").duplicate);
  spec.tie_embeddings = true;
  const auto tensors = PackageTensors(spec, SlstmBackend::kVanilla);
  const PackageTensor& head = Find(tensors, "lm_head.weight");
  EXPECT_TRUE(head.duplicate);
  EXPECT_EQ(head.parts[0].param, "embedding.weight");
  EXPECT_FALSE(Find(tensors, "token_embedding.weight").duplicate);
}

template <class T>
void ExpectGatherAndScatterAreInverse() {
  for (const auto& [name, spec] : PaperSpecs()) {
    for (const SlstmBackend backend : kBackends) {
      std::map<std::string, std::vector<T>> params, back;
      T next = 1;
      for (const Param& param : ModelParams(spec)) {
        for (int64_t j = 0; j < param.num_elems; ++j) params[param.name].push_back(next++);
        back[param.name].resize(static_cast<size_t>(param.num_elems));
      }
      for (const PackageTensor& tensor : PackageTensors(spec, backend)) {
        std::vector<T> external(static_cast<size_t>(tensor.num_elems()));
        GatherPackageTensor(
            tensor, sizeof(T), [&](const std::string& param) { return params.at(param).data(); },
            external.data());
        ScatterPackageTensor(tensor, sizeof(T), external.data(),
                             [&](const std::string& param) { return back.at(param).data(); });
      }
      EXPECT_EQ(back, params) << name;
    }
  }
}
TEST(PackageTensors, GatherAndScatterAreInverseForEverySizeOfElements) {
  ExpectGatherAndScatterAreInverse<uint16_t>();
  ExpectGatherAndScatterAreInverse<uint32_t>();
  ExpectGatherAndScatterAreInverse<uint64_t>();
}

TEST(PackagePart, CanBeReadAndWrittenInAnyPieces) {
  for (const SlstmBackend backend : kBackends) {
    const auto tensors = PackageTensors(MixedPaperSpec(), backend);
    const PackageTensor& tensor = Find(tensors, kBlock1 + "xlstm.slstm_cell._recurrent_kernel_");
    const PackagePart& part = tensor.parts[2];
    std::vector<uint32_t> external(static_cast<size_t>(tensor.num_elems()));
    for (size_t j = 0; j < external.size(); ++j) external[j] = static_cast<uint32_t>(j);
    std::vector<uint32_t> whole(static_cast<size_t>(part.num_elems()));
    ReadPackagePart(part, 4, external.data(), 0, part.num_elems(), whole.data());
    for (const auto& [first, count] : std::vector<std::pair<int64_t, int64_t>>{
             {0, 0}, {0, 1}, {11, 2}, {7, 100}, {143, 2}, {part.num_elems() - 1, 1}, {288, 0}}) {
      std::vector<uint32_t> piece(static_cast<size_t>(count));
      ReadPackagePart(part, 4, external.data(), first, count, piece.data());
      EXPECT_EQ(piece, std::vector<uint32_t>(whole.begin() + first, whole.begin() + first + count));
      std::vector<uint32_t> written = external;
      WritePackagePart(part, 4, piece.data(), first, count, written.data());
      EXPECT_EQ(written, external);
    }
  }
}

TEST(SlstmBackend, HasTheNamesOfThePackage) {
  for (const SlstmBackend backend : kBackends) EXPECT_EQ(SlstmBackendFromName(NameOf(backend)), backend);
  EXPECT_EQ(SlstmBackendFromName("cuda"), SlstmBackend::kCuda);
  EXPECT_EQ(SlstmBackendFromName("triton"), std::nullopt);
}
}  // namespace
}  // namespace carousel
