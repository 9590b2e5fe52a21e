// The conformance program (kernels/cuda/conformance.cu) built for the emulation: it agrees with itself,
// refuses damaged files, and finds a single result that differs.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>

namespace {

struct Outcome {
  int code = -1;
  std::string text;
};
Outcome RunProgram(const std::string& arguments) {
  Outcome outcome;
  FILE* pipe = popen((std::string(CAROUSEL_CONFORMANCE) + " " + arguments + " 2>&1").c_str(), "r");
  if (pipe == nullptr) return outcome;
  char line[512];
  while (std::fgets(line, sizeof line, pipe)) outcome.text += line;
  const int status = pclose(pipe);
  if (WIFEXITED(status)) outcome.code = WEXITSTATUS(status);
  return outcome;
}
std::string ReadAll(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}
void WriteAll(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}
// The hash at the end of the file made right again.
void Seal(std::string& file) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (size_t i = 0; i + 8 < file.size(); ++i)
    hash = (hash ^ static_cast<unsigned char>(file[i])) * 0x100000001b3u;
  std::memcpy(file.data() + file.size() - 8, &hash, 8);
}

class Conformance : public ::testing::Test {
 protected:
  void SetUp() override {
    path_ =
        ::testing::TempDir() + "/" + ::testing::UnitTest::GetInstance()->current_test_info()->name() + ".bin";
    const Outcome written = RunProgram("--write " + path_);
    ASSERT_EQ(written.code, 0) << written.text;
    file_ = ReadAll(path_);
    ASSERT_GT(file_.size(), 10000u);
  }
  void TearDown() override { std::remove(path_.c_str()); }
  Outcome CheckWith(const std::string& file) {
    WriteAll(path_, file);
    return RunProgram("--check " + path_);
  }
  std::string path_, file_;
};

TEST_F(Conformance, EveryCaseAgreesWithItself) {
  const Outcome checked = CheckWith(file_);
  EXPECT_EQ(checked.code, 0) << checked.text;
  EXPECT_NE(checked.text.find("59 cases agree, 0 differ, 0 skipped"), std::string::npos) << checked.text;
}
TEST_F(Conformance, DamagedAndCutFilesAreRefused) {
  std::string damaged = file_;
  damaged[damaged.size() / 2] ^= 1;
  for (const std::string& file :
       {damaged, file_.substr(0, file_.size() - 100), std::string(), std::string("text")}) {
    const Outcome checked = CheckWith(file);
    EXPECT_EQ(checked.code, 1);
    EXPECT_NE(checked.text.find("is not a complete file of this program"), std::string::npos) << checked.text;
  }
  EXPECT_EQ(RunProgram("--check /nonexistent/file").code, 1);
  EXPECT_EQ(RunProgram("--write /nonexistent/file").code, 1);
  EXPECT_EQ(RunProgram("--check").code, 2);
}
// The last byte of a case's results stands before the next case's name.
TEST_F(Conformance, OneWrongResultOfAnyKindIsFound) {
  for (const auto& [name, next] : {std::pair<std::string, std::string>{"ldmatrix", "mma_bf16_m16n8k16"},
                                   {"mma_bf16_m16n8k16", "mma_f16_m16n8k16"},
                                   {"exchange", "ring_3"},
                                   {"tma_2d", "multicast_4d"},
                                   {"exp_fast", "exp2_fast"}}) {
    std::string file = file_;
    const uint64_t length = next.size();
    const size_t at = file.find(std::string(reinterpret_cast<const char*>(&length), 8) + next);
    ASSERT_NE(at, std::string::npos) << next;
    file[at - 1] ^= 0x40;  // of floats: the highest bit of the exponent
    Seal(file);
    const Outcome checked = CheckWith(file);
    EXPECT_EQ(checked.code, 1);
    EXPECT_NE(checked.text.find("FAIL " + name + ": "), std::string::npos) << checked.text;
    EXPECT_NE(checked.text.find("58 cases agree, 1 differ"), std::string::npos) << checked.text;
  }
}
TEST_F(Conformance, UnknownCasesAreAnError) {
  std::string file = file_;
  const size_t at = file.find("ldmatrix");
  ASSERT_NE(at, std::string::npos);
  file[at] = 'L';
  Seal(file);
  const Outcome checked = CheckWith(file);
  EXPECT_EQ(checked.code, 1);
  EXPECT_NE(checked.text.find("FAIL Ldmatrix: this program has no such case"), std::string::npos)
      << checked.text;
  EXPECT_NE(checked.text.find("SKIP ldmatrix: not in the file"), std::string::npos) << checked.text;
}
}  // namespace
