#include "core/model/slstm_layer.h"

#include "tests/layer_testing.h"

namespace carousel {
namespace {
using testing::ExpectLayerGradients;
using testing::TinyPaperSpec;

ModelSpec WithoutConvolution() {
  ModelSpec spec = TinyPaperSpec();
  spec.slstm_conv_kernel = 0;
  return spec;
}
ModelSpec OfTheLargeFamily() {
  ModelSpec spec = TinyPaperSpec();
  spec.family = Family::kLarge;
  spec.slstm_num_heads = 1;
  return spec;
}

TEST(SlstmLayer, GradientsEqualCentralDifferences) {
  ExpectLayerGradients<SlstmLayer>(TinyPaperSpec(), false);
}
TEST(SlstmLayer, GradientsEqualCentralDifferencesWithResets) {
  ExpectLayerGradients<SlstmLayer>(TinyPaperSpec(), true);
}
TEST(SlstmLayer, GradientsEqualCentralDifferencesWithoutConvolution) {
  ExpectLayerGradients<SlstmLayer>(WithoutConvolution(), true);
}
TEST(SlstmLayer, GradientsEqualCentralDifferencesInTheLargeFamily) {
  ExpectLayerGradients<SlstmLayer>(OfTheLargeFamily(), true);
}
TEST(SlstmLayer, GradientsEqualCentralDifferencesWithoutNormWeight) {
  ModelSpec spec = TinyPaperSpec();
  spec.slstm_norm_weight = false;
  ExpectLayerGradients<SlstmLayer>(spec, true);
}
TEST(SlstmLayer, GradientsEqualCentralDifferencesWithDropout) {
  ModelSpec spec = TinyPaperSpec();
  spec.dropout = 0.3;
  ExpectLayerGradients<SlstmLayer>(spec, true, /*dropout_key=*/11);
}

TEST(SlstmLayer, SplittingTheSequenceAnywhereEqualsCarryingTheState) {
  for (const ModelSpec& spec : {TinyPaperSpec(), WithoutConvolution(), OfTheLargeFamily()}) {
    testing::ExpectSplittingEqualsCarrying<SlstmLayer>(spec);
  }
}

TEST(SlstmLayer, PackedDocumentsEqualSeparateOnes) {
  for (const ModelSpec& spec : {TinyPaperSpec(), WithoutConvolution()}) {
    testing::ExpectPackingEqualsSeparateDocuments<SlstmLayer>(spec);
  }
}

TEST(SlstmLayer, CuttingTheRecurrentGradientLeavesTheForwardAlone) {
  const auto device = testing::CpuDevice();
  ModelSpec cut_spec = TinyPaperSpec();
  cut_spec.slstm_gradient_cut = true;
  ModelSpec clip_spec = TinyPaperSpec();
  clip_spec.slstm_gradient_clip = 1e-3;
  testing::LayerRig<SlstmLayer> plain(*device, TinyPaperSpec(), 2, 7), cut(*device, cut_spec, 2, 7),
      clipped(*device, clip_spec, 2, 7);
  for (auto* rig : {&plain, &cut, &clipped}) rig->Backward();
  EXPECT_EQ(plain.Values(plain.y), cut.Values(cut.y));
  EXPECT_EQ(plain.Values(plain.y), clipped.Values(clipped.y));
  EXPECT_GT(testing::RelativeL2(cut.Values(cut.dx), plain.Values(plain.dx)), 1e-3);
  EXPECT_GT(testing::RelativeL2(clipped.Values(clipped.dx), plain.Values(plain.dx)), 1e-3);
}

TEST(SlstmLayer, TheForgetBiasFollowsThePowerLawOfTheDepth) {
  ModelSpec spec = TinyPaperSpec();  // 3 blocks, 3 heads of width 4
  for (int64_t block = 0; block < 3; ++block) {
    ParamStore params(DType::kF64, 1, 0);
    const SlstmLayer layer(spec, params, "layer.", 0, block);
    const Param& bias = params.param(params.Find("layer.fgate.bias"));
    std::vector<double> values(12);
    InitialValues(bias, /*seed=*/5, 0, 12, values.data());
    for (int64_t j = 0; j < 12; ++j) {
      const double place = static_cast<double>(j % 4) / 3, depth = static_cast<double>(block) / 2;
      EXPECT_NEAR(values[static_cast<size_t>(j)], -(-5 + 12 * std::pow(place, 0.3 + 1.3 * depth)), 1e-14);
    }
    for (const char* name : {"layer.igate.bias", "layer.zgate.bias", "layer.ogate.bias"}) {
      EXPECT_EQ(params.param(params.Find(name)).init.rule, InitRule::kZero);
    }
  }
}

TEST(SlstmLayer, OnlyTheGateMapsAndTheConvolutionDecay) {
  ParamStore params(DType::kF64, 1, 0);
  const SlstmLayer layer(TinyPaperSpec(), params, "layer.", 0, 0);
  for (const Param& param : params.params()) {
    const bool map = param.name.ends_with(".weight") && param.name.find("norm") == std::string::npos;
    EXPECT_EQ(param.decay, map) << param.name;
  }
}
}  // namespace
}  // namespace carousel
