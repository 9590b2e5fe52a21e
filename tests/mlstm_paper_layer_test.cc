#include "core/model/mlstm_paper_layer.h"

#include "tests/layer_testing.h"

namespace carousel {
namespace {
using testing::ExpectLayerGradients;
using testing::TinyPaperSpec;

ModelSpec WithBiases() {
  ModelSpec spec = TinyPaperSpec();
  spec.use_bias = true;
  spec.qkv_block_size = 4;
  spec.conv_kernel = 2;
  return spec;
}

TEST(MlstmPaperLayer, GradientsEqualCentralDifferences) {
  ExpectLayerGradients<MlstmPaperLayer>(TinyPaperSpec(), false);
}
TEST(MlstmPaperLayer, GradientsEqualCentralDifferencesWithResets) {
  ExpectLayerGradients<MlstmPaperLayer>(TinyPaperSpec(), true);
}
TEST(MlstmPaperLayer, GradientsEqualCentralDifferencesWithBiases) {
  ExpectLayerGradients<MlstmPaperLayer>(WithBiases(), true);
}
TEST(MlstmPaperLayer, GradientsEqualCentralDifferencesWithFullMapsAndAKernelOfOne) {
  ModelSpec spec = TinyPaperSpec();
  spec.qkv_block_size = spec.qk_dim;
  spec.conv_kernel = 1;
  ExpectLayerGradients<MlstmPaperLayer>(spec, true);
}
TEST(MlstmPaperLayer, GradientsEqualCentralDifferencesWithDropout) {
  ModelSpec spec = TinyPaperSpec();
  spec.dropout = 0.4;
  ExpectLayerGradients<MlstmPaperLayer>(spec, true, /*dropout_key=*/3);
}

TEST(MlstmPaperLayer, SplittingTheSequenceAnywhereEqualsCarryingTheState) {
  for (const ModelSpec& spec : {TinyPaperSpec(), WithBiases()}) {
    testing::ExpectSplittingEqualsCarrying<MlstmPaperLayer>(spec);
  }
}

TEST(MlstmPaperLayer, PackedDocumentsEqualSeparateOnes) {
  for (const ModelSpec& spec : {TinyPaperSpec(), WithBiases()}) {
    testing::ExpectPackingEqualsSeparateDocuments<MlstmPaperLayer>(spec);
  }
}

TEST(MlstmPaperLayer, TheResultDoesNotDependOnTheChunkLength) {
  const auto device = testing::CpuDevice();
  testing::LayerRig<MlstmPaperLayer> expected(*device, TinyPaperSpec(), 2, 13, true);
  expected.Backward();
  for (const int64_t L : {1, 2, 5, 64}) {
    ModelSpec spec = TinyPaperSpec();
    spec.chunk_length = L;
    testing::LayerRig<MlstmPaperLayer> rig(*device, spec, 2, 13, true);
    rig.Backward();
    EXPECT_LT(testing::RelativeL2(rig.Values(rig.y), expected.Values(expected.y)), 1e-12) << "L " << L;
    EXPECT_LT(testing::RelativeL2(rig.Values(rig.dx), expected.Values(expected.dx)), 1e-11) << "L " << L;
  }
}

TEST(MlstmPaperLayer, MatricesDecayAndVectorsDoNot) {
  ParamStore params(DType::kF64, 1, 0);
  const MlstmPaperLayer layer(WithBiases(), params, "layer.", 0, 0);
  for (const Param& param : params.params()) EXPECT_EQ(param.decay, param.shape.size() == 2) << param.name;
}
}  // namespace
}  // namespace carousel
