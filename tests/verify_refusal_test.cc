// `carousel verify` refuses dumps that it cannot compute, and names the field or the tensor.
#include <cmath>

#include "launcher/models/curve_optimizer.h"
#include "tests/verify_testing.h"

namespace carousel {
namespace {
using testing::Contains;
using testing::EditableDump;
using testing::Json;

// Each change makes a dump that cannot be computed; the message must hold the text.
template <class Fn>
void ExpectRefused(const char* golden, const char* text, const Fn& change) {
  EditableDump dump(golden);
  change(dump);
  const auto report = dump.Verify(DType::kF64);
  ASSERT_FALSE(report.ok()) << text;
  EXPECT_TRUE(Contains(report.status(), text)) << report.status();
}

TEST(Verify, NamesTheFieldItCannotHonour) {
  ExpectRefused("large_a", "\"tie_weights\"", [](EditableDump& d) { d.SetConfig("tie_weights", true); });
  ExpectRefused("large_a", "\"qk_norm\"", [](EditableDump& d) { d.SetConfig("qk_norm", true); });
  ExpectRefused("large_a", "\"num_heads\"", [](EditableDump& d) { d.SetConfig("num_heads", 3); });
  ExpectRefused("large_a", "\"chunkwise_kernel\"",
                [](EditableDump& d) { d.SetConfig("chunkwise_kernel", "x"); });
  ExpectRefused("large_a", "\"family\"", [](EditableDump& d) { d.metadata["family"] = "xlstm_v2"; });
  ExpectRefused("large_a", "\"num_heads\"", [](EditableDump& d) { d.metadata["family"] = "xlstm_v1"; });
  ExpectRefused("large_a", "\"config\"", [](EditableDump& d) { d.metadata.erase("config"); });
  ExpectRefused("large_a", "\"precision\"", [](EditableDump& d) { d.metadata["precision"] = "tf32"; });
  ExpectRefused("mlstm_zero_state", "\"lstm\"", [](EditableDump& d) { d.metadata["cell"] = "lstm"; });
  ExpectRefused("mlstm_zero_state", "\"chunk\"", [](EditableDump& d) { d.metadata["cell"] = "slstm"; });
  ExpectRefused("mlstm_zero_state", "\"input_gate\"",
                [](EditableDump& d) { d.metadata["input_gate"] = "relu"; });
  ExpectRefused("mlstm_zero_state", "\"normalize\"",
                [](EditableDump& d) { d.metadata["normalize"] = "False"; });
  ExpectRefused("mlstm_zero_state", "\"qk_scale\"", [](EditableDump& d) { d.metadata["qk_scale"] = "1"; });
  ExpectRefused("mlstm_zero_state", "\"eps\"", [](EditableDump& d) { d.metadata["eps"] = "-1"; });
  ExpectRefused("mlstm_zero_state", "\"shape\"",
                [](EditableDump& d) { d.metadata["shape"] = "(1, 2, 3, 4, 5)"; });
  ExpectRefused("mlstm_zero_state", "\"forget_gate\"",
                [](EditableDump& d) { d.metadata["forget_gate"] = "exp"; });
  ExpectRefused("curve_large", "\"optimizer\"",
                [](EditableDump& d) { d.metadata["optimizer"] = "SGD lr 1"; });
  ExpectRefused("curve_large", "dropout", [](EditableDump& d) {
    d.metadata["optimizer"] = "AdamW betas 0.9 0.95 eps 1e-8 dropout 0.1";
  });
}
// Sets a field of a config whose path has dots.
void SetNested(EditableDump& dump, const std::string& path, const Json& value) {
  Json config = Json::parse(dump.metadata["config"]);
  std::string pointer = "/" + path;
  std::replace(pointer.begin(), pointer.end(), '.', '/');
  config[Json::json_pointer(pointer)] = value;
  dump.metadata["config"] = config.dump();
}
TEST(Verify, NamesTheFieldOfAPaperConfigItCannotHonour) {
  const struct {
    const char *path, *text;
    Json value;
  } changes[] = {{"mlstm_block.mlstm.num_heads", "mlstm_block.mlstm.num_heads", 3},
                 {"mlstm_block.mlstm.qkv_proj_blocksize", "qkv_proj_blocksize", "four"},
                 {"mlstm_block.mlstm.chunk", "mlstm_block.mlstm.chunk", 64},
                 {"slstm_block.slstm.num_heads", "slstm_block.slstm.num_heads", 5},
                 {"slstm_block.slstm.function", "function", "lstm"},
                 {"slstm_block.slstm.backend", "backend", "triton"},
                 {"slstm_block.feedforward.act_fn", "act_fn", "relu"},
                 {"slstm_at", "slstm_at", Json::array({3})},
                 {"rope", "rope", true},
                 {"vocab_size", "vocab_size", "many"}};
  for (const auto& change : changes) {
    ExpectRefused("v1_mixed", change.text, [&](EditableDump& d) { SetNested(d, change.path, change.value); });
  }
  ExpectRefused("v1_mixed", "\"config\"", [](EditableDump& d) { d.metadata.erase("config"); });
  ExpectRefused("v1_mixed", "config", [](EditableDump& d) { d.metadata["config"] = "{\"num_blocks\": "; });
  ExpectRefused("v1_mixed", "\"precision\"", [](EditableDump& d) { d.metadata["precision"] = "tf32"; });
  ExpectRefused("slstm_with_state", "\"layout\"",
                [](EditableDump& d) { d.metadata["layout"] = "wx [B,T,4,H*dh]"; });
  ExpectRefused("slstm_with_state", "\"shape\"",
                [](EditableDump& d) { d.metadata["shape"] = "(2, 4, 17, 9)"; });
  ExpectRefused("slstm_with_state", "\"clip\"", [](EditableDump& d) { d.metadata["clip"] = "1.0"; });
}
// Each change makes words of which the refused ones must be quoted.
TEST(Verify, NamesTheWordsOfAnOptimizerItDoesNotKnow) {
  const struct {
    const char *from, *to, *quoted;
  } changes[] = {
      {"on tensors of 2 or more dims, none on 1-d", "on everything but norms", "2 or more dims"},
      {"none on 1-d", "none on 1-d and embeddings", "and embeddings"},
      {"no dropout", "dropout 0.1", "dropout 0.1"},
      {"no dropout", "no dropout; amsgrad", "\"amsgrad\""},
      {"no dropout", "no dropout, gradient noise 1e-3", "gradient noise 1e-3"},
      {"global-norm clip 1.0", "value clip 1.0", "value"},
      {"input tokens[s,:,:-1]", "input tokens[s,:,1:]", "input tokens"},
      {"AdamW", "Lion", "AdamW"},
      {"eps 1e-8, ", "", "eps E"},
      {"decoupled weight decay 0.1 on tensors of 2 or more dims, none on 1-d", "", "no weight decay"},
      {"betas 0.9 0.95", "betas 0.9 1.95", "below 1"}};
  for (const auto& change : changes) {
    ExpectRefused("curve_v1_mixed", change.quoted, [&](EditableDump& d) {
      std::string& text = d.metadata["optimizer"];
      ASSERT_NE(text.find(change.from), std::string::npos);
      text.replace(text.find(change.from), std::string(change.from).size(), change.to);
    });
  }
}
TEST(CurveOptimizer, ReadsTheSameInOtherWords) {
  for (const char* text :
       {"AdamW, betas (0.9, 0.95), eps=1e-8, weight decay 0.1 on tensors of 2 or more dims, clip at 1",
        "no dropout; clip 1.0; decoupled weight decay: 0.1 on tensors of 2 or more dims, none on 1-d; "
        "eps 0.00000001; betas 0.9/0.95; ADAMW"}) {
    EditableDump dump("curve_v1_mixed");
    dump.metadata["optimizer"] = text;
    const auto optimizer = dump.Read(ReadCurveOptimizer);
    ASSERT_TRUE(optimizer.ok()) << optimizer.status();
    EXPECT_EQ(optimizer->adamw.beta1, 0.9) << text;
    EXPECT_EQ(optimizer->adamw.beta2, 0.95) << text;
    EXPECT_EQ(optimizer->adamw.eps, 1e-8) << text;
    EXPECT_EQ(optimizer->adamw.weight_decay, 0.1) << text;
    EXPECT_EQ(optimizer->adamw.clip_norm, 1) << text;
    EXPECT_FALSE(optimizer->decay_all) << text;
  }
  EditableDump dump("curve_v1_mixed");
  dump.metadata["optimizer"] = "AdamW betas 0.9 0.95 eps 1e-8 weight decay 0.2 on all tensors, no clipping";
  const auto optimizer = dump.Read(ReadCurveOptimizer);
  ASSERT_TRUE(optimizer.ok()) << optimizer.status();
  EXPECT_TRUE(optimizer->decay_all);
  EXPECT_EQ(optimizer->adamw.weight_decay, 0.2);
  EXPECT_EQ(optimizer->adamw.clip_norm, 0);
}
TEST(Verify, NamesTheTensorOfAPaperDumpThatIsMissingOrWrong) {
  const std::string cell = "xlstm_block_stack.blocks.1.xlstm.slstm_cell.";
  for (const std::string& name : {"param." + cell + "_bias_", "grad." + cell + "_recurrent_kernel_",
                                  std::string("logits"), std::string("loss"), std::string("targets"),
                                  std::string("param.xlstm_block_stack.post_blocks_norm.weight")}) {
    ExpectRefused("v1_mixed", name.c_str(), [&](EditableDump& d) { d.Remove(name); });
  }
  ExpectRefused("v1_mixed", "_recurrent_kernel_", [&](EditableDump& d) {
    d.tensor("param." + cell + "_recurrent_kernel_").spec.shape = {4, 16, 64};  // the other backend's
  });
  ExpectRefused("v1_mixed", "param.extra", [](EditableDump& d) {
    d.tensors.push_back({{"param.extra", SafetensorsDType::kF64, {0}}, {}});
  });
  ExpectRefused("v1_mixed", "logits", [](EditableDump& d) { d.values<double>("logits")[7] = INFINITY; });
  for (const char* name : {"wx", "R", "b", "dy", "y", "grad.wx", "grad.R", "grad.b", "s0"}) {
    ExpectRefused("slstm_with_state", name, [&](EditableDump& d) { d.Remove(name); });
  }
  ExpectRefused("slstm_with_state", "\"R\"", [](EditableDump& d) { d.tensor("R").spec.shape = {4, 8, 32}; });
  ExpectRefused("slstm_with_state", "\"wx\"", [](EditableDump& d) { d.tensor("wx").spec.shape = {17, 256}; });
  ExpectRefused("slstm_with_state", "\"q\"", [](EditableDump& d) {
    d.tensors.push_back({{"q", SafetensorsDType::kF64, {0}}, {}});
  });
  ExpectRefused("curve_v1_mixed", "final.lm_head.weight",
                [](EditableDump& d) { d.Remove("final.lm_head.weight"); });
}
TEST(Verify, NamesTheTensorThatIsMissingOrWrong) {
  ExpectRefused("large_a", "param.lm_head.weight", [](EditableDump& d) { d.Remove("param.lm_head.weight"); });
  ExpectRefused("large_a", "grad.lm_head.weight", [](EditableDump& d) { d.Remove("grad.lm_head.weight"); });
  ExpectRefused("large_a", "logits", [](EditableDump& d) { d.Remove("logits"); });
  ExpectRefused("large_a", "input_ids", [](EditableDump& d) { d.values<int32_t>("input_ids")[5] = 96; });
  ExpectRefused("large_a", "targets", [](EditableDump& d) { d.values<int32_t>("targets")[5] = -1; });
  ExpectRefused("large_a", "logits", [](EditableDump& d) { d.values<float>("logits")[0] = NAN; });
  ExpectRefused("large_a", "input_ids",
                [](EditableDump& d) { d.tensor("input_ids").spec.dtype = SafetensorsDType::kF32; });
  ExpectRefused("mlstm_with_state", "\"grad.k\"", [](EditableDump& d) { d.Remove("grad.k"); });
  ExpectRefused("mlstm_with_state", "\"n0\"", [](EditableDump& d) { d.Remove("n0"); });
  ExpectRefused("mlstm_with_state", "\"k\"", [](EditableDump& d) {
    d.tensor("k").spec.shape = {1, 2, 32, 96};
  });
  ExpectRefused("mlstm_with_state", "\"w\"", [](EditableDump& d) {
    d.tensors.push_back({{"w", SafetensorsDType::kF32, {0}}, {}});
  });
  ExpectRefused("curve_large", "lrs", [](EditableDump& d) { d.Remove("lrs"); });
}
}  // namespace
}  // namespace carousel
