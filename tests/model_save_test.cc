// A checkpoint made of weights from elsewhere: the same bytes a run would save, on disks that fail too.
#include "checkpoints/model_save.h"

#include <gtest/gtest.h>

#include "checkpoints/checkpoint_tensors.h"
#include "checkpoints/digest.h"
#include "checkpoints/model_digests.h"
#include "tests/hf_testing.h"
#include "tests/memory_file_system.h"

namespace carousel {
namespace {
using testing::Contains;
using testing::ExpectEqualWeights;
using testing::ExportableSpec;
using testing::MemoryWeights;

constexpr char kRunDir[] = "/run";

ModelSpec SmallSpec() {
  ModelSpec spec = ExportableSpec();
  spec.vocab_size = 260;
  spec.embedding_dim = spec.qk_dim = spec.v_dim = spec.ffn_dim = 64;
  return spec;
}
SaveRequest RequestOn(FileSystem& files) {
  SaveRequest request;
  request.run_dir = kRunDir;
  request.run_id = "test";
  request.state.seed = 5;
  request.config_text = "# a config";
  request.writer = "test";
  request.max_file_bytes = 100'000;  // several files
  request.files = &files;
  return request;
}
absl::Status Save(const MemoryWeights& weights, DType dtype, FileSystem& files) {
  return SaveWeights(weights, weights.params(), dtype, RequestOn(files), nullptr);
}

TEST(SaveWeights, MakesTheCheckpointThatTheSameStateInMemoryMakes) {
  const MemoryWeights weights(SmallSpec());
  for (const DType dtype : {DType::kF32, DType::kF64, DType::kBF16}) {
    MemoryFileSystem streamed, held;
    ASSERT_TRUE(Save(weights, dtype, streamed).ok());
    // All of it in memory.
    std::vector<std::vector<std::byte>> values;
    SaveRequest request = RequestOn(held);
    for (const Param& param : weights.params()) {
      for (const StateKind kind : {StateKind::kWeight, StateKind::kAdamM, StateKind::kAdamV}) {
        values.emplace_back(static_cast<size_t>(param.num_elems * SizeOf(dtype)));
        if (kind == StateKind::kWeight) {
          ASSERT_TRUE(weights.Read(param.name, 0, param.num_elems, dtype, values.back().data()).ok());
        }
        request.slices.push_back(WholeSlice(param.name, kind, dtype, param.shape, values.back().data()));
      }
    }
    ASSERT_TRUE(SaveCheckpoint(request).ok());
    EXPECT_EQ(streamed.AllFiles(), held.AllFiles());
    int64_t num_shards = 0;
    for (const std::string& path : streamed.AllFiles()) {
      if (path.find(".safetensors") == std::string::npos) continue;
      ++num_shards;
      EXPECT_EQ(*streamed.Contents(path), *held.Contents(path)) << path;
    }
    EXPECT_GT(num_shards, 4);
    const auto dir = FindCheckpoint(kRunDir, &streamed);
    ASSERT_TRUE(dir.ok()) << dir.status();
    const auto differences = DiffCheckpoints(*dir, *dir, /*weights_only=*/false, &streamed);
    EXPECT_TRUE(differences.ok() && differences->empty());
    const auto written = OpenCheckpointWeights(*dir, &streamed);
    ASSERT_TRUE(written.ok()) << written.status();
    const auto compared = CompareDigests({.expected = written->get(),
                                          .expected_name = "the checkpoint",
                                          .written = &weights,
                                          .written_name = "the weights",
                                          .dtype = dtype});
    EXPECT_TRUE(compared.ok()) << compared.status();
  }
}

TEST(SaveWeights, AnErrorAtAnyCallLeavesNoCheckpointOrAWholeOne) {
  const MemoryWeights weights(SmallSpec());
  bool finished = false;
  int64_t num_failed = 0;
  for (int64_t call = 0; !finished; ++call) {
    MemoryFileSystem files;
    std::string failed_call;
    const absl::Status fault = call % 2 == 0 ? absl::ResourceExhaustedError("no space left on device")
                                             : absl::UnavailableError("input/output error");
    files.SetFault([&](int64_t index, const std::string& name, const std::string&) {
      if (index != call) return absl::OkStatus();
      failed_call = name;
      return fault;
    });
    const absl::Status status = Save(weights, DType::kF32, files);
    files.SetFault(nullptr);
    finished = failed_call.empty();
    SCOPED_TRACE(absl::StrCat("call ", call, " ", failed_call));
    num_failed += !status.ok();
    const auto dir = FindCheckpoint(kRunDir, &files);
    ASSERT_TRUE(dir.ok() || !status.ok()) << dir.status();
    if (dir.ok()) {
      const auto written = OpenCheckpointWeights(*dir, &files);
      ASSERT_TRUE(written.ok()) << written.status();
      ExpectEqualWeights(**written, weights);
    }
    // And the next attempt succeeds, whether there is one already or not.
    const absl::Status again = Save(weights, DType::kF32, files);
    EXPECT_TRUE(again.ok()) << again;
  }
  EXPECT_GT(num_failed, 30);
}

TEST(SaveWeights, AnErrorOfTheSourceIsTheErrorAndNothingIsLeft) {
  class Failing final : public WeightSource {
   public:
    explicit Failing(const WeightSource& source) : source_(source) {}
    const std::vector<Param>& params() const override { return source_.params(); }
    absl::Status Read(const std::string& name, int64_t begin, int64_t count, DType dtype,
                      void* data) const override {
      if (name == "lm_head.weight") return absl::DataLossError("model.safetensors ends at byte 7");
      return source_.Read(name, begin, count, dtype, data);
    }

   private:
    const WeightSource& source_;
  };
  const MemoryWeights weights(SmallSpec());
  MemoryFileSystem files;
  const absl::Status status =
      SaveWeights(Failing(weights), weights.params(), DType::kF32, RequestOn(files), nullptr);
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_TRUE(Contains(status, "ends at byte 7")) << status;
  EXPECT_FALSE(FindCheckpoint(kRunDir, &files).ok());
  for (const std::string& path : files.AllFiles())
    EXPECT_EQ(path.find("safetensors"), std::string::npos) << path;
}

TEST(SaveWeights, ReportsEveryByteOnce) {
  const MemoryWeights weights(SmallSpec());
  MemoryFileSystem files;
  int64_t last = 0, total = 0;
  const auto progress = [&](int64_t done, int64_t of) {
    EXPECT_GT(done, last);
    last = done;
    total = of;
  };
  ASSERT_TRUE(SaveWeights(weights, weights.params(), DType::kF64, RequestOn(files), progress).ok());
  EXPECT_EQ(last, 3 * 8 * NumParameters(SmallSpec()));
  EXPECT_EQ(total, last);
}
}  // namespace
}  // namespace carousel
