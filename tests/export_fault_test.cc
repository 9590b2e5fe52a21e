// Exports on a disk that fails: at every call, full, with bits that change; on a machine that stops.
#include <gtest/gtest.h>

#include <random>

#include "checkpoints/hf_export.h"
#include "checkpoints/hf_import.h"
#include "checkpoints/xlstm_package_export.h"
#include "checkpoints/xlstm_package_import.h"
#include "tests/forwarding_file_system.h"
#include "tests/memory_file_system.h"
#include "tests/xlstm_package_testing.h"

namespace carousel {
namespace {
using testing::Contains;
using testing::ExpectEqualWeights;
using testing::ExportableSpec;
using testing::MemoryWeights;
using testing::MixedPaperSpec;
using testing::ReadFloats;

// Small, for it is written hundreds of times.
ModelSpec SmallSpec() {
  ModelSpec spec = ExportableSpec();
  spec.vocab_size = 260;
  spec.embedding_dim = spec.qk_dim = spec.v_dim = spec.ffn_dim = 64;
  return spec;
}

enum class Format { kHf, kNxai, kPackage };

// An export of each format into a file system.
struct Exporter {
  Format format = Format::kHf;
  const WeightSource* weights = nullptr;
  DType dtype = DType::kF32;
  bool overwrite = false;

  ModelSpec spec() const { return format == Format::kPackage ? MixedPaperSpec() : SmallSpec(); }
  ConfigDialect dialect() const {
    return format == Format::kNxai ? ConfigDialect::kReference : ConfigDialect::kTransformers;
  }
  absl::Status Run(FileSystem& files) const {
    if (format == Format::kPackage) {
      PackageExportOptions options;
      options.max_shard_bytes = 20'000;
      Set(&options);
      return ExportPackage({.spec = spec(), .backend = SlstmBackend::kCuda, .context_length = 8}, *weights,
                           options, files)
          .status();
    }
    HfExportOptions options;
    options.dialect = dialect();
    options.max_shard_bytes = 70'000;
    Set(&options);
    return ExportHf(spec(), *weights, options, files).status();
  }
  template <class Options>
  void Set(Options* options) const {
    options->out_dir = "/out";
    options->dtype = dtype;
    options->overwrite = overwrite;
    options->extra_files = {{"README.md", "hello"}};
  }
  // What is in a directory.
  absl::StatusOr<std::unique_ptr<WeightSource>> Open(FileSystem& files,
                                                     const std::string& dir = "/out") const {
    if (format == Format::kPackage) return PackageModel::Open(dir, &files);
    return HfModel::Open(dir, &files, dialect());
  }
};

bool Exists(FileSystem& files, const std::string& path) {
  const auto info = files.Stat(path);
  return info.ok() && info->exists;
}

class ExportFault : public ::testing::TestWithParam<Format> {};
INSTANTIATE_TEST_SUITE_P(Formats, ExportFault,
                         ::testing::Values(Format::kHf, Format::kNxai, Format::kPackage),
                         [](const auto& info) {
                           return info.param == Format::kHf     ? "hf"
                                  : info.param == Format::kNxai ? "nxai"
                                                                : "package";
                         });

TEST_P(ExportFault, AnErrorAtAnyCallLeavesWhatWasThere) {
  Exporter exporter{.format = GetParam()};
  MemoryWeights before(exporter.spec()), after(exporter.spec());
  for (const Param& param : after.params()) {
    for (float& value : after.values(param.name)) value += 1;
  }
  for (const bool replaces : {false, true}) {
    exporter.overwrite = replaces;
    bool finished = false;
    int64_t num_failed = 0;
    for (int64_t call = 0; !finished; ++call) {
      MemoryFileSystem files;
      exporter.weights = &before;
      if (replaces) {
        ASSERT_TRUE(exporter.Run(files).ok());
      }
      exporter.weights = &after;
      const absl::Status fault = call % 2 == 0 ? absl::ResourceExhaustedError("no space left on device")
                                               : absl::UnavailableError("input/output error");
      std::string failed_call;
      files.SetFault([&](int64_t index, const std::string& name, const std::string&) {
        if (index != call) return absl::OkStatus();
        failed_call = name;
        return fault;
      });
      const absl::Status status = exporter.Run(files);
      files.SetFault(nullptr);
      finished = failed_call.empty();
      SCOPED_TRACE(absl::StrCat(replaces ? "replacing, " : "", "call ", call, " ", failed_call));
      const auto model = exporter.Open(files);
      if (finished) {
        EXPECT_TRUE(status.ok()) << status;
        ASSERT_TRUE(model.ok()) << model.status();
        ExpectEqualWeights(**model, after);
        continue;
      }
      ++num_failed;
      EXPECT_EQ(status.code(), fault.code()) << status;
      EXPECT_TRUE(Contains(status, std::string(fault.message()))) << status;
      // The new one once it has its name, else the old one; nothing half.
      if (model.ok()) {
        const bool is_new = ReadFloats(**model, "lm_head.weight", 1)[0] == after.values("lm_head.weight")[0];
        ExpectEqualWeights(**model, is_new ? after : before);
        EXPECT_TRUE(is_new || replaces);
      } else {
        EXPECT_FALSE(replaces) << model.status();
        EXPECT_FALSE(Exists(files, "/out"));
      }
      EXPECT_FALSE(Exists(files, "/out.incomplete"));
      // And the next attempt succeeds.
      exporter.overwrite = true;
      const absl::Status again = exporter.Run(files);
      exporter.overwrite = replaces;
      EXPECT_TRUE(again.ok()) << again;
      EXPECT_FALSE(Exists(files, "/out.replaced"));
    }
    EXPECT_GT(num_failed, 30);
  }
}

TEST_P(ExportFault, AMachineThatStopsAtAnyCallLeavesAWholeDirectoryOrNone) {
  Exporter exporter{.format = GetParam()};
  const MemoryWeights weights(exporter.spec());
  exporter.weights = &weights;
  MemoryFileSystem counted;
  ASSERT_TRUE(exporter.Run(counted).ok());
  const int64_t num_calls = counted.num_calls();
  int64_t num_whole = 0;
  for (int64_t call = 0; call < num_calls; ++call) {
    for (const auto crash : {MemoryFileSystem::Crash::kLoseAll, MemoryFileSystem::Crash::kKeepAll,
                             MemoryFileSystem::Crash::kRandom}) {
      MemoryFileSystem files;
      files.SetFault([&](int64_t index, const std::string&, const std::string&) {
        return index >= call ? absl::UnavailableError("the machine stopped") : absl::OkStatus();
      });
      EXPECT_FALSE(exporter.Run(files).ok());
      files.CrashNow(crash, static_cast<uint64_t>(call));
      if (!Exists(files, "/out")) continue;
      ++num_whole;
      const auto model = exporter.Open(files);
      ASSERT_TRUE(model.ok()) << "call " << call << ": " << model.status();
      ExpectEqualWeights(**model, weights);
    }
  }
  EXPECT_GT(num_whole, 0);  // after the renaming
}

TEST_P(ExportFault, AFullDiskIsKnownBeforeAnythingIsWritten) {
  Exporter exporter{.format = GetParam()};
  const MemoryWeights weights(exporter.spec());
  exporter.weights = &weights;
  MemoryFileSystem files;
  files.SetFreeBytes(1000);
  const absl::Status status = exporter.Run(files);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_TRUE(Contains(status, "the disk has 1000 left")) << status;
  EXPECT_TRUE(files.AllFiles().empty());
}

TEST_P(ExportFault, AnExistingDirectoryStaysUnlessAskedOtherwise) {
  Exporter exporter{.format = GetParam()};
  const MemoryWeights weights(exporter.spec());
  exporter.weights = &weights;
  MemoryFileSystem files;
  ASSERT_TRUE(exporter.Run(files).ok());
  const std::vector<std::string> before = files.AllFiles();
  const absl::Status status = exporter.Run(files);
  EXPECT_EQ(status.code(), absl::StatusCode::kAlreadyExists) << status;
  EXPECT_TRUE(Contains(status, "/out") && Contains(status, "--force")) << status;
  EXPECT_EQ(files.AllFiles(), before);
}

// A disk that changes one bit of what is written.
class FlippingFileSystem final : public ForwardingFileSystem {
 public:
  // Of the `at`-th byte (in the order of writing) of files named *.safetensors.
  explicit FlippingFileSystem(int64_t at) : ForwardingFileSystem(memory_), at_(at) {}
  bool flipped() const { return at_ < 0; }

