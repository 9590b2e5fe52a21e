// export, import, generate and verify as a user runs them.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdio>
#include <filesystem>
#include <fstream>

#include "configs/load.h"
#include "core/base/exit_code.h"
#include "launcher/models/imported_run.h"
#include "tests/temp_dir.h"
#include "tests/xlstm_package_testing.h"

namespace carousel {
namespace {
using testing::ExportableSpec;
using testing::MemoryWeights;

struct Outcome {
  int exit_code = -1;
  std::string out, err;
};

// A run with random weights, made once, and the program.
class ModelCommands : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    temp_ = new TempDir;
    MakeRun(ExportableSpec(), "run");
  }
  static void TearDownTestSuite() { delete temp_; }

  static std::string Path(const std::string& name) { return temp_->path() + "/" + name; }
  static std::string Read(const std::string& path) {
    std::ifstream in(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  static void MakeRun(const ModelSpec& spec, const std::string& name) {
    const auto run = LoadRunFromText(ConfigForModel(spec, true), "test", {.sets = {}, .run_dir = Path(name)});
    ASSERT_TRUE(run.ok()) << run.status();
    const auto checkpoint = WriteImportedRun(MemoryWeights(spec), *run, "test");
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  }
  // `arguments` as in a shell.
  static Outcome Run(const std::string& arguments) {
    const std::string out = Path("stdout"), err = Path("stderr");
    const int status =
        std::system((std::string(CAROUSEL_PROGRAM) + " " + arguments + " >" + out + " 2>" + err).c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, Read(out), Read(err)};
  }

 private:
  static TempDir* temp_;
};
TempDir* ModelCommands::temp_ = nullptr;

TEST_F(ModelCommands, GreedyTextIsTheSameFromRunAndExport) {
  const std::string prompt = " --prompt 'It is a truth universally' --temperature 0 --max_tokens 40";
  const Outcome exported = Run("export --format hf --model " + Path("run") + " --out " + Path("a"));
  ASSERT_EQ(exported.exit_code, 0) << exported.err;
  EXPECT_NE(exported.out.find("max |delta logit| = 0 "), std::string::npos) << exported.out;
  for (const char* file : {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
                           "tokenizer_config.json", "special_tokens_map.json", "README.md"}) {
    EXPECT_TRUE(std::filesystem::exists(Path("a") + "/" + file)) << file;
  }
  const Outcome run = Run("generate --model " + Path("run") + prompt);
  const Outcome hf = Run("generate --model " + Path("a") + prompt);
  ASSERT_EQ(run.exit_code, 0) << run.err;
  EXPECT_EQ(run.out, hf.out);
  EXPECT_EQ(run.out.rfind("It is a truth universally", 0), 0u);
  EXPECT_NE(run.err.find("tokens/s"), std::string::npos);
  const Outcome back = Run("import --model " + Path("a") + " --out " + Path("b"));
  ASSERT_EQ(back.exit_code, 0) << back.err;
  EXPECT_EQ(Run("generate --model " + Path("b") + prompt).out, run.out);
  EXPECT_EQ(Run("import --model " + Path("a") + " --out " + Path("b")).exit_code,
            kExitFailure);  // it is a run now
}

TEST_F(ModelCommands, APaperModelGoesToThePackageXlstmAndBack) {
  MakeRun(testing::MixedPaperSpec(), "paper");
  const std::string prompt = " --prompt 'It is a truth universally' --temperature 0 --max_tokens 40";
  const std::string text = Run("generate --model " + Path("paper") + prompt).out;
  EXPECT_EQ(text.rfind("It is a truth universally", 0), 0u);
  for (const std::string backend : {"vanilla", "cuda"}) {
    const std::string dir = Path("paper_" + backend), back = Path("paper_run_" + backend);
    const Outcome exported =
        Run("export --model " + Path("paper") + " --slstm_backend " + backend + " --out " + dir);
    ASSERT_EQ(exported.exit_code, 0) << exported.err;
    EXPECT_NE(exported.out.find("max |delta logit| = 0 "), std::string::npos) << exported.out;
    EXPECT_NE(exported.out.find("layout of the backend " + backend), std::string::npos) << exported.out;
    EXPECT_NE(Read(dir + "/README.md").find("backend `" + backend + "`"), std::string::npos);
    EXPECT_EQ(Run("generate --model " + dir + prompt).out, text);
    const Outcome imported = Run("import --model " + dir + " --out " + back);
    ASSERT_EQ(imported.exit_code, 0) << imported.err;
    EXPECT_EQ(Run("generate --model " + back + prompt).out, text);
    ASSERT_EQ(Run("export --model " + back + " --slstm_backend " + backend + " --out " + dir + "2").exit_code,
              0);
    for (const std::string file : {"/config.json", "/model.safetensors"}) {
      EXPECT_EQ(Read(dir + "2" + file), Read(dir + file)) << file;
    }
  }
  // Vanilla unless asked otherwise.
  ASSERT_EQ(Run("export --model " + Path("paper") + " --context_length 5 --out " + Path("plain")).exit_code,
            0);
  EXPECT_EQ(Read(Path("plain") + "/model.safetensors"), Read(Path("paper_vanilla") + "/model.safetensors"));
  EXPECT_NE(Read(Path("plain") + "/config.json").find("\"context_length\": 5"), std::string::npos);
}

TEST_F(ModelCommands, ALargeModelGoesToXlstmLargeAndBack) {
  const std::string prompt = " --prompt 'It is a truth universally' --temperature 0 --max_tokens 40";
  const std::string text = Run("generate --model " + Path("run") + prompt).out;
  const std::string dir = Path("nxai"), back = Path("nxai_run");
  const Outcome exported = Run("export --format nxai --model " + Path("run") + " --out " + dir);
  ASSERT_EQ(exported.exit_code, 0) << exported.err;
  EXPECT_NE(exported.out.find("the digests of all 33 tensors are those of the checkpoint\n"),
            std::string::npos)
      << exported.out;
  EXPECT_NE(exported.out.find("max |delta logit| = 0 "), std::string::npos) << exported.out;
  EXPECT_TRUE(std::filesystem::exists(dir + "/config.yaml"));
  EXPECT_FALSE(std::filesystem::exists(dir + "/config.json"));
  EXPECT_NE(Read(dir + "/README.md").find("load_from_pretrained(\"nxai\")"), std::string::npos);
  EXPECT_EQ(Run("generate --model " + dir + prompt).out, text);
  const Outcome imported = Run("import --model " + dir + " --out " + back);
  ASSERT_EQ(imported.exit_code, 0) << imported.err;
  EXPECT_NE(imported.out.find("digests compared"), std::string::npos) << imported.out;
  EXPECT_EQ(Run("generate --model " + back + prompt).out, text);
  ASSERT_EQ(Run("export --format nxai --model " + back + " --out " + dir + "2").exit_code, 0);
  for (const std::string file : {"/config.yaml", "/model.safetensors"}) {
    EXPECT_EQ(Read(dir + "2" + file), Read(dir + file)) << file;
  }
  // In files that the package counts, as bf16, without running the model.
  const Outcome rounded =
      Run("export --format nxai --check digests --dtype bf16 --max_shard_bytes 100000 --model " + dir +
          " --out " + dir + "_bf16");
  ASSERT_EQ(rounded.exit_code, 0) << rounded.err;
  EXPECT_NE(rounded.out.find("are those of the model, rounded to bf16\nlogits not compared: --check digests"),
            std::string::npos)
      << rounded.out;
  EXPECT_TRUE(std::filesystem::exists(dir + "_bf16/model_2.safetensors"));
  EXPECT_EQ(Run("generate --model " + dir + "_bf16" + prompt).exit_code, 0);
  const Outcome again = Run("export --format nxai --model " + Path("run") + " --out " + dir);
  EXPECT_EQ(again.exit_code, kExitFailure);
  EXPECT_NE(again.err.find("--force"), std::string::npos) << again.err;
  EXPECT_EQ(Run("export --force --model " + Path("run") + " --out " + dir).exit_code, 0);
  EXPECT_FALSE(std::filesystem::exists(dir + "/config.yaml"));  // it is a Hugging Face directory now
}

TEST_F(ModelCommands, AModelThatNoOtherProgramHasIsNotExported) {
  ModelSpec spec = ExportableSpec();
  spec.slstm_at = {1};
  spec.slstm_num_heads = 4;
  MakeRun(spec, "large_slstm");
  const Outcome refused = Run("export --model " + Path("large_slstm") + " --out " + Path("nowhere"));
  EXPECT_EQ(refused.exit_code, kExitFailure) << refused.err;
  EXPECT_NE(refused.err.find("XLSTM_LARGE with sLSTM blocks"), std::string::npos) << refused.err;
  EXPECT_NE(refused.err.find("XLSTM_PAPER (--format xlstm)"), std::string::npos) << refused.err;
  EXPECT_FALSE(std::filesystem::exists(Path("nowhere")));
  const Outcome other = Run("export --format xlstm --model " + Path("run") + " --out " + Path("nowhere"));
  EXPECT_EQ(other.exit_code, kExitFailure) << other.err;
  EXPECT_NE(other.err.find("family = XLSTM_LARGE"), std::string::npos) << other.err;
  EXPECT_NE(other.err.find("--format nxai"), std::string::npos) << other.err;
  const Outcome option =
      Run("export --slstm_backend cuda --model " + Path("run") + " --out " + Path("nowhere"));
  EXPECT_EQ(option.exit_code, kExitUsage) << option.err;
  EXPECT_NE(option.err.find("--slstm_backend"), std::string::npos) << option.err;
}

TEST_F(ModelCommands, GeneratedTextDependsOnTheSeedAndIsValidUtf8) {
  const auto sample = [&](int seed) {
    const Outcome outcome =
        Run("generate --model " + Path("run") +
            " --prompt 'caf\xc3\xa9' --temperature 2 --max_tokens 200 --seed " + std::to_string(seed));
    EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
    return outcome.out;
  };
  const std::string text = sample(1);
  EXPECT_EQ(text, sample(1));
  EXPECT_NE(text, sample(2));
  for (size_t i = 0; i < text.size();) {
    const unsigned char c = static_cast<unsigned char>(text[i]);
    const size_t length = c < 0x80 ? 1 : c < 0xE0 ? 2 : c < 0xF0 ? 3 : 4;
    ASSERT_TRUE(c < 0x80 || c >= 0xC2) << "stray byte at " << i;
    ASSERT_LE(i + length, text.size());
    for (size_t j = 1; j < length; ++j) ASSERT_EQ(static_cast<unsigned char>(text[i + j]) & 0xC0, 0x80);
    i += length;
  }
}

TEST_F(ModelCommands, TheNumberOfThreadsDoesNotChangeTheText) {
  const std::string arguments =
      "generate --model " + Path("run") + " --prompt abc --max_tokens 60 --threads ";
  EXPECT_EQ(Run(arguments + "1").out, Run(arguments + "3").out);
}

TEST_F(ModelCommands, ThePromptMayComeFromStandardInput) {
  std::ofstream(Path("prompt")) << std::string(1000, 'x') << " and on";
  const Outcome file = Run("generate --model " + Path("run") +
                           " --prompt - --temperature 0 --max_tokens 5 --no_echo <" + Path("prompt"));
  EXPECT_EQ(file.exit_code, 0) << file.err;
  EXPECT_LE(file.out.size(), 16u);
  EXPECT_NE(file.err.find("1008"), std::string::npos) << file.err;  // with the token that starts a text
}

TEST_F(ModelCommands, ErrorsNameWhatIsWrongAndExitWithoutZero) {
  const Outcome missing = Run("generate --model " + Path("none") + " --prompt a");
  EXPECT_EQ(missing.exit_code, kExitFailure);
  EXPECT_NE(missing.err.find(Path("none")), std::string::npos) << missing.err;
  const Outcome dtype = Run("generate --model " + Path("run") + " --dtype f8");
  EXPECT_EQ(dtype.exit_code, kExitUsage);
  const Outcome no_out = Run("export --model " + Path("run"));
  EXPECT_EQ(no_out.exit_code, kExitUsage);
  EXPECT_NE(no_out.err.find("--out"), std::string::npos) << no_out.err;
  const Outcome run_as_hf = Run("import --model " + Path("run") + " --out " + Path("c"));
  EXPECT_EQ(run_as_hf.exit_code, kExitUsage) << run_as_hf.err;
  const Outcome unwritable = Run("export --model " + Path("run") + " --out /proc/model");
  EXPECT_EQ(unwritable.exit_code, kExitFailure);
  EXPECT_NE(unwritable.err.find("/proc/model"), std::string::npos) << unwritable.err;
}

TEST_F(ModelCommands, VerifyPrintsATableAndItsExitCodeIsTheVerdict) {
  const std::string golden = std::string(CAROUSEL_SOURCE_DIR) + "/tests/golden/";
  const Outcome good = Run("verify --dtype f64 " + golden + "mlstm_with_state.safetensors");
  EXPECT_EQ(good.exit_code, 0) << good.err;
  for (const char* tensor : {"h ", "loss", "grad.q", "grad.m0"}) {
    EXPECT_NE(good.out.find(tensor), std::string::npos) << tensor;
  }
  // One byte of the last tensor, and the same file cut short.
  std::string bytes = Read(golden + "large_fused.safetensors");
  std::ofstream(Path("cut.safetensors"), std::ios::binary) << bytes.substr(0, bytes.size() - 1);
  const Outcome cut = Run("verify " + Path("cut.safetensors"));
  EXPECT_EQ(cut.exit_code, kExitUsage) << cut.err;
  EXPECT_NE(cut.err.find("cut.safetensors"), std::string::npos);
  EXPECT_NE(Run("verify " + Path("absent.safetensors")).exit_code, 0);
}
}  // namespace
}  // namespace carousel
