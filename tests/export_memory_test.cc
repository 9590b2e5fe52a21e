// The memory of import and export does not grow with the model: the program itself, on models of two sizes.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>

#include "checkpoints/digest.h"
#include "checkpoints/hf_export.h"
#include "tests/hf_testing.h"
#include "tests/temp_dir.h"

namespace carousel {
namespace {
using testing::ExportableSpec;

constexpr int64_t kMiB = int64_t{1} << 20;
// What peaks may differ by, for models whose weights differ by 80 MiB and whose checkpoints by 240 MiB.
constexpr int64_t kSlackBytes = 16 * kMiB;

// Weights that are made when they are read.
class MadeUpWeights final : public WeightSource {
 public:
  explicit MadeUpWeights(const ModelSpec& spec) : params_(ModelParams(spec)) {}
  const std::vector<Param>& params() const override { return params_; }
  absl::Status Read(const std::string& name, int64_t begin, int64_t count, DType dtype,
                    void* data) const override {
    CAROUSEL_CHECK(dtype == DType::kF32);
    for (int64_t i = 0; i < count; ++i) {
      const uint64_t mixed = DigestMix(static_cast<uint64_t>(begin + i) * 31 + name.size());
      static_cast<float*>(data)[i] = static_cast<float>(mixed >> 40) * 0x1p-25f - 0.25f;
    }
    return absl::OkStatus();
  }

 private:
  std::vector<Param> params_;
};

struct Outcome {
  int exit_code = -1;
  int64_t peak_bytes = 0;  // resident
};
Outcome Run(const std::vector<std::string>& arguments, const std::string& log) {
  std::vector<char*> argv;
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  const pid_t child = fork();
  if (child == 0) {
    const int fd = open(log.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    dup2(fd, STDOUT_FILENO);
    dup2(fd, STDERR_FILENO);
    execv(argv[0], argv.data());
    _exit(127);
  }
  int status = 0;
  rusage usage = {};
  CAROUSEL_CHECK(wait4(child, &status, 0, &usage) == child);
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, usage.ru_maxrss * 1024};
}
std::string Read(const std::string& path) {
  PosixFileSystem files;
  return ReadFile(files, path, kMiB).value_or("");
}

// The peaks of importing and exporting a model whose largest tensors have vocab_size rows.
struct Peaks {
  int64_t import = 0, export_f32 = 0, export_bf16 = 0;
  int64_t weight_bytes = 0;
};
Peaks PeaksOf(int64_t vocab_size) {
  const TempDir temp;
  const auto path = [&](const char* name) { return temp.path() + "/" + name; };
  ModelSpec spec = ExportableSpec();
  spec.vocab_size = vocab_size;
  spec.embedding_dim = spec.v_dim = spec.qk_dim = 512;
  spec.ffn_dim = 1024;
  PosixFileSystem files;
  HfExportOptions options;
  options.dialect = ConfigDialect::kReference;
  options.out_dir = path("model");
  const auto made = ExportHf(spec, MadeUpWeights(spec), options, files);
  EXPECT_TRUE(made.ok()) << made.status();

  Peaks peaks{.weight_bytes = 4 * NumParameters(spec)};
  const auto run = [&](std::vector<std::string> arguments, int64_t* peak) {
    arguments.insert(arguments.begin(), CAROUSEL_PROGRAM);
    const Outcome outcome = Run(arguments, path("log"));
    EXPECT_EQ(outcome.exit_code, 0) << Read(path("log"));
    *peak = outcome.peak_bytes;
  };
  run({"import", "--model", path("model"), "--out", path("run")}, &peaks.import);
  std::filesystem::remove_all(path("model"));
  run({"export", "--check", "digests", "--model", path("run"), "--out", path("hf")}, &peaks.export_f32);
  std::filesystem::remove_all(path("hf"));
  run({"export", "--check", "digests", "--format", "nxai", "--dtype", "bf16", "--model", path("run"), "--out",
       path("nxai")},
      &peaks.export_bf16);
  return peaks;
}

TEST(ExportMemory, DoesNotGrowWithTheModel) {
  const Peaks small = PeaksOf(10240), large = PeaksOf(10240 + 20480);
  ASSERT_GE(large.weight_bytes - small.weight_bytes, 80 * kMiB);
  ASSERT_GE(small.weight_bytes, 48 * kMiB);  // several blocks already
  const auto compare = [](const char* what, int64_t a, int64_t b) {
    std::printf("%-12s peak %4lld MiB and %4lld MiB\n", what, static_cast<long long>(a / kMiB),
                static_cast<long long>(b / kMiB));
    EXPECT_LE(b - a, kSlackBytes) << what;
  };
  std::printf("weights      %4lld MiB and %4lld MiB\n", static_cast<long long>(small.weight_bytes / kMiB),
              static_cast<long long>(large.weight_bytes / kMiB));
  compare("import", small.import, large.import);
  compare("export f32", small.export_f32, large.export_f32);
  compare("export bf16", small.export_bf16, large.export_bf16);
}
}  // namespace
}  // namespace carousel