  absl::StatusOr<std::unique_ptr<WritableFile>> CreateFile(const std::string& path) override {
    auto file = memory_.CreateFile(path);
    if (!file.ok() || path.find(".safetensors") == std::string::npos ||
        path.find("json") != std::string::npos) {
      return file;
    }
    return std::unique_ptr<WritableFile>(std::make_unique<Writer>(this, std::move(*file)));
  }

 private:
  class Writer final : public WritableFile {
   public:
    Writer(FlippingFileSystem* disk, std::unique_ptr<WritableFile> file)
        : disk_(disk), file_(std::move(file)) {}
    absl::Status Append(const void* data, int64_t num_bytes) override {
      std::string bytes(static_cast<const char*>(data), static_cast<size_t>(num_bytes));
      if (disk_->at_ >= 0 && disk_->at_ < num_bytes) {
        bytes[static_cast<size_t>(disk_->at_)] =
            static_cast<char>(bytes[static_cast<size_t>(disk_->at_)] ^ 1);
      }
      disk_->at_ -= num_bytes;
      return file_->Append(bytes.data(), num_bytes);
    }
    absl::Status Sync() override { return file_->Sync(); }
    absl::Status Close() override { return file_->Close(); }

   private:
    FlippingFileSystem* disk_;
    std::unique_ptr<WritableFile> file_;
  };
  MemoryFileSystem memory_;
  int64_t at_;
};

TEST_P(ExportFault, ABitThatChangesOnTheDiskIsFoundAndTheDirectoryNeverAppears) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    Exporter exporter{.format = GetParam(), .dtype = dtype};
    const MemoryWeights weights(exporter.spec());
    exporter.weights = &weights;
    std::mt19937_64 random(3);
    int found = 0, harmless = 0, named = 0;
    const int64_t num_bytes = NumParameters(exporter.spec()) * SizeOf(dtype);
    for (int round = 0; round < 60; ++round) {
      FlippingFileSystem files(static_cast<int64_t>(random() % static_cast<uint64_t>(num_bytes)));
      const absl::Status status = exporter.Run(files);
      ASSERT_TRUE(files.flipped());
      if (status.ok()) {  // in a header, where some bytes do not matter: what is there reads back
        ++harmless;
        const auto model = exporter.Open(files);
        ASSERT_TRUE(model.ok()) << model.status();
        ExpectEqualWeights(**model, weights, dtype);
        continue;
      }
      ++found;
      named += status.code() == absl::StatusCode::kDataLoss && Contains(status, ".weight\"");
      EXPECT_FALSE(Exists(files, "/out")) << status;
      EXPECT_FALSE(Exists(files, "/out.incomplete"));
    }
    EXPECT_LE(harmless, 3);
    EXPECT_GT(named, 40);
    EXPECT_EQ(found + harmless, 60);
  }
}
}  // namespace
}  // namespace carousel
